"""Weights in int8 without data, activations quantized as they come: `quantize(model, None, dynamic=True)`."""

from __future__ import annotations

from amct_onnx.errors import ArgumentError, ModelError
from amct_onnx.graph.digest import model_digest
from amct_onnx.numerics.statistics.by_tensor import Statistics
from amct_onnx.plan.float_model import FusedModel
from amct_onnx.ptq.quantized_model import DynamicModel
from amct_onnx.targets.calibration import Calibration
from amct_onnx.targets.dynamic_weights import solve_dynamic
from amct_onnx.targets.table import TARGETS
from amct_onnx.targets.target import Target, all_in_float
from amct_onnx.values.request import Request
from amct_onnx.words import either, named


def check_dynamic(
    data: object, target: Target, *, search: bool, weight_only: object = None, algorithm: object = None
) -> None:
    """Raise ArgumentError for what does not go with it."""
    if weight_only is not None:
        raise ArgumentError(
            f"{named('weight_only')} leaves activations in float, and {named('dynamic')} quantizes them: "
            "give one of them."
        )
    if data is not None:
        raise ArgumentError(
            f"{named('dynamic')} quantizes activations as they come, and calibrates nothing: "
            + either("give None as data.", "leave out --data.")
        )
    if search:
        raise ArgumentError(
            f"{named('dynamic')} does not search for mixed precision: leave out the target of accuracy."
        )
    if algorithm is not None:
        raise ArgumentError(f"{named('dynamic')} has no ranges of activations to find: leave out {named('algorithm')}.")
    if not target.dynamic:
        able = " or ".join(name for name, other in TARGETS.items() if other.dynamic)
        raise ArgumentError(
            f"{named('dynamic')} needs {named('target')} {able}, got {target.name}: leave one of them out."
        )


def quantize_dynamic(source: FusedModel, *, request: Request, target: Target) -> DynamicModel:
    """Quantize the weights of all products, and of LSTMs, for which integers are faster than float.

    Raises ModelError for a model without any, ConfigError for settings that this does not have.
    """
    lowered = solve_dynamic(source, request, target.name)
    if not any(decision.quantized for decision in lowered.decisions):
        text = f"{source.name} has no product or LSTM whose weight could be quantized."
        raise ModelError(all_in_float(source, target.name, lowered.decisions) if lowered.decisions else text)
    statistics = Statistics(tensors={}, samples=0, digest=model_digest(source.model))
    calibration = Calibration(source=source, statistics=statistics, request=request)
    return DynamicModel(target=target.name, calibration=calibration, lowered=lowered)
