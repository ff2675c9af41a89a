"""Writes <prefix>_quant.json: the original nodes behind each node of a deploy model (amct_formats.md: quant.json).

Huawei's accuracy comparison reads it. The layout is protobuf's JSON of a FusionInfo message.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from amct_onnx.files.whole_files import write_atomic

_LIST_OF_STRINGS = 1  # val_type of FusionInfo


@dataclass(frozen=True, kw_only=True)
class FusionOp:
    """One node of the deploy model."""

    name: str
    type: str
    original_names: tuple[str, ...] = ()
    """The original nodes that it stands for; empty for a node that was not changed."""
    output_of: str | None = None
    """The original node whose output number `output_index` it now makes; None if it makes no original output."""
    output_index: int = 0
    data_type: Literal["DT_FLOAT", "DT_FLOAT16"] = "DT_FLOAT"


def write_fusion(path: str | os.PathLike[str], name: str, ops: Sequence[FusionOp]) -> None:
    """Write the fusion information of the graph `name`. Raises OutputError."""
    document = {"name": name, "graph": [{"op": [_format_op(op) for op in ops]}]}
    write_atomic(path, json.dumps(document, indent=2))


def _format_op(op: FusionOp) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": op.name, "type": op.type}
    if op.original_names:
        names = {"list": {"s": list(op.original_names), "val_type": _LIST_OF_STRINGS}}
        entry["attr"] = [_attribute("_datadump_original_op_names", names)]
    if op.output_of is not None:
        attributes = [
            _attribute("_datadump_origin_format", {"s": "NCHW"}),
            _attribute("_datadump_data_type", {"s": op.data_type}),
            # protobuf's JSON has 64-bit integers as strings
            _attribute("_datadump_origin_output_index", {"i": str(op.output_index)}),
            _attribute("_datadump_origin_name", {"s": op.output_of}),
        ]
        entry["output_desc"] = [{"attr": attributes}]
    return entry


def _attribute(key: str, value: dict[str, Any]) -> dict[str, Any]:
    return {"key": key, "value": value}
