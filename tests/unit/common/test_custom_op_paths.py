"""AMCT's import paths of AMCT_SO and convert_qat_model, and the library that scripts register by its path."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from flow import Flow, images, two_convs

import amct_onnx
from amct_onnx.observe import operators

LIBRARY = Path(os.path.dirname(amct_onnx.__file__), "custom_op/libamct_onnx_ops.so")
FEEDS = {"x": images(0)}


@pytest.fixture(autouse=True)
def built() -> None:
    if operators.compiled is None:
        if os.environ.get("CI") == "true":
            pytest.fail("the C extension was not built, and CI has a compiler")
        pytest.skip("the C extension was not built")


@pytest.mark.parametrize(
    ("module", "name"), [("custom_op.amct_custom_op", "AMCT_SO"), ("convert_model", "convert_qat_model")]
)
def test_a_name_is_the_same_at_both_paths(module: str, name: str) -> None:
    assert getattr(import_module(f"amct_onnx.{module}"), name) is getattr(amct_onnx, name)


def itself(folder: Path) -> Path:
    return LIBRARY


def copied(folder: Path) -> Path:
    return Path(shutil.copy(LIBRARY, folder / "mine.so"))


def linked(folder: Path) -> Path:
    (folder / "linked.so").symlink_to(LIBRARY)
    return folder / "linked.so"


@pytest.mark.skipif(os.name == "nt", reason="a Python module has another suffix there")
@pytest.mark.parametrize("library", [itself, copied, linked])
@pytest.mark.parametrize(
    "level", [ort.GraphOptimizationLevel.ORT_DISABLE_ALL, ort.GraphOptimizationLevel.ORT_ENABLE_ALL]
)
def test_a_library_registered_by_its_path_calibrates_as_amct_so_does(
    library: Callable[[Path], Path], level: ort.GraphOptimizationLevel, tmp_path: Path
) -> None:
    options = ort.SessionOptions()
    options.graph_optimization_level = level
    options.register_custom_ops_library(str(library(tmp_path)))
    by_path = Flow.of(two_convs(), tmp_path, options=options).run(FEEDS)
    by_name = Flow.of(two_convs(), tmp_path / "by_name").run(FEEDS)
    assert by_path.records() == by_name.records()
    assert Path(by_path.deploy).read_bytes() == Path(by_name.deploy).read_bytes()


SCRIPT = """
import sys
import numpy, onnxruntime
options = onnxruntime.SessionOptions()
options.register_custom_ops_library(sys.argv[1])  # amct_onnx is not imported yet
session = onnxruntime.InferenceSession("modified.onnx", options, providers=["CPUExecutionProvider"])
session.run(None, {"x": numpy.load("x.npy")})
"""


@pytest.mark.skipif(os.name == "nt", reason="a Python module has another suffix there")
def test_the_library_needs_no_import_before_it(tmp_path: Path) -> None:
    flow = Flow.of(two_convs(), tmp_path).configure().quantize()
    np.save(tmp_path / "x.npy", FEEDS["x"])
    subprocess.run([sys.executable, "-c", SCRIPT, str(LIBRARY)], cwd=tmp_path, check=True)
    flow.save()
    assert flow.records() == Flow.of(two_convs(), tmp_path / "again").run(FEEDS).records()
