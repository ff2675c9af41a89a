"""YOLOX: from outputs to boxes, and from boxes to mean average precision as COCO defines it, in numpy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

STRIDES = (8, 16, 32)
MINIMUM_SCORE = 0.01
NMS_IOU = 0.65
MOST_BOXES = 100  # a picture, as in COCO's evaluation
IOUS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)


@dataclass(frozen=True, kw_only=True, eq=False)
class Boxes:
    """Boxes of one picture: corners float [n, 4] (x0, y0, x1, y1), classes int [n], scores float [n]."""

    corners: Array
    classes: Array
    scores: Array


def decode(output: Array, size: int) -> Boxes:
    """Boxes from YOLOX's output [cells, 5 + classes] for a square input of `size` pixels, after NMS by class.

    Centres are relative to their cell, in strides; widths and heights are logarithms of strides. A score is objectness
    times the class's probability, of the best class only (Ge et al., YOLOX, 2021, and its demo).
    """
    cells, strides = [], []
    for stride in STRIDES:
        y, x = np.mgrid[: size // stride, : size // stride]
        cells.append(np.stack([x.ravel(), y.ravel()], axis=1))
        strides.append(np.full((cells[-1].shape[0], 1), stride))
    grid, stride = np.concatenate(cells), np.concatenate(strides)
    values = np.asarray(output, np.float64)
    centres = (values[:, :2] + grid) * stride
    with np.errstate(over="ignore"):
        halves = np.exp(values[:, 2:4]) * stride / 2
    classes = values[:, 5:].argmax(axis=1)
    scores = values[:, 4] * values[:, 5:].max(axis=1)
    corners = np.concatenate([centres - halves, centres + halves], axis=1)
    sound = np.flatnonzero((scores > MINIMUM_SCORE) & np.isfinite(corners).all(axis=1))
    order = sound[np.argsort(-scores[sound], kind="stable")]
    kept = suppress(corners[order], classes[order])
    order = order[kept][:MOST_BOXES]
    return Boxes(corners=corners[order], classes=classes[order], scores=scores[order])


def suppress(corners: Array, classes: Array) -> Array:
    """Indices of the boxes, best first, that no better box of their class overlaps by more than NMS_IOU."""
    alive = np.ones(len(corners), bool)
    for index in range(len(corners)):
        if alive[index]:
            rest = slice(index + 1, None)
            same = classes[rest] == classes[index]
            alive[rest] &= ~(same & (overlaps(corners[index : index + 1], corners[rest])[0] > NMS_IOU))
    return np.flatnonzero(alive)


def overlaps(first: Array, second: Array) -> Array:
    """Intersection over union of each pair, [n, m]."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    shared = np.prod(np.clip(high - low, 0, None), axis=2)
    areas = [np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) for boxes in (first, second)]
    union = areas[0][:, None] + areas[1][None] - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def read_truth(path: Path, width: float, height: float) -> Boxes:
    """Boxes of a label file with lines "class cx cy w h", relative; `width` and `height` are those of the picture."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    rows = np.array([line.split() for line in text.splitlines() if line.strip()], np.float64).reshape(-1, 5)
    centres, halves = rows[:, 1:3] * (width, height), rows[:, 3:] * (width, height) / 2
    corners = np.concatenate([centres - halves, centres + halves], axis=1)
    return Boxes(corners=corners, classes=rows[:, 0].astype(int), scores=np.ones(len(rows)))


def mean_average_precision(found: Sequence[Boxes], truth: Sequence[Boxes]) -> float:
    """mAP at IoU 0.50 to 0.95 in percent, over the classes that occur in `truth`, as COCO computes it.

    Precision is made monotonous and read at 101 recalls; a box takes the best free true box of its class. COCO's
    areas and crowds are left out: the labels do not have them.
    """
    classes = np.unique(np.concatenate([boxes.classes for boxes in truth])) if len(truth) else np.empty(0)
    if not len(classes):
        return 0.0
    return 100 * float(np.mean([_class_precision(found, truth, kind) for kind in classes]))


def _class_precision(found: Sequence[Boxes], truth: Sequence[Boxes], kind: int) -> float:
    """Average precision of one class, the mean over IOUS."""
    scores, hits, total = [], [], 0
    for mine, theirs in zip(found, truth, strict=True):
        chosen = mine.classes == kind
        table = overlaps(mine.corners[chosen], theirs.corners[theirs.classes == kind])
        total += table.shape[1]
        scores.append(mine.scores[chosen])
        hits.append(np.stack([matches(table, least) for least in IOUS], axis=1))
    order = np.argsort(-np.concatenate(scores), kind="stable")
    right = np.cumsum(np.concatenate(hits)[order], axis=0)
    if not len(right):
        return 0.0
    recall = right / total
    precision = right / np.arange(1, len(right) + 1)[:, None]
    precision = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
    values = []
    for column in range(len(IOUS)):
        place = np.searchsorted(recall[:, column], RECALLS, side="left")
        padded = np.append(precision[:, column], 0.0)
        values.append(np.mean(padded[place]))
    return float(np.mean(values))


def matches(table: Array, least: float) -> Array:
    """Which boxes (rows, best first) find a free true box (columns) with an IoU of at least `least`."""
    free = np.ones(table.shape[1], bool)
    hits = np.zeros(len(table), bool)
    for row, values in enumerate(table):
        candidates = np.where(free, values, -1.0)
        if candidates.size and candidates.max() >= least:
            free[candidates.argmax()] = False
            hits[row] = True
    return hits
