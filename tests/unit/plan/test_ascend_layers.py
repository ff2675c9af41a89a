"""The plan: one decision for every candidate, with its reason; groups; and what this version refuses."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import numpy_helper, parser

from amct_onnx.errors import ConfigError, ModelError
from amct_onnx.numerics.settings import (
    ActivationSettings,
    Hfmg,
    LayerSettings,
    Nuq,
    Settings,
    TensorSettings,
    WeightSettings,
)
from amct_onnx.plan.ascend_layers import check_tensors, decide_layers, graph_facts, plan_ascend
from amct_onnx.values.layers import Decision


def _model() -> ir.Model:
    """Two layers read x, a third their sum; one has its weight at run time, one is of a rank that Ascend lacks."""
    proto = parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17]> g (float[1,4,5,5] x, float[4,4,1,1] v) => (float[1,4,5,5] y) {
            [one] a = Conv (x, w)
            [bn] a2 = BatchNormalization (a, s, s, s, s)
            [two] b = Conv (x, w)
            [sum] c = Add (a2, b)
            [runtime] d = Conv (c, v)
            [pool] e = AveragePool <kernel_shape=[1,1]> (c)
            [big] f = MatMul (d, m)
            [three] g1 = Conv (c, w)
            [last] h = Add (e, f)
            [end] y = Add (g1, h)
        }"""
    )
    arrays = {"w": (4, 4, 1, 1), "s": (4,), "m": (1, 1, 5, 5)}
    for name, shape in arrays.items():
        proto.graph.initializer.append(numpy_helper.from_array(np.ones(shape, np.float32), name))
    return ir.from_proto(proto)


def _settings(**layers: LayerSettings) -> Settings:
    """Every supported layer enabled with defaults, unless given."""
    return Settings(layers={name: LayerSettings() for name in ("one", "two", "pool", "three")} | layers)


def _plan(settings: Settings) -> Any:
    model = _model()
    return plan_ascend(model, decide_layers(graph_facts(model), settings), settings)


_DISABLED = LayerSettings(quant_enable=False)


def test_facts_of_a_model() -> None:
    facts = graph_facts(_model())
    assert list(facts.layers) == ["one", "two", "runtime", "pool", "big", "three"]
    assert list(facts.supported) == ["one", "two", "pool", "three"]
    assert facts.nodes["sum"] == "Add"
    assert facts.fusable == {"one", "bn", "two", "runtime", "three"}
    assert facts.layers["one"].channel_wise
    assert facts.layers["one"].channels == 4


def test_every_candidate_gets_one_decision_in_graph_order() -> None:
    decisions = decide_layers(graph_facts(_model()), _settings(two=_DISABLED))
    assert decisions == (
        Decision(layer="one", quantized=True),
        Decision(layer="two", quantized=False, reason="quant_enable is false in the configuration"),
        Decision(layer="runtime", quantized=False, reason="its weight is computed at run time"),
        Decision(layer="pool", quantized=True),
        Decision(layer="big", quantized=False, reason="its weight has 4 dimensions, target ascend takes 2, 3"),
        Decision(layer="three", quantized=True),
    )


def test_a_layer_without_settings_is_not_quantized() -> None:
    settings = Settings(layers={"three": LayerSettings()})
    quantized = [d.layer for d in decide_layers(graph_facts(_model()), settings) if d.quantized]
    assert quantized == ["three"]


def test_a_reason_of_the_graph_is_stronger_than_the_settings() -> None:
    settings = _settings(runtime=LayerSettings())
    decision = next(d for d in decide_layers(graph_facts(_model()), settings) if d.layer == "runtime")
    assert decision.reason == "its weight is computed at run time"


@pytest.mark.parametrize(
    "settings", [Settings(), _settings(one=_DISABLED, two=_DISABLED, pool=_DISABLED, three=_DISABLED)]
)
def test_nothing_enabled_is_an_error_with_amcts_text(settings: Settings) -> None:
    with pytest.raises(ModelError, match=r"^No quant enable layer in quant config file, please check"):
        decide_layers(graph_facts(_model()), settings)


# Groups


def test_layers_that_read_one_tensor_alike_form_a_group() -> None:
    plan = _plan(_settings())
    assert plan.groups == (("one", "two"), ("pool", "three"))
    assert plan.layers == ("one", "two", "pool", "three")


def test_only_the_activation_settings_divide_a_group() -> None:
    other = LayerSettings(activation=ActivationSettings(solver=Hfmg()))
    wide = LayerSettings(weight=WeightSettings(channel_wise=True))
    assert _plan(_settings(two=other)).groups == (("one",), ("two",), ("pool", "three"))
    assert _plan(_settings(two=wide)).groups == (("one", "two"), ("pool", "three"))
    symmetric = LayerSettings(activation=ActivationSettings(asymmetric=False))
    assert _plan(_settings(two=symmetric)).groups == (("one",), ("two",), ("pool", "three"))


