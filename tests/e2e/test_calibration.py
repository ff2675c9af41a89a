"""Calibration inside the user's own sessions: how batches come, who runs them, and what they hold."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from flow import CPU, Flow, build, everything_below, feeds, images, normal, operators, prepared, two_convs

import amct_onnx as amct
from amct_onnx.errors import RecordError

LEVELS = ("ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_EXTENDED", "ORT_ENABLE_ALL")


def record_of(folder: Path, *batches: np.ndarray) -> bytes:
    """The record of one session that sees these batches."""
    return prepared(folder, len(batches)).calibrate({"x": x} for x in batches).record_bytes()


# Batches


def test_batches_may_differ_in_size(tmp_path: Path) -> None:
    batches = [images(0, count=1), images(1, count=5, size=9), images(2, count=2, size=4)]
    flow = prepared(tmp_path, 3).calibrate({"x": x} for x in batches).save()
    low = min(x.min() for x in batches)
    record = flow.records()["conv1"]
    # IFMR never moves the lower bound: it is the zero point's distance from -128.
    assert record.scale_d is not None
    assert record.offset_d == round(-float(low) / record.scale_d) - 128


def test_the_record_is_complete_right_after_the_last_batch(tmp_path: Path) -> None:
    flow = prepared(tmp_path, 2)
    session = flow.session()
    session.run(None, feeds(0)[0])
    assert all(record.scale_d is None for record in flow.records().values())
    session.run(None, feeds(1)[0])
    assert all(record.scale_d is not None for record in flow.records().values())
    complete = flow.record_bytes()
    flow.save()
    assert flow.record_bytes() == complete


def test_more_batches_than_batch_num_are_ignored(tmp_path: Path) -> None:
    few = record_of(tmp_path / "few", images(0), images(1))
    flow = prepared(tmp_path / "many", 2).calibrate([*feeds(0, 1), {"x": 100 * images(2)}])
    flow.calibrate([{"x": 100 * images(3)}])
    assert flow.record_bytes() == few
    flow.save()
    assert flow.record_bytes() == few


@pytest.mark.parametrize("algorithm", ["ifmr_quantize", "hfmg_quantize"])
def test_only_the_samples_count_and_not_their_batches(tmp_path: Path, algorithm: str) -> None:
    samples = images(0, count=8)
    records = []
    for batch_num in (1, 2, 4, 8):
        folder = tmp_path / str(batch_num)
        folder.mkdir()
        (folder / "quant.cfg").write_text(f"batch_num : {batch_num}\ncommon_config : {{ {algorithm} : {{ }} }}")
        flow = Flow.of(two_convs(), folder).configure(config_defination=str(folder / "quant.cfg")).quantize()
        flow.calibrate({"x": part} for part in np.split(samples, batch_num))
        assert set(operators(flow.modified)) >= {algorithm.split("_", maxsplit=1)[0].upper()}
        records.append(flow.record_bytes())
    # Convolutions may round differently for another batch size, so the second layer agrees to rounding only.
    assert len({record.split(b"record {")[1] for record in records}) == 1
    scales = [Flow("", tmp_path / str(n)).records()["conv2"].scale_d or 0 for n in (1, 2, 4, 8)]
    np.testing.assert_allclose(scales, scales[0], rtol=1e-6)


def test_the_order_of_batches_does_not_matter(tmp_path: Path) -> None:
    x = [images(0), 3 * images(1), 0.1 * images(2)]
    assert record_of(tmp_path / "a", *x) == record_of(tmp_path / "b", *reversed(x))


# Sessions, threads, processes


def test_several_sessions_one_after_another(tmp_path: Path) -> None:
    flow = prepared(tmp_path / "several", 3)
    for batch in feeds(0, 1, 2):
        flow.calibrate([batch])
    assert flow.record_bytes() == record_of(tmp_path / "one", images(0), images(1), images(2))


@pytest.mark.parametrize("shared", [True, False], ids=["one session", "a session each"])
def test_batches_in_threads_give_the_same_record(tmp_path: Path, shared: bool) -> None:
    x = [images(seed) for seed in range(12)]
    flow = prepared(tmp_path / "threads", len(x))
    sessions = [flow.session()] * len(x) if shared else [flow.session() for _ in x]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda pair: pair[0].run(None, {"x": pair[1]}), zip(sessions, x, strict=True)))
    assert flow.record_bytes() == record_of(tmp_path / "sequential", *x)


def run_process(script: str, folder: Path) -> None:
    head = "import numpy as np, onnxruntime as ort, amct_onnx as amct\n"
    result = subprocess.run(
        [sys.executable, "-c", head + script], cwd=folder, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr


RUN = """
session = ort.InferenceSession("modified.onnx", amct.AMCT_SO)
for path in {paths}:
    session.run(None, {{"x": np.load(path)}})
