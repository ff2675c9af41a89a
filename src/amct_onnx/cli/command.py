"""What a command of `amct_onnx` is: its name, its options, and the function that does the work.

Each command has a module of its own, `cli/<name>_options.py`, that holds its `Command`; `cli/commands.py` lists them.
Only what is light is imported there: `--help` must not wait for numpy or ONNX Runtime. `Command.run` imports the rest.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

from amct_onnx.cli.output import Output, pipe_may_be_gone
from amct_onnx.errors import did_you_mean

_EXIT_CODES = "exit code: 0 done, 1 an error, 2 a wrong command line, 130 interrupted"
_LEFT, _WIDEST = 27, 100  # columns


class AlreadyTold(Exception):  # noqa: N818 (it ends the command, and is no news)
    """Something failed, which the log has; other work of the command was done."""


class _Help(argparse.HelpFormatter):
    """One line for an option where that is enough, under one of its names, and paragraphs that keep their lines."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=_LEFT, width=min(shutil.get_terminal_size().columns, _WIDEST) - 1)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings or action.nargs == 0:
            return super()._format_action_invocation(action)
        return f"{action.option_strings[0]} {action.metavar or '{' + ','.join(map(str, action.choices or ())) + '}'}"

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n".join(super(_Help, self)._fill_text(line, width, indent) for line in text.split("\n"))


class Parser(argparse.ArgumentParser):
    """A parser whose `error` says how to get help, and which name is like a wrong one."""

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices and isinstance(value, str):
            known = [str(choice) for choice in action.choices]
            hint = did_you_mean(value, known, f"use one of {', '.join(known)}")
            raise argparse.ArgumentError(action, f"invalid choice: {value!r}, {hint}")
        super()._check_value(action, value)

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(2, f"{self.prog}: error: {message}; {self.prog} --help explains the options\n")


@dataclass(frozen=True, kw_only=True)
class Command:
    """One command of the command line.

    summary: a line in `amct_onnx --help`. about: the first line of its own help. usage: what has to be given. declare:
    adds its options to a parser. read: makes a value of what was given, and ends in `parser.error` where that is wrong.
    run: does the work of the value, and says on the output what came of it; raises AmctError. shows: it has a summary
    for people, so that it takes `--quiet` and `--json`.
    """

    name: str
    summary: str
    about: str
    usage: str
    declare: Callable[[Parser], None]
    read: Callable[[argparse.Namespace, Parser], Any]
    run: Callable[[Any, Output], None]
    shows: bool = True

    def add_to(self, commands: argparse._SubParsersAction[Parser]) -> Parser:
        """Its parser, made among the others."""
        parser = commands.add_parser(
            self.name,
            help=self.summary,
            description=self.about,
            usage=" ".join(["amct_onnx", self.name, *self.usage.split(), "[options]"]),
            epilog=f"{_EXIT_CODES}\noptions: --name value or --name=value; names can be shortened",
            formatter_class=_Help,
        )
        self.declare(parser)
        if self.shows:
            parser.add_argument("--json", action="store_true", help="a JSON document on stdout in place of text")
            parser.add_argument("--quiet", action="store_true", help="no summary, no progress; warnings stay")
        return parser


def main_parser(version: str) -> Parser:
    """The parser of the command line without its commands."""
    parser = Parser(prog="amct_onnx", description="amct_onnx command line tools.", epilog=_EXIT_CODES)
    parser.add_argument("--version", action="version", version=f"amct_onnx {version}")
    parser.add_argument(
        "--completion", action=_Completion, metavar="SHELL", help="print what completes commands in a shell, as bash"
    )
    return parser


class _Completion(argparse.Action):
    """Prints what makes a shell complete commands and options, and ends; shtab, an extra, writes it."""

    def __call__(self, parser: argparse.ArgumentParser, *arguments: Any) -> NoReturn:
        shell = arguments[1]
        try:
            import shtab
        except ImportError:
            parser.error('--completion needs the package shtab: pip install "amct-onnx[completion]"')
        if shell not in shtab.SUPPORTED_SHELLS:
            parser.error(f"--completion: {shell!r} is unknown, use one of {', '.join(shtab.SUPPORTED_SHELLS)}")
        with pipe_may_be_gone():
            print(shtab.complete(parser, shell), flush=True)
        parser.exit()
