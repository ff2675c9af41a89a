"""The public names and signatures are a promise, and so is a cheap import."""

from __future__ import annotations

import dataclasses
import inspect
import subprocess
import sys
from pathlib import Path

import onnxruntime as ort
import pytest

import amct_onnx as amct
from amct_onnx.data.options import DataOptions
from amct_onnx.ptq.options import QuantizeOptions

SIGNATURES = {
    "accuracy_based_auto_calibration": (
        "(model_file, model_evaluator, config_file, record_file, save_dir, strategy='BinarySearch', "
        "sensitivity='CosineSimilarity')"
    ),
    "convert_qat_model": "(model_file, save_path, record_file=None)",
    "create_quant_config": (
        "(config_file, model_file, skip_layers=None, batch_num=1, activation_offset=True, "
        "config_defination=None, updated_model=None)"
    ),
    "quantize_model": "(config_file, model_file, modified_onnx_file, record_file)",
    "quantize_preprocess": "(config_file, record_file, model_file, modified_onnx_file)",
    "save_model": "(modified_onnx_file, record_file, save_path)",
    "deployed_session": "(path, sess_options=None, providers=None)",
}


# What AMCT does not have.
OURS = (
    *("ImageOptions", "MixedPrecision", "QuantizedModel", "Sensitivity", "Statistics"),
    *("load_statistics", "quantize", "save_run", "save_statistics", "sensitivity", "write_report"),
    *("Comparison", "Machine", "ModelSummary", "Scores", "compare", "doctor", "evaluate", "inspect"),
    *("BatchResult", "batch"),
    *("ActivationSettings", "LayerSettings", "Settings", "TensorSettings", "WeightSettings"),
    *("AdaRound", "Arq", "Entropy", "Hfmg", "Ifmr", "MinMax", "Mse", "Nuq", "Percentile"),
)
# Arguments of the functions with options that are not fields of the options' classes.
OWN_ARGUMENTS = {"quantize": {"model", "data", "progress"}, "sensitivity": {"model", "data", "samples", "progress"}}


def test_the_public_names() -> None:
    assert sorted(amct.__all__) == dir(amct) == sorted([*SIGNATURES, *OURS, "AMCT_SO", "__version__"])
    assert all(hasattr(amct, name) for name in amct.__all__)


@pytest.mark.parametrize("name", SIGNATURES)
def test_signatures(name: str) -> None:
    signature = inspect.signature(getattr(amct, name))
    plain = [p.replace(annotation=inspect.Parameter.empty) for p in signature.parameters.values()]
    shown = signature.replace(parameters=plain, return_annotation=inspect.Signature.empty)
    assert str(shown) == SIGNATURES[name]


@pytest.mark.parametrize("name", SIGNATURES)
def test_public_functions_are_documented(name: str) -> None:
    assert len((getattr(amct, name).__doc__ or "").splitlines()) > 3


@pytest.mark.parametrize("name", OWN_ARGUMENTS)
def test_arguments_are_the_fields_of_the_options(name: str) -> None:
    parameters = inspect.signature(getattr(amct, name)).parameters
    options = {f.name: f for kind in (QuantizeOptions, DataOptions) for f in dataclasses.fields(kind)}
    shared = {field for field in options if field in parameters}
    assert set(parameters) == shared | OWN_ARGUMENTS[name]
    assert {field: parameters[field].default for field in shared} == {field: options[field].default for field in shared}
    assert {field: parameters[field].annotation for field in shared} == {field: options[field].type for field in shared}
    assert all(parameters[field].kind is inspect.Parameter.KEYWORD_ONLY for field in shared)
    documented = (getattr(amct, name).__doc__ or "").splitlines()
    assert all(any(line.startswith(f"{field}: ") for line in documented) for field in shared)
    assert {f.name for f in dataclasses.fields(DataOptions)} <= shared


def test_quantize_takes_every_option() -> None:
    parameters = inspect.signature(amct.quantize).parameters
    assert {f.name for f in dataclasses.fields(QuantizeOptions)} <= set(parameters)


def test_solvers_and_settings_can_be_given() -> None:
    settings = amct.Settings(
        layers={
            "conv": amct.LayerSettings(
                activation=amct.ActivationSettings(solver=amct.Percentile(percentile=0.999)),
                weight=amct.WeightSettings(solver=amct.AdaRound(num_iteration=10)),
            )
        }
    )
    assert settings.layers["conv"].quant_enable


def test_amct_so_is_one_object_of_session_options() -> None:
    assert type(amct.AMCT_SO) is ort.SessionOptions
    assert amct.AMCT_SO is amct.AMCT_SO


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'amct_onnx' has no attribute 'quantise'"):
        amct.quantise  # noqa: B018 - the access is what is tested


IMPORT = """
import sys
import amct_onnx
heavy = [name for name in ("numpy", "onnx", "onnx_ir", "onnxruntime", "onnxruntime_extensions", "google.protobuf")
         if name in sys.modules]
print(heavy, amct_onnx.__version__)
"""


def test_the_import_is_cheap_and_writes_nothing(tmp_path: Path) -> None:
    result = subprocess.run([sys.executable, "-c", IMPORT], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert result.stdout == f"[] {amct.__version__}\n"
    assert result.stderr == ""
    assert list(tmp_path.iterdir()) == []
