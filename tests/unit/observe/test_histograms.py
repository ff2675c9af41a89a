"""`collect_statistics`: the histograms of tensors that plain ONNX Runtime gives are the oracle."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import onnxruntime as ort
import pytest
from flow import build, normal, two_convs
from half import to_half
from opsets import newest_opset

from amct_onnx.errors import CalibrationError, DataError, ModelError
from amct_onnx.numerics.statistics import accumulator
from amct_onnx.numerics.statistics.histogram import DyadicHistogram
from amct_onnx.observe import histograms as collect
from amct_onnx.observe import operators as observer_op
from amct_onnx.observe.histograms import collect_statistics
from amct_onnx.run import session as opening
from amct_onnx.run.threads import AHEAD

CPU = ["CPUExecutionProvider"]
NAMES = ["y", "x", "r", "a"]


@pytest.fixture(params=["compiled", "compiled operator", "compiled accumulator", "python"], autouse=True)
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test runs with operators and counting in C, with one of them, and with Python alone."""
    if request.param != "python" and (observer_op.compiled is None or accumulator.compiled is None):
        if os.environ.get("CI") == "true":
            pytest.fail("the C extensions were not built, and CI has a compiler")
        pytest.skip("the C extensions were not built")
    if request.param in ("compiled accumulator", "python"):
        monkeypatch.setattr(observer_op, "compiled", None)
    if request.param in ("compiled operator", "python"):
        monkeypatch.setattr(accumulator, "compiled", None)


def expect(model: onnx.ModelProto, names: list[str], feeds: list[dict[str, np.ndarray]]) -> dict[str, DyadicHistogram]:
    """Every tensor as an output of plain ONNX Runtime, in a histogram of its own."""
    copy = onnx.shape_inference.infer_shapes(model)
    found = {value.name: value for value in (*copy.graph.value_info, *copy.graph.output)}
    inputs = {value.name for value in copy.graph.input}
    del copy.graph.output[:]
    copy.graph.output.extend(found[name] for name in names if name not in inputs)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    session = ort.InferenceSession(copy.SerializeToString(), options, providers=CPU)
    result = dict.fromkeys(names, DyadicHistogram.empty())
    for feed in feeds:
        outputs = dict(zip([o.name for o in session.get_outputs()], session.run(None, feed), strict=True)) | feed
        result = {name: histogram.merge(DyadicHistogram.of(outputs[name])) for name, histogram in result.items()}
    return result


def images(*shapes: tuple[int, int]) -> list[dict[str, np.ndarray]]:
    """Feeds of 1, 2, ... images of these sizes, each with a range of its own."""
    return [{"x": normal(i, i + 1, 3, *shape, scale=i + 0.5)} for i, shape in enumerate(shapes)]


def test_inputs_outputs_and_tensors_between_in_batches_of_any_shape() -> None:
    model, feeds = two_convs(), images((8, 8), (5, 9), (1, 1), (30, 30))
    got = collect_statistics(ir.from_proto(model), NAMES, feeds)
    assert list(got) == NAMES
    want = expect(model, NAMES, feeds)
    assert got["x"] == want["x"]
    for name in NAMES:  # fusions round differently
        assert got[name].total == want[name].total
        np.testing.assert_allclose(got[name].minimum, want[name].minimum, rtol=1e-5)
        np.testing.assert_allclose(got[name].maximum, want[name].maximum, rtol=1e-5)


def test_exact_arithmetic_gives_exact_histograms() -> None:
    """Integers in float32: whatever ONNX Runtime fuses, each tensor has one value."""
    rng = np.random.default_rng(0)
    w = [rng.integers(-4, 5, shape).astype(np.float32) for shape in ((24, 3, 3, 3), (24, 24, 1, 1), (24, 1, 3, 3))]
    model = build(
        """g (float[N,3,H,W] x) => (float[N,24,A,B] y) {
            a = Conv <kernel_shape=[3,3]> (x, w0) b = Relu (a) c = Conv <kernel_shape=[1,1]> (b, w1)
            d = Conv <kernel_shape=[3,3], pads=[1,1,1,1], group=24> (c, w2) e = Add (b, d) y = Relu (e) }""",
        w0=w[0],
        w1=w[1],
        w2=w[2],
    )
    names = ["x", "b", "c", "e", "y"]
    feeds = [{"x": rng.integers(-9, 10, (2, 3, 9, 7)).astype(np.float32)} for _ in range(5)]
    assert collect_statistics(ir.from_proto(model), names, feeds) == expect(model, names, feeds)


