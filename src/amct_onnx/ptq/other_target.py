"""From one calibration to another target, with the result that a calibration for that target would give."""

from __future__ import annotations

from dataclasses import replace

from amct_onnx.measure.accuracy import measure_accuracy
from amct_onnx.ptq.calibrate import tell
from amct_onnx.ptq.noise import is_noisy, noise_text
from amct_onnx.ptq.quantized_model import DynamicModel, QuantizedModel, WeightOnlyModel
from amct_onnx.ptq.recipe.first_samples import PLANS
from amct_onnx.targets.target import all_in_float
from amct_onnx.values.findings import check_effort


def serves_other_targets(result: QuantizedModel) -> bool:
    """Whether `to_other_target` gives what `quantize` would: data were run, and neither a search nor the steps of a
    recipe fitted anything to the target."""
    if isinstance(result, DynamicModel | WeightOnlyModel) or result.precision is not None or not result.effort:
        return False
    tries = PLANS[check_effort(result.effort)].samples > 0 and result.calibration.request.allows_recipe
    return not tries and not result.steps


def to_other_target(result: QuantizedModel, target: str) -> QuantizedModel:
    """What `quantize` gives for `target`, files and warnings, of a result that serves it. Raises what `to` raises."""
    made = result.to(target)
    network, judges = made.calibration.source.model, made.judges
    made = replace(made, accuracy=measure_accuracy(network, made.lowered, judges, held_out=made.judges_held_out))
    tell(warnings_of_target(made))
    return made


def warnings_of_target(result: QuantizedModel) -> list[str]:
    """What is warned of that is not about the data: it may be something else for another target."""
    found = list(result.lowered.notes)
    if not any(decision.quantized for decision in result.decisions):
        found.append(all_in_float(result.calibration.source, result.target, result.decisions))
    if result.accuracy is not None and is_noisy(result.accuracy):
        found.append(noise_text(result.accuracy))
    return found
