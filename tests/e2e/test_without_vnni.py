"""With ONNX Runtime's kernels for AVX2 alone, int8 products saturate, and what judges a model sees exact ones."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import without_vnni
from flow import normal, two_convs
from onnx import save

import amct_onnx
from amct_onnx.run.saturation import open_exact_session

RUN = """
import sys
import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from amct_onnx.run.saturation import open_exact_session, saturates
feed = {"x": np.load("x.npy")}
np.savez("outputs.npz", exact=open_exact_session(ir.load("net.onnx")).run(None, feed)[0],
         plain=ort.InferenceSession("net.onnx", providers=["CPUExecutionProvider"]).run(None, feed)[0])
print(saturates())
"""


def test_products_saturate_and_judges_see_exact_ones(tmp_path: Path) -> None:
    if platform.system() != "Linux" or platform.machine() != "x86_64" or shutil.which("gcc") is None:
        pytest.skip("instructions are hidden on Linux and x86-64, by gcc")
    save(two_convs(), tmp_path / "float.onnx")
    data = 3 * normal(0, 16, 3, 5, 5)
    result = amct_onnx.quantize(tmp_path / "float.onnx", data, effort="fast", full_int8=True)
    (file,) = result.save(tmp_path / "net", inspect=False).files
    Path(file).rename(tmp_path / "net.onnx")
    np.save(tmp_path / "x.npy", 9 * data)
    command = [sys.executable, without_vnni.__file__, "-c", RUN]
    done = subprocess.run(command, check=False, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    if done.returncode == without_vnni.REFUSED:
        pytest.skip("this CPU or kernel does not let a process hide instructions")
    assert done.stdout.split() == ["True"], done.stderr
    (here, *_) = open_exact_session(ir.load(tmp_path / "net.onnx")).run(None, {"x": 9 * data})
    with np.load(tmp_path / "outputs.npz") as there:
        np.testing.assert_array_equal(there["exact"], here)
        assert not np.array_equal(there["plain"], here)
