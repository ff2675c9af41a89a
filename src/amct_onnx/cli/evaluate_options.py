"""The command line `amct_onnx evaluate`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from amct_onnx.cli.command import Command, Parser
from amct_onnx.cli.model_and_data import RUNNING, image_epilog, read_data_options
from amct_onnx.cli.output import Output
from amct_onnx.data.image_options import PRESETS, ImageOptions
from amct_onnx.data.options import DataOptions
from amct_onnx.options import add_options, given_options
from amct_onnx.ptq.options import QuantizeOptions


@dataclass(frozen=True, kw_only=True)
class EvaluateCommand:
    """What a command line `evaluate` asks for."""

    models: tuple[str, ...]
    images: str
    labels: str | None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """The other arguments of the function `evaluate` that were given."""


def _declare(command: Parser) -> None:
    command.add_argument("model", metavar="MODEL", help="an .onnx file")
    command.add_argument("other", metavar="OTHER", nargs="?", help="another one, shown beside it")
    command.add_argument(
        "--labels",
        metavar="FILE",
        help='lines "name class", JSON, .npy; boxes of COCO or YOLO; none: as they lie beside the images',
    )
    add_options(command, QuantizeOptions, RUNNING)
    group = command.add_argument_group("data", image_epilog())
    group.add_argument(
        "--images", "--data", dest="folder", metavar="PATH", help="a folder of images, tars, parquet, .npy"
    )
    group.add_argument("--preset", dest="images", metavar="NAME", help=f"{', '.join(PRESETS)}, or a file")
    add_options(group, DataOptions, ["batch_size", "limit"])
    add_options(group, ImageOptions, hidden=True)


def _read(namespace: argparse.Namespace, command: Parser) -> EvaluateCommand:
    if namespace.folder is None:
        command.error("give --images, a folder of images or other samples")
    arguments = given_options(QuantizeOptions, namespace) | read_data_options(namespace, command)
    if "images" in arguments:
        arguments["preset"] = arguments.pop("images")
    models = (namespace.model,) if namespace.other is None else (namespace.model, namespace.other)
    return EvaluateCommand(models=models, images=namespace.folder, labels=namespace.labels, arguments=arguments)


def _run(command: Any, output: Output) -> None:
    import amct_onnx
    from amct_onnx.cli.show import show_result
    from amct_onnx.progress import TerminalProgress

    progress = TerminalProgress(output.say) if output.is_text else False
    found = amct_onnx.evaluate(command.models, command.images, command.labels, progress=progress, **command.arguments)
    show_result(output, EVALUATE.name, found)


EVALUATE = Command(
    name="evaluate",
    summary="how good a model, or two side by side, are on labelled images",
    about="Top-1 and top-5, or mAP: amct_onnx evaluate model.onnx --images photos/ --labels labels.txt",
    usage="MODEL [OTHER] --images PATH [--labels FILE]",
    declare=_declare,
    read=_read,
    run=_run,
)
