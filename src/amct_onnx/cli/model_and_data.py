"""The options that every command about a model and data has: the model, `--data`, and how data are read."""

from __future__ import annotations

import argparse
import textwrap
from typing import Any

from amct_onnx.cli.command import Parser
from amct_onnx.data.image_options import PRESETS, ImageOptions
from amct_onnx.data.options import DataOptions
from amct_onnx.data.preprocess_file import images_named
from amct_onnx.errors import AmctError
from amct_onnx.options import add_options, given_options, listed_options
from amct_onnx.words import given, of_images

SOLVING = ("settings", "algorithm", "skip_layers", "reduce_range")  # fields of QuantizeOptions that say how to solve
RUNNING = ("engine", "providers")  # and those that say who does the work, on what


def add_model(command: Parser) -> None:
    """Declare the model, as a word of its own or as an option."""
    command.add_argument("model", metavar="MODEL", nargs="?", help=argparse.SUPPRESS)
    command.add_argument("--model", dest="model_option", metavar="FILE", help=argparse.SUPPRESS)


def add_data(data: argparse._ArgumentGroup) -> None:
    """Declare `--data` and the fields of DataOptions."""
    data.add_argument(
        "--data",
        metavar="PATH",
        action="append",
        help="images, arrays, .tar, .parquet, a URL; or NAME=PATH",
    )
    add_options(data, DataOptions)
    add_options(data, ImageOptions, hidden=True)


def image_epilog() -> str:
    """The options that change a preset, in a few lines."""
    lines = textwrap.wrap("  ".join(listed_options(ImageOptions)).replace(" ", "\0").replace("\0\0", "  "), 78)
    return "\n".join(["options that change the preset of the images:", *(f" {line}" for line in lines)]).replace(
        "\0", " "
    )


def read_data_options(namespace: argparse.Namespace, command: Parser) -> dict[str, Any]:
    """The fields of DataOptions that were given; fields of ImageOptions change a preset or the file of one.

    Ends in `command.error`.
    """
    arguments, changes = given_options(DataOptions, namespace), given_options(ImageOptions, namespace)
    name = arguments.get("images")
    if changes and name is None:
        command.error(f"{of_images(next(iter(changes)))} changes a preset: name it, as {given('images', 'torch')}")
    try:
        if name is not None and (changes or name not in PRESETS):
            arguments["images"] = images_named(name, **changes)
    except AmctError as reason:
        command.error(str(reason))
    return arguments


def read_model(namespace: argparse.Namespace, command: Parser) -> str:
    """The path of the model. Ends in `command.error` where there is none, or two."""
    if (namespace.model is None) == (namespace.model_option is None):
        command.error(f"give one model: {command.prog} model.onnx ...")
    return str(namespace.model or namespace.model_option)


def read_data(words: list[str], command: Parser) -> str | dict[str, str]:
    """A path, or one for each input, from the words behind each `--data`. Ends in `command.error`."""
    if len(words) == 1 and "=" not in words[0]:
        return words[0]
    paths = {}
    for word in words:
        name, equals, path = word.partition("=")
        if not equals or not name or not path:
            command.error(f"--data {word!r}: several inputs are given as NAME=PATH, each with a --data of its own")
        if name in paths:
            command.error(f"--data: the input {name!r} is given twice")
        paths[name] = path
    return paths
