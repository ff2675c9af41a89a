"""AMCT's argument checks (amct_formats.md: Argument checks): types, file names, prefixes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from functools import wraps
from types import NoneType
from typing import Any, ParamSpec, TypeVar, get_args, get_origin, get_type_hints

from amct_onnx._compat.log import start_log
from amct_onnx.errors import ArgumentError, ArgumentTypeError
from amct_onnx.files.whole_files import check_writable
from amct_onnx.targets.ascend_model import ascend_files

P = ParamSpec("P")
R = TypeVar("R")

_PLAIN = frozenset((str, int, bool, list, NoneType))
_LONGEST_NAME, _LONGEST_PREFIX = 254, 241  # characters


def checked(
    *, files: Collection[str] = (), prefixes: Collection[str] = (), written: Collection[str] = ()
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Check the arguments of one of AMCT's functions before it runs, and begin AMCT's log.

    Types are those of the annotations, exactly: a bool is not an int. files: arguments that name a file; prefixes:
    those that name the beginning of files. written: files that the function writes; these and those of prefixes have
    to be writable. Raises ArgumentTypeError, ArgumentError, OutputError.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        signature, hints = inspect.signature(function), get_type_hints(function)
        types = {
            name: tuple(get_origin(kind) or kind for kind in get_args(hint) or (hint,)) for name, hint in hints.items()
        }

        @wraps(function)
        def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
            arguments = signature.bind(*args, **kwargs).arguments
            for name, value in arguments.items():
                _check_type(function.__name__, name, value, types[name])
            start_log()
            for name in (name for name in arguments if arguments[name] is not None):
                if name in files:
                    check_file(name, arguments[name])
                if name in prefixes:
                    check_prefix(name, arguments[name])
                    check_writable(*ascend_files(arguments[name]))
                if name in written:
                    check_writable(arguments[name])
            return function(*args, **kwargs)

        return wrapper

    return decorate


def _check_type(function: str, name: str, value: Any, allowed: tuple[Any, ...]) -> None:
    """Classes of ours are left to the function, which says what an instance of them must do."""
    if type(value) not in allowed and all(kind in _PLAIN for kind in allowed):
        names = " or ".join("None" if kind is NoneType else kind.__name__ for kind in allowed)
        raise ArgumentTypeError(f"Func {function} argument {name} must be {names}, got {type(value).__name__}")


def check_file(name: str, path: str) -> None:
    """Raise ArgumentError unless `path` can be the name of a file."""
    if not path:
        raise ArgumentError(f"Argument {name} is empty: give the path of a file.")
    if path.endswith(("/", "\\")):
        raise ArgumentError(f"Argument {name} is {path!r}, a folder: give the path of a file.")
    if _is_unusable(path, _LONGEST_NAME):
        raise ArgumentError(f"Argument {name}: the file name of {path!r} must have 1 to 254 characters.")


def check_prefix(name: str, path: str) -> None:
    """Raise ArgumentError unless the part of `path` behind the last slash can begin a file name."""
    if _is_unusable(path, _LONGEST_PREFIX):
        raise ArgumentError(f"Argument {name}: the prefix in {path!r} must have at most 241 characters.")


def _is_unusable(path: str, longest: int) -> bool:
    return "\0" in path or len(path.replace("\\", "/").rpartition("/")[2]) > longest
