"""AMCT's argument checks: exact types, names of files and prefixes."""

from __future__ import annotations

import pytest

from amct_onnx._compat.arguments import check_file, check_prefix, checked
from amct_onnx.errors import ArgumentError, ArgumentTypeError


@checked()
def function(path: str, count: int = 1, names: list[str] | None = None, anything: object = None) -> tuple[object, ...]:
    """A function with checked arguments."""
    return path, count, names, anything


def test_good_arguments_reach_the_function_by_position_and_by_name() -> None:
    assert function("a") == ("a", 1, None, None)
    assert function("a", 2, ["b"], 3.0) == ("a", 2, ["b"], 3.0)
    assert function(names=[], path="a") == ("a", 1, [], None)


def test_the_wrapper_keeps_name_and_documentation() -> None:
    assert (function.__name__, function.__doc__) == ("function", "A function with checked arguments.")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"path": 1}, "Func function argument path must be str, got int"),
        ({"path": "a", "count": "1"}, "Func function argument count must be int, got str"),
        ({"path": "a", "count": True}, "Func function argument count must be int, got bool"),
        ({"path": "a", "names": ()}, "Func function argument names must be list or None, got tuple"),
    ],
)
def test_a_wrong_type_is_named(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ArgumentTypeError) as caught:
        function(**arguments)  # type: ignore[arg-type]
    assert str(caught.value) == message


def test_a_subclass_is_another_type() -> None:
    """AMCT compares types: a str subclass could change what a path means."""

    class Text(str):
        __slots__ = ()

    with pytest.raises(ArgumentTypeError, match="must be str, got Text"):
        function(Text("a"))


def test_missing_and_unknown_arguments_stay_pythons_own_errors() -> None:
    with pytest.raises(TypeError, match="missing a required argument: 'path'"):
        function()  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="unexpected keyword argument 'nonsense'"):
        function("a", nonsense=1)  # type: ignore[call-arg]


@pytest.mark.parametrize("path", ["a", "./a.onnx", "/x/y/ä.json", "x" * 254, "folder\\file", ".hidden", "a b"])
def test_file_names_that_are_fine(path: str) -> None:
    check_file("model_file", path)


@pytest.mark.parametrize(
    ("path", "what"),
    [
        ("", "Argument model_file is empty"),
        ("folder/", "Argument model_file is 'folder/', a folder"),
        ("folder\\", "a folder"),
        ("x/" + "y" * 255, "must have 1 to 254 characters"),
        ("a\0b", "must have 1 to 254 characters"),
    ],
)
def test_file_names_that_are_not(path: str, what: str) -> None:
    with pytest.raises(ArgumentError, match=what):
        check_file("model_file", path)


@pytest.mark.parametrize("path", ["", "./", "results/", "results/model", "p" * 241, "x/" + "p" * 241])
def test_prefixes_that_are_fine(path: str) -> None:
    check_prefix("save_path", path)


@pytest.mark.parametrize("path", ["p" * 242, "x/" + "p" * 242, "a\0b"])
def test_prefixes_that_are_not(path: str) -> None:
    with pytest.raises(ArgumentError, match=r"Argument save_path: the prefix in .* must have at most 241 characters"):
        check_prefix("save_path", path)
