"""Whatever the package gives to users, and what that is made of, can be pickled, copied and sent to another process."""

from __future__ import annotations

import copy
import inspect
import math
import pickle
import subprocess
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from flow import build, normal

import amct_onnx as amct
from amct_onnx import errors
from amct_onnx.frozen import FrozenDict
from amct_onnx.numerics.grid import QParams, QSpec
from amct_onnx.ptq.quantized_model import QuantizedModel, SavedModel
from amct_onnx.report.run_data import RunData
from amct_onnx.report.write import load_run
from amct_onnx.targets.table import TARGETS
from amct_onnx.values.batch_result import BatchResult, JobResult
from amct_onnx.values.layers import QuantizedOutput, QuantizedTensor
from amct_onnx.values.roundings import Roundings
from amct_onnx.values.skipped_data import SkippedData, Unreadable

SAMPLES = 8


@cache
def network() -> onnx.ModelProto:
    """A small classifier: a convolution with batch normalization behind it, another one, and a product."""
    return build(
        """g (float[N,3,8,8] x) => (float[N,4] y) {
            [conv1] a = Conv <pads=[1,1,1,1]> (x, w, b) [bn] n = BatchNormalization (a, s, b, m, v) [relu] r = Relu (n)
            [conv2] c = Conv (r, w2) [relu2] d = Relu (c) [pool] p = GlobalAveragePool (d)
            [flat] f = Flatten (p) [fc] y = Gemm (f, w3) }""",
        w=normal(1, 8, 3, 3, 3), b=normal(2, 8), s=normal(3, 8), m=normal(4, 8), v=np.abs(normal(5, 8)),
        w2=normal(6, 16, 8, 3, 3), w3=normal(7, 16, 4),
    )  # fmt: skip


def data() -> np.ndarray:
    return normal(0, SAMPLES, 3, 8, 8)


@cache
def quantized(target: str = "onnxruntime") -> QuantizedModel:
    return amct.quantize(network(), data(), target=target, progress=False)


def partly(folder: Path) -> SavedModel:
    """The files of a model with a layer in float."""
    result = amct.quantize(network(), data(), skip_layers=["conv2"], effort="fast", progress=False)
    return result.save(folder / "partly")


def of_a_batch(folder: Path) -> object:
    """One job that is done."""
    onnx.save(network(), folder / "float.onnx")
    np.save(folder / "x.npy", data())
    job = {"model": str(folder / "float.onnx"), "data": str(folder / "x.npy"), "effort": "fast"}
    job |= {"save_path": str(folder / "job"), "target": "onnxruntime"}
    return amct.batch({"job": [job]}, page=folder / "jobs.html", progress=False)


def words() -> QuantizedModel:
    """A table that is looked up in."""
    proto = build(
        "g (int64[N,5] ids) => (float[N,5,6] y) { [look] e = Gather (table, ids) [fc] y = MatMul (e, w) }",
        table=normal(1, 200, 64), w=normal(2, 64, 6),
    )  # fmt: skip
    return amct.quantize(proto, np.arange(40).reshape(8, 5), progress=False)


