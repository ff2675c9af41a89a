"""`make accuracy`: its measures against brute force and known cases, and a quick run on a real model."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import accuracy
import detection
import effort
import jobs
import measures
import numpy as np
import onnx_ir as ir
import peers
import pytest
import tasks
from accuracy_report import Row, beside_peers
from beside_peers import Entry
from coverage import Coverage, quantized_layers
from detection import Boxes
from flow import build
from hypothesis import given
from hypothesis import strategies as st
from measures import Figure, paired_difference

values = st.lists(st.integers(-5, 5), min_size=2, max_size=30)


def boxes(*rows: tuple[float, float, float, float, int, float]) -> Boxes:
    table = np.array(rows, float).reshape(-1, 6)
    return Boxes(corners=table[:, :4], classes=table[:, 4].astype(int), scores=table[:, 5])


def samples(feed: tasks.Feed) -> list[bytes]:
    """What each sample of a batch consists of."""
    return [b"".join(array[k].tobytes() for array in feed.values()) for k in range(len(next(iter(feed.values()))))]


@given(values)
def test_ranks_are_means_over_equal_values(numbers: list[int]) -> None:
    expected = [sum(o < n for o in numbers) + (sum(o == n for o in numbers) - 1) / 2 for n in numbers]
    once = np.ones((1, len(numbers)))
    np.testing.assert_allclose(measures.ranks(once, np.array(numbers)), [expected])


@given(values)
def test_spearman_sees_order_only(numbers: list[int]) -> None:
    array, once = np.array(numbers, float), np.ones((1, len(numbers)))
    if len(set(numbers)) > 1:
        assert measures.spearman(once, array, np.exp(array)) == pytest.approx(1)
        assert measures.spearman(once, array, -(array**3)) == pytest.approx(-1)
    else:
        assert measures.spearman(once, array, array) == 0


@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(0, 3), st.integers(0, 2)), min_size=1, max_size=20))
def test_a_figure_of_counted_items_is_that_of_the_repeated_items(rows: list[tuple[int, int, int]]) -> None:
    """An item with the count 2 is the same as two such items."""
    first, second, counts = np.array([*rows, (0, 1, 1)], float).T
    repeated = [np.repeat(array, counts.astype(int)) for array in (first, second)]
    once = np.ones((1, len(repeated[0])))
    for of, many in ((measures.spearman, 2), (measures.average, 1), (measures.percentage, 1)):
        expected = of(once, *repeated[:many])
        np.testing.assert_allclose(of(counts[None], *(first, second)[:many]), expected, atol=1e-12)
    powers = (np.square(first) + 1, second)
    np.testing.assert_allclose(
        measures.decibel(counts[None], *powers),
        measures.decibel(once, *(np.repeat(array, counts.astype(int)) for array in powers)),
    )


def test_resamples_draw_as_many_items_as_there_are_each_as_likely() -> None:
    drawn = measures.resampled_counts(50, 400)
    assert (drawn.sum(axis=1) == 50).all()
    np.testing.assert_allclose(drawn.mean(axis=0), 1, atol=6 / np.sqrt(400))
    # Of a binomial with n = 50 and p = 1 / 50.
    assert drawn.var() == pytest.approx(49 / 50, rel=0.1)


def test_interval_is_that_of_the_normal_approximation() -> None:
    random = np.random.default_rng(3)
    first, second = random.random(2000) < 0.8, random.random(2000) < 0.7
    figures = [Figure(of=measures.percentage, items=(hits,)) for hits in (first, second)]
    found = paired_difference(*figures)
    spread = 196 * np.std(first.astype(float) - second) / np.sqrt(2000)
    assert found.value == pytest.approx(100 * (first.mean() - second.mean()))
    assert found.high - found.value == pytest.approx(spread, rel=0.15)
    assert found.value - found.low == pytest.approx(spread, rel=0.15)
    assert not found.is_noise
    assert found == paired_difference(*figures)


def test_a_constant_difference_has_no_width_because_samples_are_paired() -> None:
    noisy = np.random.default_rng(1).normal(size=50)
    figures = [Figure(of=measures.average, items=(noisy + shift,)) for shift in (1.0, 0.0)]
    found = paired_difference(*figures, resamples=50)
    assert (found.low, found.high) == (pytest.approx(1), pytest.approx(1))
    assert paired_difference(figures[0], figures[0], resamples=50).is_noise


def test_yolox_output_becomes_the_boxes_that_it_was_made_of() -> None:
    """A 416 pixel input has 52 * 52 + 26 * 26 + 13 * 13 cells; the second cell of the last grid's third row is set."""
    output = np.zeros((3549, 85))
    output[52 * 52 + 26 * 26 + 2 * 13 + 1] = [0.5, 0.25, np.log(2), np.log(3), 0.9, *([0.1] * 7), 0.8, *([0.1] * 72)]
    found = detection.decode(output, 416)
    np.testing.assert_allclose(found.corners, [[48 - 32, 72 - 48, 48 + 32, 72 + 48]])
    assert found.classes.tolist() == [7]
    np.testing.assert_allclose(found.scores, [0.72])


