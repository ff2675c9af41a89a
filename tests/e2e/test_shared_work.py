"""Layers are rounded, samples judged and trials of a search made by whoever an engine has: with the same result."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from far_engine import FarEngine
from flow import CPU, build, normal
from PIL import Image

import amct_onnx
from amct_onnx.cli.main import main
from amct_onnx.engine.processes import ProcessEngine
from amct_onnx.measure.output_noise import OutputNoise
from amct_onnx.measure.rounded_network import RoundedNetwork

SAMPLES = 120


@cache
def network() -> onnx.ModelProto:
    """Convolutions, one with groups and one transposed, and products, one of them turned."""
    return build(
        """g (float[N,3,12,12] x) => (float[N,6] y) {
            [conv1] a = Conv <pads=[1,1,1,1]> (x, w1, b1) [relu1] r = Relu (a)
            [conv2] b = Conv <pads=[1,1,1,1], group=4> (r, w2) [relu2] s = Relu (b)
            [up] u = ConvTranspose <strides=[2,2]> (s, w3) [relu3] t = Relu (u)
            [conv3] c = Conv <strides=[2,2]> (t, w4, b4) [relu4] v = Relu (c)
            [pool] p = GlobalAveragePool (v) [flat] f = Flatten (p)
            [fc1] g = Gemm <transB=1> (f, w5, b5) [relu5] h = Relu (g) [fc2] y = MatMul (h, w6) }""",
        w1=normal(1, 16, 3, 3, 3), b1=normal(2, 16), w2=normal(3, 16, 4, 3, 3), w3=normal(4, 16, 12, 2, 2),
        w4=normal(5, 24, 12, 3, 3), b4=normal(6, 24), w5=normal(7, 32, 24), b5=normal(8, 32), w6=normal(9, 32, 6),
    )  # fmt: skip


@cache
def chain() -> onnx.ModelProto:
    """Twelve convolutions one behind the other, of which a search can choose."""
    nodes = " ".join(f"[c{i}] a{i} = Conv (r{i}, w{i}) [relu{i}] r{i + 1} = Relu (a{i})" for i in range(12))
    text = "g (float[N,3,12,12] r0) => (float[N,8] y) { " + nodes + " p = GlobalAveragePool (r12) y = Flatten (p) }"
    weights = {f"w{i}": normal(i, 8, 8 if i else 3, 1, 1, scale=0.6) for i in range(12)}
    return build(text, **weights)


def data(count: int = SAMPLES) -> np.ndarray:
    return normal(0, count, 3, 12, 12)


def files_of(result: amct_onnx.QuantizedModel, folder: Path) -> Mapping[str, bytes]:
    result.save(folder / "m", inspect=False)
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def outcome(
    folder: Path, engine: Any, model: Callable[[], onnx.ModelProto] = network, **options: Any
) -> tuple[object, ...]:
    result = amct_onnx.quantize(model(), data(), progress=False, engine=engine, **options)
    return files_of(result, folder), result.precision, result.steps, result.accuracy


@pytest.fixture(scope="module")
def processes() -> Any:
    engine = ProcessEngine(2)
    yield engine
    engine.close()


ROUNDED = [
    {"effort": "best"},
    {"effort": "best", "target": "ascend"},
    {"weight_only": 4, "effort": "best", "block_size": 16},
]


@pytest.mark.parametrize("options", ROUNDED, ids=str)
def test_layers_are_rounded_the_same_elsewhere(options: dict[str, Any], tmp_path: Path) -> None:
    found = []
    for name, engine in {"local": "local", "far": FarEngine()}.items():
        (tmp_path / name).mkdir()
        found.append(outcome(tmp_path / name, engine, **options))
    assert found[0] == found[1]
    assert isinstance(engine, FarEngine)
    assert "_Rounding" in engine.works


@cache
def exact() -> np.ndarray:
    session = ort.InferenceSession(chain().SerializeToString(), providers=CPU)
    return session.run(None, {"r0": data(32)})[0].astype(np.float64)


def closeness(session: Any) -> np.ndarray:
    """An evaluator that other processes can import: signal over noise of each sample in dB, 60 at most."""
    noise = np.square(session.run(None, {"r0": data(32)})[0] - exact()).sum(axis=1)
    return -10 * np.log10(noise / np.square(exact()).sum(axis=1) + 1e-6)


SEARCHES: dict[str, dict[str, Any]] = {
    "noise": {"min_sqnr": 33.0},
    "out of reach": {"min_sqnr": 200.0},
    "evaluator": {"evaluator": closeness, "target_accuracy": 33.0},
    "time": {"max_slowdown": 1.3},
    "wide": {"min_sqnr": 60.0, "target": "ascend"},
}


@pytest.mark.parametrize("name", SEARCHES)
def test_a_search_that_looks_ahead_comes_to_the_same(name: str, tmp_path: Path) -> None:
    found = []
    engines = {"local": "local", "one": FarEngine(1), "three": FarEngine(3, seed=1)}
    for called, engine in engines.items():
        (tmp_path / called).mkdir()
        found.append(outcome(tmp_path / called, engine, chain, effort="fast", **SEARCHES[name]))
    assert found[0] == found[1] == found[2]
    works = engines["three"].works
    assert "UnitNoise" in works
    assert ("MeasureTrials" in works) == (name != "time")


@pytest.mark.slow
def test_processes_come_to_the_same(processes: ProcessEngine, tmp_path: Path) -> None:
    for name in ("noise", "evaluator"):
        found = []
        for called, engine in {"local": "local", "processes": processes}.items():
            (tmp_path / name / called).mkdir(parents=True)
            found.append(outcome(tmp_path / name / called, engine, chain, **SEARCHES[name]))
        assert found[0] == found[1]


class Picky:
    """Refuses models that hardly differ from the float one: what a search looks at ahead, and does not come to."""

    def __call__(self, session: Any) -> np.ndarray:
        found = closeness(session)
        if 50 < found.mean() < 59:
            raise ValueError("too good")
        return found


def test_what_fails_ahead_ends_no_search() -> None:
    options: dict[str, Any] = {"evaluator": Picky(), "target_accuracy": 25.0, "effort": "fast", "progress": False}
    engine = FarEngine(7)
    found = [amct_onnx.quantize(chain(), data(), engine=one, **options).precision for one in ("local", engine)]
    assert found[0] == found[1]
    assert "MeasureTrials" in engine.works


def test_what_fails_on_the_way_says_the_same() -> None:
    options: dict[str, Any] = {"evaluator": Picky(), "target_accuracy": 55.0, "effort": "fast", "progress": False}
    for engine in ("local", FarEngine(7)):
        with pytest.raises(ValueError, match="too good"):
            amct_onnx.quantize(chain(), data(), engine=engine, **options)


def test_an_evaluator_that_cannot_travel_runs_here(caplog: pytest.LogCaptureFixture) -> None:
    seen = []

    def evaluator(session: Any) -> np.ndarray:
        seen.append(session)
        return closeness(session)

    options: dict[str, Any] = {"effort": "fast", "target_accuracy": 33.0, "progress": False}
    first = amct_onnx.quantize(chain(), data(), evaluator=evaluator, **options)
    count = len(seen)
    with caplog.at_level("INFO"):
        engine = FarEngine()
        second = amct_onnx.quantize(chain(), data(), evaluator=evaluator, engine=engine, **options)
    assert first.precision == second.precision
    assert len(seen) == 2 * count
    assert "MeasureTrials" not in engine.works
    assert caplog.text.count("The evaluator runs in this process") == 1


def test_a_search_that_was_stopped_goes_on_elsewhere(tmp_path: Path) -> None:
    engine = FarEngine(3)
    np.save(tmp_path / "x.npy", data())
    left, calls = [0], [0]

    def evaluator(session: Any) -> np.ndarray:
        if not left[0]:
            raise InterruptedError
        left[0] -= 1
        calls[0] += 1
        return closeness(session)

    def search(**options: Any) -> Any:
        found = amct_onnx.quantize(
            chain(), tmp_path / "x.npy", evaluator=evaluator, target_accuracy=33.0, progress=False, **options
        )
        return found.precision, ir.to_proto(found.model()).SerializeToString()

    left[0] = 100
    whole, needed = search(), calls[0]
    calls[0], stops = 0, 0
    while True:
        left[0] = 3  # the float model, whether it still gives the same, and two others
        try:
            found = search(engine=engine, state=tmp_path / "state")
            break
        except InterruptedError:
            stops += 1
    assert stops
    assert found == whole
    assert calls[0] == needed + stops
    left[0] = 1
    assert search(engine=engine, state=tmp_path / "state") == whole


def test_measurements_of_a_search_are_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "x.npy", data())
    runs = [0]
    by_sample, clean = OutputNoise.by_sample, RoundedNetwork.clean

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def count(*arguments: Any) -> Any:
            runs[0] += 1
            return function(*arguments)

        return count

    monkeypatch.setattr(OutputNoise, "by_sample", counted(by_sample))
    monkeypatch.setattr(RoundedNetwork, "clean", counted(clean))
    found = []
    for engine in ("local", FarEngine(3)):
        options: dict[str, Any] = {"min_sqnr": 33.0, "effort": "fast", "progress": False, "engine": engine}
        found.append(amct_onnx.quantize(chain(), tmp_path / "x.npy", state=tmp_path / str(len(found)), **options))
        before = runs[0]
        found.append(amct_onnx.quantize(chain(), tmp_path / "x.npy", state=tmp_path / str(len(found) - 1), **options))
        assert runs[0] == before
    assert len({repr(one.precision) for one in found}) == 1


def test_effects_of_layers_are_the_same() -> None:
    found = [amct_onnx.sensitivity(network(), data(), engine=engine) for engine in ("local", FarEngine())]
    assert found[0] == found[1]


@pytest.mark.parametrize("form", ["array", "files", "iterable"])
def test_scores_are_the_same(form: str, tmp_path: Path) -> None:
    labels = np.arange(SAMPLES) % 6
    np.save(tmp_path / "x.npy", data())
    forms = {"array": data, "files": lambda: tmp_path / "x.npy", "iterable": lambda: iter(data())}
    models = [network()] if form == "iterable" else [network(), network()]
    found = [
        amct_onnx.evaluate(models, forms[form](), labels, batch_size=7, engine=engine)
        for engine in ("local", FarEngine())
    ]
    assert found[0] == found[1]
    assert found[0].samples == SAMPLES


def test_scores_of_images_are_the_same(tmp_path: Path) -> None:
    for number in range(11):
        picture = Image.fromarray(np.random.default_rng(number).integers(0, 255, (14, 14, 3), np.uint8))
        (tmp_path / f"{number % 6}").mkdir(exist_ok=True)
        picture.save(tmp_path / f"{number % 6}" / f"{number}.png")
    for batch in (None, 4):
        model = copy.deepcopy(network())
        if batch is not None:
            model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = batch
        found = [amct_onnx.evaluate(model, tmp_path, preset="torch", engine=e) for e in ("local", FarEngine())]
        assert found[0] == found[1]


SCRIPT = """
import numpy as np
from helper import CALLS

