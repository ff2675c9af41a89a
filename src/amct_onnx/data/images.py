"""Prepares images as the input of a model, and reads files of images in batches. Only this module imports Pillow."""

from __future__ import annotations

import io
import itertools
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from amct_onnx.data.arrays import BadSamples, SampleArray
from amct_onnx.data.blobs import Blob, Blobs, FileBlobs
from amct_onnx.data.image_options import PRESETS, ImageOptions
from amct_onnx.data.places import is_local
from amct_onnx.data.preprocess_file import images_named
from amct_onnx.engine.processors import processors
from amct_onnx.errors import ArgumentError, DataError, one_line
from amct_onnx.graph.inputs import ModelInput
from amct_onnx.graph.outputs import Purpose
from amct_onnx.numerics.arrays import Array, Uint8s
from amct_onnx.words import either, given, of_images

if TYPE_CHECKING:
    from PIL.Image import Image

_log = logging.getLogger("amct_onnx.Data")
IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".webp"})
_MOST_THREADS = 8  # that decode images of a batch side by side: Pillow lets others run while it works
_MARGIN = 256 / 224  # of the short side of an image to that of the crop, as torchvision and TensorFlow evaluate
_SMALL = 64  # pixels; images for inputs up to that size (CIFAR) have just the size of the input, so nothing is cut off
_ORIENTATION, _UPRIGHT = 0x0112, 4  # the tag of EXIF, and its last value that keeps height and width
_USUAL_SIZE, _USUAL_BOX = 224, 416  # pixels, if the model leaves the size open; the second with a letterbox


def image_options(
    value: ModelInput,
    images: ImageOptions | str | None,
    note: Callable[[str], None],
    purpose: Purpose | None = None,
) -> ImageOptions:
    """`images` with the size and layout of the input, where they leave these open.

    `note` is told what was assumed, and a warning says so where no preset is named. `purpose`: what the network is
    likely to be, which then tells the preset. Raises ArgumentError for options that do not fit the input, and DataError
    for an input that takes no images.
    """
    where, shape = f"input {value.name!r}", value.shape
    if shape is None or len(shape) != 4:
        what = "its rank is unknown" if shape is None else f"it has {len(shape)} dimensions, images need 4"
        raise DataError(f"{where}: a folder of images does not fit ({what}); {_otherwise()}")
    layout = images.layout if isinstance(images, ImageOptions) else None
    if layout is None:
        layout = "NHWC" if shape[1] not in (1, 3) and shape[3] in (1, 3) else "NCHW"
    channels, height, width = shape[1:] if layout == "NCHW" else (shape[3], *shape[1:3])
    if channels not in (None, 1, 3):
        raise DataError(f"{where}: has {channels} channels in {layout}, images give 1 or 3; {_otherwise()}")
    if isinstance(images, ImageOptions):
        options, origin = images, ""
    elif images is not None:
        options, origin = images_named(images), f" (preset {images!r})"
    else:
        name, reason = _guess(value, channels, purpose)
        options, origin = PRESETS[name], f" (preset {name!r}, since no other was asked for)"
        text = "No preset is named for the images: %s is assumed, since %s. Name it, or another one of %s."
        _log.warning(text, given("images", name), reason, ", ".join(PRESETS))
    if channels not in (None, options.channels):
        preset = given("images", "luminance" if channels == 1 else "torch")
        hint = f"use {preset}, or {of_images('color')} L" if channels == 1 else f"use {preset}, or another one of three"
        raise ArgumentError(f"{where}: takes {channels} channels, the image options give {options.color}; {hint}")
    if None in shape[1:] and options.layout is None:
        note(f"input {value.name!r}: the layout is taken to be {layout}")
    usual = _USUAL_BOX if options.fit == "letterbox" else _USUAL_SIZE
    asked = (None, None) if options.crop is None else options.size
    sizes = [fixed or wish or usual for fixed, wish in zip((height, width), asked, strict=True)]
    if any(wish not in (None, size) for wish, size in zip(asked, sizes, strict=True)):
        raise ArgumentError(
            f"{where}: takes {height} x {width} pixels, the image option {of_images('crop')} asks for {options.crop}"
        )
    if None in (height, width) and options.crop is None:
        note(f"input {value.name!r}: the model leaves the size open, {sizes[0]} x {sizes[1]} pixels are used")
    options = replace(options, crop=(sizes[0], sizes[1]), layout=layout)
    note(f"input {value.name!r}: {describe(options)}, {layout}{origin}")
    return options


