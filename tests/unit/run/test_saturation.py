"""Sessions whose int8 products are exact give the same bits on CPUs that saturate and on those that do not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from flow import normal, two_convs
from onnx import save

import amct_onnx
from amct_onnx.run import saturation
from amct_onnx.run.saturation import open_exact_session, saturates


@pytest.mark.parametrize("reduce_range", [False, True])
def test_the_bits_are_those_of_the_slower_kernels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reduce_range: bool
) -> None:
    if saturates() and not reduce_range:
        pytest.skip("this CPU saturates: what its faster kernels compute is wrong, and not used")
    save(two_convs(), tmp_path / "net.onnx")
    data = 3 * normal(0, 16, 3, 5, 5)
    options = {"full_int8": True, "reduce_range": reduce_range}
    result = amct_onnx.quantize(tmp_path / "net.onnx", data, effort="fast", **options)
    (file,) = result.save(tmp_path / "net", inspect=False).files
    outputs = []
    for slower in (False, True):
        monkeypatch.setattr(saturation, "saturates", lambda slower=slower: slower)
        outputs.append(open_exact_session(ir.load(file)).run(None, {"x": 9 * data}))
    for fast, slow in zip(*outputs, strict=True):
        np.testing.assert_array_equal(fast, slow)
