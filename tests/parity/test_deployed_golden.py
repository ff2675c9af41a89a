"""`deployed_session` on files: AMCT's own deploy models against AMCT's own simulation of them, and bad files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from amct_onnx.errors import FileMissingError, ModelError, ModelFileError
from amct_onnx.numerics.packing import pack_dequant
from amct_onnx.run import session as opening
from amct_onnx.run.deployed import deployed_session

CASES = ("dmq", "hfmg", "ifmr_asymmetric", "ifmr_symmetric", "inverted", "mlp", "overrides", "vol")

# The stored output was computed elsewhere, by a runtime that may merge the scales into the weights and so round
# differently. Measured here: 139 dB for `vol`, no difference for the others.
MINIMUM_SQNR_DB = 60.0


def sqnr(reference: np.ndarray, got: np.ndarray) -> float:
    noise = np.sum((reference.astype(np.float64) - got) ** 2)
    return float("inf") if noise == 0 else float(10 * np.log10(np.sum(reference.astype(np.float64) ** 2) / noise))


@pytest.mark.parametrize("case", CASES)
def test_the_deploy_model_computes_what_amct_simulates(test_data: Callable[..., Path], case: str) -> None:
    folder = test_data("golden", case)
    stored = np.load(folder / "expected_output.npz")
    feeds = {"input": stored["input"]}
    session = deployed_session(folder / "deploy_model.onnx")
    got = session.run(None, feeds)[0]
    # Here both run on one machine, and with the merge of scales into weights off there is nothing left to differ.
    simulation = ort.InferenceSession(
        str(folder / "fake_quant_model.onnx"),
        providers=["CPUExecutionProvider"],
        disabled_optimizers=["ConvMulFusion"],
    )
    np.testing.assert_array_equal(got, simulation.run(None, feeds)[0])
    assert sqnr(stored["fake_quant"], got) > MINIMUM_SQNR_DB


@pytest.mark.parametrize("case", ["ifmr_asymmetric", "vol", "mlp"])
def test_optimization_levels_and_threads_do_not_change_a_bit(test_data: Callable[..., Path], case: str) -> None:
    folder = test_data("golden", case)
    feeds = {"input": np.load(folder / "expected_output.npz")["input"]}
    results = []
    for level in (ort.GraphOptimizationLevel.ORT_DISABLE_ALL, ort.GraphOptimizationLevel.ORT_ENABLE_ALL):
        options = ort.SessionOptions()
        options.graph_optimization_level = level
        options.intra_op_num_threads = 1 if level == ort.GraphOptimizationLevel.ORT_DISABLE_ALL else 2
        results.append(deployed_session(folder / "deploy_model.onnx", options).run(None, feeds)[0])
    np.testing.assert_array_equal(*results)


def test_the_session_has_the_inputs_and_outputs_of_the_file(test_data: Callable[..., Path]) -> None:
    folder = test_data("golden", "inverted")
    session = deployed_session(str(folder / "deploy_model.onnx"))
    simulation = ort.InferenceSession(str(folder / "fake_quant_model.onnx"), providers=["CPUExecutionProvider"])
    for mine, theirs in (
        (session.get_inputs(), simulation.get_inputs()),
        (session.get_outputs(), simulation.get_outputs()),
    ):
        assert [(v.name, v.type, v.shape) for v in mine] == [(v.name, v.type, v.shape) for v in theirs]


# Files


def small_model() -> onnx.ModelProto:
    """x [N, 512] -> y [N, 32], with a weight that is large enough to be stored outside."""
    weight = (np.arange(512 * 32) % 251 - 125).astype(np.int8).reshape(512, 32)
    graph = helper.make_graph(
        [
            helper.make_node("AscendQuant", ["x"], ["q"], "fc.quant", scale=1.0, offset=1.0, dst_type="INT8"),
            helper.make_node("MatMul", ["q", "w"], ["v"], "fc"),
            helper.make_node("AscendDequant", ["v", "p"], ["y"], "fc.dequant", dtype=0),
        ],
        "deploy",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 512])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 32])],
        [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(pack_dequant(0.5), "p")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def check_small_model(session: ort.InferenceSession) -> None:
    weight = np.arange(512 * 32).reshape(512, 32) % 251 - 125
    x = np.arange(1024).reshape(2, 512) % 100
    np.testing.assert_array_equal(session.run(None, {"x": x.astype(np.float32)})[0], (x @ weight) / 2)


@pytest.mark.parametrize("outside", [False, True])
@pytest.mark.parametrize("limit", [None, 100])
def test_external_data_in_and_models_too_large_for_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, outside: bool, limit: int | None
) -> None:
    path = tmp_path / "deploy_model.onnx"
    onnx.save(small_model(), path, save_as_external_data=outside, location="weights.bin", size_threshold=1024)
    assert (tmp_path / "weights.bin").exists() is outside
    if limit is not None:
        monkeypatch.setattr(opening, "MAX_INLINE_BYTES", limit)
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    check_small_model(deployed_session(path))
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileMissingError, match=r"nowhere\.onnx"):
        deployed_session(tmp_path / "nowhere.onnx")
    path = tmp_path / "deploy_model.onnx"
    onnx.save(small_model(), path, save_as_external_data=True, location="weights.bin", size_threshold=1024)
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(FileMissingError, match=r"weights\.bin"):
        deployed_session(path)


@pytest.mark.parametrize("content", [b"", b"this is no model at all", bytes(range(256))])
def test_what_is_not_a_model_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match=r"model\.onnx is not an ONNX model"):
        deployed_session(path)


def test_a_model_without_ascend_operators_goes_to_onnx_runtime(test_data: Callable[..., Path]) -> None:
    with pytest.raises(ModelError, match=r"InferenceSession directly"):
        deployed_session(test_data("golden", "mlp", "model.onnx"))


def test_what_onnx_runtime_refuses_is_a_model_error_with_its_reason(tmp_path: Path) -> None:
    model = small_model()
    model.graph.node.append(helper.make_node("NoSuchOperator", ["y"], ["z"]))
    model.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, None))
    onnx.save(model, tmp_path / "deploy_model.onnx")
    with pytest.raises(ModelError, match="NoSuchOperator"):
        deployed_session(tmp_path / "deploy_model.onnx")
