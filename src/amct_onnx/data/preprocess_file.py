"""Reads how images are prepared from a file: a short preprocess.toml or JSON of ours, or Hugging Face's.

Ours holds fields of ImageOptions, and `preset` where they change one:

    preset = "torch"
    crop = [320, 416]
    interpolation = "bicubic"
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from amct_onnx.data.image_options import FILTERS, PRESETS, ImageOptions
from amct_onnx.errors import AmctError, ConfigError, did_you_mean
from amct_onnx.files.toml_file import read_toml
from amct_onnx.files.whole_files import read_json

_WHAT = "description of the images"
_FIELDS = {field.name: field.default for field in dataclasses.fields(ImageOptions)}
# What marks a preprocessor_config.json; one of them is enough.
_OF_HUGGING_FACE = ("image_mean", "do_normalize", "do_rescale", "image_processor_type", "feature_extractor_type")
_RESAMPLE = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # Pillow's numbers


def images_named(name: str, **changes: Any) -> ImageOptions:
    """The preset `name`, or what the file of that path says, in which `changes` replace some options.

    Raises ArgumentError for an unknown preset, FileMissingError or ConfigError for a file.
    """
    if name not in PRESETS and (Path(name).suffix.lower() in (".toml", ".json") or os.path.isfile(name)):
        return dataclasses.replace(read_image_options(name), **changes)
    return ImageOptions.preset(name, **changes)


def read_image_options(path: str | os.PathLike[str]) -> ImageOptions:
    """The image options in a file, TOML by its suffix or else JSON. Raises FileMissingError or ConfigError."""
    name = os.fspath(path)
    document = read_toml(name, what=_WHAT) if name.lower().endswith(".toml") else _json(name)
    if not isinstance(document, Mapping):
        raise ConfigError(f"{name}: holds no fields, give some of {', '.join(_FIELDS)}")
    try:
        if any(key in document for key in _OF_HUGGING_FACE):
            return _of_hugging_face(document)
        return image_options_of(document)
    except (AmctError, KeyError, TypeError, ValueError) as reason:
        text = f"{reason} is missing" if isinstance(reason, KeyError) else str(reason)
        raise ConfigError(f"{name}: {text}") from None


def _json(name: str) -> Any:
    return read_json(name, what=_WHAT, advice="give TOML in a file that ends in .toml, or JSON")


def image_options_of(document: Mapping[str, Any]) -> ImageOptions:
    """The image options that fields of ours say, with `preset` where they change one. Raises AmctError."""
    changes = {}
    for key, value in document.items():
        if key == "preset":
            continue
        if key not in _FIELDS:
            raise ConfigError(f"{key!r} is no field, {did_you_mean(key, _FIELDS, f'use {_listing()}')}")
        changes[key] = _value(key, value)
    if "preset" in document:
        return ImageOptions.preset(document["preset"], **changes)
    return ImageOptions(**changes)


def _listing() -> str:
    return ", ".join(("preset", *_FIELDS))


def _value(key: str, value: Any) -> Any:
    """A value of the file in the type of its field. Raises ConfigError."""
    if isinstance(value, list):
        value = tuple(value)
    if key in ("mean", "std"):
        value = value if isinstance(value, tuple) else (value,)
        if value and all(isinstance(part, (int, float)) and not isinstance(part, bool) for part in value):
            return tuple(float(part) for part in value)
        raise ConfigError(f"{key} takes a number or a list of numbers")
    default = _FIELDS[key]
    numbers = isinstance(default, (int, float)) or key in ("resize", "crop")
    right = (int, float) if key == "divisor" else (int, tuple) if key == "crop" else int if numbers else str
    if isinstance(value, bool) or not isinstance(value, right):
        raise ConfigError(f"{key} takes {'a number' if numbers else 'a text'}, got {value!r}")
    return value


def _of_hugging_face(document: Mapping[str, Any]) -> ImageOptions:
    """What a preprocessor_config.json says. Raises ConfigError for what these options cannot do."""
    if document.get("do_pad"):
        raise ConfigError("do_pad is not supported: describe the images in a preprocess.toml, or give arrays")
    changes: dict[str, Any] = {}
    if document.get("do_rescale", True):
        changes["divisor"] = 1 / float(document.get("rescale_factor", 1 / 255))
    if document.get("do_normalize", "image_mean" in document):
        changes["mean"], changes["std"] = (_value(key, document[f"image_{key}"]) for key in ("mean", "std"))
    number = document.get("resample", 2)
    if not isinstance(number, int) or not 0 <= number < len(_RESAMPLE):
        raise ConfigError(f"resample {number!r} is unknown, use 0 to {len(FILTERS) - 1}")
    changes["interpolation"] = _RESAMPLE[number]
    crop = _two(document.get("crop_size")) if document.get("do_center_crop") else None
    if not document.get("do_resize", True):
        return ImageOptions(**changes, crop=crop)
    size = document.get("size")
    short = size.get("shortest_edge") if isinstance(size, Mapping) else size if crop is not None else None
    if isinstance(size, Mapping) and "longest_edge" in size:
        raise ConfigError("a size with longest_edge gives images of many sizes: give the data as arrays")
    if short is None:
        if crop is not None and crop != _two(size):
            raise ConfigError("size and crop_size both fix height and width: describe the images in a preprocess.toml")
        return ImageOptions(**changes, fit="stretch", crop=_two(size))
    if "crop_pct" in document:  # ConvNeXt: the short side is that of the crop by this share
        return ImageOptions(**changes, resize=round(short / float(document["crop_pct"])), crop=(short, short))
    return ImageOptions(**changes, resize=short, crop=crop or (short, short))


def _two(size: Any) -> tuple[int, int] | None:
    """Height and width, of a mapping or of one number for both."""
    if size is None:
        return None
    if isinstance(size, Mapping):
        return int(size["height"]), int(size["width"])
    return int(size), int(size)
