"""Reads and writes protobuf text without generated code: the classes of messages are made from proto text when needed.

Generated `_pb2` modules would tie a release to one protobuf version. All protobuf text goes through this module. The
proto texts are files of the package, in `proto/`, so that a user can look up what is accepted.
"""

from __future__ import annotations

import math
import os
import re
import struct
from functools import cache
from pathlib import Path
from typing import Any

from google.protobuf import (  # type: ignore[import-untyped, unused-ignore]
    descriptor_pb2,
    descriptor_pool,
    message_factory,
    text_encoding,
    text_format,
)

from amct_onnx.errors import AmctError, did_you_mean

_FIELD = re.compile(r"(optional |repeated |)(\w+) (\w+) = (\d+);")
_FEW_FIELDS = 8  # of a message, so that a mistake may list them
_COMMENT = re.compile(r" *//.*")
# What protobuf says of a name that a message or an enumeration does not have.
_NO_FIELD = re.compile(r'Message type "(\w+)" has no field named "([^"]*)"')
_NO_VALUE = re.compile(r'Enum type "(\w+)" has no value named (\w+)')
_FLOAT32 = struct.Struct("<f")
_FIELD_KINDS = descriptor_pb2.FieldDescriptorProto
FLOAT, INT32, UINT32 = _FIELD_KINDS.TYPE_FLOAT, _FIELD_KINDS.TYPE_INT32, _FIELD_KINDS.TYPE_UINT32
BOOL, STRING = _FIELD_KINDS.TYPE_BOOL, _FIELD_KINDS.TYPE_STRING
_SCALARS = {"float": FLOAT, "int32": INT32, "uint32": UINT32, "bool": BOOL, "string": STRING}


def proto_path(name: str) -> Path:
    """Where the file `name` of the folder `proto/` lies."""
    return Path(__file__).resolve().parents[1] / "proto" / name


@cache
def read_proto(name: str) -> str:
    """The text of the file `name` of the folder `proto/`, without comments."""
    return _COMMENT.sub("", proto_path(name).read_text(encoding="utf-8"))


@cache
def message_class(proto: str, root: str) -> Any:
    """The class of the message `root` of a file of proto2 text; its DESCRIPTOR tells of the fields.

    Each field of the text has a line of its own, and so has each enumeration; there are no comments.
    """
    file = descriptor_pb2.FileDescriptorProto(name=f"{root}.proto", syntax="proto2")
    for name, values in re.findall(r"^enum (\w+) \{ (.*) \}$", proto, re.MULTILINE):
        enum = file.enum_type.add(name=name)
        for value, number in re.findall(r"(\w+) = (\d+);", values):
            enum.value.add(name=value, number=int(number))
    enums = {enum.name for enum in file.enum_type}
    for name, body in re.findall(r"^message (\w+) \{\n(.*?)^\}", proto, re.MULTILINE | re.DOTALL):
        _add_fields(file.message_type.add(name=name), body, enums)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(root))


def _add_fields(message: Any, body: str, enums: set[str]) -> None:
    in_oneof = False
    for line in body.splitlines():
        if opened := re.match(r"\s*oneof (\w+) \{", line):
            in_oneof = True
            message.oneof_decl.add(name=opened[1])
        elif line.strip() == "}":
            in_oneof = False
        elif found := _FIELD.search(line):
            label, kind, name, number = found.groups()
            made = message.field.add(name=name, number=int(number))
            made.label = _FIELD_KINDS.LABEL_REPEATED if label == "repeated " else _FIELD_KINDS.LABEL_OPTIONAL
            if kind in _SCALARS:
                made.type = _SCALARS[kind]
            else:
                made.type = _FIELD_KINDS.TYPE_ENUM if kind in enums else _FIELD_KINDS.TYPE_MESSAGE
                made.type_name = kind
            if in_oneof:
                made.oneof_index = len(message.oneof_decl) - 1


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
        what = what.rstrip(".") + _hint(what, message.DESCRIPTOR.file)
        raise error(f"{name}:{place}: {what}; {advice}" if place else f"{name}: {what}; {advice}") from None
    except (ValueError, TypeError, OverflowError, RecursionError) as reason:
        # Some checks of protobuf raise such errors, for instance that of escapes that are no UTF-8.
        raise error(f"{name}: {reason}; {advice}") from None


def _hint(what: str, file: Any) -> str:
    """The name in a proto `file` that is like the unknown one in an error of protobuf, or the message that has it."""
    if found := _NO_VALUE.search(what):
        values = file.enum_types_by_name[found[1]].values_by_name
        return ", " + did_you_mean(found[2], values, f"use one of {', '.join(values)}")
    if found := _NO_FIELD.search(what):
        messages = file.message_types_by_name
        owners = [name for name, message in messages.items() if found[2] in message.fields_by_name]
        hint = f"it is one of {' and '.join(owners)}" if owners else ""
        fields = messages[found[1]].fields_by_name
        otherwise = f"use one of {', '.join(fields)}" if len(fields) <= _FEW_FIELDS else ""
        hint = hint or did_you_mean(found[2], fields, otherwise)
        return hint and f", {hint}"
    return ""


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
