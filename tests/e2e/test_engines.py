"""Whoever counts, the answer is the same: statistics, records and models to the last byte, for every form of data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from PIL import Image

import amct_onnx
from amct_onnx.engine.engine import Engine, Work
from amct_onnx.engine.processes import ProcessEngine

MODEL = """
<ir_version: 10, opset_import: ["" : 17]>
net (float[N, 3, 16, 16] x) => (float[N, 10] y) {
    c = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1], strides = [2, 2]> (x, w0, b0)
    r = Relu (c)
    d = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1], group = 8> (r, w1, b1)
    e = Clip (d, zero, six)
    p = Conv <kernel_shape = [1, 1]> (e, w2, b2)
    s = Add (p, r)
    g = GlobalAveragePool (s)
    f = Flatten (g)
    y = Gemm <transB = 1> (f, w3, b3)
}
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    random = np.random.default_rng(0)
    graph = ir.from_onnx_text(MODEL)
    shapes = {"w0": (8, 3, 3, 3), "b0": (8,), "w1": (8, 1, 3, 3), "b1": (8,), "w2": (8, 8, 1, 1), "b2": (8,)}
    shapes |= {"w3": (10, 8), "b3": (10,)}
    arrays = {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    arrays["w0"] *= np.logspace(-2, 1, 8, dtype=np.float32).reshape(8, 1, 1, 1)  # equalization has something to do
    arrays |= {"zero": np.float32(0), "six": np.float32(6)}
    values = {value.name: value for node in graph.graph for value in node.inputs if value is not None}
    for name, array in arrays.items():
        values[name].const_value = ir.tensor(array, name=name)
        graph.graph.register_initializer(values[name])
    path = tmp_path_factory.mktemp("engines") / "net.onnx"
    ir.save(graph, path)
    return path


@pytest.fixture(scope="module")
def processes() -> Iterator[ProcessEngine]:
    engine = ProcessEngine(2)
    yield engine
    engine.close()


class Backwards:
    """Works here, on the last item first, and merges in another order: what nobody may notice."""

    workers, alone = 3, False

    def map(self, work: Work[Any, Any], items: Any) -> Any:
        found = []
        with work.open() as do:
            for number, item in reversed(list(enumerate(items))):
                found.append((number, do(item)))
        for _, outcome in sorted(found, key=lambda pair: pair[0]):
            yield outcome

    def merge(self, work: Work[Any, Any], items: Any, merge: Callable[[Any, Any], Any]) -> Any:
        outcomes = list(self.map(work, items))
        while len(outcomes) > 1:
            outcomes.append(merge(outcomes.pop(), outcomes.pop(0)))
        return outcomes[0] if outcomes else None

    def close(self) -> None:
        """Nothing is open."""


def images(folder: Path, count: int) -> Path:
    random = np.random.default_rng(1)
    folder.mkdir()
    for number in range(count):
        pixels = random.integers(0, 255, (20, 24, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:04}.png")
    return folder


def samples(count: int) -> np.ndarray:
    return np.random.default_rng(2).standard_normal((count, 3, 16, 16)).astype(np.float32)


def a_folder_of_images(folder: Path) -> Any:
    return images(folder / "photos", 150)


def an_array_in_a_file(folder: Path) -> Any:
    np.save(folder / "x.npy", samples(150))
    return folder / "x.npy"


def files_of_batches(folder: Path) -> Any:
    (folder / "batches").mkdir()
    for number, batch in enumerate(np.array_split(samples(150), 13)):
        np.save(folder / "batches" / f"{number:02}.npy", batch)
    return folder / "batches"


def an_array_in_memory(folder: Path) -> Any:
    return samples(150)


def a_generator(folder: Path) -> Any:
    return (sample for sample in samples(150))


def few_samples(folder: Path) -> Any:
    return samples(3)


FORMS = [a_folder_of_images, an_array_in_a_file, files_of_batches, an_array_in_memory, a_generator, few_samples]


def files_of(result: amct_onnx.QuantizedModel, folder: Path) -> Mapping[str, bytes]:
    folder.mkdir()
    amct_onnx.save_statistics(result.statistics, folder / "statistics.npz")
    for target in ("onnxruntime", "ascend"):
        result.to(target).save(folder / "m", inspect=False)
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("effort", ["fast", "default"])
def test_every_engine_gives_the_same(
    model: Path, processes: ProcessEngine, tmp_path: Path, form: Callable[[Path], Any], effort: Any
) -> None:
    found = []
    engines: dict[str, str | Engine] = {"local": "local", "processes": processes, "backwards": Backwards()}
    for name, engine in engines.items():
        (tmp_path / name).mkdir()
        options: dict[str, Any] = {"images": "torch"} if form is a_folder_of_images else {}
        data = form(tmp_path / name)
        result = amct_onnx.quantize(model, data, effort=effort, engine=engine, batch_size=4, **options)
        facts = result.steps, result.accuracy, result.data, result.assumptions
        found.append((files_of(result, tmp_path / name / "out"), facts))
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("goal", [{"min_sqnr": 40.0}, {"max_slowdown": 1.2}])
def test_a_search_gives_the_same(
    model: Path, processes: ProcessEngine, tmp_path: Path, goal: Mapping[str, float]
) -> None:
    data = an_array_in_a_file(tmp_path)
    found = []
    for name, engine in {"local": "local", "processes": processes}.items():
        result = amct_onnx.quantize(model, data, engine=engine, **goal)
        found.append((files_of(result, tmp_path / name), result.precision, result.steps, result.accuracy))
    assert found[0] == found[1]
