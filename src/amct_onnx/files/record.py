"""Reads, writes and checks record.txt, the factors of a model as protobuf text (amct_formats.md: record.txt)."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from amct_onnx.errors import Nearest, RecordError, RecordValueError, listed
from amct_onnx.files.config_check import INPUTS_OF_TENSOR_TYPES
from amct_onnx.files.schema import (
    BOOL,
    FLOAT,
    INT32,
    STRING,
    UINT32,
    escape_text,
    message_class,
    parse_text,
    proto_path,
    read_proto,
    shortest_float32,
    to_float32,
)
from amct_onnx.files.whole_files import Mistakes, read_text, write_atomic
from amct_onnx.graph.recurrent import GATES
from amct_onnx.values.layers import CalibrationNote, GraphFacts, LayerRecord, LayerTraits

_FILE = "scale_offset_record_onnx.proto"
SCHEMA = read_proto(_FILE)  # fields unknown to LayerRecord are dropped
_FIELDS = {field.name: field for field in message_class(SCHEMA, "SingleLayerRecord").DESCRIPTOR.fields}
_DROPPED = ("dst_type", "channels", "height", "width")
_ADVICE = f"correct the record file or run the calibration again; all fields are in {proto_path(_FILE)}"
_NOTE = "# amct_onnx: "
_CALIBRATION = "# amct_onnx calibration: "


def read_record(path: str | os.PathLike[str]) -> dict[str, LayerRecord]:
    """The records of a file by key, in the order of the file. An empty file has none.

    Raises FileMissingError, or RecordError for malformed text (file, line, column), an entry without a key, and keys
    that occur twice. Values are not checked here: see `check_record`.
    """
    text = read_text(path, error=RecordError, what="record file")
    entries = _read_plain(text)
    if entries is None:
        entries = _read_any(text, path)
    mistakes = Mistakes(path)
    records: dict[str, LayerRecord] = {}
    for number, (key, record) in enumerate(entries, start=1):
        if not key:
            mistakes.add(f"record[{number}]", "has no key, add the name of its layer")
        elif key in records:
            mistakes.add(f'record[{number}] "{key}"', "the key occurs twice, delete one of the two entries")
        records[key] = record
    mistakes.raise_any(RecordError)
    return records


def _read_any(text: str, path: str | os.PathLike[str]) -> list[tuple[str, LayerRecord]]:
    """The entries of a file in any layout that protobuf accepts."""
    message = message_class(SCHEMA, "ScaleOffsetRecord")()
    parse_text(text, message, path=path, error=RecordError, advice=_ADVICE)
    entries = []
    for entry in message.record:
        values = {field.name: v if field.has_presence else tuple(v) for field, v in entry.value.ListFields()}
        entries.append((entry.key, _to_record(values)))
    return entries


# Protobuf and AMCT's kernels write files in one layout. Regular expressions read it twenty times faster than protobuf's
# Python parser, which takes 0.7 s for a ResNet-101. They accept a strict subset of the text format; for anything else
# `_read_plain` gives up, and `_read_any` reads the file. A test holds the two together.
_COMMENTS = re.compile(r"(?:#[^\n]*\n)*")
_BLOCK = re.compile(
    r'record \{\n  key: "([^"\'\\\x00-\x1f\x7f]*)"\n  value \{\n((?:    [a-z_]+: +[^ \n]+\n)*)  \}\n\}\n'
)
_LINE = re.compile(r"    ([a-z_]+): +([^ \n]+)\n")
_TOKENS: dict[int, tuple[re.Pattern[str], Callable[[str], Any]]] = {
    FLOAT: (
        re.compile(r"(?:-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:e[+-]?[0-9]{1,2})?\n)*"),
        lambda t: to_float32(float(t)),
    ),
    INT32: (re.compile(r"(?:-?(?:0|[1-9][0-9]{0,8})\n)*"), int),
    UINT32: (re.compile(r"(?:(?:0|[1-9][0-9]{0,8})\n)*"), int),
    BOOL: (re.compile(r"(?:(?:true|false)\n)*"), lambda t: t == "true"),
    STRING: (re.compile(r"""(?:(?:"[A-Za-z0-9_]*"|'[A-Za-z0-9_]*')\n)*"""), lambda t: t[1:-1]),
}


def _read_plain(text: str) -> list[tuple[str, LayerRecord]] | None:
    """The entries of a file in exactly the usual layout, otherwise None."""
    entries: list[tuple[str, LayerRecord]] = []
    position = _COMMENTS.match(text).end()  # type: ignore[union-attr]  # it matches the empty string
    while position < len(text):
        block = _BLOCK.match(text, position)
        if block is None:
            return None
        tokens: dict[str, list[str]] = {}
        for name, token in _LINE.findall(block[2]):
            tokens.setdefault(name, []).append(token)
        values: dict[str, Any] = {}
        for name, found in tokens.items():
            if name not in _FIELDS:
                return None
            allowed, convert = _TOKENS[_FIELDS[name].type]
            if not allowed.fullmatch("\n".join(found) + "\n"):
                return None
            values[name] = convert(found[-1]) if _FIELDS[name].has_presence else tuple(map(convert, found))
        entries.append((block[1], _to_record(values)))
        position = block.end()
    return entries


def _to_record(values: dict[str, Any]) -> LayerRecord:
    dst_type = values.get("dst_type")
    if dst_type is not None:  # the PyTorch front end's older name for both types
        values.setdefault("act_type", dst_type)
        values.setdefault("wts_type", dst_type)
    for name in _DROPPED:
        values.pop(name, None)
    return LayerRecord(**values)


def write_record(
    path: str | os.PathLike[str],
    records: Mapping[str, LayerRecord],
    *,
    notes: Sequence[CalibrationNote] = (),
    calibration: str = "",
) -> None:
    """Write records, notes and the id of the calibration. Raises OutputError."""
    write_atomic(path, format_record(records, notes=notes, calibration=calibration))


def format_record(
    records: Mapping[str, LayerRecord], *, notes: Sequence[CalibrationNote] = (), calibration: str = ""
) -> str:
    """The text of a record file, as protobuf prints it: fields by number, floats as short as float32 allows.

    The id of the calibration (see `read_calibration`) and the notes are comments at the top, which readers of protobuf
    ignore.
    """
    lines = [f"{_CALIBRATION}{calibration}"] if calibration else []
    lines += [_format_note(note) for note in notes]
    for key, record in records.items():
        lines += ["record {", f"  key: {escape_text(key)}", "  value {"]
        for name, field in _FIELDS.items():
            value = getattr(record, name, None)
            values = value if isinstance(value, tuple) else (value,)
            lines += [f"    {name}: {_format_value(field.type, item)}" for item in values if item is not None]
        lines += ["  }", "}"]
    return "".join(f"{line}\n" for line in lines)


def _format_value(kind: int, value: Any) -> str:
    if kind == FLOAT:
        return str(shortest_float32(value))
    if kind == STRING:
        return escape_text(value)
    if kind == BOOL:
        return "true" if value else "false"
    return str(int(value))


def _format_note(note: CalibrationNote) -> str:
    return _NOTE + json.dumps({name: value for name, value in asdict(note).items() if value is not None})


def read_calibration(path: str | os.PathLike[str]) -> str:
    """The id of the quantize_model call that began the file, "" in a file of AMCT. Raises what `read_record` raises."""
    first = read_text(path, error=RecordError, what="record file").partition("\n")[0]
    return first.removeprefix(_CALIBRATION) if first.startswith(_CALIBRATION) else ""


def read_notes(path: str | os.PathLike[str]) -> list[CalibrationNote]:
    """What calibration left unfinished, as the comments of a record file say it. A file of AMCT has no such comments.

    Raises FileMissingError, or RecordError for a note that is not what `write_record` wrote.
    """
    mistakes = Mistakes(path)
    notes: list[CalibrationNote] = []
    for number, line in enumerate(read_text(path, error=RecordError, what="record file").split("\n"), start=1):
        if line.startswith(_NOTE):
            note = _parse_note(line[len(_NOTE) :])
            if note is None:
                mistakes.add(f"line {number}", "is no note of amct_onnx, delete the line")
            else:
                notes.append(note)
    mistakes.raise_any(RecordError)
    return notes


def _parse_note(text: str) -> CalibrationNote | None:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return None
    types = {"layer": str, "seen": int, "needed": int, "error": str}
    if not isinstance(content, dict) or not {"layer", "seen", "needed"} <= content.keys() <= types.keys():
        return None
    if any(type(value) is not types[key] for key, value in content.items()):
        return None
    return CalibrationNote(**content)


_SCALES = ("scale_d", "scale_h", "scale_w", "scale_r")
_EPSILON = 2.0**-23  # FLT_EPSILON, the bound that AMCT sets for balance factors
_BITS = {"INT4": 4, "INT6": 6, "INT7": 7, "INT8": 8, "INT16": 16}
_NAMES = {
    "act_type": ("INT4", "INT8", "INT16"),
    "wts_type": ("INT4", "INT6", "INT7", "INT8"),
    "op_data_type": ("FLOAT32", "FLOAT16"),
    "fakequant_precision_mode": ("DEFAULT", "FORCE_FP16_QUANT"),
}


def check_keys(
    records: Mapping[str, LayerRecord],
    nodes: Mapping[str, str],
    *,
    path: str | os.PathLike[str],
    layers: Collection[str],
) -> None:
    """Refuse records whose key is neither a node of the model nor an input of one.

    nodes: every node with its operator type. layers: the keys that are expected, from which the nearest one is named.
    Raises RecordError with all such keys.
    """
    mistakes = Mistakes(path)
    nearest = Nearest([layer for layer in layers if layer not in records] or layers)
    for key in records:
        if key not in nodes and key.rpartition(":")[0] not in nodes:
            hint = nearest.to(key) or f" Its layers are {listed(list(layers), 5)}."
            mistakes.add(key, f"find {key} failure in the model. Please match record_file and model.{hint}")
    mistakes.raise_any(RecordError)


def check_record(
    records: Mapping[str, LayerRecord],
    facts: GraphFacts,
    *,
    path: str | os.PathLike[str],
    calibrated: bool = True,
) -> None:
    """Refuse records that do not fit the model or hold impossible factors (amct_formats.md: Record checks).

    With `calibrated=False`, factors of activations may be missing, and there may be balance factors only.
    Raises RecordError with all mistakes; it is a RecordValueError if a factor is out of range.
    """
    mistakes = Mistakes(path)
    if calibrated and all(record.is_empty for record in records.values()):
        text = "record_file is empty, no layers to be quantized. Please ensure calibration is finished by checking"
        raise RecordError(f"{os.fspath(path)}: {text} information!")
    out_of_range = False
    for key, record in records.items():
        traits = _find_traits(key, record, facts, mistakes)
        if traits is not None:
            _check_lengths(key, record, traits, mistakes)
            if calibrated and not record.is_empty:
                _check_present(key, record, traits, mistakes)
        values = _find_bad_values(record)
        if any(record.shift_bit):  # the deploy model would not shift
            mistakes.add(key, f"shift_bit is not support, please delete shift_bit of layer {key}")
        out_of_range = out_of_range or bool(values)
        for name, what in values:
            mistakes.add(f"{key}.{name}", what)
    mistakes.raise_any(RecordValueError if out_of_range else RecordError)


def _find_traits(key: str, record: LayerRecord, facts: GraphFacts, mistakes: Mistakes) -> LayerTraits | None:
    """The layer of a key, or None after a mistake. For a key "<node>:<input index>" it is a layer without a weight."""
    node, colon, index = key.rpartition(":")
    is_tensor = bool(colon) and index.isdecimal() and facts.nodes.get(node) in INPUTS_OF_TENSOR_TYPES
    if is_tensor and (record.is_tensor_quantize or key not in facts.nodes):
        if record.scale_w or record.offset_w:
            mistakes.add(key, "a tensor_quantize entry has no weight, delete scale_w and offset_w")
        return LayerTraits(name=key, op_type=facts.nodes[node])
    traits = facts.layers.get(key)
    if traits is not None and traits.reason is None:
        return traits
    if traits is not None:
        mistakes.add(key, f"layer {key} does not support quantization ({traits.reason}), delete its record")
    elif key in facts.nodes:
        mistakes.add(key, f"layer {key} of type {facts.nodes[key]} does not support quantization, delete its record")
    else:
        mistakes.add(key, f"find {key} failure in the model. Please match record_file and model")
    return None


def _check_present(key: str, record: LayerRecord, traits: LayerTraits, mistakes: Mistakes) -> None:
    needed = ["scale_d"]
    # The second operand of a MatMul of two variables has its scale where a weight has it.
    if traits.has_weight or traits.op_type == "MatMul":
        needed.append("scale_w")
    if traits.op_type in GATES:
        needed += ["scale_h", "scale_r"]
    for name in needed:
        if getattr(record, name) in (None, ()):
            text = f"cannot find {name} of layer {key} in record_file, please check data calibration process!"
            mistakes.add(key, text)


def _check_lengths(key: str, record: LayerRecord, traits: LayerTraits, mistakes: Mistakes) -> None:
    for kind, scales, offsets in (("w", record.scale_w, record.offset_w), ("r", record.scale_r, record.offset_r)):
        if len(scales) != len(offsets):
            lengths = f"{len(scales)} and {len(offsets)}"
            mistakes.add(key, f"scale_{kind} and offset_{kind} must have the same length, they have {lengths}")
    allowed = {GATES.get(traits.op_type, 1)}
    if traits.channel_wise:
        allowed.add(traits.channels)
    for name in ("scale_w", "scale_r", "shift_bit"):
        length = len(getattr(record, name))
        if length and length not in allowed:
            words = " or ".join(map(str, sorted(allowed)))
            mistakes.add(f"{key}.{name}", f"must have {words} elements for this {traits.op_type}, it has {length}")
    balance = len(record.tensor_balance_factor)
    if balance and not traits.supports_balancing:
        mistakes.add(f"{key}.tensor_balance_factor", f"layer type {traits.op_type} does not support dmq_balancer")
    elif balance and balance != traits.input_channels:
        expected = f"must have {traits.input_channels} elements, one for each input channel"
        mistakes.add(f"{key}.tensor_balance_factor", f"{expected}, it has {balance}")
    if record.cluster and len(record.cluster) not in (16, 32):
        mistakes.add(f"{key}.cluster", f"must have 16 or 32 elements, it has {len(record.cluster)}")


def _find_bad_values(record: LayerRecord) -> list[tuple[str, str]]:
    """The fields that have a value out of range, each with a text about its first such value."""
    bits = _BITS.get(record.act_type or "INT8", 8)
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    rules: dict[str, tuple[Callable[[Any], bool], str]] = {
        **dict.fromkeys(_SCALES, (lambda v: 0 < v < math.inf, "in (0, +inf)")),
        **dict.fromkeys(("offset_d", "offset_h"), (lambda v: low <= v <= high, f"in [{low}, {high}]")),
        **{name: (lambda v: v == 0, f"0 ({name}'s value should be 0)") for name in ("offset_w", "offset_r")},
        "tensor_balance_factor": (
            lambda v: _EPSILON <= v <= 1 / _EPSILON,
            f"in [{_EPSILON:.7e}, {1 / _EPSILON:.0f}]",
        ),
        "cluster": (lambda v: -128 <= v <= 127, "in [-128, 127]"),
        **{name: (names.__contains__, f"one of {', '.join(names)}") for name, names in _NAMES.items()},
    }
    bad: list[tuple[str, str]] = []
    for name, (allowed, words) in rules.items():
        found = getattr(record, name)
        values = found if isinstance(found, tuple) else (found,)
        wrong = next((i for i, value in enumerate(values) if value is not None and not allowed(value)), None)
        if wrong is not None:
            place = f"{name}[{wrong}]" if len(values) > 1 else name
            bad.append((place, f"must be {words}, got {values[wrong]}"))
    return bad
