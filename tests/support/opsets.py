"""Which opsets can be tested with the ONNX Runtime that is installed."""

from __future__ import annotations

from functools import cache

import onnx
import onnx.defs
import onnxruntime as ort
from onnx import parser


@cache
def newest_opset() -> int:
    """The newest opset that both onnx and ONNX Runtime know."""
    for opset in range(onnx.defs.onnx_opset_version(), 17, -1):
        text = f'<ir_version: 10, opset_import: ["" : {opset}]> g (float x) => (float y) {{y=Relu(x)}}'
        try:
            ort.InferenceSession(parser.parse_model(text).SerializeToString(), providers=["CPUExecutionProvider"])
        except Exception:  # the runtime has no narrower class for an opset that it does not know
            continue
        return opset
    raise AssertionError("no common opset")
