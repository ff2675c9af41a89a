"""Which kernels ONNX Runtime makes of two operators in a row: a slice of the golden table of `make patterns`."""

from __future__ import annotations

import re
from pathlib import Path

import onnx
import pytest
from pattern_models import names
from patterns import GOLDEN, HEADER, kernels, open_session, quantized

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


@pytest.mark.parametrize(
    "pattern",
    [
        *("rows gemm relu tanh", "rows matmuladd relu shift", "sequence matmul clip tanh"),
        *("sequence matmuladd relu sigmoid", "rows matmul relu"),
    ],
)
def test_a_product_whose_clamp_is_read_in_float_is_one_of_integers(pattern: str, tmp_path: Path) -> None:
    kind, *steps = pattern.split()
    found = kernels(quantized(kind, tuple(steps), tmp_path, full_int8=True), tmp_path)
    assert re.search(r"\b(QGemm|MatMulIntegerToFloat) 1\b", found), found


BETWEEN = ("leaky", "scale", "swish", "shift", "squeeze", "halves", "crop", "turn")


@pytest.mark.parametrize("behind", [(), ("conv",)])
@pytest.mark.parametrize("step", BETWEEN)
@pytest.mark.parametrize("everything", [False, True])
def test_no_pool_of_bytes_has_the_channels_in_front(
    step: str, behind: tuple[str, ...], everything: bool, tmp_path: Path
) -> None:
    file = quantized("image", ("conv", step, "maxpool", *behind), tmp_path, full_int8=everything)
    optimised = tmp_path / "optimised.onnx"
    open_session(file, optimised)
    model = onnx.load(optimised)
    makers = {name: node for node in model.graph.node for name in node.output}
    for pool in (node for node in model.graph.node if node.op_type == "MaxPool"):
        assert makers[pool.input[0]].op_type == "ReorderInput"  # blocks of channels, which are in float
    if behind and step != "turn" and everything:
        assert "NhwcMaxPool" in {node.op_type for node in model.graph.node}


@pytest.mark.skipif(GOLDEN.read_text(encoding="utf-8").splitlines()[0] != HEADER, reason="another ONNX Runtime")
@pytest.mark.parametrize("line", [line for i, line in enumerate(lines()) if i % EVERY == 0 or line.startswith(PINNED)])
def test_kernels_are_those_of_the_table(line: str, tmp_path: Path) -> None:
    pattern, expected = line.split(": ")
    kind, *steps = pattern.split()
    assert kernels(quantized(kind, tuple(steps), tmp_path), tmp_path) == expected
