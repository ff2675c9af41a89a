"""samples/mobilenet_v2, accuracy-based calibration, as its README runs it: in a copy, as a process of its own."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

SAMPLE = Path(__file__).resolve().parents[2] / "samples" / "mobilenet_v2"
SCRIPT = "./src/mobilenet_v2_accuracy_based_auto_calibration.py"
LAYERS = 53
PERCENT_OF_ONE_IMAGE = 0.25
RESULTS = {
    "results/config.json",
    "results/record.txt",
    "results/accuracy_based_auto_calibration_final_config.json",
    "results/accuracy_based_auto_calibration_ranking_information.json",
    "results/mobilenet_v2_deploy_model.onnx",
    "results/mobilenet_v2_fake_quant_model.onnx",
    "results/mobilenet_v2_quant.json",
    "amct_log/accuracy_based_auto_calibration_record.json",
    "amct_log/amct_onnx.log",
}


@pytest.fixture
def sample(tmp_path: Path) -> Path:
    """A fresh copy of the sample, without the results of earlier runs."""
    folder = tmp_path / "mobilenet_v2"
    shutil.copytree(SAMPLE, folder, ignore=shutil.ignore_patterns("results", "outputs", "amct_log", "__pycache__"))
    return folder


def run(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-B", SCRIPT, *options]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=300)


def files_below(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def top1(line: str, when: str) -> float:
    found = re.fullmatch(rf"\[INFO\] MobileNetV2 {when} +top1: +([0-9.]+) %", line)
    assert found, line
    return float(found[1])


def parse(stdout: str) -> tuple[float, float, float, int, int]:
    """Top-1 before, with all layers, of the answer; layers rolled back, trials."""
    before, everything, after, last = stdout.splitlines()
    found = re.fullmatch(rf"\[INFO\] (\d+) of {LAYERS} layers rolled back after (\d+) trials", last)
    assert found, last
    accuracies = (
        top1(before, "before quantize"),
        top1(everything, "with all layers quantized"),
        top1(after, "after auto-calibration"),
    )
    return *accuracies, int(found[1]), int(found[2])


def test_it_finds_a_model_within_the_default_target(sample: Path) -> None:
    before = files_below(sample)
    result = run(sample)
    assert result.returncode == 0, result.stderr
    original, everything, after, rolled_back, trials = parse(result.stdout)
    assert original > 95  # the model and its images belong together
    assert original - after <= 0.5
    assert everything == after or rolled_back
    assert (rolled_back == 0) == (trials == 0)
    assert all(line.startswith("INFO - [AMCT]:[") for line in result.stderr.splitlines()), result.stderr
    files = files_below(sample)
    assert {name: files[name] for name in before} == before
    assert set(files) - set(before) == RESULTS


@pytest.mark.slow
def test_layers_are_rolled_back_where_no_loss_is_allowed(sample: Path) -> None:
    result = run(sample, "--max_drop", "0")
    assert result.returncode == 0, result.stderr
    original, everything, after, rolled_back, trials = parse(result.stdout)
    assert everything < original <= after
    assert 0 < rolled_back < LAYERS
    assert 0 < trials <= LAYERS.bit_length()
    final = json.loads((sample / "results/accuracy_based_auto_calibration_final_config.json").read_text())
    off = [name for name, entry in final.items() if isinstance(entry, dict) and not entry["quant_enable"]]
    assert len(off) == rolled_back
    deploy = onnx.load(sample / "results/mobilenet_v2_deploy_model.onnx")
    assert sum(node.op_type == "AscendDequant" for node in deploy.graph.node) == LAYERS - rolled_back


@pytest.mark.slow
def test_a_target_that_no_model_meets_is_said(sample: Path) -> None:
    """The script is changed to be content with the float model only."""
    script = sample / SCRIPT
    text = script.read_text()
    strict = text.replace("return loss <= self.max_drop, loss", "return new_metric is original_metric, loss")
    assert strict != text
    script.write_text(strict)
    labels = sample / "data" / "images" / "image_label.txt"
    labels.write_text("".join(line + "\n" for line in labels.read_text().splitlines()[:40]))
    stale = sample / "results" / "accuracy_based_auto_calibration_final_config.json"
    stale.parent.mkdir()
    stale.write_text("{}")
    result = run(sample, "--batch_size", "8", "--batch_num", "5")
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "[INFO] no quantized model loses at most 0.5 %"
    assert not stale.exists()
    assert not list(sample.glob("results/*_model.onnx"))


@pytest.mark.slow
def test_the_options_are_honoured(sample: Path) -> None:
    labels = sample / "data" / "images" / "image_label.txt"
    labels.write_text("".join(line + "\n" for line in labels.read_text().splitlines()[:9]))
    (sample / "data").rename(sample / "pictures")
    (sample / "model" / "mobilenet_v2.onnx").rename(sample / "other.onnx")
    options = ["--model", "other.onnx", "--images", "pictures/images", "--batch_size", "2", "--batch_num", "3"]
    result = run(sample, *options, "--max_drop", "100")
    assert result.returncode == 0, result.stderr
    assert '"batch_num":3' in (sample / "results" / "config.json").read_text()
    assert "[INFO] 0 of 53 layers rolled back after 0 trials" in result.stdout


def remove_image(folder: Path) -> list[str]:
    (folder / "data" / "images" / "digit_001.png").unlink()
    return []


def spoil_label(folder: Path) -> list[str]:
    labels = folder / "data" / "images" / "image_label.txt"
    labels.write_text(f"{labels.read_text()}digit_003.png seven\n")
    return []


def truncate_model(folder: Path) -> list[str]:
    model = folder / "model" / "mobilenet_v2.onnx"
    model.write_bytes(model.read_bytes()[:100_000])
    return []


@pytest.mark.parametrize(
    ("spoil", "parts"),
    [
        (lambda _: ["--model", "nowhere.onnx"], ["model not found: nowhere.onnx", "--model"]),
        (truncate_model, ["mobilenet_v2.onnx", "complete ONNX model"]),
        (lambda _: ["--images", "nowhere"], ["image directory not found: nowhere", "--images"]),
        (spoil_label, ["image_label.txt:401: malformed line 'digit_003.png seven'", "expected 'file label'"]),
        (remove_image, ["image_label.txt:2: image not found", "digit_001.png"]),
        (lambda _: ["--batch_num", "13"], ["calibration needs 13 x 32 images", "has 400", "lower --batch_num"]),
    ],
    ids=lambda value: getattr(value, "__name__", "option"),
)
def test_a_mistake_is_one_line_and_exit_code_1(
    sample: Path, spoil: Callable[[Path], list[str]], parts: list[str]
) -> None:
    result = run(sample, *spoil(sample))
    assert result.returncode == 1
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("[ERROR] ")
    position = 0
    for part in parts:
        position = lines[0].index(part, position) + len(part)
    assert result.stdout == ""
    assert not (sample / "results").exists()


@pytest.mark.parametrize("options", [["--batch_num", "0"], ["--max_drop", "101"], ["--nonsense"]])
def test_a_wrong_command_line_is_refused_with_the_usage(sample: Path, options: list[str]) -> None:
    result = run(sample, *options)
    assert result.returncode == 2
    assert options[0] in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr
    assert not (sample / "results").exists()
