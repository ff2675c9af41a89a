"""The evaluator of `amct_onnx calibration --evaluator ./src/evaluator.py`: it runs the calibration batches itself."""

from __future__ import annotations

import onnxruntime as ort

import amct_onnx as amct
from amct_onnx.common.cmd_line_utils import data_handler

BATCH_NUM = 1


class Evaluator:
    """Runs BATCH_NUM batches of data/calibration/ through a model."""

    def calibration(self, modified_model: str) -> None:
        """Run the calibration model; --batch_num must be the number of batches."""
        session = ort.InferenceSession(modified_model, amct.AMCT_SO)
        shapes = {"input": [16, 3, 224, 224]}
        for batch in data_handler.load_data(shapes, ["data/calibration/"], ["float32"], BATCH_NUM):
            session.run(None, batch)


customize_evaluator = Evaluator()
