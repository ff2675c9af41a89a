"""Finds what is wrong with jobs before the first one runs: files that are missing, options that do not go together or
with the model, and results in each other's way."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

from amct_onnx.data.options import DataOptions
from amct_onnx.engine.open_engine import NAMES as ENGINES
from amct_onnx.errors import AmctError, ArgumentError, DataError, did_you_mean, listed
from amct_onnx.files.whole_files import Mistakes
from amct_onnx.graph.inputs import model_inputs
from amct_onnx.plan.float_model import FloatModel
from amct_onnx.ptq.aims import Aims
from amct_onnx.ptq.dynamic import check_dynamic
from amct_onnx.ptq.options import QuantizeOptions
from amct_onnx.ptq.quantized_model import check_results
from amct_onnx.ptq.request import make_request
from amct_onnx.ptq.weight_only import check_weight_only
from amct_onnx.targets.table import target_of
from amct_onnx.tools.batch.job import Job, is_local, paths_of
from amct_onnx.tools.batch.option_values import OPTIONS
from amct_onnx.tools.user_script import check_script
from amct_onnx.words import given


def check_jobs(jobs: Sequence[Job], mistakes: Mistakes) -> None:
    """Add what is wrong with jobs to `mistakes`."""
    owners: dict[str, Job] = {}
    for job in jobs:
        try:
            _check_options(job)
            check_results(job.written, job.model)
        except AmctError as error:
            mistakes.add(job.where, str(error))
        for path in paths_of(job.data):
            if is_local(path) and not os.path.exists(path):
                mistakes.add(job.where, f"data: {path} does not exist")
        for file in job.written:
            owner = owners.setdefault(os.path.realpath(file), job)
            if owner is not job:
                both = f"{owner.where} writes {file} as well" if owner.where != job.where else f"it writes {file} twice"
                mistakes.add(job.where, f"{both}: give another save_path, with {{name}} or {{model}} in it")
                break


def check_model(job: Job) -> None:
    """Raise AmctError for a model that cannot be quantized, and for options that it does not go with; no data are read.

    It takes a moment, and saves a night after which one sees that a layer has another name.
    """
    options = QuantizeOptions(**_of_kind(job, QuantizeOptions))
    source = FloatModel.open(job.model).prepared()
    request = make_request(source.facts, options.settings, options.algorithm, options.skip_layers, options.reduce_range)
    target_of(job.target).check(source, request)
    if job.data is not None:
        DataOptions(**_of_kind(job, DataOptions)).check_names(model_inputs(source.model))


def _of_kind(job: Job, kind: type) -> dict[str, Any]:
    """The options of a job that are fields of a class."""
    return {name: value for name, value in job.options.items() if OPTIONS[name].kind is kind}


def _check_options(job: Job) -> None:
    """Raise AmctError for options that do not go together."""
    options = QuantizeOptions(**_of_kind(job, QuantizeOptions))
    found = target_of(job.target)
    engine = options.engine
    if isinstance(engine, str) and (kind := engine.partition(":")[0]) not in ENGINES:
        raise ArgumentError(
            f"{given('engine', engine)} is unknown: {did_you_mean(kind, ENGINES, f'use {listed(ENGINES, 9)}')}"
        )
    if job.evaluator:
        check_script(job.evaluator)
    aims = {field.name: getattr(options, field.name) for field in dataclasses.fields(Aims)}
    search = Aims(**{**aims, "evaluator": _stand_in if job.evaluator else None}).wanted()
    if options.dynamic:
        check_dynamic(job.data, found, search=search, weight_only=options.weight_only, algorithm=options.algorithm)
    elif options.weight_only is not None:
        check_weight_only(options.weight_only, options.block_size, found, job.data, search=search)
    elif job.data is None:
        raise DataError("data are missing: give data, or say dynamic = true")


def _stand_in(_: object) -> float:
    """In the place of the evaluator, whose script runs with its job."""
    return 0.0
