"""What keeps the source easy to find one's way in: short trips, one place for targets, frozen values, named rooms."""

from __future__ import annotations

import ast
import inspect
import re
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from flow import CPU, classifier, normal

import amct_onnx
from amct_onnx.numerics import rounding
from amct_onnx.numerics.activations import ifmr, mse
from amct_onnx.numerics.weights import arq

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src" / "amct_onnx"
MODULES = sorted(SOURCE.rglob("*.py"))


def where(path: Path, node: ast.AST | int) -> str:
    return f"{path.relative_to(ROOT)}:{node if isinstance(node, int) else getattr(node, 'lineno', 0)}"


# --- short trips

MOST_TO_A_SCALE = 6
MOST_TO_INTEGERS = 7


def frames_between(
    outer: Callable[..., Any],
    inner: Callable[..., Any],
    run: Callable[[], object],
    counts: Callable[[FrameType], bool] = lambda frame: True,
) -> list[list[str]]:
    """For each call of `inner` below `outer` while `run` runs, the functions of ours between the two, outermost first.

    Wrappers of decorators and comprehensions count, as they do for somebody who follows the calls. `counts` says from
    the frame of `inner` whether a call is meant. A call in another thread has the functions of that thread only.
    """
    codes: list[CodeType] = [outer.__code__, inspect.unwrap(inner).__code__]  # type: ignore[attr-defined]
    found: list[list[str]] = []

    def profile(frame: FrameType, event: str, argument: object) -> None:
        if event != "call" or frame.f_code is not codes[1] or not counts(frame):
            return
        trip: list[str] = []
        caller = frame.f_back
        while caller is not None and caller.f_code is not codes[0]:
            if Path(caller.f_code.co_filename).is_relative_to(SOURCE):
                trip.insert(0, f"{Path(caller.f_code.co_filename).stem}.{caller.f_code.co_name}")
            caller = caller.f_back
        found.append(trip)

    before = sys.getprofile()
    threading.setprofile(profile)
    sys.setprofile(profile)
    try:
        run()
    finally:
        sys.setprofile(before)
        threading.setprofile(before)  # type: ignore[arg-type]
    return found


def longest(trips: list[list[str]]) -> list[str]:
    assert trips, "the arithmetic was not reached"
    return max(trips, key=len)


def first(trips: list[list[str]]) -> list[str]:
    assert trips, "the arithmetic was not reached"
    return trips[0]


@pytest.fixture
def model(tmp_path: Path) -> str:
    onnx.save(classifier(), tmp_path / "model.onnx")
    return str(tmp_path / "model.onnx")


@pytest.fixture
def flow(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], object]:
    """`flow("quantize")`, `flow("run")`, `flow("save")`: the steps of AMCT's flow, one after the other."""
    monkeypatch.chdir(tmp_path)
    amct_onnx.create_quant_config("config.json", model)

    def run() -> None:
        session = ort.InferenceSession("calibration.onnx", amct_onnx.AMCT_SO, providers=CPU)
        session.run(None, {"x": normal(4, 4, 3, 8, 8)})

    steps: dict[str, Callable[[], object]] = {
        "quantize": lambda: amct_onnx.quantize_model("config.json", model, "calibration.onnx", "record.txt"),
        "run": run,
        "save": lambda: amct_onnx.save_model("calibration.onnx", "record.txt", "results/model"),
    }
    return lambda step: steps[step]()


@pytest.mark.parametrize("effort", ["fast", "default"])
@pytest.mark.parametrize("target", ["onnxruntime", "ascend"])
def test_from_quantize_to_the_scale_of_a_tensor(model: str, target: str, effort: str) -> None:
    data = normal(0, 8, 3, 8, 8)
    run = {
        "onnxruntime": lambda: amct_onnx.quantize(model, data, effort=effort, full_int8=True).model(),
        "ascend": lambda: amct_onnx.quantize(model, data, target="ascend", algorithm="ifmr", effort=effort).model(),
    }
    solver = {"onnxruntime": mse.solve_mse, "ascend": ifmr.solve_ifmr}
    # With more effort than "fast" the trials of a recipe solve again what they change, on longer ways of their own.
    take = longest if effort == "fast" else first
    trip = take(frames_between(amct_onnx.quantize, solver[target], run[target]))
    assert len(trip) <= MOST_TO_A_SCALE, " -> ".join(trip)


def test_from_quantize_model_to_the_scale_of_a_weight(flow: Callable[[str], object]) -> None:
    trip = longest(frames_between(amct_onnx.quantize_model, arq.solve_arq, lambda: flow("quantize")))
    assert len(trip) <= MOST_TO_A_SCALE, " -> ".join(trip)


