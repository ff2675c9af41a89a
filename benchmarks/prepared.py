"""What the sides of `make bench` are given: a model, images prepared for it in .npy files, the model at opset 13."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.lib.format import open_memmap
from onnx import version_converter
from shared_data import DATA, MODELS, FloatArray, batches, read_labels, spread

CONVERSION_ERRORS = (RuntimeError, version_converter.ConvertError)  # the converter does not know all operators


class MissingDataError(Exception):
    """There is no such model or there are no images for it."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A float model with one input, and images for it: those of the shared data, or those of an .npy file."""

    name: str
    model: Path
    images: Path | None = None

    @classmethod
    def of(cls, model: str, images: Path | None) -> Case:
        """`model` is a name of the shared models, or a file; a file needs images. Raises MissingDataError."""
        if model in MODELS:
            case = cls(name=model, model=MODELS[model].path().resolve(), images=images)
        elif images is None:
            raise MissingDataError(f"{model} is none of {', '.join(MODELS)}; a model file also needs --images FILE.npy")
        else:
            case = cls(name=Path(model).stem, model=Path(model).resolve(), images=images)
        for path in (case.model, *([] if images is None else [images])):
            if not path.is_file():
                raise MissingDataError(f"no such file: {path}; set AMCT_TEST_DATA to the folder with models and images")
        return case

    def write_images(self, path: Path, count: int, *, test: bool = False) -> None:
        """`count` prepared images as float32 [count, ...]; they start again where there are fewer.

        `test`: those that calibration does not see, where the model is a shared one.
        """
        source = self._stored() if self.images is not None else self._decoded(count, test=test)
        target, filled = None, 0
        for image in source:
            if target is None:
                target = open_memmap(path, mode="w+", dtype=np.float32, shape=(count, *image.shape))
            target[filled] = image
            filled += 1
            if filled == count:
                break
        if target is None:
            raise MissingDataError(f"there are no images for {self.name}")
        for index in range(filled, count):
            target[index] = target[index % filled]
        target.flush()

    def _stored(self) -> Iterator[FloatArray]:
        yield from np.load(self.images, mmap_mode="r")

    def _decoded(self, count: int, *, test: bool) -> Iterator[FloatArray]:
        shared = MODELS[self.name]
        images = spread(read_labels(shared.test if test else shared.calibration, DATA), count)
        for batch, _ in batches(images, 1, shared.prepare):
            yield batch[0]

    def at_opset(self, opset: int, folder: Path) -> Path:
        """The model, converted where its opset is lower; the converted one is in `folder`. Raises CONVERSION_ERRORS."""
        model = onnx.load(self.model)
        if next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")) >= opset:
            return self.model
        path = folder / f"{self.name}_opset{opset}.onnx"
        if not path.exists():
            onnx.save(version_converter.convert_version(model, opset), path)
        return path