"""


def save_batches(folder: Path, seeds: Sequence[int]) -> list[str]:
    for seed in seeds:
        np.save(folder / f"{seed}.npy", images(seed))
    return [f"{seed}.npy" for seed in seeds]


def test_each_step_may_have_its_own_process(tmp_path: Path) -> None:
    flow = Flow.of(two_convs(), tmp_path / "steps")
    paths = save_batches(flow.folder, [0, 1])
    run_process('amct.create_quant_config("config.json", "float.onnx", batch_num=2)', flow.folder)
    run_process('amct.quantize_model("config.json", "float.onnx", "modified.onnx", "record.txt")', flow.folder)
    run_process(RUN.format(paths=paths), flow.folder)
    run_process('amct.save_model("modified.onnx", "record.txt", "model")', flow.folder)
    here = prepared(tmp_path / "here", 2).calibrate(feeds(0, 1)).save()
    assert flow.record_bytes() == here.record_bytes()
    x = {"x": images(5)}
    np.testing.assert_array_equal(flow.run_deploy(x), here.run_deploy(x))
    assert Path(flow.deploy).read_bytes() == Path(here.deploy).read_bytes()


# Too few batches


WAITING = (
    r"cannot find scale_d of layer conv1 in record_file, please check data calibration process! "
    r"{seen} of {needed} batches have run for .*record\.txt; waiting for {more} more: conv1, conv2\. "
    r"All {needed} batches must run in one process\.$"
)


@pytest.mark.parametrize("seen", [0, 1, 2])
def test_save_model_names_the_waiting_layers_and_how_many_batches(tmp_path: Path, seen: int) -> None:
    flow = prepared(tmp_path, 3).calibrate(feeds(*range(seen)))
    with pytest.raises(RecordError, match=WAITING.format(seen=seen, needed=3, more=3 - seen)):
        flow.save()
    assert not {"model_deploy_model.onnx", "model_fake_quant_model.onnx"} & set(everything_below(tmp_path))
    flow.calibrate(feeds(*range(seen, 3))).save()  # and the missing batches complete it
    assert flow.record_bytes() == record_of(tmp_path / "whole", *(images(seed) for seed in range(3)))


def test_another_process_knows_how_many_batches_are_missing(tmp_path: Path) -> None:
    flow = prepared(tmp_path, 3)
    run_process(RUN.format(paths=save_batches(tmp_path, [0, 1])), tmp_path)
    with pytest.raises(RecordError, match=WAITING.format(seen=2, needed=3, more=1)):
        flow.save()


def test_batches_of_two_processes_do_not_add_up_silently(tmp_path: Path) -> None:
    flow = prepared(tmp_path, 3)
    run_process(RUN.format(paths=save_batches(tmp_path, [0, 1])), tmp_path)
    flow.calibrate(feeds(2))
    with pytest.raises(RecordError, match=WAITING.format(seen=1, needed=3, more=2)):
        flow.save()


def test_only_layers_that_are_quantized_are_waited_for(tmp_path: Path) -> None:
    flow = prepared(tmp_path, skip_layers=["conv1"])
    with pytest.raises(RecordError, match="waiting for 1 more: conv2"):
        flow.save()


# The same every time


def test_repetition_gives_the_same_bytes(tmp_path: Path) -> None:
    """File names of another run appear in the calibration model only: the results depend on the model and the data."""
    outputs = []
    for name in ("a", "b"):
        flow = prepared(tmp_path / name, 2).calibrate(feeds(0, 1)).save()
        outputs.append([Path(p).read_bytes() for p in (flow.record, flow.deploy, flow.fake_quant)])
    assert outputs[0] == outputs[1]


def options(level: str, threads: int) -> ort.SessionOptions:
    """AMCT_SO as a user changes it; the shared object stays as it is for the other tests."""
    from amct_onnx.observe.operators import session_options

    chosen = session_options()
    chosen.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
    chosen.intra_op_num_threads = threads
    return chosen


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_of_the_runtime_do_not_change_the_record(tmp_path: Path, threads: int) -> None:
    flow = prepared(tmp_path / "threads", 2)
    flow.options = options("ORT_ENABLE_ALL", threads)
    flow.calibrate(feeds(0, 1))
    assert flow.record_bytes() == record_of(tmp_path / "plain", images(0), images(1))


BRANCHES = """g (float[N,8,H,W] x) => (float[N,8,H,W] y, float[N,4] z) {
    [c1] a = Conv <kernel_shape=[3,3], pads=[1,1,1,1]> (x, w, b)
    [relu] r = Relu (a)
    [c2] c = Conv (r, v)
    [c3] d = Conv (r, v)
    [add] s = Add (c, d)
    [clip] e = Relu (s)
    [c4] y = Conv (e, v)
    [pool] p = AveragePool <kernel_shape=[2,2]> (e)
    [mean] g = GlobalAveragePool (p)
    [flat] f = Flatten (g)
    [fc] z = Gemm (f, m)
}"""


@pytest.mark.parametrize("level", LEVELS)
def test_every_observer_fires_once_a_batch_at_every_optimization_level(tmp_path: Path, level: str) -> None:
    """Nobody reads an observer's output; that ONNX Runtime runs it all the same is a habit and no promise."""
    model = build(
        BRANCHES,
        w=normal(1, 8, 8, 3, 3, scale=0.2),
        b=normal(2, 8),
        v=normal(3, 8, 8, 1, 1, scale=0.3),
        m=normal(4, 8, 4),
    )
    flow = Flow.of(model, tmp_path).configure(batch_num=2).quantize()
    assert operators(flow.modified).count("IFMR") == 4  # tensors x, r, e and f, of which c4 and the pool read e
    flow.options = options(level, 2)
    flow.calibrate([{"x": normal(5, 2, 8, 6, 6)}])
    with pytest.raises(RecordError, match="1 of 2 batches have run"):
        flow.save()
    flow.calibrate([{"x": normal(6, 2, 8, 6, 6)}]).save()
    assert all(record.scale_d is not None for record in flow.records().values())


