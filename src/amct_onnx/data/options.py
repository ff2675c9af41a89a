"""What a user says of calibration data: `DataOptions`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from amct_onnx.data.image_options import PRESETS, ImageOptions
from amct_onnx.data.input_texts import parse_shapes, parse_types, split_pairs
from amct_onnx.errors import ArgumentError, did_you_mean
from amct_onnx.options import Flag, option, positive_number
from amct_onnx.words import given, named

if TYPE_CHECKING:
    import os

    from amct_onnx.graph.inputs import ModelInput

OnBadData = Literal["fail", "skip"]
PRESET_NAMES = tuple(PRESETS)


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """How calibration data are read. Raises ArgumentError for a number of samples below 1."""

    images: ImageOptions | str | None = option(
        None,
        f"how images are prepared: {', '.join(PRESET_NAMES)}, or a file that says it",
        "The file is a preprocess.toml or JSON with fields of `ImageOptions`, or a preprocessor_config.json of Hugging "
        "Face; an `ImageOptions` says everything itself. None guesses for classifiers from the input of the model, and "
        "`assumptions` of the result tell what was guessed.",
        flag=Flag(
            help=f"how images are prepared: {', '.join(PRESET_NAMES)}, or a file",
            name="--preset",
            also="--images",
            metavar="NAME",
        ),
    )
    batch_size: int | None = option(
        None,
        "samples in a batch",
        "None: batches of an iterable and of files stay as they are; single samples are joined, and arrays are cut, "
        "to batches of a few samples. If the model fixes the size of its batch, that size is used in any case.",
        flag=Flag(metavar="N", read=positive_number),
    )
    limit: int | None = option(
        None,
        "samples that are used at most",
        "They are the first ones; of a folder of images, ones at equal distances.",
        flag=Flag(metavar="N", read=positive_number),
    )
    shapes: Mapping[str, Sequence[int]] | None = option(
        None,
        "by input, the sizes that the model leaves open, and the shape of a .bin file",
        "A size of -1 stays open.",
        flag=Flag(
            help="open sizes of inputs",
            name="--input_shape",
            metavar="SHAPES",
            example="a:1,3,8,8;b:...",
            read=parse_shapes,
        ),
    )
    dtypes: Mapping[str, str] | None = option(
        None,
        "by input, the type of .bin files where it is not that of the model",
        flag=Flag(
            help="types of .bin files",
            name="--data_types",
            metavar="TYPES",
            example="a:float32;b:int64",
            read=parse_types,
        ),
    )
    names: Mapping[str, str] | None = option(
        None,
        "by input, the name that it has in the data where it is not that of the model",
        flag=Flag(help="the names of inputs in the data", metavar="NAMES", example="input_ids=ids", read=split_pairs),
    )

    tokenizer: str | os.PathLike[str] | None = option(
        None,
        "a tokenizer.json, for data in a .txt file with a text in each line",
        "It takes the package tokenizers, an extra.",
        flag=Flag(help="tokenizer.json for a .txt file, a text a line", metavar="FILE"),
    )

    on_bad_data: OnBadData = option(
        "fail",
        "what to do about an image, or another file of many, that cannot be read: fail or skip",
        '"fail" ends the run with its name. "skip" leaves it out, and `data.skipped` of the result and a warning tell '
        "what that was; the other samples of its batch stay, unless the model fixes the size of the batch. A run of "
        "which nothing is left fails in any case.",
        flag=Flag(help="what cannot be read: fail or skip", metavar="HOW"),
    )

    def __post_init__(self) -> None:
        if self.on_bad_data not in get_args(OnBadData):
            raise ArgumentError(f"{given('on_bad_data', self.on_bad_data)} is unknown, use one of fail, skip")
        for name, number in (("batch_size", self.batch_size), ("limit", self.limit)):
            if number is not None and number < 1:
                raise ArgumentError(f"{given(name, number)} is no number of samples, give 1 or more")

    def check_names(self, inputs: Sequence[ModelInput]) -> None:
        """Raise ArgumentError for an option about an input that is not among `inputs`."""
        known = [value.name for value in inputs]
        for option_name in ("shapes", "dtypes", "names"):
            for key in getattr(self, option_name) or ():
                if key not in known:
                    hint = did_you_mean(key, known, f"it has {', '.join(map(repr, known))}")
                    raise ArgumentError(f"{named(option_name)}: the model has no input {key!r}, {hint}")

    def key(self, name: str) -> str:
        """The name that the input `name` of the model has in the data."""
        return (self.names or {}).get(name, name)
