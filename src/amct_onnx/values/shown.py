"""Results that show themselves: as text, as HTML in a notebook, as a dictionary for JSON, and as a table of pandas."""

from __future__ import annotations

import html
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from typing import Any

import numpy as np

from amct_onnx.errors import AmctError

_LETTERS = 44
_STYLE = "border-collapse:collapse;font-variant-numeric:tabular-nums"
_CELL = "padding:2px 10px;text-align:{side};white-space:nowrap"


class MissingExtraError(AmctError, ImportError):
    """A package that only some need is not installed."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of values under the names of their columns.

    title: what the rows are. columns: their names; `units` has the unit of some of them, by name. rows: each with a
    value for every column: a text, a number, a truth or None.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    units: Mapping[str, str]

    @classmethod
    def of(cls, title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], **units: str) -> Table:
        """A table; units: those of columns, by their names with _ in the place of spaces."""
        known = {name.replace("_", " "): unit for name, unit in units.items()}
        return cls(title=title, columns=tuple(columns), rows=tuple(map(tuple, rows)), units=known)

    def texts(self) -> list[list[str]]:
        """What stands in the cells."""
        units = [self.units.get(name, "") for name in self.columns]
        return [[cell_text(value, unit) for value, unit in zip(row, units, strict=True)] for row in self.rows]

    def numeric(self) -> list[bool]:
        """Whether each column holds numbers, which stand on its right side."""
        return [all(_is_number(row[i]) or row[i] is None for row in self.rows) for i in range(len(self.columns))]

    def text(self, most: int | None = None) -> str:
        """The table as lines of text, with `most` rows at most."""
        cells = self.texts()[:most]
        widths = [max(len(name), *(len(row[i]) for row in cells), 0) for i, name in enumerate(self.columns)]
        right = self.numeric()
        lines = []
        for row in (list(self.columns), *cells):
            parts = [f"{c:>{w}}" if r else f"{c:<{w}}" for c, w, r in zip(row, widths, right, strict=True)]
            lines.append("  ".join(parts).rstrip())
        rest = len(self.rows) - len(cells)
        return "\n".join([*lines, *([f"and {rest} more"] if rest else [])])

    def html(self) -> str:
        """The table as HTML, in which every text is escaped."""
        sides = ["right" if numeric else "left" for numeric in self.numeric()]

        def row(tag: str, cells: Sequence[str]) -> str:
            styled = zip(cells, sides, strict=True)
            parts = (f'<{tag} style="{_CELL.format(side=s)}">{html.escape(cell)}</{tag}>' for cell, s in styled)
            return f"<tr>{''.join(parts)}</tr>"

        body = "".join(row("td", cells) for cells in self.texts())
        return (
            f'<table style="{_STYLE}"><caption style="text-align:left">{html.escape(self.title)}</caption>'
            f"<thead>{row('th', self.columns)}</thead><tbody>{body}</tbody></table>"
        )


class Shown(ABC):
    """A result that shows itself. Its fields are what `to_dict` has, and `tables` what people see."""

    @abstractmethod
    def tables(self) -> tuple[Table, ...]:
        """The tables of the result, the main one first."""

    @abstractmethod
    def lines(self) -> list[str]:
        """What stands above the tables, a sentence each."""

    def to_dict(self) -> dict[str, Any]:
        """The result in dictionaries, lists, texts, numbers, truths and None, as JSON has them.

        What JSON has no number for is None: NaN, and the infinite ratio of a tensor without an error.
        """
        document: dict[str, Any] = plain(self)
        return document

    def to_pandas(self) -> Any:
        """The main table as a pandas.DataFrame. Raises MissingExtraError where pandas is not installed."""
        try:
            import pandas
        except ImportError:
            raise MissingExtraError(
                'pandas is not installed, to_pandas needs it: pip install "amct-onnx[pandas]"'
            ) from None
        table = self.tables()[0]
        return pandas.DataFrame([list(row) for row in table.rows], columns=list(table.columns))

    def _repr_html_(self) -> str:
        return html_of(self.lines(), self.tables())

    def __str__(self) -> str:
        tables = [f"{table.title}\n{table.text(most=30)}" for table in self.tables() if table.rows]
        return "\n\n".join(["\n".join(self.lines()), *tables])


def html_of(lines: Sequence[str], tables: Sequence[Table] = ()) -> str:
    """Sentences and tables as HTML, in which every text is escaped."""
    head = "".join(f"<div>{html.escape(line)}</div>" for line in lines)
    return f"<div>{head}{''.join(table.html() for table in tables if table.rows)}</div>"


def plain(value: Any) -> Any:
    """A value as JSON has it: a dataclass becomes the dictionary of its fields that are not hidden."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, Enum):
        return value.name.lower()
    if isinstance(value, str) or value is None:
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, list | tuple | set | frozenset | np.ndarray):
        return [plain(item) for item in value]
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, int | np.integer):
        return int(value)
    number = float(value)
    return number if math.isfinite(number) else None


def cell_text(value: Any, unit: str = "") -> str:
    """What stands for a value in a table; "" for None."""
    if value is None:
        return ""
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if not _is_number(value):
        text = " ".join(str(value).split())
        return text if len(text) <= _LETTERS * 3 else f"...{text[-_LETTERS * 3 + 3 :]}"
    if isinstance(value, int | np.integer):
        return f"{value:,}".replace(",", " ") + (f" {unit}" if unit else "")
    if math.isnan(value):
        return "-"
    if math.isinf(value):
        return "exact" if value > 0 and unit == "dB" else str(value)
    digits = {"dB": ".1f", "%": ".2f"}.get(unit, ".4g")
    return f"{value:{digits}}" + (f" {unit}" if unit else "")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