def test_suppression_is_by_class_and_keeps_the_best() -> None:
    corners = np.array([[0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 9], [20, 0, 30, 10]], float)
    assert detection.suppress(corners, np.array([1, 1, 2, 1])).tolist() == [0, 2, 3]


def test_average_precision_of_known_cases() -> None:
    truth = [boxes((0, 0, 10, 10, 1, 1), (20, 20, 30, 30, 1, 1)), boxes((0, 0, 10, 10, 2, 1))]
    score = detection.mean_average_precision
    assert score(truth, truth) == pytest.approx(100)
    assert score([boxes(), boxes()], truth) == 0
    # Class 1: one of two, so 51 of 101 recalls have precision 1. Class 2: a better wrong box halves the precision.
    found = [boxes((0, 0, 10, 10, 1, 0.9)), boxes((50, 50, 60, 60, 2, 0.9), (0, 0, 10, 10, 2, 0.5))]
    assert score(found, truth) == pytest.approx(100 * (51 / 101 + 1 / 2) / 2)
    # An IoU of 0.72 passes 5 of 10 thresholds; a second box on the same object is wrong.
    loose = [boxes((0, 0, 10, 7.2, 2, 0.9), (0, 0, 10, 7.2, 2, 0.8))]
    assert score(loose, truth[1:]) == pytest.approx(50)


@pytest.mark.parametrize("name", tasks.TASKS)
def test_calibration_and_test_share_no_sample(test_data: Callable[..., Path], tmp_path: Path, name: str) -> None:
    test_data("images")
    test_data("text")
    task = tasks.TASKS[name]
    path = tmp_path / f"calibration{task.suffix}"
    count = task.write_calibration(path, 30)
    feeds = list(jobs.Feeds(path, next(iter(next(task.test(1))[0]))))
    assert 20 < len(feeds) == count <= 30
    tested = [feed for feed, _ in task.test(20)]
    assert tested[0].keys() == feeds[0].keys()
    assert all(tested[0][key].dtype == feeds[0][key].dtype for key in feeds[0])
    seen = {sample for feed in feeds for sample in samples(feed)}
    assert len(seen) > 20
    assert seen.isdisjoint(sample for feed in tested for sample in samples(feed))


def test_layers_are_quantized_whose_input_and_weight_are() -> None:
    """The first MatMul reads integers through a Reshape, the second one's weight is in floats, the third is integer,
    and the input of the fourth has two scales.
    """
    model = build(
        """g (int8[2, 2] a, int8[2, 2] w, float[2, 2] f) => (float[2, 2] y)
            <float s = {0.5}, float[2] t = {1, 2}, int64[2] shape = {2, 2}> {
            da = DequantizeLinear (a, s)
            dw = DequantizeLinear (w, s)
            moved = Reshape (da, shape)
            first = MatMul (moved, dw)
            second = MatMul (da, f)
            third = MatMulInteger (a, w)
            last = Cast <to = 1> (third)
            channels = DequantizeLinear <axis = 1> (a, t)
            fourth = MatMul (channels, dw)
            y = Sum (first, second, last, fourth)
        }"""
    )
    assert quantized_layers(ir.from_proto(model)) == 50
    assert quantized_layers(ir.from_proto(build("g (float[N] x) => (float[N] y) { y = Relu (x) }"))) is None


