"""What to do next, from what was measured of a run: layers to leave in float, effort to try, data to add, speed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping

from amct_onnx.errors import listed
from amct_onnx.measure.kernel_report import RuntimeReport
from amct_onnx.measure.layer_errors import InFloat, LayerErrors
from amct_onnx.numerics.sample_noise import decibel
from amct_onnx.ptq.mixed.effects import FLOAT_PRICE
from amct_onnx.ptq.quantized_model import QuantizedModel
from amct_onnx.report.layer_facts import Measured
from amct_onnx.report.run_data import Advice, Histogram
from amct_onnx.targets.float_units import float_price, operations, whole_price
from amct_onnx.targets.table import TARGETS

_CLOSE, _FAIR, _NOISY = 30.0, 20.0, 12.0  # dB of the outputs
_ADVISED = 32  # samples
_APART = 6.0  # dB between samples
_CLIPPED = 0.01  # of the elements of a tensor
_LEAST_GAIN = 0.05  # dB


def advise(
    result: QuantizedModel, measured: Measured, runtime: RuntimeReport | None, tensors: Mapping[str, Histogram]
) -> tuple[Advice, ...]:
    """The advice for a run, the most important first."""
    errors = measured.errors
    level = None if errors is None else decibel(errors.level)
    if result.accuracy is not None and math.isfinite(result.accuracy.decibels):
        level = result.accuracy.decibels  # as `quantize` itself has said
    found = [*_float_layers(result, measured), *_effort(result, level), *_data(result, errors, tensors)]
    found += _speed(result, runtime)
    if level is not None and level >= _CLOSE:
        why = (
            f"The outputs are {level:.1f} dB above the noise: few tasks see a difference. What follows would buy more."
        )
        found.insert(0, Advice(kind="done", title="Nothing has to be done", why=why))
    return tuple(found)


def _float_layers(result: QuantizedModel, measured: Measured) -> Iterator[Advice]:
    errors = measured.errors
    if errors is None or measured.units is None:
        return
    gains = [decibel(choice.level) - decibel(choice.before) for choice in errors.in_float]
    for place, (choice, gain) in enumerate(zip(errors.in_float, gains, strict=True)):
        others = {unit for other in errors.in_float[:place] for unit in other.units}
        together = bool(others) and others.issubset(choice.units)
        least = max(gains[:place]) + _LEAST_GAIN if together else _LEAST_GAIN
        if choice.level <= 0 or gain < least:  # nothing would be quantized any more, or it is not worth a line
            continue
        cost = _cost(result, measured, errors, choice)
        request = result.calibration.request
        skipped = tuple(dict.fromkeys([*request.skip_layers, *request.searched, *choice.units]))
        also = [name for name in choice.nodes if name not in choice.units]
        with_it = "it" if len(choice.units) == 1 else "them"
        why = f"{listed(also, 3)} would go to float with {with_it}." if also else ""
        yield Advice(
            kind="float",
            title=f"Leave {', '.join(choice.units)} in float",
            why=why,
            option=f'--skip_layers "{";".join(skipped)}"',
            argument=f"skip_layers={list(skipped)!r}",
            layers=choice.units,
            gain=gain,
            cost=cost,
        )


def _cost(result: QuantizedModel, measured: Measured, errors: LayerErrors, choice: InFloat) -> float | None:
    """How much longer the model would take, as a share of its time, by the table of prices or by multiplications."""
    units = measured.units
    if units is None:
        return None
    prices, everything = TARGETS[result.target].prices, [node for unit in units.units for node in unit.nodes]
    if prices is not None:
        whole = whole_price(units.model, frozenset(everything), errors.shapes, prices)
        return float_price(units.model, choice.nodes, errors.shapes, prices) / whole if whole else None
    total = operations(units.model, everything, errors.shapes)
    return FLOAT_PRICE * operations(units.model, choice.nodes, errors.shapes) / total if total else None


def _effort(result: QuantizedModel, level: float | None) -> Iterator[Advice]:
    if level is None or not result.calibration.request.allows_recipe:
        return
    reached = f"{level:.1f} dB"
    if result.effort == "fast":
        why = f"fast has left {reached}: default also tries equalization, rounding by GPTQ and corrections of biases, "
        why += "and keeps what helps on samples that it has not seen. It takes some seconds more."
        yield Advice(
            kind="effort", title="Try effort default", why=why, option="--effort default", argument='effort="default"'
        )
    elif result.effort == "default" and level < _CLOSE:
        kept = [step.name for step in result.steps if step.kept and step.after is not None]
        why = f"default has left {reached}, and {len(kept)} of its {len(result.steps)} steps helped: best also tries "
        why += "more strengths, ranges by what they cost the outputs, and AdaRound. It takes minutes."
        yield Advice(kind="effort", title="Try effort best", why=why, option="--effort best", argument='effort="best"')
    if level < _FAIR:
        asked = int(_FAIR if level >= _NOISY else max(_NOISY, level + 3))
        why = f"A search leaves as few and cheap layers in float as it takes to come from {reached} to {asked} dB."
        yield Advice(
            kind="effort",
            title=f"Ask for {asked} dB",
            why=why,
            option=f"--min_sqnr {asked}",
            argument=f"min_sqnr={asked}",
        )


def _data(result: QuantizedModel, errors: LayerErrors | None, tensors: Mapping[str, Histogram]) -> Iterator[Advice]:
    used = result.data
    if used is not None and used.samples < _ADVISED and not used.whole:
        why = f"{used.samples} calibrated, and {_ADVISED} or more are advised: ranges of activations rest on what they "
        why += "show, and the recipe needs some to judge with." if result.effort != "fast" else "show."
        yield Advice(kind="data", title="Give more samples", why=why, option="--data, --limit", argument="data, limit=")
    if errors is not None and len(errors.by_sample) > 1:
        each = [decibel(level) for level in errors.by_sample]
        worst, middle = min(each), statistics.median(each)
        if middle - worst >= _APART:
            why = (
                f"Of the {len(each)} samples that were looked at, number {each.index(worst) + 1} has only {worst:.1f} "
            )
            why += f"dB where the median has {middle:.1f}: more of its kind would give it a say in the ranges."
            yield Advice(kind="data", title=f"Add data like sample {each.index(worst) + 1}", why=why)
    clipped = sorted(
        (name for name, one in tensors.items() if (one.saturated or 0) > _CLIPPED),
        key=lambda name: -(tensors[name].saturated or 0),
    )
    if clipped:
        first = tensors[clipped[0]].saturated or 0
        why = f"{listed(clipped, 3)}: up to {first:.1%} of their values lie beyond the range of their grid. Where they "
        why += "are real, wider ranges may be better."
        option, argument = "--algorithm min_max", 'algorithm="min_max"'
        yield Advice(kind="data", title="Look at what is cut off", why=why, option=option, argument=argument)


def _speed(result: QuantizedModel, runtime: RuntimeReport | None) -> Iterator[Advice]:
    if runtime is None:
        return
    if runtime.slow_because:
        why = f"It is slower than the float model here: {'; '.join(runtime.slow_because)}."
        yield Advice(kind="speed", title="Look at the kernels", why=why)
    if runtime.saturates and not result.calibration.request.reduce_range:
        why = "This CPU adds pairs of products in 16 bits (no VNNI), where they may overflow: smaller weights may not."
        yield Advice(
            kind="speed",
            title="Reduce the range of weights",
            why=why,
            option="--reduce_range",
            argument="reduce_range=True",
        )
