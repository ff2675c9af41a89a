"""`quantize` and `amct_onnx quantize` as their users call them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
import onnx.parser
import onnx_ir as ir
import onnxruntime as ort
import pytest
from qdq_graph import exact_session
from slow import mark_slow

import amct_onnx
from amct_onnx.cli.main import main
from amct_onnx.data.open_data import open_data
from amct_onnx.data.options import DataOptions
from amct_onnx.errors import AmctError, ArgumentError, ConfigError, ModelError, StatisticsError
from amct_onnx.graph.inputs import model_inputs
from amct_onnx.observe import histograms as collect
from amct_onnx.ptq.request import ALGORITHMS

TestData = Callable[..., Path]

# Model, folder or file below the shared data, and how it is read.
SHARED: dict[str, tuple[str, str, dict[str, Any]]] = {
    "mobilenetv2": ("mobilenetv2_tv1", "images/imagenet1000", {}),
    "squeezenet": ("squeezenet1.1", "images/imagenet1000", {"images": "torch"}),
    "mobilenetv1": ("mobilenetv1_0.5_160", "images/imagenet1000", {"images": "tf"}),
    "resnet20": ("resnet20_cifar10", "images/cifar10/calibration", {}),
    "resnet56": ("resnet56_cifar10", "images/cifar10/calibration", {}),
    "yolox": ("yolox_nano", "images/coco128", {"images": "yolox"}),
    "super_resolution": ("super_resolution_10", "images/imagenet1000", {}),
    "kws": ("kws_dscnn_mlperftiny", "images/kws/kws01.npz", {"names": {"input": "x_nchw"}}),
    "minilm": ("minilm_l6", "text/stsb/calibration.npz", {"names": {"input_ids": "ids_a", "attention_mask": "mask_a"}}),
}
# How far the outputs of the quantized models are from float, in dB, on calibration data: min-max on four samples.
LEAST_SQNR = 5.0


def sqnr(exact: np.ndarray, got: np.ndarray) -> float:
    return float(10 * np.log10((exact**2).sum() / max(((exact - got) ** 2).sum(), 1e-30)))


@pytest.mark.parametrize("name", mark_slow(SHARED, "mobilenetv2", "yolox", "minilm", "resnet56"))
@pytest.mark.parametrize("form", ["call", "command"])
def test_every_shared_model_with_its_own_data(test_data: TestData, tmp_path: Path, name: str, form: str) -> None:
    model, data, options = SHARED[name]
    path, source = test_data("models", f"{model}.onnx"), test_data(*data.split("/"))
    file = tmp_path / "out" / "m_onnxruntime.onnx"
    if form == "call":
        result = amct_onnx.quantize(path, source, limit=4, **options)
        assert result.save(tmp_path / "out" / "m", inspect=False).files == (str(file),)
    else:
        words = [f"--images={options['images']}"] if "images" in options else []
        words += [f"--names={';'.join(f'{k}={v}' for k, v in options['names'].items())}"] if "names" in options else []
        command = [
            "quantize",
            str(path),
            "--data",
            str(source),
            "--save_path",
            str(tmp_path / "out" / "m"),
            "--limit",
            "4",
        ]
        assert main([*command, *words, "--no_report", "--effort=fast"]) == 0
    (first,) = open_data(source, model_inputs(ir.load(path)), DataOptions(limit=1, **options))
    float_outputs = ort.InferenceSession(str(path)).run(None, first)
    for exact, got in zip(float_outputs, exact_session(file).run(None, first), strict=True):
        assert got.shape == exact.shape
        assert sqnr(exact, got) >= LEAST_SQNR


MODEL = """<ir_version: 8, opset_import: ["": 13]> g (float[N,3,8,8] x) => (float[N,2] y)
    {
    a = Conv<pads = [1, 1, 1, 1]>(x, w, b) c = Relu(a) d = GlobalAveragePool(c) e = Flatten(d) y = Gemm(e, g) }"""


@pytest.fixture
def model() -> ir.Model:
    rng, model = np.random.default_rng(0), onnx.parser.parse_model(MODEL)
    for name, shape in (("w", (4, 3, 3, 3)), ("b", (4,)), ("g", (4, 2))):
        array = rng.normal(size=shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return ir.from_proto(model)


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(12, 3, 8, 8)).astype(np.float32)


@pytest.fixture
def inferences(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one with each inference of a calibration."""
    counted: list[int] = []
    run = collect.run_feed

    def count(*args: Any, **texts: str) -> list[Any]:
        counted.append(1)
        return run(*args, **texts)

    monkeypatch.setattr(collect, "run_feed", count)
    return counted


