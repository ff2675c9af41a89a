"""What the decomposition of recurrent layers promises: the float function, names, types, and a valid model."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from flow import CPU
from half import to_half
from onnx import TensorProto, helper
from opsets import newest_opset
from recurrent import GATES, HIDDEN, INPUT, recurrent, sequences

from amct_onnx.graph.passes.decompose_recurrent import Decomposed, decompose_recurrent
from amct_onnx.graph.recurrent import recurrent_reason

# ONNX Runtime's own LSTM and GRU approximate sigmoid and tanh by rational functions, its operators by others.
FUNCTION_TOLERANCE = 2e-6
HALF_TOLERANCE = 2.0**-10 + FUNCTION_TOLERANCE  # one step of float16 below 2

Shape = Sequence[int | str]
SHAPES: list[Shape] = [
    ("T", "N", INPUT),
    ("T", 3, INPUT),
    (5, "N", INPUT),
    (5, 3, INPUT),
    (1, "N", INPUT),
    (1, 3, INPUT),
]


def _decompose(model: onnx.ModelProto) -> tuple[onnx.ModelProto, list[Decomposed]]:
    lifted = ir.from_proto(model)
    made = decompose_recurrent(lifted, ["cell"])
    return ir.to_proto(lifted), made


def _run(model: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    session = ort.InferenceSession(model.SerializeToString(), providers=CPU)
    outputs: list[np.ndarray] = session.run(None, dict(feeds))
    return outputs


def _check(model: onnx.ModelProto, *, lengths: Sequence[int] = (1, 5), batches: Sequence[int] = (1, 3)) -> None:
    after, _ = _decompose(model)
    onnx.checker.check_model(after, full_check=True)
    assert not {node.op_type for node in after.graph.node} & set(GATES)
    assert list(after.graph.input) == list(model.graph.input)
    assert [(v.name, v.type.tensor_type.elem_type) for v in after.graph.output] == [
        (v.name, v.type.tensor_type.elem_type) for v in model.graph.output
    ]
    for length, batch in itertools.product(lengths, batches):
        feeds = sequences(model, length=length, batch=batch)
        for expected, got in zip(_run(model, feeds), _run(after, feeds), strict=True):
            assert got.shape == expected.shape
            assert np.abs(got - expected).max() < FUNCTION_TOLERANCE


@pytest.mark.parametrize("op_type", GATES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("states", [True, False], ids=["states", "no_states"])
@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_keeps_the_float_function(op_type: str, shape: Shape, states: bool, direction: str) -> None:
    model = recurrent(op_type, shape=shape, states=states, direction=direction)
    assert recurrent_reason(ir.from_proto(model).graph[0]) is None
    length, batch = shape[:2]
    _check(
        model,
        lengths=[length] if isinstance(length, int) else [1, 5],
        batches=[batch] if isinstance(batch, int) else [1, 3],
    )


@pytest.mark.parametrize("op_type", GATES)
@pytest.mark.parametrize("length", ["T", 1])
@pytest.mark.parametrize("states", [True, False], ids=["states", "no_states"])
@pytest.mark.parametrize("outputs", [("y", "y_h", "y_c"), ("", "y_h")], ids=str)
def test_float16_goes_in_and_comes_out(op_type: str, length: int | str, states: bool, outputs: tuple[str, ...]) -> None:
    """Only the outputs are rounded to float16, by ONNX Runtime's own layer as by the decomposition."""
    model = to_half(recurrent(op_type, shape=(length, "N", INPUT), states=states, outputs=outputs))
    after, _ = _decompose(model)
    onnx.checker.check_model(after, full_check=True)
    feeds = {n: x.astype(np.float16) for n, x in sequences(model, length=1 if length == 1 else 5).items()}
    for expected, got in zip(_run(model, feeds), _run(after, feeds), strict=True):
        assert got.dtype == expected.dtype == np.float16
        assert np.abs(got.astype(np.float32) - expected).max() < HALF_TOLERANCE
    inner = {value.type.tensor_type.elem_type for value in onnx.shape_inference.infer_shapes(after).graph.value_info}
    assert TensorProto.FLOAT in inner
    casts = [node.output[0] for node in after.graph.node if node.op_type == "Cast"]
    assert {name for name in casts if name.startswith("y")} == {name for name in model.graph.node[0].output if name}


@pytest.mark.parametrize("op_type", GATES)
@pytest.mark.parametrize("opset", [11, 13, 14, 18, newest_opset()])
@pytest.mark.parametrize("length", ["T", 1])
def test_every_opset(op_type: str, opset: int, length: int | str) -> None:
    model = recurrent(op_type, opset=opset, shape=(length, "N", INPUT), bias=opset != 13)
    _check(model, lengths=[1] if length == 1 else [5])


