"""What a bad model or configuration gets: one line that says what, where and what to do, nothing half-written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from flow import Flow, build, everything_below, images, normal, two_convs
from refusal import refused

import amct_onnx as amct
from amct_onnx.errors import (
    AmctError,
    ConfigError,
    ConfigTypeError,
    FileMissingError,
    LayerError,
    ModelError,
    ModelFileError,
)


@pytest.fixture
def flow(tmp_path: Path) -> Flow:
    """A finished run of two layers: each file can be spoilt and used again."""
    return Flow.of(two_convs(), tmp_path).run({"x": images(0)})


def all_readers(flow: Flow, model: str) -> list[Callable[[], None]]:
    """Each function that reads a model, called with `model`."""
    return [
        lambda: amct.create_quant_config(flow.config, model),
        lambda: amct.quantize_model(flow.config, model, flow.modified, flow.record),
        lambda: amct.save_model(model, flow.record, str(flow.folder / "new")),
    ]


def check_model(flow: Flow, model: Path, error: type[AmctError], *parts: str) -> None:
    for call in all_readers(flow, str(model)):
        with refused(flow.folder, error, *parts):
            call()


# Model files


def test_a_model_that_does_not_exist(flow: Flow) -> None:
    check_model(flow, flow.folder / "nowhere.onnx", FileMissingError, r"nowhere\.onnx does not exist: check the path")


def test_a_folder_instead_of_a_model(flow: Flow) -> None:
    (flow.folder / "folder.onnx").mkdir()
    check_model(flow, flow.folder / "folder.onnx", ModelFileError, r"folder\.onnx")


@pytest.mark.parametrize("content", [b"", b"this is no model at all", bytes(range(256)), b"\x89PNG\r\n\x1a\n", b"{}\n"])
def test_a_file_that_is_not_onnx(flow: Flow, content: bytes) -> None:
    (flow.folder / "bad.onnx").write_bytes(content)
    check_model(flow, flow.folder / "bad.onnx", ModelFileError, r"bad\.onnx is not a", "ONNX model")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_a_truncated_model(flow: Flow, share: float) -> None:
    whole = Path(flow.model).read_bytes()
    (flow.folder / "bad.onnx").write_bytes(whole[: int(len(whole) * share)])
    check_model(flow, flow.folder / "bad.onnx", ModelFileError, r"bad\.onnx", "not a.* ONNX model")


def with_external_data(flow: Flow) -> tuple[Path, Path]:
    model, data = flow.folder / "external.onnx", flow.folder / "weights.bin"
    onnx.save(two_convs(), model, save_as_external_data=True, location=data.name, size_threshold=0)
    return model, data


def test_external_data_that_is_missing(flow: Flow) -> None:
    model, data = with_external_data(flow)
    data.unlink()
    check_model(flow, model, FileMissingError, "Tensor w1", r"external\.onnx", r"weights\.bin", "copy it there")


def test_external_data_that_is_truncated(flow: Flow) -> None:
    model, data = with_external_data(flow)
    data.write_bytes(data.read_bytes()[:-8])
    check_model(
        flow, model, ModelFileError, r"weights\.bin", r"external\.onnx", "truncated: tensor b2", "Copy it again"
    )


@pytest.mark.parametrize("opset", [1, 9, 10])
def test_an_opset_that_is_too_old(flow: Flow, opset: int) -> None:
    onnx.save(two_convs(opset=opset), flow.folder / "old.onnx")
    for call in all_readers(flow, str(flow.folder / "old.onnx"))[:2]:
        with refused(
            flow.folder, ModelError, rf"old\.onnx uses opset {opset}", "oldest supported is 11", "version_converter"
        ):
            call()


# Models that cannot be quantized


@pytest.mark.parametrize("kind", ["deploy", "modified"])
def test_a_model_that_is_quantized_already(flow: Flow, kind: str) -> None:
    model = getattr(flow, kind)
    what = {"deploy": "AscendQuant conv1.quant", "modified": "IFMR conv2.observer"}[kind]
    for call in all_readers(flow, model)[:2]:
        with refused(flow.folder, ModelError, "following quant layers are in the model", what, "Start from the float"):
            call()


def test_a_qdq_model_is_quantized_already(test_data: Callable[..., Path], tmp_path: Path) -> None:
    model = str(test_data("models", "mobilenetv2_qdq_per_tensor.onnx"))
    with refused(
        tmp_path, ModelError, "following quant layers", "QuantizeLinear", "more", "Start from the float model"
    ):
        amct.create_quant_config(str(tmp_path / "config.json"), model)


def test_the_fake_quant_model_of_amct_onnx_is_quantized_already(flow: Flow) -> None:
    for call in all_readers(flow, flow.fake_quant)[:2]:
        with refused(flow.folder, ModelError, "The model cannot be quantized", "conv1", "Start from the float model"):
            call()


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("y = Relu (x)", ""),
        ("y = Conv (x, k)", "run time"),
        ("y = GlobalAveragePool (x)", ""),
    ],
)
def test_a_model_with_nothing_to_quantize(tmp_path: Path, body: str, reason: str) -> None:
    model = build(f"g (float[N,3,H,W] x, float[3,3,1,1] k) => (float[N,3,H,W] y) {{ {body} }}")
    flow = Flow.of(model, tmp_path)
    with refused(tmp_path, ConfigError, r"No layer support quantization in the graph\.", reason):
        flow.configure()


def test_everything_skipped(flow: Flow) -> None:
    with refused(flow.folder, ConfigError, "skip_layers: Except skip_layers, no layer needs to quantize"):
        flow.configure(skip_layers=["conv1", "conv2"])


def test_a_configuration_that_enables_nothing(flow: Flow) -> None:
    config = json.loads(Path(flow.config).read_text())
    for layer in ("conv1", "conv2"):
        config[layer]["quant_enable"] = False
    Path(flow.config).write_text(json.dumps(config))
    with refused(flow.folder, ModelError, "No quant enable layer in quant config file", "set quant_enable to true"):
        flow.quantize()


def test_a_bias_that_leaves_int32(tmp_path: Path) -> None:
    model = build(
        "g (float[N,3,H,W] x) => (float[N,3,H,W] y) { [conv] y = Conv (x, w, b) }",
        w=normal(1, 3, 3, 1, 1, scale=1e-3),
        b=np.float32([0, 1e9, 0]),
    )
    flow = Flow.of(model, tmp_path).configure().quantize().calibrate([{"x": images(0)}])
    with refused(tmp_path, LayerError, 'bias of layer "conv" exceed int32 range', "add it to skip layer"):
        flow.save()


# config.json


def edit_config(flow: Flow, change: Callable[[dict[str, Any]], Any]) -> None:
    config = json.loads(Path(flow.config).read_text())
    change(config)
    Path(flow.config).write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("change", "error", "parts"),
    [
        (lambda c: c.update(batchnum=1), ConfigError, ["batchnum: ", "invalid layer name", "mean 'batch_num'"]),
        (lambda c: c.update(conv3={}), ConfigError, ["conv3: ", "invalid layer name", "Did you mean 'conv"]),
        (
            lambda c: c.update(relu={"quant_enable": True}),
            ConfigError,
            ["layer relu does not support quant", "Relu", "Set quant_enable to false or delete the entry"],
        ),
        (lambda c: c["conv1"].update(bits=8), ConfigError, [r"conv1\.bits: Unknown parameter bits in layer conv1"]),
        (lambda c: c.update(batch_num="2"), ConfigTypeError, ["batch_num: Type of batch_num should be int", "str"]),
        (lambda c: c["conv1"].update(quant_enable=1), ConfigTypeError, [r"conv1\.quant_enable: Type", "bool", "int 1"]),
        (lambda c: c.update(batch_num=0), ConfigError, ["batch_num: The batch_num must be greater than zero"]),
        (
            lambda c: c["conv2"]["activation_quant_params"].update(max_percentile=0.1),
            ConfigError,
            [r"conv2\.activation_quant_params\.max_percentile: ", "greater than 0.5"],
        ),
        (lambda c: c.update(skip_fusion_layers=["nope"]), ConfigError, ['"nope" in skip_fusion_layers does not exist']),
        (
            lambda c: c["conv1"]["activation_quant_params"].update(num_bits=4),
            ConfigError,
            [r"Not supported by this version: conv1\.activation_quant_params\.num_bits 4", "Remove"],
        ),
    ],
)  # fmt: skip
def test_a_mistake_in_config_json(flow: Flow, change: Any, error: type[AmctError], parts: list[str]) -> None:
    edit_config(flow, change)
    with refused(flow.folder, error, *parts):
        flow.quantize()


def test_all_mistakes_of_config_json_at_once(flow: Flow) -> None:
    edit_config(flow, lambda c: c.update(batch_num=-1, conv9={}, do_fusion="no"))
    with refused(flow.folder, ConfigError, "config.json: 3 mistakes", mistakes=3):
        flow.quantize()


def test_a_repeated_key_in_config_json(flow: Flow) -> None:
    text = Path(flow.config).read_text()
    Path(flow.config).write_text(text.replace('"batch_num":1,', '"batch_num":1,\n"batch_num":2,'))
    with refused(flow.folder, ConfigError, "config.json: batch_num: Please delete repeated items", "batch_num"):
        flow.quantize()


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"version":1,}', "\x00", "batch_num : 1"])
def test_a_config_that_is_no_json_object(flow: Flow, content: str) -> None:
    Path(flow.config).write_text(content)
    before = everything_below(flow.folder)
    with pytest.raises(ConfigError, match=r"config\.json.*(no JSON|must be one JSON object)") as caught:
        flow.quantize()
    assert "\n" not in str(caught.value)
    assert everything_below(flow.folder) == before


def test_a_config_that_does_not_exist(flow: Flow) -> None:
    Path(flow.config).unlink()
    with refused(flow.folder, FileMissingError, r"config\.json: the config file does not exist, check the path"):
        flow.quantize()


@pytest.mark.parametrize(
    ("layers", "parts"),
    [
        (["conv3"], ["Layer conv3 does not exist in the graph"]),
        (["relu"], ["Layer relu does not support quantization", "Relu"]),
        (["Conv1"], ["Layer Conv1 does not exist in the graph", "Did you mean 'conv1'"]),
        (["conv1", "conv1"], ["Please delete repeated items in skip_layers", "conv1"]),
    ],
)
def test_skip_layers_that_cannot_be_skipped(flow: Flow, layers: list[str], parts: list[str]) -> None:
    with refused(flow.folder, ConfigError, *parts):
        flow.configure(skip_layers=layers)


@pytest.mark.parametrize(
    ("cfg", "parts"),
    [
        ("batch_nun : 1", [r"quant\.cfg:1:", "batch_nun"]),
        ("batch_num : 1\nbatch_num : }", [r"quant\.cfg:2:"]),
        ("batch_num : 0", [r"quant\.cfg:1:1: batch_num: ", "greater than zero"]),
        ('skip_layers : "nope"', ["nope does not exist in the graph"]),
    ],
)
def test_a_mistake_in_the_simplified_configuration(flow: Flow, cfg: str, parts: list[str]) -> None:
    path = flow.folder / "quant.cfg"
    path.write_text(cfg)
    with refused(flow.folder, ConfigError, *parts):
        flow.configure(config_defination=str(path))
