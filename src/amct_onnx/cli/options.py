"""Reads the command lines of `amct_onnx`, and says what is wrong with one (calibration and convert:
amct_formats.md: Command line).

Only what is light is imported here: `--help` must not wait for numpy or ONNX Runtime.
"""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

import amct_onnx
from amct_onnx.cli.quantize_options import (
    QuantizeCommand,
    SensitivityCommand,
    add_quantize_options,
    add_sensitivity_options,
    read_quantize_options,
    read_sensitivity_options,
)
from amct_onnx.cli.report import ReportCommand, add_report_options, read_report_options
from amct_onnx.data.input_texts import InputFolder, check_data_type, parse_shapes, split_list
from amct_onnx.errors import AmctError
from amct_onnx.options import Flag, add_options, given_options, option, positive_number, reader

_EXIT_CODES = "exit code: 0 done, 1 an error (one ERROR line says what), 2 a wrong command line, 130 interrupted"
_DATA_OPTIONS = ("input_shape", "data_dir", "data_types")
# The help and the description of each command.
_COMMANDS = {
    "quantize": (
        "quantize a float model in one call, for ONNX Runtime, TensorRT, OpenVINO or Ascend",
        "Quantize a model in one call: amct_onnx quantize model.onnx --data images/ --save_path out/m",
    ),
    "sensitivity": (
        "what quantizing each layer does to the output of a model",
        "Which layers cost accuracy: amct_onnx sensitivity model.onnx --data images/",
    ),
    "report": (
        "a page that shows a run of quantize: accuracy, layers, map, what to do next",
        "A page of one run, or of two side by side: amct_onnx report out/m",
    ),
    "calibration": (
        "quantize a float model with calibration data",
        "Quantize a float model with calibration data.",
    ),
    "convert": (
        "convert a model with QuantizeLinear and DequantizeLinear nodes",
        "Convert a model of quantization-aware training, with QuantizeLinear and DequantizeLinear nodes.",
    ),
}


@dataclass(frozen=True, kw_only=True)
class CalibrationCommand:
    """What a command line `calibration` asks for. Batches come from `inputs`, or from a script `evaluator`."""

    model: str
    save_path: str
    calibration_config: str | None = option(None, "simplified configuration, a .cfg file", flag=Flag(metavar="FILE"))
    batch_num: int | None = option(
        None,
        "number of calibration batches, 1 if not given; batch_num of the --calibration_config wins",
        flag=Flag(metavar="N", read=positive_number),
    )
    inputs: tuple[InputFolder, ...]
    evaluator: str | None = option(
        None, "a Python script whose evaluator runs the batches in calibration()", flag=Flag(metavar="FILE")
    )


@dataclass(frozen=True, kw_only=True)
class ConvertCommand:
    """What a command line `convert` asks for."""

    model: str
    save_path: str


