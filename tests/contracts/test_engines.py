"""What every engine promises, whoever works: order, few items ahead, errors, merging, and that lost work is redone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from engine_works import Deadly, Doubled, Scaled, Wrong, add
from lossy_crew import LossyEngine
from shared_nodes import ray_nodes

from amct_onnx.engine.engine import Engine, LocalEngine
from amct_onnx.engine.processes import ProcessEngine
from amct_onnx.errors import ArgumentError, DataError, EngineError

IN_PROCESSES = ["processes", pytest.param("ray", marks=pytest.mark.ray)]


def made(kind: str) -> Engine:
    if kind == "ray":
        ray_nodes()
        from amct_onnx.engine.ray_engine import RayEngine

        return RayEngine()
    return {"local": LocalEngine, "scrambled": lambda: LossyEngine(1, 2, 0), "processes": lambda: ProcessEngine(2)}[
        kind
    ]()


@pytest.fixture(scope="module", params=["local", "scrambled", *IN_PROCESSES])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    with closing(made(request.param)) as engine:
        yield engine


def test_outcomes_are_in_the_order_of_items(engine: Engine) -> None:
    work = Scaled(array=np.ones(100_000))
    assert list(engine.map(work, range(30))) == [100_000.0 * number for number in range(30)]
    assert list(engine.map(work, [])) == []


def test_merging_is_a_fold(engine: Engine) -> None:
    items = [np.random.default_rng(number).integers(0, 1000, 30_000) for number in range(20)]  # some are large
    work = Scaled(array=np.arange(3))
    assert engine.merge(work, [3, *range(200)], add) == 3 * (3 + sum(range(200)))
    assert np.array_equal(engine.merge(Doubled(), items, np.add), 2 * sum(items))
    assert engine.merge(work, [7], add) == 21
    assert engine.merge(work, [], add) is None


def test_a_work_is_opened_once_by_each_worker_and_closed(engine: Engine, tmp_path: Path) -> None:
    work = Scaled(array=np.ones(1), log=tmp_path / "log")
    list(engine.map(work, range(20)))
    engine.merge(work, range(20), add)
    lines = work.log.read_text().split("\n")[:-1]
    opened, closed = ([line for line in lines if line.startswith(word)] for word in ("open", "close"))
    assert len(opened) == len(closed) <= 2 * engine.workers
    assert [line.replace("open", "close") for line in sorted(opened)] == sorted(closed)


def test_few_items_are_asked_for_ahead(engine: Engine) -> None:
    asked = []

    def items() -> Iterator[int]:
        for number in range(10_000):
            asked.append(number)
            yield number

    with closing(engine.map(Wrong(number=-1), items())) as outcomes:
        assert list(islice(outcomes, 10)) == list(range(10))
    assert len(asked) <= 10 + 3 * engine.workers + 2
    assert list(engine.map(Wrong(number=-1), range(3))) == [0, 1, 2]  # and the engine goes on


def test_an_error_comes_at_its_place(engine: Engine) -> None:
    outcomes = engine.map(Wrong(number=7), range(10))
    assert list(islice(outcomes, 7)) == list(range(7))
    with pytest.raises(DataError, match=r"^item 7 is bad$"):
        next(outcomes)
    with pytest.raises(DataError, match=r"^item 7 is bad$"):
        engine.merge(Wrong(number=7), range(10), add)
    assert engine.merge(Wrong(number=-1), range(10), add) == 45


def test_the_first_error_is_raised(engine: Engine) -> None:
    def items() -> Iterator[int]:
        yield from range(5)
        raise ArgumentError("no more items")

    with pytest.raises(DataError, match="item 3"):
        list(engine.map(Wrong(number=3), items()))
    with pytest.raises(DataError, match="item 3"):
        engine.merge(Wrong(number=3), items(), add)
    outcomes = engine.map(Wrong(number=9), items())
    assert list(islice(outcomes, 5)) == list(range(5))
    with pytest.raises(ArgumentError, match="no more items"):
        next(outcomes)


def test_an_error_in_merging_is_raised(engine: Engine) -> None:
    with pytest.raises(DataError, match="cannot be merged"):
        engine.merge(Wrong(number=-1), range(3), refused)


def refused(one: int, other: int) -> int:
    raise DataError("cannot be merged")


def test_works_may_be_nested(engine: Engine) -> None:
    found = [
        (number, list(engine.map(Wrong(number=-1), range(number)))) for number in engine.map(Wrong(number=-1), range(4))
    ]
    assert found == [(number, list(range(number))) for number in range(4)]


@pytest.mark.parametrize("engine", IN_PROCESSES, indirect=True)
def test_lost_workers_are_replaced(engine: Engine, tmp_path: Path) -> None:
    folders = [tmp_path / "map", tmp_path / "merge"]
    for folder in folders:
        folder.mkdir()
    assert list(engine.map(Deadly(folder=folders[0], with_it={0: 1, 5: 2}), range(10))) == [
        number * number for number in range(10)
    ]
    assert engine.merge(Deadly(folder=folders[1], with_it={5: 1, 29: 1}), range(30), add) == sum(
        number * number for number in range(30)
    )


@pytest.mark.parametrize("engine", IN_PROCESSES, indirect=True)
def test_an_item_that_ends_every_worker_is_named(engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="Part 4 of the work has ended 4 "):
        engine.merge(Deadly(folder=tmp_path, with_it={3: 99}), range(10), add)
    assert list(engine.map(Wrong(number=-1), range(4))) == [0, 1, 2, 3]


@pytest.mark.parametrize("engine", IN_PROCESSES, indirect=True)
def test_what_cannot_be_sent_is_told(engine: Engine) -> None:
    with pytest.raises(EngineError, match=r"cannot be sent to other processes: .*pickle"):
        list(engine.map(Wrong(number=1), [(number for number in range(3))]))
