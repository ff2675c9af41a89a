"""Roundings put into the float model compute what the lowered model computes, whatever the model looks like."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from qdq_cases import Case

from amct_onnx.errors import ModelError
from amct_onnx.graph.naming import name_nodes
from amct_onnx.measure.rounded_network import RoundedNetwork
from amct_onnx.plan.qdq_nodes import plan_qdq
from amct_onnx.ptq.mixed.effects import measure
from amct_onnx.ptq.mixed.order import Order
from amct_onnx.values.roundings import Roundings

# Sums in another order, relative to the largest output. A value that lies between two steps could go the other way and
# make an error of a step, a hundred times as large; that does not happen on these data.
SAME = 2e-5


def run(model: onnx.ModelProto, feed: Any) -> list[np.ndarray]:
    """The outputs of QuantizeLinear and DequantizeLinear as they stand, without integer kernels."""
    named = ir.from_proto(model)
    name_nodes(named)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = ort.InferenceSession(ir.to_proto(named).SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, feed)


def opened(case: Case) -> tuple[RoundedNetwork, Roundings]:
    found = case.result.lowered.units()
    everything = Roundings.union(change for unit in found.units for change in (unit.constants, unit.tensors))
    ends = [unit.last for unit in found.units if unit.last]
    return RoundedNetwork(found.model, everything, found.constants, case.feeds[0], ends=ends), everything


def test_all_roundings_together_are_the_lowered_model(case: Case) -> None:
    """But for layers in the bodies of nodes, which are no units."""
    probe, everything = opened(case)
    lowered = ir.to_proto(case.outside.model())
    names = [value.name for value in case.model.graph.output]
    for feed in case.feeds:
        if feed.keys() != case.feeds[0].keys():
            continue  # an input with a default, which the probe takes as a constant
        clean = probe.clean(feed)
        found = {**clean, **probe.changed(clean, everything)}
        for name, exact, expected in zip(names, run(case.model, feed), run(lowered, feed), strict=True):
            if name not in probe.outputs:
                continue  # an input or an initializer as it is
            limit = SAME * max(np.abs(exact).max(), 1e-30)
            np.testing.assert_allclose(clean[name], exact, rtol=0, atol=limit)
            np.testing.assert_allclose(found[name], expected, rtol=0, atol=limit)


def test_no_rounding_makes_no_noise(case: Case) -> None:
    probe, _ = opened(case)
    clean = probe.clean(case.feeds[0])
    assert probe.changed(clean, Roundings()) == {}
    assert not any(probe.noise(clean, Roundings()))


def test_every_node_that_rounds_is_a_unit_of_its_own(case: Case) -> None:
    units = case.result.lowered.units().units
    nodes = [node for unit in units for node in unit.nodes]
    assert len(set(nodes)) == len(nodes)
    assert all(len(unit.nodes) <= 1 for unit in units)
    outside = case.result.lowered
    types = {node.name: node.op_type for node in outside.prepared.graph}
    rules = outside.table.rules
    assert {node for node in outside.plan.layers if rules[types[node]].output != "same"} <= set(nodes)
    assert set(nodes) <= set(outside.plan.layers)
    names = {unit.name for unit in units}
    assert all({*unit.holders, *unit.reads} <= names for unit in units)
    rounded = [tensor for unit in units for tensor in (*unit.tensors.tensors, *unit.tensors.reads)]
    assert len(set(rounded)) == len(rounded)


def test_units_say_what_goes_to_float_with_one_of_them(case: Case) -> None:
    """A plan without a unit has lost those that follow it, and a tensor is on its grid while somebody holds it."""
    outside = case.result.lowered
    units = {unit.name: unit for unit in outside.units().units}
    holders = {name: frozenset(("float", holder) for holder in unit.holders) for name, unit in units.items()}
    follows = {name: [holders[read] for read in unit.reads] for name, unit in units.items() if unit.follows}
    order = Order(parts=[], prices={}, follows=follows)
    before, rules = set(outside.plan.layers), outside.table.rules
    types = {node.name: node.op_type for node in outside.prepared.graph}
    for name in [name for name, unit in units.items() if unit.nodes][:8]:
        gone = {unit for _, unit in order.closed(frozenset([("float", name)]))}
        wished = {node: "it is in float" for one in gone for node in units[one].nodes}
        plan = plan_qdq(outside.prepared, outside.table, off=outside.calibration.request.off() | wished)
        lost = {node for one in gone for node in units[one].nodes}
        more = {node for node in before - set(plan.layers) if node in units} - lost
        assert lost.isdisjoint(plan.layers)
        assert {rules[types[node]].output for node in more} <= {"float", "same"}  # they cost next to nothing


@pytest.mark.parametrize("samples", [1, 2])
def test_effects_are_numbers_of_every_unit(case: Case, samples: int) -> None:
    if not any(decision.quantized for decision in case.result.decisions):
        with pytest.raises(ModelError, match="no layer that is quantized for target"):
            measure(case.result, case.feeds[:1])
        return
    effects = measure(case.result, case.feeds[:1] * samples)
    sensitivity = effects.sensitivity()
    assert all(0 <= layer.effect < 1 for layer in sensitivity.layers)
    outside = set(case.result.lowered.plan.layers)
    shares = {layer.layer: layer.from_weight for layer in sensitivity.layers}
    assert all(0 <= share <= 1 for name, share in shares.items() if name in outside)
    assert all(np.isnan(share) for name, share in shares.items() if name not in outside)  # inside of a body
    assert 0 < sensitivity.together < 1
    assert str(sensitivity).splitlines()[-1].startswith("all together")
