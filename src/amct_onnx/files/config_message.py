"""Parses the protobuf text of a .cfg, with the place of each field (amct_formats.md: Simplified configuration)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from amct_onnx.errors import ConfigError
from amct_onnx.files.schema import message_class, parse_text, proto_path, read_proto
from amct_onnx.files.text_positions import (
    Occurrence,
    blank_scalar,
    candidates_for_contradiction,
    locate_fields,
    position_of,
)
from amct_onnx.files.whole_files import Mistakes, Position, read_text

_FILE = "calibration_config_onnx.proto"
# Names in config.json, for which a .cfg has other ones. A mistake is shown at the first of these that the file has.
_OTHER_NAMES = {
    "search_range": ("search_range_end", "search_range_start"),
    "search_range[0]": ("search_range_start",),
    "search_range[1]": ("search_range_end",),
    "beta_range": ("beta_range_end", "beta_range_start"),
    "beta_range[0]": ("beta_range_start",),
    "beta_range[1]": ("beta_range_end",),
    "num_bits": ("dst_type", "quant_bits"),
    "skip_layers": ("skip_layer_types",),  # together they may leave nothing
}


def parse_cfg(path: str | os.PathLike[str]) -> tuple[Any, Mistakes]:
    """The message `AMCTConfig` in a file, and the fields in it that contradict each other as mistakes.

    `version` may have any value, and is left out. Mistakes that are added later get line and column from their path in
    the message. Raises FileMissingError, or ConfigError with line and column for text that does not parse.
    """
    text = read_text(path, what="simplified configuration")
    advice = f"correct it; all fields are in {proto_path(_FILE)}"
    if text.lstrip().startswith("{"):
        advice = "it looks like a config.json, which is given to quantize_model and not as config_defination"
    text, proto = blank_scalar(text, "version"), read_proto(_FILE)
    config = message_class(proto, "AMCTConfig")()
    parse_text(text, config, path=path, error=ConfigError, advice=advice)
    found = locate_fields(text, proto, "AMCTConfig")
    positions = {entry.path: entry.position for entry in reversed(found)}  # of a path given twice, the first
    mistakes = Mistakes(path, lambda where: _locate(where, positions))
    _check_contradictions(found, mistakes)
    return config, mistakes


def read_batch_num(path: str | os.PathLike[str]) -> int | None:
    """batch_num of a simplified configuration, None if it sets none. Raises FileMissingError or ConfigError."""
    config, _ = parse_cfg(path)
    return int(config.batch_num) if config.HasField("batch_num") else None


def _locate(where: str, positions: Mapping[str, Position]) -> Position | None:
    block, dot, name = where.rpartition(".")
    other = [f"{block}{dot}{alias}" for alias in _OTHER_NAMES.get(name, ())]
    for path in (where, *other):
        if path in positions or f"{path}[0]" in positions:
            return position_of(path, positions)
    return position_of(where, positions)


def _check_contradictions(found: Sequence[Occurrence], mistakes: Mistakes) -> None:
    """Note fields that are given twice with different values, and fields that exclude each other.

    Protobuf, and so AMCT, silently takes the last one, which may not be what the user means.
    """
    for first, second in candidates_for_contradiction(found):
        if first.field.name != second.field.name:
            what = f"{second.field.name} contradicts {first.field.name}"
        elif _parse_value(first) != _parse_value(second):
            what = f"{second.value} contradicts {first.value}"
        else:
            continue
        there = f"line {first.position.line}, column {first.position.column}"
        mistakes.add(second.path, f"{what} in {there}, delete one of them", position=second.position)


def _parse_value(entry: Occurrence) -> Any:
    """The value of a scalar: 1 and 0x1 are the same, and so are true and 1 for a bool."""
    message = message_class(read_proto(_FILE), entry.field.containing_type.name)()
    parse_text(f"{entry.field.name}: {entry.value}", message, path="", error=ConfigError, advice="")
    return getattr(message, entry.field.name)
