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

    float_rates, int8_rates: multiplications in a nanosecond by the smaller number of channels of a dense layer.
    depthwise: how many times as long as with many channels an int8 depthwise convolution takes, by its channels.
    moved: nanoseconds to write one element of a result. cut: to quantize one element where float ends.
    elementwise: nanoseconds for each element of other operators.
    """

    float_rates: Mapping[int, float]
    int8_rates: Mapping[int, float]
    depthwise: Mapping[int, float]
    moved: float
    cut: float
    elementwise: Mapping[str, Price]

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
        moved, products = self.moved * work.outputs, work.outputs * work.terms
        width = min(work.inputs, work.channels // work.groups)
        return Price(
            in_float=moved + products / _between(self.float_rates, width),
            in_int8=moved + products / _between(self.int8_rates, width),
        )


_STEM = 4  # input channels of a first convolution at most


def _between(table: Mapping[int, float], width: int) -> float:
    """A value of a table of growing keys, linear between them in the logarithm of the key, constant beyond them."""
    return float(np.interp(np.log(width), np.log(list(table)), list(table.values())))


# ONNX Runtime 1.32 on an x86 CPU with AVX-512 VNNI. Without VNNI int8 is slower, and float is cheaper beside it.
ONNXRUNTIME_PRICES = Prices(
    float_rates=FrozenDict({8: 24.0, 12: 37.0, 16: 45.0, 32: 65.0, 64: 75.0, 128: 78.0}),
    int8_rates=FrozenDict({8: 17.0, 12: 36.0, 16: 100.0, 32: 200.0, 64: 270.0, 128: 290.0}),
    depthwise=FrozenDict({8: 7.0, 16: 2.8, 32: 1.8, 64: 1.5, 96: 1.3, 144: 1.0}),
    moved=0.25,
    cut=0.5,
    elementwise=FrozenDict(
        {
            "Sigmoid": Price(in_float=0.2, in_int8=0.25),
            "Mul": Price(in_float=0.2, in_int8=0.35),
            "Add": Price(in_float=0.25, in_int8=0.35),
        }
    ),
)
