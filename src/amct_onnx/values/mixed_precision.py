"""What a search for mixed precision tried and found, as values."""

from __future__ import annotations

from dataclasses import dataclass

from amct_onnx.errors import listed

_SHOWN = 6


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One model that was lowered and evaluated.

    float_layers, wide_layers: those that the search left in float or gave int16 activations; what a target cannot
    quantize is not among them. value: on the samples of the search; checked: on samples that it did not use, None where
    there are none or the value is too low anyway. cost: operations beyond int8, as a share of what all layers in float
    would cost. met: other data will have what was asked for as well, in 19 of 20 cases. enough: it has that here, and
    no model could be surer. likely: other data will have it unless they hold worse samples than any that were seen.
    """

    float_layers: tuple[str, ...]
    wide_layers: tuple[str, ...]
    value: float
    cost: float
    met: bool
    checked: float | None = None
    enough: bool = False
    likely: bool = False


@dataclass(frozen=True, kw_only=True)
class MixedPrecision:
    """The search behind a QuantizedModel. `str()` tells it in a few lines.

    measure: what the values are. reference: that of the float model. required: the least that was asked for.
    evaluations: in the order in which they were made, the first one with every layer in integers. chosen: which of
    them the result is. notes: what was undone for it, as sentences.
    """

    measure: str
    reference: float
    required: float
    evaluations: tuple[Evaluation, ...]
    chosen: int
    notes: tuple[str, ...] = ()

    @property
    def result(self) -> Evaluation:
        """The evaluation of the result."""
        return self.evaluations[self.chosen]

    @property
    def met(self) -> bool:
        """Whether the result has what was asked for, on other data as well."""
        return self.result.met

    def __str__(self) -> str:
        result, first = self.result, self.evaluations[0]
        kinds = [f"{len(result.float_layers)} layers in float"]
        if result.wide_layers:
            kinds.append(f"{len(result.wide_layers)} with int16 activations")
        text = "" if self.met else " The target is NOT met; this is the best that was found."
        if (
            not self.met
            and min(result.value, result.value if result.checked is None else result.checked) >= self.required
        ):
            text = " The target is NOT met for certain: other data may miss it, more samples would tell."
        checked = "" if result.checked is None else f" ({result.checked:.4g} on samples held out)"
        lines = [
            f"{self.measure}: {result.value:.4g}{checked} with {', '.join(kinds)} "
            f"({result.cost:.1%} of the cost of float), {first.value:.4g} with all in int8, "
            f"{self.reference:.4g} in float; {self.required:.4g} was asked for.{text}",
            f"{len(self.evaluations)} models were evaluated.",
            *self.notes,
        ]
        for what, names in (("In float", result.float_layers), ("int16", result.wide_layers)):
            if names:
                lines.append(f"{what}: {listed(names, _SHOWN)}")
        return "\n".join(lines)
