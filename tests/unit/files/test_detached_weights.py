"""Large weights leave the message that they came in, and nothing else changes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from amct_onnx.errors import ModelError
from amct_onnx.files.onnx_file import load_model, save_model_file

KINDS = (np.float32, np.float16, np.float64, np.int8, np.uint8, np.int32, np.int64)


def model_with(weight: TensorProto) -> onnx.ModelProto:
    """Identity of a large weight, beside a small one."""
    small = numpy_helper.from_array(np.float32([1, 2]), "small")
    nodes = [helper.make_node("Identity", [name], [f"{name}.y"], name=name) for name in ("large", "small")]
    outputs = [helper.make_empty_tensor_value_info(f"{name}.y") for name in ("large", "small")]
    outputs[0].type.tensor_type.elem_type, outputs[1].type.tensor_type.elem_type = weight.data_type, TensorProto.FLOAT
    graph = helper.make_graph(nodes, "g", [], outputs, [weight, small])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("kind", KINDS)
def test_a_large_weight_is_the_same_and_is_there_once(kind: type, tmp_path: Path) -> None:
    array = (np.arange(1 << 17) % 100).astype(kind).reshape(2, -1)
    proto = model_with(numpy_helper.from_array(array, "large"))
    onnx.save(proto, tmp_path / "m.onnx")
    model = load_model(tmp_path / "m.onnx")
    tensor = model.graph.initializers["large"].const_value
    assert tensor is not None
    np.testing.assert_array_equal(tensor.numpy(), array)
    assert np.shares_memory(tensor.numpy(), tensor.numpy())
    save_model_file(model, tmp_path / "again.onnx")
    assert onnx.load(tmp_path / "again.onnx").graph.initializer == proto.graph.initializer


def test_large_and_small_weights_are_as_the_library_reads_them(tmp_path: Path) -> None:
    floats = helper.make_tensor("large", TensorProto.FLOAT, [1 << 15], np.arange(1 << 15))  # in float_data
    onnx.save(model_with(floats), tmp_path / "m.onnx")
    found, wanted = load_model(tmp_path / "m.onnx"), ir.load(tmp_path / "m.onnx")
    for name, value in wanted.graph.initializers.items():
        got = found.graph.initializers[name].const_value
        assert got is not None
        np.testing.assert_array_equal(got.numpy(), value.const_value.numpy())


def test_a_large_weight_of_another_size_is_refused(tmp_path: Path) -> None:
    weight = numpy_helper.from_array(np.zeros((2, 1 << 15), np.float32), "large")
    weight.dims[0] = 3
    onnx.save(model_with(weight), tmp_path / "m.onnx")
    with pytest.raises(ModelError, match="initializer 'large' of shape"):
        load_model(tmp_path / "m.onnx")
