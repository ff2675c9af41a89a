"""samples/mobilenet_v2, conversion of a Q/DQ model, as QAT.md runs it: in a copy, as a process of its own."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx.tools.update_model_dims import update_inputs_outputs_dims

SAMPLE = Path(__file__).resolve().parents[2] / "samples" / "mobilenet_v2"
SCRIPT = "./src/convert_qat_model.py"
KINDS = ("before convert", "fake-quant model", "deploy model")
LAYERS, IMAGES = 53, 40
PERCENT_OF_ONE_IMAGE = 100 / IMAGES
PROBABILITY_TOLERANCE = 0.05  # a few activations fall on the other side of a rounding boundary
RESULTS = {
    "outputs/qat/record.txt",
    "outputs/qat/mobilenet_v2_deploy_model.onnx",
    "outputs/qat/mobilenet_v2_fake_quant_model.onnx",
    "outputs/qat/mobilenet_v2_quant.json",
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


def parse(stdout: str) -> dict[str, tuple[float, int, float]]:
    """Top-1, class and probability by kind of model."""
    pattern = r"\[INFO\] MobileNetV2 QAT (.+?) +top1: +([0-9.]+) %  \S+: category (\d+) prob ([0-9.]+)"
    found = [re.fullmatch(pattern, line) for line in stdout.splitlines()]
    assert all(found), stdout
    return {match[1]: (float(match[2]), int(match[3]), float(match[4])) for match in found if match}


def few_images(folder: Path, count: int) -> None:
    labels = folder / "data" / "qat" / "image_label.txt"
    labels.write_text("".join(line + "\n" for line in labels.read_text().splitlines()[:count]))


def test_all_three_models_say_the_same(sample: Path) -> None:
    before = files_below(sample)
    result = run(sample)
    assert result.returncode == 0, result.stderr
    said = parse(result.stdout)
    assert tuple(said) == KINDS
    original, simulated, deployed = said.values()
    assert original[0] >= 90  # the model and its images belong together
    assert simulated == deployed
    assert abs(original[0] - simulated[0]) <= PERCENT_OF_ONE_IMAGE
    assert original[1] == simulated[1] == 0  # digit_00.png
    assert abs(original[2] - simulated[2]) <= PROBABILITY_TOLERANCE
    after = files_below(sample)
    assert after.keys() - before.keys() == RESULTS
    assert all(after[name] == content for name, content in before.items())
    assert "Not converted" not in result.stderr
    deploy = onnx.load(sample / "outputs/qat/mobilenet_v2_deploy_model.onnx")
    counts = Counter(node.op_type for node in deploy.graph.node)
    assert counts["AscendDequant"] == LAYERS == counts["Conv"] + counts["Gemm"]
    assert not counts.keys() & {"QuantizeLinear", "DequantizeLinear"}


@pytest.mark.parametrize("name", ["QAT.md", "QAT_zh.md"])
def test_the_document_shows_what_the_sample_prints(sample: Path, name: str) -> None:
    """Another processor may round a probability otherwise, and nothing else."""
    shown = re.findall(r"^\[INFO\] MobileNetV2 QAT .*$", (SAMPLE / name).read_text(encoding="utf-8"), re.MULTILINE)
    documented, printed = parse("\n".join(shown)), parse(run(sample).stdout)
    assert documented.keys() == printed.keys()
    for kind, (top1, category, probability) in documented.items():
        assert abs(printed[kind][0] - top1) <= PERCENT_OF_ONE_IMAGE
        assert printed[kind][1] == category
        assert abs(printed[kind][2] - probability) <= PROBABILITY_TOLERANCE


def test_the_options_are_honoured_and_a_fixed_batch_is_filled_up(sample: Path) -> None:
    few_images(sample, 5)
    (sample / "data" / "qat").rename(sample / "pictures")
    model = onnx.load(sample / "model" / "mobilenet_v2_qat.onnx")
    fixed = update_inputs_outputs_dims(model, {"input": [4, 3, 32, 32]}, {"output": [4, 10]})
    onnx.save(fixed, sample / "other.onnx")
    shutil.rmtree(sample / "model")
    result = run(sample, "--model", "other.onnx", "--images", "pictures", "--batch_size", "3")
    assert result.returncode == 0, result.stderr
    assert len(parse(result.stdout)) == 3


def truncate_model(folder: Path) -> list[str]:
    model = folder / "model" / "mobilenet_v2_qat.onnx"
    model.write_bytes(model.read_bytes()[:100_000])
    return []


def large_label(folder: Path) -> list[str]:
    few_images(folder, 3)
    with (folder / "data" / "qat" / "image_label.txt").open("a") as file:
        file.write("digit_03.png 5000\n")
    return []


@pytest.mark.parametrize(
    ("spoil", "parts"),
    [
        (lambda _: ["--model", "nowhere.onnx"], ["model not found: nowhere.onnx", "--model"]),
        (truncate_model, ["mobilenet_v2_qat.onnx", "complete ONNX model"]),
        (lambda _: ["--images", "nowhere"], ["image directory not found: nowhere", "--images"]),
        (lambda _: ["--model", "./model/mobilenet_v2.onnx"], ["convert_qat_model failed", "has no QuantizeLinear"]),
        (large_label, ["image_label.txt:4: label 5000 is out of range", "classes 0 to 9"]),
    ],
    ids=["no model", "truncated model", "no images", "float model", "label out of range"],
)
def test_a_mistake_is_one_line_and_exit_code_1(
    sample: Path, spoil: Callable[[Path], list[str]], parts: list[str]
) -> None:
    result = run(sample, *spoil(sample))
    assert result.returncode == 1
    errors = [line for line in result.stderr.splitlines() if not line.startswith("INFO - ")]
    assert len(errors) == 1, result.stderr
    assert errors[0].startswith("[ERROR] ")
    position = 0
    for part in parts:
        position = errors[0].index(part, position) + len(part)
    assert result.stdout == ""


@pytest.mark.parametrize("options", [["--batch_size", "many"], ["--batch_size", "0"], ["--nonsense"]])
def test_a_wrong_command_line_is_refused_with_the_usage(sample: Path, options: list[str]) -> None:
    result = run(sample, *options)
    assert result.returncode == 2
    assert options[0] in result.stderr.splitlines()[-1]
    assert not (sample / "outputs").exists()
