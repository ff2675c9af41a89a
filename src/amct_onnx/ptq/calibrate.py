"""One call from a float model and data to a quantized model."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy.typing as npt

from amct_onnx.data.batches import BatchRule
from amct_onnx.data.open_data import open_data
from amct_onnx.data.options import DataOptions
from amct_onnx.errors import ModelError, StatisticsError
from amct_onnx.graph.digest import model_digest
from amct_onnx.graph.inputs import ModelInput, model_inputs
from amct_onnx.numerics.settings import ActivationSolver, Settings
from amct_onnx.numerics.statistics.by_tensor import Statistics
from amct_onnx.observe.histograms import collect_statistics
from amct_onnx.progress import Progress, silent
from amct_onnx.ptq.float_model import FloatSource
from amct_onnx.ptq.quantized_model import QuantizedModel, check_target
from amct_onnx.ptq.recipe.first_samples import PLANS, Front
from amct_onnx.ptq.recipe.steps import Recipe
from amct_onnx.ptq.request import make_choice
from amct_onnx.ptq.weight_only import check_weight_only, quantize_weights
from amct_onnx.values.findings import Effort, check_effort

Feed = Mapping[str, npt.NDArray[Any]]
_DEFAULT = DataOptions()


def quantize(
    model: Any,
    data: Any,
    *,
    target: str = "onnxruntime",
    settings: Settings | str | os.PathLike[str] | None = None,
    algorithm: str | ActivationSolver | None = None,
    skip_layers: Collection[str] = (),
    reduce_range: bool = False,
    effort: Effort = "default",
    weight_only: int | None = None,
    block_size: int = 32,
    data_options: DataOptions = _DEFAULT,
    progress: Progress | None = None,
) -> QuantizedModel:
    """`amct_onnx.quantize` without a search for mixed precision: its docstring has the arguments and errors."""
    check_target(target)
    plan = PLANS[check_effort(effort)]
    if weight_only is not None:
        check_weight_only(weight_only, block_size, target, data)
    source = FloatSource.open(model)
    choice = make_choice(
        settings=source.read_settings(settings),
        algorithm=algorithm,
        skip_layers=skip_layers,
        reduce_range=reduce_range,
        nodes=source.facts.nodes,
    )
    if weight_only is not None:
        feeds = None if data is None or effort == "fast" else open_data(data, model_inputs(source.fused), data_options)
        return quantize_weights(
            source, feeds, choice=choice, bits=weight_only, block_size=block_size, progress=progress or silent
        )
    if isinstance(data, Statistics):
        source = source.equalized(data.factors)
        if data.digest != model_digest(source.fused):
            raise StatisticsError("The statistics belong to another model: calibrate this one with data.")
        result = QuantizedModel(source=source, target=target, choice=choice, statistics=data)
        result.solve()
        return result
    inputs = model_inputs(source.fused)
    if not source.observed:
        raise ModelError(
            f"{source.name} has no layer that can be quantized: it needs convolutions or products in float."
        )
    feeds, told = open_data(data, inputs, data_options), progress or silent
    front = Front(iter(feeds), inputs, plan)
    recipe = Recipe(source=source, target=target, choice=choice, front=front, progress=told)
    source, tuning = recipe.prepare()
    watched = _Watched(front, feeds.total, inputs, told)
    tensors = collect_statistics(source.fused, source.observed, watched)
    statistics = Statistics(
        tensors=tensors,
        samples=watched.samples,
        digest=model_digest(source.fused),
        factors=source.factors,
    )
    result = QuantizedModel(
        source=source,
        target=target,
        choice=choice,
        statistics=statistics,
        assumptions=tuple(feeds.assumptions),
        sample=watched.first,
        tuning=tuning,
        known=recipe.known,
    )
    result.solve()
    return recipe.tune(result)


class _Watched:
    """Feeds, `total` of them if that is known; keeps the first sample, counts the samples and shows progress."""

    def __init__(
        self, feeds: Iterable[Feed], total: int | None, inputs: Sequence[ModelInput], progress: Progress
    ) -> None:
        self._feeds, self._total, self._progress = feeds, total, progress
        self._rule = BatchRule.of(inputs)
        self.first: Feed | None = None
        self.samples = 0

    def __iter__(self) -> Iterator[Feed]:
        total = self._total
        for number, feed in enumerate(self._feeds):
            if self.first is None:
                self.first = self._rule.sample(feed, 0)
            yield feed
            self.samples += max((len(array) for array in feed.values() if array.ndim), default=1)
            self._progress("calibration", (number + 1) / total if total else 0.0)
