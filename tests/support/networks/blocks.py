"""Several nodes as exporters write them behind each other, since that is where targets fuse and share grids."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from networks import layers, operators
from networks.scope import HALF, Scope, Tensor

_CLAMPS = ("Relu", "Clip", "HardSwish", "LeakyRelu", "Sigmoid")


def conv_block(g: Scope, x: Tensor) -> Tensor | None:
    """A convolution of some kind, batch normalization or a factor and a sum per channel, an activation, a sum."""
    d = g.draws
    made = d.pick(layers.conv, layers.conv_transpose, layers.same_conv)(g, x)
    if made is None or not isinstance(made.shape[1], int):
        return made
    channels = made.shape[1]
    row = (channels, *[1] * (made.rank - 2))
    norm = d.pick("batch", "none", "affine")
    if norm == "batch":
        ranges = ((0.5, 1.5), (-1, 1), (-0.5, 0.5), (0.5, 2))
        more = [g.vector(channels, kind=x.kind, low=low, high=high) for low, high in ranges]
        made = g.add("BatchNormalization", [made, *more], made.shape)
    if norm == "affine" or (norm == "batch" and d.rarely()):
        made = g.add("Mul", [made, g.vector(*row, kind=x.kind, low=0.5, high=1.5)], made.shape)
        made = g.add("Add", [made, g.vector(*row, kind=x.kind)], made.shape)
    return _ended(g, made, x)


def dense_block(g: Scope, x: Tensor) -> Tensor | None:
    """A product by a constant with or without a bias, an activation, a sum."""
    made = g.draws.pick(layers.linear, *([layers.gemm] if x.rank == 2 else []), layers.product)(g, x)
    return made if made is None else _ended(g, made, x)


def _ended(g: Scope, made: Tensor, x: Tensor) -> Tensor:
    d = g.draws
    others = [t for t in g.like(made) if t is not x]
    residual = d.pick("none", "before", "behind")
    partner = x if (x.shape, x.kind) == (made.shape, made.kind) else others[0] if others else None
    if residual == "before" and partner is not None:
        made = g.add("Add", d.pick([made, partner], [partner, made]), made.shape)
    clamp = d.pick("none", *_CLAMPS)
    if clamp == "Clip":
        made = g.add("Clip", [made, g.scalar(0.0, x.kind), g.scalar(d.pick(6.0, 1.0), x.kind)], made.shape)
    elif clamp == "HardSwish":
        shifted = g.add("Add", [made, g.scalar(3.0, x.kind)], made.shape)
        gate = g.add("Clip", [shifted, g.scalar(0.0, x.kind), g.scalar(6.0, x.kind)], made.shape)
        product = g.add("Mul", [made, gate], made.shape)
        made = g.add("Div", [product, g.scalar(6.0, x.kind)], made.shape)
    elif clamp != "none":
        made = g.add(clamp, [made], made.shape)
    if residual == "behind" and partner is not None:
        made = g.add("Add", d.pick([made, partner], [partner, made]), made.shape)
    return made


def twins(g: Scope, x: Tensor) -> Tensor | None:
    """One weight that two layers have, on one tensor or on two of the same shape; their results meet."""
    d = g.draws
    other = d.pick(x, *g.like(x)[:2])
    if x.rank in (3, 4, 5) and x.fixed():
        channels = int(x.shape[1])
        weight = g.weight(channels, channels, *[3] * (x.rank - 2), kind=x.kind)
        pads = [1] * 2 * (x.rank - 2)
        parts = [g.add("Conv", [t, weight], t.shape, pads=pads) for t in (x, other)]
    elif x.rank and isinstance(x.shape[-1], int):
        weight = g.weight(x.shape[-1], x.shape[-1], kind=x.kind)
        parts = [g.add("MatMul", [t, weight], t.shape) for t in (x, other)]
    else:
        return None
    if d.flag() and isinstance(x.shape[-1], int):
        return g.add("Concat", parts, (*x.shape[:-1], 2 * x.shape[-1]), axis=-1)
    return g.add(d.pick("Add", "Mul", *(["Sub"] if other is not x else [])), parts, x.shape)


def heads(g: Scope, x: Tensor) -> Tensor | None:
    """Attention with two heads, as transformers are exported: reshapes to heads and back around two products."""
    if x.rank != 3 or x.kind == HALF or not x.fixed() or int(x.shape[2]) % 2:
        return None
    batch, length, width = x.shape
    half = int(width) // 2
    parts = []
    for turn, shape in (([0, 2, 1, 3], (length, half)), ([0, 2, 3, 1], (half, length)), ([0, 2, 1, 3], (length, half))):
        apart = g.add("Reshape", [_projected(g, x), g.ints(0, 0, 2, half)], (batch, length, 2, half))
        parts.append(g.add("Transpose", [apart], (batch, 2, *shape), perm=turn))
    q, k, v = parts
    scores = g.add("MatMul", [q, k], (batch, 2, length, length))
    scores = g.add("Div", [scores, g.scalar(float(np.sqrt(half)), x.kind)], scores.shape)
    weights = g.add("Softmax", [scores], scores.shape, axis=3)
    mixed = g.add("MatMul", [weights, v], (batch, 2, length, half))
    joined = g.add("Transpose", [mixed], (batch, length, 2, half), perm=[0, 2, 1, 3])
    flat = g.add("Reshape", [joined, g.ints(0, 0, int(width))], x.shape)
    return g.add("Add", [_projected(g, flat), x], x.shape)


def _projected(g: Scope, x: Tensor) -> Tensor:
    width = int(x.shape[-1])
    made = g.add("MatMul", [x, g.weight(width, width, kind=x.kind)], x.shape)
    return g.add("Add", [g.vector(width, kind=x.kind), made], x.shape, kind=x.kind) if g.draws.flag() else made


def moved(g: Scope, x: Tensor) -> Tensor | None:
    """A layer, nodes that move its elements, and a layer again: one grid may serve all of them."""
    d = g.draws
    for _ in range(d.number(1, 3)):
        moves = (operators.reshape, operators.transpose, operators.pick_elements, operators.concat, operators.pad)
        x = d.pick(*moves, operators.repeat, operators.resize)(g, x) or x
    return layer_of(g, x)


def layer_of(g: Scope, x: Tensor) -> Tensor | None:
    """A layer that fits a tensor."""
    fits: list[Callable[[Scope, Tensor], Tensor | None]] = [layers.product]
    if x.rank == 2:
        fits = [layers.gemm, layers.product]
    elif x.rank in (3, 4, 5):
        fits = [layers.conv, layers.product]
    return g.draws.pick(*fits)(g, x) if 1 <= x.rank <= 5 else None
