"""Channels that a quantized model holds multiplied, since the weights that read them are divided by the same.

Float model                    Quantized model, its channels evened out
x -> Conv(w) -> y -> Conv(v)   x -> Conv(g * w) -> g * y -> Conv(v / g)

A spoilt weight or scale multiplies a channel as well, and what reads it does not know. So gains are looked for where
both tensors are alike but for them, and believed where the layers behind come right only without them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from amct_onnx.graph.access import name_of
from amct_onnx.graph.index import index_graph
from amct_onnx.graph.layer_view import WEIGHT_OPS
from amct_onnx.numerics.arrays import Array, Doubles

# By tensor: what its channels are multiplied by, and along which axis they are.
Gain = tuple[Doubles, int]
Gains = Mapping[str, Gain]

_BETTER = 1.5  # times less noise: below that, gains explain nothing
_UNDONE = 2.0  # the same, of the layers that read them
_LEAST = 1e-6


def fit_gains(arrays: Sequence[tuple[Array, Array]], along: int | None = None) -> Gain | None:
    """The gains of least squared error from the first to the second array of each pair; None where they do not explain
    how the two differ. along: the axis of channels; without it, the second or the last one, which explains more."""
    rank = arrays[0][0].ndim
    best: Gain | None = None
    least = np.inf
    for axis in dict.fromkeys((1, rank - 1) if along is None else (along,)) if rank > 1 else ():
        if len({mine.shape[axis] for mine, _ in arrays}) > 1:
            continue
        ff, fq, qq = (_summed(chosen, axis) for chosen in _products(arrays))
        gains = np.where((ff > 0) & (fq > _LEAST * ff), fq / np.where(ff > 0, ff, 1), 1.0)
        noise = float((qq / gains**2 - 2 * fq / gains + ff).sum())
        before = float((qq - 2 * fq + ff).sum())
        if np.isfinite(before) and noise * _BETTER < before and noise < least:
            best, least = (gains, axis), noise
    return best


def _products(arrays: Sequence[tuple[Array, Array]]) -> list[list[tuple[Array, Array]]]:
    return [[(one, one) for one, _ in arrays], list(arrays), [(two, two) for _, two in arrays]]


def _summed(pairs: Sequence[tuple[Array, Array]], axis: int) -> Doubles:
    result: Doubles = np.sum([_by_channel(one, two, axis) for one, two in pairs], axis=0)
    return result


def _by_channel(one: Array, two: Array, axis: int) -> Doubles:
    with np.errstate(invalid="ignore", over="ignore"):
        product = np.multiply(one, two, dtype=np.promote_types(one.dtype, np.float32))
        result: Doubles = product.sum(axis=tuple(k for k in range(product.ndim) if k != axis), dtype=np.float64)
    return result


def without_gains(array: Array, gain: Gain | None) -> Array:
    """An array whose channels are divided by their gains."""
    if gain is None:
        return array
    factors, axis = gain
    shape = [1] * array.ndim
    shape[axis] = -1
    return (array / factors.reshape(shape)).astype(array.dtype, copy=False)


def gains_that_readers_undo(
    model: ir.Model, gains: Gains, with_them: Mapping[str, float], without: Mapping[str, float]
) -> dict[str, Gain]:
    """Those of `gains` that the layers behind take back.

    with_them, without: noise over signal of each layer of the float `model` alone, by the tensor that it makes, where
    it reads tensors with the gains that they have in the quantized model, and without.
    """
    values, found = index_graph(model).values, {}
    for name, gain in gains.items():
        layers = [tensor for tensor in _layers_behind(values[name], with_them) if tensor in without]
        before, after = (sum(side[layer] for layer in layers) for side in (with_them, without))
        if layers and after * _UNDONE < before:
            found[name] = gain
    return found


def _layers_behind(value: ir.Value, known: Mapping[str, float]) -> list[str]:
    """What the first layers with weights behind a tensor make, as far as it is known: up to what is computed of it."""
    found, waiting, seen = dict[str, None](), [(value, False)], set[ir.Value]()
    while waiting:
        current, weighted = waiting.pop()
        for use in current.uses():
            for out in use.node.outputs:
                if out in seen:
                    continue
                seen.add(out)
                behind = weighted or use.node.op_type in WEIGHT_OPS
                if behind and out.name in known:
                    found[name_of(out)] = None
                else:
                    waiting.append((out, behind))
    return list(found)
