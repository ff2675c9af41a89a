"""The golden table of `make conformance`: what came of each model, as a file that a person can read and compare.

A paragraph has a form and the outcomes for all routes, one where they are the same, and below the names of the models.
In the paragraphs of opsets a name has ranges of opsets.
"""

from __future__ import annotations

import re
import textwrap
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import onnx
import onnxruntime as ort

GOLDEN = Path(__file__).resolve().parents[1] / "tests" / "e2e" / "conformance.txt"
Outcomes = Mapping[tuple[str, str], tuple[str, ...]]
_OPSETS, _BETWEEN = "opsets", " | "


def versions() -> str:
    """The first line of a table: what its outcomes depend on."""
    return f"onnx {onnx.__version__}, onnxruntime {ort.__version__}"


def read_golden(path: Path = GOLDEN) -> dict[tuple[str, str], tuple[str, ...]]:
    """Outcomes by form and name of a model; nothing if there is no table."""
    if not path.exists():
        return {}
    found: dict[tuple[str, str], tuple[str, ...]] = {}
    for paragraph in path.read_text(encoding="utf-8").split("\n\n")[1:]:
        title, *lines = paragraph.splitlines()
        form, _, words = title.partition(": ")
        for name in " ".join(lines).split():
            for each, model in _models(form, name):
                found[each, model] = tuple(words.split(_BETWEEN))
    return found


def write_golden(outcomes: Outcomes, path: Path = GOLDEN) -> None:
    """Write a table, the same for the same outcomes."""
    paragraphs: dict[tuple[str, str], dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for (form, name), said in outcomes.items():
        opset = int(form.removeprefix("opset")) if form.startswith("opset") else 0
        words = said[0] if len(set(said)) == 1 else _BETWEEN.join(said)
        paragraphs[_OPSETS if opset else form, words][name].append(opset)
    blocks = [versions()]
    for (form, words), names in sorted(paragraphs.items()):
        told = (f"{name}:{_ranges(found)}" if form == _OPSETS else name for name, found in sorted(names.items()))
        lines = textwrap.wrap(" ".join(told), 118, break_long_words=False, break_on_hyphens=False)
        blocks.append("\n".join([f"{form}: {words}", *(f"  {line}" for line in lines)]))
    path.write_text("\n\n".join(blocks) + "\n", encoding="utf-8")


def changes(golden: Outcomes, found: Outcomes) -> Iterator[str]:
    """A line for each model whose outcomes are not those of the golden table."""
    for key, said in found.items():
        if (known := golden.get(key)) is not None and _short(known) != _short(said):
            yield f"{' '.join(key)}: was {_BETWEEN.join(_short(known))}, is {_BETWEEN.join(_short(said))}"


def _short(said: Sequence[str]) -> tuple[str, ...]:
    return tuple(said[:1]) if len(set(said)) == 1 else tuple(said)


def _models(form: str, name: str) -> Iterator[tuple[str, str]]:
    if form != _OPSETS:
        yield form, name
        return
    name, _, ranges = name.rpartition(":")
    for low, high in re.findall(r"(\d+)(?:-(\d+))?", ranges):
        for opset in range(int(low), int(high or low) + 1):
            yield f"opset{opset}", name


def _ranges(opsets: Iterable[int]) -> str:
    """11-13,15 for 11, 12, 13, 15."""
    parts: list[list[int]] = []
    for opset in sorted(opsets):
        if parts and parts[-1][-1] == opset - 1:
            parts[-1].append(opset)
        else:
            parts.append([opset])
    return ",".join(str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts)