def _otherwise() -> str:
    return either("give the data as arrays", "give .npy, .npz or .bin files")


def _guess(value: ModelInput, channels: int | None, purpose: Purpose | None) -> tuple[str, str]:
    """The preset for images of which the user has said nothing, and why, as a clause.

    Raises ArgumentError for a detector of nobody knows whom: a wrong guess would make it useless.
    """
    if not (value.dtype.startswith("float") or not value.dtype):
        return "raw", f"the input takes {value.dtype}"
    if channels == 1:
        return "luminance", "the input has one channel"
    if purpose is None:
        return "torch", "it is the most usual one"
    if purpose.preset:
        return purpose.preset, purpose.reason
    if purpose.kind == "detector":
        raise ArgumentError(
            f"input {value.name!r}: the model may be a detector, since {purpose.reason}, and how it takes images is "
            f"not said: give {given('images', 'ultralytics')}, {given('images', 'yolox')} or another one of "
            f"{', '.join(PRESETS)}, or a file that says it"
        )
    return "torch", f"it is the most usual one, though {purpose.reason}"


def pixel_values(options: ImageOptions, dtype: np.dtype[Any]) -> Array:
    """The number that each pixel from 0 to 255 becomes, [channels, 256] of `dtype`.

    Raises ArgumentError if `dtype` does not hold the numbers that are computed in float32.
    """
    values = np.arange(256, dtype=np.float32)[None] / np.float32(options.divisor)
    mean, std = (np.array(part, np.float32)[:, None] for part in (options.mean, options.std))
    values = np.ascontiguousarray(np.broadcast_to((values - mean) / std, (options.channels, 256)))
    converted = values.astype(dtype)
    if dtype.kind in "iub" and not np.array_equal(converted, values):
        raise ArgumentError(
            f"the model takes images as {dtype}, the image options give other numbers: use {given('images', 'raw')}"
        )
    return converted


def describe(options: ImageOptions) -> str:
    """A phrase for a report about options that say `crop`."""
    (height, width), (rows, columns) = options.size, _cover(options)
    if options.fit == "letterbox":
        place = "centre" if options.align == "center" else "upper left"
        fitted = f"fitted into the {place} of {height} x {width}, padded with {options.pad}"
    elif options.fit == "stretch":
        fitted = f"stretched to {height} x {width}"
    elif (height, width) == (rows, columns):
        fitted = f"resized and cropped to {height} x {width}"
    elif height == width:
        fitted = f"short side resized to {rows}, cropped to {height} x {width}"
    else:
        fitted = f"resized to cover {rows} x {columns}, cropped to {height} x {width}"
    parts = [f"images {fitted} ({options.interpolation})", options.color]
    parts += [f"divided by {options.divisor:g}"] if options.divisor != 1 else []
    parts += [f"minus {_numbers(options.mean)}"] if any(options.mean) else []
    parts += [f"over {_numbers(options.std)}"] if set(options.std) != {1.0} else []
    return ", ".join(parts)


def _numbers(values: Sequence[float]) -> str:
    return f"{values[0]:g}" if len(values) == 1 else "[" + ", ".join(f"{value:g}" for value in values) + "]"


def _cover(options: ImageOptions) -> tuple[int, int]:
    """The height and width that an image must cover before it is cropped."""
    height, width = options.size
    short = min(height, width)
    ratio = 1.0 if short <= _SMALL else _MARGIN
    if options.resize is not None:
        ratio = options.resize / short
    return round(height * ratio), round(width * ratio)


def find_images(folder: Path) -> list[Path]:
    """The images in `folder` and in its subfolders, in the order of their paths. A subfolder is often a class.

    Names that begin with a dot are left out. Raises DataError for a folder that cannot be read.
    """
    found: list[Path] = []
    try:
        for entry in folder.iterdir():
            inside = entry.iterdir() if entry.is_dir() and not entry.name.startswith(".") else (entry,)
            found += [file for file in inside if is_image(file)]
    except OSError as reason:
        raise DataError(f"{reason.filename}: the folder cannot be read ({reason.strerror})") from None
    return sorted(found, key=lambda file: file.parts)


