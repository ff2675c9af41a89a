"""What wrong arguments of the public functions get: AMCT's own texts, and nothing written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from flow import everything_below
from refusal import refused

import amct_onnx as amct
from amct_onnx.errors import (
    AmctError,
    ArgumentError,
    ArgumentTypeError,
    ConfigError,
    ConfigTypeError,
    FileMissingError,
    ModelError,
    ModelFileError,
    OutputError,
    RecordError,
    RecordValueError,
)

ARGUMENTS: dict[str, tuple[Any, dict[str, Any]]] = {
    "create_quant_config": (amct.create_quant_config, {"config_file": "c", "model_file": "m"}),
    "quantize_model": (
        amct.quantize_model,
        {"config_file": "c", "model_file": "m", "modified_onnx_file": "o", "record_file": "r"},
    ),
    "quantize_preprocess": (
        amct.quantize_preprocess,
        {"config_file": "c", "record_file": "r", "model_file": "m", "modified_onnx_file": "o"},
    ),
    "save_model": (amct.save_model, {"modified_onnx_file": "o", "record_file": "r", "save_path": "s"}),
    "convert_qat_model": (amct.convert_qat_model, {"model_file": "m", "save_path": "s"}),
}
STRINGS = [(name, argument) for name, (_, arguments) in ARGUMENTS.items() for argument in arguments]


@pytest.fixture
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("name", "argument"), STRINGS)
@pytest.mark.parametrize("value", [None, 1, b"path", Path("path"), ["path"]])
def test_an_argument_that_is_no_str(in_folder: Path, name: str, argument: str, value: Any) -> None:
    function, arguments = ARGUMENTS[name]
    with refused(
        in_folder, ArgumentTypeError, f"^Func {name} argument {argument} must be str, got {type(value).__name__}$"
    ):
        function(**arguments | {argument: value})


@pytest.mark.parametrize(
    ("argument", "value", "kind"),
    [
        ("skip_layers", "conv1", "list or None"),
        ("skip_layers", ("conv1",), "list or None"),
        ("skip_layers", [1], "a list of str"),
        ("batch_num", "1", "int"),
        ("batch_num", 1.0, "int"),
        ("batch_num", True, "int"),
        ("batch_num", None, "int"),
        ("activation_offset", 1, "bool"),
        ("activation_offset", None, "bool"),
        ("config_defination", 1, "str or None"),
        ("updated_model", Path("m"), "str or None"),
    ],
)
def test_other_arguments_of_the_wrong_type(in_folder: Path, argument: str, value: Any, kind: str) -> None:
    with refused(in_folder, ArgumentTypeError, f"^Func create_quant_config argument {argument} must be {kind}"):
        amct.create_quant_config("c", "m", **{argument: value})


@pytest.mark.parametrize("value", [1, b"r", Path("r")])
def test_the_record_of_convert_qat_model_is_a_str_or_none(in_folder: Path, value: Any) -> None:
    with refused(in_folder, ArgumentTypeError, "^Func convert_qat_model argument record_file must be str or None"):
        amct.convert_qat_model("m", "s", value)


@pytest.mark.parametrize("value", ["", "folder/", "x" * 255])
def test_the_record_of_convert_qat_model_must_be_a_file(in_folder: Path, value: str) -> None:
    with refused(in_folder, ArgumentError, "^Argument record_file"):
        amct.convert_qat_model("m", "s", value)


@pytest.mark.parametrize("batch_num", [0, -1])
def test_batch_num_must_be_positive(in_folder: Path, batch_num: int) -> None:
    with refused(in_folder, ArgumentError, "batch_num must be greater than 0", str(batch_num)):
        amct.create_quant_config("c", "m", batch_num=batch_num)


FILES = [pair for pair in STRINGS if pair[1] != "save_path"]


@pytest.mark.parametrize(("name", "argument"), FILES)
@pytest.mark.parametrize(
    ("value", "what"),
    [("", "is empty"), ("folder/", "a folder"), ("x" * 255, "1 to 254 characters"), ("a\0b", "1 to 254 characters")],
)
def test_a_file_argument_that_can_be_no_file(in_folder: Path, name: str, argument: str, value: str, what: str) -> None:
    function, arguments = ARGUMENTS[name]
    with refused(in_folder, ArgumentError, f"^Argument {argument}", what):
        function(**arguments | {argument: value})


def test_a_prefix_that_is_too_long(in_folder: Path) -> None:
    with refused(in_folder, ArgumentError, "^Argument save_path", "at most 241 characters"):
        amct.save_model("o", "r", "folder/" + "p" * 242)
    with refused(in_folder, ArgumentError, "^Argument save_path", "at most 241 characters"):
        amct.convert_qat_model("m", "folder/" + "p" * 242)


@pytest.mark.parametrize("name", ARGUMENTS)
def test_missing_and_unknown_arguments_are_type_errors(in_folder: Path, name: str) -> None:
    function, arguments = ARGUMENTS[name]
    with pytest.raises(TypeError):
        function()
    with pytest.raises(TypeError, match="nonsense"):
        function(**arguments, nonsense=1)
    assert everything_below(in_folder) == {}


def test_an_error_is_also_what_amct_raises() -> None:
    pairs = {
        ArgumentError: ValueError,
        ArgumentTypeError: TypeError,
        ConfigError: ValueError,
        ConfigTypeError: TypeError,
        FileMissingError: FileNotFoundError,
        ModelFileError: ValueError,
        ModelError: RuntimeError,
        RecordError: RuntimeError,
        RecordValueError: ValueError,
        OutputError: OSError,
    }
    for error, builtin in pairs.items():
        assert issubclass(error, AmctError)
        assert issubclass(error, builtin)
