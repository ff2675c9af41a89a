"""The errors a user may meet. Each message says what is wrong, where, and what to do, in one line.

Every class is an `AmctError` and also the built-in exception that AMCT raises in the same place
(amct_formats.md: Functions), so scripts written for AMCT that catch `ValueError`, `TypeError` or `RuntimeError` keep
working.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence
from functools import partial
from typing import Any

_LONGEST_LIST = 250  # characters: a message is one line, which somebody reads

_LEAST_PART = 4  # letters of a part of a name that suggests the name


class AmctError(Exception):
    """Base of all errors raised on purpose by this package."""


class ArgumentError(AmctError, ValueError):
    """An argument has the right type and a value that cannot be used."""


class ArgumentTypeError(AmctError, TypeError):
    """An argument has the wrong type."""


class ConfigError(AmctError, ValueError):
    """A configuration file is malformed or contradicts the model."""


class ConfigTypeError(ConfigError, TypeError):
    """Every mistake of a configuration file is a value of the wrong type."""


class FileMissingError(AmctError, FileNotFoundError, ValueError):
    """A file that has to be read does not exist."""


class ModelFileError(AmctError, ValueError):
    """A file is not a readable ONNX model."""


class ModelError(AmctError, RuntimeError):
    """A model was read, and the requested step cannot be done with it."""


class LayerError(ModelError):
    """A layer cannot be quantized, and the others could be. `reason`: why, as a clause about it."""

    def __init__(self, text: str, *, layer: str, reason: str) -> None:
        super().__init__(text)
        self.layer, self.reason = layer, reason

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(LayerError, layer=self.layer, reason=self.reason), self.args


class RecordError(AmctError, RuntimeError):
    """A record file is empty, incomplete, malformed or belongs to another model."""


class RecordValueError(RecordError, ValueError):
    """A factor in a record file is out of range."""


class CalibrationError(AmctError, RuntimeError):
    """A tensor seen during calibration cannot be quantized (empty, NaN, Inf, wrong dtype)."""


class DataError(AmctError, RuntimeError, ValueError):
    """Calibration data are missing, too few, or do not fit the model."""


class StatisticsError(AmctError, RuntimeError, ValueError):
    """Statistics of a calibration are damaged, belong to another model, or lack a tensor that is needed."""


class RunFileError(AmctError, ValueError):
    """A run file, which a report is made of, is damaged or of another version."""


class ScriptError(AmctError, RuntimeError):
    """A script of the user failed, or does not offer what is needed."""


class OutputError(AmctError, OSError):
    """A result cannot be written."""


class EngineError(AmctError, RuntimeError):
    """Work cannot be given to others: there is nobody to do it, or whoever does it is lost again and again."""


class StateError(AmctError, RuntimeError, ValueError):
    """A folder of resumable state cannot be used: it is damaged, or of another model, other data or settings."""


class SearchError(AmctError, RuntimeError):
    """An accuracy-based search cannot begin or go on: evaluator, strategy or sensitivity do not do their part."""


def did_you_mean(name: str, known: Collection[str], otherwise: str) -> str:
    """The end of a message about an unknown name: the known one that is like it, or else `otherwise`.

    Capital letters make no difference, and a part of a name is like it.
    """
    folded, name = {other.casefold(): other for other in known}, name.casefold()
    close = difflib.get_close_matches(name, folded, n=1)
    if not close:
        parts = [
            other for other in folded if min(len(name), len(other)) >= _LEAST_PART and (name in other or other in name)
        ]
        close = sorted(parts, key=lambda other: abs(len(other) - len(name)))
    return f"did you mean {folded[close[0]]!r}?" if close else otherwise


class Nearest:
    """Ends sentences about unknown names: " Did you mean ...?", or "" where no known name is like the unknown one.

    It looks for a few names only, since that is slow among the names of a large model.
    """

    def __init__(self, known: Collection[str], most: int = 5) -> None:
        self._known, self._left = known, most

    def to(self, name: str) -> str:
        self._left -= 1
        hint = did_you_mean(name, self._known, "") if self._left >= 0 else ""
        return f" D{hint[1:]}" if hint else ""


def listed(items: Sequence[str], shown: int, separator: str = ", ") -> str:
    """The first `shown` of the items, or fewer if they are long, and how many more there are."""
    while shown > 1 and len(separator.join(items[:shown])) > _LONGEST_LIST:
        shown -= 1
    rest = len(items) - shown
    return separator.join(items[:shown]) + (f" and {rest} more" if rest > 0 else "")


def one_line(error: object, longest: int = 200) -> str:
    """What an error of a library says, in one line of at most `longest` characters; its class where it says nothing."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= longest else f"{text[: longest - 3]}..."
