"""How far the outputs of a quantized model are from those of the float model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from amct_onnx.measure.rounded_network import FLOAT_TYPES, distance, finite, power
from amct_onnx.numerics.arrays import Array, Doubles, Feed
from amct_onnx.numerics.sample_noise import pooled
from amct_onnx.run.saturation import open_exact_session
from amct_onnx.run.session import open_session, quiet, run_feed


class OutputNoise:
    """Compares models with the float `model` on `feeds`; int8 products are exact on CPUs where they saturate, too.

    outputs: the names of the float outputs. signal: their powers for each feed, float64[feeds, outputs]. Raises
    DataError where it does not take them.
    """

    def __init__(self, model: ir.Model, feeds: Sequence[Feed]) -> None:
        session = open_session(model, quiet())
        floats = [(place, out.name) for place, out in enumerate(session.get_outputs()) if out.type in FLOAT_TYPES]
        self._places = [place for place, _ in floats]
        self.outputs = tuple(name for _, name in floats)
        self._feeds = feeds
        self._exact = [self._run(session, feed) for feed in feeds]
        self.signal: Doubles = np.array([[power(array) for array in arrays] for arrays in self._exact])

    def noise(self, quantized: ir.Model) -> float:
        """Noise over signal of the outputs of a model of standard operators, the mean over outputs."""
        return self.noise_of(open_exact_session(quantized))

    def noise_of(self, session: ort.InferenceSession) -> float:
        """The same of a session. Raises DataError."""
        return float(self.by_output(session).mean()) if self._places else 0.0

    def by_output(self, session: ort.InferenceSession) -> Doubles:
        """The same of each of `outputs`, float64. One that is zero throughout counts as 1. Raises DataError."""
        return pooled(self.by_sample(session), self.signal)

    def by_sample(self, session: ort.InferenceSession) -> Doubles:
        """The noise of each feed and output, float64[feeds, outputs], beside which `signal` stands."""
        found = [
            [distance(one, two) for one, two in zip(self._run(session, feed), exact, strict=True)]
            for feed, exact in zip(self._feeds, self._exact, strict=True)
        ]
        return np.array(found, np.float64).reshape(len(found), len(self._places))

    def _run(self, session: ort.InferenceSession, feed: Feed) -> list[Array]:
        outputs = run_feed(session, feed)
        return [finite(outputs[place]) for place in self._places]
