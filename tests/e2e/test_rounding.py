"""Learned rounding (ada_quantize) as a user's script drives it: configuration, calibration, save_model."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from flow import CPU, Flow, build, check_outputs, feeds, images, normal, two_convs
from refusal import refused

from amct_onnx.amct import adaround as rounding
from amct_onnx.amct.rollback import CalibratedModel, ConfiguredModel
from amct_onnx.amct.save import read_calibrated
from amct_onnx.errors import CalibrationError, ConfigError, ModelError, RecordError
from amct_onnx.files.moments_file import moments_path
from amct_onnx.graph.instrument.observers import Observer
from amct_onnx.numerics.im2col import LayerColumns
from amct_onnx.observe import operators as observer_op
from amct_onnx.observe.collectors import make_collector
from amct_onnx.targets.ascend_model import AscendModel

SUMMARY = re.compile(
    r"(\d+) layers: the output error of rounding to nearest is lowered by ([\d.]+) % "
    r"\(median; least ([\d.]+) %: (\S+), most ([\d.]+) %: (\S+)\)\."
)
# Of the error of rounding to nearest; the layers below leave 1 to 50 %, where the data has correlated inputs.
MOST_ERROR_LEFT = 0.7
QUICK: dict[str, Any] = {"num_iteration": 2000}


def choose(flow: Flow, *layers: str, **options: Any) -> Flow:
    """Give layers of config.json, all by default, the algorithm with these options."""
    settings = json.loads(Path(flow.config).read_text())
    for name, entry in settings.items():
        if isinstance(entry, dict) and "weight_quant_params" in entry and (not layers or name in layers):
            entry["weight_quant_params"] |= {"wts_algo": "ada_quantize", **options}
    Path(flow.config).write_text(json.dumps(settings))
    return flow


def smooth(seed: int, *shape: int) -> np.ndarray:
    """Noise whose neighbours are alike on the last axis, and whose mean is not 0: what layers see of images."""
    x = normal(seed, *shape)
    return np.asarray(x + np.roll(x, 1, -1) + np.roll(x, 2, -1) + 2, np.float32)


def run(flow: Flow, *batches: dict[str, np.ndarray], **options: Any) -> Flow:
    """Everything, with the algorithm on each layer."""
    flow.configure(batch_num=len(batches))
    return choose(flow, **(QUICK | options)).quantize().calibrate(batches).save()


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Callable[[str], list[str]]:
    """Gives the lines of a level that learned rounding has written."""

    def lines(level: str) -> list[str]:
        return [r.getMessage() for r in caplog.records if r.levelname == level and r.name.endswith("AdaRound")]

    return lines


KINDS: dict[str, tuple[str, tuple[int, ...], tuple[int, ...]]] = {
    "conv": ("Conv <pads=[1,1,1,1], strides=[2,1]> (x, w, b)", (4, 4, 9, 9), (6, 4, 3, 3)),
    "grouped": ("Conv <group=2, pads=[1,1,1,1]> (x, w, b)", (4, 8, 8, 8), (6, 4, 3, 3)),
    "depthwise": ("Conv <group=6, dilations=[2,2]> (x, w, b)", (4, 6, 15, 15), (6, 1, 5, 5)),
    "conv_1d": ("Conv <pads=[2,2]> (x, w, b)", (4, 6, 40), (6, 6, 5)),
    "conv_transpose": ("ConvTranspose <strides=[2,2]> (x, w)", (4, 8, 6, 6), (8, 4, 3, 3)),
    "grouped_transpose": ("ConvTranspose <group=2, strides=[2,2], pads=[1,1,1,1]> (x, w)", (4, 8, 6, 6), (8, 3, 3, 3)),
    "gemm": ("Gemm <transB=1, alpha=0.5> (x, w, b)", (300, 40), (6, 40)),
    "gemm_trans_a": ("Gemm <transA=1> (x, w, b)", (40, 300), (40, 6)),
    "matmul": ("MatMul (x, w)", (4, 60, 40), (40, 10)),
    "matmul_3d": ("MatMul (x, w)", (3, 60, 40), (3, 40, 10)),
}


def kind_of_layer(name: str) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """A model of one layer, and a batch."""
    node, x, w = KINDS[name]
    shape = ",".join(map(str, x)) if "transA" in node else ",".join(["N", *map(str, x[1:])])
    rank = max(len(x), len(w))
    body = f"""g (float[{shape}] x) => (float[{",".join(f"D{k}" for k in range(rank))}] y) {{ [layer] y = {node} }}"""
    weights = {"w": normal(1, *w, scale=0.3)} | ({"b": normal(2, 6)} if "b)" in node else {})
    return build(body, **weights), {"x": smooth(5, *x)}


def output_errors(flow: Flow, batch: dict[str, np.ndarray]) -> tuple[float, float]:
    """Squared error of the output of a model of one layer by rounding to nearest and by what was learned."""
    wanted = flow.run_float(batch)
    (nearest,) = flow.session().run(None, batch)
    model = ir.to_proto(read_calibrated(flow.modified, flow.record).model)
    (learned,) = ort.InferenceSession(model.SerializeToString(), providers=CPU).run(None, batch)
    one, other = (float(np.square(y.astype(np.float64) - wanted).sum()) for y in (nearest, learned))
    return one, other


@pytest.mark.parametrize("name", KINDS)
def test_it_beats_rounding_to_nearest_on_every_kind_of_layer(
    tmp_path: Path, name: str, log: Callable[[str], list[str]]
) -> None:
    model, batch = kind_of_layer(name)
    flow = run(Flow.of(model, tmp_path), batch)
    (line,) = log("INFO")
    found = SUMMARY.fullmatch(line)
    nearest, learned = output_errors(flow, batch)  # this learns and tells once more
    assert learned < MOST_ERROR_LEFT * nearest
    assert found is not None
    assert found.group(1, 4, 6) == ("1", "layer", "layer")
    # What the log says is what ONNX Runtime computes; the columns were cut to 10 to 20 bits.
    assert float(found[2]) == pytest.approx(100 * (1 - learned / nearest), abs=0.5)
    check_outputs(flow, batch, {"x": smooth(6, *batch["x"].shape)})
    records = flow.records()["layer"]
    assert records.scale_w
    assert (records.wts_type, records.act_type) == ("INT8", "INT8")


def test_it_helps_on_images_that_it_was_not_calibrated_with(tmp_path: Path) -> None:
    model, batch = kind_of_layer("conv")
    flow = run(Flow.of(model, tmp_path), batch, {"x": smooth(7, *batch["x"].shape)})
    nearest, learned = output_errors(flow, {"x": smooth(8, *batch["x"].shape)})
    assert learned < MOST_ERROR_LEFT * nearest


# Options


def deployed(flow: Flow) -> bytes:
    return Path(flow.deploy).read_bytes()


def wide_model() -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """A layer with so much to choose that any other path of learning ends elsewhere."""
    body = "g (float[N,48,1,1] x) => (float[N,32,1,1] y) { [layer] y = Conv (x, w) }"
    return build(body, w=normal(1, 32, 48, 1, 1)), wide_batch(200)


def wide_batch(count: int) -> dict[str, np.ndarray]:
    return {"x": smooth(2, count, 48)[..., None, None]}


OPTIONS: list[dict[str, Any]] = [
    {"num_iteration": 0},
    {"num_iteration": 400},
    {"reg_param": 0.3},
    {"beta_range": [20, 12]},
    {"beta_range": [6, 2]},
    {"warm_start": 0.7},
]


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> Flow:
    """The wide model with 2000 iterations and defaults."""
    model, batch = wide_model()
    return run(Flow.of(model, tmp_path_factory.mktemp("usual")), batch)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_each_key_of_config_json_matters(tmp_path: Path, usual: Flow, options: dict[str, Any]) -> None:
    model, batch = wide_model()
    other = run(Flow.of(model, tmp_path), batch, **options)
    assert deployed(other) != deployed(usual)


@pytest.mark.parametrize(
    "field",
    [
        "num_iteration : 400",
        "reg_param : 0.3",
        "beta_range_end : 12",
        "beta_range_start : 6",
        "warm_start : 0.7",
        "channel_wise : false",
    ],
)
def test_each_field_of_the_cfg_matters(tmp_path: Path, field: str) -> None:
    results = []
    for more in ("", field):
        model, batch = wide_model()
        flow = Flow.of(model, tmp_path / f"with {len(results)}")
        text = "" if more.startswith("num_iteration") else "num_iteration : 2000"
        cfg = flow.folder / "quant.cfg"
        cfg.write_text(f"batch_num : 1 common_config : {{ ada_quantize : {{ {text} {more} }} }}")
        flow.configure(config_defination=str(cfg)).quantize().calibrate([batch]).save()
        results.append(deployed(flow))
        assert Path(moments_path(flow.record)).exists()
    assert results[0] != results[1]


def test_no_iteration_is_rounding_to_nearest_and_observes_nothing(
    tmp_path: Path, log: Callable[[str], list[str]]
) -> None:
    model, batch = wide_model()
    flow = run(Flow.of(model, tmp_path), batch, num_iteration=0)
    assert not Path(moments_path(flow.record)).exists()
    assert log("INFO") == []
    scale = np.float32(flow.records()["layer"].scale_w).reshape(-1, 1, 1, 1)
    weight = next(onnx.numpy_helper.to_array(t) for t in model.graph.initializer if t.name == "w")
    found = next(t for t in onnx.load(flow.deploy).graph.initializer if len(t.dims) == 4)
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(found), np.clip(np.rint(weight / scale), -128, 127))


def test_layers_without_it_are_as_they_were(tmp_path: Path) -> None:
    body = "g (float[N,48] x) => (float[N,32] z) { [one] y = MatMul (x, w1) [two] z = MatMul (y, w2) }"
    model = build(body, w1=normal(1, 48, 32), w2=normal(2, 32, 32))
    batch = {"x": smooth(3, 100, 48)}
    usual = Flow.of(model, tmp_path / "usual").run(batch)
    mixed = Flow.of(model, tmp_path / "mixed").configure(batch_num=1)
    choose(mixed, "two", **QUICK).quantize().calibrate([batch]).save()
    assert mixed.records()["one"] == usual.records()["one"]
    first, second = (
        [t.raw_data for t in onnx.load(f.deploy).graph.initializer if len(t.dims) == 2] for f in (usual, mixed)
    )
    assert [a == b for a, b in zip(first, second, strict=True)] == [True, False]


def test_the_files_hold_nothing_of_the_float_weights(tmp_path: Path) -> None:
    flow = run(Flow.of(two_convs(), tmp_path), *feeds(0))
    for path in (flow.deploy, flow.fake_quant):
        graph = onnx.load(path).graph
        assert not [n.op_type for n in graph.node if n.op_type in ("Shape", "Moments")]
        assert not [t.name for t in graph.initializer if "float" in t.name]
    usual = Flow.of(two_convs(), tmp_path / "usual").run(*feeds(0))
    assert [n.name for n in onnx.load(flow.deploy).graph.node] == [n.name for n in onnx.load(usual.deploy).graph.node]


def test_fused_shared_and_balanced_layers(tmp_path: Path, log: Callable[[str], list[str]]) -> None:
    """Two convolutions read one tensor, one is fused with its BatchNormalization, the other is balanced."""
    model = build(
        """g (float[N,4,H,W] x) => (float[N,6,H,W] y) {
            [one] a = Conv <pads=[1,1,1,1]> (x, w1)
            [norm] n = BatchNormalization (a, s, o, m, v)
            [two] c = Conv <pads=[1,1,1,1]> (x, w2)
            [sum] y = Add (n, c)
        }""",
        w1=normal(1, 6, 4, 3, 3),
        w2=normal(2, 6, 4, 3, 3),
        s=np.linspace(0.5, 2, 6, dtype=np.float32),
        **{name: np.abs(normal(3 + k, 6)) + np.float32(0.5) for k, name in enumerate("omv")},
    )
    batch = {"x": smooth(9, 3, 4, 9, 9)}
    batch["x"][:, 0] *= 20
    flow = Flow.of(model, tmp_path).configure(batch_num=1)
    settings = json.loads(Path(flow.config).read_text())
    settings["two"]["dmq_balancer_param"] = 0.5
    Path(flow.config).write_text(json.dumps(settings))
    choose(flow, **QUICK).balance([batch]).quantize().calibrate([batch]).save()
    (line,) = log("INFO")
    found = SUMMARY.fullmatch(line)
    assert found is not None
    assert found[1] == "2"
    assert flow.records()["two"].tensor_balance_factor
    nearest, learned = output_errors(flow, batch)
    assert learned < MOST_ERROR_LEFT * nearest
    check_outputs(flow, batch, {"x": smooth(10, 3, 4, 9, 9)})


@pytest.mark.parametrize("bits", [4, 6, 7])
def test_fewer_bits_have_their_own_range(tmp_path: Path, bits: int) -> None:
    model, batch = wide_model()
    flow = run(Flow.of(model, tmp_path), batch, num_bits=bits)
    nearest, learned = output_errors(flow, batch)
    assert learned < MOST_ERROR_LEFT * nearest
    assert flow.records()["layer"].wts_type == f"INT{bits}"
    (found,) = (onnx.numpy_helper.to_array(t) for t in onnx.load(flow.deploy).graph.initializer if len(t.dims) == 4)
    assert -(1 << (bits - 1)) <= found.min()
    assert found.max() < 1 << (bits - 1)


def test_a_float16_model_stays_one(tmp_path: Path) -> None:
    body = "g (float16[N,48,1,1] x) => (float16[N,32,1,1] y) { [layer] y = Conv (x, w) }"
    batch = {"x": wide_batch(200)["x"].astype(np.float16)}
    flow = run(Flow.of(build(body, w=normal(1, 32, 48, 1, 1).astype(np.float16)), tmp_path), batch)
    nearest, learned = output_errors(flow, batch)
    assert learned < MOST_ERROR_LEFT * nearest
    check_outputs(flow, batch, {"x": smooth(6, 20, 48)[..., None, None].astype(np.float16)})


def test_a_search_learns_once_and_uses_that_in_each_trial(tmp_path: Path, log: Callable[[str], list[str]]) -> None:
    body = "g (float[N,48] x) => (float[N,32] z) { [one] y = MatMul (x, w1) [two] z = MatMul (y, w2) }"
    batch = {"x": smooth(3, 100, 48)}
    flow = Flow.of(build(body, w1=normal(1, 48, 32), w2=normal(2, 32, 32)), tmp_path).configure(batch_num=1)
    choose(flow, **QUICK).quantize().calibrate([batch])
    calibrated = CalibratedModel.read(ConfiguredModel.read(flow.model, flow.config), flow.modified, flow.record)
    assert len(log("INFO")) == 1
    Path(moments_path(flow.record)).unlink()  # nobody asks for it again

    def integers(quantized: AscendModel) -> list[bytes]:
        initializers = ir.to_proto(quantized.deploy()).graph.initializer
        return [t.raw_data for t in initializers if t.data_type == onnx.TensorProto.INT8]

    first, second = integers(calibrated.quantized)
    assert integers(calibrated.without({"one"})) == [second]
    assert integers(calibrated.without({"two"})) == [first]
    assert len(log("INFO")) == 1
    kept = {t.name: t for t in ir.to_proto(calibrated.without({"one"}).simulation()).graph.initializer}
    assert any(np.array_equal(onnx.numpy_helper.to_array(t), normal(1, 48, 32)) for t in kept.values())


def test_a_layer_without_a_weight_cannot_have_it(tmp_path: Path) -> None:
    model = build(
        "g (float[N,3,8,8] x) => (float[N,3,4,4] y) { [pool] y = AveragePool <kernel_shape=[2,2], strides=[2,2]> (x) }"
    )
    flow = Flow.of(model, tmp_path).configure(batch_num=1)
    settings = json.loads(Path(flow.config).read_text())
    settings["pool"]["weight_quant_params"] = {"wts_algo": "ada_quantize"}
    Path(flow.config).write_text(json.dumps(settings))
    with refused(tmp_path, ConfigError, r"pool\.weight_quant_params"):
        flow.quantize()


# The log, progress, interruption


def test_the_log_does_not_grow_with_the_model(tmp_path: Path, log: Callable[[str], list[str]]) -> None:
    layers = "\n".join(f"[fc{k}] h{k + 1} = MatMul (h{k}, w{k})" for k in range(12))
    weights = {f"w{k}": normal(k, 16, 16, scale=0.3) for k in range(12)}
    model = build(f"g (float[N,16] h0) => (float[N,16] h12) {{ {layers} }}", **weights)
    run(Flow.of(model, tmp_path), {"h0": smooth(1, 100, 16)})
    (line,) = log("INFO")
    found = SUMMARY.fullmatch(line)
    assert found is not None
    assert found[1] == "12"
    each = [re.match(r"(\S+): output error .* \((-?[\d.]+) % less\)", text) for text in log("DEBUG")]
    lowered = {match[1]: float(match[2]) for match in each if match}
    assert len(lowered) == 12
    assert min(lowered, key=lambda layer: lowered[layer]) == found[4]
    assert max(lowered, key=lambda layer: lowered[layer]) == found[6]
    assert float(found[3]) == min(lowered.values())
    assert float(found[5]) == max(lowered.values())
    assert float(found[2]) == pytest.approx(np.median(list(lowered.values())), abs=0.1)
    assert log("WARNING") == []


def test_little_data_is_a_warning(tmp_path: Path, log: Callable[[str], list[str]]) -> None:
    model, _ = wide_model()
    run(Flow.of(model, tmp_path), wide_batch(30))
    (line,) = log("WARNING")
    assert line.startswith("1 layers (first: layer) saw fewer columns than they have weights per output")


def test_a_weight_on_its_grid_is_said_to_make_no_error(tmp_path: Path, log: Callable[[str], list[str]]) -> None:
    weight = np.random.default_rng(0).integers(-127, 128, (32, 48, 1, 1)).astype(np.float32)
    weight[:, 0] = 127
    model, batch = wide_model()
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(weight, "w"))
    run(Flow.of(model, tmp_path), batch)
    assert log("INFO") == ["1 layers: rounding to nearest makes no error on the calibration data."]


def test_progress_grows_to_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flow = choose(Flow.of(two_convs(), tmp_path).configure(batch_num=1), **QUICK).quantize().calibrate(feeds(0))
    shares: list[float] = []
    read_calibrated(flow.modified, flow.record, progress=lambda what, share: shares.append(share))
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert len(shares) > 50


def test_an_interruption_ends_the_work_and_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flow = choose(Flow.of(two_convs(), tmp_path).configure(batch_num=1), num_iteration=10**6)
    flow.quantize().calibrate(feeds(0))
    before = sorted(p.name for p in tmp_path.iterdir())

    def interrupt(what: str, share: float) -> None:
        if share < 1:
            raise KeyboardInterrupt

    monkeypatch.setattr("amct_onnx.amct.save.show_on_terminal", interrupt)
    with pytest.raises(KeyboardInterrupt):
        flow.save()
    assert sorted(p.name for p in tmp_path.iterdir()) == before


# The same whatever runs it


def everything(flow: Flow) -> list[bytes]:
    files = (flow.record, moments_path(flow.record), flow.deploy, flow.fake_quant)
    return [Path(path).read_bytes() for path in files]


def test_threads_batches_and_implementations_give_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = feeds(0, 1, 2, 3)
    results = []
    for compiled, processors, threads in [(True, 1, 1), (True, 3, 2), (False, 2, 4)]:
        if not compiled:
            monkeypatch.setattr(observer_op, "compiled", None)
        monkeypatch.setattr(rounding, "processors", lambda processors=processors: processors)
        options = observer_op.session_options()
        options.intra_op_num_threads = threads
        flow = Flow.of(two_convs(), tmp_path, options=options).configure(batch_num=4)
        choose(flow, **QUICK).quantize()
        if threads == 4:
            runners = [threading.Thread(target=flow.calibrate, args=([batch],)) for batch in reversed(batches)]
            for runner in runners:
                runner.start()
            for runner in runners:
                runner.join()
        else:
            flow.calibrate(batches)
        results.append(everything(flow.save()))
    assert results[0] == results[1] == results[2]


def test_each_step_may_have_its_own_process(tmp_path: Path) -> None:
    one = run(Flow.of(two_convs(), tmp_path), *feeds(0))
    expected = everything(one)
    for path in (one.deploy, one.fake_quant):
        Path(path).unlink()
    arguments = f"{one.modified!r}, {one.record!r}, {str(tmp_path / 'model')!r}"
    script = f"import amct_onnx; amct_onnx.save_model({arguments})"
    done = subprocess.run([sys.executable, "-c", script], check=True, cwd=tmp_path, capture_output=True, text=True)
    assert everything(one) == expected
    assert "2 layers: the output error of rounding to nearest is lowered by" in done.stderr
    assert "\r" not in done.stderr  # no progress in a pipe


# Memory


def test_memory_is_bounded_by_cutting_columns_into_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: Callable[[str], list[str]]
) -> None:
    model = build("g (float[N,300] x) => (float[N,8] y) { [layer] y = MatMul (x, w) }", w=normal(1, 300, 8, scale=0.3))
    batch = {"x": smooth(2, 500, 300)}
    whole = run(Flow.of(model, tmp_path / "whole"), batch)
    budget = 200_000  # of 300 * 300 * 16 bytes
    monkeypatch.setattr(rounding, "MEMORY_BUDGET", budget)
    flow = run(Flow.of(model, tmp_path / "cut"), batch)
    assert log("INFO")[1].startswith("Gram matrices of more than ")
    sizes = [Path(moments_path(f.record)).stat().st_size for f in (whole, flow)]
    assert sizes[0] > 300 * 300 * 4
    assert sizes[1] < budget / 4 + 10_000  # float32 in the file, and means
    nearest, learned = output_errors(flow, batch)
    assert learned < MOST_ERROR_LEFT * nearest


def test_memory_does_not_grow_with_batches() -> None:
    task = LayerColumns(weight="w", op_type="Conv", groups=1, block=288, kernel=(3, 3), strides=(1, 1),
                        dilations=(1, 1), pads=(1,) * 4)  # fmt: skip
    peaks = []
    for count in (2, 12):
        collector = make_collector(
            Observer(layers=("layer",), task=task, batch_num=count, record_path="r", observers=1)
        )
        batch = smooth(1, 4, 32, 28, 28)
        tracemalloc.start()
        for _ in range(count):
            collector.add(batch)
        collector.solve("data")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0]
    assert peaks[1] < 150 << 20


# What goes wrong


@pytest.fixture
def flow(tmp_path: Path) -> Flow:
    """A calibrated model, ready for save_model."""
    return choose(Flow.of(two_convs(), tmp_path).configure(batch_num=1), **QUICK).quantize().calibrate(feeds(0))


def test_moments_that_are_missing(flow: Flow) -> None:
    Path(moments_path(flow.record)).unlink()
    with refused(flow.folder, RecordError, r"record\.txt\.moments\.npz: the file is missing", "keep the two together"):
        flow.save()


def test_moments_of_another_call(flow: Flow, tmp_path: Path) -> None:
    other = Flow.of(two_convs(), tmp_path / "other").configure(batch_num=1)
    choose(other, num_iteration=1000).quantize().calibrate(feeds(1))
    Path(moments_path(flow.record)).write_bytes(Path(moments_path(other.record)).read_bytes())
    with refused(flow.folder, RecordError, "belongs to another quantize_model call", "run all batches"):
        flow.save()


@pytest.mark.parametrize("size", [0, 100, -200])
def test_moments_that_are_damaged(flow: Flow, size: int) -> None:
    path = Path(moments_path(flow.record))
    path.write_bytes(path.read_bytes()[:size])
    with refused(flow.folder, RecordError, "the file is damaged", "run all batches"):
        flow.save()


def test_a_model_without_its_float_weights(flow: Flow) -> None:
    model = onnx.load(flow.modified)
    kept = next(t for t in model.graph.initializer if t.name == "conv1.float_weight")
    model.graph.initializer.remove(kept)
    for node in [n for n in model.graph.node if "conv1.float_weight" in n.input]:
        model.graph.node.remove(node)
    onnx.save(model, flow.modified)
    with refused(flow.folder, ModelError, "no initializer conv1.float_weight", "pass the modified_onnx_file"):
        flow.save()


def test_batches_that_are_missing_and_those_that_cannot_be_used(tmp_path: Path) -> None:
    flow = choose(Flow.of(two_convs(), tmp_path).configure(batch_num=2), **QUICK).quantize().calibrate(feeds(0))
    with pytest.raises(RecordError, match="1 of 2 batches have run"):
        flow.save()
    assert not Path(moments_path(flow.record)).exists()
    flow.calibrate(feeds(1)).save()
    choose(flow.configure(batch_num=1), **QUICK).quantize()
    bad = images(3)
    bad[0, 0, 0, 0] = np.nan
    flow.calibrate([{"x": bad}])
    with pytest.raises(RecordError, match=r"Calibration of layer .*NaN or Inf"):
        flow.save()


def test_moments_that_cannot_be_written(tmp_path: Path) -> None:
    flow = choose(Flow.of(two_convs(), tmp_path).configure(batch_num=1), **QUICK).quantize()
    Path(moments_path(flow.record)).mkdir()
    flow.calibrate(feeds(0))
    with pytest.raises(CalibrationError, match=r"moments\.npz: cannot be written, it is a folder"):
        flow.save()
