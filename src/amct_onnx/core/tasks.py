"""What an observer can collect besides the factors of an activation: values that travel in its node as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from amct_onnx.core.settings import AdaRound


@dataclass(frozen=True, kw_only=True)
class Balance:
    """DMQ factors of the layer that reads the tensor (spec section 6.5).

    axis: the tensor's channel axis, from the front or (negative) from the back. weight_maxima: the largest magnitude of
    the weight for each input channel. strength: migration strength in [0.2, 0.8].
    """

    axis: int
    strength: float
    weight_maxima: tuple[float, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "weight_maxima", tuple(self.weight_maxima))  # JSON has lists


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A layer's float output and its quantized one, joined on axis 0 in this order: how near are they?"""


@dataclass(frozen=True, kw_only=True)
class LayerColumns:
    """Second moments of the columns that a layer multiplies its weight with; `core/columns.py` makes them.

    weight: the initializer of the calibration model that holds the float weight. op_type: Conv, ConvTranspose, Gemm or
    MatMul. groups: sets of columns with weights of their own. block: length of a block of a column. rounding: how the
    weight will be rounded. The rest are the attributes of a convolution with their defaults filled in; empty for a Gemm
    or MatMul.
    """

    weight: str
    op_type: str
    groups: int
    block: int
    rounding: AdaRound = field(default_factory=AdaRound)
    kernel: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    pads: tuple[int, ...] = ()
    auto_pad: str = "NOTSET"
    output_padding: tuple[int, ...] = ()
    output_shape: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in ("kernel", "strides", "dilations", "pads", "output_padding", "output_shape"):
            object.__setattr__(self, name, tuple(getattr(self, name)))  # JSON has lists
        if isinstance(self.rounding, Mapping):
            object.__setattr__(self, "rounding", AdaRound(**self.rounding))
