"""The mapping file of NUQ: the names in it, and every mistake with its path."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from amct_onnx.errors import ConfigError, FileMissingError
from amct_onnx.files.nuq_mapping import read_mapping


def document(*operators: Any) -> dict[str, Any]:
    return {"name": "m", "graph": [{"name": "g", "op": list(operators)}]}


def originals(*names: Any) -> dict[str, Any]:
    return {"key": "_datadump_original_op_names", "value": {"list": {"s": list(names), "val_type": "VT_LIST_STRING"}}}


def test_names_of_operators_and_of_what_they_were_made_of(tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    fused = {"name": "c1relu", "type": "Conv2D", "attr": [{"key": "other", "value": {"i": 1}}, originals("c1", "relu")]}
    empty = {"name": "c3", "type": "Conv2D", "attr": [{"key": "_datadump_original_op_names", "value": {"list": {}}}]}
    constant = {"name": "w", "type": "Const"}
    path.write_text(json.dumps(document(fused, {"name": "c2", "type": "Conv2D"}, empty, constant)))
    assert read_mapping(path) == {"c1relu", "c1", "relu", "c2", "c3"}


def test_the_file_that_atc_wrote_for_a_resnet_101(test_data: Callable[..., Path]) -> None:
    names = read_mapping(test_data("golden", "amct_records", "onnx_resnet-101_mapping.json"))
    convolutions = {name for name in names if name.startswith("Conv_") and name[5:].isdigit()}
    assert len(convolutions) == 104
    assert {"Conv_0", "Gemm_353", "MaxPool_3"} <= names


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", ":1:1: no JSON: "),
        ('{"graph": [', ":1:12: no JSON: "),
        ("[]", ": must be one JSON object, but is list; a mapping file is what atc --mode=1 makes"),
        ("{}", ": graph: is missing"),
        ('{"graph": {}}', ": graph: must be a list"),
        ('{"graph": [1]}', ": graph[0]: must be an object, but is int"),
        ('{"graph": [{}]}', ": graph[0].op: is missing"),
        ('{"graph": [{"op": []}]}', ": graph: names no operator"),
        ('{"graph": [{"op": [{"type": "Conv2D"}]}]}', ": graph[0].op[0].name: must be the name of an operator"),
        (json.dumps(document({"name": "a", "attr": 1})), ": graph[0].op[0].attr: must be a list"),
        (json.dumps(document({"name": "a", "attr": [originals(1)]})), ": graph[0].op[0].attr[0].value.list.s: must be"),
    ],
)
def test_a_mistake_has_its_place(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "m.json"
    path.write_text(content)
    with pytest.raises(ConfigError) as caught:
        read_mapping(path)
    assert str(caught.value).startswith(f"{path}{message}")


def test_all_mistakes_at_once_and_missing_files(tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    path.write_text(json.dumps({"graph": [1, {"op": [{"name": 1}, {"name": "a", "attr": [originals(1)]}]}]}))
    with pytest.raises(ConfigError, match="3 mistakes"):
        read_mapping(path)
    with pytest.raises(FileMissingError, match="the mapping file does not exist"):
        read_mapping(tmp_path / "none.json")
    with pytest.raises(ConfigError, match="is a folder"):
        read_mapping(tmp_path)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["graph", "op", "attr", "name", "key", "value", "list", "s"]), inner)
    ),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(json_values)
def test_any_json_is_read_or_refused(tmp_path: Path, value: Any) -> None:
    (tmp_path / "m.json").write_text(json.dumps(value))
    try:
        names = read_mapping(tmp_path / "m.json")
    except ConfigError:
        return
    assert names