@pytest.mark.parametrize("disabled", [(), ("one",), ("two", "pool"), ("one", "two", "pool")])
def test_groups_partition_the_quantized_layers(disabled: tuple[str, ...]) -> None:
    plan = _plan(_settings(**dict.fromkeys(disabled, _DISABLED)))
    grouped = [layer for group in plan.groups for layer in group]
    assert sorted(grouped) == sorted(plan.layers)
    assert len(set(grouped)) == len(grouped)
    assert set(plan.settings) == set(plan.layers)
    assert not set(disabled) & set(plan.layers)


def test_a_plan_is_a_value() -> None:
    assert _plan(_settings()) == _plan(_settings())
    with pytest.raises(dataclasses.FrozenInstanceError):
        _plan(_settings()).target = "other"


# Tensors of float nodes


def _tensor(name: str, index: int, **activation: Any) -> TensorSettings:
    return TensorSettings(layer_name=name, input_index=index, activation=ActivationSettings(**activation))


def test_a_tensor_is_observed_with_the_layers_that_read_it_alike() -> None:
    tensors = (_tensor("sum", 1), _tensor("h", 0, asymmetric=False), _tensor("h", 1))
    model = _model()
    for node in model.graph:
        if node.outputs[0].name == "h":
            node.name = "h"
    settings = dataclasses.replace(_settings(), tensor_quantize=tensors)
    plan = plan_ascend(model, decide_layers(graph_facts(model), settings), settings)
    assert plan.groups == (("one", "two"), ("sum:1",), ("pool", "three"), ("h:0",), ("h:1",))
    assert [(t.node, t.input_index) for t in plan.observed][1:2] == [("sum", 1)]
    assert list(plan.tensors) == ["sum:1", "h:0", "h:1"]


def test_a_tensor_alone_is_something_to_quantize() -> None:
    settings = Settings(tensor_quantize=(_tensor("sum", 0),))
    assert not any(d.quantized for d in decide_layers(graph_facts(_model()), settings))


def test_tensors_that_cannot_be_quantized_are_refused_all_at_once() -> None:
    proto = parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17]> g (float[2] x, int64[2] i, bool c) => (float[2] y) {
            [constant] a = Add (x, k)
            [integers] j = Add (i, i)
            [choice] y = If (c) <then_branch = t () => (float[2] p) { [inside] p = Add (x, x) },
                                 else_branch = e () => (float[2] q) { [else] q = Neg (x) }>
        }"""
    )
    proto.graph.initializer.append(numpy_helper.from_array(np.ones(2, np.float32), "k"))
    model = ir.from_proto(proto)
    wrong = (_tensor("constant", 1), _tensor("constant", 0), _tensor("integers", 0), _tensor("inside", 0))
    with pytest.raises(ConfigError) as caught:
        check_tensors(model, graph_facts(model), Settings(tensor_quantize=wrong))
    assert str(caught.value) == (
        "tensor_quantize names inputs that cannot be quantized, remove the entries: constant:1: its input 1 is a "
        "constant; integers:0: its input 0 is INT64, and only float32 is supported; inside:0: it is inside a subgraph."
    )


# Branches that meet


def test_joint_quant_joins_the_operands_of_an_add() -> None:
    """`one` and `two` write a2 and b, which meet in `sum`; `three` reads the sum, which is no operand."""
    tensors = (_tensor("sum", 0), _tensor("sum", 1))
    settings = dataclasses.replace(_settings(), tensor_quantize=tensors)
    assert {t.joint for t in _plan(settings).observed} == {""}
    joint = {t.keys: t.joint for t in _plan(dataclasses.replace(settings, joint_quant=True)).observed}
    assert joint == {("one", "two"): "", ("sum:0",): "sum:0", ("sum:1",): "sum:0", ("pool", "three"): ""}


def test_other_settings_keep_factors_of_their_own() -> None:
    tensors = (_tensor("sum", 0), _tensor("sum", 1, asymmetric=False))
    plan = _plan(dataclasses.replace(_settings(), tensor_quantize=tensors, joint_quant=True))
    assert {t.joint for t in plan.observed} == {""}
    assert "sum:0, sum:1 meet in an Add, and keep factors of their own" in plan.notes[0]


# What this version refuses


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (
            _settings(one=LayerSettings(activation=ActivationSettings(num_bits=4))),
            "one.activation_quant_params.num_bits 4",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_unsupported_settings_are_refused_by_name(settings: Settings, named: str) -> None:
    with pytest.raises(ConfigError) as caught:
        decide_layers(graph_facts(_model()), settings)
    assert str(caught.value) == f"Not supported by this version: {named}. Remove it from the configuration."


def test_all_unsupported_settings_are_named_at_once() -> None:
    settings = _settings(
        one=LayerSettings(activation=ActivationSettings(num_bits=4)),
        two=LayerSettings(activation=ActivationSettings(num_bits=4)),
    )
    with pytest.raises(ConfigError, match=r"one\.activation_.*num_bits 4, two\.activation_.*num_bits 4"):
        decide_layers(graph_facts(_model()), settings)


def test_settings_of_a_disabled_layer_do_not_matter() -> None:
    off = LayerSettings(quant_enable=False, dmq_strength=0.5, weight=WeightSettings(num_bits=6, solver=Nuq()))
    assert not next(d for d in decide_layers(graph_facts(_model()), _settings(one=off)) if d.layer == "one").quantized
