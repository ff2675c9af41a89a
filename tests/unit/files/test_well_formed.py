"""A model as other tools write it: any order, sparse weights, open dimensions of -1; and what a broken one is told."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from flow import build, normal
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper, numpy_helper

import amct_onnx as amct
from amct_onnx.errors import AmctError, FileMissingError, ModelError, ModelFileError
from amct_onnx.files.onnx_file import load_model, take_model

Damage = Callable[[onnx.ModelProto], object]


def small() -> onnx.ModelProto:
    return build(
        """g (float[N,3,8,8] x) => (float[N,5] y) {
            a = Conv (x, w)
            r = Relu (a)
            p = GlobalAveragePool (r)
            f = Flatten (p)
            y = Gemm (f, v, b)
        }""",
        w=normal(1, 6, 3, 3, 3, scale=0.2),
        v=normal(2, 6, 5),
        b=normal(3, 5),
    )


def branched() -> onnx.ModelProto:
    return build(
        """g (float[N,4] x, bool c) => (float[N,4] y) {
            s = Relu (x)
            t = MatMul (s, w)
            y = If (c) <
                then_branch = yes () => (float[N,4] a) { i = Add (t, s) a = Neg (i) },
                else_branch = no () => (float[N,4] b) { j = Sub (t, s) b = Abs (j) }>
        }""",
        w=normal(1, 4, 4),
    )


def outputs(model: onnx.ModelProto | ir.Model, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
    proto = ir.to_proto(model) if isinstance(model, ir.Model) else model
    return ort.InferenceSession(proto.SerializeToString()).run(None, feed)


def doors(model: onnx.ModelProto, folder: Path) -> Iterator[Callable[[], ir.Model]]:
    """Every way in which a model is handed over: as a file, as a message, and as onnx_ir has read it."""
    file = folder / "model.onnx"
    file.write_bytes(model.SerializeToString())
    yield lambda: load_model(file)
    yield lambda: take_model(model)
    yield lambda: take_model(ir.from_proto(model))


def refusals(model: onnx.ModelProto, folder: Path) -> Iterator[str]:
    """What each way says of a broken model, in one line that is not too long."""
    for door in doors(model, folder):
        if "from_proto" in door.__code__.co_names:
            try:
                ir.from_proto(model)
            except Exception:
                continue  # onnx_ir itself refuses it, before this package
        with pytest.raises(AmctError) as refused:
            door()
        text = str(refused.value)
        assert "\n" not in text
        assert len(text) < 400
        yield text


# --- what other tools write, and ONNX Runtime runs


@given(order=st.permutations(range(5)))
def test_nodes_in_any_order_are_sorted(order: list[int]) -> None:
    model, feed = small(), {"x": normal(4, 2, 3, 8, 8)}
    expected = outputs(model, feed)
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(nodes[i] for i in order)
    for taken in (take_model(model), take_model(ir.from_proto(model))):
        onnx.checker.check_model(ir.to_proto(taken))  # it demands the order
        np.testing.assert_array_equal(outputs(taken, feed)[0], expected[0])


@given(order=st.permutations(range(3)), inner=st.booleans())
def test_what_branches_read_counts_for_the_order(order: list[int], inner: bool) -> None:
    model, feed = branched(), {"x": normal(4, 2, 4), "c": np.array(True)}
    expected = outputs(model, feed)
    nodes = list(model.graph.node)
    if inner:
        for attribute in nodes[2].attribute:
            body = list(attribute.g.node)[::-1]
            del attribute.g.node[:]
            attribute.g.node.extend(body)
    del model.graph.node[:]
    model.graph.node.extend(nodes[i] for i in order)
    for taken in (take_model(model), take_model(ir.from_proto(model))):
        onnx.checker.check_model(ir.to_proto(taken))
        np.testing.assert_array_equal(outputs(taken, feed)[0], expected[0])


def test_a_model_in_order_is_not_changed(tmp_path: Path) -> None:
    for model in (small(), branched()):
        names = [node.output[0] for node in model.graph.node]
        for door in doors(model, tmp_path):
            assert [node.outputs[0].name for node in door().graph] == names


def test_a_users_ir_model_stays_as_it_is() -> None:
    proto = small()
    nodes = list(proto.graph.node)[::-1]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    theirs = ir.from_proto(proto)
    before = [node.op_type for node in theirs.graph]
    taken = take_model(theirs)
    assert [node.op_type for node in theirs.graph] == before == [node.op_type for node in taken.graph][::-1]


@pytest.mark.parametrize("flat", [True, False], ids=["flat indices", "rows of indices"])
@pytest.mark.parametrize("place", ["graph", "branch", "Constant"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int64])
def test_sparse_weights_become_dense(flat: bool, place: str, dtype: type, tmp_path: Path) -> None:
    dense = np.where(np.random.default_rng(0).random((4, 5)) < 0.4, normal(1, 4, 5) * 8, 0).astype(dtype)
    indices = np.flatnonzero(dense) if flat else np.argwhere(dense)
    sparse = helper.make_sparse_tensor(
        numpy_helper.from_array(dense[dense != 0], "s"), numpy_helper.from_array(indices.astype(np.int64)), dense.shape
    )
    kind = {np.float32: "float", np.float16: "float16", np.int64: "int64"}[dtype]
    yes = f"then_branch = a () => ({kind}[4,5] q) {{ q = Identity (s) }}"
    no = f"else_branch = b () => ({kind}[4,5] r) {{ r = Identity (s) }}"
    body = f"y = If (c) <{yes}, {no}>" if place == "branch" else "y = Identity (s)"
    model = build(f"g (bool c) => ({kind}[4,5] y) {{ {body} }}")
    if place == "Constant":
        node = helper.make_node("Constant", [], ["s"], sparse_value=sparse)
        model.graph.node.insert(0, node)
    elif place == "branch":
        for attribute in model.graph.node[0].attribute:
            attribute.g.sparse_initializer.append(sparse)
    else:
        model.graph.sparse_initializer.append(sparse)
    before = model.SerializeToString()
    (tmp_path / "model.onnx").write_bytes(before)
    for taken in (take_model(model), load_model(tmp_path / "model.onnx")):
        np.testing.assert_array_equal(outputs(taken, {"c": np.array(True)})[0], dense)
    assert model.SerializeToString() == before


def test_dimensions_of_minus_one_are_open(tmp_path: Path) -> None:
    model = small()
    for value, axis in ((model.graph.input[0], 0), (model.graph.input[0], 3), (model.graph.output[0], 0)):
        value.type.tensor_type.shape.dim[axis].dim_value = -1
    for door in doors(model, tmp_path):
        taken = door()
        assert [isinstance(size, int) for size in taken.graph.inputs[0].shape or ()] == [False, True, True, False]
        assert [isinstance(size, int) for size in taken.graph.outputs[0].shape or ()] == [False, True]


# --- what is broken


def _rename(field: str, name: str) -> Damage:
    return lambda model: setattr(getattr(model.graph, field)[0], "name", name)


def _attribute(**value: object) -> Damage:
    return lambda model: model.graph.node[0].attribute.extend(helper.make_attribute(k, v) for k, v in value.items())


def _twice(model: onnx.ModelProto) -> None:
    model.graph.node[1].output[0] = "a"
    model.graph.node[2].input[0] = "a"


BROKEN: dict[str, tuple[Damage, str]] = {
    "an input that nothing makes": (
        lambda model: model.graph.node[1].input.__setitem__(0, "nowhere"),
        "the Relu of output 'r' reads the tensor 'nowhere', which nothing makes",
    ),
    "an output that nothing makes": (_rename("output", "nowhere"), "nothing makes the output 'nowhere'"),
    "an initializer without a name": (_rename("initializer", ""), "reads the tensor 'w', which nothing makes"),
    "an input without a name": (_rename("input", ""), "input 0 has no name"),
    "an output without a name": (_rename("output", ""), "nothing makes the output ''"),
    "two inputs of one name": (lambda m: m.graph.input.append(m.graph.input[0]), "two inputs are called 'x'"),
    "a tensor that two nodes make": (_twice, "the Relu '' makes the tensor 'a', which is there already"),
    "a cycle": (
        lambda model: model.graph.node[0].input.__setitem__(0, "f"),
        "nodes wait for each other in a cycle (of output ",
    ),
    "a node that waits for itself": (
        lambda model: model.graph.node[1].input.__setitem__(0, "r"),
        "nodes wait for each other in a cycle (of output 'r', of output 'r')",
    ),
    "a long name": (lambda model: model.graph.node[1].input.__setitem__(0, "q" * 5000), f"{'q' * 60}..."),
    "a name with line ends": (lambda model: model.graph.node[1].input.__setitem__(0, "q\n\0"), r"'q\n\x00'"),
    "too few bytes": (
        lambda model: setattr(model.graph.initializer[0], "raw_data", b"abcd"),
        "the initializer 'w' of shape [6, 3, 3, 3] has 4 bytes, and 648 belong to it",
    ),
    "another shape": (
        lambda model: model.graph.initializer[0].dims.__setitem__(0, 9),
        "the initializer 'w' of shape [9, 3, 3, 3] has 648 bytes, and 972 belong to it",
    ),
    "too few numbers": (
        lambda m: m.graph.initializer.append(onnx.TensorProto(name="z", data_type=1, dims=[3], float_data=[1, 2])),
        "the initializer 'z' of shape [3] has 2 numbers, and 3 belong to it",
    ),
    "a negative size": (
        lambda model: model.graph.initializer[0].dims.__setitem__(0, -6),
        "the initializer 'w' has the shape [-6, 3, 3, 3]",
    ),
    "no element type": (
        lambda model: setattr(model.graph.initializer[0], "data_type", 0),
        "the initializer 'w' has no element type",
    ),
    "an input without an element type": (
        lambda model: setattr(model.graph.input[0].type.tensor_type, "elem_type", 0),
        "the input 'x' has no element type",
    ),
    "too few inputs": (lambda m: m.graph.node[0].input.pop(), "the Conv of output 'a' has no input 1"),
    "an empty input": (lambda m: m.graph.node[0].input.__setitem__(0, ""), "the Conv of output 'a' has no input 0"),
    "an attribute of another type": (
        _attribute(strides=1.5),
        "the Conv of output 'a' has an attribute strides of type FLOAT",
    ),
    "an attribute that is missing": (
        lambda model: setattr(model.graph.node[1], "op_type", "Cast"),
        "the Cast of output 'r' has no attribute to",
    ),
    "no groups": (_attribute(group=0), "the Conv of output 'a' has 0 groups"),
    "groups that do not divide": (_attribute(group=4), "has 6 channels, which 4 groups do not divide"),
}


@pytest.mark.parametrize(("damage", "said"), BROKEN.values(), ids=BROKEN)
def test_a_broken_model_is_refused_in_one_line(damage: Damage, said: str, tmp_path: Path) -> None:
    model = small()
    damage(model)
    found = list(refusals(model, tmp_path))
    assert len(found) >= 2
    for text in found:
        assert said in text


def test_what_is_broken_inside_a_branch_is_found(tmp_path: Path) -> None:
    model = branched()
    model.graph.node[2].attribute[0].g.node[0].input[0] = "nowhere"
    assert all("the Add of output 'i' reads the tensor 'nowhere'" in text for text in refusals(model, tmp_path))


def test_a_file_whose_name_no_file_can_have(tmp_path: Path) -> None:
    with pytest.raises(FileMissingError, match=r"'mod\\x00el.onnx' does not exist"):
        load_model("mod\0el.onnx")
    model = small()
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="a\0b")
    for door in doors(model, tmp_path):
        with pytest.raises(ModelFileError, match=r"'a\\x00b'|a\\x00b', cannot be that of a file"):
            door()


def test_external_data_that_is_missing_is_named_at_every_door(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    onnx.save(small(), "model.onnx", save_as_external_data=True, location="weights.bin", size_threshold=100)
    (tmp_path / "weights.bin").unlink()
    lean = onnx.load("model.onnx", load_external_data=False)
    for door in (lambda: load_model("model.onnx"), lambda: take_model(lean), lambda: take_model(ir.from_proto(lean))):
        with pytest.raises(FileMissingError, match=r"weights\.bin, which is missing"):
            door()


def test_external_data_beside_the_script_is_read_and_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A message that was loaded without its data, by a script that runs in the model's folder, or in another one with
    a file of that name."""
    monkeypatch.chdir(tmp_path)
    onnx.save(small(), "model.onnx", save_as_external_data=True, location="weights.bin", size_threshold=100)
    taken = take_model(onnx.load("model.onnx", load_external_data=False))
    assert f"they are read from {(tmp_path / 'weights.bin').resolve()}" in caplog.text
    feed = {"x": normal(4, 2, 3, 8, 8)}
    np.testing.assert_array_equal(outputs(ir.external_data.load_to_model(taken), feed)[0], outputs(small(), feed)[0])


