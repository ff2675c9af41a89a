"""The options of `quantize` as a file says them: their names and types are those of the dataclasses of options.

A field that is added there can be said in a file at once, if its type has something that TOML knows.
"""

from __future__ import annotations

import builtins
import dataclasses
import os
import sys
import types
import typing
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from amct_onnx.data.image_options import PRESETS, ImageOptions
from amct_onnx.data.options import DataOptions
from amct_onnx.data.preprocess_file import image_options_of, read_image_options
from amct_onnx.errors import AmctError, ConfigError, did_you_mean
from amct_onnx.options import Flag
from amct_onnx.ptq.options import QuantizeOptions

KINDS = (QuantizeOptions, DataOptions)
_WORDS = {str: "a text", int: "a whole number", float: "a number", bool: "true or false", os.PathLike: "a path"}


class _OfPython:
    """Stands for the classes in annotations that no file can say, as `Settings`."""


class _Names(dict[str, Any]):
    """The names in the annotations of a module, those too that are imported for a type checker only."""

    def __init__(self, module: str) -> None:
        super().__init__({**vars(builtins), **vars(sys.modules[module]), "os": os})

    def __missing__(self, name: str) -> Any:
        return _OfPython


@dataclass(frozen=True, kw_only=True)
class FileOption:
    """An option of `quantize` that a file may give. hint: its type. is_path: a text is the path of a file."""

    name: str
    kind: type
    hint: Any
    flag: Flag | None
    is_path: bool

    def check(self, value: Any) -> None:
        """Raise ConfigError for a value of another type, or one that is not among those to choose from."""
        choices = None if self.flag is None else self.flag.choices
        if choices is not None:
            if not any(type(value) is type(choice) and value == choice for choice in choices):
                known = [str(choice) for choice in choices]
                hint = did_you_mean(str(value), known, f"use one of {', '.join(known)}")
                raise ConfigError(f"{self.name} {value!r} is unknown: {hint}")
        elif not _fits(value, self.hint):
            raise ConfigError(f"{self.name} takes {' or '.join(_words(self.hint))}, got {_shown(value)}")


def _parts(hint: Any) -> tuple[Any, ...]:
    """The types of a union, without None."""
    whole = typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else (hint,)
    return tuple(part for part in whole if part is not types.NoneType)


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value of TOML is one of a type."""
    parts = _parts(hint)
    if len(parts) > 1:
        return any(_fits(value, part) for part in parts)
    (part,) = parts
    origin, inner = typing.get_origin(part), typing.get_args(part)
    if origin is typing.Literal:
        return value in inner
    if part is os.PathLike or origin is os.PathLike:
        return isinstance(value, str)
    if part is float:
        return isinstance(value, float | int) and not isinstance(value, bool)
    if part in (str, int, bool):
        return isinstance(value, part) and (part is bool or not isinstance(value, bool))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return isinstance(value, dict) and all(_fits(item, inner[1]) for item in value.values())
    if isinstance(origin, type) and issubclass(origin, Sequence | Collection):
        return isinstance(value, list) and all(_fits(item, inner[0]) for item in value)
    return part is ImageOptions and isinstance(value, dict)


def _words(hint: Any) -> list[str]:
    """What a file says for a type."""
    found = []
    for part in _parts(hint):
        origin, inner = typing.get_origin(part), typing.get_args(part)
        if origin is typing.Literal:
            found += [repr(value) for value in inner]
        elif part is ImageOptions or (isinstance(origin, type) and issubclass(origin, Mapping)):
            found.append("a table")
        elif isinstance(origin, type) and origin is not os.PathLike and issubclass(origin, Sequence | Collection):
            found.append(f"a list of {'whole numbers' if inner[0] is int else 'texts'}")
        elif (known := _WORDS.get(origin or part)) is not None:
            found.append(known)
    return list(dict.fromkeys(found))


def _shown(value: Any) -> str:
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else repr(value)


def _options() -> dict[str, FileOption]:
    found = {}
    for kind in KINDS:
        hints = typing.get_type_hints(kind, localns=_Names(kind.__module__))
        for field in dataclasses.fields(kind):
            hint = hints[field.name]
            found[field.name] = FileOption(
                name=field.name,
                kind=kind,
                hint=hint,
                flag=field.metadata.get("flag"),
                is_path=any(typing.get_origin(part) is os.PathLike or part is os.PathLike for part in _parts(hint)),
            )
    return found


OPTIONS: Mapping[str, FileOption] = _options()


def images_of(value: str | Mapping[str, Any], path: str) -> ImageOptions | str:
    """How images are prepared: the name of a preset as it is; what a file at `path` or a table says, as its value.

    Raises AmctError.
    """
    if not isinstance(value, str):
        return image_options_of(value)
    if value in PRESETS:
        return value
    if os.path.isfile(path) or os.path.splitext(path)[1].lower() in (".toml", ".json"):
        return read_image_options(path)
    return ImageOptions.preset(value)


def known_as(name: str, others: Collection[str]) -> str:
    """The end of a message about an unknown key: the option that it is on the command line, or one that is like it."""
    for option in OPTIONS.values():
        flags = () if option.flag is None else (option.flag.name, option.flag.also)
        if f"--{name}" in flags:
            return f"it is called {option.name!r} here"
    known = [*others, *OPTIONS]
    return did_you_mean(name, known, f"use {', '.join(known)}")


def first_error(values: Mapping[str, Any]) -> AmctError | None:
    """What a dataclass of options has against values of the right types, which it checks when it is built."""
    for kind in KINDS:
        try:
            kind(**{name: value for name, value in values.items() if OPTIONS[name].kind is kind})
        except AmctError as error:
            return error
    return None
