"""Imports a Python script of the user's, and finds the function `evaluate(session)` in it."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any

from amct_onnx.errors import ScriptError
from amct_onnx.files.whole_files import system_reason

_FUNCTION = "evaluate"
_FOR_GOOD = ExitStack()  # scripts that stay imported


@contextmanager
def session_evaluator(path: str) -> Iterator[Callable[[Any], Any]]:
    """The function `evaluate(session)` of the script at `path`, while the block runs.

    Raises ScriptError if the script or, later, the function fails.
    """
    with imported_script(path) as module:
        yield _function_of(module, path)


@dataclass(frozen=True)
class SessionEvaluator:
    """The function `evaluate(session)` of the script at `path`. It travels as that path, and the script is imported
    once where it arrives."""

    path: str
    function: Callable[[Any], Any]

    def __call__(self, session: Any) -> Any:
        with explained(self.path, f"failed in {_FUNCTION}()"):
            return self.function(session)

    def __fspath__(self) -> str:
        return self.path

    def __reduce__(self) -> tuple[Any, ...]:
        return _imported_for_good, (os.path.abspath(self.path),)


@cache
def _imported_for_good(path: str) -> SessionEvaluator:
    """The evaluator of a script, in a process that works for another one."""
    return _function_of(_FOR_GOOD.enter_context(imported_script(path)), path)


def _function_of(module: ModuleType, path: str) -> SessionEvaluator:
    function = getattr(module, _FUNCTION, None)
    if not callable(function):
        raise ScriptError(
            f"{path}: no evaluator: the script needs a function {_FUNCTION}(session) that returns a number"
        )
    return SessionEvaluator(path, function)


@contextmanager
def imported_script(path: str) -> Iterator[ModuleType]:
    """The script at `path` as a module. While the block runs its folder is on sys.path, as in `python script.py`."""
    source = read_script(path)
    folder = os.path.dirname(os.path.realpath(path))
    stem = os.path.splitext(os.path.basename(path))[0]
    is_free = stem.isidentifier() and stem not in sys.modules
    module = ModuleType(stem if is_free else "amct_onnx_evaluator_script")  # as an import would name it
    module.__file__ = os.path.realpath(path)
    arguments = sys.argv
    sys.path.insert(0, folder)
    sys.argv = [path]  # a script that parses arguments must not see ours
    sys.modules[module.__name__] = module  # dataclasses and pickle look a module up by its name
    try:
        with explained(path, "cannot be imported"):
            exec(compile(source, module.__file__, "exec"), vars(module))
        yield module
    finally:
        sys.argv = arguments
        sys.modules.pop(module.__name__, None)
        if folder in sys.path:
            sys.path.remove(folder)


@contextmanager
def explained(path: str, what: str) -> Iterator[None]:
    """Turn whatever the script at `path` raises into a ScriptError with the line of the script that failed."""
    try:
        yield
    except KeyboardInterrupt:
        raise
    except SystemExit as reason:
        code = "" if reason.code is None else repr(reason.code)
        raise ScriptError(f"{_place(path, reason)}: the script {what}: it calls sys.exit({code})") from reason
    except BaseException as reason:
        text = " ".join(str(reason.msg if isinstance(reason, SyntaxError) else reason).split())
        kind = type(reason).__name__
        raise ScriptError(f"{_place(path, reason)}: the script {what}: {kind}{': ' if text else ''}{text}") from reason


def _place(path: str, reason: BaseException) -> str:
    """`file:line` of the innermost frame of the script: the line that the user wrote, and not one of a library."""
    file = os.path.realpath(path)
    if isinstance(reason, SyntaxError) and reason.filename and os.path.realpath(reason.filename) == file:
        return f"{path}:{reason.lineno}"
    lines = [frame.lineno for frame in traceback.extract_tb(reason.__traceback__) if frame.filename == file]
    return f"{path}:{lines[-1]}" if lines else path


def read_script(path: str) -> bytes:
    """What is in the script at `path`. Raises ScriptError."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        raise ScriptError(f"{path}: the evaluator script does not exist, check the path") from None
    except IsADirectoryError:
        raise ScriptError(f"{path}: is a folder, give the path of a Python script") from None
    except (OSError, ValueError) as reason:
        raise ScriptError(f"{path}: the evaluator script cannot be read ({system_reason(reason)})") from None


def check_script(path: str) -> None:
    """Raise ScriptError for a script that cannot be read or is no Python; nothing of it runs."""
    source = read_script(path)
    with explained(path, "cannot be imported"):
        compile(source, os.path.realpath(path), "exec")
