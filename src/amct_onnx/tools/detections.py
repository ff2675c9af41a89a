"""From the outputs of usual detectors to boxes in the pixels of their images, and to mean average precision."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from amct_onnx.data.images import Placement
from amct_onnx.errors import DataError
from amct_onnx.numerics.arrays import Array, Doubles, Int64s
from amct_onnx.tools.labels import Boxes
from amct_onnx.values.shown import MissingExtraError

_STRIDES = (8, 16, 32)
_LEAST_SCORE = 0.01
_SAME = 0.65  # intersection over union of two boxes that are one
_MOST = 100  # boxes of an image, as COCO counts them
_MOST_ENDS = 1000  # rows of a detector that has chosen its boxes itself


def boxes_of(output: Array, size: tuple[int, int]) -> Boxes:
    """The boxes that a detector gives for one image, in pixels of its input of `size` (height, width).

    output: [cells, 5 + classes] of YOLOX, before or after its grid was applied, or of YOLOv5; [4 + classes, cells] of
    Ultralytics; or [n, 6] with corners, score and class, where the network has chosen its boxes. Raises DataError.
    """
    rows = np.asarray(output, np.float64)
    grid = sum((size[0] // stride) * (size[1] // stride) for stride in _STRIDES)
    if rows.ndim == 2 and rows.shape[1] == 6 and rows.shape[0] <= _MOST_ENDS and rows.shape[0] != grid:
        return _best(rows[:, :4], rows[:, 5].astype(np.int64), rows[:, 4])
    if rows.ndim == 2 and rows.shape[1] in (grid, 3 * grid) and rows.shape[0] > 4:
        rows = rows.T
        scores, classes = rows[:, 4:].max(axis=1), rows[:, 4:].argmax(axis=1)
        return _chosen(rows[:, :4], classes, scores)
    if rows.ndim == 2 and rows.shape[0] in (grid, 3 * grid) and rows.shape[1] > 5:
        scores, classes = rows[:, 4] * rows[:, 5:].max(axis=1), rows[:, 5:].argmax(axis=1)
        places = _of_grid(rows[:, :4], size) if rows.shape[0] == grid and _is_raw(rows[:, :4]) else rows[:, :4]
        return _chosen(places, classes, scores)
    text = "is none that is known: [cells, 5 + classes], [4 + classes, cells] or [n, 6]"
    raise DataError(f"The output of the detector has the shape {list(output.shape)} for an image, which {text}.")


def _is_raw(places: Doubles) -> bool:
    """Whether centres are still relative to their cells: then they are near 0, and no pixels up to hundreds."""
    return float(np.median(np.abs(places[:, :2]))) < _STRIDES[0]


def _of_grid(places: Doubles, size: tuple[int, int]) -> Doubles:
    """Centres and sizes in pixels of those that are relative to cells, in strides and logarithms of strides."""
    cells, strides = [], []
    for stride in _STRIDES:
        y, x = np.mgrid[: size[0] // stride, : size[1] // stride]
        cells.append(np.stack([x.ravel(), y.ravel()], axis=1))
        strides.append(np.full((cells[-1].shape[0], 1), stride))
    grid, sizes = np.concatenate(cells), np.concatenate(strides)
    with np.errstate(over="ignore"):
        return np.concatenate([(places[:, :2] + grid) * sizes, np.exp(places[:, 2:4]) * sizes], axis=1)


def _chosen(places: Doubles, classes: Int64s, scores: Doubles) -> Boxes:
    """The best boxes of centres and sizes, without those that a better one of their class covers."""
    with np.errstate(invalid="ignore"):
        corners = np.concatenate([places[:, :2] - places[:, 2:] / 2, places[:, :2] + places[:, 2:] / 2], axis=1)
    sound = np.flatnonzero((scores > _LEAST_SCORE) & np.isfinite(corners).all(axis=1))
    order = sound[np.argsort(-scores[sound], kind="stable")]
    alive = np.ones(len(order), bool)
    for place in range(len(order)):
        if alive[place]:
            rest = order[place + 1 :]
            same = classes[rest] == classes[order[place]]
            alive[place + 1 :] &= ~(same & (_overlap(corners[order[place]], corners[rest]) > _SAME))
    order = order[alive][:_MOST]
    return Boxes(corners=corners[order], classes=classes[order], scores=scores[order])


def _best(corners: Doubles, classes: Int64s, scores: Doubles) -> Boxes:
    order = np.argsort(-scores, kind="stable")
    order = order[(scores[order] > _LEAST_SCORE) & np.isfinite(corners[order]).all(axis=1)][:_MOST]
    return Boxes(corners=corners[order], classes=classes[order], scores=scores[order])


def _overlap(box: Doubles, others: Doubles) -> Doubles:
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    shared = np.prod(np.clip(high - low, 0, None), axis=1)
    union = np.prod(box[2:] - box[:2]) + np.prod(others[:, 2:] - others[:, :2], axis=1) - shared
    result: Doubles = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
    return result


def in_image(boxes: Boxes, place: Placement) -> Boxes:
    """Boxes in pixels of the image, of those in pixels of the input that it was fitted into."""
    left, top = place.offset
    shift = np.array([left, top, left, top], np.float64)
    scale = np.array([place.scale[0], place.scale[1]] * 2, np.float64)
    return Boxes(corners=(boxes.corners - shift) / scale, classes=boxes.classes, scores=boxes.scores)


def average_precision(found: Sequence[Boxes], truth: Sequence[Boxes]) -> dict[str, float]:
    """mAP50-95 and mAP50 in percent, as COCO's own tool computes them, over the classes that occur in `truth`.

    Raises MissingExtraError without pycocotools.
    """
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError:
        text = 'pycocotools is not installed, mean average precision needs it: pip install "amct-onnx[evaluate]"'
        raise MissingExtraError(text) from None
    with contextlib.redirect_stdout(io.StringIO()):  # it reports each step
        known = COCO()
        known.dataset = _document(truth)
        known.createIndex()
        rows = [row for image, boxes in enumerate(found) for row in _rows(image, boxes)]
        if not rows:
            return {"mAP50-95": 0.0, "mAP50": 0.0}
        judged = COCOeval(known, known.loadRes(rows), "bbox")
        judged.params.catIds = sorted({int(kind) for boxes in truth for kind in boxes.classes})
        judged.evaluate()
        judged.accumulate()
        judged.summarize()
    return {"mAP50-95": 100 * float(judged.stats[0]), "mAP50": 100 * float(judged.stats[1])}


def _document(truth: Sequence[Boxes]) -> dict[str, object]:
    rows = [row for image, boxes in enumerate(truth) for row in _rows(image, boxes)]
    annotations = [{**row, "id": number + 1, "iscrowd": 0} for number, row in enumerate(rows)]
    kinds = sorted({int(kind) for boxes in truth for kind in boxes.classes})
    return {
        "info": {},
        "images": [{"id": image} for image in range(len(truth))],
        "categories": [{"id": kind} for kind in kinds],
        "annotations": annotations,
    }


def _rows(image: int, boxes: Boxes) -> list[dict[str, Any]]:
    sizes = boxes.corners[:, 2:] - boxes.corners[:, :2]
    return [
        {
            "image_id": image,
            "bbox": [*corner[:2].tolist(), *size.tolist()],
            "area": float(np.prod(size)),
            "score": float(score),
            "category_id": int(kind),
        }
        for corner, size, score, kind in zip(boxes.corners, sizes, boxes.scores, boxes.classes, strict=True)
    ]
