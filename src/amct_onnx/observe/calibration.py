"""What calibration models have counted so far: one state for each record file, for all sessions and threads.

A batch merges into the statistic of its tensor; the last batch of the last tensor solves them all and writes the
record. What is unfinished when the process ends is written as notes, so that `save_model` can say in any process which
layers wait for how many batches.
"""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from amct_onnx.errors import AmctError, CalibrationError
from amct_onnx.files.moments_file import moments_path, write_moments
from amct_onnx.files.record import read_calibration, read_record, write_record
from amct_onnx.graph.instrument.observers import Observer, parse_observer
from amct_onnx.graph.instrument.shown_tensors import SHOW
from amct_onnx.numerics.arrays import Floats
from amct_onnx.numerics.statistics.moments import SecondMoments
from amct_onnx.observe import comparison, shown_tensors
from amct_onnx.observe.collectors import Collector, make_collector
from amct_onnx.values.layers import CalibrationNote, LayerRecord

EMPTY = "the tensor is empty in every batch: feed one in which it holds something, or add the layer to skip_layers"


@dataclass
class _Progress:
    """One observed tensor; `factors`, fields of a LayerRecord, or `moments` replace the collector once solved.

    The tensors of a joint group keep their collectors until all of them are counted: see `_solve_jointly`.
    """

    observer: Observer
    collector: Collector | None
    seen: int = 0
    held: bool = False  # one of the batches had elements
    solved: bool = False
    factors: dict[str, Any] = field(default_factory=dict)
    moments: SecondMoments | None = None
    error: str | None = None

    @property
    def complete(self) -> bool:
        return self.error is not None or (not self.observer.open_ended and self.seen >= self.observer.batch_num)

    def count(self, x: Floats) -> None:
        """Merge one batch; the last one (each one, if there is no last) solves the factors and drops the collector."""
        if self.collector is None:  # it was dropped when the tensor was complete
            return
        try:
            if x.size:  # a detector may find nothing in a batch: it counts, and adds nothing
                self.collector.add(x)
                self.held = True
            self.seen += 1
            if self.observer.open_ended and self.held:
                self.take(self.collector.solve(self.observer.stamp))
        except (AmctError, ValueError) as error:
            self.error = str(error)
        if self.complete and not self.observer.joint:
            _solve_jointly([self])

    def take(self, solved: dict[str, Any] | SecondMoments) -> None:
        """Keep what the collector made of all batches."""
        if isinstance(solved, SecondMoments):
            self.moments = solved
        else:
            self.factors = solved
        self.solved = True

    def notes(self) -> list[CalibrationNote]:
        """What is missing, for each layer; empty once solved."""
        if self.solved and self.error is None:
            return []
        needed = max(self.observer.batch_num, 1)
        error = self.error or (EMPTY if self.seen >= needed and not self.held else None)
        return [
            CalibrationNote(layer=layer, seen=self.seen, needed=needed, error=error) for layer in self.observer.layers
        ]

    def is_in(self, records: Mapping[str, LayerRecord]) -> bool:
        """The record holds what was solved here: nobody wrote it anew since."""
        found = (records.get(layer, LayerRecord()) for layer in self.observer.layers)
        return self.solved and all(
            getattr(record, name) == value for record in found for name, value in self.factors.items()
        )


def _solve_jointly(group: Sequence[_Progress]) -> None:
    """Factors for complete tensors from all that they saw together; if one has failed, so have the others."""
    error = next((progress.error for progress in group if progress.error is not None), None)
    if error is None and not any(progress.held for progress in group):
        error = EMPTY
    try:
        first, *others = (progress.collector for progress in group if progress.collector is not None)
        if error is None:
            for other in others:
                first.join(other)
            for progress in group:
                progress.take(first.solve(progress.observer.stamp))
    except (AmctError, ValueError) as reason:
        error = str(reason)
    for progress in group:
        progress.error, progress.collector = error, None
        progress.factors = {} if error is not None else progress.factors


