"""Imports the script behind `--evaluator`, finds its evaluator and calls it (amct_formats.md: Command line)."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from amct_onnx.errors import ScriptError
from amct_onnx.tools.user_script import explained, imported_script

_USUAL_NAME = "customize_evaluator"  # the name of the object in AMCT's sample
_METHOD = "calibration"


@contextmanager
def evaluator_script(path: str) -> Iterator[Any]:
    """The evaluator of the script at `path`, while the block runs.

    It is the global object of the script that has a method `calibration`, or of several the one that is named
    customize_evaluator. If there is none, it is an instance of the only class of the script that has such a method and
    needs no arguments.

    Raises ScriptError with file and line of what failed.
    """
    with imported_script(path) as module:
        yield _find(module, path)


def calibrate(evaluator: Any, path: str, model_path: str) -> None:
    """Call `evaluator.calibration(model_path)`. Raises ScriptError with the line of the script that failed."""
    with explained(path, f"failed in {_METHOD}()"):
        evaluator.calibration(model_path)


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
