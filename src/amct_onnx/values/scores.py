"""What `evaluate` finds: how good one or two models are on labelled samples, as values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from amct_onnx.values.shown import Shown, Table


@dataclass(frozen=True, kw_only=True)
class ModelScores:
    """The figures of one model in percent, by name: top-1 and top-5, or mAP50-95 and mAP50."""

    model: str
    figures: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Scores(Shown):
    """One or two models on the same samples.

    task: "classification" or "detection". samples: how many have a label and were run. agreement: of two classifiers,
    for how many percent of the samples both have the same best class; else None. notes: what was assumed, a sentence
    each.
    """

    task: str
    samples: int
    models: tuple[ModelScores, ...]
    agreement: float | None
    notes: tuple[str, ...]

    @property
    def figures(self) -> Mapping[str, float]:
        """Those of the first model."""
        return self.models[0].figures

    def lines(self) -> list[str]:
        """What is to be known, in a few sentences."""
        lines = [f"{self.task.capitalize()} of {self.samples} samples."]
        if self.agreement is not None:
            lines.append(f"Both have the same best class for {self.agreement:.2f} % of them.")
        return [*lines, *(f"Assumed: {note}." for note in self.notes)]

    def tables(self) -> tuple[Table, ...]:
        names = list(self.figures)
        rows: list[tuple[object, ...]] = [(one.model, *one.figures.values()) for one in self.models]
        if len(self.models) > 1:
            first, second = (one.figures for one in self.models[:2])
            rows.append(("difference", *(second[name] - first[name] for name in names)))
        units = {name.replace(" ", "_"): "%" for name in names}
        return (Table.of("Scores", ("model", *names), rows, **units),)
