"""Importing onnx_ir without importing sympy, which takes longer than all the rest of it.

onnx_ir needs sympy for arithmetic with symbolic dimensions only, but imports it at once. `install` puts a finder before
Python's own. When somebody imports onnx_ir, two of its modules get an `import` that answers "sympy" with a stand-in,
which loads sympy when something of it is really used. Nobody else ever meets the stand-in: it is not in sys.modules.

Where sympy is there already, or a module needs more of it than the stand-in has, the plain import happens.
"""

from __future__ import annotations

import builtins
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType
from typing import Any

# The modules of onnx_ir that import sympy.
_MODULES = frozenset({"onnx_ir._core", "onnx_ir._symbolic_shapes"})


def install() -> None:
    """Defer sympy when onnx_ir is imported next; nothing happens if either is there already."""
    installed = any(isinstance(finder, _Finder) for finder in sys.meta_path)
    if "onnx_ir" not in sys.modules and "sympy" not in sys.modules and not installed:
        sys.meta_path.insert(0, _Finder())


class _StandIn(ModuleType):
    """sympy for a module that is being imported: what it takes now is a `_Later`."""

    def __init__(self) -> None:
        super().__init__("sympy")
        self._importing = True

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what Python asks of any module
            raise AttributeError(name)
        if self._importing:
            return _Later(name)
        value = getattr(import_module("sympy"), name)
        setattr(self, name, value)
        return value


class _Later:
    """Something of sympy that a module holds on to: it can be called, and be asked what is an instance of it."""

    def __init__(self, name: str) -> None:
        self._name = name

    def _load(self) -> Any:
        return getattr(import_module("sympy"), self._name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._load()(*args, **kwargs)

    def __instancecheck__(self, instance: Any) -> bool:
        return isinstance(instance, self._load())

    def __subclasscheck__(self, subclass: type) -> bool:
        return issubclass(subclass, self._load())

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[type, ...]:
        raise TypeError("a stand-in is no base class")  # the module is then imported plainly


class _Finder:
    """Finds the modules of onnx_ir that import sympy."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in _MODULES or "sympy" in sys.modules:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


class _Loader(SourceFileLoader):
    """Runs a module with an `import` of its own."""

    def exec_module(self, module: ModuleType) -> None:
        before, sympy = dict(vars(module)), _StandIn()

        def import_(name: str, *args: Any, **kwargs: Any) -> Any:
            from_list = kwargs.get("fromlist") or (args[2] if len(args) > 2 else ())
            plain = not sympy._importing or name != "sympy" or from_list
            return builtins.__import__(name, *args, **kwargs) if plain else sympy

        vars(module)["__builtins__"] = {**vars(builtins), "__import__": import_}
        try:
            super().exec_module(module)
        except Exception:  # it does more with sympy than to hold on to it
            vars(module).clear()
            vars(module).update(before)
            super().exec_module(module)
        finally:
            sympy._importing = False
