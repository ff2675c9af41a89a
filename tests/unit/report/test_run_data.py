"""A run as a JSON document, and back."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from flow import images, two_convs

import amct_onnx
from amct_onnx.report.gather import gather
from amct_onnx.report.run_data import run_of, to_document


@pytest.fixture(scope="module")
def document() -> Any:
    return to_document(gather(amct_onnx.quantize(two_convs(), images(0, 8), effort="default")))


def test_a_document_is_plain_json_and_reads_back(document: Any) -> None:
    text = json.dumps(document, allow_nan=False)
    assert to_document(run_of(json.loads(text))) == document


def test_the_same_run_gives_the_same_document(document: Any) -> None:
    assert to_document(gather(amct_onnx.quantize(two_convs(), images(0, 8), effort="default", batch_size=3))) == {
        **document,
        "data": "8 samples along axis 0 of the inputs, in 3 feeds",
    }


def change(document: Any, place: list[str | int], value: Any) -> Any:
    changed = copy.deepcopy(document)
    inner = changed
    for step in place[:-1]:
        inner = inner[step]
    if value is None:
        del inner[place[-1]]
    else:
        inner[place[-1]] = value
    return changed


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (["layers"], None, "the run has no layers"),
        (["layers", 0, "name"], 3, r"the run.layers\[0\].name is no str"),
        (["layers", 0, "alone"], "loud", r"the run.layers\[0\].alone is no float"),
        (["layers", 0, "node"], 99, "a layer is a node that is not there"),
        (["nodes", 0, "block"], 7, "a block is not there"),
        (["edges", 0], [0], r"the run.edges\[0\] has 1 entries in the place of 2"),
        (["edges", 0], [0, 50], "an edge leads to a node that is not there"),
        (["tensors"], [], "the run.tensors is no object"),
        (["accuracy", "samples"], True, "the run.accuracy.samples is no int"),
    ],
)
def test_another_document_is_refused_with_the_place(
    document: Any, place: list[str | int], value: Any, said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        run_of(change(document, place, value))
