"""What an observer makes of the tensors that it sees: one collector for each kind of task."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from amct_onnx.engine.processors import processors
from amct_onnx.errors import CalibrationError, listed
from amct_onnx.graph.instrument.observers import DataType, Observer, Stamp
from amct_onnx.numerics.activations.solve import solve_activation
from amct_onnx.numerics.arrays import Floats
from amct_onnx.numerics.channel_factors import dmq_factors
from amct_onnx.numerics.grid import QParams, half_precision_scale
from amct_onnx.numerics.im2col import LayerColumns, sample_columns
from amct_onnx.numerics.settings import ActivationSettings
from amct_onnx.numerics.statistics.accumulator import new_accumulator
from amct_onnx.numerics.statistics.fills import fill_value
from amct_onnx.numerics.statistics.histogram import DyadicHistogram
from amct_onnx.numerics.statistics.moments import Moments, SecondMoments
from amct_onnx.run.threads import one_blas_thread
from amct_onnx.values.observer_tasks import Balance, Comparison

_log = logging.getLogger("amct_onnx.Calibration")

# Columns of a layer that a whole calibration takes, and the least number of a batch.
_COLUMNS = 1 << 14
_COLUMNS_OF_A_BATCH = 64
# Threads that count one tensor at most; each takes a table of its own, in all layers of the model.
_MOST_THREADS = 4


class Collector(Protocol):
    """Merges batches into a statistic, and solves it after the last one. Its memory does not grow with the batches."""

    def add(self, x: Floats) -> None:
        """Merge one batch, which has elements and is valid during the call only. Raises AmctError or ValueError."""

    def join(self, other: Any) -> None:
        """Take in what a collector of the same task has seen of another tensor. Raises ValueError."""
        raise ValueError("only activations have joint factors")

    def solve(self, stamp: Stamp) -> dict[str, Any] | SecondMoments:
        """The fields of `LayerRecord` that each layer of an observer gets, at least one; or what goes to the file of
        moments beside the record. Raises like `add`."""


def make_collector(observer: Observer) -> Collector:
    """A new collector for the task of `observer`."""
    if isinstance(observer.task, Balance):
        return _BalanceCollector(observer.task)
    if isinstance(observer.task, Comparison):
        raise CalibrationError("a comparison fills no record")  # `observe` hands it to observe.comparison
    if isinstance(observer.task, LayerColumns):
        return _MomentsCollector(observer.task, observer.batch_num)
    return _ActivationCollector(observer.task, observer)


class _ActivationCollector(Collector):
    """IFMR and HFMG: a histogram of the tensor, solved into one scale and offset."""

    def __init__(self, settings: ActivationSettings, observer: Observer) -> None:
        self._settings, self._observer = settings, observer
        self._own = new_accumulator(min(processors(), _MOST_THREADS))
        self._joined = DyadicHistogram.empty()
        self._told = False

    def add(self, x: Floats) -> None:
        self._own.add(x)
        if self._own.wrong:
            raise CalibrationError(self._own.wrong)

    def join(self, other: _ActivationCollector) -> None:
        self._joined = self._joined.merge(other._histogram())

    def _histogram(self) -> DyadicHistogram:
        return self._own.histogram().merge(self._joined)

    def solve(self, stamp: Stamp) -> dict[str, Any]:
        histogram, mode = self._histogram(), self._observer.precision_mode
        params = solve_activation(histogram, self._settings)
        self._tell(fill_value(histogram), histogram)
        if mode != "FORCE_FP16_QUANT":
            return activation_factors(params, stamp, self._observer.op_data_type)
        params = replace(params, scale=half_precision_scale(params.scale))
        return activation_factors(params, stamp, self._observer.op_data_type) | {"fakequant_precision_mode": mode}

    def _tell(self, fill: float | None, histogram: DyadicHistogram) -> None:
        """Say once that a fill value leaves nothing of the data, or that they are constant: AMCT quantizes it."""
        constant = histogram.minimum == histogram.maximum and histogram.counts.sum() > 1
        if self._told or (fill is None and not constant):
            return
        self._told = True
        layers = listed([f'"{layer}"' for layer in self._observer.layers], 3)
        if constant:
            what = "zero" if histogram.maximum == 0 else f"constant, {histogram.maximum:.4g},"
            text = "Layer %s: its input is %s in all batches, which calibrates nothing: check the calibration data."
            _log.warning(text, layers, what)
        else:
            text = "Layer %s: its input holds a fill value, %.3g, beside which int8 has nothing left: add it to"
            _log.warning(f"{text} skip_layers.", layers, fill)


class _BalanceCollector(Collector):
    """DMQBalancer: the largest magnitude of each channel."""

    def __init__(self, task: Balance) -> None:
        self._task = task
        self._maxima = np.zeros(len(task.weight_maxima), np.float32)

    def add(self, x: Floats) -> None:
        axis, channels = self._task.axis, self._maxima.size
        if x.ndim < 2:  # the constant that balances it, [1, channels], would give it a dimension more
            raise CalibrationError(f"a tensor of shape {list(x.shape)} cannot be balanced, take dmq_balancer away")
        if not -x.ndim <= axis < x.ndim or x.shape[axis] != channels:
            raise CalibrationError(f"a tensor of shape {list(x.shape)} has no {channels} channels on axis {axis}")
        rows = np.moveaxis(x, axis, 0).reshape(channels, -1)
        maxima = np.maximum(rows.max(axis=1), -rows.min(axis=1))  # no copy of the tensor, as abs() would make
        if not np.isfinite(maxima).all():
            raise CalibrationError("the tensor holds NaN or Inf: check the model and the calibration data")
        self._maxima = np.maximum(self._maxima, maxima)

    def solve(self, stamp: Stamp) -> dict[str, Any]:
        factors = dmq_factors(self._maxima, self._task.weight_maxima, self._task.strength)
        return {"tensor_balance_factor": tuple(float(f) for f in factors)}


class _MomentsCollector(Collector):
    """Moments: the Gram matrix of the columns that a layer reads."""

    def __init__(self, task: LayerColumns, batch_num: int) -> None:
        self._task = task
        self._limit = max(_COLUMNS_OF_A_BATCH, -(-_COLUMNS // batch_num))
        self._statistic = Moments()

    def add(self, x: Floats) -> None:
        with one_blas_thread():
            for columns in sample_columns(x, self._task, self._limit):
                self._statistic = self._statistic.merge(Moments.of(columns))

    def solve(self, stamp: Stamp) -> SecondMoments:
        return self._statistic.solve()


def activation_factors(params: QParams, stamp: Stamp, op_data_type: DataType) -> dict[str, Any]:
    """The fields of a record for a tensor, by what it is to its layer (amct_formats.md: Record fields)."""
    scale, offset, kind = float(params.scale[0]), int(params.zero_point[0]), f"INT{params.spec.bits}"
    if stamp == "weight":
        return {"scale_w": (scale,), "offset_w": (offset,), "wts_type": kind}
    if stamp == "initial_h":
        return {"scale_h": scale, "offset_h": offset}
    return {"scale_d": scale, "offset_d": offset, "act_type": kind, "op_data_type": op_data_type}
