"""A target is data: which operators it runs on integers, and with what limits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from amct_onnx.values.layers import LayerTraits


@dataclass(frozen=True, kw_only=True)
class OpRule:
    """What a target accepts of one operator type.

    weight_ranks: ranks of the weight, empty for an operator without one. channel_wise: per-channel weight scales.
    symmetric_ranks: ranks of the weight at which only symmetric activations work.
    """

    weight_ranks: frozenset[int] = frozenset()
    channel_wise: bool = False
    symmetric_ranks: frozenset[int] = frozenset()


@dataclass(frozen=True, kw_only=True)
class Target:
    """A named table of rules, by operator type."""

    name: str
    rules: Mapping[str, OpRule]

    def judge(self, traits: LayerTraits) -> LayerTraits:
        """`traits` completed by what this target says: limits, and the reason when it cannot quantize the layer."""
        rule = self.rules.get(traits.op_type)
        reason = traits.reason
        if rule is None:
            reason = reason or f"target {self.name} has no integer {traits.op_type}"
            return replace(traits, reason=reason)
        if traits.two_operands:  # amct_formats.md: MatMul of two activations: symmetric
            return replace(traits, symmetric_only=True)
        if reason is None and rule.weight_ranks and traits.weight_rank not in rule.weight_ranks:
            ranks = ", ".join(str(r) for r in sorted(rule.weight_ranks))
            reason = f"its weight has {traits.weight_rank} dimensions, target {self.name} takes {ranks}"
        return replace(
            traits,
            reason=reason,
            channel_wise=rule.channel_wise,
            symmetric_only=traits.weight_rank in rule.symmetric_ranks,
        )


ASCEND = Target(
    name="ascend",
    rules={
        "Conv": OpRule(weight_ranks=frozenset((3, 4, 5)), channel_wise=True, symmetric_ranks=frozenset((5,))),
        "ConvTranspose": OpRule(weight_ranks=frozenset((4,)), channel_wise=True),
        "Gemm": OpRule(weight_ranks=frozenset((2,))),
        "MatMul": OpRule(weight_ranks=frozenset((2, 3))),
        "AveragePool": OpRule(),
        "LSTM": OpRule(weight_ranks=frozenset((3,)), channel_wise=True),
        "GRU": OpRule(weight_ranks=frozenset((3,)), channel_wise=True),
    },
)
