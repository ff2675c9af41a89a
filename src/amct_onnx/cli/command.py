"""What a command of `amct_onnx` is: its name, its options, and the function that does the work.

Each command has a module of its own, `cli/<name>_options.py`, that holds its `Command`; `cli/commands.py` lists them.
Only what is light is imported there: `--help` must not wait for numpy or ONNX Runtime. `Command.run` imports the rest.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

from amct_onnx.cli.output import Output

_EXIT_CODES = "exit code: 0 done, 1 an error (one ERROR line says what), 2 a wrong command line, 130 interrupted"


class AlreadyTold(Exception):  # noqa: N818 (it ends the command, and is no news)
    """Something failed, which the log has; other work of the command was done."""


class Parser(argparse.ArgumentParser):
    """A parser whose `error` says how to get help."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(2, f"{self.prog}: error: {message}; {self.prog} --help explains the options\n")


@dataclass(frozen=True, kw_only=True)
class Command:
    """One command of the command line.

    summary: a line in `amct_onnx --help`. about: the first line of its own help. declare: adds its options to a parser.
    read: makes a value of what was given, and ends in `parser.error` where that is wrong. run: does the work of the
    value, and says on the output what came of it; raises AmctError. shows: it has a summary for people, so that it
    takes `--quiet` and `--json`.
    """

    name: str
    summary: str
    about: str
    declare: Callable[[Parser], None]
    read: Callable[[argparse.Namespace, Parser], Any]
    run: Callable[[Any, Output], None]
    shows: bool = True

    def add_to(self, commands: argparse._SubParsersAction[Parser]) -> Parser:
        """Its parser, made among the others."""
        epilog = f"{_EXIT_CODES}. Options can be given as --name value or --name=value; names can be shortened."
        parser = commands.add_parser(self.name, help=self.summary, description=self.about, epilog=epilog)
        self.declare(parser)
        if self.shows:
            parser.add_argument("--json", action="store_true", help="one JSON document on stdout in place of the text")
            parser.add_argument("--quiet", action="store_true", help="no summary and no progress; warnings stay")
        return parser


def main_parser(version: str) -> Parser:
    """The parser of the command line without its commands."""
    parser = Parser(prog="amct_onnx", description="amct_onnx command line tools.", epilog=_EXIT_CODES)
    parser.add_argument("--version", action="version", version=f"amct_onnx {version}")
    return parser