def text_of(model: ir.Model) -> bytes:
    return ir.to_proto(model).SerializeToString(deterministic=True)


def test_other_targets_and_algorithms_take_no_second_pass(
    model: ir.Model, images: np.ndarray, inferences: list[int], tmp_path: Path
) -> None:
    result = amct_onnx.quantize(model, images, batch_size=4, effort="fast")
    assert len(inferences) == 3
    found = {}
    for target in ("onnxruntime", "tensorrt", "openvino", "ascend"):
        for algorithm in ALGORITHMS:
            other = result.to(target, algorithm=algorithm)
            other.save(tmp_path / target / algorithm / "m", inspect=False)
            found[target, algorithm] = text_of(other.model())
    assert len(inferences) == 3
    assert len(set(found.values())) > len({target for target, _ in found})  # the algorithms differ
    for (target, algorithm), text in found.items():
        assert text == text_of(
            amct_onnx.quantize(model, images, target=target, algorithm=algorithm, effort="fast").model()
        )


def test_statistics_from_a_file_give_the_same_models(
    model: ir.Model, images: np.ndarray, inferences: list[int], tmp_path: Path
) -> None:
    result = amct_onnx.quantize(model, images, effort="fast")
    amct_onnx.save_statistics(result.statistics, tmp_path / "s.npz")
    count = len(inferences)
    again = amct_onnx.quantize(model, amct_onnx.load_statistics(tmp_path / "s.npz"))
    assert len(inferences) == count
    assert text_of(again.model()) == text_of(result.model())
    assert again.sample is None
    assert result.statistics.samples == 12


def test_statistics_of_parts_merge_to_those_of_the_whole(model: ir.Model, images: np.ndarray) -> None:
    parts = [amct_onnx.quantize(model, part, effort="fast").statistics for part in np.array_split(images, 3)]
    merged = parts[2].merge(parts[0]).merge(parts[1])
    assert merged == amct_onnx.quantize(model, images, effort="fast").statistics


def test_statistics_of_another_model_are_refused(model: ir.Model, images: np.ndarray) -> None:
    statistics = amct_onnx.quantize(model, images).statistics
    model.graph.initializers["b"].const_value = ir.tensor(np.zeros(4, np.float32), name="b")
    with pytest.raises(StatisticsError, match="another model"):
        amct_onnx.quantize(model, statistics)


def test_a_model_is_taken_as_a_path_a_proto_or_in_memory_and_stays(
    model: ir.Model, images: np.ndarray, tmp_path: Path
) -> None:
    ir.save(model, tmp_path / "m.onnx")
    proto = onnx.load(tmp_path / "m.onnx")
    before = proto.SerializeToString(deterministic=True), text_of(model)
    texts = {
        text_of(amct_onnx.quantize(form, images).model())
        for form in (tmp_path / "m.onnx", str(tmp_path / "m.onnx"), proto, model)
    }
    assert len(texts) == 1
    assert (proto.SerializeToString(deterministic=True), text_of(model)) == before


def test_decisions_and_their_reasons(model: ir.Model, images: np.ndarray) -> None:
    result = amct_onnx.quantize(model, images, skip_layers=[model.graph[0].name or "Conv_0"])
    reasons = {decision.layer: decision.reason for decision in result.decisions if not decision.quantized}
    assert "settings" in reasons["Conv_0"]
    assert set(result.activations) == {"e", "d"} or set(result.activations) == {"e"}
    assert "quantized" in repr(result)


