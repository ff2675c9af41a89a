"""Finds the line and column of each field of a protobuf text, and fields that are given twice.

Protobuf itself keeps no positions. Of several values, and of several members of a oneof, it silently takes the last.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from amct_onnx.files.schema import message_class
from amct_onnx.files.whole_files import Position

# A sign is part of a number. The text format allows + and - inside a name, too.
_TOKEN = re.compile(
    r"""(?P<skip>\s+|\#[^\n]*)
    |(?P<word>[A-Za-z_][0-9A-Za-z_+-]*|(?:[0-9+-]|\.[0-9])[0-9A-Za-z_.+-]*)
    |(?P<text>"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*')
    |(?P<mark>.)""",
    re.VERBOSE,
)
_ENDS = {"{": "}", "<": ">"}


@dataclass(frozen=True)
class Occurrence:
    """One occurrence of a field."""

    path: str
    """With the indices of repeated fields, for instance "override_layer_configs[0].layer_name"."""
    position: Position
    """Where its name begins, or where it begins if it is an element of a list `[a, b]`."""
    field: Any
    """Its protobuf descriptor."""
    value: str | None = None
    """The text of a scalar, None for a block."""

    @property
    def block(self) -> str:
        """The path of the block around it, "" for the document."""
        return self.path.rpartition(".")[0]


def locate_fields(text: str, proto: str, root: str) -> tuple[Occurrence, ...]:
    """Every field of `text`, in its order. Protobuf must have accepted the text as a message `root` of `proto`."""
    return tuple(_Walk(text).block(message_class(proto, root).DESCRIPTOR, "", None))


def blank_scalar(text: str, name: str) -> str:
    """`text` with blanks where the scalar field `name` stands outside of all blocks, whatever its value is."""
    tokens = [match for match in _TOKEN.finditer(text) if match.lastgroup != "skip"]
    depth = 0
    for index, first in enumerate(tokens):
        depth += (first.group() in _ENDS) - (first.group() in _ENDS.values())
        colon, value, separator = [*tokens[index + 1 : index + 4], *(None,) * 3][:3]
        if depth or first.group() != name or colon is None or colon.group() != ":" or value is None:
            continue
        if value.lastgroup in ("word", "text"):
            last = separator if separator is not None and separator.group() in (",", ";") else value
            field = slice(first.start(), last.end())
            text = text[: field.start] + re.sub(r"[^\n]", " ", text[field]) + text[field.stop :]
    return text


class _Walk:
    """One pass over the tokens of a text. `_index` is that of the next token."""

    def __init__(self, text: str) -> None:
        self._lines = [0, *(match.end() for match in re.finditer("\n", text))]
        self._tokens = [match for match in _TOKEN.finditer(text) if match.lastgroup != "skip"]
        self._index = 0
        self._counts: dict[str, int] = {}

    def _peek(self) -> str:
        return self._tokens[self._index].group() if self._index < len(self._tokens) else ""

    def _skip(self, *marks: str) -> bool:
        found = self._peek() in marks
        self._index += found
        return found

    def _take(self) -> tuple[str, Position]:
        match = self._tokens[self._index]
        self._index += 1
        line = bisect_right(self._lines, match.start())
        return match.group(), Position(line=line, column=match.start() - self._lines[line - 1] + 1)

    def block(self, message: Any, path: str, end: str | None) -> Iterator[Occurrence]:
        """The fields of a block whose type has the descriptor `message`."""
        while self._index < len(self._tokens) and not (end and self._skip(end)):
            name, position = self._take()
            field = message.fields_by_name[name]
            self._skip(":")
            if not field.has_presence and self._skip("["):
                while not self._skip("]"):
                    yield from self._value(field, path, None)
                    self._skip(",")
            else:
                yield from self._value(field, path, position)
            self._skip(",", ";")

    def _value(self, field: Any, path: str, position: Position | None) -> Iterator[Occurrence]:
        own = f"{path}.{field.name}" if path else field.name
        if not field.has_presence:  # it is repeated
            index = self._counts[own] = self._counts.get(own, -1) + 1
            own = f"{own}[{index}]"
        value, start = self._take()
        if value in _ENDS:
            yield Occurrence(own, position or start, field)
            yield from self.block(field.message_type, own, _ENDS[value])
            return
        while value[0] in "\"'" and self._peek()[:1] in ('"', "'"):  # adjacent strings are one
            value += " " + self._take()[0]
        yield Occurrence(own, position or start, field, value)


def position_of(path: str, positions: Mapping[str, Position]) -> Position | None:
    """The position of `path` or its first element. If the text has none, that of the innermost block around it."""
    while path:
        found = positions.get(path) or positions.get(f"{path}[0]")
        if found is not None:
            return found
        path = path[: path.rindex("[")] if path.endswith("]") else path.rpartition(".")[0]
    return None


def candidates_for_contradiction(found: Sequence[Occurrence]) -> Iterator[tuple[Occurrence, Occurrence]]:
    """Pairs of two values for one scalar, which may be equal, and pairs of two members of one oneof."""
    scalars: dict[str, Occurrence] = {}
    members: dict[tuple[str, str], Occurrence] = {}
    for entry in found:
        if (oneof := entry.field.containing_oneof) is not None:
            first = members.setdefault((entry.block, oneof.name), entry)
            if first.field.name != entry.field.name:
                yield first, entry
        if entry.value is not None and entry.field.has_presence:
            first = scalars.setdefault(entry.path, entry)
            if first is not entry:
                yield first, entry
