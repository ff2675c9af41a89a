"""What a network of pictures is likely to be, by its outputs and metadata: a classifier, a detector, something else.

It decides how photos are prepared where the user has not said it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir

from amct_onnx.graph.access import name_of

_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)
_STRIDES = (8, 16, 32)  # of the levels of a YOLO
_ANCHORS = 3  # boxes in a cell of YOLOv5
_BOXES = ("box", "bbox", "dets", "detection")  # parts of names of outputs
_LEAST_ROW = 5  # numbers of a box: four and a score
_ULTRALYTICS = "Ultralytics"
Dims = list[int | None]


@dataclass(frozen=True, kw_only=True)
class Purpose:
    """What a network is likely to be. reason: why, as a clause. preset: its way to prepare images, "" if unknown."""

    kind: Literal["classes", "detector", "other"]
    reason: str
    preset: str = ""


def class_output(model: ir.Model) -> str | None:
    """The output that looks like scores of classes: the only float one, [N, C], or [N, C, 1, 1]; else None."""
    floats = _float_outputs(model)
    if len(floats) != 1 or floats[0].shape is None:
        return None
    dims = _dims(floats[0])
    is_list = len(dims) == 2 or (len(dims) == 4 and dims[2:] == [1, 1])
    return name_of(floats[0]) if is_list and (dims[1] is None or dims[1] > 1) else None


def purpose_of(model: ir.Model) -> Purpose:
    """What a network is likely to be, and why."""
    if (preset := _of_metadata(model)) is not None:
        return Purpose(kind="detector", reason="its metadata are of Ultralytics", preset=preset)
    if (name := class_output(model)) is not None:
        return Purpose(kind="classes", reason=f"its output {name!r} looks like scores of classes", preset="torch")
    floats = _float_outputs(model)
    boxes = [name_of(value) for value in model.graph.outputs if any(part in name_of(value).lower() for part in _BOXES)]
    if boxes:
        return Purpose(kind="detector", reason=f"its output {boxes[0]!r} has the name of boxes")
    rows = [value for value in floats if value.shape is not None and len(value.shape) == 3]
    if rows:
        dims = _dims(rows[0])
        preset, whose = _yolo(dims, _picture(model)) if len(floats) == 1 else ("", "")
        shape = ", ".join("?" if dim is None else str(dim) for dim in dims)
        reason = f"its output {name_of(rows[0])!r} is [{shape}], {whose or 'rows of numbers as those of boxes'}"
        return Purpose(kind="detector", reason=reason, preset=preset)
    return Purpose(kind="other", reason="its outputs do not look like scores of classes")


def _float_outputs(model: ir.Model) -> list[ir.Value]:
    return [value for value in model.graph.outputs if value.dtype in _FLOATS]


def _dims(value: ir.Value) -> Dims:
    return [] if value.shape is None else [dim if isinstance(dim, int) and dim >= 0 else None for dim in value.shape]


def _picture(model: ir.Model) -> Dims:
    """Height and width of the only input of four axes, in NCHW; nothing else is known to have YOLO's outputs."""
    found = [_dims(value) for value in model.graph.inputs if value.shape is not None and len(value.shape) == 4]
    return found[0][2:] if len(found) == 1 else [None, None]


def _of_metadata(model: ir.Model) -> str | None:
    """The preset of a model that Ultralytics has exported; their classifiers crop and take pixels from 0 to 1."""
    known = {**model.metadata_props, **model.graph.metadata_props}
    if _ULTRALYTICS not in (known.get("author"), model.producer_name) and _ULTRALYTICS not in known.get(
        "description", ""
    ):
        return None
    try:
        task = json.loads(known.get("task", '""'))
    except ValueError:
        task = known["task"]
    return "unit" if task == "classify" else "ultralytics"


def _yolo(dims: Dims, picture: Dims) -> tuple[str, str]:
    """The preset of a detector, and a phrase about its output; both empty where its cells are not those of a YOLO."""
    height, width = picture
    if height is None or width is None:
        return "", ""
    cells = sum((height // stride) * (width // stride) for stride in _STRIDES)
    _, second, third = dims
    if third == cells and second is not None and second >= _LEAST_ROW:
        return "ultralytics", "a column for each cell as YOLOv8 has"
    if second == _ANCHORS * cells and third is not None and third > _LEAST_ROW:
        return "ultralytics", "a row for each anchor as YOLOv5 has"
    if second == cells and third is not None and third > _LEAST_ROW:
        return "yolox", "a row for each cell as YOLOX has"
    return "", ""