def test_settings_are_those_of_config_json(model: ir.Model, images: np.ndarray, tmp_path: Path) -> None:
    ir.save(model, tmp_path / "m.onnx")
    config = tmp_path / "config.json"
    amct_onnx.create_quant_config(str(config), str(tmp_path / "m.onnx"), skip_layers=["Conv_0"])
    result = amct_onnx.quantize(tmp_path / "m.onnx", images, settings=config)
    assert {d.layer: d.quantized for d in result.decisions}["Conv_0"] is False
    by_ifmr = amct_onnx.quantize(tmp_path / "m.onnx", images, algorithm="ifmr", skip_layers=["Conv_0"])
    grids = [
        {name: (float(p.scale[0]), int(p.zero_point[0])) for name, p in r.activations.items()}
        for r in (result, by_ifmr)
    ]
    assert grids[0] == grids[1]  # the algorithm of config.json


def test_with_a_reduced_range_every_cpu_computes_the_same(
    test_data: TestData, tmp_path: Path, images: np.ndarray
) -> None:
    """On a CPU with VNNI the two sessions are the same in any case."""
    path = test_data("models", "resnet20_cifar10.onnx")
    data = np.random.default_rng(0).normal(size=(8, 3, 32, 32)).astype(np.float32)
    result = amct_onnx.quantize(path, data, reduce_range=True)
    saved = result.save(tmp_path / "m")
    assert saved.report is not None
    assert not saved.report.saturates
    plain, exact = ort.InferenceSession(saved.files[0]), exact_session(saved.files[0])
    noise = data * 3  # beyond what was seen, so that activations reach 255
    np.testing.assert_array_equal(plain.run(None, {"input": noise})[0], exact.run(None, {"input": noise})[0])
    largest = [
        int(np.abs(node.inputs[0].const_value.numpy().astype(np.int64)).max())
        for node in result.model().graph
        if node.op_type == "DequantizeLinear"
        and node.inputs[0].is_initializer()
        and node.inputs[0].dtype == ir.DataType.INT8
    ]
    assert max(largest) > 64  # more than seven bits


def test_the_report_says_what_runs(model: ir.Model, images: np.ndarray, tmp_path: Path) -> None:
    report = amct_onnx.quantize(model, images, full_int8=True).save(tmp_path / "m").report
    assert report is not None
    assert report.kernels.integer == {"QLinearConv": 1, "QLinearGlobalAveragePool": 1, "QGemm": 1} | {
        name: count for name, count in report.kernels.integer.items() if name == "Flatten"
    }
    assert report.latency is not None
    elsewhere = amct_onnx.quantize(model, images, target="openvino").save(tmp_path / "m").report
    assert elsewhere is not None
    assert (elsewhere.kernels, elsewhere.latency) == (None, None)


def test_the_deploy_model_of_ascend_runs_and_agrees(model: ir.Model, images: np.ndarray, tmp_path: Path) -> None:
    result = amct_onnx.quantize(model, images, target="ascend")
    files = result.save(tmp_path / "m").files
    assert {Path(file).name for file in files} == {"m_deploy_model.onnx", "m_fake_quant_model.onnx", "m_quant.json"}
    assert set(result.records) == {"Conv_0", "Gemm_4"}
    (deployed,) = amct_onnx.deployed_session(str(tmp_path / "m_deploy_model.onnx")).run(None, {"x": images})
    (simulated,) = ort.InferenceSession(str(tmp_path / "m_fake_quant_model.onnx")).run(None, {"x": images})
    (exact,) = ort.InferenceSession(ir.to_proto(model).SerializeToString()).run(None, {"x": images})
    assert np.array_equal(deployed, simulated)
    assert sqnr(exact, deployed) > 20


