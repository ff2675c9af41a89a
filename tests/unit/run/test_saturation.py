"""Sessions whose int8 products are exact give the same bits on CPUs that saturate and on those that do not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from flow import build, normal, two_convs
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


@pytest.mark.parametrize("rows", [1, 2, 7, 65])
@pytest.mark.parametrize("terms", [3, 64, 1027])
@pytest.mark.parametrize("columns", [1, 16, 33])
def test_where_one_product_is_exact_those_of_all_sizes_are(rows: int, terms: int, columns: int) -> None:
    """What is measured is a product of 64 rows, and decides for vectors and long sums too."""
    if saturates():
        pytest.skip("this CPU saturates, and its faster kernels are not used")
    a, b = np.full((rows, terms), 255, np.uint8), np.full((terms, columns), 127, np.int8)
    model = build(f"g (uint8[{rows},{terms}] a) => (int32[{rows},{columns}] y) {{ y = MatMulInteger(a, b) }}", b=b)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    np.testing.assert_array_equal(session.run(None, {"a": a})[0], a.astype(np.int64) @ b.astype(np.int64))
