"""Nodes with graphs inside: If, Loop and Scan, whose bodies hold layers and read what stands around them."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper

from networks.layers import same_conv, square
from networks.operators import activation, arithmetic, normalization
from networks.scope import Scope, Tensor

_DEEPEST = 2


def _keep(g: Scope, x: Tensor) -> Tensor:
    """One or two nodes behind each other that keep the shape; perhaps a node with a graph of its own."""
    for _ in range(g.draws.number(1, 2)):
        steps = [square, activation, arithmetic]
        if x.rank in (3, 4, 5) and x.fixed():
            steps.append(same_conv)
        steps.append(normalization)
        if g.shared.depth < _DEEPEST:
            steps.append(branch)
        x = g.draws.pick(*steps)(g, x) or x
    return x


def _result(g: Scope, x: Tensor, before: Tensor) -> Tensor:
    """A tensor that the graph itself makes, with the shape and type of `before`."""
    return x if x is not before else g.add("Identity", [x], x.shape)


def branch(g: Scope, x: Tensor) -> Tensor | None:
    """If: two ways to go on, chosen by a constant, by an input of the network, or by the size of a tensor."""
    shared, d = g.shared, g.draws
    kind = d.pick("constant", "input", "computed")
    if kind == "input":
        flags = [tensor for tensor, what in shared.inputs if what == "flag"]
        if not flags:
            flags = [Tensor(g.name("x"), (), TensorProto.BOOL)]
            shared.inputs.append((flags[0], "flag"))
        condition: Tensor | str = flags[0]
    elif kind == "computed":
        size = g.add("Size", [x], (), kind=TensorProto.INT64)
        limit = g.constant(np.array(d.pick(1, 10**6), np.int64), "i", plain=True)
        condition = g.add("Greater", [size, limit], (), kind=TensorProto.BOOL)
    else:
        condition = g.constant(np.array(d.flag()), "b", plain=True)
    shared.depth += 1
    graphs = []
    for _ in range(2):
        body = Scope(shared, g)
        made = _result(body, _keep(body, x), x)
        graphs.append(body.graph(g.name("body"), [], [made]))
    shared.depth -= 1
    return g.add("If", [condition], x.shape, kind=x.kind, then_branch=graphs[0], else_branch=graphs[1])


def loop(g: Scope, x: Tensor) -> Tensor | None:
    """Loop: a state that goes through the same nodes two or three times; the states may be stacked as well."""
    shared, d = g.shared, g.draws
    trips = g.constant(np.array(d.number(2, 3), np.int64), "i", plain=True)
    going = "" if d.flag() else g.constant(np.array(True), "b", plain=True)
    count, on, state = g.name("x"), g.name("x"), Tensor(g.name("x"), x.shape, x.kind)
    body = Scope(shared, g)
    body.tensors.append(state)
    shared.depth += 1
    made = _result(body, _keep(body, state), state)
    shared.depth -= 1
    still = body.add("Identity", [Tensor(on, (), TensorProto.BOOL)], ())
    inputs = [
        helper.make_tensor_value_info(count, TensorProto.INT64, []),
        helper.make_tensor_value_info(on, TensorProto.BOOL, []),
        helper.make_tensor_value_info(state.name, x.kind, list(x.shape)),
    ]
    graph = body.graph(g.name("body"), inputs, [still, made])
    return g.add("Loop", [trips, going, x], x.shape, kind=x.kind, body=graph)


def scan(g: Scope, x: Tensor) -> Tensor | None:
    """Scan: the slices of a tensor along an axis, one after the other, each beside the sum of those before."""
    axes = x.free_axes()
    if x.rank < 2 or not axes:
        return None
    shared, d = g.shared, g.draws
    axis = d.pick(*axes)
    shape = (*x.shape[:axis], *x.shape[axis + 1 :])
    part = Tensor(g.name("x"), shape, x.kind)
    body = Scope(shared, g)
    body.tensors.append(part)
    shared.depth += 1
    made = _result(body, _keep(body, part), part)
    shared.depth -= 1
    graph = body.graph(g.name("body"), [helper.make_tensor_value_info(part.name, x.kind, list(shape))], [made])
    more = {"num_scan_inputs": 1, "scan_input_axes": [axis], "scan_output_axes": [axis]}
    return g.add("Scan", [x], x.shape, body=graph, **more)
