"""What nodes cost in float and in int8, in nanoseconds: measured once, and not in each run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from amct_onnx.frozen import FrozenDict

_STEM = 4  # input channels of a first convolution at most
_BLOCK = 16  # channels that kernels for AVX-512 take together
_QUARTER = 4  # inputs that int8 multiplies together
_CACHED = 300_000  # elements of float32 that stay near the processor


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a convolution or a product has to do for one sample.

    outputs: elements of its result. terms: products that are summed up for each. channels: of the result. inputs: input
    channels of a group. groups: as Conv has them, 1 for a product. flat: no image, but a signal or a volume, whose
    channels float does not put into blocks.
    """

    outputs: float
    terms: int
    channels: int
    inputs: int
    groups: int = 1
    flat: bool = False


@dataclass(frozen=True, kw_only=True)
class Price:
    """Nanoseconds in float and in int8."""

    in_float: float
    in_int8: float


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Nanoseconds of a kernel: `once`, and for each position, element of the result, number that a position reads
    (tap: of one channel of a depthwise kernel), multiplication, weight, and element of the result that is too far away
    to be written at once."""

    once: float = 0.0
    position: float = 0.0
    element: float = 0.0
    read: float = 0.0
    tap: float = 0.0
    product: float = 0.0
    weight: float = 0.0
    far: float = 0.0

    def of(self, work: Work, channels: int, terms: int) -> float:
        """The time of a kernel that computes so many channels, with so many terms each: some are filled up."""
        positions = work.outputs / work.channels
        return (
            self.once
            + self.position * positions
            + self.element * work.outputs
            + (self.read * work.groups + self.tap) * positions * work.terms
            + self.product * positions * channels * terms
            + self.weight * work.channels * work.terms
            + self.far * max(0.0, work.outputs - _CACHED)
        )


@dataclass(frozen=True, kw_only=True)
class Prices:
    """How long a runtime takes, one thread, on the machine of `benchmarks/prices.py`.

    All are nanoseconds. first, depthwise, dense: rates of convolutions, in float and in int8; a first one has up to
    four input channels. apart: of each group of one with several groups in float that fills no block. gathered: of each
    group in int8 more, to gather what it reads. uneven: how many times as long a depthwise one takes in int8 whose
    channels are no multiple of 16; flat: how many times as long one takes in float that is no image. narrow: for each
    position of a dense one in int8 with fewer channels. product: of one MatMul or Gemm in int8 more. moved: to write
    one element of a result. rounded, restored: to quantize an element where float ends, and to dequantize one where it
    begins again, with the channels moved to the end and back; copied: to copy one, or to put it elsewhere, in float;
    far: how many times as long these take in tensors of so many elements. turned: to transpose an element where
    channels that are last are moved as well. node: of one node more. elementwise: for each element of other operators;
    by_constant: of those with one constant operand, which float takes into the layer in front; other: of the rest.
    fused: activations that a convolution in float takes in, and one in int8 does not. blocked: operators that have the
    channels of images in blocks where they are in float.
    """

    first: tuple[Rates, Rates]
    depthwise: tuple[Rates, Rates]
    dense: tuple[Rates, Rates]
    apart: Rates
    gathered: Rates
    uneven: float
    flat: float
    narrow: float
    product: float
    moved: float
    rounded: float
    restored: float
    copied: float
    far: Mapping[int, float]
    turned: float
    node: float
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
        return self.node + elements * self.copied * self._times(elements)

    def _times(self, elements: float) -> float:
        return float(np.interp(np.log(max(1.0, elements)), np.log(list(self.far)), list(self.far.values())))

    def of(self, work: Work) -> Price:
        """The price of a layer for one sample."""
        channels, terms = work.channels, work.terms
        if work.inputs <= _STEM and work.terms > work.inputs and work.groups == 1:
            floats, integers = (rates.of(work, channels, terms) for rates in self.first)
            return Price(in_float=floats, in_int8=integers)
        wide = _filled(channels, _BLOCK)
        blocks = replace(work, outputs=work.outputs / channels * wide, channels=wide)  # as float has them
        if work.groups == channels > 1 and work.inputs == 1:
            integers = self.depthwise[1].of(work, channels, terms) * (self.uneven if channels % _BLOCK else 1.0)
            floats = self.depthwise[0].of(blocks, wide, terms) * (self.flat if work.flat else 1.0)
            return Price(in_float=floats, in_int8=integers)
        narrow = self.narrow * work.outputs / channels if channels < _BLOCK else 0.0
        taps = terms // work.inputs
        floats = self.dense[0].of(blocks, wide, taps * _filled(work.inputs, _BLOCK))
        integers = self.dense[1].of(work, wide, taps * _filled(work.inputs, _QUARTER)) + narrow
        if work.groups == 1:
            return Price(in_float=floats, in_int8=integers)
        share = channels // work.groups
        if share % _BLOCK or work.inputs % _BLOCK:
            group = Work(outputs=work.outputs / work.groups, terms=terms, channels=share, inputs=work.inputs)
            floats = work.groups * self.apart.of(group, share, terms)
        places = Work(outputs=work.groups * work.outputs / channels, terms=taps, channels=1, inputs=1)
        return Price(in_float=floats, in_int8=integers + self.gathered.of(places, 1, taps))


def _filled(count: int, block: int) -> int:
    """The next multiple of a block."""
    return -(-count // block) * block


# ONNX Runtime 1.32 on an x86 CPU with AVX-512 VNNI. Without VNNI int8 is slower, and float is cheaper beside it.
ONNXRUNTIME_PRICES = Prices(
    first=(
        Rates(once=2500, read=0.135, product=0.0192),
        Rates(once=7400, read=0.685, product=0.04, far=0.57),
    ),
    depthwise=(
        Rates(once=400, element=0.095, product=0.031, far=0.41),
        Rates(once=1500, tap=1.19, element=0.13, product=0.038),
    ),
    dense=(
        Rates(element=0.045, read=0.017, product=0.0139, weight=0.088, far=0.18),
        Rates(once=900, position=1.7, element=0.136, read=0.044, product=0.0034, weight=0.076),
    ),
    # Of groups of 8 this is between the kernels for AVX-512, and those for AVX2, whose blocks are of 8.
    apart=Rates(once=1600, position=3.0, product=0.037),
    gathered=Rates(position=6.0, tap=3.3),
    uneven=1.8,
    flat=3.0,
    narrow=8.0,
    product=1500.0,
    moved=0.25,
    rounded=0.35,
    restored=0.25,
    copied=0.17,
    far=FrozenDict({100_000: 1.0, 400_000: 1.9}),
    turned=4.0,
    node=1000.0,
    elementwise=FrozenDict(
        {
            "Sigmoid": Price(in_float=0.13, in_int8=0.32),
            "Mul": Price(in_float=0.2, in_int8=0.35),
            "Add": Price(in_float=0.2, in_int8=0.25),
            "LeakyRelu": Price(in_float=0.15, in_int8=0.4),
            "MaxPool": Price(in_float=0.25, in_int8=0.3),
            "Resize": Price(in_float=0.3, in_int8=1.1),
            "Slice": Price(in_float=0.1, in_int8=0.3),
            "Softmax": Price(in_float=1.5, in_int8=5.0),
            "GlobalAveragePool": Price(in_float=0.07, in_int8=0.09),
            "Concat": Price(in_float=0.16, in_int8=0.09),
            "Transpose": Price(in_float=0.4, in_int8=0.3),
            "Gather": Price(in_float=0.12, in_int8=0.1),
        }
    ),
    by_constant=FrozenDict({"Mul": Price(in_float=0.05, in_int8=0.35), "Add": Price(in_float=0.05, in_int8=0.1)}),
    other=Price(in_float=0.1, in_int8=0.1),
    fused=frozenset({"HardSigmoid", "HardSwish", "Tanh"}),
    blocked=frozenset({"Conv", "MaxPool", "AveragePool", "GlobalAveragePool"}),
)
