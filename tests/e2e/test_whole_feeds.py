"""Networks whose first axis is no batch: a graph, a sequence with its lengths, a decoder with a cache, a batch inside.

Each goes through the call and the command, for all targets. One feed is one sample of them, for the recipe, for limits,
for the effects of layers and for the report, and the user is told so.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from flow import build, normal, sqnr

import amct_onnx
from amct_onnx.ptq.options import TARGET_NAMES

Feed = dict[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Network:
    """A model and a maker of feeds; each is of a size of its own, and one more than that of the number before."""

    model: onnx.ModelProto
    feed: Callable[[int], Feed]
    reason: str

    def feeds(self, count: int = 16) -> list[Feed]:
        return [self.feed(number) for number in range(count)]


def pick(seed: int, most: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, most, shape)


# Messages go along the edges, and each node adds up what it gets.
GRAPH = build(
    """g (float[N,6] nodes, int64[2,E] edges) => (float[N,5] y) {
        [lift] a = Gemm (nodes, w1, b1)
        r = Relu (a)
        from = Gather<axis=0> (edges, zero)
        to = Gather<axis=0> (edges, one)
        m = Gather<axis=0> (r, from)
        [message] h = MatMul (m, w2)
        to2 = Unsqueeze (to, last)
        hs = Shape (h)
        place = Expand (to2, hs)
        rs = Shape (r)
        none = ConstantOfShape (rs)
        sum = ScatterElements<axis=0, reduction="add"> (none, place, h)
        s = Add (sum, r)
        [head] y = Gemm (s, w3, b3) }""",
    w1=normal(1, 6, 8, scale=0.4),
    b1=normal(2, 8),
    w2=normal(3, 8, 8, scale=0.3),
    w3=normal(4, 8, 5, scale=0.3),
    b3=normal(5, 5),
    zero=np.int64(0),
    one=np.int64(1),
    last=np.array([-1]),
)
RECOGNISER = build(
    """g (float[T,N,6] x, int32[N] lengths) => (float[T,N,5] y) {
        [stem] a = MatMul (x, w1)
        r = Relu (a)
        h, last, c = LSTM<hidden_size=8> (r, w, u, b, lengths)
        s = Squeeze (h, one)
        [head] y = MatMul (s, w2) }""",
    w1=normal(1, 6, 8, scale=0.4),
    w=normal(2, 1, 32, 8, scale=0.3),
    u=normal(3, 1, 32, 8, scale=0.3),
    b=normal(4, 1, 64, scale=0.1),
    one=np.array([1]),
    w2=normal(5, 8, 5, scale=0.4),
)
# The cache holds keys and values on axis 0, and the batch on axis 1; at the first step it is empty.
DECODER = build(
    """g (int64[B,S] ids, float[2,B,P,8] past) => (float[B,S,10] logits, float[2,B,Q,8] present) {
        e = Gather (table, ids)
        [key] k = MatMul (e, w1)
        [value] v = MatMul (e, w2)
        k1 = Unsqueeze (k, zero)
        v1 = Unsqueeze (v, zero)
        new = Concat<axis=0> (k1, v1)
        present = Concat<axis=2> (past, new)
        keys, values = Split<axis=0> (present)
        keys1 = Squeeze (keys, zero)
        values1 = Squeeze (values, zero)
        kt = Transpose<perm=[0,2,1]> (keys1)
        scores = MatMul (e, kt)
        p = Softmax<axis=-1> (scores)
        o = MatMul (p, values1)
        t = Add (o, e)
        [head] logits = MatMul (t, w3) }""",
    table=normal(1, 20, 8),
    w1=normal(2, 8, 8, scale=0.3),
    w2=normal(3, 8, 8, scale=0.3),
    w3=normal(4, 8, 10, scale=0.3),
    zero=np.array([0]),
)
# Its inputs leave the batch open, and a Reshape holds that of the export.
INSIDE = build(
    """g (float[N,3,4,4] x) => (float[M,5] y) {
        [stem] c = Conv (x, k)
        r = Relu (c)
        f = Reshape (r, shape)
        [head] y = MatMul (f, w) }""",
    k=normal(1, 4, 3, 3, 3, scale=0.3),
    shape=np.array([2, 16]),
    w=normal(2, 16, 5, scale=0.3),
)
# Its output is that of the whole batch.
POOLED = build(
    """g (float[N,6] x) => (float[1,5] y) {
        [stem] a = Gemm (x, w1, b)
        r = Relu (a)
        m = ReduceMax<axes=[0]> (r)
        [head] y = MatMul (m, w2) }""",
    w1=normal(1, 6, 8, scale=0.4),
    b=normal(2, 8),
    w2=normal(3, 8, 5, scale=0.3),
)
ONE_BY_ONE = "the network does not take the rows of axis 0 one by one"
NETWORKS = {
    "graph": Network(
        model=GRAPH,
        feed=lambda n: {"nodes": normal(n, 4 + n, 6), "edges": pick(n, 4 + n, 2, 9)},
        reason=ONE_BY_ONE,
    ),
    "graph without edges at first": Network(
        model=GRAPH,
        feed=lambda n: {"nodes": normal(n, 4 + n, 6), "edges": pick(n, 4 + n, 2, 9 if n > 1 else 0)},
        reason=ONE_BY_ONE,
    ),
    "recogniser": Network(
        model=RECOGNISER,
        feed=lambda n: {"x": normal(n, 5 + n, 1, 6), "lengths": np.array([5 + n], np.int32)},
        reason=ONE_BY_ONE,
    ),
    "recogniser of several": Network(
        model=RECOGNISER,
        feed=lambda n: {"x": normal(n, 4 + n, 4, 6), "lengths": np.array([4 + n, 1, 2, 3], np.int32)},
        reason=ONE_BY_ONE,
    ),
    "decoder": Network(
        model=DECODER,
        feed=lambda n: {"ids": pick(n, 20, 2, 5 if n % 4 == 0 else 1), "past": normal(n, 2, 2, n % 4 * 3, 8)},
        reason=ONE_BY_ONE,
    ),
    "decoder of one": Network(
        model=DECODER,
        feed=lambda n: {"ids": pick(n, 20, 1, 6), "past": np.zeros((2, 1, 0, 8), np.float32)},
        reason="output 'present' is not made row by row",
    ),
    "batch inside": Network(model=INSIDE, feed=lambda n: {"x": normal(n, 2, 3, 4, 4)}, reason=ONE_BY_ONE),
    "pooled": Network(
        model=POOLED, feed=lambda n: {"x": normal(n, 3 + n, 6)}, reason="output 'y' is not made row by row"
    ),
}


def signal_over_noise(model: onnx.ModelProto, files: Sequence[str], feed: Feed) -> float:
    """Of the first output of the quantized model in `files`, in dB."""
    deployed = next((file for file in files if file.endswith("deploy_model.onnx")), None)
    if deployed is not None:
        session = amct_onnx.deployed_session(deployed)
    else:
        options = ort.SessionOptions()
        options.add_session_config_entry("session.x64quantprecision", "1")
        session = ort.InferenceSession(files[0], options)
    return sqnr(ort.InferenceSession(model.SerializeToString()).run(None, feed)[0], session.run(None, feed)[0])


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("target", TARGET_NAMES)
def test_one_feed_is_one_sample_of_the_call(tmp_path: Path, name: str, target: str) -> None:
    network = NETWORKS[name]
    result = amct_onnx.quantize(network.model, network.feeds(), target=target)
    assert result.data is not None
    assert (result.data.samples, result.data.feeds, result.data.whole) == (16, 16, network.reason)
    assert str(result.data) == f"16 feeds, each one sample as a whole, since {network.reason}"
    assert f"each feed is one sample, since {network.reason}" in result.assumptions
    assert result.statistics.samples == 16
    assert result.sample is not None
    assert {key: array.tolist() for key, array in result.sample.items()} == {
        key: array.tolist() for key, array in network.feed(0).items()
    }
    assert {decision.layer for decision in result.decisions if decision.quantized} >= {"head"}
    saved = result.save(tmp_path / "m")
    assert (saved.report is not None and saved.report.latency is not None) == (target == "onnxruntime")
    assert signal_over_noise(network.model, saved.files, network.feed(3)) > 20


@pytest.mark.parametrize("name", ["graph", "pooled"])
def test_weights_alone(tmp_path: Path, name: str) -> None:
    network = NETWORKS[name]
    result = amct_onnx.quantize(network.model, network.feeds(), weight_only=8, block_size=16)
    assert result.data is not None
    assert (result.data.samples, result.data.whole) == (16, network.reason)
    saved = result.save(tmp_path / "m")
    assert saved.report is not None
    assert saved.report.latency is not None


@pytest.mark.parametrize("name", NETWORKS)
def test_the_steps_of_the_recipe_are_measured(name: str) -> None:
    network = NETWORKS[name]
    result = amct_onnx.quantize(network.model, network.feeds(), effort="best")
    assert result.steps
    assert all(step.after is not None for step in result.steps)


@pytest.mark.parametrize("name", NETWORKS)
def test_limits_and_samples_are_counted_in_feeds(name: str) -> None:
    network = NETWORKS[name]
    result = amct_onnx.quantize(network.model, network.feeds(), limit=5, effort="fast")
    assert result.data is not None
    assert result.data.samples == result.data.feeds == 5
    effects = amct_onnx.sensitivity(network.model, network.feeds(), samples=3)
    assert effects.samples == 3
    assert all(np.isfinite(layer.effect) for layer in effects.layers)
    searched = amct_onnx.quantize(network.model, network.feeds(), min_sqnr=15)
    assert searched.precision is not None
    assert searched.precision.result.value >= 15
    assert searched.precision.met or "NOT met for certain" in str(searched.precision)  # four samples are held out
    assert searched.data is not None
    assert searched.data.feeds == 12  # a quarter judges
    assert "4 of 16 samples judge, and do not calibrate" in searched.assumptions


def command(folder: Path, *words: str) -> str:
    """What the command tells."""
    line = [sys.executable, "-m", "amct_onnx", *words]
    done = subprocess.run(line, check=False, cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("name", ["graph", "recogniser", "decoder"])
def test_the_command_for_all_targets(tmp_path: Path, name: str) -> None:
    network = NETWORKS[name]
    onnx.save(network.model, tmp_path / "model.onnx")
    (tmp_path / "data").mkdir()
    for number, feed in enumerate(network.feeds()):
        np.savez(tmp_path / "data" / f"{number:02}.npz", **feed)  # type: ignore[arg-type]
    targets = ("--target", ",".join(TARGET_NAMES))
    told = command(tmp_path, "quantize", "model.onnx", "--data", "data", "--save_path", "out", *targets)
    assert f"16 feeds, each one sample as a whole, since {network.reason}" in told
    assert re.search("rounding(: | by gptq).*(not tried|dB)", told, re.IGNORECASE)
    for target in TARGET_NAMES:
        files = [str(tmp_path / ("out_deploy_model.onnx" if target == "ascend" else f"out_{target}.onnx"))]
        assert signal_over_noise(network.model, files, network.feed(3)) > 20
    if name == "graph":
        told = command(tmp_path, "sensitivity", "model.onnx", "--data", "data")
        assert "layers together" in " ".join(told.split())


@pytest.mark.parametrize("size", [1, 2, 3, 4, 6, 32])
@pytest.mark.parametrize("form", ["array", "batches", "larger batches", "samples"])
def test_a_batch_inside_is_found(size: int, form: str) -> None:
    """The shapes leave the batch open, and the network takes batches of one size."""
    model = build(
        "g (float[N,6] x) => (float[M,2,5] y) { a = MatMul (x, w1) s = Reshape (a, shape) [head] y = MatMul (s, w2) }",
        w1=normal(1, 6, 8, scale=0.4),
        shape=np.array([size, 2, 4]),
        w2=normal(2, 4, 5, scale=0.4),
    )
    x = normal(3, 8 * size, 6)
    data: Any = {
        "array": x,
        "batches": np.split(x, 8),
        "larger batches": np.split(x, 4),
        "samples": list(x),
    }[form]
    result = amct_onnx.quantize(model, data)
    assert result.data is not None
    assert result.data.feeds == 8
    assert result.data.samples == (8 if result.data.whole else 8 * size)
    assert any(np.isfinite(step.before) for step in result.steps)
    assert result.sample is not None
    assert result.sample["x"].shape == (size, 6)


def test_a_fixed_batch_cuts_an_array() -> None:
    model = build("g (float[4,6] x) => (float[4,5] y) { y = MatMul (x, w) }", w=normal(1, 6, 5, scale=0.4))
    x = normal(2, 30, 6)
    for data in (x, list(x), np.split(x[:28], 7), x[:28].reshape(7, 4, 6)):
        result = amct_onnx.quantize(model, data)
        assert str(result.data) == "28 samples along axis 0 of the inputs, in 7 feeds"


@pytest.mark.parametrize("target", TARGET_NAMES)
def test_samples_along_axis_0_are_told_of_as_well(target: str) -> None:
    model = build("g (float[N,6] x) => (float[N,5] y) { y = MatMul (x, w) }", w=normal(1, 6, 5, scale=0.4))
    result = amct_onnx.quantize(model, [normal(number, 5, 6) for number in range(6)], target=target)
    assert str(result.data) == "30 samples along axis 0 of the inputs, in 6 feeds"
    assert amct_onnx.quantize(model, result.statistics).data is None


def test_a_network_that_ends_in_a_plugin_of_the_target_is_calibrated(tmp_path: Path) -> None:
    """ONNX Runtime does not know it, and nothing that is quantized needs it."""
    model = build(
        """g (float[N,6] x) => (float[N,5] y) { a = MatMul (x, w) y = plugins.Select (a) }""",
        w=normal(1, 6, 5, scale=0.4),
    )
    model.opset_import.append(onnx.helper.make_opsetid("plugins", 1))
    result = amct_onnx.quantize(model, normal(2, 40, 6), target="tensorrt", effort="fast")
    assert str(result.data) == "40 samples along axis 0 of the inputs, in 2 feeds"
    assert "plugins" in {node.domain for node in onnx.load(result.save(tmp_path / "m").files[0]).graph.node}
