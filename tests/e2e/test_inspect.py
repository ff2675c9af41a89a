"""`inspect` says beforehand what quantize then does, and what may be unexpected of a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from broken import residual_net, samples
from flow import build, normal, two_convs
from slow import mark_slow

import amct_onnx
from amct_onnx.errors import ArgumentTypeError, FileMissingError, ModelFileError

TARGETS = ["onnxruntime", "openvino", "tensorrt", "ascend"]
# The number of convolutions and products.
SHARED = {
    "mobilenetv2_tv1": 53,
    "squeezenet1.1": 26,
    "mobilenetv1_0.5_160": 28,
    "resnet20_cifar10": 20,
    "resnet56_cifar10": 56,
    "yolox_nano": 113,
    "super_resolution_10": 4,
    "kws_dscnn_mlperftiny": 10,
    "minilm_l6": 48,
}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("make", [two_convs, residual_net])
def test_it_decides_as_quantize_does(make: Any, target: str) -> None:
    data = samples() if make is residual_net else normal(1, 8, 3, 6, 6)
    result = amct_onnx.quantize(make(), data, target=target, effort="fast")
    told = amct_onnx.inspect(make()).target(target)
    assert told.decisions == result.decisions
    assert told.quantized == sum(one.quantized for one in result.decisions)


@pytest.mark.parametrize("name", SHARED)
def test_the_shared_models(name: str, test_data: Any) -> None:
    path = test_data("models", f"{name}.onnx")
    found = amct_onnx.inspect(path)
    model = onnx.load(path)
    assert found.opset == model.opset_import[0].version
    assert found.nodes == len(model.graph.node)
    assert sum(found.operators.get(kind, 0) for kind in ("Conv", "MatMul", "Gemm")) == SHARED[name]
    assert found.bytes == Path(path).stat().st_size
    assert found.elements == sum(int(np.prod(t.dims)) for t in model.graph.initializer)
    assert [value.name for value in found.inputs] == [value.name for value in model.graph.input]
    assert {one.target for one in found.targets} == set(TARGETS)
    assert all(one.quantized_layers > 0 and not one.error for one in found.targets)


@pytest.mark.parametrize("name", mark_slow(["resnet20_cifar10", "kws_dscnn_mlperftiny"], "resnet20_cifar10"))
@pytest.mark.parametrize("target", ["onnxruntime", "ascend"])
def test_what_is_told_of_a_shared_model_happens(name: str, target: str, test_data: Any) -> None:
    path = str(test_data("models", f"{name}.onnx"))
    shape = (8, 1, 49, 10) if "kws" in name else (8, 3, 32, 32)
    result = amct_onnx.quantize(
        path, normal(1, *shape), target=target, effort="fast", full_int8=target == "onnxruntime"
    )
    assert amct_onnx.inspect(path).target(target).decisions == result.decisions


def test_a_quantized_model(test_data: Any) -> None:
    found = amct_onnx.inspect(test_data("models", "mobilenetv2_qdq_per_tensor.onnx"))
    assert found.quantized_already
    assert found.targets == ()
    assert any("convert_qat_model" in text for text in found.surprises)


def with_domain() -> onnx.ModelProto:
    model = two_convs()
    model.opset_import.append(onnx.helper.make_opsetid("my.ops", 1))
    node = onnx.helper.make_node("Strange", ["y"], ["z"], name="odd", domain="my.ops")
    model.graph.node.append(node)
    model.graph.output[0].name = "z"
    return model


def with_nan() -> onnx.ModelProto:
    return build("g (float[N,4] x) => (float[N,3] y) { y = MatMul (x, w) }", w=np.full((4, 3), np.nan, np.float32))


def fixed_batch() -> onnx.ModelProto:
    return build("g (float[4,3,8,8] x) => (float[4,5,8,8] y) { y = Conv (x, w) }", w=normal(1, 5, 3, 1, 1))


def random() -> onnx.ModelProto:
    return build(
        "g (float[N,3] x) => (float[N,3] y) { r = RandomNormalLike (x) s = MatMul (x, w) y = Add (s, r) }",
        w=normal(1, 3, 3),
    )


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (two_convs, "x have sizes beside the batch that are open"),
        (with_domain, "custom operators of my.ops (1 nodes)"),
        (with_nan, "weights hold NaN or Inf (w)"),
        (fixed_batch, "the batch is fixed: x (4)"),
        (random, "random numbers"),
        (lambda: build("g (float[N,3] x) => (float[N,3] y) { y = Relu (x) }"), "no convolution, product or recurrent"),
        (lambda: two_convs(opset=10), "opset 10"),
    ],
)
def test_surprises(make: Any, told: str) -> None:
    found = amct_onnx.inspect(make())
    assert any(told in text for text in found.surprises), found.surprises


def test_external_data(tmp_path: Path) -> None:
    model = build("g (float[N,300] x) => (float[N,300] y) { y = MatMul (x, w) }", w=normal(1, 300, 300))
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, size_threshold=0, location="m.data")
    found = amct_onnx.inspect(tmp_path / "m.onnx")
    assert found.external_data
    assert found.bytes == sum(file.stat().st_size for file in tmp_path.iterdir())
    assert any("external files" in text for text in found.surprises)


def test_a_plain_model_surprises_nobody() -> None:
    assert amct_onnx.inspect(residual_net()).surprises == ()


def test_what_is_no_model_is_told(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"nonsense")
    with pytest.raises(ModelFileError):
        amct_onnx.inspect(tmp_path / "m.onnx")
    with pytest.raises(FileMissingError):
        amct_onnx.inspect(tmp_path / "n.onnx")
    with pytest.raises(ArgumentTypeError, match="inspect takes a model as a path"):
        amct_onnx.inspect(5)