class _Parser(argparse.ArgumentParser):
    """A parser whose `error` says how to get help."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(2, f"{self.prog}: error: {message}; {self.prog} --help explains the options\n")


AnyCommand = CalibrationCommand | ConvertCommand | QuantizeCommand | SensitivityCommand | ReportCommand


def parse(argv: Sequence[str]) -> AnyCommand:
    """What a command line asks for. Raises SystemExit: 0 after help, 2 with the reason for a wrong command line."""
    parser, commands = _parsers()
    words = list(argv)
    if words and not words[0].startswith("-"):
        _check_command(parser, commands, words[0])
        _check_names(commands[words[0]], words[1:])
    namespace = parser.parse_args(words)
    if namespace.command == "quantize":
        return read_quantize_options(namespace, commands["quantize"])
    if namespace.command == "sensitivity":
        return read_sensitivity_options(namespace, commands["sensitivity"])
    if namespace.command == "report":
        return read_report_options(namespace, commands["report"])
    if namespace.command == "convert":
        return ConvertCommand(**given_options(ConvertCommand, namespace))
    inputs = _read_inputs(namespace, commands["calibration"])
    return CalibrationCommand(**given_options(CalibrationCommand, namespace), inputs=inputs)


def _parsers() -> tuple[_Parser, dict[str, _Parser]]:
    parser = _Parser(prog="amct_onnx", description="amct_onnx command line tools.", epilog=_EXIT_CODES)
    parser.add_argument("--version", action="version", version=f"amct_onnx {amct_onnx.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="command", required=True)
    made: dict[str, _Parser] = {}
    for name, (help_text, description) in _COMMANDS.items():
        epilog = f"{_EXIT_CODES}. Options can be given as --name value or --name=value; names can be shortened."
        made[name] = commands.add_parser(name, help=help_text, description=description, epilog=epilog)
    add_quantize_options(made["quantize"])
    add_sensitivity_options(made["sensitivity"])
    add_report_options(made["report"])
    for name, kind in (("calibration", "float"), ("convert", "QAT")):
        made[name].add_argument("--model", required=True, metavar="FILE", help=f"the {kind} model, an .onnx file")
        made[name].add_argument(
            "--save_path", required=True, metavar="PREFIX", help="folder and prefix of the results: ./results/resnet101"
        )
    _add_calibration_options(made["calibration"])
    return parser, made


def _add_calibration_options(command: argparse.ArgumentParser) -> None:
    data = command.add_argument_group("data", "either --input_shape, --data_dir and --data_types, or --evaluator")
    data.add_argument(
        "--input_shape",
        metavar="SHAPES",
        type=reader(parse_shapes),
        help='name and shape of each input: "name1:n1,c1,h1,w1;name2:..."; -1 is what the size of a file decides',
    )
    data.add_argument(
        "--data_dir",
        metavar="DIRS",
        help='a folder for each input, in the same order: "dir1/;dir2/"; each file is one batch, taken by name',
    )
    data.add_argument(
        "--data_types", metavar="TYPES", help='the type of each input, in the same order: "float32;int64"'
    )
    add_options(data, CalibrationCommand, ["evaluator"])
    add_options(command, CalibrationCommand, ["calibration_config", "batch_num"])


def _check_command(parser: _Parser, commands: dict[str, _Parser], word: str) -> None:
    if word not in commands:
        close = difflib.get_close_matches(word, commands, n=1)
        hint = f", did you mean {close[0]}?" if close else f", use {' or '.join(sorted(commands))}"
        parser.error(f"unknown command {word!r}{hint}")


def _check_names(command: _Parser, words: Sequence[str]) -> None:
    """Refuse an unknown option. Argparse would rather report another option that is missing because of it."""
    known = [name for action in command._actions for name in action.option_strings]
    for word in words:
        if word == "--":
            return
        name = word.partition("=")[0]
        if not name.startswith("-") or name == "-" or " " in word or not name.lstrip("-")[:1].isalpha():
            continue
        if name == "-h" or (name.startswith("--") and any(option.startswith(name) for option in known)):
            continue
        close = difflib.get_close_matches(f"--{name.lstrip('-').replace('-', '_')}", known, n=1, cutoff=0.5)
        command.error(f"unknown option {name}" + (f", did you mean {close[0]}?" if close else ""))


def _read_inputs(namespace: argparse.Namespace, command: _Parser) -> tuple[InputFolder, ...]:
    given = [name for name in _DATA_OPTIONS if getattr(namespace, name) is not None]
    if namespace.evaluator is not None:
        if given:
            names = ", ".join(f"--{name}" for name in given)
            command.error(f"--evaluator runs batches of its own and cannot be combined with {names}, delete one side")
        return ()
    if len(given) < len(_DATA_OPTIONS):
        missing = ", ".join(f"--{name}" for name in _DATA_OPTIONS if name not in given)
        command.error(
            f"{missing} missing: calibration needs --input_shape, --data_dir and --data_types, or --evaluator"
        )
    shapes: dict[str, list[int]] = namespace.input_shape
    folders, dtypes = split_list(namespace.data_dir), [t.strip() for t in split_list(namespace.data_types)]
    for name, values in (("data_dir", folders), ("data_types", dtypes)):
        if len(values) != len(shapes):
            inputs = f"{len(shapes)} input{'s' if len(shapes) > 1 else ''} ({', '.join(shapes)})"
            command.error(
                f'--{name} has {len(values)} parts for {inputs} of --input_shape: give one for each, as in "a;b"'
            )
        if not all(value.strip() for value in values):
            command.error(f"--{name}: a part is empty")
    try:
        for dtype in dtypes:
            check_data_type(dtype)
    except AmctError as reason:
        command.error(f"--data_types: {reason}")
    return tuple(
        InputFolder(name=name, shape=tuple(shape), folder=folder.strip(), dtype=dtype)
        for (name, shape), folder, dtype in zip(shapes.items(), folders, dtypes, strict=True)
    )
