"""Every session of a call is on the execution providers that it was given, and no session opens without asking."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from far_engine import FarEngine
from flow import build, normal

import amct_onnx as amct
from amct_onnx.cli.main import main
from amct_onnx.errors import ArgumentError, ArgumentTypeError
from amct_onnx.run.saturation import saturates

SOURCE = Path(__file__).resolve().parents[2] / "src" / "amct_onnx"
# Two providers that every ONNX Runtime of PyPI has; the first one takes no node that the second one does not take.
GIVEN = [("AzureExecutionProvider", {}), ("CPUExecutionProvider", {"arena_extend_strategy": "kSameAsRequested"})]
CPU = ["CPUExecutionProvider"]
SAMPLES = 100  # more than the recipe looks at first


def network() -> onnx.ModelProto:
    return build(
        """g (float[N,3,8,8] x) => (float[N,4] y) {
            [conv1] a = Conv <pads=[1,1,1,1]> (x, w, b) [relu] r = Relu (a) [conv2] c = Conv (r, w2)
            [relu2] d = Relu (c) [pool] p = GlobalAveragePool (d) [flat] f = Flatten (p) [fc] y = Gemm (f, w3) }""",
        w=normal(1, 8, 3, 3, 3), b=normal(2, 8), w2=normal(6, 16, 8, 3, 3), w3=normal(7, 16, 4),
    )  # fmt: skip


def data() -> np.ndarray:
    return normal(0, SAMPLES, 3, 8, 8)


def evaluator(session: Any) -> float:
    return float(-np.square(session.run(None, {"x": data()})[0]).mean())


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The providers of each session that opens."""
    saturates()  # measured once in a process, on the CPU
    found: list[Any] = []
    original = ort.InferenceSession.__init__

    def recorded(self: Any, *args: Any, **kwargs: Any) -> None:
        found.append(kwargs.get("providers", args[2] if len(args) > 2 else None))
        original(self, *args, **kwargs)

    monkeypatch.setattr(ort.InferenceSession, "__init__", recorded)
    return found


def quantized(**options: Any) -> Any:
    return amct.quantize(network(), data(), progress=False, **options)


CALLS: dict[str, Callable[..., Any]] = {
    "quantize": quantized,
    "best effort": lambda **options: quantized(effort="best", **options),
    "for Ascend": lambda **options: quantized(target="ascend", **options),
    "a search": lambda **options: quantized(min_sqnr=60.0, **options),
    "a search by an evaluator": lambda **options: quantized(evaluator=evaluator, max_drop=0.0, **options),
    "time for accuracy": lambda **options: quantized(max_slowdown=1.5, **options),
    "few bits": lambda **options: quantized(weight_only=4, effort="best", **options),
    "sensitivity": lambda **options: amct.sensitivity(network(), data(), progress=False, **options),
    "compare": lambda **options: amct.compare(network(), network(), data(), progress=False, **options),
    "evaluate": lambda **options: amct.evaluate(network(), data(), np.arange(SAMPLES) % 4, progress=False, **options),
}


@pytest.mark.parametrize("name", CALLS)
def test_all_sessions_are_on_what_was_given(name: str, opened: list[Any]) -> None:
    CALLS[name](providers=GIVEN)
    assert opened
    assert [providers for providers in opened if providers != GIVEN] == []
    opened.clear()
    CALLS[name]()
    assert opened
    assert [providers for providers in opened if providers != CPU] == []


@pytest.mark.parametrize("name", [name for name in CALLS if name != "compare"])
def test_workers_use_the_same(name: str, opened: list[Any]) -> None:
    engine = FarEngine()
    CALLS[name](providers=GIVEN, engine=engine)
    assert engine.works or name == "few bits"
    assert [providers for providers in opened if providers != GIVEN] == []


def test_results_are_those_of_the_cpu(tmp_path: Path) -> None:
    for name, providers in {"cpu": None, "given": GIVEN}.items():
        quantized(providers=providers).save(tmp_path / name, inspect=False)
    files = [(tmp_path / f"{name}_onnxruntime.onnx").read_bytes() for name in ("cpu", "given")]
    assert files[0] == files[1]


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize(
    ("providers", "error", "message"),
    [
        (["CUDAExecutionProvider"], ArgumentError, "give one of AzureExecutionProvider, CPUExecutionProvider."),
        ([], ArgumentError, "providers names none: give one of AzureExecutionProvider, CPUExecutionProvider."),
        ([("CPUExecutionProvider", 3)], ArgumentTypeError, "a name and a dict of options"),
        (3, ArgumentTypeError, "providers must be a list of names, got int"),
    ],
)
def test_what_cannot_be_used_is_refused_at_once(
    name: str, providers: Any, error: type[Exception], message: str, opened: list[Any]
) -> None:
    with pytest.raises(error) as raised:
        CALLS[name](providers=providers)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
    assert opened == []


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_a_provider_that_does_not_start_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    available = ort.get_available_providers()
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider", *available])
    with pytest.raises(ArgumentError, match=r"'CUDAExecutionProvider' does not start: its libraries are missing"):
        quantized(providers=["CUDAExecutionProvider", "CPUExecutionProvider"])


def test_the_commands_take_names_with_commas(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], opened: list[Any]
) -> None:
    monkeypatch.chdir(tmp_path)
    onnx.save(network(), "float.onnx")
    np.save("x.npy", data())
    np.save("labels.npy", np.arange(SAMPLES) % 4)
    names = "AzureExecutionProvider,CPUExecutionProvider"
    lines = {
        "quantize float.onnx --data x.npy --save_path out.onnx --no_report": "out.onnx",
        "sensitivity float.onnx --data x.npy": "conv1",
        "compare float.onnx out.onnx --data x.npy": "conv1",
        "evaluate float.onnx out.onnx --images x.npy --labels labels.npy": "top-1",
    }
    for line, shown in lines.items():
        opened.clear()
        assert main([*line.split(), "--providers", names]) == 0, capsys.readouterr()
        assert shown in capsys.readouterr().out
        assert {tuple(providers) for providers in opened} == {tuple(names.split(","))}
        assert main([*line.split(), "--providers", "CUDAExecutionProvider"]) != 0
        assert "--providers CUDAExecutionProvider is none that this ONNX Runtime has" in capsys.readouterr().err
        assert main([*line.split(), "--providers", ","]) != 0
        assert "--providers names none: give one of AzureExecutionProvider" in capsys.readouterr().err


def test_a_job_of_a_file_has_a_list_of_names(tmp_path: Path, opened: list[Any]) -> None:
    onnx.save(network(), tmp_path / "float.onnx")
    np.save(tmp_path / "x.npy", data())
    job = {"model": str(tmp_path / "float.onnx"), "data": str(tmp_path / "x.npy"), "effort": "fast", "report": False}
    job |= {"save_path": str(tmp_path / "out"), "providers": [name for name, _ in GIVEN]}
    assert not amct.batch({"job": [job]}, page=tmp_path / "jobs.html", progress=False).failed
    assert {tuple(providers) for providers in opened} == {tuple(name for name, _ in GIVEN)}


def test_one_module_opens_sessions() -> None:
    found = {
        path.relative_to(SOURCE).as_posix()
        for path in SOURCE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("InferenceSession")
    }
    assert found == {"run/session.py", "run/providers.py"}
