"""`evaluate`: how good a model is on labelled samples, or two models side by side: top-1 and top-5, or mAP."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from amct_onnx.data.image_options import ImageOptions
from amct_onnx.data.images import find_images, image_options, image_size, open_images, placement
from amct_onnx.data.open_data import open_data
from amct_onnx.data.options import DataOptions
from amct_onnx.data.places import expanded, find_place
from amct_onnx.engine.engine import Engine
from amct_onnx.errors import ArgumentError, DataError
from amct_onnx.numerics.arrays import Array, Int64s
from amct_onnx.options import documented
from amct_onnx.progress import Progress, progress_of
from amct_onnx.ptq.options import QuantizeOptions
from amct_onnx.run.providers import Provider, checked_providers
from amct_onnx.run.workers import opened_workers
from amct_onnx.tools.detections import average_precision, boxes_of, in_image
from amct_onnx.tools.judged_model import ImageBatches, JudgedModel, Row, RunFeeds, TopClasses, only_rows, whole_row
from amct_onnx.tools.labels import class_array, classes_beside, has_boxes, read_boxes, read_classes
from amct_onnx.values.scores import ModelScores, Scores
from amct_onnx.words import named

_BATCH = 8  # images that run at once, where the model leaves that open
_BACKGROUND = 1001  # classes of a model whose first one is none of ImageNet's thousand


@documented(QuantizeOptions)
def evaluate(
    model: Any,
    images: Any,
    labels: Any = None,
    *,
    preset: ImageOptions | str | None = None,
    batch_size: int | None = None,
    limit: int | None = None,
    progress: Progress | bool | None = None,
    engine: str | Engine = "local",
    providers: Sequence[Provider] | None = None,
) -> Scores:
    """How good a model is on samples with labels, or two models side by side.

    model: a path, an onnx.ModelProto, an onnx_ir.Model or a `QuantizedModel`, or a pair of these. A deploy model runs
        in its integers.
    images: a folder of images, or data as `quantize` takes them (tar or parquet files, an array, a .npy file, ...).
    labels: for classes a file with lines "name class", a JSON file {name: class}, a mapping of these, or None for a
        folder of images with a subfolder for each class; for tar files None takes the `.cls` beside each image, and for
        parquet the column `label`; for other data an array of classes or a file of one. For boxes a folder of text
        files with lines "class cx cy w h" as YOLO has them, or a JSON file of COCO.
    preset: how images are prepared, as `images` of `quantize` says it: the name of a preset, a file that describes one
        or an `ImageOptions`. None takes what the model shows.
    progress: as for `quantize`.
    batch_size: images that run at once. limit: samples that are used at most, at equal distances.

    Classes are judged by the first float output, [N, classes]: by the share of the samples whose label is the best
    class, and among the best five. Of equal scores the first class counts. A model with one class more than the labels'
    1,000 is taken to have a background class in front. Boxes are judged by mean average precision as COCO defines it,
    which needs pycocotools; detectors are YOLOX, YOLOv5, Ultralytics' and such that choose their boxes themselves.

    Raises ArgumentError, ModelError, ModelFileError, FileMissingError, DataError, and MissingExtraError.
    """
    models = tuple(model) if isinstance(model, tuple | list) else (model,)
    if not 1 <= len(models) <= 2:
        raise ArgumentError(f"evaluate takes one model or two, got {len(models)}.")
    told, chosen = progress_of(progress), checked_providers(providers)
    options = DataOptions(images=preset, batch_size=batch_size, limit=limit)
    with opened_workers(engine, chosen) as workers:
        opened = [JudgedModel.of(one) for one in models]
        paths = expanded(os.fspath(images)) if isinstance(images, str | os.PathLike) else []
        places = [find_place(path) for path in paths]
        files = find_images(places[0]) if len(places) == 1 and places[0].is_dir() else []
        if files:
            return _of_images(opened, places[0], files, labels, options, told, workers)
        if labels is not None and has_boxes(labels):
            raise ArgumentError(f"{named('labels')}: boxes are those of a folder of images.")
        return _of_arrays(opened, images, labels, options, told, workers)


def _of_images(
    networks: Sequence[JudgedModel],
    folder: Path,
    files: Sequence[Path],
    labels: Any,
    options: DataOptions,
    told: Progress,
    engine: Engine,
) -> Scores:
    boxes = has_boxes(labels)
    known: Mapping[Path, Any] = read_boxes(labels, files)[0] if boxes else read_classes(labels, files, folder)
    chosen = _spread([file for file in files if file in known], options.limit)
    notes: dict[str, None] = {}
    batches = [_prepared(network, chosen, options, notes.setdefault) for network in networks]
    truth = [known[file] for file in chosen]
    if not boxes:
        outputs = [
            list(_run(network, one, TopClasses.of, told, engine))
            for network, one in zip(networks, batches, strict=True)
        ]
        return _classified(networks, outputs, np.array(truth, np.int64), notes)
    scores = []
    sizes = [image_size(file) for file in chosen]
    for network, batch in zip(networks, batches, strict=True):
        how = batch.images.options
        if how.fit == "crop":
            text = "cuts images off, and boxes with them: use one that fits them in, as yolox or ultralytics"
            raise ArgumentError(f"{named('preset')}: this preset {text}.")
        found = (boxes_of(rows, how.size) for rows in _run(network, batch, whole_row, told, engine))
        placed = [in_image(one, placement(size, how)) for one, size in zip(found, sizes, strict=True)]
        scores.append(ModelScores(model=network.called, figures=average_precision(placed, truth)))
    return Scores(task="detection", samples=len(chosen), models=tuple(scores), agreement=None, notes=tuple(notes))


def _of_arrays(
    networks: Sequence[JudgedModel], data: Any, labels: Any, options: DataOptions, told: Progress, engine: Engine
) -> Scores:
    outputs: list[list[TopClasses]] = []
    notes: dict[str, None] = {}
    more = labels is None or options.limit is not None  # labels than samples, perhaps
    for network in networks:
        rows: list[TopClasses] = []
        source = open_data(data, network.inputs, options)
        labels = classes_beside(source.parts) if labels is None else labels
        parts = None if engine.alone else source.parts
        work = RunFeeds(model=network, count=source.rule.rows, keep=TopClasses.of, feeds=parts)
        for number, found in enumerate(work.run(source.unchecked(), engine), 1):
            rows += found.rows
            notes.update(dict.fromkeys(found.notes))
            told("evaluation", number / source.total if source.total else 0.0)
        outputs.append(rows)
        notes.update(dict.fromkeys(source.assumptions))
    count = min(map(len, outputs))  # a model that fixes its batch leaves out the last samples
    truth = class_array(labels, count, first=more)
    return _classified(networks, [rows[:count] for rows in outputs], truth, notes)


def _prepared(
    network: JudgedModel, files: Sequence[Path], options: DataOptions, note: Callable[[str, None], object]
) -> ImageBatches:
    """The images as they become the input of a model."""
    value = network.images
    how = image_options(value, options.images, lambda text: _tell(note, text), network.purpose)
    array = open_images(files, how, value.dtype or "float32", os.fspath(files[0].parent))
    fixed = value.shape[0] if value.shape else None
    size = fixed or options.batch_size or _BATCH
    return ImageBatches(images=array, name=value.name, size=size, fixed=fixed is not None)


def _tell(note: Callable[[str, None], object], text: str) -> None:
    note(text, None)


def _run(
    network: JudgedModel, batches: ImageBatches, keep: Callable[[Array, str], Row], told: Progress, engine: Engine
) -> Iterator[Row]:
    """What counts of the output for each image."""
    work = RunFeeds(model=network, count=only_rows, keep=keep, feeds=batches)
    left = total = batches.images.shape[0]
    for found in work.run((), engine):
        yield from found.rows[:left]
        left = max(0, left - len(found.rows))
        told("evaluation", 1 - left / total)


def _classified(
    networks: Sequence[JudgedModel], outputs: Sequence[Sequence[TopClasses]], truth: Int64s, notes: dict[str, None]
) -> Scores:
    scores, best = [], []
    for network, rows in zip(networks, outputs, strict=True):
        classes, order = rows[0].classes, np.stack([row.best for row in rows])
        labels = truth
        if classes == _BACKGROUND and truth.max() < _BACKGROUND - 1:
            labels = truth + 1
            notes[f"the first of the {_BACKGROUND} classes of {network.called} is the background"] = None
        if labels.max() >= classes:
            text = f"has {classes} classes, and a label is {truth.max()}: classes begin with 0"
            raise DataError(f"{named('labels')}: {network.called} {text}.")
        hits = order == labels[:, None]
        figures = {"top-1": 100 * float(hits[:, 0].mean()), "top-5": 100 * float(hits.any(axis=1).mean())}
        scores.append(ModelScores(model=network.called, figures=figures))
        best.append(order[:, 0] - (labels - truth))
    same = 100 * float((best[0] == best[1]).mean()) if len(best) > 1 else None
    return Scores(task="classification", samples=len(truth), models=tuple(scores), agreement=same, notes=tuple(notes))


def _spread(files: Sequence[Path], most: int | None) -> list[Path]:
    """At most so many of the files, at equal distances."""
    if most is None or len(files) <= most:
        return list(files)
    return [files[index * len(files) // most] for index in range(most)]