def test_from_save_model_to_the_integers_of_a_weight(flow: Callable[[str], object]) -> None:
    flow("quantize")
    flow("run")

    def of_weight(frame: FrameType) -> bool:
        return np.ndim(frame.f_locals["x"]) > 1

    trip = longest(frames_between(amct_onnx.save_model, rounding.quantize, lambda: flow("save"), of_weight))
    assert len(trip) <= MOST_TO_INTEGERS, " -> ".join(trip)


# --- targets, and values that stay as they are

TARGETS = frozenset({"ascend", "onnxruntime", "openvino", "tensorrt"})
TABLES = frozenset(name.upper() for name in TARGETS)
TARGET_NAMES = frozenset({f"{name}_NAME" for name in TABLES} | {"QDQ_TARGETS"})
# Where the targets are, and the tables that describe them.
OF_TARGETS = ("targets", "values")


def names_a_target(node: ast.expr) -> bool:
    """Whether an operand of a comparison holds the name of a target: a text, a constant, or the name of a table."""
    if isinstance(node, ast.Constant):
        return node.value in TARGETS if isinstance(node.value, str) else False
    if isinstance(node, ast.Tuple | ast.List | ast.Set):
        return any(names_a_target(item) for item in node.elts)
    if isinstance(node, ast.Attribute):
        inner = node.value
        table = inner.id if isinstance(inner, ast.Name) else inner.attr if isinstance(inner, ast.Attribute) else ""
        return node.attr in TARGET_NAMES or (node.attr == "name" and table in TABLES)
    return isinstance(node, ast.Name) and node.id in TARGET_NAMES


def branches_on_targets(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare) and any(map(names_a_target, (node.left, *node.comparators))):
            yield node
        if isinstance(node, ast.MatchValue) and names_a_target(node.value):
            yield node


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('if target == "ascend": pass', True),
        ('if target in ("openvino", "tensorrt"): pass', True),
        ("x = 1 if a.target != ASCEND_NAME else 2", True),
        ("x = target == qdq_tables.ONNXRUNTIME.name", True),
        ("x = target in QDQ_TARGETS", True),
        ('match target:\n    case "ascend" | "openvino": pass', True),
        ('def f(target="onnxruntime"): return TABLE[target]', False),
        ("x = target in TARGETS", False),
    ],
)
def test_a_branch_on_a_target_is_seen(text: str, found: bool) -> None:
    assert bool(list(branches_on_targets(ast.parse(text)))) == found


def test_only_targets_know_which_target_it_is() -> None:
    elsewhere = [path for path in MODULES if path.relative_to(SOURCE).parts[0] not in OF_TARGETS]
    found = [where(path, node) for path in elsewhere for node in branches_on_targets(ast.parse(path.read_text()))]
    assert found == []


CHANGES_A_DICT = frozenset({"clear", "pop", "popitem", "setdefault", "update", "__setitem__"})


def is_dict(node: ast.expr) -> bool:
    """Whether it is the dictionary in which an object keeps its attributes; a module is no value."""
    text = ast.unparse(node)
    return text.endswith(".__dict__") or (text.startswith("vars(") and text != "vars(module)")


def is_frozen(node: ast.ClassDef) -> bool:
    return any("frozen=True" in ast.unparse(decorator) for decorator in node.decorator_list)


def writes_into_values(node: ast.AST, function: str = "", frozen: bool = True) -> Iterator[ast.AST]:
    """Statements that set an attribute behind the back of a value; `frozen`: of the class around, if there is one."""
    if isinstance(node, ast.Call):
        called = ast.unparse(node.func)
        if (
            called in ("object.__setattr__", "object.__delattr__", "super().__setattr__")
            and function != "__post_init__"
        ):
            yield node
        if called in ("setattr", "delattr") and (frozen or ast.unparse(node.args[0]) != "self"):
            yield node
        if isinstance(node.func, ast.Attribute) and node.func.attr in CHANGES_A_DICT and is_dict(node.func.value):
            yield node
    if isinstance(node, ast.Subscript) and not isinstance(node.ctx, ast.Load) and is_dict(node.value):
        yield node
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        function = node.name
    if isinstance(node, ast.ClassDef):
        frozen = is_frozen(node)
    for child in ast.iter_child_nodes(node):
        yield from writes_into_values(child, function, frozen)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("def f(x): object.__setattr__(x, 'a', 1)", True),
        ("x.__dict__['a'] = 1", True),
        ("del vars(x)['a']", True),
        ("x.__dict__.update(a=1)", True),
        ("setattr(x, 'a', 1)", True),
        ("@dataclass(frozen=True)\nclass A:\n    def f(self): setattr(self, 'a', 1)", True),
        ("class A:\n    def f(self): setattr(self, 'a', 1)", False),
        ("class A:\n    def __post_init__(self): object.__setattr__(self, 'a', 1)", False),
        ("y = x.__dict__['a']", False),
        ("vars(module).update(a=1)", False),
    ],
)
def test_a_write_into_a_value_is_seen(text: str, found: bool) -> None:
    assert bool(list(writes_into_values(ast.parse(text)))) == found


