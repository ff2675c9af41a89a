"""Whoever counts, the answer is the same: statistics, records and models to the last byte, for every form of data."""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from engine_networks import (
    a_folder_of_images,
    a_generator,
    an_array_in_a_file,
    an_array_in_memory,
    files_of,
    files_of_batches,
    network,
    samples,
)
from pyarrow.parquet import write_table

import amct_onnx
from amct_onnx.engine.engine import Engine, Work
from amct_onnx.engine.processes import ProcessEngine


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return network(tmp_path_factory.mktemp("engines"))


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


def few_samples(folder: Path) -> Any:
    return samples(3)


def tars_of_images(folder: Path) -> Any:
    files = sorted(Path(a_folder_of_images(folder)).iterdir())
    for number, part in enumerate((files[:5], files[5:])):
        with tarfile.open(folder / f"{number}.tar", "w") as archive:
            for file in part:
                archive.add(file, file.name)
    return f"{folder}/{{0..1}}.tar"


def parquet_of_images(folder: Path) -> Any:
    files = sorted(Path(a_folder_of_images(folder)).iterdir())
    images = [{"bytes": file.read_bytes(), "path": file.name} for file in files]
    write_table(pyarrow.table({"image": images}), folder / "a.parquet", row_group_size=7)
    return folder / "a.parquet"


OF_IMAGES = [a_folder_of_images, tars_of_images, parquet_of_images]
FORMS = [*OF_IMAGES, an_array_in_a_file, files_of_batches, an_array_in_memory, a_generator, few_samples]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("effort", ["fast", "default"])
def test_every_engine_gives_the_same(
    model: Path, processes: ProcessEngine, tmp_path: Path, form: Callable[[Path], Any], effort: Any
) -> None:
    found = []
    engines: dict[str, str | Engine] = {"local": "local", "processes": processes, "backwards": Backwards()}
    for name, engine in engines.items():
        (tmp_path / name).mkdir()
        options: dict[str, Any] = {"images": "torch"} if form in OF_IMAGES else {}
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
