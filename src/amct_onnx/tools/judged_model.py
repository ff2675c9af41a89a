"""A model that `evaluate` judges, and the work of running it on samples, part by part."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import onnx_ir as ir

from amct_onnx.data.batches import Note
from amct_onnx.data.batches import quiet as quiet_note
from amct_onnx.data.images import ImageArray
from amct_onnx.engine.engine import Engine
from amct_onnx.errors import ArgumentTypeError, DataError, ModelError
from amct_onnx.files.onnx_file import load_model, take_model
from amct_onnx.files.packed_model import HoldsGraphs
from amct_onnx.graph.inputs import ModelInput, model_inputs
from amct_onnx.graph.outputs import Purpose, purpose_of
from amct_onnx.graph.read.lift_deploy import has_ascend_operators
from amct_onnx.numerics.arrays import Array, Feed, Int64s
from amct_onnx.ptq.quantized_model import QuantizedModel
from amct_onnx.run.deployed import open_deployed
from amct_onnx.run.session import open_session, quiet, run_feed
from amct_onnx.words import named

Row = TypeVar("Row")
_BEST = 5  # classes that are looked at


class NumberedFeeds(Protocol):
    """Feeds by number, from 0 to `total` - 1, which whoever runs the model makes."""

    @property
    def total(self) -> int: ...

    def read(self, first: int, last: int, note: Note) -> Iterator[Feed]:
        """Those from `first` to `last` - 1. `note` is told what is assumed of them."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class JudgedModel(HoldsGraphs):
    """A model, and what messages call it."""

    model: ir.Model
    called: str

    @classmethod
    def of(cls, model: Any) -> JudgedModel:
        """Of whatever `evaluate` takes. Raises ArgumentTypeError, and what reading and opening a model raises."""
        if isinstance(model, QuantizedModel):
            opened = cls(called=f"the model for {model.target}", model=model.model())
        elif isinstance(model, str | os.PathLike):
            opened = cls(called=os.fspath(model), model=load_model(model))
        elif isinstance(model, ir.Model) or type(model).__name__ == "ModelProto":
            opened = cls(called="the model in memory", model=take_model(model))
        else:
            kinds = "a path, an onnx.ModelProto, an onnx_ir.Model or a QuantizedModel"
            raise ArgumentTypeError(f"evaluate takes {kinds}, got {type(model).__name__}")
        _ = opened.session  # what cannot be opened is told before the work begins
        return opened

    @cached_property
    def session(self) -> Any:
        """A session of the model, which does not travel. Raises ModelError."""
        if has_ascend_operators(self.model):
            return open_deployed(self.model, self.called, None, quiet())
        return open_session(self.model, quiet(), cannot=f"open {self.called}")

    @cached_property
    def inputs(self) -> tuple[ModelInput, ...]:
        """The inputs of the model."""
        return model_inputs(self.model)

    @cached_property
    def purpose(self) -> Purpose:
        """What the outputs show of what it is for."""
        return purpose_of(self.model)

    @property
    def images(self) -> ModelInput:
        """The only input that takes data. Raises ModelError where there are several."""
        needed = [value for value in self.inputs if not value.optional]
        if len(needed) != 1:
            raise ModelError(f"{self.called} has {len(needed)} inputs: images are for models with one.")
        return needed[0]

    def output(self, feed: Feed, samples: int) -> Array:
        """The first float output of a run, [samples, ...]. Raises DataError, and ModelError where it has none."""
        floats = [array for array in run_feed(self.session, feed) if getattr(array, "dtype", np.dtype("O")).kind == "f"]
        if not floats or floats[0].ndim == 0:
            raise ModelError(f"{self.called} has no output of floats to judge.")
        if floats[0].shape[0] != samples:
            text = f"gives {floats[0].shape[0]} rows for {samples} samples"
            raise DataError(f"{self.called} {text}: use {named('batch_size')} 1, or a model with a batch.")
        return floats[0]


@dataclass(frozen=True, kw_only=True)
class ImageBatches:
    """Batches of `size` images for an input; the last one is filled up where the model has fixed their number."""

    images: ImageArray
    name: str
    size: int
    fixed: bool

    @property
    def total(self) -> int:
        """How many batches there are."""
        return -(-self.images.shape[0] // self.size)

    def read(self, first: int, last: int, note: Note = quiet_note) -> Iterator[Feed]:
        """The batches `first` to `last` - 1. Raises DataError for a file that cannot be read."""
        for block in self.images.blocks(self.size, min(last * self.size, self.images.shape[0]), first * self.size):
            missing = self.size - len(block) if self.fixed else 0
            yield {self.name: np.concatenate([block, np.repeat(block[-1:], missing, axis=0)]) if missing else block}


@dataclass(frozen=True, kw_only=True, eq=False)
class TopClasses:
    """What counts of the scores of a sample: the number of classes, and the best of them, int64[5] or fewer."""

    classes: int
    best: Int64s

    @classmethod
    def of(cls, scores: Array, called: str) -> TopClasses:
        """Of the scores that the model with this name gives for a sample, [classes]; of equal ones the first class
        counts. Raises DataError for something else than scores of classes, and for NaN, which has no rank."""
        if any(dim != 1 for dim in scores.shape[1:]) or scores.size < 2:
            raise DataError(f"{called} gives {list(scores.shape)} for a sample, which are no scores of classes.")
        if np.isnan(scores).any():
            raise DataError(
                f"{called} gives NaN for a sample, so that it cannot be judged: check the model and the data."
            )
        return cls(classes=scores.size, best=np.argsort(-scores.reshape(-1), kind="stable")[:_BEST])


def whole_row(row: Array, called: str) -> Array:
    """What counts of a row of any other output: all of it."""
    return row


@dataclass(frozen=True, kw_only=True)
class Outputs(Generic[Row]):
    """What counts of what a model gives for samples, for each, and what was assumed of the samples."""

    rows: list[Row]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class RunFeeds(Generic[Row]):
    """The work of running a model. Its items are feeds, or the numbers of some of `feeds`.

    count: how many samples are in a feed. keep: what of a row of the output counts, for the model with a name.
    """

    model: JudgedModel
    count: Callable[[Feed], int]
    keep: Callable[[Array, str], Row]
    feeds: NumberedFeeds | None = None

    @contextmanager
    def open(self) -> Iterator[Callable[[Feed | int], Outputs[Row]]]:
        yield self._outputs

    def _outputs(self, item: Feed | int) -> Outputs[Row]:
        if not isinstance(item, int):
            return Outputs(rows=self._rows(item))
        assert self.feeds is not None
        notes: list[str] = []
        feeds = self.feeds.read(item, item + 1, notes.append)
        rows = [row for feed in feeds for row in self._rows(feed)]
        return Outputs(rows=rows, notes=tuple(notes))

    def _rows(self, feed: Feed) -> list[Row]:
        return [self.keep(row, self.model.called) for row in self.model.output(feed, self.count(feed))]

    def run(self, feeds: Iterable[Feed], engine: Engine) -> Iterator[Outputs[Row]]:
        """The outputs for each feed, in their order. `feeds`: those that are not known by numbers."""
        items: Iterable[Feed | int] = feeds if self.feeds is None else range(self.feeds.total)
        with closing(engine.map(self, items)) as outcomes:
            yield from outcomes


def only_rows(feed: Feed) -> int:
    """How many rows the only array of a feed has."""
    (array,) = feed.values()
    return len(array)
