"""Runs `amct_onnx calibration`: AMCT's three functions, and the batches between (amct_formats.md: Command line)."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import amct_onnx
from amct_onnx.cli.calibration_options import CalibrationCommand
from amct_onnx.cli.evaluator import calibrate, evaluator_script
from amct_onnx.data.raw_folders import BatchFiles, check_signature, find_batches
from amct_onnx.errors import AmctError, DataError
from amct_onnx.files.config_message import read_batch_num
from amct_onnx.files.onnx_file import load_model
from amct_onnx.files.whole_files import Mistakes, check_writable
from amct_onnx.graph.inputs import model_inputs
from amct_onnx.observe.run_batches import run_batches
from amct_onnx.progress import show_steps
from amct_onnx.targets.ascend_model import ascend_files

_log = logging.getLogger("amct_onnx.Command")


class _Files:
    """The files between the steps, in a private folder that is removed afterwards."""

    def __init__(self, folder: str) -> None:
        self.config = str(Path(folder, "config.json"))
        self.modified = str(Path(folder, "modified_model.onnx"))
        self.record = str(Path(folder, "record.txt"))


def run_calibration(command: CalibrationCommand) -> None:
    """Quantize `command.model` and write the three results at `command.save_path`. Raises AmctError."""
    check_writable(*ascend_files(command.save_path))
    with tempfile.TemporaryDirectory(prefix="amct_onnx_", ignore_cleanup_errors=True) as folder:
        files = _Files(folder)
        with _known_names(command, files):
            _calibrate(command, files)


def _calibrate(command: CalibrationCommand, files: _Files) -> None:
    batch_num = _configure(command, files)
    if command.evaluator is None:
        batches = _find_batches(command, batch_num)
        amct_onnx.quantize_model(files.config, command.model, files.modified, files.record)
        show_steps(run_batches(files.modified, batches, files.record), batch_num, "calibration")
    else:
        with evaluator_script(command.evaluator) as evaluator:  # a broken script is found before the work begins
            amct_onnx.quantize_model(files.config, command.model, files.modified, files.record)
            calibrate(evaluator, command.evaluator, files.modified)
    amct_onnx.save_model(files.modified, files.record, command.save_path)


def _configure(command: CalibrationCommand, files: _Files) -> int:
    """Write config.json and return the number of batches that calibration needs.

    It is batch_num of the .cfg, or else --batch_num, or else 1.
    """
    number = command.batch_num or 1
    amct_onnx.create_quant_config(
        files.config, command.model, batch_num=number, config_defination=command.calibration_config
    )
    if command.calibration_config is None:
        return number
    given = read_batch_num(command.calibration_config)
    if given is None:
        config = Path(files.config)
        document = json.loads(config.read_text(encoding="utf-8"))
        config.write_text(json.dumps(document | {"batch_num": number}), encoding="utf-8")
        return number
    if command.batch_num not in (None, given):
        text = "--batch_num %d is ignored: %s says batch_num : %d, and calibration runs that many batches."
        _log.warning(text, command.batch_num, command.calibration_config, given)
    return given


def _find_batches(command: CalibrationCommand, batch_num: int) -> BatchFiles:
    """The files of the batches. Raises one DataError with everything that is wrong with them."""
    mistakes = Mistakes(None)
    check_signature(command.inputs, model_inputs(load_model(command.model)), mistakes)
    batches = find_batches(command.inputs, batch_num, mistakes)
    mistakes.raise_any(DataError)
    if batches.available > batch_num:
        text = "Calibration runs %d of the %d batches in %s; --batch_num says how many."
        _log.info(text, batch_num, batches.available, ", ".join(entry.folder for entry in command.inputs))
    return batches


@contextmanager
def _known_names(command: CalibrationCommand, files: _Files) -> Iterator[None]:
    """Replace paths of the private folder in errors by names that the user knows, while the block runs."""
    names = {
        files.config: command.calibration_config or "the default configuration",
        files.modified: "the calibration model",
        files.record: "the record of this calibration",
    }
    try:
        yield
    except AmctError as error:
        text = str(error)
        for path, name in names.items():
            text = text.replace(path, name)
        if text == str(error):
            raise
        raise type(error)(text) from error
