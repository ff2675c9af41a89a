"""What is known of a model's layers, and what is decided for each: values that the layers above pass around."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from amct_onnx.numerics.arrays import Int32s
from amct_onnx.numerics.grid import QParams
from amct_onnx.numerics.settings import ActivationSettings, LayerSettings, TensorSettings


@dataclass(frozen=True, kw_only=True)
class LayerTraits:
    """A candidate layer as the graph shows it.

    `reason` is None for a layer that can be quantized, otherwise why not. `channels` is the number of output channels
    of the weight (1 for a layer without a weight), `input_channels` the length of balance factors, `weight_rank` the
    rank of the weight (0 without). `channel_wise`: per-channel weight scales are allowed. `dilated`: a convolution with
    a dilation other than 1. `two_operands`: a MatMul of two activations. `half`: a layer of float16.
    """

    name: str
    op_type: str
    reason: str | None = None
    channels: int = 1
    input_channels: int = 1
    weight_rank: int = 0
    channel_wise: bool = False
    symmetric_only: bool = False
    dilated: bool = False
    two_operands: bool = False
    half: bool = False

    @property
    def has_weight(self) -> bool:
        return self.weight_rank > 0

    @property
    def supports_balancing(self) -> bool:
        """DMQ: Conv but 1-D, Gemm and MatMul with a weight (amct_formats.md: Balanced layers)."""
        if self.op_type in ("Conv", "ConvTranspose"):
            return self.has_weight and self.weight_rank != 3
        return self.has_weight and self.op_type in ("Gemm", "MatMul")

    @property
    def supports_int16(self) -> bool:
        """Activations of 16 bits: 1-D and 2-D convolution, Gemm, LSTM and GRU (amct_formats.md: Layer conditions)."""
        if self.op_type in ("Conv", "ConvTranspose"):
            return self.weight_rank in (3, 4)
        return self.op_type in ("Gemm", "LSTM", "GRU")

    @property
    def supports_clusters(self) -> bool:
        """NUQ: 2-D convolution without dilation, Gemm and MatMul (amct_formats.md: NUQ layers)."""
        if self.op_type == "Conv":
            return self.weight_rank == 4 and not self.dilated
        return self.has_weight and self.op_type in ("Gemm", "MatMul")

    @property
    def weight_bits(self) -> tuple[int, ...]:
        """Widths of the weight's integers: 6 and 7 for 2-D convolution only, not 4 for LSTM and GRU
        (amct_formats.md: Layer entries)."""
        if self.op_type == "Conv" and self.weight_rank == 4:
            return (4, 6, 7, 8)
        return (8,) if self.op_type in ("LSTM", "GRU") else (4, 8)


@dataclass(frozen=True, kw_only=True)
class GraphFacts:
    """What the file formats need to know of a model: `nodes` maps every node name to its operator type."""

    nodes: Mapping[str, str]
    layers: Mapping[str, LayerTraits]
    fusable: frozenset[str]

    @property
    def supported(self) -> dict[str, LayerTraits]:
        """The layers that can be quantized, in graph order."""
        return {name: traits for name, traits in self.layers.items() if traits.reason is None}


@dataclass(frozen=True, kw_only=True)
class LayerRecord:
    """The factors of one record entry (amct_formats.md: record.txt). An absent field is None or empty.

    scale_w, offset_w, shift_bit and tensor_balance_factor are per channel or of length 1; cluster holds the int8
    levels of non-uniform weights; the `_h` and `_r` factors belong to recurrent layers.
    """

    scale_d: float | None = None
    offset_d: int | None = None
    scale_w: tuple[float, ...] = ()
    offset_w: tuple[int, ...] = ()
    shift_bit: tuple[int, ...] = ()
    skip_fusion: bool | None = None
    is_tensor_quantize: bool | None = None
    tensor_balance_factor: tuple[float, ...] = ()
    op_data_type: str | None = None
    act_type: str | None = None
    wts_type: str | None = None
    scale_h: float | None = None
    offset_h: int | None = None
    scale_r: tuple[float, ...] = ()
    offset_r: tuple[int, ...] = ()
    cluster: tuple[int, ...] = ()
    fakequant_precision_mode: str | None = None

    @property
    def is_empty(self) -> bool:
        """No quantization factor at all: AMCT treats the layer as not quantized (amct_formats.md: Record checks)."""
        return self.scale_d is None and self.offset_d is None and not (self.scale_w or self.offset_w or self.shift_bit)


@dataclass(frozen=True, kw_only=True)
class CalibrationNote:
    """What calibration left unfinished for one layer: batches seen of those needed, or the error that stopped it."""

    layer: str
    seen: int
    needed: int
    error: str | None = None


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What happens to one candidate layer, and why when it stays in float."""

    layer: str
    quantized: bool
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class ObservedTensor:
    """A tensor that calibration observes: input `input_index` of `node`, its first reader.

    `keys` are the records that get its factors: layers and `tensor_quantize` entries that read it with the same
    settings. `stamp` is "weight" for the second operand of a MatMul of two activations, whose factors stand where those
    of a weight do, and "initial_h" for all states h of a recurrent layer. Tensors of one `joint` group ("" for none)
    are solved together and get the same factors.
    """

    keys: tuple[str, ...]
    node: str
    input_index: int
    activation: ActivationSettings
    stamp: Literal["data", "weight", "initial_h"] = "data"
    joint: str = ""


