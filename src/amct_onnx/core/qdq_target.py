"""A target that takes Q/DQ models, as data: which tensors of each operator it wants quantized, and on which grid."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from amct_onnx.core.spec import QSpec

OutputRule = Literal["required", "free", "same", "float"]
InputRule = Literal["all", "first", "branch"]


@dataclass(frozen=True, kw_only=True)
class QdqRule:
    """What a target wants of one operator type.

    leads: quantized on its own account; otherwise only among tensors that are quantized anyway. inputs: the variable
    inputs that are quantized: all, the first one, or of a sum all but the one that its producer is fused with.
    weight_ranks: ranks of the constant input 1 that becomes int8, empty for an operator without weight.
    output: "required" (the operator is an integer kernel only in front of a QuantizeLinear), "free" (its result may be
    float), "same" (it moves, picks or compares elements: input and output share one grid), "float" (the target wants no
    QuantizeLinear behind it). direct: written on the integers themselves, since the target has no integer kernel for it
    between DequantizeLinear and QuantizeLinear.
    """

    leads: bool = False
    inputs: InputRule = "all"
    weight_ranks: frozenset[int] = frozenset()
    output: OutputRule = "required"
    direct: bool = False


@dataclass(frozen=True, kw_only=True)
class QdqTarget:
    """A named table of rules.

    rules: by operator type. activation, weight: grids, of which the file has unsigned integers where
    `unsigned_activations`. absorbs: operators that become one with the kernel in front of them, so that the
    QuantizeLinear stands behind both; `drops_clamps`: they are left out, since the grid has their effect. int32_bias:
    biases are int32 behind a DequantizeLinear, else float32. minimum_opset, maximum_opset: versions of the default
    domain whose QuantizeLinear and DequantizeLinear the target has. beyond: the domain of those in later models, "" for
    none. rounds_floats: operators whose float weight the target rounds by itself where a DequantizeLinear stands in
    front of the node and a QuantizeLinear behind it; those that are to stay in float are set apart from the latter.
    """

    name: str
    rules: Mapping[str, QdqRule]
    activation: QSpec
    weight: QSpec
    unsigned_activations: bool = False
    absorbs: frozenset[str] = frozenset()
    drops_clamps: bool = False
    int32_bias: bool = False
    minimum_opset: int = 13
    maximum_opset: int = 27
    beyond: str = ""
    rounds_floats: frozenset[str] = frozenset()