@pytest.mark.parametrize("level", LEVELS)
def test_optimization_levels_agree_on_the_model_input_to_the_bit_and_on_the_rest_to_rounding(
    tmp_path: Path, level: str
) -> None:
    flow = prepared(tmp_path / "level", 2)
    flow.options = options(level, 1)
    got = flow.calibrate(feeds(0, 1)).records()
    plain = prepared(tmp_path / "plain", 2).calibrate(feeds(0, 1)).records()
    assert got["conv1"] == plain["conv1"]
    np.testing.assert_allclose(got["conv2"].scale_d or 0, plain["conv2"].scale_d or 0, rtol=1e-5)


# Starting over


def test_quantize_model_again_starts_afresh(tmp_path: Path) -> None:
    flow = prepared(tmp_path / "twice", 2).calibrate([{"x": 50 * images(9)}])
    flow.quantize().calibrate(feeds(0, 1)).save()
    assert flow.record_bytes() == record_of(tmp_path / "once", images(0), images(1))


def test_a_second_calibration_after_a_finished_one(tmp_path: Path) -> None:
    flow = prepared(tmp_path / "twice").calibrate([{"x": 50 * images(9)}]).save()
    flow.quantize().calibrate(feeds(0)).save()
    assert flow.record_bytes() == record_of(tmp_path / "once", images(0))


