"""`make conformance`: what it calls wrong, that one model cannot stop it, and a slice of its golden table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import conformance
import conformance_workers
import numpy as np
import onnx
import pytest
from conformance_forms import Case
from conformance_golden import GOLDEN, read_golden, versions, write_golden
from conformance_models import items, sources
from conformance_outcomes import NO_FLOAT, ROUTES, Reference, judge
from conformance_workers import Task, run_tasks
from flow import build, normal, two_convs

import amct_onnx as amct
from amct_onnx.errors import ModelError

# Modules whose models are quick: layers, what has none or cannot be run, and operators between two products.
QUICK = {"frozen": ("conv", "matmul", "roialign", "simple"), "sandwich": ("compress", "reversesequence", "sign")}
EVERY = 160  # which of all models is in the larger slice


@pytest.fixture
def reference() -> Reference:
    """A float model of two layers that runs."""
    return Reference.of(Case(model=two_convs(), feed={"x": normal(5, 1, 3, 6, 6)}))


@pytest.mark.parametrize("route", ROUTES)
def test_a_right_result_agrees(reference: Reference, route: str) -> None:
    assert judge(reference, route, "fast").words == "agrees"


def _raises(error: Exception) -> Callable[..., Any]:
    def quantize(*_: Any, **__: Any) -> Any:
        raise error

    return quantize


def _writes(change: Callable[[onnx.ModelProto], object]) -> Callable[..., Any]:
    """What writes the float model with a change in place of a quantized one."""

    def quantize(path: str, *_: Any, **__: Any) -> Any:
        model = onnx.load(path)
        change(model)

        def save(prefix: Path, **_: Any) -> Any:
            onnx.save(model, f"{prefix}.onnx")
            return SimpleNamespace(files=(f"{prefix}.onnx",))

        return SimpleNamespace(save=save)

    return quantize


def _rename(model: onnx.ModelProto) -> None:
    model.graph.output[0].name = model.graph.node[-1].output[0] = "other"


def _open_batch(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1


def _dangle(model: onnx.ModelProto) -> None:
    model.graph.node[1].input[0] = "nothing"


def _spoil(model: onnx.ModelProto) -> None:
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == "w2")
    weight.raw_data = np.roll(np.frombuffer(weight.raw_data, np.float32), 1).tobytes()


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        pytest.param(_raises(KeyError("a.output0")), "WRONG: exception", id="exception"),
        pytest.param(_raises(ModelError("one line\nand another")), "WRONG: message", id="two lines"),
        pytest.param(_raises(ModelError("long " * 100)), "WRONG: message", id="long message"),
        pytest.param(_raises(ModelError("It has no layer that can be quantized.")), "refused: no layer", id="refused"),
        pytest.param(_writes(_rename), "WRONG: interface", id="other name"),
        pytest.param(_writes(_open_batch), "WRONG: interface", id="other shape"),
        pytest.param(_writes(_dangle), "WRONG: invalid", id="dangling"),
        pytest.param(_writes(_spoil), "poor", id="other numbers"),
        pytest.param(_writes(lambda model: None), "agrees", id="unchanged"),
    ],
)
def test_what_is_called_wrong(
    broken: Callable[..., Any], words: str, reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(amct, "quantize", broken)
    assert judge(reference, "onnxruntime", "fast").words == words


@pytest.mark.parametrize("route", ROUTES)
def test_a_model_that_does_not_run_is_counted_apart(route: str) -> None:
    model = build("g (float[2,3] x) => (float[2,5] y) { a = Nonsense (x) y = MatMul (a, w) }", w=normal(1, 3, 5))
    assert judge(Reference.of(Case(model=model, feed={"x": normal(2, 2, 3)})), route, "fast").words == NO_FLOAT


def test_the_end_of_a_process_costs_one_model() -> None:
    tasks = [
        Task(form="frozen", source=source, name=name, routes=("onnxruntime",))
        for source, name in (("no_such_module", "any"), ("abs", "abs"))
    ]
    ends, goes_on = run_tasks(tasks, workers=1)
    assert (ends.task, ends.route, ends.words) == (tasks[0], "form", "float model ends the process")
    assert (goes_on.task, goes_on.route, goes_on.words) == (tasks[1], "onnxruntime", "refused: no layer")


def test_a_process_that_does_not_answer_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conformance_workers, "TIMEOUT", 0.05)  # it takes longer to begin
    (answer,) = run_tasks([Task(form="frozen", source="abs", name="abs", routes=("amct",))], workers=1)
    assert answer.details == "no answer within 0 s"


def test_a_golden_table_is_read_as_it_was_written(tmp_path: Path) -> None:
    outcomes = {
        ("frozen", "abs"): ("refused: no layer",),
        ("frozen", "conv"): ("agrees", "poor", "agrees", "agrees", "agrees"),
        **{(f"opset{opset}", "abs"): ("agrees",) for opset in (11, 12, 13, 17, 19, 20)},
    }
    write_golden(outcomes, tmp_path / "table.txt")
    assert "abs:11-13,17,19-20" in (tmp_path / "table.txt").read_text(encoding="utf-8")
    assert read_golden(tmp_path / "table.txt") == outcomes


def _hold(tasks: list[Task], workers: int = 1) -> None:
    """Nothing is wrong, and with the versions of the golden table all is as it says."""
    answers = list(run_tasks(tasks, workers))
    assert [answer for answer in answers if answer.words.startswith("WRONG")] == []
    found, golden = conformance.outcomes_of(answers), read_golden()
    if GOLDEN.read_text(encoding="utf-8").startswith(versions() + "\n"):
        assert found.keys() <= golden.keys()
        assert list(conformance.changes(golden, found)) == []


def test_a_slice_of_the_suite() -> None:
    known = sources()
    _hold(
        [
            task
            for form, chosen in QUICK.items()
            for source in chosen
            if source in known
            for task in conformance.tasks_of(list(items(source).values()), form)
        ]
    )


@pytest.mark.slow
def test_a_larger_slice_in_all_forms() -> None:
    found = [item for source in sources() for item in items(source).values()]
    _hold([task for form in conformance.FORMS for task in conformance.tasks_of(found, form)[::EVERY]], workers=2)
