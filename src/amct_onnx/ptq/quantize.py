"""`quantize`: one call from a float model and data to a quantized model, with a target of accuracy if there is one."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from amct_onnx.data.data_source import DataSource, announcer
from amct_onnx.data.image_options import ImageOptions
from amct_onnx.data.open_data import open_data
from amct_onnx.data.options import DataOptions, OnBadData
from amct_onnx.engine.engine import Engine
from amct_onnx.errors import ArgumentError
from amct_onnx.files.state_folder import NO_STATE
from amct_onnx.graph.inputs import model_inputs
from amct_onnx.graph.outputs import purpose_of
from amct_onnx.numerics.arrays import Feed
from amct_onnx.numerics.settings import ActivationSolver, Settings
from amct_onnx.numerics.statistics.by_tensor import Statistics
from amct_onnx.options import documented
from amct_onnx.plan.float_model import FloatModel, FusedModel
from amct_onnx.progress import Progress, progress_of
from amct_onnx.ptq.aims import Aims
from amct_onnx.ptq.calibrate import calibrate, from_statistics, tell
from amct_onnx.ptq.dynamic import check_dynamic, quantize_dynamic
from amct_onnx.ptq.noise import warn_of_noise
from amct_onnx.ptq.options import Evaluator, QuantizeOptions
from amct_onnx.ptq.quantized_model import QuantizedModel
from amct_onnx.ptq.request import make_request
from amct_onnx.ptq.state_facts import opened_state
from amct_onnx.ptq.weight_only import METHODS, check_weight_only, quantize_weights
from amct_onnx.run.float_network import FloatNetwork
from amct_onnx.run.providers import checked_providers
from amct_onnx.run.saturation import saturates
from amct_onnx.run.workers import opened_workers
from amct_onnx.targets.table import target_of
from amct_onnx.values.findings import Effort, check_effort
from amct_onnx.words import either, given, named

_log = logging.getLogger("amct_onnx.Quantize")
_JUDGES = 16  # samples that the accuracy of a result is measured on
_SATURATED = "int8 kernels saturate on this CPU, and the search counts that; {} keeps it away"


@documented(QuantizeOptions, DataOptions)
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
    full_int8: bool = False,
    weight_only: int | None = None,
    block_size: int = 32,
    dynamic: bool = False,
    images: ImageOptions | str | None = None,
    batch_size: int | None = None,
    limit: int | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    dtypes: Mapping[str, str] | None = None,
    names: Mapping[str, str] | None = None,
    tokenizer: str | os.PathLike[str] | None = None,
    on_bad_data: OnBadData = "fail",
    progress: Progress | bool | None = None,
    evaluator: Evaluator | None = None,
    max_drop: float | None = None,
    target_accuracy: float | None = None,
    min_sqnr: float | None = None,
    max_slowdown: float | None = None,
    engine: str | Engine = "local",
    state: str | os.PathLike[str] | None = None,
    providers: Sequence[str | tuple[str, Mapping[str, Any]]] | None = None,
) -> QuantizedModel:
    """Calibrate `model` with `data` in one pass and quantize it.

    model: a path, an onnx.ModelProto or an onnx_ir.Model; it stays as it is.
    data: a folder of images, .npy, .npz, a folder of .npy, .npz or (with `shapes` and `dtypes`) .bin files; tar files
        as WebDataset writes them or parquet files with images, or a pattern of these; a URL that fsspec opens; an array
        [N, ...]; an iterable of arrays, tuples or {input: array}; a CalibrationDataReader; a torch DataLoader; a dict
        that gives each input a path, an array or an iterable of arrays; or the `Statistics` of an earlier call, and
        then nothing is run. The axes of an array of an iterable tell what it is: as many as the input has are what it
        takes in a run, one less is a sample without the axis of the batch. An array in the place of an iterable holds
        samples along axis 0; with one axis more than the input, what it takes in each run. Where axis 0 is no batch of
        the network, each feed is one sample, and `data` of the result says why.
    progress: called with what is being done and the share of it that is. None shows a bar on a terminal and in a
        notebook, and nothing elsewhere; False shows none.

    With one of `max_drop`, `target_accuracy` and `min_sqnr`, the precision is mixed: the layers that this target of
    accuracy takes stay in float, or get int16 activations for target ascend. They are as few and cheap ones as can be
    found with about ten evaluations. `precision` of the result tells what was tried, and whether the target is met.
    With `max_slowdown`, the nodes that make most of the noise do, as far as that time goes; the last of `steps` tells.

    Raises ArgumentError, ConfigError, ModelError, ModelFileError, FileMissingError, DataError, CalibrationError,
    EngineError, StateError.
    """
    data_options = DataOptions(
        images=images,
        batch_size=batch_size,
        limit=limit,
        shapes=shapes,
        dtypes=dtypes,
        names=names,
        tokenizer=tokenizer,
        on_bad_data=on_bad_data,
    )
    aims = Aims(
        evaluator=evaluator,
        max_drop=max_drop,
        target_accuracy=target_accuracy,
        min_sqnr=min_sqnr,
        max_slowdown=max_slowdown,
    )
    search = aims.wanted()
    if full_int8 and max_slowdown is not None:
        raise ArgumentError(
            f"{named('full_int8')} leaves nothing in float, and {named('max_slowdown')} does: give one of them."
        )
    found, told, chosen = target_of(target), progress_of(progress), checked_providers(providers)
    effort = check_effort(effort)
    if state is not None and (dynamic or weight_only is not None or isinstance(data, Statistics)):
        raise ArgumentError(f"{named('state')} keeps what a calibration has seen, and none is run here: leave it out.")
    if dynamic:
        check_dynamic(data, found, search=search, weight_only=weight_only, algorithm=algorithm)
    elif weight_only is not None:
        check_weight_only(weight_only, block_size, found, data, search=search)
    if search and isinstance(data, Statistics):
        raise ArgumentError(
            f"A search for mixed precision runs samples: give {either('data', '--data')}, and not their statistics."
        )
    source = FloatModel.open(model).prepared()
    tell(source.notes)
    request = make_request(source.facts, settings, algorithm, skip_layers, reduce_range)
    request = replace(request, full_int8=bool(full_int8))
    found.check(source, request)
    if dynamic:
        return quantize_dynamic(source, request=request, target=found)
    if isinstance(data, Statistics):
        return from_statistics(source, data, target=found, request=request)
    asked = {"target": target, "effort": effort, "request": request, "providers": chosen}
    asked |= {**vars(aims), **vars(data_options)}
    with opened_state(state, source, data, asked) as kept, opened_workers(engine, chosen) as workers:
        inputs, network, purpose = model_inputs(source.model), FloatNetwork(source.model), purpose_of(source.model)
        opened = partial(open_data, data, inputs, data_options, network, purpose, announcer(told))
        if weight_only is not None:
            return _quantize_weights(
                source,
                None if data is None else opened,
                effort=effort,
                quantized=partial(
                    quantize_weights,
                    request=request,
                    target=found,
                    bits=weight_only,
                    block_size=block_size,
                    methods=METHODS[effort],
                    progress=told,
                    engine=workers,
                ),
            )
        feeds = opened()
        tell([feeds.sorted_by_class] if feeds.sorted_by_class and effort != "fast" else [])
        calibrated = partial(
            calibrate,
            source,
            target=found,
            request=request,
            effort=effort,
            rule=feeds.rule,
            progress=told,
            engine=workers,
            state=kept,
        )
        if not search:
            by_number = kept or not workers.alone or feeds.skips
            run = calibrated(feeds, total=feeds.total, parts=feeds.parts if by_number else None)
            warn_of_noise(run.accuracy)
            return _with_skipped(replace(run, assumptions=feeds.assumptions), feeds)
        saturated = found.runs_here and not reduce_range and saturates()
        reached = aims.reached(
            partial(calibrated, total=feeds.total),
            feeds,
            source.model,
            (_SATURATED.format(given("reduce_range", True)),) if saturated else (),
            told,
            workers,
            kept or NO_STATE,
            by_number=bool(kept or not workers.alone),
        )
        return _with_skipped(reached, feeds)


def _with_skipped(run: QuantizedModel, feeds: DataSource) -> QuantizedModel:
    """`run`, which knows what could not be read of its data, and the user does."""
    if run.data is None:
        return run
    data = replace(run.data, skipped=run.data.skipped or feeds.skipped)
    feeds.tell(data.skipped, data.samples)
    return replace(run, data=data)


def _quantize_weights(
    source: FusedModel,
    opened: Callable[[], DataSource] | None,
    *,
    effort: Effort,
    quantized: Callable[[FusedModel, DataSource | None], QuantizedModel],
) -> QuantizedModel:
    """Weights in few bits, and what they are worth; "fast" looks at the data for that alone."""
    asks = effort != "fast"
    result = quantized(source, opened() if opened is not None and asks else None)
    if opened is not None and not asks:
        result = result.measured(_first_samples(opened()))
    warn_of_noise(result.accuracy)
    return result


def _first_samples(feeds: DataSource) -> list[Feed]:
    samples: list[Feed] = []
    for feed in feeds:
        samples += [
            feeds.rule.sample(feed, index) for index in range(min(feeds.rule.count(feed), _JUDGES - len(samples)))
        ]
        if len(samples) == _JUDGES:
            break
    return samples
