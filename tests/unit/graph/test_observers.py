"""Observers: side branches that carry all that calibration needs, and leave nothing behind."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper, parser

from amct_onnx.graph.instrument.observers import Observer, insert_observers, remove_observers
from amct_onnx.graph.layers import OBSERVER_DOMAIN
from amct_onnx.numerics.settings import ActivationSettings, Hfmg, Ifmr
from amct_onnx.values.observer_tasks import Balance


def _proto() -> onnx.ModelProto:
    """Two layers read x, one reads what comes after them."""
    proto = parser.parse_model(
        """<ir_version: 10, opset_import: ["ai.onnx.ml" : 3, "" : 17]> g (float[2,3] x) => (float[2,3] y, float[2,3] b)
           {[one] a = MatMul (x, w) [two] b = MatMul (x, w) [sum] c = Add (a, b) [three] y = MatMul (c, w)}"""
    )
    proto.graph.initializer.append(numpy_helper.from_array(np.eye(3, dtype=np.float32), "w"))
    return proto


def _observer(*layers: str, **changes: Any) -> Observer:
    values = {"task": ActivationSettings(), "batch_num": 2, "record_path": "/tmp/record.txt", "observers": 2}
    return Observer(layers=layers, **{**values, **changes})


_ACTIVATIONS = st.builds(
    ActivationSettings,
    num_bits=st.sampled_from([8, 16]),
    asymmetric=st.booleans(),
    solver=st.builds(Hfmg, num_of_bins=st.sampled_from([1024, 2048, 4096, 8192]))
    | st.builds(
        Ifmr,
        max_percentile=st.sampled_from([1.0, 0.999999, 0.9995, 0.51]),
        min_percentile=st.sampled_from([1.0, 0.999999, 0.7]),
        search_start=st.sampled_from([0.7, 0.3, 0.8]),
        search_end=st.sampled_from([1.3, 1.7, 2.0]),
        search_step=st.sampled_from([0.01, 0.02, 0.1]),
    ),
)


@given(_ACTIVATIONS, st.integers(1, 1000), st.text(min_size=1, max_size=8), st.integers(1, 99))
def test_an_observer_survives_the_file(activation: ActivationSettings, batches: int, path: str, count: int) -> None:
    """What the user wrote comes back, decimals included, although ONNX keeps float32."""
    observer = _observer("one", "two", task=activation, batch_num=batches, record_path=f"/{path}", observers=count)
    model = ir.from_proto(_proto())
    insert_observers(model, [observer])
    reread = ir.from_proto(onnx.load_from_string(ir.to_proto(model).SerializeToString()))
    assert remove_observers(reread) == [observer]


def test_a_task_with_settings_of_its_own_survives_the_file() -> None:
    observer = _observer("three", task=Balance(axis=-1, strength=0.3, weight_maxima=(1.5, 0.1, 1e-30)))
    model = ir.from_proto(_proto())
    insert_observers(model, [observer])
    reread = ir.from_proto(onnx.load_from_string(ir.to_proto(model).SerializeToString()))
    assert remove_observers(reread) == [observer]


def test_removing_gives_the_model_back() -> None:
    model = ir.from_proto(_proto())
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    insert_observers(model, [_observer("one", "two"), _observer("three")])
    assert len(remove_observers(model)) == 2
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


def test_a_model_without_observers_is_left_alone() -> None:
    model = ir.from_proto(_proto())
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    assert remove_observers(model) == []
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


def test_an_observer_is_a_side_branch_of_the_layers_input() -> None:
    model = ir.from_proto(_proto())
    readers = {node.name: [value and value.name for value in node.inputs] for node in model.graph}
    insert_observers(model, [_observer("one", "two"), _observer("three")])
    assert model.opset_imports[OBSERVER_DOMAIN] == 1
    assert {n.name: [v and v.name for v in n.inputs] for n in model.graph if n.domain == ""} == readers
    found = [node for node in model.graph if node.domain == OBSERVER_DOMAIN]
    # The last one first: the runtime then runs each as soon as its tensor is there.
    assert [(node.op_type, node.name, node.inputs[0] and node.inputs[0].name) for node in found] == [
        ("IFMR", "three.observer", "c"),
        ("IFMR", "one.observer", "x"),
    ]
    for node in found:
        assert not node.outputs[0].uses()
        assert not node.outputs[0].is_graph_output()


def test_attributes_have_the_names_of_amct() -> None:
    model = ir.from_proto(_proto())
    hfmg = ActivationSettings(asymmetric=False, solver=Hfmg(num_of_bins=2048))
    insert_observers(model, [_observer("three", task=hfmg), _observer("one", "two")])
    ifmr_node, hfmg_node = sorted((n for n in model.graph if n.domain == OBSERVER_DOMAIN), key=lambda n: n.name or "")
    common = {"input_stamp": "data", "batch_num": 2, "num_bits": 8, "record_file_path": "/tmp/record.txt"}
    common |= {"input_index": 0, "calibration": "", "fakequant_precision_mode": "DEFAULT"}
    common |= {"joint_group": "", "joint_members": 1, "op_data_type": "FLOAT32"}
    assert {k: a.value for k, a in hfmg_node.attributes.items()} == common | {
        "with_offset": 0, "nbins": 2048, "object_layers": '["three"]', "observers": 2,
    }  # fmt: skip
    got = {k: a.value for k, a in ifmr_node.attributes.items()}
    floats = {
        "start_ratio": 0.7,
        "end_ratio": 1.3,
        "step": 0.01,
        "max_percentile": 0.999999,
        "min_percentile": 0.999999,
    }
    assert {k: got.pop(k) for k in floats} == pytest.approx(floats, rel=1e-7)
    assert got == common | {"with_offset": 1, "object_layers": '["one", "two"]', "observers": 2}
    assert (ifmr_node.op_type, hfmg_node.op_type) == ("IFMR", "HFMG")


def test_names_of_layers_may_hold_anything() -> None:
    names = ('a"b', "Ebene/ä", "", "x, y")
    model = ir.from_proto(_proto())
    model.graph[0].name = names[0]
    insert_observers(model, [_observer(*names)])
    assert remove_observers(model)[0].layers == names


def test_outputs_of_observers_find_free_names() -> None:
    proto = _proto()
    proto.graph.node[2].output[0] = proto.graph.node[3].input[0] = "one.observer.output0"
    model = ir.from_proto(proto)
    insert_observers(model, [_observer("one", "two")])
    names = [value.name for node in model.graph for value in node.outputs]
    assert len(set(names)) == len(names)


def test_several_observers_of_one_tensor() -> None:
    """Layers that read one tensor with other settings."""
    model = ir.from_proto(_proto())
    first, second = _observer("one"), _observer("two", task=ActivationSettings(asymmetric=False))
    insert_observers(model, [first, second])
    assert sorted(remove_observers(model), key=lambda o: o.layers) == [first, second]
