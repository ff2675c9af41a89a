"""AMCT's argument checks (spec section 1.2): types, file names, prefixes."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from amct_onnx.errors import ArgumentError, ArgumentTypeError

P = ParamSpec("P")
R = TypeVar("R")

_FILE_NAME = re.compile(r"[^/]{1,254}")
_PREFIX = re.compile(r"[^/]{0,241}")


def checked(**types: type | tuple[type, ...]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Check the types of arguments by name, exactly: a bool is not an int. Raises ArgumentTypeError."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)

        @wraps(function)
        def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
            _check(function.__name__, signature.bind(*args, **kwargs).arguments, types)
            return function(*args, **kwargs)

        return wrapper

    return decorate


def _check(function: str, arguments: Mapping[str, Any], types: Mapping[str, type | tuple[type, ...]]) -> None:
    for name, value in arguments.items():
        expected = types.get(name)
        allowed = expected if isinstance(expected, tuple) else (expected,)
        if expected is not None and type(value) not in allowed:
            names = " or ".join("None" if t is type(None) else t.__name__ for t in allowed if t is not None)
            raise ArgumentTypeError(f"Func {function} argument {name} must be {names}, got {type(value).__name__}")


def check_file(name: str, path: str) -> None:
    """Raise ArgumentError unless `path` can be the name of a file."""
    if not path:
        raise ArgumentError(f"Argument {name} is empty: give the path of a file.")
    if path.endswith(("/", "\\")):
        raise ArgumentError(f"Argument {name} is {path!r}, a folder: give the path of a file.")
    if "\0" in path or not _FILE_NAME.fullmatch(path.replace("\\", "/").rsplit("/", 1)[-1]):
        raise ArgumentError(f"Argument {name}: the file name of {path!r} must have 1 to 254 characters.")


def check_prefix(name: str, path: str) -> None:
    """Raise ArgumentError unless the part of `path` behind the last slash can begin a file name."""
    if "\0" in path or not _PREFIX.fullmatch(path.replace("\\", "/").rsplit("/", 1)[-1]):
        raise ArgumentError(f"Argument {name}: the prefix in {path!r} must have at most 241 characters.")