@dataclass(frozen=True, kw_only=True)
class QuantPlan:
    """Computed once from model and settings: one decision for each layer that could be quantized, in graph order.

    `settings` has the settings of each quantized layer, `tensors` those of the inputs of float nodes that are
    quantized and restored, by their record keys. `notes`: what a user should know of the plan, as sentences.
    """

    decisions: tuple[Decision, ...]
    observed: tuple[ObservedTensor, ...]
    settings: Mapping[str, LayerSettings]
    tensors: Mapping[str, TensorSettings]
    notes: tuple[str, ...] = ()

    @property
    def layers(self) -> tuple[str, ...]:
        """The quantized layers, in graph order."""
        return tuple(decision.layer for decision in self.decisions if decision.quantized)

    @property
    def groups(self) -> tuple[tuple[str, ...], ...]:
        """A partition of layers and tensors: those of one group read the same tensor alike and share its factors."""
        return tuple(tensor.keys for tensor in self.observed if tensor.stamp == "data")


@dataclass(frozen=True, kw_only=True)
class QuantizedLayer:
    """All factors of one quantized layer: of its activation (per tensor) and of its weight (None without one).

    `part_of` is the user's layer when this one is a part of it, as the products of an LSTM are; "" otherwise.
    `second` has the factors of input 1 where that is an activation too: a MatMul of two variables, without a weight.
    `bias`: the integers of the bias, int32[channels], where they are known already; else they come from its values.
    """

    name: str
    activation: QParams
    weight: QParams | None
    second: QParams | None = None
    part_of: str = ""
    bias: Int32s | None = None

    @property
    def layer(self) -> str:
        """The name under which the user knows the layer."""
        return self.part_of or self.name


@dataclass(frozen=True, kw_only=True)
class QuantizedTensor:
    """One input of a node that is quantized and dequantized again in front of it; the node itself stays in float.

    `marker`: the node is an Identity that only marks the place, and goes away.
    """

    node: str
    input_index: int
    activation: QParams
    marker: bool = False

    @property
    def owner(self) -> str:
        """What its new nodes are named after."""
        return self.node if self.marker else f"{self.node}.{self.input_index}"


@dataclass(frozen=True, kw_only=True)
class QuantizedOutput:
    """The node `node` (a QuantizeLinear) makes an int8 output of the model out of its input 0."""

    node: str
    activation: QParams


@dataclass(frozen=True, kw_only=True)
class Kept:
    """A node that an already quantized model wanted quantized and that is not, and why: a clause about the node."""

    name: str
    op_type: str
    reason: str
