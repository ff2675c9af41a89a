"""A packed model is the same model wherever it is unpacked, and its weights travel once, as they are."""

from __future__ import annotations

import copy
import pickle
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from flow import build, normal
from onnx import external_data_helper

from amct_onnx.errors import FileMissingError
from amct_onnx.files.onnx_file import load_model, save_model_file
from amct_onnx.files.packed_model import HoldsGraphs, PackedModel
from amct_onnx.graph.tensors import deferred, renamed
from amct_onnx.plan.float_model import FloatModel

SIZE = 600  # of matrices that are computed when they are asked for: more than 1 MiB
MODELS = sorted(Path(__file__).resolve().parents[4].joinpath("shared", "models").glob("*.onnx"))


def as_bytes(model: ir.Model) -> bytes:
    return bytes(ir.to_proto(model).SerializeToString(deterministic=True))


def sent(packed: PackedModel) -> PackedModel:
    buffers: list[pickle.PickleBuffer] = []
    message = pickle.dumps(packed, protocol=5, buffer_callback=buffers.append)
    got = pickle.loads(message, buffers=buffers)
    assert isinstance(got, PackedModel)
    return got


def products(*names: str, external: str = "") -> onnx.ModelProto:
    """A chain of matrix products, each with a weight of 1.4 MB."""
    nodes = " ".join(f"[m{i}] t{i + 1} = MatMul (t{i}, {name})" for i, name in enumerate(names))
    body = f"g (float[N,{SIZE}] t0) => (float[N,{SIZE}] t{len(names)}) {{ {nodes} }}"
    proto = build(body, **{name: normal(i, SIZE, SIZE) for i, name in enumerate(names)})
    for tensor in proto.graph.initializer if external else ():
        external_data_helper.set_external_data(tensor, external)
    return proto


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_a_model_is_the_same_when_it_is_unpacked(path: Path) -> None:
    model = load_model(path)
    assert as_bytes(sent(PackedModel.of(model)).model()) == as_bytes(model)


def test_a_fused_model_with_bodies_functions_and_metadata_is_the_same() -> None:
    proto = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17, "local" : 1], metadata_props: ["who": "me"]>
        g (float[N,8] x, bool c) => (float[N,8] y) <float[8,8] w = {0}, float[N,8] t> {
            t = local.twice (x)
            y = If (c) <then_branch = a () => (float[N,8] p) { p = MatMul (t, w) },
                        else_branch = b () => (float[N,8] q) { q = Relu (t) }> }
        <opset_import: ["" : 17], domain: "local"> twice (a) => (b) { b = Add (a, a) }"""
    )
    proto.graph.initializer.extend([onnx.numpy_helper.from_array(normal(1, 8, 8), "w")])
    proto.graph.node[0].doc_string = "twice"
    model = FloatModel.open(proto).prepared().model
    model.graph.metadata_props["more"] = "of the graph"
    assert as_bytes(sent(PackedModel.of(model)).model()) == as_bytes(model)


def test_large_weights_are_buffers_which_are_taken_as_they_are() -> None:
    model = ir.from_proto(products("a"))
    weight = normal(5, SIZE, SIZE)
    model.graph.initializers["a"].const_value = ir.Tensor(weight, name="a")
    buffers: list[pickle.PickleBuffer] = []
    message = pickle.dumps(PackedModel.of(model), protocol=5, buffer_callback=buffers.append)
    assert len(message) < 4096
    again = pickle.loads(message, buffers=buffers).model()
    assert np.shares_memory(again.graph.initializers["a"].const_value.numpy(), weight)


def test_what_is_computed_when_asked_for_is_computed_once_for_all_graphs_that_share_it() -> None:
    asked = []

    def compute() -> np.ndarray:
        asked.append(1)
        return normal(7, SIZE, SIZE)

    model = ir.from_proto(products("a", "b"))
    tensor = deferred(compute, np.float32, (SIZE, SIZE))
    model.graph.initializers["a"].const_value = renamed(tensor, "a")
    model.graph.initializers["b"].const_value = renamed(tensor, "b")
    both = [PackedModel.of(model), PackedModel.of(model.clone())]
    assert not asked
    message = pickle.dumps(both)
    assert len(asked) == 1
    assert len(message) < 1.5 * tensor.nbytes
    one, two = (packed.model() for packed in pickle.loads(message))
    assert as_bytes(one) == as_bytes(two) == as_bytes(model)


@pytest.fixture
def external(tmp_path: Path) -> Path:
    onnx.save(products("a", "b", external="weights.bin"), tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def test_external_data_stay_where_they_are(external: Path) -> None:
    model = load_model(external)
    message = pickle.dumps(PackedModel.of(model))
    assert len(message) < 4096
    again = pickle.loads(message).model()
    folders = external.parent / "one", external.parent / "two"
    for folder, written in zip(folders, (model, again), strict=True):
        save_model_file(written, folder / "saved.onnx")
    files = [{file.name: file.read_bytes() for file in folder.iterdir()} for folder in folders]
    assert files[0] == files[1]
    assert set(files[0]) == {"saved.onnx", "saved.onnx.data"}


def test_external_data_that_have_changed_are_refused(external: Path) -> None:
    packed = sent(PackedModel.of(load_model(external)))
    data = external.with_name("weights.bin")
    held = data.read_bytes()
    data.write_bytes(held[:-1])
    with pytest.raises(FileMissingError, match=r"weights\.bin has changed since the model was pickled"):
        packed.model()
    data.unlink()
    with pytest.raises(FileMissingError, match=r"weights\.bin of a model that was pickled is missing"):
        packed.model()


def test_a_whole_model_needs_no_file(external: Path) -> None:
    model = load_model(external)
    packed = sent(PackedModel.of(model, whole=True))
    weight = model.graph.initializers["b"].const_value.numpy()
    external.with_name("weights.bin").unlink()
    assert np.array_equal(packed.model().graph.initializers["b"].const_value.numpy(), weight)


@dataclass(frozen=True, kw_only=True, eq=False)
class Holder(HoldsGraphs):
    """A value with a graph."""

    model: ir.Model
    name: str = ""


def test_what_holds_a_graph_can_be_pickled_and_copied() -> None:
    held = Holder(model=ir.from_proto(products("a")), name="n")
    copied = copy.deepcopy(held)
    for again in (pickle.loads(pickle.dumps(held)), copied):
        assert again.name == "n"
        assert again.model is not held.model
        assert as_bytes(again.model) == as_bytes(held.model)
    assert copied.model.graph.initializers["a"].const_value is held.model.graph.initializers["a"].const_value