def two_models(folder: Path) -> tuple[Flow, Flow]:
    """Two models with the same weights and other biases, quantized one after another into one record file."""
    first = prepared(folder)
    model = two_convs()
    bias = next(tensor for tensor in model.graph.initializer if tensor.name == "b1")
    bias.CopyFrom(onnx.numpy_helper.from_array(normal(9, 4), "b1"))
    onnx.save(model, folder / "second.onnx")
    second = Flow(str(folder / "second.onnx"), folder, prefix="second")
    amct.quantize_model(first.config, second.model, str(folder / "second_modified.onnx"), first.record)
    return first, second


def test_the_model_of_an_earlier_call_does_not_fill_the_record_of_a_later_one(tmp_path: Path) -> None:
    first, second = two_models(tmp_path)
    first.calibrate(feeds(0))
    modified = str(tmp_path / "second_modified.onnx")
    with pytest.raises(RuntimeError, match=r"record\.txt was begun by another quantize_model call"):
        amct.save_model(modified, first.record, str(tmp_path / "second"))
    assert all(record.scale_d is None for record in first.records().values())
    ort.InferenceSession(modified, amct.AMCT_SO, providers=CPU).run(None, feeds(0)[0])  # and the right one does
    amct.save_model(modified, first.record, str(tmp_path / "second"))
    with pytest.raises(RecordError, match="belongs to another quantize_model call than"):
        first.save()
    assert second.run_deploy(feeds(0)[0]).any()


def test_two_models_calibrate_side_by_side(tmp_path: Path) -> None:
    flows = [prepared(tmp_path / name, 2) for name in ("a", "b")]
    sessions = [flow.session() for flow in flows]
    for batch in feeds(0, 1):
        for factor, session in zip((1, 7), sessions, strict=True):
            session.run(None, {"x": np.float32(factor) * batch["x"]})
    assert flows[0].record_bytes() == record_of(tmp_path / "c", images(0), images(1))
    assert flows[1].record_bytes() == record_of(tmp_path / "d", 7 * images(0), 7 * images(1))


def test_the_calibration_model_computes_what_the_float_model_does_but_for_its_weights(tmp_path: Path) -> None:
    """Observers are side branches: with all weights on the grid already, the outputs are the same to the bit."""
    grid = np.random.default_rng(0).integers(-127, 128, (4, 3, 1, 1)).astype(np.float32)
    grid[:, 0] = 127
    model = build("g (float[N,3,H,W] x) => (float[N,4,H,W] y) { [conv] y = Conv (x, w) }", w=grid)
    flow = Flow.of(model, tmp_path).configure().quantize()
    got = ort.InferenceSession(flow.modified, amct.AMCT_SO, providers=CPU).run(None, {"x": images(0)})[0]
    np.testing.assert_array_equal(got, flow.run_float({"x": images(0)}))


@pytest.mark.parametrize(("value", "told"), [(0.0, "is zero in all batches"), (0.5, "is constant, 0.5, in all")])
def test_data_that_calibrate_nothing_are_told_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, value: float, told: str
) -> None:
    flow = Flow.of(two_convs(), tmp_path).configure().quantize()
    flow.calibrate([{"x": np.full((2, 3, 6, 6), value, np.float32)}])
    assert [r.getMessage() for r in caplog.records if told in r.getMessage() and "conv1" in r.getMessage()]
