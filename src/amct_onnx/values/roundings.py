"""What quantization changes of a float network, as values that can be put into it part by part."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from amct_onnx.numerics.grid import QParams


@dataclass(frozen=True, kw_only=True, eq=False)
class Roundings:
    """Roundings of tensors and constants.

    tensors: those that are on a grid for all who read them. reads: (node, index) that sees a tensor on a grid.
    constants: nodes whose constants (weight, bias, operand) are the quantized ones.
    """

    tensors: Mapping[str, QParams] = field(default_factory=dict)
    reads: Mapping[tuple[str, int], QParams] = field(default_factory=dict)
    constants: frozenset[str] = frozenset()

    @staticmethod
    def union(changes: Iterable[Roundings]) -> Roundings:
        """All of them together; no two change the same."""
        tensors: dict[str, QParams] = {}
        reads: dict[tuple[str, int], QParams] = {}
        constants: set[str] = set()
        for change in changes:
            tensors.update(change.tensors)
            reads.update(change.reads)
            constants.update(change.constants)
        return Roundings(tensors=tensors, reads=reads, constants=frozenset(constants))
