"""Parses the protobuf text of a .cfg, with the place of each field (amct_formats.md: Simplified configuration)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from amct_onnx.errors import ConfigError
from amct_onnx.files.schema import message_class, parse_text
from amct_onnx.files.text_positions import (
    Occurrence,
    candidates_for_contradiction,
    locate_fields,
    position_of,
)
from amct_onnx.files.whole_files import Mistakes, Position, read_text

# Numbers from 1001 are our own, since AMCT's are not published; the text format does not show them. Fields that AMCT
# requires are optional here, so that a missing one is reported together with all other mistakes.
_PROTO = """\
enum DataType { INT8 = 1; INT16 = 2; }
enum FakequantPrecisionMode { FORCE_FP16_QUANT = 1; }
message AMCTConfig {
  optional uint32 batch_num = 1;
  optional bool activation_offset = 2;
  repeated string skip_layers = 10;
  repeated string skip_layer_types = 11;
  optional FakequantPrecisionMode fakequant_precision_mode = 21;
  optional CalibrationConfig common_config = 50;
  repeated OverrideLayerType override_layer_types = 51;
  repeated OverrideLayer override_layer_configs = 100;
  optional bool do_fusion = 200;
  repeated string skip_fusion_layers = 201;
  optional bool joint_quant = 1001;
  repeated TensorQuantize tensor_quantize = 1002;
  optional NuqConfig nuq_config = 1003;
  optional CalibrationConfig conv_calibration_config = 1004;
  optional CalibrationConfig fc_calibration_config = 1005;
}
message OverrideLayerType {
  optional string layer_type = 1;
  optional CalibrationConfig calibration_config = 2;
}
message OverrideLayer {
  optional string layer_name = 1;
  optional CalibrationConfig calibration_config = 2;
}
message CalibrationConfig {
  oneof weights {
    optional ARQuantize arq_quantize = 13;
    optional ADAquantize ada_quantize = 15;
    optional NUQuantize nuq_quantize = 1001;
  }
  oneof activations {
    optional FMRQuantize ifmr_quantize = 100;
    optional HFMGQuantize hfmg_quantize = 101;
  }
  optional DMQBalancer dmq_balancer = 200;
}
message ARQuantize {
  optional bool channel_wise = 1;
  optional uint32 quant_bits = 10;
}
message ADAquantize {
  optional uint32 num_iteration = 1;
  optional float reg_param = 2;
  optional float beta_range_start = 3;
  optional float beta_range_end = 4;
  optional float warm_start = 5;
  optional bool channel_wise = 10;
}
message NUQuantize {
  optional uint32 num_steps = 1;
  optional uint32 num_of_iteration = 2;
}
message FMRQuantize {
  optional float search_range_start = 1;
  optional float search_range_end = 2;
  optional float search_step = 3;
  optional float max_percentile = 4;
  optional float min_percentile = 5;
  optional bool asymmetric = 6;
  optional DataType dst_type = 10;
}
message HFMGQuantize {
  optional uint32 num_of_bins = 1;
  optional bool asymmetric = 2;
  optional DataType dst_type = 10;
}
message DMQBalancer {
  optional float migration_strength = 1;
}
message TensorQuantize {
  optional string layer_name = 1;
  optional uint32 input_index = 2;
  oneof activations {
    optional FMRQuantize ifmr_quantize = 100;
    optional HFMGQuantize hfmg_quantize = 101;
  }
}
message NuqConfig {
  optional string mapping_file = 1;
  optional NUQuantize nuq_quantize = 2;
}
"""
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

    Mistakes that are added later get line and column from their path in the message. Raises FileMissingError, or
    ConfigError with line and column for text that does not parse.
    """
    text = read_text(path, what="simplified configuration")
    advice = "correct it; the fields are those of AMCT's calibration_config_onnx.proto"
    if text.lstrip().startswith("{"):
        advice = "it looks like a config.json, which is given to quantize_model and not as config_defination"
    config = message_class(_PROTO, "AMCTConfig")()
    parse_text(text, config, path=path, error=ConfigError, advice=advice)
    found = locate_fields(text, _PROTO, "AMCTConfig")
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
    message = message_class(_PROTO, entry.field.containing_type.name)()
    parse_text(f"{entry.field.name}: {entry.value}", message, path="", error=ConfigError, advice="")
    return getattr(message, entry.field.name)
