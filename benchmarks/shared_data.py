"""The real models and images of the shared test data, prepared as their READMEs say; for benchmarks and tests.

The data is not part of the project: it is found at $AMCT_TEST_DATA, by default `../shared` beside the project.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

FloatArray = NDArray[np.float32]
T = TypeVar("T")
DATA = Path(os.environ.get("AMCT_TEST_DATA") or Path(__file__).resolve().parents[2] / "shared")
_MEAN, _STD = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])


@dataclass(frozen=True)
class Labelled:
    """One image file and its class."""

    path: Path
    label: int


def torch_style(image: Image.Image, *, resize: int | None = None, crop: int | None = None) -> FloatArray:
    """RGB float32 [3, H, W], normalized by ImageNet's mean and standard deviation."""
    pixels = np.asarray(_crop(image, resize, crop), np.float32) / np.float32(255)
    return np.ascontiguousarray(((pixels - _MEAN) / _STD).transpose(2, 0, 1))


def tf_style(image: Image.Image, *, resize: int, crop: int) -> FloatArray:
    """RGB float32 [3, H, W] in [-1, 1]."""
    pixels = np.asarray(_crop(image, resize, crop), np.float32) / np.float32(127.5) - np.float32(1)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def letterbox(image: Image.Image, *, size: int, pad: int = 114) -> FloatArray:
    """BGR float32 [3, size, size] in 0..255: scaled to fit the upper left corner, the rest filled with `pad`."""
    ratio = min(size / image.width, size / image.height)
    small = image.resize((int(image.width * ratio), int(image.height * ratio)), Image.Resampling.BILINEAR)
    canvas = np.full((size, size, 3), pad, np.float32)
    canvas[: small.height, : small.width] = np.asarray(small, np.float32)[:, :, ::-1]
    return np.ascontiguousarray(canvas.transpose(2, 0, 1))


def luminance(image: Image.Image, *, size: int) -> FloatArray:
    """The Y channel, float32 [1, size, size] in [0, 1]."""
    y = image.convert("YCbCr").split()[0].resize((size, size), Image.Resampling.BICUBIC)
    return (np.asarray(y, np.float32) / np.float32(255))[None]


def _crop(image: Image.Image, resize: int | None, crop: int | None) -> Image.Image:
    """Bilinear resize of the short side to `resize`, then the centre square of `crop` pixels."""
    if resize is not None:
        scale = resize / min(image.size)
        size = (round(image.width * scale), round(image.height * scale))
        image = image.resize(size, Image.Resampling.BILINEAR)
    if crop is not None:
        left, top = (image.width - crop) // 2, (image.height - crop) // 2
        image = image.crop((left, top, left + crop, top + crop))
    return image


@dataclass(frozen=True, kw_only=True)
class SharedModel:
    """A model of the shared data, its input and the images that go with it."""

    file: str
    input: str
    calibration: str
    test: str
    prepare: Callable[[Image.Image], FloatArray]

    def path(self, data: Path = DATA) -> Path:
        """The ONNX file."""
        return data / "models" / self.file


_IMAGENET = {"calibration": "imagenet1000/calibration_label.txt", "test": "imagenet1000/test_label.txt"}
_CIFAR10 = {"calibration": "cifar10/calibration/image_label.txt", "test": "cifar10/test/image_label.txt"}
_TORCH_224 = partial(torch_style, resize=256, crop=224)
_TF_160 = partial(tf_style, resize=183, crop=160)

MODELS = {
    "mobilenetv2": SharedModel(file="mobilenetv2_tv1.onnx", input="input", prepare=_TORCH_224, **_IMAGENET),
    "squeezenet": SharedModel(file="squeezenet1.1.onnx", input="data", prepare=_TORCH_224, **_IMAGENET),
    "mobilenetv1": SharedModel(file="mobilenetv1_0.5_160.onnx", input="input", prepare=_TF_160, **_IMAGENET),
    "resnet20": SharedModel(file="resnet20_cifar10.onnx", input="input", prepare=torch_style, **_CIFAR10),
    "resnet56": SharedModel(file="resnet56_cifar10.onnx", input="input", prepare=torch_style, **_CIFAR10),
}


def read_labels(list_file: str, data: Path = DATA) -> list[Labelled]:
    """The images of a label file such as "cifar10/test/image_label.txt", in its order."""
    path = data / "images" / list_file
    lines = (line.rsplit(maxsplit=1) for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    return [Labelled(path.parent / name, int(label)) for name, label in lines]


def spread(items: Sequence[T], count: int) -> list[T]:
    """`count` items at equal distances: the lists of images are sorted by class."""
    chosen = np.linspace(0, len(items), min(count, len(items)), endpoint=False).astype(int)
    return [items[i] for i in chosen]


def load(path: Path, prepare: Callable[[Image.Image], FloatArray]) -> FloatArray:
    """One prepared image."""
    with Image.open(path) as image:
        return prepare(image.convert("RGB"))


def batches(
    images: Sequence[Labelled], size: int, prepare: Callable[[Image.Image], FloatArray]
) -> Iterator[tuple[FloatArray, list[int]]]:
    """Prepared images [size or fewer, ...] with their labels."""
    for start in range(0, len(images), size):
        part = images[start : start + size]
        yield np.stack([load(image.path, prepare) for image in part]), [image.label for image in part]
