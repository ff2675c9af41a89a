"""What `inspect` tells of a model before anything is done to it, as values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from amct_onnx.errors import listed
from amct_onnx.values.layers import Decision
from amct_onnx.values.shown import Shown, Table

_LISTED = 4


@dataclass(frozen=True, kw_only=True)
class TensorSummary:
    """An input or output of a model. type: numpy's name. shape: a number, or the name of a size that is open ("" where
    it has none); None where even the number of axes is open."""

    name: str
    type: str
    shape: tuple[int | str, ...] | None

    def __str__(self) -> str:
        dims = "?" if self.shape is None else " x ".join(str(dim) or "?" for dim in self.shape)
        return f"{self.name} {self.type} [{dims}]"


@dataclass(frozen=True, kw_only=True)
class TargetSummary:
    """What one target can make of a model; with data, `quantize` leaves in float what is faster there.

    decisions: what happens to each node that the target could quantize, and why where it stays in float. layers: how
    many of them have a type that users know as layers (convolutions, products, recurrent layers, ...), and
    quantized_layers: of these. share: of the elements of all weights, those in quantized layers, 0 to 1. error: why the
    target cannot take the model at all, "" where it can.
    """

    target: str
    decisions: tuple[Decision, ...]
    layers: int
    quantized_layers: int
    share: float
    error: str

    @property
    def quantized(self) -> int:
        """The number of nodes that are quantized."""
        return sum(decision.quantized for decision in self.decisions)

    @property
    def reasons(self) -> Mapping[str, tuple[str, ...]]:
        """The nodes that stay in float, by reason, the commonest first."""
        found: dict[str, list[str]] = {}
        for decision in self.decisions:
            if not decision.quantized:
                found.setdefault(decision.reason, []).append(decision.layer)
        return {reason: tuple(names) for reason, names in sorted(found.items(), key=lambda item: -len(item[1]))}


@dataclass(frozen=True, kw_only=True)
class ModelSummary(Shown):
    """A model as its file shows it; no data was run.

    bytes: of the file and of its external data. elements: of all initializers. operators: how many nodes of each type,
    the commonest first. folded: batch normalizations that go into the layer in front of them. quantized_already: it
    holds operators of quantization, so that there is nothing to decide. surprises: what may be unexpected, a sentence
    each, with what to do.
    """

    model: str
    opset: int
    ir_version: int
    producer: str
    bytes: int
    elements: int
    nodes: int
    operators: Mapping[str, int]
    inputs: tuple[TensorSummary, ...]
    outputs: tuple[TensorSummary, ...]
    external_data: bool
    folded: int
    quantized_already: bool
    targets: tuple[TargetSummary, ...]
    surprises: tuple[str, ...]

    def target(self, name: str) -> TargetSummary:
        """What the target of that name makes of the model. Raises KeyError."""
        return {target.target: target for target in self.targets}[name]

    def lines(self) -> list[str]:
        """What is to be known, in a few sentences."""
        kinds = listed([f"{count} {op_type}" for op_type, count in self.operators.items()], 8)
        made = f", made by {self.producer}" if self.producer else ""
        where = ", weights in files of their own" if self.external_data else ""
        return [
            f"{self.model}: opset {self.opset}, IR version {self.ir_version}{made}.",
            f"{self.bytes / 1e6:.2f} MB, {self.elements} elements in weights{where}.",
            f"Inputs: {listed([str(value) for value in self.inputs], _LISTED, '; ')}.",
            f"Outputs: {listed([str(value) for value in self.outputs], _LISTED, '; ')}.",
            f"{self.nodes} nodes: {kinds}.",
            *([f"{self.folded} batch normalizations are folded into layers."] if self.folded else []),
            *(f"Note: {surprise}" for surprise in self.surprises),
        ]

    def tables(self) -> tuple[Table, ...]:
        targets = Table.of(
            "What can be quantized, before data show what is faster in float",
            ("target", "nodes", "of", "layers", "of", "weights", "in float"),
            [
                (
                    *(one.target, one.quantized, len(one.decisions), one.quantized_layers, one.layers),
                    *(100 * one.share, one.error or _commonest(one)),
                )
                for one in self.targets
            ],
            weights="%",
        )
        reasons = Table.of(
            "What stays in float, and why",
            ("target", "nodes", "why", "for example"),
            [
                (one.target, len(names), reason, listed(names, 2))
                for one in self.targets
                for reason, names in one.reasons.items()
            ],
        )
        return targets, reasons


def _commonest(target: TargetSummary) -> str:
    reason = next(iter(target.reasons), "")
    return f"{len(target.reasons[reason])}: {reason}" if reason else ""