def test_verdicts_are_beside_the_best_peer_of_like_coverage_and_beside_the_best_of_all() -> None:
    """One has the most of all and few integer kernels, another the most of those with as many as this tool."""
    random = np.random.default_rng(0)
    noise = random.random(400) + 1

    def row(label: str, factor: float, hits: float, kernels: float, layers: float = 50) -> Row:
        figures = {
            "agree": Figure(of=measures.percentage, items=(np.arange(400) < 400 * hits,)),
            "dB": Figure(of=measures.decibel, items=(np.full(400, 100.0), noise / factor)),
        }
        share = Coverage(layers=layers, kernels=kernels)
        entry = Entry(side=peers.OURS, scheme=peers.OURS.schemes[0], python="")
        return Row(entry=entry, label=label, seconds=1, kept=False, coverage=share, figures=figures)

    own = row("own", 2, 0.9, 98, layers=100)
    rivals = [row("narrow", 4, 0.9, 20), row("like", 1, 0.8, 90), row("worse", 0.5, 0.7, 100)]
    lines = list(beside_peers(own, rivals, own.figures, 200))
    assert lines[0].startswith("own - best peer of like coverage, like: dB +3.01 [+3.01, +3.01] ahead")
    assert lines[1].startswith("own - best peer, narrow: dB -3.01 [-3.01, -3.01] behind")
    assert re.fullmatch(r"own - best peer of like coverage, like: agree \+10\.00 \[.*\] ahead", lines[2])
    assert lines[3:] == ["own - best peer, narrow: agree +0.00 [+0.00, +0.00] noise"]
    unfused = row("unfused", 1.5, 0.9, 20, layers=100)
    lines = list(beside_peers(own, [*rivals, unfused], own.figures, 200))
    assert lines[0].startswith("own - best peer of like coverage, unfused: dB +1.25")


@pytest.mark.slow
def test_quick_run_prints_a_row_for_every_side(
    test_data: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    test_data("models", "resnet20_cifar10.onnx")
    monkeypatch.delenv("AMCT_PEERS", raising=False)
    assert accuracy.main(["--quick", "--models", "resnet20", "--peers", "onnxruntime"]) == 0
    out = capsys.readouterr().out
    assert "session.x64quantprecision=1" in out
    table = out[out.index("resnet20: 4 calibration samples, 6 test items") :].splitlines()[1:]
    rows = {cells[0]: cells[1:] for cells in (re.split(r"\s{2,}", line) for line in table)}
    assert [cell for cell in next(iter(rows.values())) if cell] == [
        "top-1",
        "drop",
        "top-5",
        "agree",
        "dB",
        "layers %",
        "int8 %",
        "s",
    ]
    for label, least in (("amct_onnx, default", 90), ("onnxruntime, min-max QOperator", 100)):
        assert float(rows[label][4]) > 10
        assert least <= float(rows[label][5]) <= 100
        assert 90 <= float(rows[label][6]) <= 100
    for label in ("amct_onnx ascend, default", "amct_onnx ascend, AMCT's recipe (IFMR + ARQ)"):
        assert float(rows[label][4]) > 10
    assert "amct_onnx, default: top-1 drops by more than 0.3 beyond the interval: " in out
    assert "amct_onnx, default - best peer of like coverage, onnxruntime" in out
    assert "amct_onnx ascend, default - AMCT's recipe (IFMR + ARQ): dB " in out


def test_missing_data_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tasks, "DATA", tmp_path)
    assert accuracy.main(["--quick"]) == 1
    assert "[ERROR] no such model" in capsys.readouterr().err


def test_both_efforts_are_timed(test_data: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    test_data("models", "kws_dscnn_mlperftiny.onnx")
    assert effort.main(["--models", "kws", "--calibration", "6", "--rounds", "1", "--targets", "ascend"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"\nkws( +\d+\.\d){3} +\d+\.\d\d +\d+\.\d\d-\d+\.\d\d +\d+\.\d\d +\d+\.\d\d\n", printed), printed