def test_no_attribute_is_set_on_a_value_after_it_was_built() -> None:
    found = [where(path, node) for path in MODULES for node in writes_into_values(ast.parse(path.read_text()))]
    assert found == []


# --- rooms

MOST_LINES = 400


def test_the_architecture_lists_the_rooms() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    rows = re.findall(r"^\| `([\w/.]+)` \| *(.*?) *\|$", text, re.MULTILINE)
    folders = {path.parent.relative_to(SOURCE).as_posix() for path in MODULES} - {"."}
    modules = {path.name for path in MODULES if path.parent == SOURCE} - {"__init__.py"}
    expected = {f"{folder}/" for folder in folders} | modules
    names = [name for name, _ in rows if name.endswith(("/", ".py")) and not (ROOT / name).exists()]
    assert len(names) == len(set(names))
    assert set(names) == expected
    assert [name for name, sentence in rows if name in expected and len(sentence.split()) < 3] == []


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(SOURCE).as_posix())
def test_a_module_has_a_size_that_is_read_in_one_go_and_says_what_it_is(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= MOST_LINES
    first = (ast.get_docstring(ast.parse(text)) or "").split("\n")[0]
    assert first or not text.strip(), f"{where(path, 1)} has no docstring"


# --- what is read

READ = [
    path
    for folder in ("src", "tests", "benchmarks", "samples", "docs")
    for path in sorted((ROOT / folder).rglob("*"))
    if path.suffix in (".py", ".c", ".h", ".md") and "egg-info" not in path.as_posix() and path != Path(__file__)
]
OUTSIDE = re.compile(
    r"\bspec(?:ification)? (?:sections? |§ ?)?\d|\bspec(?:ification)? sections?\b|§ ?\d", re.IGNORECASE
)
DOCUMENT = re.compile(r"\bdocs/[\w/-]+\.md\b")
# A reference to headings reads `amct_formats.md: A heading, another heading`.
REFERENCE = re.compile(r"\b([a-z_]+\.md): ")
HEADING = re.compile(r"^#+ +(.*?) *$", re.MULTILINE)


def test_no_document_outside_the_repository_is_referred_to() -> None:
    lines = ((path, number, line) for path in READ for number, line in enumerate(path.read_text().splitlines(), 1))
    assert [f"{where(path, number)}: {line.strip()}" for path, number, line in lines if OUTSIDE.search(line)] == []


def test_documents_that_are_referred_to_exist() -> None:
    found = [(path, name) for path in READ if path.suffix != ".md" for name in DOCUMENT.findall(path.read_text())]
    assert [f"{path.relative_to(ROOT)}: {name}" for path, name in found if not (ROOT / name).is_file()] == []


def one_line(path: Path) -> str:
    """The text of a source file without the marks of comments and without line breaks."""
    return " ".join(re.sub(r"^\s*(?:#|//|\*)?\s*", "", line) for line in path.read_text().splitlines())


def headings_at(text: str, known: list[str]) -> list[str]:
    """The headings, separated by commas, that `text` begins with."""
    first = next((heading for heading in known if text.startswith(heading)), None)
    if first is None:
        return []
    rest = text[len(first) :]
    return [first, *headings_at(rest[2:], known)] if rest.startswith(", ") else [first]


def test_headings_that_are_referred_to_exist() -> None:
    documents = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    known = {
        path.name: sorted(HEADING.findall(path.read_text().replace("`", "")), key=len, reverse=True)
        for path in documents
    }
    missing = []
    for path in (path for path in READ if path.suffix != ".md"):
        text = one_line(path)
        for reference in REFERENCE.finditer(text):
            rest = text[reference.end() :]
            if not headings_at(rest.replace("`", ""), known.get(reference[1], [])):
                missing.append(f"{path.relative_to(ROOT)}: {reference[0]}{rest[:40]}")
    assert missing == []
