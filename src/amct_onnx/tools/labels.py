"""Reads what is known of samples: classes by file, or boxes as COCO and YOLO write them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from amct_onnx.data.feed_parts import ArrayFeeds, FeedParts
from amct_onnx.data.images import ImageArray, image_size
from amct_onnx.errors import ArgumentError, DataError, FileMissingError
from amct_onnx.numerics.arrays import Array, Doubles, Int64s
from amct_onnx.words import named

_SPLIT = re.compile(r"[\s,;]+")


@dataclass(frozen=True, kw_only=True, eq=False)
class Boxes:
    """Boxes of one image: corners float64[n, 4] (x0, y0, x1, y1) in its pixels, classes int64[n], scores float64[n]."""

    corners: Doubles
    classes: Int64s
    scores: Doubles


def read_classes(labels: Any, files: Sequence[Path], folder: Path) -> dict[Path, int]:
    """The class of each of `files` that has one.

    labels: a file with lines "name class" (spaces, commas or tabs between them), a JSON file {name: class}, a mapping,
    or None: the subfolders of `folder` are the classes then, in the order of their names. A name is a path inside of
    `folder`, or the mere name of a file. Raises DataError and FileMissingError.
    """
    if labels is None:
        return _by_folder(files, folder)
    known = labels if isinstance(labels, Mapping) else _read_table(Path(os.fspath(labels)))
    named_files = {str(name).replace("\\", "/"): kind for name, kind in known.items()}
    found: dict[Path, int] = {}
    for file in files:
        keys = (file.relative_to(folder).as_posix(), file.as_posix(), file.name, file.stem)
        kind = next((named_files[key] for key in keys if key in named_files), None)
        if kind is not None:
            found[file] = kind
    if not found:
        first = next(iter(named_files), "nothing")
        text = f"names {first!r}, and the folder {folder} has {files[0].name!r}"
        raise DataError(f"{_called(labels)}: no image of the folder has a label: it {text}.")
    return found


def _by_folder(files: Sequence[Path], folder: Path) -> dict[Path, int]:
    classes = sorted({file.parent.name for file in files if file.parent != folder})
    if len(classes) < 2:
        raise ArgumentError(f'{folder} has no folder for each class: give {named("labels")}, a file of "name class".')
    return {file: classes.index(file.parent.name) for file in files if file.parent != folder}


def _read_table(path: Path) -> dict[str, int]:
    text = read_text(path)
    if path.suffix.lower() == ".json":
        try:
            table = json.loads(text)
        except ValueError as error:
            raise DataError(f"{path} is no JSON: {error}.") from None
        if not isinstance(table, dict):
            raise DataError(f"{path} holds a {type(table).__name__}: give an object {{name: class}}.")
        return {str(name): _class(kind, f"{path}, {name!r}") for name, kind in table.items()}
    found: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), 1):
        words = _SPLIT.split(line.strip())
        if words == [""] or line.lstrip().startswith("#"):
            continue
        if len(words) < 2:
            raise DataError(f'{path}, line {number}: {line.strip()!r} is not "name class".')
        if number == 1 and not _is_number(words[-1]):
            continue  # a heading
        found[" ".join(words[:-1])] = _class(words[-1], f"{path}, line {number}")
    if not found:
        raise DataError(f'{path} has no line "name class".')
    return found


def _is_number(word: str) -> bool:
    return word.lstrip("-").isdigit()


def _class(value: Any, where: str) -> int:
    if isinstance(value, bool) or not _is_number(str(value)) or int(value) < 0:
        raise DataError(f"{where}: {value!r} is no number of a class, which begin with 0.")
    return int(value)


def classes_beside(samples: FeedParts | None) -> Int64s:
    """The classes that lie beside the images in tar files or parquet. Raises ArgumentError where there are none, and
    DataError."""
    arrays = samples.cut.values() if isinstance(samples, ArrayFeeds) else ()
    for encoded in [array.encoded for array in arrays if isinstance(array, ImageArray)]:
        if (words := encoded.classes()) is not None:
            return np.array([_class(word, f"the class of {encoded.name(k)}") for k, word in enumerate(words)], np.int64)
    raise ArgumentError(
        f"{named('labels')}: data that are no folder of images take an array of classes, unless they are tar files "
        "with a .cls beside each image, or parquet with a column 'label'."
    )


def class_array(labels: Any, count: int, *, first: bool = False) -> Int64s:
    """The classes of `count` samples that are an array: an array or a list, or a .npy or .npz file of one.

    first: there may be more labels, of which the first count.
    Raises DataError and FileMissingError.
    """
    where = _called(labels)
    array: Array
    if isinstance(labels, str | os.PathLike):
        path = Path(labels)
        if not path.exists():
            raise FileMissingError(f"The file of labels {path} does not exist: check the path.")
        if path.suffix not in (".npy", ".npz"):
            words = [word for word in _SPLIT.split(read_text(path)) if word]
            array = np.array([_class(word, where) for word in words], np.int64)
        else:
            array = _stored(path)
    else:
        array = np.asarray(labels)
    if array.ndim == 2 and array.shape[1] > 1:
        array = array.argmax(axis=1)
    array = array.reshape(-1)
    if array.dtype.kind not in "iu":
        raise DataError(f"{where}: holds {array.dtype}, and classes are whole numbers.")
    array = array[:count] if first else array
    if array.size != count:
        raise DataError(f"{where}: has {array.size} labels, and there are {count} samples.")
    return array.astype(np.int64)


def _stored(path: Path) -> Array:
    try:
        loaded = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path} cannot be read as an array: {error}.") from None
    if isinstance(loaded, np.ndarray):
        return loaded
    with loaded:
        names = [name for name in loaded.files if name in ("label", "labels", "y")] or list(loaded.files)
        if len(names) != 1:
            raise DataError(f"{path} has the arrays {', '.join(loaded.files)}: call that of the classes 'labels'.")
        array: Array = loaded[names[0]]
        return array


def has_boxes(labels: Any) -> bool:
    """Whether labels are boxes: a folder of text files, or a JSON file of COCO."""
    if not isinstance(labels, str | os.PathLike):
        return False
    path = Path(labels)
    return path.is_dir() or (path.suffix.lower() == ".json" and path.is_file() and '"annotations"' in read_text(path))


def read_boxes(labels: Any, files: Sequence[Path]) -> tuple[dict[Path, Boxes], list[int]]:
    """The true boxes of each of `files` that has a label, and the numbers that a JSON file gives to the classes.

    A folder has a file <name of the image>.txt with lines "class cx cy w h" relative to the image; none means no box.
    A JSON file of COCO numbers classes anew, in the order of their ids: the 80 classes of COCO become 0 to 79.
    """
    path = Path(os.fspath(labels))
    if path.is_dir():
        found = {file: _of_text(path / f"{file.stem}.txt", file) for file in files}
        if not any(len(boxes.classes) for boxes in found.values()):
            raise DataError(f"{path}: no image has a file of labels with boxes, as {files[0].stem}.txt.")
        return found, []
    return _of_coco(path, files)


def _of_text(path: Path, image: Path) -> Boxes:
    rows = []
    height, width = image_size(image)
    for number, line in enumerate(read_text(path).splitlines() if path.exists() else (), 1):
        words = line.split()
        if not words:
            continue
        try:
            kind, cx, cy, w, h = map(float, words[:5])
        except ValueError:
            raise DataError(f'{path}, line {number}: {line.strip()!r} is not "class cx cy w h".') from None
        rows.append((kind, (cx - w / 2) * width, (cy - h / 2) * height, (cx + w / 2) * width, (cy + h / 2) * height))
    table = np.array(rows, np.float64).reshape(-1, 5)
    return Boxes(corners=table[:, 1:], classes=table[:, 0].astype(np.int64), scores=np.ones(len(table)))


def _of_coco(path: Path, files: Sequence[Path]) -> tuple[dict[Path, Boxes], list[int]]:
    try:
        document = json.loads(read_text(path))
        ids = sorted({int(kind["id"]) for kind in document.get("categories", ())})
        ids = ids or sorted({int(one["category_id"]) for one in document["annotations"]})
        images = {int(image["id"]): Path(str(image["file_name"])).name for image in document["images"]}
        rows: dict[str, list[tuple[float, ...]]] = {name: [] for name in images.values()}
        for one in document["annotations"]:
            x, y, w, h = map(float, one["bbox"])
            if not one.get("iscrowd"):
                rows[images[int(one["image_id"])]].append((ids.index(int(one["category_id"])), x, y, x + w, y + h))
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is no file of COCO's annotations: {type(error).__name__} {error}.") from None
    found = {}
    for file in files:
        if file.name in rows:
            table = np.array(rows[file.name], np.float64).reshape(-1, 5)
            classes = table[:, 0].astype(np.int64)
            found[file] = Boxes(corners=table[:, 1:], classes=classes, scores=np.ones(len(table)))
    if not found:
        raise DataError(f"{path}: no image of the folder has a label, it names {next(iter(rows), 'nothing')!r}.")
    return found, ids


def read_text(path: Path) -> str:
    """The text of a file. Raises FileMissingError and DataError."""
    if not path.exists():
        raise FileMissingError(f"The file of labels {path} does not exist: check the path.")
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as text: {error}.") from None


def _called(labels: Any) -> str:
    return os.fspath(labels) if isinstance(labels, str | os.PathLike) else "labels"
