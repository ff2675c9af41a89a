"""The Python operators behind amct.customop.IFMR and HFMG, and AMCT_SO, the session options that know them.

An operator's body must not raise: an exception inside it ends the process. So it is total; what goes wrong is parked
in the calibration's state, written to the record as a note, and raised by `save_model`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
from onnxruntime_extensions import PyCustomOpDef, get_library_path, onnx_op

from amct_onnx.graph.layers import OBSERVER_DOMAIN
from amct_onnx.runtime.calibration import observe

_INT, _FLOAT, _STRING = PyCustomOpDef.dt_int64, PyCustomOpDef.dt_float, PyCustomOpDef.dt_string
_COMMON = {
    "input_stamp": _STRING,
    "batch_num": _INT,
    "num_bits": _INT,
    "with_offset": _INT,
    "record_file_path": _STRING,
    "object_layers": _STRING,
    "observers": _INT,
}
_IFMR = ("start_ratio", "end_ratio", "step", "max_percentile", "min_percentile")
_NOTHING = np.zeros(1, np.float32)


def _declare(op_type: str, attributes: dict[str, int]) -> None:
    def body(x: npt.NDArray[np.float32], **values: Any) -> npt.NDArray[np.float32]:
        observe(op_type, x, values)
        return _NOTHING

    onnx_op(
        op_type=f"{OBSERVER_DOMAIN}::{op_type}",
        inputs=[PyCustomOpDef.dt_float],
        outputs=[PyCustomOpDef.dt_float],
        attrs=_COMMON | attributes,
    )(body)


_declare("IFMR", dict.fromkeys(_IFMR, _FLOAT))
_declare("HFMG", {"nbins": _INT})


def session_options() -> onnxruntime.SessionOptions:
    """New session options on which the calibration operators are registered.

    Memory patterns are off: with them the runtime holds a second copy of all activations (95 MiB for MobileNetV2 in
    batches of 8) to save allocations that calibration does not notice.
    """
    options = onnxruntime.SessionOptions()
    options.enable_mem_pattern = False
    options.register_custom_ops_library(get_library_path())
    return options
