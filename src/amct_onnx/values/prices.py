"""What a layer costs in float and in int8, in nanoseconds: measured once, and not in each run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from amct_onnx.frozen import FrozenDict


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a convolution or a product has to do for one sample.

    outputs: elements of its result. terms: products that are summed up for each. channels: of the result. inputs: input
    channels of a group. groups: as Conv has them, 1 for a product.
    """

    outputs: float
    terms: int
    channels: int
    inputs: int
    groups: int = 1


@dataclass(frozen=True, kw_only=True)
class Price:
    """Nanoseconds in float and in int8."""

    in_float: float
    in_int8: float


@dataclass(frozen=True, kw_only=True)
class Prices:
    """How long a runtime takes, one thread, on the machine of `benchmarks/prices.py`.

    All are nanoseconds where nothing else is said. float_rates, int8_rates: multiplications in a nanosecond by the
    smaller number of channels of a dense layer.
    depthwise: how many times as long as with many channels an int8 depthwise convolution takes, by its channels.
    uneven: how many times as long a dense layer takes whose channels are no multiple of 16. stored: to read one weight.
    product: of one MatMul or Gemm in int8 more. moved: to write one element of a result. rounded, restored: to quantize
    an element where float ends, and to dequantize one where it begins again, with the channels moved to the end and
    back; far: how many times as long that takes in tensors of so many elements. turned: to transpose an element where
    channels that are last are moved as well. node: of one node more. elementwise: for each element of other operators;
    by_constant: of those with one constant operand, which float takes into the layer in front; other: of the rest.
    fused: activations that a convolution in float takes in, and one in int8 does not. blocked: operators that have the
    channels of images in blocks where they are in float.
    """

    float_rates: Mapping[int, float]
    int8_rates: Mapping[int, float]
    depthwise: Mapping[int, float]
    uneven: float
    stored: Price
    moved: float
    rounded: float
    restored: float
    far: Mapping[int, float]
    turned: float
    node: float
    product: float
    elementwise: Mapping[str, Price]
    by_constant: Mapping[str, Price]
    other: Price
    fused: frozenset[str]
    blocked: frozenset[str]

    @property
    def cut(self) -> float:
        """Nanoseconds for one element that leaves integers and comes back to them."""
        return self.rounded + self.restored

    def of_elements(self, op_type: str, *, with_constant: bool = False) -> Price:
        """The price of an operator without a weight, for each element."""
        found = self.by_constant.get(op_type) if with_constant else None
        return found or self.elementwise.get(op_type, self.other)

    def rounding(self, elements: float, *, quantizes: bool, turns: bool) -> float:
        """Nanoseconds to quantize a tensor, or to dequantize it. turns: with the channels last on the other side."""
        each = self.rounded if quantizes else self.restored
        return self.node * (2 if turns else 1) + elements * each * self._times(elements)

    def copying(self, elements: float) -> float:
        """Nanoseconds to copy a tensor in float, or to put it into another order."""
        return self.node + elements * self.other.in_float * self._times(elements)

    def _times(self, elements: float) -> float:
        return _between(self.far, max(1.0, elements))

    def of(self, work: Work) -> Price:
        """The price of a layer for one sample."""
        if work.groups > 1 and work.inputs == 1:
            crowd = _between(self.depthwise, work.channels)
            return Price(
                in_float=work.outputs * (0.5 + 0.012 * work.terms),
                in_int8=work.outputs * (0.3 + 0.03 * work.terms) * crowd,
            )
        if work.inputs <= _STEM and work.terms > work.inputs:  # a first convolution
            positions = work.outputs / work.channels
            in_int8 = positions * (0.56 * work.terms + 1.14 * work.channels)
            return Price(in_float=work.outputs * (0.35 + work.terms / 65), in_int8=in_int8)
        channels, inputs, moved = work.channels // work.groups, work.inputs, self.moved * work.outputs
        width, products = min(inputs, channels), work.outputs * work.terms
        if max(inputs, channels) >= _BLOCK:  # the narrower side is filled up
            width, products = max(width, _BLOCK), products * max(1.0, _BLOCK / channels)
        times = self.uneven if any(side > _BLOCK and side % _BLOCK for side in (inputs, channels)) else 1.0
        weights = work.terms * work.channels
        return Price(
            in_float=times * (moved + products / _between(self.float_rates, width)) + weights * self.stored.in_float,
            in_int8=times * (moved + products / _between(self.int8_rates, width)) + weights * self.stored.in_int8,
        )


_STEM = 4  # input channels of a first convolution at most
_BLOCK = 16  # channels that kernels for AVX-512 take together


def _between(table: Mapping[int, float], width: float) -> float:
    """A value of a table of growing keys, linear between them in the logarithm of the key, constant beyond them."""
    return float(np.interp(np.log(width), np.log(list(table)), list(table.values())))


# ONNX Runtime 1.32 on an x86 CPU with AVX-512 VNNI. Without VNNI int8 is slower, and float is cheaper beside it.
ONNXRUNTIME_PRICES = Prices(
    float_rates=FrozenDict({8: 24.0, 12: 37.0, 16: 45.0, 32: 65.0, 64: 75.0, 128: 78.0}),
    int8_rates=FrozenDict({8: 17.0, 12: 36.0, 16: 75.0, 32: 190.0, 64: 270.0, 128: 290.0}),
    depthwise=FrozenDict({8: 7.0, 16: 2.8, 32: 1.8, 64: 1.5, 96: 1.3, 144: 1.0}),
    uneven=1.6,
    stored=Price(in_float=0.2, in_int8=0.05),
    moved=0.25,
    rounded=0.27,
    restored=0.23,
    far=FrozenDict({100_000: 1.0, 400_000: 2.2}),
    turned=4.0,
    node=1000.0,
    product=2500.0,
    elementwise=FrozenDict(
        {
            "Sigmoid": Price(in_float=0.15, in_int8=0.3),
            "Mul": Price(in_float=0.2, in_int8=0.38),
            "Add": Price(in_float=0.25, in_int8=0.3),
            "LeakyRelu": Price(in_float=0.15, in_int8=0.4),
            "MaxPool": Price(in_float=0.3, in_int8=0.4),
            "Resize": Price(in_float=0.4, in_int8=0.65),
            "Softmax": Price(in_float=1.5, in_int8=5.0),
            "GlobalAveragePool": Price(in_float=0.2, in_int8=0.05),
            "Concat": Price(in_float=0.3, in_int8=0.1),
            "Transpose": Price(in_float=0.4, in_int8=0.3),
        }
    ),
    by_constant=FrozenDict({"Mul": Price(in_float=0.05, in_int8=0.35), "Add": Price(in_float=0.05, in_int8=0.1)}),
    other=Price(in_float=0.1, in_int8=0.1),
    fused=frozenset({"HardSigmoid", "HardSwish", "Tanh"}),
    blocked=frozenset({"Conv", "MaxPool", "AveragePool", "GlobalAveragePool"}),
)