# --- chains of thousands of nodes


CHAINS: dict[str, tuple[dict[str, object], list[str]]] = {
    "Identity": ({}, []),
    "Transpose": ({"perm": [0, 1, 3, 2]}, []),
    "Cast": ({"to": 1}, []),
    "Relu": ({}, []),
    "MaxPool": ({"kernel_shape": [1, 1]}, []),
    "Reshape": ({}, ["as_is"]),
    "Add": ({}, ["tiny"]),
    "BatchNormalization": ({}, ["ones", "zeros", "zeros", "ones"]),
}


_QUICK = (("Identity", "weight"), ("Relu", "data"))
_PLACES = zip(CHAINS, itertools.cycle(("weight", "data")))
_CASES = [pytest.param(*case, marks=[] if case in _QUICK else [pytest.mark.slow]) for case in _PLACES]


@pytest.mark.parametrize(("op_type", "where"), _CASES)
def test_chains_of_nodes_may_be_long(op_type: str, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Longer than Python's limit of recursion, in front of a weight and behind a layer, through both doors."""
    monkeypatch.chdir(tmp_path)
    attributes, constants = CHAINS[op_type]
    channels = 3 if where == "weight" else 6
    model = build(
        "g (float[N,3,4,4] x) => (float[N,6,2,2] y) { a = Conv (x, w) y = Relu (a) }",
        w=np.abs(normal(1, 6, 3, 3, 3, scale=0.2)),
        as_is=np.array([0, 0, 0, 0]),
        tiny=np.float32(1e-5),
        ones=np.ones(channels, np.float32),
        zeros=np.zeros(channels, np.float32),
    )
    conv, relu = model.graph.node
    names = ["w" if where == "weight" else "a", *(f"i{number}" for number in range(1100))]
    nodes = [
        helper.make_node(op_type, [old, *constants], [new], **attributes) for old, new in itertools.pairwise(names)
    ]
    if where == "weight":
        conv.input[1] = names[-1]
    else:
        relu.input[0] = names[-1]
    ordered = [*nodes, conv, relu] if where == "weight" else [conv, *nodes, relu]
    ordered = [onnx.NodeProto.FromString(node.SerializeToString()) for node in ordered]
    del model.graph.node[:]
    model.graph.node.extend(ordered)
    onnx.save(model, "model.onnx")
    quantizable = where == "data" or op_type in ("Identity", "Transpose", "Cast")
    data = normal(2, 4, 3, 4, 4)
    if not quantizable:
        with pytest.raises(ModelError, match="its weight is computed at run time"):
            amct.quantize("model.onnx", data, effort="fast")
        return
    result = amct.quantize("model.onnx", data, effort="fast")
    assert any(decision.quantized for decision in result.decisions)
    amct.create_quant_config("config.json", "model.onnx", batch_num=1)
    amct.quantize_model("config.json", "model.onnx", "modified.onnx", "record.txt")
