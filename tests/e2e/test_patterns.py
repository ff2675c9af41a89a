"""Which kernels ONNX Runtime makes of two operators in a row: a slice of the golden table of `make patterns`."""

from __future__ import annotations

from pathlib import Path

import pytest
from pattern_models import names
from patterns import GOLDEN, HEADER, kernels, quantized

EVERY = 40  # which of all pairs is in the slice
PINNED = (
    "image maxpool conv",
    "image +conv maxpool",
    "image conv avgpool",
    "rows matmuladd matmuladd",
    "image conv gelu",
)


def lines() -> list[str]:
    return GOLDEN.read_text(encoding="utf-8").splitlines()[1:]


def test_the_table_has_all_pairs() -> None:
    held = [line.split(": ")[0] for line in lines()]
    assert held == [f"{kind} {' '.join(pair)}" for kind in ("image", "rows", "sequence") for pair in names(kind, 2)]


@pytest.mark.skipif(GOLDEN.read_text(encoding="utf-8").splitlines()[0] != HEADER, reason="another ONNX Runtime")
@pytest.mark.parametrize("line", [line for i, line in enumerate(lines()) if i % EVERY == 0 or line.startswith(PINNED)])
def test_kernels_are_those_of_the_table(line: str, tmp_path: Path) -> None:
    pattern, expected = line.split(": ")
    kind, *steps = pattern.split()
    assert kernels(quantized(kind, tuple(steps), tmp_path), tmp_path) == expected