def test_the_cut_into_batches_does_not_matter() -> None:
    model, x = ir.from_proto(two_convs()), normal(0, 12, 3, 6, 6)
    results = [
        collect_statistics(model, ["x", "r"], [{"x": part} for part in np.split(x, parts)]) for parts in (1, 2, 12)
    ]
    assert results[0]["x"] == results[1]["x"] == results[2]["x"]
    assert {result["r"].total for result in results} == {12 * 4 * 36}


@pytest.mark.parametrize("threads", [1, 2, 3, 9])
def test_the_number_of_threads_does_not_matter(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, feeds = ir.from_proto(two_convs()), images(*[(9, 9)] * 7)
    want = collect_statistics(model, NAMES, feeds)
    monkeypatch.setattr(collect, "processors", lambda: threads)
    assert collect_statistics(model, NAMES, feeds) == want


def test_every_batch_runs_once_and_few_are_read_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[int] = []
    run = collect.run_feed
    monkeypatch.setattr(collect, "run_feed", lambda *args, **texts: (runs.append(1), run(*args, **texts)))
    done, ahead = [0], []

    def feeds() -> Iterator[dict[str, np.ndarray]]:
        for i, feed in enumerate(images(*[(3, 3)] * 40)):
            ahead.append(i - done[-1])
            yield feed

    collect_statistics(ir.from_proto(two_convs()), ["r"], feeds(), progress=done.append)
    assert done == list(range(41))
    assert len(runs) == 40
    assert max(ahead) <= collect.MOST_WORKERS + AHEAD


def test_tensors_of_a_model_with_a_function_and_a_subgraph() -> None:
    model = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["" : 17, "own" : 1]>
        g (float[N] x, bool c) => (float[N] y) {
            d = own.double (x)
            b = If (c) <then_branch = t () => (float[N] p) { p = Add (d, d) },
                        else_branch = e () => (float[N] q) { q = Neg (d) }>
            y = Relu (b)
        }
        <domain: "own", opset_import: ["" : 17]> double (v) => (w) { w = Add (v, v) }""")
    x = np.array([1, -2, 3], np.float32)
    feeds = [{"x": x, "c": np.array(True)}, {"x": x, "c": np.array(False)}]
    got = collect_statistics(ir.from_proto(model), ["d", "b", "y"], feeds)
    assert got["d"] == DyadicHistogram.of(np.concatenate([2 * x, 2 * x]))
    assert got["b"] == DyadicHistogram.of(np.concatenate([4 * x, -2 * x]))
    assert got["y"] == DyadicHistogram.of(np.maximum(np.concatenate([4 * x, -2 * x]), 0))


def test_no_tensor_needs_no_batch() -> None:
    assert collect_statistics(ir.from_proto(two_convs()), [], []) == {}


def test_the_model_is_left_as_it_is() -> None:
    model = ir.from_proto(two_convs())
    before = ir.to_proto(model).SerializeToString()
    collect_statistics(model, NAMES, images((4, 4)))
    assert ir.to_proto(model).SerializeToString() == before


def test_float16_and_tensors_of_no_declared_type() -> None:
    model = ir.from_proto(to_half(two_convs()))
    feed = {"x": normal(0, 1, 3, 8, 8).astype(np.float16)}
    got = collect_statistics(model, ["x", "a"], [feed])
    assert got["x"] == DyadicHistogram.of(feed["x"])
    assert got["a"].total == 4 * 64


def test_only_what_is_needed_runs() -> None:
    """The node behind the last observed tensor would fail."""
    model = build("g (float[N] x, int64[M] i) => (float[M] y) { r = Relu (x) y = Gather (r, i) }")
    feed = {"x": np.ones(3, np.float32), "i": np.array([7])}
    assert collect_statistics(ir.from_proto(model), ["r"], [feed])["r"].maximum == 1.0


@pytest.mark.skipif(newest_opset() < 23, reason="ONNX Runtime has no Attention")
def test_an_operator_keeps_outputs_that_it_wants() -> None:
    """The kernel of Attention fails where it has the keys of former tokens and gives none for the next one."""
    body = """g (float[1,2,3,4] q, float[1,2,5,4] past) => (float[1,2,3,4] y, float[1,2,8,4] k, float[1,2,8,4] v) {
        y, k, v = Attention (q, q, q, , past, past)
    }"""
    model, batch = build(body, opset=23), {"q": normal(1, 1, 2, 3, 4), "past": normal(2, 1, 2, 5, 4)}
    found = collect_statistics(ir.from_proto(model), ["y"], [batch])
    exact = ort.InferenceSession(model.SerializeToString(), providers=CPU).run(["y"], batch)[0]
    assert found["y"].minimum == exact.min()
    assert found["y"].maximum == exact.max()


def test_progress_counts_batches() -> None:
    seen: list[int] = []
    collect_statistics(ir.from_proto(two_convs()), ["r"], iter(images((4, 4), (5, 5), (6, 6))), progress=seen.append)
    assert seen == [1, 2, 3]


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (2, 0, 1, 3), (3, 2, 1, 0)])
def test_a_tensor_without_elements_counts_nothing(order: tuple[int, ...]) -> None:
    feeds = images((4, 4), (5, 3), (4, 4), (2, 2))
    feeds[2]["x"] = feeds[2]["x"][:0]
    model = ir.from_proto(two_convs())
    full = collect_statistics(model, ["x", "r"], [feed for feed in feeds if feed["x"].size])
    assert collect_statistics(model, ["x", "r"], [feeds[index] for index in order]) == full
    nothing = collect_statistics(model, ["x", "r"], feeds[2:3])
    assert nothing == {"x": DyadicHistogram.empty(), "r": DyadicHistogram.empty()}


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_tensor_with_nan_or_inf_has_no_histogram_and_others_have(
    value: float, caplog: pytest.LogCaptureFixture
) -> None:
    """Batches run side by side, and the last one is the first to be ready: the log names the first wrong one."""
    model = build("g (float[N,3] x, float[N,3] t) => (float[N,3] y) { r = Relu (x) s = Sigmoid (t) y = Add (r, s) }")
    feeds = [{"x": normal(k, n, 3), "t": normal(k + 9, n, 3)} for k, n in enumerate((900, 700, 500, 1, 1))]
    clean = collect_statistics(ir.from_proto(model), ["x", "s"], feeds)
    for feed in feeds[1:]:
        feed["x"][-1, 0] = value
    with caplog.at_level(logging.INFO, logger="amct_onnx"):
        got = collect_statistics(ir.from_proto(model), ["x", "s"], feeds)
    assert got == {"x": DyadicHistogram.not_finite(), "s": clean["s"]}
    assert [record.getMessage() for record in caplog.records] == [
        "Tensor x of batch 2: the tensor holds NaN or Inf: check the model and the calibration data"
    ]


def test_a_batch_that_is_refused_is_named() -> None:
    feeds = [*images((4, 4)), {"x": np.ones((1, 2, 4, 4), np.float32)}]
    with pytest.raises(DataError, match=r"Batch 2: .*INVALID_ARGUMENT"):
        collect_statistics(ir.from_proto(two_convs()), ["r"], feeds)


def test_no_batch_at_all() -> None:
    with pytest.raises(DataError, match="no calibration data"):
        collect_statistics(ir.from_proto(two_convs()), ["r"], [])


def test_unknown_and_integer_tensors_are_refused() -> None:
    with pytest.raises(ModelError, match="no tensor nowhere"):
        collect_statistics(ir.from_proto(two_convs()), ["r", "nowhere"], images((4, 4)))
    model = build("g (float[N] x) => (int64[M] s) { s = Shape (x) }")
    with pytest.raises(ModelError, match="s is of type INT64"):
        collect_statistics(ir.from_proto(model), ["s"], [{"x": np.ones(1, np.float32)}])


def test_a_model_that_cannot_be_opened() -> None:
    model = build("g (float[N] x) => (float[N] y) { y = Nonsense (x) }")
    with pytest.raises(CalibrationError, match=r"cannot run the model for calibration: .*Nonsense"):
        collect_statistics(ir.from_proto(model), ["y"], [{"x": np.ones(1, np.float32)}])


def test_a_large_model_goes_through_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    onnx.save(two_convs(), tmp_path / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    model = ir.load(tmp_path / "m.onnx")
    inline = collect_statistics(model, NAMES, images((8, 8)))
    monkeypatch.setattr(opening, "MAX_INLINE_BYTES", 10)
    assert collect_statistics(model, NAMES, images((8, 8))) == inline


def test_errors_of_the_data_source_pass() -> None:
    def feeds() -> Iterator[dict[str, np.ndarray]]:
        yield from images((4, 4))
        raise DataError("the file is gone")

    with pytest.raises(DataError, match="the file is gone"):
        collect_statistics(ir.from_proto(two_convs()), ["r"], feeds())


def test_ctrl_c_ends_the_collection() -> None:
    def feeds() -> Iterator[dict[str, np.ndarray]]:
        for feed in images(*[(4, 4)] * 1000):
            yield feed
            signal.raise_signal(signal.SIGINT)

    done: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        collect_statistics(ir.from_proto(two_convs()), ["r"], feeds(), progress=done.append)
    assert len(done) < 100
