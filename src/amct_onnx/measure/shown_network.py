"""A network that gives chosen tensors beside its outputs, each as its nodes compute it: nothing is fused."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
import onnxruntime as ort

from amct_onnx.errors import DataError
from amct_onnx.graph.index import index_graph
from amct_onnx.numerics.arrays import Array, Feed
from amct_onnx.run.session import open_session, quiet, run_feed


class ShownNetwork:
    """A session of a copy of `model`, which shares its weights. `inputs` are the names of what it needs.

    tensors: names of tensors of the main graph. which: what messages call the model. Raises ModelError.
    """

    def __init__(self, model: ir.Model, tensors: Sequence[str], which: str) -> None:
        view = model.clone()
        values, known = index_graph(view).values, {value.name for value in view.graph.outputs}
        self._names = [name for name in dict.fromkeys(tensors) if values[name].producer() is not None]
        view.graph.outputs.extend(values[name] for name in self._names if name not in known)
        options = quiet()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.add_session_config_entry("session.x64quantprecision", "1")
        self._session = open_session(view, options, cannot=f"look into the {which} model", own_model=True)
        self.inputs = tuple(argument.name for argument in self._session.get_inputs())

    def run(self, feed: Feed) -> dict[str, Array]:
        """The tensors by name, inputs among them. Raises DataError."""
        missing = [name for name in self.inputs if name not in feed]
        if missing:
            raise DataError(f"The data have no array for the input {missing[0]!r}: give one for each input.")
        fed = {name: feed[name] for name in self.inputs}
        found = run_feed(self._session, fed, self._names) if self._names else []
        return {**fed, **dict(zip(self._names, found, strict=True))}
