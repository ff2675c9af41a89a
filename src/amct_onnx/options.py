"""Options as values: one dataclass says what its fields mean, how a command line gives them, and what they default to.

The value is what functions hand on. From its fields come the options of the command (`add_options`, `given_options`)
and the text that documents the arguments of the public functions (`documented`). Only the standard library is imported,
so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from amct_onnx.errors import AmctError

T = TypeVar("T")
Function = TypeVar("Function", bound=Callable[..., Any])
_WIDTH = 116  # of docstrings without their indentation


@dataclass(frozen=True, kw_only=True)
class Flag:
    """How a command line gives the value of a field.

    name: of the option, if it is not that of the field. also: another name of the option. help: what the option takes,
    if that is not what the field means. example: a text that the option takes, which `--help` shows. read: makes the
    value of the text, and raises an AmctError or one of argparse's errors. switch: the option takes no text and makes
    the field True.
    """

    name: str = ""
    also: str = ""
    help: str = ""
    metavar: str | None = None
    example: str = ""
    choices: Sequence[Any] | None = None
    read: Callable[[str], Any] = str
    switch: bool = False


def option(default: T, meaning: str, more: str = "", *, flag: Flag | None = None) -> T:
    """A field of an options class, with its default value.

    meaning: a phrase without a full stop, shown by `--help` and in docstrings. more: whole sentences for docstrings
    only. flag: how a command line gives the value; None for a field that it cannot give.
    """
    return dataclasses.field(default=default, metadata={"meaning": meaning, "more": more, "flag": flag})


def add_options(
    parser: argparse._ActionsContainer, kind: type, names: Sequence[str] = (), *, hidden: bool = False
) -> None:
    """Declare the options for the fields `names` of `kind`, or for all fields that have a flag.

    What is not given on the command line is None in the namespace, under the name of the field. hidden: `--help` leaves
    them out.
    """
    for field in dataclasses.fields(kind):
        flag: Flag | None = field.metadata.get("flag")
        if flag is None or (names and field.name not in names):
            continue
        text = (
            argparse.SUPPRESS
            if hidden
            else (flag.help or field.metadata["meaning"]) + (f": {flag.example}" if flag.example else "")
        )
        how: dict[str, Any] = {"metavar": flag.metavar, "choices": flag.choices, "type": reader(flag.read)}
        if flag.switch:
            how = {"action": "store_true"}
        names_of_it = [flag.name or f"--{field.name}", *([flag.also] if flag.also else [])]
        parser.add_argument(*names_of_it, dest=field.name, default=None, help=text, **how)


def listed_options(kind: type) -> list[str]:
    """The options for the fields of `kind` with what they take, as `--image_pad N`."""
    flags = [(field.name, field.metadata.get("flag")) for field in dataclasses.fields(kind)]
    return [f"{flag.name or f'--{name}'} {flag.metavar}" for name, flag in flags if flag is not None]


def given_options(kind: type, namespace: argparse.Namespace) -> dict[str, Any]:
    """The fields of `kind` that a parsed command line gives, by name."""
    values = {field.name: getattr(namespace, field.name, None) for field in dataclasses.fields(kind)}
    return {name: value for name, value in values.items() if value is not None}


def documented(*kinds: type) -> Callable[[Function], Function]:
    """A decorator that appends to a docstring what the arguments mean that are fields of `kinds`."""

    def document(function: Function) -> Function:
        if function.__doc__ is not None:  # it is None under python -OO
            fields = {field.name: field for kind in kinds for field in dataclasses.fields(kind)}
            entries = [_entry(fields[name]) for name in inspect.signature(function).parameters if name in fields]
            function.__doc__ = "\n".join([inspect.cleandoc(function.__doc__), "", *entries])
        return function

    return document


def positive_number(text: str) -> int:
    """The whole number above 0 that `text` is. Raises argparse.ArgumentTypeError."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number greater than 0")
    return number


def _entry(field: dataclasses.Field[Any]) -> str:
    sentences = f"{field.name}: {field.metadata['meaning']}. {field.metadata['more']}"
    return textwrap.fill(sentences, _WIDTH, subsequent_indent="    ")


def reader(read: Callable[[str], Any]) -> Callable[[str], Any]:
    """`read`, with the errors that argparse understands."""

    def read_text(text: str) -> Any:
        try:
            return read(text)
        except AmctError as reason:
            raise argparse.ArgumentTypeError(str(reason)) from None

    read_text.__name__ = getattr(read, "__name__", "value")  # "invalid float value: 'x'"
    return read_text
