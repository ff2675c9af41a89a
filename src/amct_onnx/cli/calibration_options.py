"""The command line `amct_onnx calibration`, as AMCT has it (amct_formats.md: Command line)."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

from amct_onnx.cli.command import Command, Parser
from amct_onnx.cli.output import Output
from amct_onnx.data.input_texts import InputFolder, check_data_type, parse_shapes, split_list
from amct_onnx.errors import AmctError
from amct_onnx.options import Flag, add_options, given_options, option, positive_number, reader

_DATA_OPTIONS = ("input_shape", "data_dir", "data_types")


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


def add_paths(command: Parser, kind: str) -> None:
    """Declare the model and the prefix of the results, as both of AMCT's commands have them."""
    command.add_argument("--model", required=True, metavar="FILE", help=f"the {kind} model, an .onnx file")
    command.add_argument(
        "--save_path", required=True, metavar="PREFIX", help="folder and prefix of the results: ./results/resnet101"
    )


def _declare(command: Parser) -> None:
    add_paths(command, "float")
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


def _read(namespace: argparse.Namespace, command: Parser) -> CalibrationCommand:
    inputs = _read_inputs(namespace, command)
    return CalibrationCommand(**given_options(CalibrationCommand, namespace), inputs=inputs)


def _read_inputs(namespace: argparse.Namespace, command: Parser) -> tuple[InputFolder, ...]:
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


def _run(command: Any, output: Output) -> None:
    from amct_onnx.cli.calibration import run_calibration

    run_calibration(command)


CALIBRATION = Command(
    name="calibration",
    summary="quantize a float model with calibration data",
    about="Quantize a float model with calibration data.",
    usage="--model FILE --save_path PREFIX",
    declare=_declare,
    read=_read,
    run=_run,
    shows=False,
)