@pytest.mark.parametrize("op_type", GATES)
@pytest.mark.parametrize("length", ["T", 1])
@pytest.mark.parametrize("outputs", [("y",), ("", "y_h"), ("", "", "y_c"), ("y", "", "y_c"), ("", "y_h", "y_c")])
def test_outputs_that_are_left_out(op_type: str, length: int | str, outputs: tuple[str, ...]) -> None:
    outputs = outputs[:2] if op_type == "GRU" else outputs
    if not any(outputs):
        outputs = ("", "y_h")
    _check(recurrent(op_type, shape=(length, "N", INPUT), outputs=outputs), lengths=[1] if length == 1 else [1, 5])


@pytest.mark.parametrize("initial", ["h0", "c0"])
def test_one_state_alone(initial: str) -> None:
    model = recurrent("LSTM")
    inputs = model.graph.node[0].input
    inputs[5 if initial == "c0" else 6] = ""
    del model.graph.input[1 if initial == "c0" else 2]
    _check(model)


def test_a_state_that_is_also_an_output() -> None:
    keep = helper.make_node("Identity", ["h0"], ["kept"], name="keep")
    model = recurrent("LSTM", nodes=[keep])
    model.graph.output.append(helper.make_tensor_value_info("kept", TensorProto.FLOAT, [1, "N", HIDDEN]))
    _check(model)


def test_names_that_are_taken() -> None:
    """Nodes and values of the model that have the names which the decomposition would give."""
    names = ["cell.input", "cell.recurrence", "cell.scan", "cell.input.output0", "cell.recurrence.weight"]
    nodes = [helper.make_node("Neg", ["y"], [f"{name}.output0"], name=name) for name in names[:3]]
    nodes += [helper.make_node("Neg", ["y_h"], [name]) for name in names[3:] if name != "cell.input.output0"]
    model = recurrent("LSTM", nodes=nodes)
    _check(model)
    after, (made,) = _decompose(model)
    assert made.input not in names
    assert len({node.name for node in after.graph.node if node.name}) == len([n for n in after.graph.node if n.name])


def test_tells_which_node_gives_which_output() -> None:
    lifted = ir.from_proto(recurrent("LSTM", shape=(1, "N", INPUT)))
    (made,) = decompose_recurrent(lifted, ["cell"])
    assert (made.layer, made.input, made.recurrence) == ("cell", "cell.input", "cell.recurrence")
    by_name = {node.name: node for node in lifted.graph}
    assert set(made.nodes) == set(by_name)
    produced = {number: by_name[name].outputs[0].name for name, number in made.nodes.items() if number is not None}
    assert produced == {0: "y", 1: "y_h", 2: "y_c"}
    lifted = ir.from_proto(recurrent("GRU"))
    (made,) = decompose_recurrent(lifted, ["cell"])
    assert set(made.nodes) == {node.name for node in lifted.graph.all_nodes()}  # those of the body too
    assert {name: number for name, number in made.nodes.items() if number is not None} == {"cell.scan": 0}


def test_the_products_are_those_of_the_constants() -> None:
    """The Gemms read W^T and R^T as they are, so that factors of the rows of W and R are factors of their columns."""
    model = recurrent("GRU")
    w, r, _ = (onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer)
    lifted = ir.from_proto(model)
    (made,) = decompose_recurrent(lifted, ["cell"])
    nodes = {node.name: node for node in lifted.graph.all_nodes()}
    for name, weight in ((made.input, w), (made.recurrence, r)):
        value = nodes[name].inputs[1]
        assert value is not None and value.const_value is not None  # noqa: PT018
        np.testing.assert_array_equal(value.const_value.numpy(), weight[0].T)


def test_other_layers_stay_and_a_second_run_finds_nothing() -> None:
    model = ir.from_proto(recurrent("LSTM"))
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    assert decompose_recurrent(model, ["other"]) == []
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before
    decompose_recurrent(model, ["cell"])
    once = ir.to_proto(model).SerializeToString(deterministic=True)
    assert decompose_recurrent(model, ["cell"]) == []
    assert ir.to_proto(model).SerializeToString(deterministic=True) == once
    assert ir.to_proto(_fresh()).SerializeToString(deterministic=True) == once


def _fresh() -> ir.Model:
    model = ir.from_proto(recurrent("LSTM"))
    decompose_recurrent(model, ["cell"])
    return model


def test_leaves_no_constants_that_nobody_reads() -> None:
    for op_type in GATES:
        after = ir.from_proto(_decompose(recurrent(op_type))[0])
        read = {name for name, value in after.graph.initializers.items() if value.uses()}
        assert read == set(after.graph.initializers)
