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
from amct_onnx.version import VERSION

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
    from amct_onnx.data.image_options import ImageOptions
    from amct_onnx.files.statistics_file import load_statistics, save_statistics
    from amct_onnx.numerics.settings import (
        ActivationSettings,
        AdaRound,
        Arq,
        Entropy,
        Hfmg,
        Ifmr,
        LayerSettings,
        MinMax,
        Mse,
        Nuq,
        Percentile,
        Settings,
        TensorSettings,
        WeightSettings,
    )
    from amct_onnx.numerics.statistics.by_tensor import Statistics
    from amct_onnx.ptq.mixed.effects import sensitivity
    from amct_onnx.ptq.quantize import quantize
    from amct_onnx.ptq.quantized_model import QuantizedModel
    from amct_onnx.report.write import save_run, write_report
    from amct_onnx.run.deployed import deployed_session
    from amct_onnx.tools.batch.batch import batch
    from amct_onnx.tools.compare import compare
    from amct_onnx.tools.doctor import doctor
    from amct_onnx.tools.evaluate import evaluate
    from amct_onnx.tools.inspect import inspect
    from amct_onnx.values.batch_result import BatchResult
    from amct_onnx.values.comparison import Comparison
    from amct_onnx.values.machine import Machine
    from amct_onnx.values.mixed_precision import MixedPrecision
    from amct_onnx.values.model_summary import ModelSummary
    from amct_onnx.values.scores import Scores
    from amct_onnx.values.sensitivity import Sensitivity

    AMCT_SO: onnxruntime.SessionOptions

__version__ = VERSION

__all__ = [
    "AMCT_SO",
    "ActivationSettings",
    "AdaRound",
    "Arq",
    "BatchResult",
    "Comparison",
    "Entropy",
    "Hfmg",
    "Ifmr",
    "ImageOptions",
    "LayerSettings",
    "Machine",
    "MinMax",
    "MixedPrecision",
    "ModelSummary",
    "Mse",
    "Nuq",
    "Percentile",
    "QuantizedModel",
    "Scores",
    "Sensitivity",
    "Settings",
    "Statistics",
    "TensorSettings",
    "WeightSettings",
    "__version__",
    "accuracy_based_auto_calibration",
    "batch",
    "compare",
    "convert_qat_model",
    "create_quant_config",
    "deployed_session",
    "doctor",
    "evaluate",
    "inspect",
    "load_statistics",
    "quantize",
    "quantize_model",
    "quantize_preprocess",
    "save_model",
    "save_run",
    "save_statistics",
    "sensitivity",
    "write_report",
]


_deferred_sympy.install()

_MODULES = {
    "_compat.api": (
        *("convert_qat_model", "create_quant_config", "quantize_model", "quantize_preprocess", "save_model"),
    ),
    "_compat.auto_calibration": ("accuracy_based_auto_calibration",),
    "data.image_options": ("ImageOptions",),
    "files.statistics_file": ("load_statistics", "save_statistics"),
    "numerics.settings": (
        *("ActivationSettings", "LayerSettings", "Settings", "TensorSettings", "WeightSettings"),
        *("AdaRound", "Arq", "Entropy", "Hfmg", "Ifmr", "MinMax", "Mse", "Nuq", "Percentile"),
    ),
    "numerics.statistics.by_tensor": ("Statistics",),
    "ptq.mixed.effects": ("sensitivity",),
    "ptq.quantize": ("quantize",),
    "ptq.quantized_model": ("QuantizedModel",),
    "report.write": ("save_run", "write_report"),
    "run.deployed": ("deployed_session",),
    "tools.batch.batch": ("batch",),
    "tools.compare": ("compare",),
    "tools.doctor": ("doctor",),
    "tools.evaluate": ("evaluate",),
    "tools.inspect": ("inspect",),
    "values.batch_result": ("BatchResult",),
    "values.comparison": ("Comparison",),
    "values.machine": ("Machine",),
    "values.mixed_precision": ("MixedPrecision",),
    "values.model_summary": ("ModelSummary",),
    "values.scores": ("Scores",),
    "values.sensitivity": ("Sensitivity",),
}
# Where each public name lives.
_PLACES = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    from importlib import import_module

    value: Any
    if name in _PLACES:
        value = getattr(import_module(f"amct_onnx.{_PLACES[name]}"), name)
    elif name == "AMCT_SO":
        value = import_module("amct_onnx.observe.operators").session_options()
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