def evaluate(session):
    CALLS.append(1)
    x = np.random.default_rng(3).standard_normal((16, 3, 12, 12)).astype(np.float32)
    return float(session.run(None, {"r0": x})[0].std())
"""


def test_the_script_of_the_command_travels_as_its_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "helper.py").write_text("CALLS = []\n")
    (tmp_path / "judge.py").write_text(SCRIPT)
    onnx.save(chain(), "float.onnx")
    np.save("x.npy", data())
    line = "quantize float.onnx --data x.npy --evaluator judge.py --max_drop 0 --effort fast --no_report"
    for name in ("local", "processes:2"):
        assert main([*line.split(), "--save_path", name.replace(":", "_"), "--engine", name]) == 0
    files = [(tmp_path / f"{name}_onnxruntime.onnx").read_bytes() for name in ("local", "processes_2")]
    assert files[0] == files[1]
    assert "Calibrated with" in (told := capsys.readouterr().err)
    assert "runs in this process" not in told


def test_workers_open_the_data_of_sensitivity(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", data())
    engine = FarEngine()
    found = [amct_onnx.sensitivity(network(), tmp_path / "x.npy", engine=one) for one in ("local", engine)]
    assert found[0] == found[1]
    assert "CountShards" in engine.works
    quantized = amct_onnx.quantize(network(), data(), effort="fast")
    inputs = (tmp_path / "x.npy", data())  # of the file only those samples are read that are kept
    assert amct_onnx.sensitivity(quantized, inputs[0]) == amct_onnx.sensitivity(quantized, inputs[1])
