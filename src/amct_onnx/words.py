"""What messages call an option: an argument where Python was called, an option where the command line was.

Whoever writes a message about something that the user gave takes its name from here, so that one message serves both.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# Options of the command line that are not called like the argument of `quantize`.
_FLAGS = {"images": "preset", "shapes": "input_shape", "dtypes": "data_types", "settings.layers": "settings"}
IMAGE_OPTIONS = "image_"  # begins the options for the fields of ImageOptions
_PAIRS = {"names": "=", "shapes": ":", "dtypes": ":"}  # how the command line joins an input and what is said of it


class _Door:
    """Through which door the process works; the command line is a process of its own."""

    def __init__(self) -> None:
        self.is_command = False


_DOOR = _Door()


@contextmanager
def of_the_command_line() -> Iterator[None]:
    """While the block runs, messages are about options of the command, in all threads."""
    with _speaking(command=True):
        yield


@contextmanager
def of_python() -> Iterator[None]:
    """While the block runs, messages are about arguments of Python, as a file of jobs names them too."""
    with _speaking(command=False):
        yield


@contextmanager
def _speaking(*, command: bool) -> Iterator[None]:
    before, _DOOR.is_command = _DOOR.is_command, command
    try:
        yield
    finally:
        _DOOR.is_command = before


def is_command() -> bool:
    """Whether messages are about options of the command line."""
    return _DOOR.is_command


def either(python: str, command: str) -> str:
    """One of two texts, for those who called Python and those who gave a command."""
    return command if _DOOR.is_command else python


def named(argument: str) -> str:
    """An option without a value: `batch_size`, or `--batch_size`."""
    return either(argument, f"--{_FLAGS.get(argument, argument)}")


def given(argument: str, value: Any) -> str:
    """An option with a value: `effort='best'` and `reduce_range=True`, or `--effort best` and `--reduce_range`."""
    return either(f"{argument}={value!r}", named(argument) if value is True else f"{named(argument)} {value}")


def given_for(argument: str, key: str) -> str:
    """An option with something to be said about the input `key`: `shapes={'x': ...}`, or `--input_shape "x:..."`."""
    return either(f"{argument}={{{key!r}: ...}}", f'{named(argument)} "{key}{_PAIRS.get(argument, "=")}..."')


def of_images(field: str, *value: Any) -> str:
    """A field of ImageOptions, with a value or without: `pad=7`, or `--image_pad 7`."""
    return either("=".join([field, *map(repr, value)]), " ".join([f"--{IMAGE_OPTIONS}{field}", *map(str, value)]))
