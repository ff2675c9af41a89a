"""Whole networks keep the laws of `network_laws`, whatever they look like; `make laws` tries thousands of them."""

from __future__ import annotations

import tempfile
from pathlib import Path

import onnx
import pytest
from examples import examples
from flow import build, normal
from hypothesis import HealthCheck, given, settings
from network_laws import TARGETS, Trial, check, kind_of, trials
from networks import Network, networks

SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large]


@settings(max_examples=examples(200), derandomize=True, suppress_health_check=SLOW)
@given(networks(), trials())
def test_a_network_keeps_the_laws(network: Network, trial: Trial) -> None:
    with tempfile.TemporaryDirectory() as folder:
        check(network, trial, Path(folder))


@settings(max_examples=examples(100), derandomize=True, suppress_health_check=SLOW)
@given(networks())
def test_networks_are_valid(network: Network) -> None:
    onnx.checker.check_model(network.plain, full_check=True)
    assert [value.name for value in network.model.graph.input if value.name in network.feeds[0]] == [*network.feeds[0]]


@pytest.mark.parametrize("target", TARGETS)
def test_a_wrong_result_breaks_the_laws(target: str, tmp_path: Path) -> None:
    """Such as a model that computes something else than the plain form of the network."""
    model = build("g (float[2,4] x) => (float[2,4] y) { y = MatMul(x, w) }", w=normal(1, 4, 4))
    other = build("g (float[2,4] x) => (float[2,4] y) { y = MatMul(x, w) }", w=normal(2, 4, 4))
    feeds = tuple({"x": normal(seed, 2, 4)} for seed in range(4))
    folders = [tmp_path / "right", tmp_path / "wrong"]
    for folder in folders:
        folder.mkdir()
    right, wrong = (Network(model=model, plain=plain, feeds=feeds, batches=False) for plain in (model, other))
    assert check(right, Trial(target=target), folders[0]) == "quantized"
    with pytest.raises(AssertionError, match="dB from float"):
        check(wrong, Trial(target=target), folders[1])


def test_kinds_do_without_names_and_numbers() -> None:
    one, two = (ValueError(f"Tensor {name} of batch {n}: is empty") for name, n in (("x1", 1), ("слой:0", 22)))
    assert kind_of(one) == kind_of(two)
