"""Takes large weights out of a protobuf message, so that they are in memory once and can be read where they are.

The Python objects of a message copy a tensor's bytes whenever they are asked for them, and the memory of a message is
given back as a whole.
"""

from __future__ import annotations

import sys
from math import prod

import numpy as np
import onnx
import onnx_ir as ir

_LARGE = 1 << 16  # bytes
_PLAIN = frozenset(
    {
        *(ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE, ir.DataType.INT8, ir.DataType.UINT8),
        *(ir.DataType.INT32, ir.DataType.INT64),
    }
)


def detach_weights(proto: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, ir.TensorProtocol]]:
    """A message without the bytes of the large initializers of its main graph, and these, by name.

    `proto` may lose them too: nobody else may use it. A tensor of another size than its shape says stays where it is.
    """
    found: dict[str, ir.TensorProtocol] = {}
    for tensor in proto.graph.initializer if sys.byteorder == "little" else ():
        if not tensor.name or tensor.name in found or tensor.data_type not in _PLAIN:
            continue
        kind, shape, data = ir.DataType(tensor.data_type), tuple(tensor.dims), tensor.raw_data
        if len(data) < _LARGE or len(data) != prod(shape) * kind.itemsize:
            continue
        array = np.frombuffer(data, kind.numpy()).reshape(shape)
        found[tensor.name] = ir.Tensor(array, kind, name=tensor.name, doc_string=tensor.doc_string or None)
        tensor.ClearField("raw_data")
    if not found:
        return proto, found
    rest = onnx.ModelProto()
    rest.CopyFrom(proto)
    return rest, found
