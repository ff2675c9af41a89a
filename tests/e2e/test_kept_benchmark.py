"""`make accuracy ARGS="--keep FOLDER"`: what is taken from the folder, and what is not."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import accuracy
import numpy as np
import onnx
import peers
import pytest
import tasks
from beside_peers import Bench, Entry, Run
from flow import normal, two_convs
from kept import Kept, digest
from prepared import Case

ENTRY = Entry(
    side=peers.SIDES["onnxruntime"], scheme=peers.find_scheme("onnxruntime", "min-max QOperator"), python=sys.executable
)
INPUTS = {"version": "1", "calibration": "a"}


class Maker:
    """Makes runs whose model says how many there were before."""

    def __init__(self, folder: Path, *, problem: str | None = None) -> None:
        self._folder, self._problem, self.count = folder, problem, 0

    def __call__(self) -> Run:
        self.count += 1
        model = self._folder / f"made_{self.count}.onnx"
        model.write_text(str(self.count), encoding="utf-8")
        done = Run(seconds=self.count, peak=7.0, model=model)
        return done if self._problem is None else Run(seconds=self.count, problem=self._problem)


def test_the_same_run_is_taken_from_the_folder_by_another_process_too(tmp_path: Path) -> None:
    make = Maker(tmp_path)
    first = Kept(tmp_path / "keep").run(ENTRY, INPUTS, make)
    again = Kept(tmp_path / "keep").run(ENTRY, INPUTS, make)
    assert make.count == 1
    assert again == replace(first, kept=True)
    assert not first.kept
    assert first.model is not None
    assert first.model.read_text() == "1"
    assert Kept(tmp_path / "keep").holds(first.model)
    assert not Kept(tmp_path / "keep").holds(tmp_path / "made_1.onnx")


@pytest.mark.parametrize("other", [{"version": "2"}, {"calibration": "b"}])
def test_another_version_or_other_calibration_data_is_another_run(tmp_path: Path, other: dict[str, str]) -> None:
    kept, make = Kept(tmp_path / "keep"), Maker(tmp_path)
    kept.run(ENTRY, INPUTS, make)
    assert not kept.run(ENTRY, INPUTS | other, make).kept
    scheme = peers.find_scheme("onnxruntime", "min-max Q/DQ")
    assert not kept.run(replace(ENTRY, scheme=scheme), INPUTS, make).kept
    assert make.count == 3
    assert kept.run(ENTRY, INPUTS, make).seconds == 1


def test_a_failure_is_kept_with_its_reason(tmp_path: Path) -> None:
    kept, make = Kept(tmp_path / "keep"), Maker(tmp_path, problem="it does not like Slice")
    kept.run(ENTRY, INPUTS, make)
    again = kept.run(ENTRY, INPUTS, make)
    assert (again.problem, again.model, again.seconds, again.kept) == ("it does not like Slice", None, 1, True)


def test_a_run_that_was_stopped_while_it_was_stored_is_made_again(tmp_path: Path) -> None:
    kept, make = Kept(tmp_path / "keep"), Maker(tmp_path)
    first = kept.run(ENTRY, INPUTS, make)
    assert first.model is not None
    (first.model.parent / "run.json").unlink()
    assert kept.run(ENTRY, INPUTS, make).seconds == 2


def test_a_tally_is_kept_for_one_test(tmp_path: Path) -> None:
    kept = Kept(tmp_path / "keep")
    run = kept.run(ENTRY, INPUTS, Maker(tmp_path))
    assert run.model is not None
    made = []

    def make() -> tasks.Tally:
        made.append(tasks.Classes())
        made[-1].add(np.array([1.0, 2.0]), np.array([1.0, 1.5]), 1)
        return made[-1]

    values = [
        {name: figure.value for name, figure in kept.tally(run.model, test, make).figures().items()}
        for test in ("one", "one", "two")
    ]
    assert len(made) == 2
    assert values[0] == values[1] == values[2]
    assert values[0]["dB"] == pytest.approx(10 * np.log10(5 / 0.25))


def test_own_models_are_made_anew_and_peers_are_not(tmp_path: Path) -> None:
    """A real run of both on a small network."""
    onnx.save(two_convs(), tmp_path / "net.onnx")
    images = tmp_path / "images.npy"
    np.save(images, normal(5, 3, 3, 8, 8))
    own = Entry(side=peers.OURS, scheme=peers.find_scheme(peers.OURS.name, "default"), python=sys.executable)
    task = SmallTask(name="net", file=str(tmp_path / "net.onnx"), tally=tasks.Classes)
    found = []
    for turn in range(2):
        folder = tmp_path / str(turn)
        folder.mkdir()
        bench = Bench(accuracy.parse_arguments(["--quick"]), folder)
        entries, limits = {own: "0", ENTRY: "1"}, {own: 3, ENTRY: 3}
        found.append(accuracy.run_entries(bench, task, images, entries, limits, Kept(tmp_path / "keep")))
    assert [run.problem for runs in found for run in runs.values()] == [None] * 4
    assert [runs[own].kept for runs in found] == [False, False]
    assert [runs[ENTRY].kept for runs in found] == [False, True]
    assert found[0][own].model != found[1][own].model
    models = [runs[ENTRY].model for runs in found]
    assert models[0] == models[1]
    assert models[1] is not None
    assert digest(models[1]) != digest(tmp_path / "net.onnx")


class SmallTask(tasks.Classification):
    """A model file of its own."""

    @property
    def case(self) -> Case:
        return Case(name=self.name, model=Path(self.file))
