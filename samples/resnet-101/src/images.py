"""Labelled images for the ResNet-101 sample: label file, preprocessing, batches and top-k accuracy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

LABEL_FILE = "image_label.txt"
RESIZE = 256
CROP = 224
MEAN = np.array((0.485, 0.456, 0.406), np.float32)
STD = np.array((0.229, 0.224, 0.225), np.float32)

FloatArray = NDArray[np.float32]


class SampleError(Exception):
    """A problem that the user can fix; the message says what, where and what to do."""


@dataclass(frozen=True)
class LabelledImage:
    """One line of the label file."""

    path: Path
    label: int
    origin: str
    """File and line number of the label, for error messages."""


def read_labels(directory: Path) -> list[LabelledImage]:
    """Read ``image_label.txt`` (lines ``file label``) of an image directory."""
    if not directory.is_dir():
        raise SampleError(f"image directory not found: {directory}; create it or pass --images")
    label_file = directory / LABEL_FILE
    try:
        lines = label_file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise SampleError(
            f"cannot read label file {label_file}: {reason}; write one 'file label' line per image"
        ) from error
    numbered = enumerate(lines, start=1)
    images = [_parse_line(directory, line, f"{label_file}:{number}") for number, line in numbered if line.strip()]
    if not images:
        raise SampleError(f"label file {label_file} is empty; write one 'file label' line per image")
    return images


def _parse_line(directory: Path, line: str, origin: str) -> LabelledImage:
    """Parse one ``file label`` line; the file name may contain blanks."""
    name, label = (["", *line.rsplit(maxsplit=1)])[-2:]
    if not name or not (label.isascii() and label.isdigit()):
        raise SampleError(f"{origin}: malformed line {line.strip()!r}; expected 'file label', such as 'cat.png 281'")
    path = directory / name.strip()
    if not path.is_file():
        raise SampleError(f"{origin}: image not found: {path}; add the file or remove the line")
    return LabelledImage(path, int(label), origin)


def load_image(path: Path) -> Image.Image:
    """Open an image file of any format that Pillow knows, as RGB."""
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise SampleError(f"cannot read image {path}: not a complete JPEG or PNG file; replace it") from error


def resize(image: Image.Image) -> Image.Image:
    """Resize to 256x256, bicubic; the aspect ratio is not kept, as in the original sample."""
    return image.resize((RESIZE, RESIZE), Image.Resampling.BICUBIC)


def preprocess(image: Image.Image) -> FloatArray:
    """Turn an RGB image into a normalised float32 array of shape [3, 224, 224]."""
    start = (RESIZE - CROP) // 2
    pixels = np.asarray(resize(image), np.float32)[start : start + CROP, start : start + CROP] / np.float32(255)
    return np.ascontiguousarray(((pixels - MEAN) / STD).transpose(2, 0, 1))


def load_batch(images: Sequence[LabelledImage], size: int) -> FloatArray:
    """Load images as one batch; a short batch is filled up to ``size`` with its last image."""
    arrays = [preprocess(load_image(image.path)) for image in images]
    arrays += arrays[-1:] * (size - len(arrays))
    return np.stack(arrays)


def batches(images: Sequence[LabelledImage], size: int) -> Iterator[Sequence[LabelledImage]]:
    """Split images into consecutive batches; the last one may be short."""
    for start in range(0, len(images), size):
        yield images[start : start + size]


def count_hits(scores: FloatArray, images: Sequence[LabelledImage]) -> NDArray[np.int64]:
    """Count the images whose label is the best, and one of the five best, of their scores."""
    classes = scores.shape[1]
    for image in images:
        if image.label >= classes:
            raise SampleError(
                f"{image.origin}: label {image.label} is out of range; the model has classes 0 to {classes - 1}"
            )
    best = np.argsort(-scores, axis=1, kind="stable")[:, : min(5, classes)]
    hits = best == np.array([image.label for image in images])[:, None]
    return np.array((hits[:, 0].sum(), hits.any(axis=1).sum()), np.int64)
