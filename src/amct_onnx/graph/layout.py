"""Where ONNX Runtime may not put channels last, as it does for integer convolutions.

It puts a Transpose on each side of such a convolution, and moves these through other nodes until two of them meet. A
Pad or Resize on the way gets its values in another order, but not its `axes`; and a cubic Resize that shrinks has no
kernel for that order. Such a model fails when it is opened, or when it is run.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from amct_onnx.graph.access import is_op, name_of, optional_input
from amct_onnx.graph.constants import constant_value

_MAKERS = ("Conv", "Transpose")  # behind them are Transposes that can be moved on
_ENDS = ("Conv", "ConvTranspose", "MatMul", "Gemm", "Reshape", "Flatten")  # no Transpose is moved through these
_SCALES, _AXES = 2, 3  # inputs of Resize, and of Pad


def fixed_layouts(graph: ir.Graph) -> dict[str, str]:
    """The nodes that must not be on integers, and for each the name of the Pad or Resize that keeps its order.

    They are this node itself, if something in front of it brings a Transpose along, and the convolutions behind it.
    """
    found: dict[str, str] = {}
    for node in graph:
        if _keeps_order(node) and any(is_op(maker, *_MAKERS) for maker in _walk(node, back=True)):
            found[name_of(node)] = name_of(node)
            for reader in _walk(node, back=False):
                if is_op(reader, "Conv"):
                    found.setdefault(name_of(reader), name_of(node))
    return found


def _keeps_order(node: ir.Node) -> bool:
    """Whether ONNX Runtime cannot compute it with the axes of its input in another order."""
    if is_op(node, "Pad"):
        return optional_input(node, _AXES) is not None
    if not is_op(node, "Resize"):
        return False
    scales = constant_value(optional_input(node, _SCALES))
    grows = scales is not None and scales.size > 0 and bool((scales >= 1).all())
    cubic = node.attributes.get_string("mode", "nearest") == "cubic" and not node.attributes.get_int("antialias", 0)
    return "axes" in node.attributes or (cubic and not grows)


def _walk(node: ir.Node, *, back: bool) -> Iterator[ir.Node]:
    """The nodes in front of one, or those behind it, as far as Transposes are moved."""
    seen, waiting = {node}, [node]
    while waiting:
        current = waiting.pop()
        if back:
            makers = (value.producer() for value in current.inputs if value is not None)
            beside = [maker for maker in makers if maker is not None]
        else:
            beside = [use.node for value in current.outputs for use in value.uses()]
        for other in beside:
            if other not in seen:
                seen.add(other)
                yield other
                if not is_op(other, *_ENDS):
                    waiting.append(other)
