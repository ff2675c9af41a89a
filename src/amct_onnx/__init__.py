"""amct_onnx: post-training quantization of ONNX models, a drop-in replacement for Huawei's AMCT for ONNX.

    import amct_onnx as amct

    amct.create_quant_config("config.json", "model.onnx", batch_num=2)
    amct.quantize_model("config.json", "model.onnx", "modified.onnx", "record.txt")
    session = onnxruntime.InferenceSession("modified.onnx", amct.AMCT_SO)
    ...                                       # run batch_num batches
    amct.save_model("modified.onnx", "record.txt", "out/model")

Names load on first use: importing the package is fast and writes nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from amct_onnx import _deferred_sympy

if TYPE_CHECKING:
    import onnxruntime

    from amct_onnx._compat.api import (
        convert_qat_model,
        create_quant_config,
        quantize_model,
        quantize_preprocess,
        save_model,
    )
    from amct_onnx._compat.auto_calibration import accuracy_based_auto_calibration
    from amct_onnx.runtime.deployed import deployed_session

    AMCT_SO: onnxruntime.SessionOptions

__version__ = "0.1.0"

__all__ = [
    "AMCT_SO",
    "__version__",
    "accuracy_based_auto_calibration",
    "convert_qat_model",
    "create_quant_config",
    "deployed_session",
    "quantize_model",
    "quantize_preprocess",
    "save_model",
]


_deferred_sympy.install()

_API = ("convert_qat_model", "create_quant_config", "quantize_model", "quantize_preprocess", "save_model")


def __getattr__(name: str) -> Any:
    value: Any
    if name in _API:
        from amct_onnx._compat import api

        value = getattr(api, name)
    elif name == "accuracy_based_auto_calibration":
        from amct_onnx._compat.auto_calibration import accuracy_based_auto_calibration as value
    elif name == "deployed_session":
        from amct_onnx.runtime.deployed import deployed_session as value
    elif name == "AMCT_SO":
        from amct_onnx.runtime.observer_op import session_options

        value = session_options()
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
