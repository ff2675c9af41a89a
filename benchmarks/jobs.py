"""What a side of `make bench` is given: a float model, and samples that are read one at a time.

Standard library and numpy only: the interpreters of the peers import it too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Job:
    """The float model, the images, and the folder that the quantized model goes to as its only .onnx file.

    `most`: the number of images that may be used, None for all.
    """

    model: Path
    images: Path
    folder: Path
    most: int | None = None

    @property
    def output(self) -> Path:
        return self.folder / "model.onnx"

    def scratch(self, name: str) -> Path:
        """A file that is no result."""
        (self.folder / "scratch").mkdir(exist_ok=True)
        return self.folder / "scratch" / name

    def session(self) -> Any:
        """The float model in ONNX Runtime."""
        import onnxruntime as ort

        return ort.InferenceSession(str(self.model), providers=["CPUExecutionProvider"])

    def feeds(self, most: int | None = None) -> Feeds:
        """The images, one at a time; at most `most` of them."""
        limits = [limit for limit in (most, self.most) if limit is not None]
        name = "" if self.images.suffix == ".npz" else self.input_name()
        return Feeds(self.images, name, min(limits, default=None))

    def input_name(self) -> str:
        """Name of the only input."""
        import onnx

        graph = onnx.load(self.model, load_external_data=False).graph
        weights = {tensor.name for tensor in graph.initializer}
        (name,) = (value.name for value in graph.input if value.name not in weights)
        return str(name)


class Feeds:
    """The images as `{input: array [1, ...]}`, as often as they are asked for; an .npz file has the names of inputs.

    At most `most` of them, at equal distances: their order may be that of their classes.
    """

    def __init__(self, images: Path, name: str, most: int | None = None) -> None:
        import numpy as np

        self._np, self._images, self._name = np, images, name
        self._stored: dict[str, Any] = {}
        if images.suffix == ".npz":
            with np.load(images) as stored:
                self._stored = dict(stored)
        first = next(iter(self._stored.values())) if self._stored else np.load(images, mmap_mode="r")
        count = len(first)
        self._chosen = range(count) if most is None else np.linspace(0, count, min(most, count), False).astype(int)

    def __len__(self) -> int:
        return len(self._chosen)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for index in self._chosen:
            if self._stored:
                yield {name: array[index : index + 1] for name, array in self._stored.items()}
                continue
            # A mapping that stays open would count the pages that were read as memory of the process.
            mapped = self._np.load(self._images, mmap_mode="r")
            yield {self._name: self._np.array(mapped[index : index + 1])}

    def arrays(self) -> dict[str, Any]:
        """All at once, as `{input: array [N, ...]}`."""
        parts = list(self)
        return {name: self._np.concatenate([part[name] for part in parts]) for name in parts[0]}


class Reader:
    """The images as a CalibrationDataReader of ONNX Runtime."""

    def __init__(self, feeds: Feeds) -> None:
        self._feeds = feeds
        self.rewind()

    def get_next(self) -> dict[str, Any] | None:
        return next(self._iterator, None)

    def rewind(self) -> None:
        self._iterator = iter(self._feeds)
