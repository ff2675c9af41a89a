"""How images become the input of a model: `ImageOptions`, and the table of usual ways, `PRESETS`.

Nothing heavy is imported here, since the options of the command come from these fields and `--help` shows them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from amct_onnx.data.input_texts import parse_numbers, parse_size
from amct_onnx.errors import ArgumentError, did_you_mean
from amct_onnx.options import Flag, option, positive_number
from amct_onnx.words import IMAGE_OPTIONS, either, given, of_images

COLORS: Mapping[str, int] = MappingProxyType({"RGB": 3, "BGR": 3, "L": 1, "Y": 1})  # and their channels
FITS = ("crop", "letterbox", "stretch")
ALIGNS = ("corner", "center")
FILTERS = ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming")
LAYOUTS = ("NCHW", "NHWC")
_CHOICES: Mapping[str, tuple[str, ...]] = {
    "color": tuple(COLORS),
    "fit": FITS,
    "align": ALIGNS,
    "interpolation": FILTERS,
    "layout": LAYOUTS,
}


_OPTION = "image option "


def _flag(name: str, **how: Any) -> Flag:
    return Flag(name=f"--{IMAGE_OPTIONS}{name}", **how)


@dataclass(frozen=True, kw_only=True)
class ImageOptions:
    """How images become the input of a model: `(pixel / divisor - mean) / std` in float32, of pixels from 0 to 255.

    `mean` and `std` have one number, or one for each channel in the order of `color`. "Y" is the luminance of YCbCr.

    "crop" scales an image until it covers the size of the input, with a margin, and cuts out the centre. "letterbox"
    scales it to lie within the input, and fills the rest with `pad`: with `align` "corner" it is in the upper left, as
    YOLOX does, and with "center" in the middle, as Ultralytics does. "stretch" scales it to the size of the input,
    whatever its proportions.

    Raises ArgumentError for a value that cannot be used.
    """

    color: str = option("RGB", "order of colours: RGB, BGR, L (grey), Y", flag=_flag("color", metavar="C"))
    divisor: float = option(1.0, "what pixels are divided by", flag=_flag("divisor", metavar="X", read=float))
    mean: tuple[float, ...] = option(
        (0.0,), "what is subtracted then", flag=_flag("mean", metavar="A,B,C", read=parse_numbers)
    )
    std: tuple[float, ...] = option(
        (1.0,), "what that is divided by", flag=_flag("std", metavar="A,B,C", read=parse_numbers)
    )
    fit: str = option("crop", "crop, letterbox or stretch", flag=_flag("fit", metavar="HOW"))
    align: str = option("corner", "corner or center, for a letterbox", flag=_flag("align", metavar="HOW"))
    resize: int | None = option(
        None,
        "short side before the crop, pixels",
        "None makes the margin that is usual.",
        flag=_flag("resize", metavar="N", read=positive_number),
    )
    crop: int | tuple[int, int] | None = option(
        None,
        "size of the input: N, or HEIGHT,WIDTH",
        "It is (height, width) or one number for both, in pixels. None takes it from the model.",
        flag=_flag("crop", metavar="N", read=parse_size),
    )
    pad: int = option(114, "grey around a letterbox, 0 to 255", flag=_flag("pad", metavar="N", read=int))
    interpolation: str = option("bilinear", f"{', '.join(FILTERS)}", flag=_flag("interpolation", metavar="HOW"))
    layout: str | None = option(
        None, "NCHW or NHWC", "None takes it from the model.", flag=_flag("layout", metavar="HOW")
    )

    def __post_init__(self) -> None:
        for name, allowed in _CHOICES.items():
            value, listing = getattr(self, name), f"use one of {', '.join(allowed)}"
            if value not in allowed and not (name == "layout" and value is None):
                hint = did_you_mean(str(value), allowed, listing)
                raise ArgumentError(f"{_OPTION}{of_images(name, value)} is unknown, {hint}")
        for name in ("mean", "std"):
            count = len(getattr(self, name))
            if count not in (1, self.channels):
                raise ArgumentError(
                    f"{_OPTION}{of_images(name)} has {count} numbers, {self.color} takes {self.channels} or 1"
                )
        if 0 in (*self.std, self.divisor):
            raise ArgumentError(
                f"image options {of_images('std')} and {of_images('divisor')} divide the pixels and cannot be 0"
            )
        if not 0 <= self.pad <= 255:
            raise ArgumentError(f"{_OPTION}{of_images('pad', self.pad)} is no pixel, use 0 to 255")
        size = self.crop if isinstance(self.crop, tuple) else (self.crop, self.crop)
        pixels = [number for number in (*size, self.resize) if number is not None]
        if len(size) != 2 or not all(isinstance(number, int) and number > 0 for number in pixels):
            what = f"image options {of_images('resize', self.resize)} and {of_images('crop', self.crop)}"
            two = either("a tuple (height, width)", "HEIGHT,WIDTH")
            raise ArgumentError(f"{what}: give numbers of pixels, the second may be {two}")
        if self.fit == "crop" and self.resize is not None and self.resize < min(self.size):
            text = f"{_OPTION}{of_images('resize', self.resize)} is smaller than {of_images('crop', self.crop)}"
            raise ArgumentError(text)
        if self.fit != "crop" and self.resize is not None:
            here = of_images("fit", "crop")
            raise ArgumentError(
                f"{_OPTION}{of_images('resize')} is for {here}, with {self.fit!r} give the size as {of_images('crop')}"
            )

    @classmethod
    def preset(cls, name: str, **changes: Any) -> ImageOptions:
        """The preset `name`, in which `changes` replace some options. Raises ArgumentError for an unknown name."""
        if name not in PRESETS:
            known = f"use one of {', '.join(PRESETS)}, or {either('ImageOptions', 'a preprocess.toml')}"
            raise ArgumentError(f"{given('images', name)} is no preset, {did_you_mean(name, PRESETS, known)}")
        return replace(PRESETS[name], **changes)

    @property
    def channels(self) -> int:
        return COLORS[self.color]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the input, of options that say `crop`."""
        return self.crop if isinstance(self.crop, tuple) else (self.crop or 0, self.crop or 0)


_IMAGENET = ImageOptions(divisor=255, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
_CLIP = ImageOptions(
    divisor=255,
    mean=(0.48145466, 0.4578275, 0.40821073),
    std=(0.26862954, 0.26130258, 0.27577711),
    interpolation="bicubic",
)
PRESETS: Mapping[str, ImageOptions] = MappingProxyType(
    {
        "torch": _IMAGENET,
        "tf": ImageOptions(divisor=127.5, mean=(1.0,)),
        "caffe": ImageOptions(color="BGR", mean=(103.939, 116.779, 123.68)),
        "unit": ImageOptions(divisor=255),
        "raw": ImageOptions(),
        "clip": _CLIP,
        "ultralytics": ImageOptions(divisor=255, fit="letterbox", align="center"),
        "yolox": ImageOptions(color="BGR", fit="letterbox"),
        "luminance": ImageOptions(color="Y", divisor=255, fit="stretch", interpolation="bicubic"),
    }
)
"""The usual ways to prepare images."""
