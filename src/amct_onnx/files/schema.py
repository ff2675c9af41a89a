"""Reads and writes protobuf text without generated code: the classes of messages are made from proto text when needed.

Generated `_pb2` modules would tie a release to one protobuf version. All protobuf text goes through this module.
"""

from __future__ import annotations

import math
import os
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from google.protobuf import (  # type: ignore[import-untyped, unused-ignore]
    descriptor_pb2,
    descriptor_pool,
    message_factory,
    text_encoding,
    text_format,
)

from amct_onnx.errors import AmctError

_FIELD = re.compile(r"(optional|repeated) (\w+) (\w+) = (\d+);")
_FLOAT32 = struct.Struct("<f")
_SCALARS = frozenset({"TYPE_FLOAT", "TYPE_INT32", "TYPE_UINT32", "TYPE_BOOL", "TYPE_STRING"})


@dataclass(frozen=True)
class Field:
    """One field of a message."""

    name: str
    type: str
    """A scalar type of proto, or the name of a message or an enum."""
    number: int
    repeated: bool
    oneof: str | None = None


@cache
def fields_of(proto: str, message: str) -> Mapping[str, Field]:
    """The fields of one message of `proto`, by name, in the order of their numbers."""
    body = proto.partition(f"message {message} {{\n")[2].partition("\n}\n")[0]
    fields: list[Field] = []
    oneof: str | None = None
    for line in body.splitlines():
        if opened := re.match(r"\s*oneof (\w+) \{", line):
            oneof = opened[1]
        elif line.strip() == "}":
            oneof = None
        elif found := _FIELD.search(line):
            label, kind, name, number = found.groups()
            fields.append(Field(name, kind, int(number), label == "repeated", oneof))
    return {field.name: field for field in sorted(fields, key=lambda field: field.number)}


@cache
def message_class(proto: str, root: str) -> Any:
    """The class of the message `root` of a file of proto2 text.

    Each field of the text has a line of its own and is marked `optional` or `repeated`, also the members of a oneof.
    """
    file = descriptor_pb2.FileDescriptorProto(name=f"{root}.proto", syntax="proto2")
    enums = re.findall(r"^enum (\w+) \{ (.*) \}$", proto, re.MULTILINE)
    for name, values in enums:
        enum = file.enum_type.add(name=name)
        for value, number in re.findall(r"(\w+) = (\d+);", values):
            enum.value.add(name=value, number=int(number))
    enum_names = {name for name, _ in enums}
    for name in re.findall(r"^message (\w+)", proto, re.MULTILINE):
        _add_message(file.message_type.add(name=name), fields_of(proto, name), enum_names)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(root))


def _add_message(message: Any, fields: Mapping[str, Field], enums: set[str]) -> None:
    kinds = descriptor_pb2.FieldDescriptorProto
    oneofs: list[str] = []
    for field in fields.values():
        made = message.field.add(name=field.name, number=field.number)
        made.label = kinds.LABEL_REPEATED if field.repeated else kinds.LABEL_OPTIONAL
        scalar = f"TYPE_{field.type.upper()}"
        if scalar in _SCALARS:
            made.type = kinds.Type.Value(scalar)
        else:
            made.type = kinds.TYPE_ENUM if field.type in enums else kinds.TYPE_MESSAGE
            made.type_name = field.type
        if field.oneof is not None:
            if field.oneof not in oneofs:
                oneofs.append(field.oneof)
                message.oneof_decl.add(name=field.oneof)
            made.oneof_index = oneofs.index(field.oneof)


def parse_text(text: str, message: Any, *, path: str | os.PathLike[str], error: type[AmctError], advice: str) -> Any:
    """Merge protobuf text into `message` and return it. Raises `error` with file, line, column and `advice`.

    If a scalar or members of a oneof are given several times, the last one wins.
    """
    name = os.fspath(path)
    try:
        return text_format.Merge(text, message)
    except text_format.ParseError as reason:
        place = ":".join(str(n) for n in (reason.GetLine(), reason.GetColumn()) if n is not None)
        what = re.sub(r"^\d+:\d+ : ", "", str(reason))
        what = what if len(what) <= 300 else f"{what[:100]} ... {what[-190:]}"  # it quotes the whole line
        raise error(f"{name}:{place}: {what}; {advice}" if place else f"{name}: {what}; {advice}") from None
    except (ValueError, TypeError, OverflowError, RecursionError) as reason:
        # Some checks of protobuf raise such errors, for instance that of escapes that are no UTF-8.
        raise error(f"{name}: {reason}; {advice}") from None


def escape_text(text: str) -> str:
    """`text` as a quoted string of the text format."""
    escaped: str = text_encoding.CEscape(text, as_utf8=True)  # type: ignore[arg-type]  # it takes str as well
    return f'"{escaped}"'


def to_float32(value: float) -> float:
    """`value` rounded to float32. It becomes infinite beyond the range of float32."""
    try:
        return float(_FLOAT32.unpack(_FLOAT32.pack(value))[0])
    except OverflowError:
        return math.copysign(math.inf, value)


def shortest_float32(value: float) -> float:
    """The decimal with the fewest digits, from six on, that is the same float32. Protobuf prints floats like that."""
    exact = to_float32(value)
    if not math.isfinite(exact):
        return exact
    # Almost all numbers need eight or nine digits, so try eight before fewer.
    if to_float32(float(f"{exact:.8g}")) != exact:
        return float(f"{exact:.9g}")
    for digits in (6, 7, 8):
        short = float(f"{exact:.{digits}g}")
        if to_float32(short) == exact:
            return short
    return float(f"{exact:.9g}")
