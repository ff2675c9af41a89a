"""Shuffle the channels of an image by a Gather, where a network does it by way of five dimensions.

Before                                                         After
Reshape(x, [n, g, c, h, w]), Transpose(perm = 0, 2, 1, 3, 4),  Gather(x, [0, c, 2c, ..., 1, c + 1, ...], axis = 1)
Reshape([n, g * c, h, w])

Where the shape of x is not known, it is brought to [n, g * c, h, w] first, and the last Reshape stays.

It is for runtimes that have the channels of bytes last and join that Transpose with their own: ONNX Runtime moves each
byte by itself then. A Gather copies whole channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from amct_onnx.graph.access import input_of, is_op, name_of, only_reader, producer_of
from amct_onnx.graph.constants import ValueNames, add_initializer, constant_value, own_constant, remove_unused

_LEAST_DIMENSIONS = 5  # behind the first Reshape: with fewer it may be the heads of an attention


@dataclass(frozen=True, kw_only=True)
class _Shuffle:
    """The nodes, and the sizes that the first Reshape asks for: n, g, c and the rest."""

    first: ir.Node
    turn: ir.Node
    last: ir.Node
    sizes: tuple[int, ...]

    @property
    def shape(self) -> list[int]:
        """The sizes with the channels in one dimension."""
        batch, groups, each, *rest = self.sizes
        return [batch, groups * each, *rest]

    @property
    def order(self) -> list[int]:
        """Which channel comes where."""
        _, groups, each, *_ = self.sizes
        return [channel for start in range(each) for channel in range(start, groups * each, each)]

    def keeps_shape(self) -> bool:
        """Whether what goes in has these sizes, and what comes out as well."""
        source, asked = input_of(self.first, 0), constant_value(self.last.inputs[1])
        if source.shape is None or asked is None or not asked.size or list(source.shape)[1:] != self.shape[1:]:
            return False
        batch, *others = (int(size) for size in asked)
        # The batch is what is left. One size may be asked for as what is over, as long as the batch is as it was.
        is_open = batch in (0, source.shape[0]) and others.count(-1) == 1
        same = [size if one == -1 and is_open else one for one, size in zip(others, self.shape[1:], strict=False)]
        return len(others) == len(same) and same == self.shape[1:]


def with_gathered_channels(model: ir.Model) -> ir.Model:
    """A copy of `model` whose shuffles of channels are Gathers, or the model itself where it has none."""
    if not any(_shuffle(node) for node in model.graph):
        return model
    copy = model.clone()
    gather_channels(copy)
    return copy


def gather_channels(model: ir.Model) -> None:
    """Shuffle channels by a Gather, in place, wherever their numbers are constant. Idempotent."""
    names = ValueNames(model)
    for shuffle in [found for node in model.graph if (found := _shuffle(node)) is not None]:
        keeps = shuffle.keeps_shape()
        end = shuffle.last if keeps else shuffle.turn
        source = input_of(shuffle.first if keeps else shuffle.turn, 0)
        if not keeps:
            shape = np.array(shuffle.shape, np.int64)
            own_constant(shuffle.first, 1, shape, f"{name_of(shuffle.first)}.shape", names=names)
            source.shape = None
        order = np.array(shuffle.order, np.int64)
        indices = add_initializer(model.graph, f"{name_of(end)}.channels", order, names=names)
        old = end.outputs[0]
        new = ir.val(f"{name_of(old)}.gathered", type=old.type, shape=old.shape if keeps else None)
        gather = ir.node("Gather", [source, indices], {"axis": 1}, name=end.name, outputs=[new])
        model.graph.insert_after(end, gather)
        ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
        gone = [shuffle.last, shuffle.turn, shuffle.first] if keeps else [shuffle.turn]
        shapes = [node.inputs[1] for node in gone if is_op(node, "Reshape")]
        model.graph.remove(gone, safe=True)
        new.name = old.name
        remove_unused(shapes)


def _shuffle(node: ir.Node) -> _Shuffle | None:
    """The shuffle of channels around a Transpose."""
    first = producer_of(node, 0) if is_op(node, "Transpose") else None
    last = only_reader(node.outputs[0]) if first is not None else None
    if first is None or not is_op(first, "Reshape") or not is_op(last, "Reshape"):
        return None
    perm, asked = list(node.attributes.get_ints("perm", ())), constant_value(first.inputs[1])
    if only_reader(first.outputs[0]) is not node or last.inputs[0] is not node.outputs[0] or asked is None:
        return None
    sizes = tuple(int(size) for size in asked)
    is_swap = len(perm) == len(sizes) >= _LEAST_DIMENSIONS and perm == [0, 2, 1, *range(3, len(perm))]
    # A 0 further behind would stand for another size of the input.
    if not is_swap or min(sizes[1:3]) < 1 or 0 in sizes[3:]:
        return None
    return _Shuffle(first=first, turn=node, last=last, sizes=sizes)
