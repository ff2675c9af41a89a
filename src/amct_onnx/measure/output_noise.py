"""How far the outputs of a quantized model are from those of the float model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from amct_onnx.measure.rounded_network import FLOAT_TYPES, distance, power
from amct_onnx.numerics.arrays import Array, Doubles, Feed
from amct_onnx.run.session import open_exact_session, open_session, quiet, run_feed


class OutputNoise:
    """Compares models with the float `model` on `feeds`; int8 products are exact on CPUs where they saturate, too.

    outputs: the names of the float outputs. Raises DataError where it does not take them.
    """

    def __init__(self, model: ir.Model, feeds: Sequence[Feed]) -> None:
        session = open_session(model, quiet())
        floats = [(place, out.name) for place, out in enumerate(session.get_outputs()) if out.type in FLOAT_TYPES]
        self._places = [place for place, _ in floats]
        self.outputs = tuple(name for _, name in floats)
        self._feeds = feeds
        self._exact = [self._run(session, feed) for feed in feeds]
        self._signal = np.array([[power(array) for array in arrays] for arrays in self._exact]).sum(axis=0)

    def noise(self, quantized: ir.Model) -> float:
        """Noise over signal of the outputs of a model of standard operators, the mean over outputs."""
        return self.noise_of(open_exact_session(quantized))

    def noise_of(self, session: ort.InferenceSession) -> float:
        """The same of a session. Raises DataError."""
        return float(self.by_output(session).mean()) if self._places else 0.0

    def by_output(self, session: ort.InferenceSession) -> Doubles:
        """The same of each of `outputs`, float64. One that is zero throughout counts as 1. Raises DataError."""
        noise = np.zeros(len(self._places))
        for feed, exact in zip(self._feeds, self._exact, strict=True):
            noise += [distance(one, two) for one, two in zip(self._run(session, feed), exact, strict=True)]
        relative: Doubles = noise / np.where(self._signal > 0, self._signal, 1.0)
        return relative

    def _run(self, session: ort.InferenceSession, feed: Feed) -> list[Array]:
        outputs = run_feed(session, feed)
        return [finite(outputs[place]) for place in self._places]


def finite(array: Array) -> Array:
    """An output with 0 where it is NaN or infinite, as a masked score is: two such places are no noise."""
    finite = np.isfinite(array)
    return array if finite.all() else np.where(finite, array, array.dtype.type(0))
