"""samples/cmd: the commands of its README as they stand, in a copy of the samples folder."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from PIL import Image
from qdq_graph import exact_session

import amct_onnx

SAMPLES = Path(__file__).resolve().parents[2] / "samples"
MODEL = SAMPLES / "resnet-101" / "model" / "resnet-101.onnx"
QAT_MODEL = SAMPLES / "mobilenet_v2" / "model" / "mobilenet_v2_qat.onnx"


def commands(readme: str) -> list[str]:
    """The shell commands of a README, with continued lines joined."""
    blocks = re.findall(
        r"^```shell\n(.*?)^```", (SAMPLES / "cmd" / readme).read_text("utf-8"), re.MULTILINE | re.DOTALL
    )
    return [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """samples/cmd of a copy of the samples folder, without the results of earlier runs."""
    folder = tmp_path_factory.mktemp("copy") / "samples"
    shutil.copytree(SAMPLES, folder, ignore=shutil.ignore_patterns("output*", "amct_log", "__pycache__", "calibration"))
    return folder / "cmd"


def run(sample: Path, command: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    environment = {**os.environ, "PATH": path}
    return subprocess.run(
        command, shell=True, cwd=sample, env=environment, capture_output=True, text=True, check=False, timeout=300
    )


def check_saved(result: subprocess.CompletedProcess[str], prefix: str) -> None:
    assert result.returncode == 0, result.stderr
    assert result.stderr.splitlines()[-2:] == [
        f"INFO - [AMCT]:[Utils]: The model file is saved in {prefix}_{kind}_model.onnx"
        for kind in ("deploy", "fake_quant")
    ]


def test_both_readmes_have_the_same_commands() -> None:
    assert len(commands("README.md")) == 4
    assert commands("README.md") == commands("README_zh.md")


@pytest.mark.slow
def test_the_commands_for_calibration(sample: Path) -> None:
    process, with_data, with_script, _ = commands("README.md")
    result = run(sample, process)
    assert result.returncode == 0, result.stderr
    batch = np.fromfile(sample / "data" / "calibration" / "calibration.bin", np.float32).reshape(16, 3, 224, 224)
    check_saved(run(sample, with_data), "./output/resnet-101")
    check_saved(run(sample, with_script), "./output/resnet-101_evaluator")
    output = sample / "output"
    for kind in ("deploy", "fake_quant"):  # one batch, two ways
        model = (output / f"resnet-101_{kind}_model.onnx").read_bytes()
        assert (output / f"resnet-101_evaluator_{kind}_model.onnx").read_bytes() == model
    reference = ort.InferenceSession(MODEL).run(None, {"input": batch})[0]
    for session in (
        ort.InferenceSession(output / "resnet-101_fake_quant_model.onnx"),
        amct_onnx.deployed_session(output / "resnet-101_deploy_model.onnx"),
    ):
        scores = session.run(None, {"input": batch})[0]
        np.testing.assert_array_equal(scores.argmax(1), reference.argmax(1))
    left = {path.name for path in sample.iterdir()}
    assert left == {"README.md", "README_zh.md", "src", "data", "output", "amct_log"}


def test_the_command_for_conversion(sample: Path) -> None:
    check_saved(run(sample, commands("README.md")[3]), "./output/mobilenet_v2")
    original = exact_session(QAT_MODEL)
    digits = sorted((QAT_MODEL.parents[1] / "data" / "qat").glob("*.png"))
    pixels = np.stack([np.asarray(Image.open(digit).convert("RGB"), np.float32).transpose(2, 0, 1) for digit in digits])
    feeds = {original.get_inputs()[0].name: (pixels / 255 - 0.45) / np.float32(0.225)}
    expected = original.run(None, feeds)[0].argmax(1)
    assert set(expected) == set(range(10))
    for session in (
        ort.InferenceSession(sample / "output" / "mobilenet_v2_fake_quant_model.onnx"),
        amct_onnx.deployed_session(sample / "output" / "mobilenet_v2_deploy_model.onnx"),
    ):
        np.testing.assert_array_equal(session.run(None, feeds)[0].argmax(1), expected)


@pytest.mark.parametrize(
    ("options", "text"),
    [("--batch_size 0", "--batch_size must be between 1 and 160"), ("--images nowhere", "image directory not found")],
)
def test_a_mistake_in_processing_data_is_one_line(sample: Path, options: str, text: str) -> None:
    result = run(sample, f"python ./src/process_data.py {options}")
    assert result.returncode == 1
    assert result.stderr.startswith(f"[ERROR] {text}")
    assert len(result.stderr.splitlines()) == 1


def test_the_options_of_process_data(sample: Path) -> None:
    images = sample.parent / "resnet-101" / "data" / "images"
    few = sample / "few"
    few.mkdir()
    for name in (images / "image_label.txt").read_text().splitlines()[1:3]:
        shutil.copy(images / name.split()[0], few)
        with (few / "image_label.txt").open("a") as labels:
            labels.write(f"{name}\n")
    result = run(sample, "python ./src/process_data.py --images few --batch_size 2 --output few/made/two.bin")
    assert result.returncode == 0, result.stderr
    two = np.fromfile(few / "made" / "two.bin", np.float32).reshape(2, 3, 224, 224)
    all_of_them = run(sample, "python ./src/process_data.py --batch_size 3 --output few/three.bin")
    assert all_of_them.returncode == 0
    three = np.fromfile(few / "three.bin", np.float32).reshape(3, 3, 224, 224)
    np.testing.assert_array_equal(two, three[1:])
    shutil.rmtree(few)
