"""Latencies of two sessions that take turns."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest
from flow import CPU, build, normal

from amct_onnx.measure import latency
from amct_onnx.measure.latency import NOISE, Latency, _quartiles, measure_latency


def session(products: int) -> ort.InferenceSession:
    nodes = " ".join(f"t{i + 1} = MatMul (t{i}, w)" for i in range(products)).replace("t0,", "x,")
    text = f"g (float[64,64] x) => (float[64,64] t{products}) {{ {nodes} }}"
    return ort.InferenceSession(build(text, w=normal(0, 64, 64, scale=0.1)).SerializeToString(), providers=CPU)


@pytest.fixture
def feed() -> dict[str, np.ndarray]:
    return {"x": normal(1, 64, 64)}


def test_the_slower_session_is_told(feed: dict[str, np.ndarray]) -> None:
    short, long = session(2), session(60)
    assert measure_latency(short, long, feed, budget=0.05).slower
    found = measure_latency(long, short, feed, budget=0.05)
    assert not found.slower
    assert found.speedup > 2


def test_at_least_five_runs_and_more_within_the_budget(feed: dict[str, np.ndarray]) -> None:
    assert measure_latency(session(1), session(1), feed, budget=0).runs == 5
    assert measure_latency(session(1), session(1), feed, budget=0.1).runs > 5


def test_a_model_that_takes_long_runs_less_often(feed: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "LONG_RUN", 1e-7)
    assert measure_latency(session(1), session(1), feed, budget=0).runs == 1


def test_differences_within_noise_are_none() -> None:
    assert not Latency(before=1.0, after=1.0 + NOISE / 2, runs=5).slower
    assert Latency(before=1.0, after=1.0 + 2 * NOISE, runs=5).slower
    assert Latency(before=3.0, after=1.5, runs=5).speedup == 2.0


@pytest.mark.parametrize(
    ("low", "high", "busy"), [(1.3, 1.5, False), (0.9, 1.4, False), (0.9, 1.6, True), (0.95, 3.79, True)]
)
def test_a_busy_machine_measures_nothing(low: float, high: float, busy: bool) -> None:
    found = Latency(before=1.0, after=1.1, runs=9, low=low, high=high)
    assert found.too_busy == busy
    assert found.slower != busy


def test_what_is_slower_in_most_turns_is_so_on_a_busy_machine_too() -> None:
    assert Latency(before=1.0, after=2.0, runs=9, low=0.3, high=0.7).slower


def test_few_turns_tell_no_spread() -> None:
    found = Latency(before=1.0, after=2.0, runs=3)
    assert not found.too_busy
    assert found.slower


def test_the_spread_is_that_of_the_turns() -> None:
    assert _quartiles([1.0, 2.0, 3.0, 4.0, 5.0]) == (2.0, 3.0, 4.0)
    assert _quartiles([1.0, 2.0, 3.0, 4.0]) == (None, None, None)
    assert Latency(before=3.0, after=1.5, runs=5, low=2.0, middle=3.0, high=4.0).speedup == 3.0
