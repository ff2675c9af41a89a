"""What a saved model is worth, as a summary that is read at a glance: accuracy, integers, size, and what runs them."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from amct_onnx.errors import listed
from amct_onnx.graph.kernels import Kernels
from amct_onnx.measure.kernel_report import RuntimeReport, size_text
from amct_onnx.measure.latency import Latency
from amct_onnx.values.accuracy import Accuracy
from amct_onnx.values.layers import Decision
from amct_onnx.values.shown import Shown, Table, html_of

_WIDTH = 118
_SHOWN = 3  # reasons to stay in float that are shown, and nodes for each of them


@dataclass(frozen=True, kw_only=True)
class SavedReport(Shown):
    """A summary of a model that was saved for `target`; `str()` gives it as text of at most 25 lines.

    accuracy: None where there were no samples to measure it with. decisions: what happens to each node that the target
    could quantize. bytes_before, bytes_after: the sizes of the float model and of what the target loads, in bytes.
    runtime: what ONNX Runtime makes of it on this machine; None for a target that runs elsewhere, or where it failed.
    """

    target: str
    accuracy: Accuracy | None
    decisions: tuple[Decision, ...]
    bytes_before: int
    bytes_after: int
    runtime: RuntimeReport | None = None

    @property
    def quantized(self) -> int:
        """How many nodes are quantized."""
        return sum(decision.quantized for decision in self.decisions)

    @property
    def kernels(self) -> Kernels | None:
        """The graph as ONNX Runtime optimises it."""
        return None if self.runtime is None else self.runtime.kernels

    @property
    def latency(self) -> Latency | None:
        """Beside the float model; None if it was not measured."""
        return None if self.runtime is None else self.runtime.latency

    @property
    def saturates(self) -> bool:
        """Whether sums of products may overflow on this CPU."""
        return self.runtime is not None and self.runtime.saturates

    @property
    def slower(self) -> bool:
        """Whether it was measured, and is slower than the float model by more than noise."""
        return self.runtime is not None and self.runtime.slower

    @property
    def slow_because(self) -> tuple[str, ...]:
        """The likely reasons if it is slower, the likeliest first."""
        return () if self.runtime is None else self.runtime.slow_because

    @property
    def version(self) -> str:
        """Of ONNX Runtime; "" where nothing was run in it."""
        return "" if self.runtime is None else self.runtime.version

    def tables(self) -> tuple[Table, ...]:
        """The nodes that the target could quantize, and what happens to each."""
        rows = [(one.layer, one.quantized, one.reason) for one in self.decisions]
        return (Table.of("Nodes that the target could quantize", ("node", "quantized", "why not"), rows),)

    def _repr_html_(self) -> str:
        return html_of(self.lines())

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def lines(self) -> list[str]:
        """The same line by line."""
        told = "not measured, there were no samples for it" if self.accuracy is None else str(self.accuracy)
        counts = f"{self.quantized} of {len(self.decisions)}"
        lines = [
            f"Accuracy: {told}",
            f"Target {self.target}: {counts} nodes that it could quantize are quantized.",
            *reason_lines(self.decisions),
        ]
        return lines + self.runtime_lines()

    def runtime_lines(self) -> list[str]:
        """Those about what ONNX Runtime makes of it, or about the size alone."""
        if self.runtime is not None:
            return self.runtime.lines()
        return [size_text(self.bytes_before, self.bytes_after)]


def in_float(decisions: Iterable[Decision]) -> dict[str, list[str]]:
    """The nodes that stay in float, by the reason, the most frequent one first."""
    reasons: dict[str, list[str]] = {}
    for decision in decisions:
        if not decision.quantized:
            reasons.setdefault(decision.reason, []).append(decision.layer)
    return dict(sorted(reasons.items(), key=lambda item: -len(item[1])))


def reason_lines(decisions: Sequence[Decision]) -> list[str]:
    """Lines about some nodes that stay in float, for the most frequent reasons."""
    found = [
        f"In float, since {reason}: {listed(names, _SHOWN)}." for reason, names in list(in_float(decisions).items())
    ]
    return [textwrap.shorten(line, 2 * _WIDTH, placeholder=" ...") for line in found[:_SHOWN]]


def written_bytes(file: str) -> int:
    """The size of a model file and of the weights beside it."""
    beside = f"{file}.data"
    return os.path.getsize(file) + (os.path.getsize(beside) if os.path.exists(beside) else 0)
