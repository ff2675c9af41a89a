"""The small networks of `make hard`: the committed files are what their scores say, and their measures are right."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from json import loads
from math import sqrt
from pathlib import Path

import detection
import hard
import hard_steps
import hard_tasks
import network_data
import numpy as np
import onnxruntime as ort
import pytest
from detection import Boxes
from hard_tasks import HARD, SCORES
from measures import resampled_counts
from tasks import JUDGE

import amct_onnx

SHARED = {"mobilenetv3", "efficientnet", "convnext"}  # networks whose samples are in the shared data
NAMES = [pytest.param(name, id=name) for name in HARD]


@pytest.fixture
def samples_of(test_data: Callable[..., Path]) -> Callable[[str], None]:
    """Skips the test where the samples of that network are not there."""

    def check(name: str) -> None:
        if name in SHARED:
            test_data("images")

    return check


def boxes(random: np.random.Generator, count: int) -> Boxes:
    low = random.integers(0, 6, (count, 2))
    corners = np.concatenate([low, low + random.integers(2, 5, (count, 2))], axis=1).astype(float)
    return Boxes(corners=corners, classes=random.integers(0, 3, count), scores=random.permutation(count) / 20)


@pytest.mark.parametrize("name", NAMES)
def test_a_committed_network_is_small_and_reaches_its_score(samples_of: Callable[[str], None], name: str) -> None:
    """Of a share of right answers over n test samples, three standard errors are allowed."""
    samples_of(name)
    stated = loads(SCORES.read_text(encoding="utf-8"))[name]
    assert HARD[name].case.model.stat().st_size < 1e6
    measure, score, items = hard_tasks.float_score(name, 60)
    share = stated["float"] / 100
    assert measure == stated["measure"]
    assert score >= stated["float"] - 300 * sqrt(share * (1 - share) / items)
    assert stated["items"] >= 200


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_network_is_quantized_with_default(samples_of: Callable[[str], None], tmp_path: Path, name: str) -> None:
    samples_of(name)
    task = HARD[name]
    saved = amct_onnx.quantize(str(task.case.model), task.calibration(24)).save(str(tmp_path / "model"))
    sessions = [ort.InferenceSession(str(path)) for path in (task.case.model, saved.files[0])]
    tally = task.tally()
    for feed, truth in task.test(16):
        tally.add(*(session.run(None, feed)[0] for session in sessions), truth)
    figures = tally.figures()
    assert figures[JUDGE].value > 3
    assert next(iter(figures.values())).value > 15


def test_calibration_and_test_share_no_digit() -> None:
    images = [network_data.digits(part)[0].reshape(-1, 64) for part in ("train", "test")]
    # A handful of the images of scikit-learn are there twice.
    both = {image.tobytes() for image in images[0]} & {image.tobytes() for image in images[1]}
    assert len(images[0]) + len(images[1]) == 1797
    assert len(both) <= 2


@pytest.mark.parametrize("name", ["detector", "crnn", "graph"])
def test_samplings_differ_and_are_the_same_each_time(name: str) -> None:
    task = HARD[name]
    once, again, other = (replace(task, sampling=k).calibration(3) for k in (0, 0, 1))
    for key, array in once.items():
        np.testing.assert_array_equal(array, again[key])
        assert not np.array_equal(array, other[key])


def test_average_precision_is_that_of_the_benchmark_of_real_detectors() -> None:
    """That one reads precision at 101 recalls, this one takes the area; a resample is the repeated pictures."""
    random = np.random.default_rng(4)
    truth = [boxes(random, 4) for _ in range(30)]
    found = [boxes(random, 12) for _ in range(30)]
    tally = hard_tasks.Detected()
    for mine, theirs in zip(found, truth, strict=True):
        output = np.zeros((1, 14, len(mine.classes)))
        output[0, :2] = (mine.corners[:, :2] + mine.corners[:, 2:]).T / 2
        output[0, 2:4] = (mine.corners[:, 2:] - mine.corners[:, :2]).T
        output[0, 4 + mine.classes, np.arange(len(mine.classes))] = mine.scores
        tally.add(output, output, theirs)
    figure = tally.own()["mAP50-95"]
    kept = [hard_tasks.decode(tally_output) for tally_output in _outputs(found)]
    assert figure.value == pytest.approx(detection.mean_average_precision(kept, truth), abs=1.5)
    counts = resampled_counts(30, 2)
    repeated = [[part[k] for k in np.repeat(np.arange(30), counts[1].astype(int))] for part in (kept, truth)]
    assert figure.of(counts, *figure.items)[1] == pytest.approx(detection.mean_average_precision(*repeated), abs=1.5)


def _outputs(found: list[Boxes]) -> list[np.ndarray]:
    outputs = []
    for mine in found:
        output = np.zeros((14, len(mine.classes)))
        output[:2] = (mine.corners[:, :2] + mine.corners[:, 2:]).T / 2
        output[2:4] = (mine.corners[:, 2:] - mine.corners[:, :2]).T
        output[4 + mine.classes, np.arange(len(mine.classes))] = mine.scores
        outputs.append(output)
    return outputs


def test_the_judge_of_a_detector_weighs_boxes_and_scores_alike() -> None:
    """Scores that are off by a tenth, boxes that are exact: half of a hundredth is the mean noise over signal."""
    exact = np.concatenate([np.full((1, 4, 5), 50.0), np.full((1, 10, 5), 0.5)], axis=1)
    got = exact.copy()
    got[:, 4:] *= 1.1
    tally = hard_tasks.Detected()
    for _ in range(2):
        tally.add(exact, got, boxes(np.random.default_rng(0), 1))
    figures = tally.figures()
    assert figures["scores"].value == pytest.approx(20)
    assert figures[JUDGE].value == pytest.approx(20 + 10 * np.log10(2))
    assert figures["dB"].value > 45


def test_steps_are_tested_with_the_models_that_they_made(samples_of: Callable[[str], None]) -> None:
    """The last of the models that a recipe takes for the best is the one that is written."""
    task = HARD["graph"]
    test = hard_steps.Test.of(task, 8)
    result, figures, found = hard_steps.quantized(task, test, "default", 24)
    steps = list(hard_steps.kept_steps(result.steps, found))
    assert found
    assert found[-1][JUDGE].value == pytest.approx(figures[JUDGE].value)
    assert len(steps) == sum(
        step.kept and step.after is not None and "all data" not in step.name for step in result.steps
    )


def test_a_line_is_read_as_ctc_says() -> None:
    """Repetitions are one digit, unless a blank is between them."""
    steps = [0, 3, 3, 0, 3, 1, 1, 0]
    assert hard_tasks.read(np.eye(11)[steps]) == [2, 2, 0]


@pytest.mark.slow
def test_quick_run_compares_default_with_all_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("AMCT_PEERS", raising=False)
    hard.main(["--quick", "--nets", "graph", "--peers", "onnxruntime"])
    out = capsys.readouterr().out
    assert "graph: 8 calibration samples, 6 test items" in out
    for other in ("amct_onnx, fast", "AMCT's recipe, IFMR + ARQ", "onnxruntime, min-max Q/DQ per channel"):
        assert re.search(rf"\n{re.escape(other)} +[+-]\d+\.\d\d \[", out), out
    assert "amct_onnx ascend, default, minus" in out


@pytest.mark.slow
def test_quick_run_tests_the_steps_of_several_samplings(capsys: pytest.CaptureFixture[str]) -> None:
    hard.main(["--quick", "--nets", "graph", "--samplings", "2", "--efforts", "default"])
    assert re.search(r"\nsteps kept: \d+; behind", capsys.readouterr().out)