def test_progress_is_told(model: ir.Model, images: np.ndarray) -> None:
    told: list[tuple[str, float]] = []

    def tell(what: str, share: float) -> None:
        told.append((what, share))

    amct_onnx.quantize(model, images, batch_size=3, effort="fast", progress=tell)
    assert told == [("calibration", share) for share in (0.25, 0.5, 0.75, 1.0)]
    told.clear()
    amct_onnx.quantize(model, iter(images), effort="fast", progress=tell)  # of which nobody knows how many there are
    assert told[0] == ("calibration", 0.0)
    assert told[-1] == ("calibration", 1.0)
    told.clear()
    amct_onnx.quantize(model, images, batch_size=3, progress=tell)
    assert {share for what, share in told if what == "rounding"} >= {0.0, 1.0}
    assert told[-1][1] == 1.0


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"target": "onnxruntme"}, ArgumentError, ["onnxruntme", "onnxruntime"]),
        ({"algorithm": "mes"}, ArgumentError, ["mes", "did you mean 'mse'"]),
        ({"algorithm": 3}, TypeError, ["algorithm", "int"]),
        ({"skip_layers": ["Conv_1"]}, ArgumentError, ["Conv_1", "did you mean 'Conv_0'"]),
        ({"skip_layers": "Conv_0"}, TypeError, ["list"]),
        ({"settings": "missing.json"}, AmctError, ["missing.json"]),
        ({"settings": 3}, TypeError, ["settings"]),
    ],
)
def test_wrong_arguments(
    model: ir.Model, images: np.ndarray, options: dict[str, Any], error: type[Exception], words: list[str]
) -> None:
    with pytest.raises(error) as caught:
        amct_onnx.quantize(model, images, **options)
    assert all(word in str(caught.value) for word in words)


def test_a_model_that_is_quantized_already_is_refused(model: ir.Model, images: np.ndarray) -> None:
    quantized = amct_onnx.quantize(model, images).model()
    with pytest.raises(ModelError, match="quant layers are in the model"):
        amct_onnx.quantize(quantized, images)


def test_what_a_target_does_not_have_is_refused(model: ir.Model, images: np.ndarray, tmp_path: Path) -> None:
    ir.save(model, tmp_path / "m.onnx")
    cfg = tmp_path / "q.cfg"
    cfg.write_text("common_config : { ifmr_quantize : { } ada_quantize : { } }")
    for target in ("onnxruntime", "ascend"):
        with pytest.raises(ConfigError, match=r"Conv_0: AdaRound"):
            amct_onnx.quantize(tmp_path / "m.onnx", images, settings=cfg, target=target)


def test_the_command_writes_every_target_from_one_calibration(
    model: ir.Model,
    images: np.ndarray,
    inferences: list[int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    ir.save(model, "m.onnx")
    np.save("x.npy", images)
    words = [
        "--target",
        "onnxruntime,ascend",
        "--batch_size",
        "4",
        "--save_statistics",
        "s.npz",
        "--skip_layers=Gemm_4",
        "--effort=fast",
    ]
    assert main(["quantize", "m.onnx", "--data", "x.npy", "--save_path", "out/m", *words]) == 0
    assert len(inferences) == 3
    assert {file.name for file in Path("out").iterdir()} == {
        *("m_onnxruntime.onnx", "m_deploy_model.onnx", "m_fake_quant_model.onnx", "m_quant.json"),
        *("m_onnxruntime_run.json", "m_ascend_run.json"),
    }
    text = caplog.text
    assert "Gemm_4" in text
    assert "integer kernel" in text
    first = Path("out/m_onnxruntime.onnx").read_bytes()
    assert main(["quantize", "m.onnx", "--statistics", "s.npz", "--save_path", "again/m", "--skip_layers=Gemm_4"]) == 0
    assert len(inferences) == 3
    assert Path("again/m_onnxruntime.onnx").read_bytes() == first


def test_the_command_says_in_one_line_what_is_wrong(
    model: ir.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    ir.save(model, "m.onnx")
    assert main(["quantize", "m.onnx", "--data", "nowhere/", "--save_path", "out/m"]) == 1
    assert "nowhere" in caplog.text
    assert not Path("out").exists()