class _Calibration:
    """All tensors that report to one record file."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.lock = threading.RLock()
        self._progress: dict[tuple[str, str, str], _Progress] = {}
        self._id = _calibration_id(path)
        self._signature = _signature(path)
        self._unsaved = False
        self._error: str | None = None
        self._foreign: str | None = None

    def add(self, op_type: str, x: Floats, attributes: Mapping[str, Any]) -> None:
        """Take one batch of one tensor. More than `batch_num` batches are ignored."""
        with self.lock:
            if self._was_replaced():
                self._progress.clear()
                self._error = None
                self._id = _calibration_id(self.path)
            self._foreign = self._describe_foreign(str(attributes["calibration"]))
            if self._foreign is not None:
                return
            key = op_type, str(attributes["input_stamp"]), str(attributes["object_layers"])
            progress = self._progress.get(key)
            if progress is None:
                observer = parse_observer(op_type, attributes)
                progress = self._progress[key] = _Progress(observer, make_collector(observer))
            if progress.complete:
                return
            progress.count(x)
            self._unsaved = True
            self._solve_joint_group(progress.observer)
            if len(self._progress) == progress.observer.observers and self._is_settled():
                self.flush()

    def _is_settled(self) -> bool:
        """No tensor waits for a batch; where every batch counts, all have seen equally many."""
        open_ended = {p.seen for p in self._progress.values() if p.observer.open_ended and p.error is None}
        return len(open_ended) <= 1 and all(p.complete or p.observer.open_ended for p in self._progress.values())

    def _solve_joint_group(self, observer: Observer) -> None:
        """Solve the joint group of `observer`, if it has one and all of its tensors are complete."""
        group = [p for p in self._progress.values() if observer.joint and p.observer.joint == observer.joint]
        if group and len(group) == observer.members and all(progress.complete for progress in group):
            _solve_jointly(group)

    def flush(self) -> None:
        """Write what is known to the record: the factors of finished layers, and notes on the others."""
        with self.lock:
            if not self._unsaved:
                return
            try:
                records = read_record(self.path)
                for progress in self._progress.values():
                    for layer in progress.observer.layers:
                        records[layer] = replace(records.get(layer, LayerRecord()), **progress.factors)
                self._write_moments()
                notes = [note for progress in self._progress.values() for note in progress.notes()]
                write_record(self.path, records, notes=notes, calibration=self._id)
                self._signature = _signature(self.path)
                self._unsaved = False
            except (AmctError, OSError) as error:
                self._error = str(error)

    def _write_moments(self) -> None:
        """Write all moments when the last tensor is complete: a complete record has its moments beside it."""
        ready = [p for p in self._progress.values() if p.moments is not None]
        if not ready or not all(p.complete for p in self._progress.values()):
            return
        moments = {p.observer.layers[0]: p.moments for p in ready if p.moments is not None}
        write_moments(moments_path(self.path), self._id, moments)
        for progress in ready:
            progress.moments = None  # they may be large, and are on the disk now

    def raise_parked(self) -> None:
        """Raise what went wrong inside an operator and could not be written down."""
        error = self._error or self._foreign
        if error is not None:
            raise CalibrationError(error)

    def park(self, error: BaseException) -> None:
        """Keep what went wrong inside an operator for `raise_parked`."""
        self._error = f"Calibration failed: {type(error).__name__}: {error}"

    def _describe_foreign(self, calibration: str) -> str | None:
        """What to do if the model that runs belongs to another quantize_model call than the record, None if not."""
        if not calibration or not self._id or calibration == self._id:
            return None
        return (
            f"{self.path} was begun by another quantize_model call than the calibration model that ran last (or by "
            "quantize_preprocess): run the model of the last call, or give each model a record file of its own"
        )

    def _was_replaced(self) -> bool:
        """Another quantize_model wrote the record since: what was counted here belongs to an earlier run."""
        signature = _signature(self.path)
        if signature == self._signature:
            return False
        self._signature = signature
        if _calibration_id(self.path) != self._id:
            return True
        try:
            records = read_record(self.path)
        except (AmctError, OSError):
            return True
        return not all(progress.is_in(records) for progress in self._progress.values())


def _calibration_id(path: str) -> str:
    try:
        return read_calibration(path)
    except (AmctError, OSError):
        return ""


def _signature(path: str) -> tuple[int, int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


# Operators that fill no record.
_OTHERS = {comparison.COMPARE: comparison.show, SHOW: shown_tensors.show}

_calibrations: dict[str, _Calibration] = {}
_registry_lock = threading.Lock()


def _calibration(path: str) -> _Calibration:
    with _registry_lock:
        if not _calibrations:
            atexit.register(_flush_all)
        if path not in _calibrations:  # making one reads the record: not in each call
            _calibrations[path] = _Calibration(path)
        return _calibrations[path]


def observe(op_type: str, x: Floats, attributes: Mapping[str, Any]) -> bool:
    """Body of a calibration operator: never raises. Whether Ctrl-C arrived in it, which the session's user awaits."""
    calibration = None
    try:
        if op_type in _OTHERS:
            _OTHERS[op_type](x, attributes)
            return False
        calibration = _calibration(str(attributes["record_file_path"]))
        calibration.add(op_type, x, attributes)
    except BaseException as error:  # an exception that leaves an operator ends the process
        if calibration is not None:
            calibration.park(error)
        return isinstance(error, KeyboardInterrupt)
    return False


def begin(record_path: str) -> None:
    """Forget what was counted for this record: `quantize_model` starts a new calibration."""
    with _registry_lock:
        _calibrations.pop(record_path, None)


def check(record_path: str) -> None:
    """Raise the CalibrationError that the operators that report to this record have parked, if any."""
    if (calibration := _calibrations.get(record_path)) is not None:
        calibration.raise_parked()


def finish(record_path: str) -> None:
    """Write what this process still holds for this record. Raises CalibrationError for a parked error."""
    if (calibration := _calibrations.get(record_path)) is not None:
        calibration.flush()
        calibration.raise_parked()


def _flush_all() -> None:
    for calibration in list(_calibrations.values()):
        calibration.flush()
