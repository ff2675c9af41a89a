"""How far the outputs of a quantized model are from those of the float model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy.typing as npt
import onnx_ir as ir
import onnxruntime as ort

from amct_onnx.runtime.deployed import open_deployed
from amct_onnx.runtime.probe import signal_and_noise
from amct_onnx.runtime.session import QUIET, open_session

Feed = Mapping[str, npt.NDArray[Any]]


class Judge:
    """Compares models with the float `model` on `feeds`; int8 products are exact on CPUs where they saturate, too."""

    def __init__(self, model: ir.Model, feeds: Sequence[Feed]) -> None:
        self._reference, self._feeds = open_session(model, None), feeds

    def noise(self, quantized: ir.Model) -> float:
        """Noise over signal of the outputs of a model of standard operators, the mean over outputs."""
        options = ort.SessionOptions()
        options.log_severity_level = QUIET
        options.add_session_config_entry("session.x64quantprecision", "1")
        return signal_and_noise(self._reference, open_session(quantized, None, options), self._feeds)

    def noise_of_deployed(self, deploy: ir.Model) -> float:
        """The same of a deploy model of Ascend, which is used up."""
        return signal_and_noise(self._reference, open_deployed(deploy), self._feeds)
