"""samples/resnet-101 as its README runs it, in a copy of the folder and as a process of its own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx.numpy_helper
import pytest

SAMPLE = Path(__file__).resolve().parents[2] / "samples" / "resnet-101"
MAXIMUM_TOP1_LOSS, MAXIMUM_TOP5_LOSS = 0.02, 0.01
OUTPUTS = Path("outputs", "calibration")
WHEN = ("before", "after")


@pytest.fixture
def sample(tmp_path: Path) -> Path:
    """A fresh copy of the sample, without the results of earlier runs."""
    folder = tmp_path / "resnet-101"
    shutil.copytree(SAMPLE, folder, ignore=shutil.ignore_patterns("outputs", "amct_log", "__pycache__"))
    return folder


def run(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "./src/resnet-101_calibration.py", *options]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=300)


def accuracy(line: str, when: str) -> tuple[float, float]:
    found = re.fullmatch(rf"\[INFO\] ResNet101 {when} quantize +top1: *([0-9.]+) +top5: *([0-9.]+)", line)
    assert found, line
    return float(found[1]), float(found[2])


def few_images(folder: Path, count: int) -> None:
    labels = folder / "data" / "images" / "image_label.txt"
    labels.write_text("".join(line + "\n" for line in labels.read_text().splitlines()[:count]))


def test_it_ends_with_amcts_four_lines_and_keeps_the_accuracy(sample: Path) -> None:
    result = run(sample)
    assert result.returncode == 0, result.stderr
    assert result.stderr.splitlines()[-2:] == [
        f"INFO - [AMCT]:[Utils]: The model file is saved in ./outputs/calibration/resnet-101_{kind}_model.onnx"
        for kind in ("deploy", "fake_quant")
    ]
    lines = result.stdout.splitlines()
    assert len(lines) == 2, lines
    before, after = accuracy(lines[0], "before"), accuracy(lines[1], "after")
    assert before[0] > 0.9  # the model and its images belong together
    assert abs(before[0] - after[0]) <= MAXIMUM_TOP1_LOSS
    assert abs(before[1] - after[1]) <= MAXIMUM_TOP5_LOSS
    written = {str(p.relative_to(sample)) for p in sample.rglob("*") if p.is_file()}
    assert written >= {
        *(str(OUTPUTS / f"resnet-101_{name}") for name in ("deploy_model.onnx", "fake_quant_model.onnx", "quant.json")),
        *(str(OUTPUTS / "tmp" / name) for name in ("config.json", "record.txt", "modified_model.onnx")),
        str(Path("amct_log", "amct_onnx.log")),
    }


@pytest.mark.slow
def test_the_options_are_honoured(sample: Path) -> None:
    few_images(sample, 6)
    (sample / "data").rename(sample / "pictures")
    (sample / "model" / "resnet-101.onnx").rename(sample / "other.onnx")
    result = run(
        sample, "--model", "other.onnx", "--images", "pictures/images", "--batch_size", "2", "--batch_num", "3"
    )
    assert result.returncode == 0, result.stderr
    modified = onnx.load(sample / OUTPUTS / "tmp" / "modified_model.onnx")
    observers = [node for node in modified.graph.node if node.domain == "amct.customop"]
    assert {a.i for node in observers for a in node.attribute if a.name == "batch_num"} == {3}
    assert '"batch_num":3' in (sample / OUTPUTS / "tmp" / "config.json").read_text()
    assert len(result.stdout.splitlines()) == 2


@pytest.mark.slow
def test_nuq_makes_few_values_a_layer_and_keeps_the_accuracy(sample: Path) -> None:
    result = run(sample, "--nuq", "--batch_size", "16", "--batch_num", "2")
    assert result.returncode == 0, result.stderr
    before, after = (accuracy(line, when) for line, when in zip(result.stdout.splitlines(), WHEN, strict=True))
    assert abs(before[0] - after[0]) <= MAXIMUM_TOP1_LOSS
    outputs = sample / "outputs" / "nuq"
    assert '"batch_num":2' in (outputs / "tmp" / "config.json").read_text()
    deploy = onnx.load(outputs / "resnet-101_deploy_model.onnx")
    weights = {i.name: onnx.numpy_helper.to_array(i) for i in deploy.graph.initializer if i.data_type == 3}
    levels = [len(np.unique(weights[n.input[1]])) for n in deploy.graph.node if n.op_type == "Conv"]
    assert len(levels) == 104
    assert max(levels) == 32
    assert not (sample / "outputs" / "calibration").exists()


def spoil_label(folder: Path) -> list[str]:
    few_images(folder, 2)
    with (folder / "data" / "images" / "image_label.txt").open("a") as file:
        file.write("digit_003.png seven\n")
    return []


def remove_image(folder: Path) -> list[str]:
    (folder / "data" / "images" / "digit_001.png").unlink()
    return []


def remove_labels(folder: Path) -> list[str]:
    (folder / "data" / "images" / "image_label.txt").unlink()
    return []


def empty_labels(folder: Path) -> list[str]:
    (folder / "data" / "images" / "image_label.txt").write_text("\n")
    return []


def truncate_model(folder: Path) -> list[str]:
    model = folder / "model" / "resnet-101.onnx"
    model.write_bytes(model.read_bytes()[:100_000])
    return []


def spoil_image(folder: Path) -> list[str]:
    few_images(folder, 4)
    (folder / "data" / "images" / "digit_002.png").write_bytes(b"no picture")
    return ["--batch_size", "4"]


def large_label(folder: Path) -> list[str]:
    few_images(folder, 3)
    with (folder / "data" / "images" / "image_label.txt").open("a") as file:
        file.write("digit_003.png 5000\n")
    return ["--batch_size", "4"]


@pytest.mark.parametrize(
    ("spoil", "parts"),
    [
        (lambda _: ["--model", "nowhere.onnx"], ["model not found: nowhere.onnx", "--model"]),
        (truncate_model, ["resnet-101.onnx", "complete ONNX model"]),
        (lambda _: ["--images", "nowhere"], ["image directory not found: nowhere", "--images"]),
        (remove_labels, ["image_label.txt", "one 'file label' line per image"]),
        (empty_labels, ["image_label.txt is empty"]),
        (spoil_label, ["image_label.txt:3: malformed line 'digit_003.png seven'", "expected 'file label'"]),
        (remove_image, ["image_label.txt:2: image not found", "digit_001.png"]),
        (spoil_image, ["digit_002.png", "replace it"]),
        (large_label, ["image_label.txt:4: label 5000 is out of range", "classes 0 to 9"]),
        (lambda _: ["--batch_num", "6"], ["calibration needs 6 x 32 images", "has 160", "lower --batch_num"]),
    ],
    ids=lambda value: getattr(value, "__name__", "option"),
)
def test_a_mistake_is_one_line_and_exit_code_1(sample: Path, spoil: object, parts: list[str]) -> None:
    options = spoil(sample)  # type: ignore[operator]
    result = run(sample, *options)
    assert result.returncode == 1
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("[ERROR] ")
    position = 0
    for part in parts:
        position = lines[0].index(part, position) + len(part)
    assert result.stdout == ""
    assert not list(sample.glob("outputs/**/*_model.onnx"))


@pytest.mark.parametrize("options", [["--batch_num", "0"], ["--batch_size", "many"], ["--nonsense"]])
def test_a_wrong_command_line_is_refused_with_the_usage(sample: Path, options: list[str]) -> None:
    result = run(sample, *options)
    assert result.returncode == 2
    assert options[0] in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr
    assert not os.path.exists(sample / "outputs")
