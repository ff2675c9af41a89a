"""The advice of a report: computed from the run, and not the same for each."""

from __future__ import annotations

import numpy as np
import pytest
from flow import build, images, normal, two_convs

import amct_onnx
from amct_onnx.report.gather import gather
from amct_onnx.report.run_data import Advice, RunData


def run(**how: object) -> RunData:
    return gather(amct_onnx.quantize(two_convs(), images(0, int(str(how.pop("count", 64)))), **how))  # type: ignore[arg-type]


def of(found: RunData, kind: str) -> list[Advice]:
    return [advice for advice in found.advice if advice.kind == kind]


def noisy(**how: object) -> RunData:
    """A network whose first layer makes one channel hundreds of times as large as the others, on whose grid they are
    lost: both that layer and the one that reads it have to be in float to mend that."""
    first = normal(1, 8, 3, 1, 1)
    first[0] *= 300
    second = normal(2, 4, 8, 1, 1)
    second[:, 0] /= 300
    model = build(
        """g (float[N,3,6,6] x) => (float[N,4,6,6] y) {
            [wide] a = Conv (x, w) [mid] b = Conv (a, v) [more] c = Conv (b, u) [last] y = Conv (c, t) }""",
        w=first, v=second, u=normal(3, 4, 4, 1, 1), t=normal(4, 4, 4, 1, 1),
    )  # fmt: skip
    return gather(amct_onnx.quantize(model, images(0, 64), effort="fast", **how))  # type: ignore[arg-type]


def test_the_layer_that_hurts_is_named_with_what_it_brings() -> None:
    found = noisy()
    worst = max(found.layers, key=lambda layer: layer.share or 0)
    assert worst.name == "wide"
    first = of(found, "float")[0]
    assert first.gain is not None
    assert first.gain > 3
    assert first.layers == ("wide", "mid")
    assert first.option == '--skip_layers "wide;mid"'
    assert first.argument == "skip_layers=['wide', 'mid']"
    assert first.cost is not None
    assert first.cost > 0


def test_layers_that_are_skipped_already_stay_so() -> None:
    found = noisy(skip_layers=["last"])
    assert of(found, "float")[0].option.startswith('--skip_layers "last;')


def test_what_was_promised_comes_true() -> None:
    before = noisy()
    advice = of(before, "float")[0]
    after = noisy(skip_layers=list(advice.layers))
    assert before.accuracy.sqnr is not None
    assert after.accuracy.sqnr is not None
    assert advice.gain is not None
    assert after.accuracy.sqnr - before.accuracy.sqnr == pytest.approx(advice.gain, abs=0.5)


def test_more_effort_is_advised_until_there_is_none() -> None:
    assert [advice.option for advice in of(run(effort="fast"), "effort")] == ["--effort default"]
    noise = noisy()
    assert of(noise, "effort")[0].argument == 'effort="default"'
    assert of(noise, "effort")[1].option.startswith("--min_sqnr")
    assert of(run(effort="best", count=16), "effort") == []


def test_few_samples_are_said_so() -> None:
    assert of(run(effort="fast"), "data") == []
    (advice,) = of(run(effort="fast", count=5), "data")
    assert advice.why.startswith("5 calibrated, and 32 or more are advised")


def test_a_sample_that_is_much_worse_than_others_is_named() -> None:
    data = images(0, 64)
    other = data.copy()
    other[3] *= 5  # which no range reaches
    found = gather(
        amct_onnx.quantize(two_convs(), data, effort="fast"), samples=[{"x": other[i : i + 1]} for i in range(6)]
    )
    assert [advice.title for advice in of(found, "data")] == ["Add data like sample 4"]


def test_tensors_that_are_cut_off_are_named() -> None:
    data = images(0, 64)
    found = gather(
        amct_onnx.quantize(two_convs(), data, algorithm=amct_onnx.Percentile(percentile=0.95), effort="fast")
    )
    cut = [advice for advice in of(found, "data") if advice.title == "Look at what is cut off"]
    assert len(cut) == 1
    assert float(np.abs(data).max()) > max(found.tensors["x"].clip or (0, 0))


def test_near_to_float_nothing_has_to_be_done() -> None:
    found = run(effort="fast")
    assert found.accuracy.sqnr is not None
    assert found.accuracy.sqnr > 30
    assert found.advice[0].kind == "done"
    assert "done" not in [advice.kind for advice in noisy().advice]
