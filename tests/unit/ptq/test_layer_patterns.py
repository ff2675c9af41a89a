"""Which nodes are meant by names, patterns and types."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from flow import normal, two_convs

import amct_onnx
from amct_onnx.cli.main import main
from amct_onnx.errors import AmctError, ArgumentError, ArgumentTypeError
from amct_onnx.ptq.layer_patterns import matching_nodes

NODES = {
    "Conv_0": "Conv",
    "Conv_10": "Conv",
    "head/cls.0": "MatMul",
    "head/box[1]": "MatMul",
    "soft": "Softmax",
    "type:Odd": "Add",
    "a*b": "Mul",
    "axb": "Sub",
}


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (["soft"], ["soft"]),
        (["Conv_*"], ["Conv_0", "Conv_10"]),
        (["Conv_?"], ["Conv_0"]),
        (["head/*"], ["head/cls.0", "head/box[1]"]),
        (["head/box[1]"], ["head/box[1]"]),
        (["*box[?]"], ["head/box[1]"]),
        (["type:Conv"], ["Conv_0", "Conv_10"]),
        (["type:*max"], ["soft"]),
        (["type: MatMul"], ["head/cls.0", "head/box[1]"]),
        (["type:Odd"], ["type:Odd"]),  # a node of that name
        (["a*b"], ["a*b"]),
        (["a?b"], ["a*b", "axb"]),
        (["Conv_10", "Conv_*", "type:Softmax"], ["Conv_10", "Conv_0", "soft"]),
        ([], []),
    ],
)
def test_what_is_named(wanted: list[str], found: list[str]) -> None:
    assert list(matching_nodes(wanted, NODES)) == found


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("Conv_1", "no node 'Conv_1', did you mean 'Conv_10' or 'Conv_0'?"),
        ("Cnov_*", "no node like 'Cnov_*', did you mean 'Conv_"),
        ("conv_*", "no node like 'conv_*', did you mean 'Conv_"),
        ("type:SoftMax", "no node of the type 'SoftMax', did you mean 'type:Softmax'?"),
        ("type:Gelu", "no node of the type 'Gelu'; it has"),
        ("zzzz", "no node 'zzzz'; it has"),
    ],
)
def test_what_names_nothing_is_told_with_the_nearest_names(word: str, told: str) -> None:
    with pytest.raises(ArgumentError) as error:
        matching_nodes([word], NODES)
    assert told in str(error.value)


@pytest.mark.parametrize("wrong", ["Conv_0", None, 5, [1]])
def test_only_lists_of_texts_are_taken(wrong: Any) -> None:
    with pytest.raises(ArgumentTypeError):
        matching_nodes(wrong, NODES)


@pytest.mark.parametrize("target", ["onnxruntime", "openvino", "tensorrt", "ascend"])
@pytest.mark.parametrize(("words", "left"), [(["conv*2"], {"conv1"}), (["type:Relu", "conv1"], {"conv2"})])
def test_quantize_leaves_them_in_float(target: str, words: list[str], left: set[str]) -> None:
    def quantized(skipped: list[str]) -> set[str]:
        result = amct_onnx.quantize(
            two_convs(), normal(1, 8, 3, 6, 6), target=target, skip_layers=skipped, full_int8=True, effort="fast"
        )
        return {one.layer for one in result.decisions if one.quantized} & {"conv1", "conv2"}

    assert quantized([]) == {"conv1", "conv2"}
    assert quantized(words) == left


def test_the_command_takes_them_and_speaks_of_its_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    onnx.save(two_convs(), "m.onnx")
    np.save("x.npy", normal(1, 8, 3, 6, 6))
    words = ["quantize", "m.onnx", "--data", "x.npy", "--save_path", "out/m", "--effort", "fast", "--full_int8"]
    assert main([*words, "--skip_layers", "*2;type:Relu"]) == 0
    graph = onnx.load("out/m_onnxruntime.onnx").graph
    made = {output: node for node in graph.node for output in node.output}
    weights = {node.name: made.get(node.input[1]) for node in graph.node if node.op_type == "Conv"}
    assert weights["conv1"] is not None
    assert weights["conv2"] is None  # in floats, as it was
    capsys.readouterr()
    assert main([*words, "--skip_layers", "konv*", "--json"]) == 1
    told = json.loads(capsys.readouterr().out)["error"]
    assert "--skip_layers: the model has no node like 'konv*', did you mean 'conv" in told


def test_names_in_the_files_of_amct_stay_plain_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    onnx.save(two_convs(), "m.onnx")
    with pytest.raises(AmctError, match=r"conv\*"):
        amct_onnx.create_quant_config("config.json", "m.onnx", skip_layers=["conv*"])
    amct_onnx.create_quant_config("config.json", "m.onnx", skip_layers=["conv1"])
    config = json.loads(Path("config.json").read_text())
    assert config["conv1"]["quant_enable"] is False
