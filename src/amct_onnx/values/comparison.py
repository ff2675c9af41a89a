"""What `compare` finds: where the tensors of a quantized model part from those of the float model, as values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from amct_onnx.errors import listed
from amct_onnx.values.shown import Shown, Table

_LISTED = 3


@dataclass(frozen=True, kw_only=True)
class LayerComparison:
    """A tensor of the float model, beside what stands for it in the quantized one.

    layer, op_type: the node that makes it, that with the weight where several became one; "input" is the type of an
    input. nodes: all of them. tensor: its name in the float model; rival: in the quantized one.
    sqnr: signal over noise in dB, of all that is in front of it together; infinite where nothing differs. cosine: of
    both tensors. max_error: the greatest difference of an element.
    own_sqnr: what this layer alone costs, in dB: its float operators get what the quantized layer reads.
    parts: this layer stands out, so that something is wrong with it. why: what, as a clause, "" where nothing shows it.
    scaled: channels are multiplied in the quantized model, and what reads them takes that back; this is no error.
    """

    layer: str
    op_type: str
    nodes: tuple[str, ...]
    tensor: str
    rival: str
    sqnr: float
    cosine: float
    max_error: float
    own_sqnr: float
    parts: bool
    why: str
    scaled: bool

    def __str__(self) -> str:
        why = f": {self.why}" if self.why else ""
        return f"{self.op_type} {self.layer}{why} (alone {self.own_sqnr:.1f} dB, tensor {self.tensor})"


@dataclass(frozen=True, kw_only=True)
class Comparison(Shown):
    """Two models, layer by layer.

    layers: in the order of the float model. first: the first layer that stands out, None where none does. weakest: the
    layers that cost most alone, the worst first. outputs: signal over noise of each output in dB. unmatched: nodes of
    the float model for which the quantized one has nothing. samples: how many were run.
    """

    float_model: str
    quantized_model: str
    layers: tuple[LayerComparison, ...]
    first: LayerComparison | None
    weakest: tuple[LayerComparison, ...]
    outputs: Mapping[str, float]
    unmatched: tuple[str, ...]
    samples: int

    def lines(self) -> list[str]:
        """What is to be known, in a few sentences."""
        outputs = listed([f"{name} {value:.1f} dB" for name, value in self.outputs.items()], _LISTED)
        compared = (
            f"{len(self.layers)} tensors compared on {self.samples} {'sample' if self.samples == 1 else 'samples'}"
        )
        lines = [f"{compared}; outputs: {outputs or 'not among them'}."]
        if self.first is not None:
            lines.append(f"The models part first at {self.first}.")
        elif self.weakest:
            lines.append(f"No layer stands out. The weakest is {self.weakest[0]}.")
        if self.unmatched:
            names = listed(self.unmatched, _LISTED)
            lines.append(f"{len(self.unmatched)} nodes have no counterpart in the quantized model: {names}.")
        return lines

    def tables(self) -> tuple[Table, ...]:
        return (self._table("Layers in the order of the model", self.layers),)

    def most_costly(self) -> Table:
        """The layers that stand out and those that cost most, as a table in the order of the model."""
        chosen = [layer for layer in self.layers if layer.parts or layer in self.weakest]
        return self._table("Layers that cost most, in the order of the model", chosen)

    def _table(self, title: str, layers: Sequence[LayerComparison]) -> Table:
        columns = ("layer", "type", "SQNR", "alone", "cosine", "max error", "parts", "why")
        rows = [
            (
                *(layer.layer, layer.op_type, layer.sqnr, layer.own_sqnr, layer.cosine, layer.max_error),
                *("first" if layer == self.first else "yes" if layer.parts else "", layer.why),
            )
            for layer in layers
        ]
        return Table.of(title, columns, rows, SQNR="dB", alone="dB")
