"""From one calibration to another target, with the result that a calibration for that target would give."""

from __future__ import annotations

from amct_onnx.ptq.calibrate import tell
from amct_onnx.ptq.quantize import warn_of_noise
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
    made = result.to(target).measured()
    tell(made.lowered.notes)
    if not any(decision.quantized for decision in made.decisions):
        tell([all_in_float(made.calibration.source, target, made.decisions)])
    warn_of_noise(made.accuracy)
    return made
