"""Makes the tables of options from the code: commands from their parsers, arguments from their dataclasses.

`translations.yml` has the Chinese of each text, by the English one, so that a text that changes is translated again.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml

import amct_onnx
from amct_onnx.cli.command import main_parser
from amct_onnx.cli.commands import COMMANDS
from amct_onnx.data.image_options import ImageOptions
from amct_onnx.data.options import DataOptions
from amct_onnx.ptq.options import QuantizeOptions

TRANSLATIONS = Path(__file__).with_name("translations.yml")
HEADS = {
    "en": {"option": ("option", "meaning"), "argument": ("argument", "default", "meaning")},
    "zh": {"option": ("选项", "含义"), "argument": ("参数", "默认值", "含义")},
}


def commands() -> dict[str, argparse.ArgumentParser]:
    """The parser of each command, by its name, in the order of `amct_onnx --help`."""
    made = main_parser(amct_onnx.__version__).add_subparsers()
    return {name: command.add_to(made) for name, command in COMMANDS.items()}


def options_of(command: str) -> Iterator[tuple[str, str]]:
    """Each option of a command as it is written, and what it means."""
    for action in commands()[command]._actions:
        if action.help == argparse.SUPPRESS:
            continue
        names = ", ".join(action.option_strings) or str(action.metavar)
        value = "" if action.nargs == 0 or not action.option_strings else f" {action.metavar or action.dest.upper()}"
        yield f"{names}{value}", str(action.help)


def arguments_of(function: str) -> Iterator[tuple[str, str, str]]:
    """Each argument of a public function or fields of ImageOptions: name, default, and what it means."""
    fields = {field.name: field for kind in (QuantizeOptions, DataOptions) for field in dataclasses.fields(kind)}
    if function == "ImageOptions":
        fields = {field.name: field for field in dataclasses.fields(ImageOptions)}
    for name, parameter in inspect.signature(getattr(amct_onnx, function)).parameters.items():
        field = fields.get(name)
        if field is None or "meaning" not in field.metadata:
            continue
        text = f"{field.metadata['meaning']}. {field.metadata['more']}".strip()
        yield name, repr(parameter.default), text


def command(name: str, language: str) -> str:
    """The table of a command's options."""
    rows = [(f"`{option}`", translated(text, language)) for option, text in options_of(name)]
    return _table(HEADS[language]["option"], rows)


def arguments(name: str, language: str) -> str:
    """The table of a function's arguments, or of the fields of ImageOptions."""
    rows = [(f"`{field}`", f"`{default}`", translated(text, language)) for field, default, text in arguments_of(name)]
    return _table(HEADS[language]["argument"], rows)


def translated(text: str, language: str) -> str:
    """A text in a language; in English where nobody translated it yet, which a test forbids."""
    return text if language == "en" else translations().get(text, text)


def translations() -> dict[str, str]:
    """The Chinese of each English text."""
    return dict(yaml.safe_load(TRANSLATIONS.read_text("utf-8")) or {})


def texts() -> set[str]:
    """All texts of the tables, which have to be translated."""
    told = {text for name in commands() for _, text in options_of(name)}
    return told | {text for name in ("quantize", "sensitivity", "ImageOptions") for *_, text in arguments_of(name)}


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
