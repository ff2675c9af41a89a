"""The public names and signatures are a promise, and so is a cheap import."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import onnxruntime as ort
import pytest

import amct_onnx as amct

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
    *("load_statistics", "quantize", "save_statistics", "sensitivity"),
)


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
