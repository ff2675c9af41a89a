"""Imports the script behind `--evaluator`, finds its evaluator and calls it (amct_formats.md: Command line)."""

from __future__ import annotations

import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from amct_onnx.errors import ScriptError
from amct_onnx.files.whole_files import system_reason

_USUAL_NAME = "customize_evaluator"  # the name of the object in AMCT's sample
_METHOD = "calibration"
_FUNCTION = "evaluate"


@contextmanager
def evaluator_script(path: str) -> Iterator[Any]:
    """The evaluator of the script at `path`, while the block runs.

    It is the global object of the script that has a method `calibration`, or of several the one that is named
    customize_evaluator. If there is none, it is an instance of the only class of the script that has such a method and
    needs no arguments.

    Raises ScriptError with file and line of what failed.
    """
    with _imported(path) as module:
        yield _find(module, path)


@contextmanager
def session_evaluator(path: str) -> Iterator[Callable[[Any], Any]]:
    """The function `evaluate(session)` of the script at `path`, while the block runs.

    Raises ScriptError if the script or, later, the function fails.
    """
    with _imported(path) as module:
        function = getattr(module, _FUNCTION, None)
        if not callable(function):
            raise ScriptError(
                f"{path}: no evaluator: the script needs a function {_FUNCTION}(session) that returns a number"
            )

        def evaluate(session: Any) -> Any:
            with explained(path, f"failed in {_FUNCTION}()"):
                return function(session)

        yield evaluate


@contextmanager
def _imported(path: str) -> Iterator[ModuleType]:
    """The script at `path` as a module. While the block runs its folder is on sys.path, as in `python script.py`."""
    source = _read(path)
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


def calibrate(evaluator: Any, path: str, model_path: str) -> None:
    """Call `evaluator.calibration(model_path)`. Raises ScriptError with the line of the script that failed."""
    with explained(path, f"failed in {_METHOD}()"):
        evaluator.calibration(model_path)


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


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        raise ScriptError(f"{path}: the evaluator script does not exist, check the path") from None
    except IsADirectoryError:
        raise ScriptError(f"{path}: is a folder, give the path of a Python script") from None
    except (OSError, ValueError) as reason:
        raise ScriptError(f"{path}: the evaluator script cannot be read ({system_reason(reason)})") from None


def _find(module: ModuleType, path: str) -> Any:
    objects = [(n, v) for n, v in vars(module).items() if not inspect.isclass(v) and not inspect.ismodule(v)]
    found = {name: value for name, value in objects if _can_calibrate(value)}
    distinct = {id(value): value for value in found.values()}
    if len(distinct) == 1:
        return next(iter(distinct.values()))
    if _USUAL_NAME in found:
        return found[_USUAL_NAME]
    if found:
        names = ", ".join(found)
        raise ScriptError(f"{path}: several objects have a {_METHOD}(): {names}. Name one of them {_USUAL_NAME}.")
    return _build(module, path)


def _can_calibrate(value: Any) -> bool:
    try:
        return callable(getattr(value, _METHOD, None))
    except Exception:  # an object whose attributes cannot even be read is no evaluator
        return False


def _build(module: ModuleType, path: str) -> Any:
    own = [c for c in vars(module).values() if inspect.isclass(c) and c.__module__ == module.__name__]
    classes = list(dict.fromkeys(c for c in own if _can_calibrate(c)))
    leaves = [c for c in classes if not any(other is not c and issubclass(other, c) for other in classes)]
    names = ", ".join(c.__name__ for c in leaves)
    if not leaves:
        raise ScriptError(
            f"{path}: no evaluator: the script needs an object whose class has {_METHOD}(self, model_file), such as "
            f"{_USUAL_NAME} = Evaluator()"
        )
    if len(leaves) > 1:
        raise ScriptError(f"{path}: several classes have a {_METHOD}(): {names}. Add {_USUAL_NAME} = <one of them>().")
    with explained(path, f"has no instance of {names}, and {names}() fails"):
        return leaves[0]()
