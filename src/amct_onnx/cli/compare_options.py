"""The command line `amct_onnx compare`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from amct_onnx.cli.command import Command, Parser
from amct_onnx.cli.model_and_data import add_data, image_epilog, read_data, read_data_options
from amct_onnx.cli.output import Output
from amct_onnx.options import add_options, given_options, positive_number
from amct_onnx.ptq.options import QuantizeOptions


@dataclass(frozen=True, kw_only=True)
class CompareCommand:
    """What a command line `compare` asks for."""

    float_model: str
    quantized_model: str
    data: str | Mapping[str, str]
    """A path, or one for each input."""
    everything: bool
    """Whether all layers are shown, and not those alone that cost most."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """The other arguments of the function `compare` that were given."""


def _declare(command: Parser) -> None:
    command.add_argument("float_model", metavar="FLOAT", help="the float model, an .onnx file")
    command.add_argument("quantized_model", metavar="QUANT", help="what any tool has made of it")
    command.add_argument("--samples", type=positive_number, metavar="N", help="samples that are run (4)")
    command.add_argument("--all", dest="everything", action="store_true", help="show all layers")
    add_options(command, QuantizeOptions, ["providers"])
    add_data(command.add_argument_group("data", image_epilog()))


def _read(namespace: argparse.Namespace, command: Parser) -> CompareCommand:
    if namespace.data is None:
        command.error("give --data, some samples that both models are run on")
    samples = {} if namespace.samples is None else {"samples": namespace.samples}
    return CompareCommand(
        float_model=namespace.float_model,
        quantized_model=namespace.quantized_model,
        data=read_data(namespace.data, command),
        everything=namespace.everything,
        arguments=given_options(QuantizeOptions, namespace) | read_data_options(namespace, command) | samples,
    )


def _run(command: Any, output: Output) -> None:
    import amct_onnx
    from amct_onnx.cli.show import show_result
    from amct_onnx.progress import TerminalProgress

    progress = TerminalProgress(output.say) if output.is_text else False
    found = amct_onnx.compare(
        command.float_model, command.quantized_model, command.data, progress=progress, **command.arguments
    )
    if command.everything:
        show_result(output, COMPARE.name, found)
        return
    chosen = found.most_costly()
    rest = len(found.layers) - len(chosen.rows)
    notes = [f"and {rest} more layers, which --all shows"] if rest else []
    show_result(output, COMPARE.name, found, [chosen], notes)


COMPARE = Command(
    name="compare",
    summary="where a quantized model parts from its float model",
    about="Layer by layer, where two models part first: amct_onnx compare float.onnx quantized.onnx --data images/",
    usage="FLOAT QUANT --data PATH",
    declare=_declare,
    read=_read,
    run=_run,
)
