"""Labelled images for the MobileNetV2 sample: label file, preprocessing, batches and top-k hits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

LABEL_FILE = "image_label.txt"
RESIZE_BY = 256 / 224
"""The short step of ImageNet's preprocessing: what is resized is this much larger than what is cropped from it."""
MEAN = np.array((0.485, 0.456, 0.406), np.float32)
STD = np.array((0.229, 0.224, 0.225), np.float32)

FloatArray = NDArray[np.float32]


class SampleError(Exception):
    """A problem that the user can fix; the message says what, where and what to do."""


@dataclass(frozen=True)
class LabelledImage:
    """One line of the label file; ``origin`` is its file and line number, for error messages."""

    path: Path
    label: int
    origin: str


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


def central_pixels(image: Image.Image, size: int) -> NDArray[np.uint8]:
    """Resize (bicubic; the aspect ratio is not kept) and return the central ``size`` x ``size`` pixels."""
    full = round(size * RESIZE_BY)
    start = (full - size) // 2
    resized = np.asarray(image.resize((full, full), Image.Resampling.BICUBIC), np.uint8)
    return resized[start : start + size, start : start + size]


def preprocess(image: Image.Image, size: int) -> FloatArray:
    """Turn an RGB image into a normalised float32 array of shape [3, size, size]."""
    pixels = central_pixels(image, size) / np.float32(255)
    return np.ascontiguousarray(((pixels - MEAN) / STD).transpose(2, 0, 1))


def load_batch(images: Sequence[LabelledImage], size: int) -> FloatArray:
    """Load images as one batch [count, 3, size, size]."""
    return np.stack([preprocess(load_image(image.path), size) for image in images])


def batches(images: Sequence[LabelledImage], count: int) -> Iterator[Sequence[LabelledImage]]:
    """Split images into consecutive batches of ``count``; the last one may be short."""
    for start in range(0, len(images), count):
        yield images[start : start + count]


def count_hits(scores: FloatArray, images: Sequence[LabelledImage]) -> int:
    """Count the images whose label has the best score."""
    classes = scores.shape[1]
    for image in images:
        if image.label >= classes:
            raise SampleError(
                f"{image.origin}: label {image.label} is out of range; the model has classes 0 to {classes - 1}"
            )
    return int((scores.argmax(axis=1) == np.array([image.label for image in images])).sum())