def classes_of(files: Sequence[Path] | Blobs) -> list[str]:
    """What classes images seem to be of: those of one have a folder of their own, or names up to a last number.

    One class where there are as many as images, or nearly: then these are no classes.
    """
    if isinstance(files, Blobs):
        files = files.files if isinstance(files, FileBlobs) else ()
    found = [str(file.parent / file.stem.rstrip("0123456789")) for file in files]
    return found if len(set(found)) <= len(found) // 2 else [""] * len(found)


def is_image(file: Path) -> bool:
    """Whether `file` is a file with a name as images have."""
    return file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith(".") and file.is_file()


@dataclass(frozen=True, kw_only=True)
class ImageArray(SampleArray):
    """Images as one array [N, C, H, W] or [N, H, W, C] of `dtype`, which is computed in parts."""

    encoded: Blobs
    options: ImageOptions
    dtype: np.dtype[Any]

    def label(self, first: int, last: int) -> str:
        """The names of the samples `first` to `last` - 1."""
        return self.encoded.name(first) + (f" to {Path(self.encoded.name(last - 1)).name}" if last > first + 1 else "")

    def blocks(self, size: int, rows: int, start: int = 0, bad: BadSamples | None = None) -> Iterator[Array]:
        values = pixel_values(self.options, self.dtype)
        encoded = self.encoded.read(start, rows)
        workers = min(_MOST_THREADS, processors())
        with ThreadPoolExecutor(workers, thread_name_prefix="amct_onnx images") as threads:
            for first in range(start, rows, size):
                count = min(size, rows - first)
                block, blobs = np.empty((count, *self.shape[1:]), self.dtype), list(itertools.islice(encoded, count))
                each = -(-count // workers)
                tasks = [
                    threads.submit(self._prepare_all, blobs[part : part + each], first + part, block[part:], values)
                    for part in range(0, count, each)
                ]
                for task in tasks:
                    for number, reason in task.result().items():
                        if bad is None:
                            raise reason
                        bad[number] = reason
                yield block

    def _prepare_all(self, blobs: Sequence[Blob], first: int, block: Array, values: Array) -> BadSamples:
        """Fill the rows of a block, the first of which has this number; why some cannot be, which are 0 then."""
        bad: BadSamples = {}
        for number, (target, blob) in enumerate(zip(block, blobs, strict=False), first):
            try:
                self._prepare(blob, number, target, values)
            except DataError as reason:
                names = self.encoded.name(number), self.encoded.exact_name(number)
                bad[number] = DataError(str(reason).replace(*names, 1))
                target[:] = 0
        return bad

    def _prepare(self, blob: Blob, number: int, target: Array, values: Array) -> None:
        """Make of an encoded image what the input takes. Raises DataError."""
        if isinstance(blob, DataError):
            raise blob
        where = self.encoded.name(number)
        with _open(blob, where) as image:
            pixels = _decode(image, self.options, where)
        planes = target if self.options.layout == "NCHW" else target.transpose(2, 0, 1)
        for channel, plane in enumerate(planes):
            np.take(values[channel], pixels[:, :, channel], out=plane, mode="clip")


def open_images(
    found: Blobs | Sequence[Path], options: ImageOptions, dtype: str, where: str, *, check: bool = True
) -> ImageArray:
    """Images as an array. `check`: files of this machine are opened now, and their headers are read.

    Raises DataError for a file that is no image.
    """
    encoded = found if isinstance(found, Blobs) else FileBlobs(files=tuple(found))
    for file in encoded.files if isinstance(encoded, FileBlobs) and check else ():
        if is_local(file):
            with _open(file, str(file)):
                pass
    sample = (*options.size, options.channels) if options.layout == "NHWC" else (options.channels, *options.size)
    return ImageArray(
        encoded=encoded, options=options, dtype=np.dtype(dtype), shape=(len(encoded), *sample), where=where
    )


def image_size(file: Path) -> tuple[int, int]:
    """The height and width of an image as it is shown, turned as its EXIF data say. Raises DataError."""
    with _open(file, str(file)) as image:
        turned = image.getexif().get(_ORIENTATION, 1) > _UPRIGHT
        return (image.width, image.height) if turned else (image.height, image.width)


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where the pixels of an image are in the input: (x, y) * scale + offset, both (x, y)."""

    scale: tuple[float, float]
    offset: tuple[float, float]


def placement(size: tuple[int, int], options: ImageOptions) -> Placement:
    """Where an image of a size (height, width) goes, by options that say `crop` and do not cut anything off."""
    (rows, columns), (height, width) = size, options.size
    if options.fit == "stretch":
        return Placement(scale=(width / columns, height / rows), offset=(0.0, 0.0))
    ratio = min(height / rows, width / columns)
    centred = _is_centred(options)
    whole = round if centred else int
    margin = width - max(1, whole(columns * ratio)), height - max(1, whole(rows * ratio))
    offset = (float(margin[0] // 2), float(margin[1] // 2)) if centred else (0.0, 0.0)
    return Placement(scale=(ratio, ratio), offset=offset)


def _open(blob: Path | bytes, where: str) -> Image:
    from PIL import Image

    try:
        if not isinstance(blob, bytes) and not is_local(blob):
            blob = blob.read_bytes()
        return Image.open(io.BytesIO(blob) if isinstance(blob, bytes) else blob)
    except Exception as reason:  # a format's reader raises whatever its parser does
        raise _unreadable(where, reason) from None


def _unreadable(where: str, reason: Exception) -> DataError:
    return DataError(f"{where}: the image cannot be read ({_why(reason)}); repair or remove it")


def _why(reason: Exception) -> str:
    """What a reader says, without the address of the buffer that it read."""
    return re.sub(r" file <_io\.BytesIO object at \w+>| '<_io\.BytesIO object at \w+>'", "", one_line(reason))


def _decode(image: Image, options: ImageOptions, where: str) -> Uint8s:
    """The pixels of an image in the size and channels of the input, uint8 [height, width, channels]."""
    from PIL import ImageOps

    if image.mode.startswith(("I", "F")):
        raise DataError(f"{where}: has pixels of mode {image.mode!r}, save it with 8 bits a channel")
    try:
        ImageOps.exif_transpose(image, in_place=True)
        if "transparency" in image.info:
            image = image.convert("RGBA")  # Pillow warns of a palette with transparency that becomes RGB
        image = image.convert("RGB")
    except Exception as reason:
        raise _unreadable(where, reason) from None
    if options.color == "L":
        image = image.convert("L")
    elif options.color == "Y":
        image = image.convert("YCbCr").split()[0]
    pixels = np.asarray(_fitted(image, options))
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    if options.color == "BGR":
        pixels = pixels[:, :, ::-1]
    height, width = options.size
    if pixels.shape[:2] == (height, width):
        return pixels
    canvas = np.full((height, width, options.channels), options.pad, np.uint8)
    top, left = ((height - pixels.shape[0]) // 2, (width - pixels.shape[1]) // 2) if _is_centred(options) else (0, 0)
    canvas[top : top + pixels.shape[0], left : left + pixels.shape[1]] = pixels
    return canvas


def _is_centred(options: ImageOptions) -> bool:
    return options.align == "center"


def _fitted(image: Image, options: ImageOptions) -> Image:
    """`image` in the size of the input, or smaller if it is to be padded to a letterbox."""
    from PIL.Image import Resampling

    method = Resampling[options.interpolation.upper()]
    height, width = options.size
    if options.fit == "stretch":
        return image.resize((width, height), method)
    if options.fit == "letterbox":
        ratio = min(height / image.height, width / image.width)
        whole = round if _is_centred(options) else int  # as Ultralytics and YOLOX do
        return image.resize((max(1, whole(image.width * ratio)), max(1, whole(image.height * ratio))), method)
    rows, columns = _cover(options)
    scale = max(rows / image.height, columns / image.width)
    image = image.resize((round(image.width * scale), round(image.height * scale)), method)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))
