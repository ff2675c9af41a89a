"""A float model that can be run before anything else is known of it: how its data are understood is tried on it."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from amct_onnx.errors import ModelError
from amct_onnx.graph.rows import is_rowwise
from amct_onnx.numerics.arrays import Array, Feed
from amct_onnx.run.providers import providers_here
from amct_onnx.run.session import open_session, quiet, run_feed


class FloatNetwork:
    """Runs `model`, which is left as it is. The session opens with the first run, and little is optimised in it."""

    def __init__(self, model: ir.Model) -> None:
        self._model = model
        self._session: ort.InferenceSession | None = None
        self._broken: ModelError | None = None
        self._providers = providers_here()  # data may be read, and so this be called, on another thread

    def __call__(self, feed: Feed) -> dict[str, Array]:
        """The outputs that are tensors, by name. Raises ModelError, or DataError for a feed that it does not take."""
        if self._broken is not None:
            raise self._broken
        try:
            session = self._session = self._session or self._open()
        except ModelError as error:
            self._broken = error
            raise
        names = [output.name for output in session.get_outputs()]
        outputs = zip(names, run_feed(session, feed), strict=True)
        return {name: array for name, array in outputs if isinstance(array, np.ndarray)}

    def _open(self) -> ort.InferenceSession:
        options = quiet()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.enable_mem_pattern = False
        options.add_session_config_entry("session.disable_prepacking", "1")
        return open_session(self._model, options, providers=self._providers)

    def is_rowwise(self, inputs: Collection[str]) -> bool:
        """Whether the operators show that axis 0 of these inputs is a batch, whose rows are computed one by one."""
        return is_rowwise(self._model, inputs)

    def close(self) -> None:
        """Give the memory of the session back. A later run opens another one."""
        self._session = None
