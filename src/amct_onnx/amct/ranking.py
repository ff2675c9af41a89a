"""The model that tells how much each layer suffers from quantization (spec section 9.1).

In it the float network runs, and beside each of its layers the same layer as it will be deployed, on the same input.
So a layer answers for its own error only. The model is for one run in the process that compares.
"""

from __future__ import annotations

from collections.abc import Sequence

from amct_onnx.amct.rollback import CalibratedModel
from amct_onnx.files.onnx_file import save_model_file
from amct_onnx.graph.instrument.compare import compare_layers, mark_outputs
from amct_onnx.graph.instrument.observers import Observer
from amct_onnx.values.observer_tasks import Comparison


def write_ranking_model(calibrated: CalibratedModel, layers: Sequence[str], path: str) -> None:
    """Write the model in which each of `layers` is compared under the key `path`."""
    prepared = calibrated.prepared()
    configured = calibrated.configured
    model = configured.source.fuse(configured.settings).model
    marks = mark_outputs(prepared, layers, model)
    quantized = calibrated.assemble(prepared).simulation()
    observer = Observer(
        layers=(),
        task=Comparison(),
        batch_num=configured.settings.batch_num,
        record_path=path,
        observers=len(layers),
    )
    compare_layers(model, quantized, marks, observer)
    save_model_file(model, path)
