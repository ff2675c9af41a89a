"""Keep the float weight of a layer in the calibration model, for rounding to be learned, and take it out again.

Before                After
Conv(x, w)            Conv(x, w)
                      w_float -> Shape -> (nobody)

`w` is rounded in the calibration model. ONNX Runtime warns of an initializer that no node reads; a `Shape` reads this
one, and is folded away with it when a session opens, so that no session holds the weight twice.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import prod

import onnx_ir as ir

from amct_onnx.errors import ModelError
from amct_onnx.graph.access import graph_of, name_of
from amct_onnx.graph.constants import ValueNames, add_initializer, constant_tensor
from amct_onnx.graph.layer_view import Layer
from amct_onnx.graph.weights import output_rows_shape
from amct_onnx.numerics.im2col import LayerColumns
from amct_onnx.numerics.settings import AdaRound


def keep_float_weight(layer: Layer, *, names: ValueNames) -> str:
    """Add the weight of a layer to its graph once more, in place, and give the name of the initializer."""
    graph, name = graph_of(layer.node), f"{layer.name}.float_weight"
    value = add_initializer(graph, name, layer.weight, names=names)
    output = ir.val(names.new(f"{name}.shape"), dtype=ir.DataType.INT64)
    graph.append(ir.node("Shape", [value], name=names.node(name), outputs=[output]))
    return name_of(value)


def take_float_weights(model: ir.Model, names: Iterable[str]) -> dict[str, ir.TensorProtocol]:
    """Remove these float weights from the model, in place. Raises ModelError when one is not there."""
    found = {}
    for name in names:
        value = model.graph.initializers.get(name)
        tensor = constant_tensor(value)
        if value is None or tensor is None:
            raise ModelError(
                f"the calibration model has no initializer {name}, which ada_quantize needs: pass the "
                "modified_onnx_file that quantize_model wrote."
            )
        found[name] = tensor
        for use in list(value.uses()):
            model.graph.remove(use.node, safe=True)
        del model.graph.initializers[name]
    return found


def layer_columns(layer: Layer, weight: str, width: int, rounding: AdaRound) -> LayerColumns:
    """What to observe at a layer whose float weight is the initializer `weight`.

    `width`: no block of a column is longer. A block holds whole input channels where that is possible.
    """
    node, shape = layer.node, layer.shape
    groups, _, length = output_rows_shape(shape, node)
    if "Conv" not in node.op_type:
        block = -(-length // -(-length // width))
        return LayerColumns(weight=weight, op_type=node.op_type, groups=groups, block=block, rounding=rounding)
    kernel = shape[2:]
    rank, area = len(kernel), prod(kernel)
    atom = area if area <= width else 1
    atoms = length // atom
    block = -(-atoms // -(-atoms // (width // atom))) * atom

    attributes = node.attributes
    return LayerColumns(
        weight=weight,
        op_type=node.op_type,
        groups=groups,
        block=block,
        rounding=rounding,
        kernel=kernel,
        strides=tuple(attributes.get_ints("strides", (1,) * rank)),
        dilations=tuple(attributes.get_ints("dilations", (1,) * rank)),
        pads=tuple(attributes.get_ints("pads", (0,) * (2 * rank))),
        auto_pad=attributes.get_string("auto_pad", "NOTSET"),
        output_padding=tuple(attributes.get_ints("output_padding", (0,) * rank)),
        output_shape=tuple(attributes.get_ints("output_shape", ()))[-rank:],
    )
