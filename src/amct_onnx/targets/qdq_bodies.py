"""Layers inside the bodies of If, Loop and Scan for targets of Q/DQ files: each body is quantized as its own model."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import onnx_ir as ir

from amct_onnx.errors import CalibrationError, StatisticsError
from amct_onnx.frozen import FrozenDict
from amct_onnx.graph.access import name_of
from amct_onnx.graph.bodies import all_values, bodies_with_layers, close_body, outside_reads, settle_names
from amct_onnx.plan.ascend_layers import graph_facts
from amct_onnx.plan.float_model import FloatModel, FusedModel
from amct_onnx.targets.calibration import Calibration
from amct_onnx.targets.qdq_solving import PlanSolver, SolvedPlan
from amct_onnx.targets.to_qdq import QdqGrids, lower_qdq
from amct_onnx.values.findings import Tuning
from amct_onnx.values.qdq_tables import QdqTarget

_NOT_RUN = "held nothing: none of the data ran what is inside, or it was empty"


def lower_solved(model: ir.Model, solved: SolvedPlan, table: QdqTarget) -> None:
    """Quantize `model`, a copy of the prepared one, in place."""
    grids = QdqGrids(
        activations=solved.activations, weights=solved.weights, constants=solved.constants, tables=solved.tables
    )
    lower_qdq(model, solved.plan, table, grids)


def quantize_bodies(
    quantized: ir.Model, prepared: ir.Model, calibration: Calibration, table: QdqTarget
) -> tuple[SolvedPlan, ...]:
    """Quantize the bodies of `quantized`, the lowered form of `prepared`, in place; what was solved of each.

    A tensor that a body reads from outside has the statistic that it has there. A body of which NaN and Inf leave
    nothing stays as it is.
    """
    places, solved = bodies_with_layers(quantized), []
    reads, values = (outside_reads(prepared), all_values(prepared)) if places else ({}, {})
    for place in places:
        closed = close_body(quantized, place, reads)
        model = closed.model
        source = FusedModel(source=FloatModel(model=model, facts=graph_facts(model)), model=model)
        tensors = dict(calibration.statistics.tensors)
        for inner, _ in closed.captured:
            with suppress(StatisticsError, CalibrationError):
                if inner.name in values:
                    tensors[name_of(inner)] = calibration.statistic([values[name_of(inner)]])
        statistics = replace(calibration.statistics, tensors=FrozenDict(tensors))
        own = replace(calibration, source=source, statistics=statistics, tuning=Tuning(), empty=_NOT_RUN)
        solver = PlanSolver(own, table)
        try:
            while (found := solver.solve()) is None:
                pass
        except CalibrationError:
            closed.put_back(model)
            continue
        # Another body may read the same table.
        tables = {name: replace(grid, alone=False) for name, grid in found.tables.items()}
        found = replace(found, tables=tables)
        solved.append(found)
        lowered = found.prepared.clone()
        lower_solved(lowered, found, table)
        closed.put_back(lowered)
        for domain, version in lowered.opset_imports.items():
            quantized.opset_imports.setdefault(domain, version)
    if places:
        settle_names(quantized)
    return tuple(solved)
