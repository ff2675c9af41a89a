"""Whether ONNX Runtime's products of a uint8 by an int8 saturate on this CPU, and sessions in which they do not."""

from __future__ import annotations

from functools import cache

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from amct_onnx.graph.passes.share_weights import copy_shared_weights
from amct_onnx.run.providers import CPU
from amct_onnx.run.session import open_session, quiet

_SIZE = 64


@cache
def saturates() -> bool:
    """Whether sums of uint8 * int8 products are wrong on this CPU when they are large.

    x86 without VNNI has one instruction for it, vpmaddubsw, which adds pairs of products in 16 bits. One product of
    matrices with the largest values is compared with exact arithmetic.
    """
    a = np.full((_SIZE, _SIZE), 255, np.uint8)
    b = np.full((_SIZE, _SIZE), 127, np.int8)
    session = open_session(_product(b), quiet(threads=1), providers=CPU)
    exact = a.astype(np.int64) @ b.astype(np.int64)
    return not np.array_equal(session.run(None, {"a": a})[0], exact)


def open_exact_session(model: ir.Model, *, own_model: bool = False) -> ort.InferenceSession:
    """A session on the CPU whose sums of uint8 times int8 do not saturate, on CPUs where they otherwise do.

    Its outputs have the same bits on either. own_model: whether the model is for this session alone, and may be
    changed.
    """
    if not saturates():
        return open_session(model, quiet(), own_model=own_model)
    options = quiet()
    options.add_session_config_entry("session.x64quantprecision", "1")  # its kernels take twice as long
    apart = model if own_model else model.clone()
    copy_shared_weights(apart)
    return open_session(apart, options, own_model=True)


def _product(b: np.ndarray) -> bytes:
    """A model that multiplies its input by a constant: kernels for constants are those that matter."""
    shape = ir.Shape(b.shape)
    left = ir.Value(name="a", shape=shape, type=ir.TensorType(ir.DataType.UINT8))
    right = ir.Value(name="b", shape=shape, type=ir.TensorType(ir.DataType.INT8), const_value=ir.Tensor(b, name="b"))
    node = ir.Node("", "MatMulInteger", [left, right])
    (out,) = node.outputs
    out.name, out.shape, out.type = "y", shape, ir.TensorType(ir.DataType.INT32)
    graph = ir.Graph([left], [out], nodes=[node], initializers=[right], opset_imports={"": 13}, name="product")
    return ir.to_proto(ir.Model(graph, ir_version=8)).SerializeToString()
