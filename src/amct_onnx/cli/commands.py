"""The commands of `amct_onnx` in the order of its help, and how a command line becomes the value of one of them."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import amct_onnx
from amct_onnx.cli.batch_options import BATCH
from amct_onnx.cli.calibration_options import CALIBRATION
from amct_onnx.cli.command import Command, Parser, main_parser
from amct_onnx.cli.compare_options import COMPARE
from amct_onnx.cli.convert_options import CONVERT
from amct_onnx.cli.doctor_options import DOCTOR
from amct_onnx.cli.evaluate_options import EVALUATE
from amct_onnx.cli.inspect_options import INSPECT
from amct_onnx.cli.output import Output
from amct_onnx.cli.quantize_options import QUANTIZE
from amct_onnx.cli.report_options import REPORT
from amct_onnx.cli.sensitivity_options import SENSITIVITY
from amct_onnx.words import of_the_command_line

_ALL = (QUANTIZE, BATCH, INSPECT, SENSITIVITY, COMPARE, EVALUATE, REPORT, DOCTOR, CALIBRATION, CONVERT)
COMMANDS: Mapping[str, Command] = {command.name: command for command in _ALL}
# What other tools call some options.
_ELSEWHERE = {
    "--save_path": ("o", "out", "output", "output_path", "output_dir", "output_model", "save", "save_dir", "dest"),
    "--data": ("calib", "calibration", "calib_data", "calibration_data", "dataset", "images", "inputs", "samples"),
    "--batch_size": ("b", "batch", "bs"),
}


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a command line asks for: a command, its options as a value, and how it shall answer."""

    command: Command
    value: Any
    output: Output

    def run(self) -> None:
        """Do it. Raises AmctError."""
        with of_the_command_line() if self.command.shows else nullcontext():  # AMCT's commands have names of their own
            self.command.run(self.value, self.output)


def parse(argv: Sequence[str]) -> Asked:
    """What a command line asks for. Raises SystemExit: 0 after help, 2 with the reason for a wrong command line."""
    parser = main_parser(amct_onnx.__version__)
    made = parser.add_subparsers(dest="command", metavar="command", required=True)
    parsers = {name: command.add_to(made) for name, command in COMMANDS.items()}
    words = list(argv)
    if words and not words[0].startswith("-"):
        _check_command(parser, words[0])
        _check_names(parsers[words[0]], words[1:])
    with of_the_command_line():
        namespace = parser.parse_args(words)
        command, own = COMMANDS[namespace.command], parsers[namespace.command]
        value = command.read(namespace, own)
    return Asked(command=command, value=value, output=_output(namespace, own))


def _output(namespace: argparse.Namespace, parser: Parser) -> Output:
    json, quiet = (bool(getattr(namespace, name, False)) for name in ("json", "quiet"))
    if json and quiet:
        parser.error("--quiet would say nothing, and --json a document: give one of them")
    return Output(json=json, quiet=quiet)


def _check_command(parser: Parser, word: str) -> None:
    if word not in COMMANDS:
        close = difflib.get_close_matches(word, COMMANDS, n=1)
        hint = f", did you mean {close[0]}?" if close else f", use {' or '.join(sorted(COMMANDS))}"
        parser.error(f"unknown command {word!r}{hint}")


def _check_names(command: Parser, words: Sequence[str]) -> None:
    """Refuse an unknown option. Argparse would rather report another option that is missing because of it."""
    known = [name for action in command._actions for name in action.option_strings]
    others = {f"--{other}": option for option in _ELSEWHERE for other in _ELSEWHERE[option] if option in known}
    meant = others | {name: name for name in known}
    for word in words:
        if word == "--":
            return
        name = word.partition("=")[0]
        if not name.startswith("-") or name == "-" or " " in word or not name.lstrip("-")[:1].isalpha():
            continue
        if name == "-h" or (name.startswith("--") and any(option.startswith(name) for option in known)):
            continue
        close = difflib.get_close_matches(f"--{name.lstrip('-').replace('-', '_')}", meant, n=1, cutoff=0.5)
        command.error(f"unknown option {name}" + (f", did you mean {meant[close[0]]}?" if close else ""))
