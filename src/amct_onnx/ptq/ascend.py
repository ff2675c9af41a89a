"""Target ascend of `quantize`: the layers that AMCT's functions would make, with factors from given statistics.

The graph is prepared and assembled by the functions behind `quantize_model` and `save_model`. What differs is where the
observers sit: in `quantize` they saw the float network, so that one calibration serves every target, and not the
network with rounded weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import onnx_ir as ir

from amct_onnx.amct.calibration_model import FUSIONS_KEY, prepare_records
from amct_onnx.amct.save import FactoredModel, assemble
from amct_onnx.errors import CalibrationError
from amct_onnx.files.config_json import default_settings
from amct_onnx.graph.instrument.observers import Observer, observed_values, remove_observers
from amct_onnx.graph.recurrent import RECURRENT_OPS
from amct_onnx.numerics.activations.solve import solve_activation
from amct_onnx.numerics.grid import QParams
from amct_onnx.numerics.settings import ActivationSettings, Mse, Settings
from amct_onnx.numerics.statistics.by_tensor import Statistics
from amct_onnx.observe.collectors import activation_factors
from amct_onnx.plan.ascend_layers import decide
from amct_onnx.ptq.ascend_weights import refine_weights
from amct_onnx.ptq.float_model import FloatSource, source_of
from amct_onnx.ptq.request import Choice
from amct_onnx.values.findings import Tuning
from amct_onnx.values.layers import Decision, LayerRecord

_RECURRENT = "its states are observed by AMCT's functions only: use quantize_model for it"


@dataclass(frozen=True, kw_only=True)
class AscendResult:
    """The quantized layers, their records, the grids of their weights, and a decision for each candidate."""

    model: FactoredModel
    records: Mapping[str, LayerRecord]
    weights: Mapping[str, QParams]
    decisions: tuple[Decision, ...]


def lower_ascend(
    source: FloatSource, choice: Choice, statistics: Statistics, tuning: Tuning, known: dict[bytes, QParams]
) -> AscendResult:
    """Quantize for Ascend; without settings of AMCT with weights of less error than AMCT's.

    known: as for `Choice.weight`. Raises ConfigError, ModelError, CalibrationError, StatisticsError."""
    choice.check("ascend", integers=False)
    settings = _settings(source, choice)
    model = source.start.clone()
    records, _ = prepare_records(model, source.facts, settings, "")
    if source.factors:
        model.metadata_props[FUSIONS_KEY] = source.fusions
    weights = refine_weights(model, source.fused, settings, records, tuning, known) if choice.is_ours else {}
    observed = observed_values(model)
    for observer, value in observed:
        joined = [v for o, v in observed if o.joint == observer.joint] if observer.joint else [value]
        solved = _solve(observer, joined, choice, statistics)
        for key in observer.layers:
            records[key] = replace(records.get(key, LayerRecord()), **solved)
    observers = remove_observers(model)
    decisions = tuple(
        replace(decision, reason=_RECURRENT)
        if decision.layer in source.facts.supported and source.facts.layers[decision.layer].op_type in RECURRENT_OPS
        else decision
        for decision in decide(source.facts, settings)
    )
    assembled = assemble(model, observers, records, "the statistics")
    return AscendResult(model=assembled, records=MappingProxyType(records), weights=weights, decisions=decisions)


def _settings(source: FloatSource, choice: Choice) -> Settings:
    """The settings of all layers: what is skipped is off, and so are layers whose states nobody observed."""
    facts = source.facts
    settings = choice.settings or default_settings(facts)
    recurrent = {name for name, traits in facts.layers.items() if traits.op_type in RECURRENT_OPS}
    off = {*choice.skip_layers, *recurrent}
    layers = {
        name: replace(entry, quant_enable=entry.quant_enable and name not in off)
        for name, entry in settings.layers.items()
    }
    for name in choice.wide:
        if name in layers and facts.layers[name].supports_int16:
            layers[name] = replace(layers[name], activation=replace(layers[name].activation, num_bits=16))
    return replace(settings, layers=MappingProxyType(layers))


def _solve(observer: Observer, values: Sequence[ir.Value], choice: Choice, statistics: Statistics) -> dict[str, Any]:
    """The fields of a record for an observer whose factors come from what `values` held."""
    assert isinstance(observer.task, ActivationSettings)  # `check` refused what needs others
    solver = choice.algorithm or (Mse() if choice.settings is None else observer.task.solver)
    statistic = statistics.of(dict.fromkeys(source_of(value).name or "" for value in values))
    try:
        params = solve_activation(statistic, replace(observer.task, solver=solver))
    except ValueError as error:
        raise CalibrationError(f'Layer "{observer.layers[0]}": {error}.') from error
    return activation_factors(params, observer.stamp, observer.op_data_type)