def weights_alone(**options: Any) -> QuantizedModel:
    proto = build("g (float[N,64] x) => (float[N,96] y) { [fc] y = MatMul (x, w) }", w=normal(2, 64, 96))
    return amct.quantize(proto, None, progress=False, **options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pickled")


def run_data(folder: Path) -> RunData:
    return load_run(amct.save_run(quantized(), folder / "run", progress=False))[1]


def settings() -> amct.Settings:
    activation = amct.ActivationSettings()
    solvers = (amct.Ifmr, amct.Hfmg, amct.MinMax, amct.Mse, amct.Percentile, amct.Entropy)
    layers = {
        solver.__name__: amct.LayerSettings(activation=amct.ActivationSettings(solver=solver())) for solver in solvers
    }
    layers |= {
        solver.__name__: amct.LayerSettings(weight=amct.WeightSettings(solver=solver()))
        for solver in (amct.Arq, amct.AdaRound, amct.Nuq)
    }
    tensors = (amct.TensorSettings(layer_name="a", input_index=0, activation=activation),)
    return amct.Settings(layers=FrozenDict(layers), tensor_quantize=tensors)


def job() -> JobResult:
    return JobResult(name="a", target="ascend", model="m.onnx", state="done")


def of_the_flow() -> tuple[object, ...]:
    """What AMCT's functions hand to each other."""
    grid = QParams(scale=np.ones(1, np.float32), zero_point=np.zeros(1, np.int32), spec=QSpec(bits=8))
    return QuantizedTensor(node="n", input_index=0, activation=grid), QuantizedOutput(node="n", activation=grid)


# What a user may hold in hand, by a function of a folder for files.
EXAMPLES: dict[str, Callable[[Path], object]] = {
    **{f"for {target}": lambda folder, target=target: quantized(target) for target in TARGETS},  # type: ignore[misc]
    "fast": lambda folder: amct.quantize(network(), data(), effort="fast", progress=False),
    "from statistics": lambda folder: amct.quantize(network(), quantized().statistics, progress=False),
    "of a search": lambda folder: amct.quantize(network(), data(), min_sqnr=25.0, progress=False),
    "with a table": lambda folder: words(),
    "weights of 4 bits": lambda folder: weights_alone(weight_only=4),
    "dynamic": lambda folder: weights_alone(dynamic=True),
    "settings": lambda folder: settings(),
    "statistics": lambda folder: quantized().statistics,
    "decisions": lambda folder: quantized().decisions,
    "saved": lambda folder: quantized().save(folder / "saved"),
    "saved with a layer in float": partly,
    "sensitivity": lambda folder: amct.sensitivity(quantized(), progress=False),
    "summary": lambda folder: amct.inspect(network()),
    "tables": lambda folder: amct.inspect(network()).tables(),
    "comparison": lambda folder: amct.compare(network(), quantized(), data(), progress=False),
    "scores": lambda folder: amct.evaluate(network(), data(), np.arange(SAMPLES) % 4, progress=False),
    "machine": lambda folder: amct.doctor(),
    "jobs": of_a_batch,
    "images": lambda folder: amct.ImageOptions(),
    "run": run_data,
    "batch": lambda folder: BatchResult(jobs=(job(),), page="", seconds=1.0),
    "skipped": lambda folder: SkippedData.of_samples([Unreadable(number=3, why="photos/3.jpg: is no image")]),
    "AMCT's flow": lambda folder: of_the_flow(),
    "roundings": lambda folder: Roundings(reads={("n", 0): quantized().activations["x"]}),
}  # fmt: skip


def same(one: Any, two: Any) -> bool:
    """Whether two values are equal in all that they hold, graphs and arrays included."""
    if isinstance(one, ir.Model):
        first, second = (ir.to_proto(model).SerializeToString(deterministic=True) for model in (one, two))
        return bool(first == second)
    if isinstance(one, np.ndarray):
        return one.dtype == two.dtype and np.array_equal(one, two, equal_nan=one.dtype.kind == "f")
    if is_dataclass(one) and not isinstance(one, type):
        return type(one) is type(two) and all(same(getattr(one, f.name), getattr(two, f.name)) for f in fields(one))
    if isinstance(one, Mapping):
        return list(one) == list(two) and all(same(value, two[key]) for key, value in one.items())
    if isinstance(one, tuple | list):
        return len(one) == len(two) and all(map(same, one, two))
    if type(one).__module__.startswith("amct_onnx"):
        return type(one) is type(two) and same(held_by(one), held_by(two))
    return bool(one == two) or (isinstance(one, float) and math.isnan(one) and math.isnan(two))


def held_by(value: Any) -> dict[str, Any]:
    """What a value of ours that is no dataclass holds, in public."""
    return {name: held for name, held in vars(value).items() if not name.startswith("_")}


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_pickle_and_a_copy_hold_the_same(name: str, folder: Path) -> None:
    value = EXAMPLES[name](folder)
    for again in (pickle.loads(pickle.dumps(value)), copy.deepcopy(value)):
        assert same(value, again)


@pytest.mark.parametrize("kind", [kind for kind in vars(errors).values() if inspect.isclass(kind)])
def test_an_error_that_comes_from_another_process_says_the_same(kind: type[Any]) -> None:
    if not issubclass(kind, errors.AmctError):
        return
    more = {"layer": "conv", "reason": "why"} if kind is errors.LayerError else {}
    error = pickle.loads(pickle.dumps(kind("what is wrong", **more)))
    assert (type(error), str(error), vars(error)) == (kind, "what is wrong", more)


# --- that nothing is forgotten


def kinds_in(hint: object) -> Iterator[type[Any]]:
    """The classes that a type hint names."""
    parts = typing.get_args(hint)
    if isinstance(hint, type) and not parts:
        yield hint
    for part in parts:
        yield from kinds_in(part)


def results_of(kind: type[Any]) -> Iterator[type[Any]]:
    """What the fields, properties and, of a class that is public by name, methods of a class of ours may hold or give,
    and the classes that are derived from it."""
    yield from kind.__subclasses__()
    for hint in typing.get_type_hints(kind).values() if is_dataclass(kind) else ():
        yield from kinds_in(hint)
    for name, member in vars(kind).items():
        given = member.fget if isinstance(member, property) else member if kind.__name__ in amct.__all__ else None
        if isinstance(given, types.FunctionType) and not name.startswith("_"):
            yield from kinds_in(typing.get_type_hints(given).get("return"))


def public_results() -> Set[type[Any]]:
    """Every class of ours that a user may get hold of, by way of public names."""
    waiting: list[type[Any]] = [RunData]
    for public in (getattr(amct, name) for name in amct.__all__):
        if isinstance(public, type):
            waiting.append(public)
        elif isinstance(public, types.FunctionType):
            waiting += kinds_in(typing.get_type_hints(public).get("return"))
    found: set[type[Any]] = set()
    while waiting:
        kind = waiting.pop()
        if kind.__module__.startswith("amct_onnx.") and kind not in found:
            found.add(kind)
            waiting += results_of(kind)
    return found


def met_in(value: Any, met: set[type[Any]], seen: dict[int, Any]) -> None:
    """Collect the classes of all that a value holds."""
    if id(value) in seen or isinstance(value, ir.Model | np.ndarray | type):
        return
    seen[id(value)] = value
    met.update(type(value).__mro__)
    if isinstance(value, Mapping):
        parts = [*value.keys(), *value.values()]
    elif isinstance(value, tuple | list | set | frozenset):
        parts = list(value)
    elif is_dataclass(value):
        parts = [getattr(value, entry.name) for entry in fields(value)]
        parts += [getattr(value, name) for name, member in vars(type(value)).items() if isinstance(member, property)]
    else:
        parts = list(held_by(value).values()) if type(value).__module__.startswith("amct_onnx") else []
    for part in parts:
        met_in(part, met, seen)


def test_every_class_of_results_is_among_the_examples(folder: Path) -> None:
    met: set[type[Any]] = set()
    for example in EXAMPLES.values():
        met_in(example(folder), met, {})
    assert sorted(kind.__name__ for kind in public_results() - met) == []


# --- in another process

SCRIPT = """
import pickle, sys
with open(sys.argv[1], "rb") as file:
    quantized = pickle.load(file)
quantized.save("there", inspect=False)
quantized.to(sys.argv[2]).save("there", inspect=False)
assert quantized.measured().accuracy == quantized.accuracy
"""


@pytest.mark.parametrize(("target", "other"), [("onnxruntime", "ascend"), ("ascend", "openvino")])
def test_another_process_writes_the_same_files(target: str, other: str, tmp_path: Path) -> None:
    (tmp_path / "pickle").write_bytes(pickle.dumps(quantized(target)))
    command = [sys.executable, "-c", SCRIPT, "pickle", other]
    subprocess.run(command, cwd=tmp_path, check=True)
    quantized(target).save(tmp_path / "here", inspect=False)
    quantized(target).to(other).save(tmp_path / "here", inspect=False)
    there = {file.name.removeprefix("there"): file.read_bytes() for file in tmp_path.glob("there_*")}
    here = {file.name.removeprefix("here"): file.read_bytes() for file in tmp_path.glob("here_*")}
    assert len(there) == 4
    assert {name: held.replace(b"there", b"here") for name, held in there.items()} == here


def test_a_frozen_mapping_is_as_its_items_were() -> None:
    items = {"a": 1, "b": 2}
    frozen = FrozenDict(items)
    items["a"] = 5
    assert frozen == {"a": 1, "b": 2}
    assert list(frozen) == ["a", "b"]
    assert frozen == FrozenDict({"b": 2, "a": 1})
    with pytest.raises(TypeError):
        frozen["a"] = 2  # type: ignore[index]
