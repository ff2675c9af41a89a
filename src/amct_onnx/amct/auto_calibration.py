"""accuracy_based_auto_calibration on ONNX models: one calibration, one ranking, and a lowering for each trial.

The models that the evaluator sees are written to a folder `temp<time>` beside the results, which goes when the search
ends, however it ends. Results are written once, when the answer is known; nothing else is written or deleted.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from amct_onnx.amct.auto_control import CONFIG_FILE, AccuracyBasedAutoCalibrationBase
from amct_onnx.amct.calibration_model import quantize_model
from amct_onnx.amct.cosine_similarity import CosineSimilaritySensitivity
from amct_onnx.amct.interfaces import AutoCalibrationEvaluatorBase, AutoCalibrationStrategyBase, SensitivityBase
from amct_onnx.amct.rollback import CalibratedModel, ConfiguredModel
from amct_onnx.errors import CalibrationError, OutputError, RecordError, SearchError
from amct_onnx.files.config_json import format_config
from amct_onnx.files.onnx_file import save_model_file
from amct_onnx.files.record import read_notes
from amct_onnx.files.whole_files import DIR_MODE, make_folder, write_atomic
from amct_onnx.graph.instrument.compare import compare_layers, mark_outputs
from amct_onnx.graph.instrument.observers import Observer
from amct_onnx.numerics.arrays import Floats
from amct_onnx.observe.calibration import begin
from amct_onnx.observe.comparison import comparing
from amct_onnx.progress import show_on_terminal, shown_on_terminal
from amct_onnx.targets.ascend_model import AscendModel, write_ascend_files
from amct_onnx.values.observer_tasks import Comparison

_BEIJING = timezone(timedelta(hours=8))  # AMCT's clock


class OnnxAutoCalibration(AccuracyBasedAutoCalibrationBase):
    """The search for one ONNX model."""

    _folder: str  # of what is needed during the search, from when it begins
    _calibrated: CalibratedModel  # from when the first model is evaluated, before any other

    def __init__(
        self,
        model_file: str,
        evaluator: AutoCalibrationEvaluatorBase,
        config_file: str,
        record_file: str,
        save_dir: str,
        strategy: AutoCalibrationStrategyBase,
        sensitivity: SensitivityBase,
    ) -> None:
        super().__init__(record_file, config_file, save_dir, evaluator, strategy, sensitivity)
        self.model_file = os.path.realpath(model_file)
        if not os.path.isfile(self.config_file):
            raise SearchError(
                f"Can not find the config_file at {self.config_file}: create it with create_quant_config."
            )
        self._configured = ConfiguredModel.read(self.model_file, self.config_file)

    def run(self) -> None:
        """Search in a temporary folder."""
        with _temporary_folder(os.path.dirname(self.save_dir)) as self._folder:
            super().run()

    def get_original_accuracy(self) -> Any:
        return self.evaluator.evaluate(self.model_file)

    def get_global_quant_accuracy(self) -> Any:
        with shown_on_terminal("calibrate"):
            self._calibrated = self._calibrate()
        with shown_on_terminal("evaluate the model with all layers quantized"):
            return self._evaluate(self._calibrated.quantized)

    def get_ranking_info(self) -> dict[str, float]:
        """Run the calibration data through a model that compares each layer before and after quantization."""
        path, layers = self._path("ranking_model.onnx"), self._configured.layers
        _write_ranking_model(self._calibrated, path)
        with comparing(path, self._measure, self._configured.settings.batch_num) as comparisons:
            self.evaluator.calibration(path)
        means = comparisons.means()
        lacking = [layer for layer in layers if layer not in means]
        if lacking:
            raise CalibrationError(
                f"{type(self.evaluator).__name__}.calibration() ran no batch in this process when it was called for "
                f'the second time, to rank the layers: nothing is known of layer "{lacking[0]}". Run the same batches '
                "each time."
            )
        return {layer: means[layer] for layer in layers}

    def roll_back_and_evaluate_model(self, roll_back_config: Mapping[str, bool]) -> Any:
        return self._evaluate(self._calibrated.without(_rolled_back(roll_back_config)))

    def save_results(self, roll_back_config: Mapping[str, bool]) -> None:
        rolled_back = _rolled_back(roll_back_config)
        write_ascend_files(self._calibrated.without(rolled_back), self.save_dir)
        self._calibrated.write_record(self.record_file, rolled_back)
        config = format_config(self._configured.settings_without(rolled_back), self._configured.source.facts)
        write_atomic(Path(os.path.dirname(self.save_dir), CONFIG_FILE), config)

    def _measure(self, data: Floats, other: Floats) -> Any:
        if type(self.sensitivity) is CosineSimilaritySensitivity:
            return self.sensitivity.compare(data, other)
        return self.sensitivity.compare(data.copy(), other.copy())  # a user's may keep or change them

    def _path(self, name: str) -> str:
        return os.path.join(self._folder, name)

    def _calibrate(self) -> CalibratedModel:
        """Prepare the model with all layers, let the evaluator run it, and read what came of it."""
        modified, record = self._path("modified_model.onnx"), self._path("record.txt")
        balanced = any(layer.dmq_strength is not None for layer in self._configured.settings.layers.values())
        if balanced and os.path.isfile(self.record_file):
            shutil.copyfile(self.record_file, record)  # quantize_preprocess has left its factors there
        try:
            quantize_model(self.config_file, self.model_file, modified, record)
        except RecordError as error:  # the user knows the file of which this is a copy
            raise type(error)(str(error).replace(record, self.record_file)) from error
        try:
            self.evaluator.calibration(modified)
            try:
                return CalibratedModel.read(self._configured, modified, record, progress=show_on_terminal)
            except RecordError as error:
                raise self._explain(error, record) from error
        finally:
            begin(record)  # or the end of the process would write the record again

    def _explain(self, error: RecordError, record: str) -> Exception:
        notes = read_notes(record)
        if any(note.error for note in notes):
            return error
        needed = self._configured.settings.batch_num
        seen = min((note.seen for note in notes), default=0)
        return CalibrationError(
            f"{type(self.evaluator).__name__}.calibration() ran {seen} of the {needed} batches that config_file asks "
            f"for, {needed - seen} are missing: run more batches, in this process, or lower batch_num."
        )

    def _evaluate(self, quantized: AscendModel) -> Any:
        prefix = os.path.basename(self.save_dir)
        path = self._path(f"{prefix}_fake_quant_model.onnx" if prefix else "fake_quant_model.onnx")
        save_model_file(quantized.simulation(), path)
        return self.evaluator.evaluate(path)


def _rolled_back(roll_back_config: Mapping[str, bool]) -> frozenset[str]:
    return frozenset(layer for layer, quantized in roll_back_config.items() if not quantized)


def _write_ranking_model(calibrated: CalibratedModel, path: str) -> None:
    """Write the model that tells how much each layer suffers from quantization; it compares under the key `path`.

    In it the float network runs, and beside each of its layers the same layer as it will be deployed, on the same
    input. So a layer answers for its own error only. The model is for one run in the process that compares.
    """
    prepared, configured = calibrated.prepared(), calibrated.configured
    model = configured.source.fuse(configured.settings).model
    marks = mark_outputs(prepared, configured.layers, model)
    quantized = calibrated.assemble(prepared).simulation()
    observer = Observer(
        layers=(),
        task=Comparison(),
        batch_num=configured.settings.batch_num,
        record_path=path,
        observers=len(configured.layers),
    )
    compare_layers(model, quantized, marks, observer)
    save_model_file(model, path)


@contextmanager
def _temporary_folder(parent: str) -> Iterator[str]:
    """A new folder temp<yyyymmddHHMMSSffffff> in `parent`, removed with what is in it. Raises OutputError."""
    folder = Path(parent)
    try:
        make_folder(folder)
        while True:
            path = folder / f"temp{datetime.now(tz=_BEIJING):%Y%m%d%H%M%S%f}"
            try:
                path.mkdir(mode=DIR_MODE)
                break
            except FileExistsError:
                continue
    except OSError as error:
        text = f"{folder}: no folder for temporary files can be made there ({error.strerror or error})"
        raise OutputError(f"{text}; choose a save_dir that is writable.") from error
    try:
        yield str(path)
    finally:
        shutil.rmtree(path, ignore_errors=True)
