"""Nodes beside the layers: activations, sums, normalizations, and whatever moves, picks, joins or reduces elements."""

from __future__ import annotations

import math

import numpy as np
from onnx import TensorProto

from networks.layers import squeeze
from networks.scope import FLOAT, HALF, Dim, N, Scope, Tensor

_ANY = ("Relu", "Sigmoid", "LeakyRelu", "Tanh", "Elu", "Softplus", "HardSigmoid", "Softsign", "Selu", "Abs", "Neg")
_ANY += ("Erf", "Identity", "Sin")  # none that jumps: a small error would become a large one
_SINCE = {"Celu": 12, "HardSwish": 14, "Mish": 18, "Gelu": 20}


def activation(g: Scope, x: Tensor) -> Tensor | None:
    """An operator of one input that keeps the shape, alone or written out."""
    d = g.draws
    known = [*_ANY, *(name for name, since in _SINCE.items() if since <= g.opset and x.kind == FLOAT)]
    op_type = d.pick("Clip", "swish", "gelu", "Dropout", *known, "PRelu")
    if op_type == "Clip":
        low, high = d.pick((0.0, 6.0), (-1.0, 1.0), (None, 2.0), (-0.5, None), (0.0, None))
        bounds = ["" if bound is None else g.scalar(bound, x.kind) for bound in (low, high)]
        return g.add("Clip", [x, *(bounds if bounds[1] else bounds[:1])], x.shape)
    if op_type == "swish":
        return g.add("Mul", [x, g.add("Sigmoid", [x], x.shape)], x.shape)
    if op_type == "gelu":
        inner = g.add("Erf", [g.add("Div", [x, g.scalar(math.sqrt(2), x.kind)], x.shape)], x.shape)
        both = g.add("Mul", [x, g.add("Add", [inner, g.scalar(1, x.kind)], x.shape)], x.shape)
        return g.add("Mul", [both, g.scalar(0.5, x.kind)], x.shape)
    if op_type == "Gelu":
        return g.add(op_type, [x], x.shape, approximate=d.pick("none", "tanh"))
    if op_type == "Dropout":
        if g.opset < 12:
            return g.add("Dropout", [x], x.shape, ratio=0.3)
        return g.add("Dropout", [x, g.constant(np.float32(0.3), "c", plain=True)], x.shape)
    if op_type == "PRelu":
        channels = x.shape[1] if x.rank > 1 else 1
        per_channel = isinstance(channels, int) and d.flag()
        size = (channels, *[1] * (x.rank - 2)) if per_channel else (1,)
        return g.add("PRelu", [x, g.vector(*map(int, size), kind=x.kind, low=0.1, high=0.4)], x.shape)
    return g.add(op_type, [x], x.shape)


def arithmetic(g: Scope, x: Tensor) -> Tensor | None:
    """A sum, a product, a quotient or an extreme with a constant, or with another tensor: a residual, if it is old."""
    d = g.draws
    op_type = d.pick("Add", "Mul", "Sub", "Max", "Min", "Div", "Mean")
    others = g.like(x)
    if op_type != "Div" and others and d.flag():
        return g.add(op_type, d.shuffled([x, d.pick(*others[:4])]), x.shape)
    shape = d.pick("scalar", "channel", "last", "one", "whole")
    if shape == "channel" and x.rank > 1 and isinstance(x.shape[1], int):
        size: tuple[int, ...] = (x.shape[1], *[1] * (x.rank - 2))
    elif shape == "last" and x.rank and isinstance(x.shape[-1], int):
        size = (x.shape[-1],)
    elif shape == "whole" and x.fixed(but=()):
        size = tuple(map(int, x.shape))
    else:
        size = (1,) if shape == "one" and x.rank else ()
    low = 0.5 if op_type in ("Mul", "Div") else -1.0
    constant = g.vector(*size, kind=x.kind, low=low, high=1.5)
    operands: list[Tensor | str] = [x, constant]
    if op_type != "Div" and d.rarely():
        operands.reverse()
    return g.add(op_type, operands, x.shape, kind=x.kind)


def normalization(g: Scope, x: Tensor) -> Tensor | None:
    """A normalization: of batches with constants, of layers as an operator or written out, of instances; or softmax."""
    d = g.draws
    channels = x.shape[1] if x.rank > 1 and isinstance(x.shape[1], int) else 0
    last = x.shape[-1] if isinstance(x.shape[-1], int) else 0
    space = math.prod(int(dim) for dim in x.shape[2:]) if x.rank > 2 and x.fixed() else 0
    kinds = []
    if channels:
        kinds.append("batch")
    if last >= 4:
        kinds += ["layer", "softmax"]
    if channels and space >= 8:
        kinds.append("instance")
        if channels % 2 == 0 and g.opset >= 21 and x.kind == FLOAT:
            kinds.append("group")
    if x.rank == 4 and channels >= 3:
        kinds.append("lrn")
    kind = d.pick(*kinds) if kinds else ""
    if kind == "batch":
        more = [
            g.vector(channels, kind=x.kind, low=low, high=high)
            for low, high in ((0.5, 1.5), (-1, 1), (-1, 1), (0.5, 2))
        ]
        return g.add("BatchNormalization", [x, *more], x.shape)
    if kind == "instance":
        more = [g.vector(channels, kind=x.kind, low=low, high=1.5) for low in (0.5, -1.0)]
        return g.add("InstanceNormalization", [x, *more], x.shape, epsilon=0.1)
    if kind == "group":
        more = [g.vector(channels, kind=x.kind, low=low, high=1.5) for low in (0.5, -1.0)]
        return g.add("GroupNormalization", [x, *more], x.shape, num_groups=2, epsilon=0.1)
    if kind == "softmax":
        return g.add(d.pick("Softmax", "LogSoftmax"), [x], x.shape, axis=d.pick(x.rank - 1, -1))
    if kind == "lrn":
        return g.add("LRN", [x], x.shape, size=3)
    if kind == "layer":
        scale, shift = g.vector(last, kind=x.kind, low=0.5, high=1.5), g.vector(last, kind=x.kind)
        if g.opset >= 17 and d.flag():
            return g.add("LayerNormalization", [x, scale, shift], x.shape, axis=-1, epsilon=0.1)
        centred = g.add("Sub", [x, _reduced(g, "ReduceMean", x, [x.rank - 1])], x.shape)
        two = g.scalar(2.0, x.kind)
        spread = _reduced(g, "ReduceMean", g.add("Pow", [centred, two], x.shape), [x.rank - 1])
        safe = g.add("Add", [spread, g.scalar(0.1, x.kind)], spread.shape)
        unit = g.add("Div", [centred, g.add("Sqrt", [safe], safe.shape)], x.shape)
        return g.add("Add", [g.add("Mul", [unit, scale], x.shape), shift], x.shape)
    return None


def _reduced(g: Scope, op_type: str, x: Tensor, axes: list[int], keep: bool = True) -> Tensor:
    shape: list[Dim] = []
    for axis, dim in enumerate(x.shape):
        if axis not in axes:
            shape.append(dim)
        elif keep:
            shape.append(1)
    flags = {} if keep else {"keepdims": 0}
    if g.opset >= (13 if op_type == "ReduceSum" else 18):
        return g.add(op_type, [x, g.ints(*axes)], shape, **flags)
    return g.add(op_type, [x], shape, axes=axes, **flags)


def reduction(g: Scope, x: Tensor) -> Tensor | None:
    """A mean, a sum, an extreme or a norm over some axes, which may stay or go."""
    axes = x.free_axes()
    if x.rank < 2 or not axes:
        return None
    d = g.draws
    chosen = sorted(axes[: d.number(1, min(2, len(axes)))])
    op_type = d.pick("ReduceMean", "ReduceMax", "ReduceSum", "ReduceMin", "ReduceL2")
    return _reduced(g, op_type, x, chosen, keep=not d.flag())


def transpose(g: Scope, x: Tensor) -> Tensor | None:
    """Axes in another order; a batch, which is open, stays in front or goes to the second place."""
    if x.rank < 2 or x.kind == HALF:  # ONNX Runtime 1.32 dies of it in front of a product
        return None
    d = g.draws
    if x.shape[0] == N:
        order = [0, *d.shuffled(range(1, x.rank))]
        if d.rarely():
            order[0], order[1] = order[1], order[0]
    else:
        order = d.shuffled(range(x.rank))
    return g.add("Transpose", [x], tuple(x.shape[axis] for axis in order), perm=order)


def reshape(g: Scope, x: Tensor) -> Tensor | None:
    """The same elements in another shape: joined or divided axes, Flatten, Squeeze or Unsqueeze."""
    d, kind = g.draws, g.draws.pick("flatten", "join", "divide", "unsqueeze", "squeeze", "computed")
    numbers = all(isinstance(dim, int) for dim in x.shape[1:])
    rest = math.prod(int(dim) for dim in x.shape[1:]) if numbers else 0
    if kind == "squeeze":
        ones = [axis for axis, dim in enumerate(x.shape) if dim == 1 and axis]
        return squeeze(g, x, d.pick(*ones)) if ones else None
    if kind == "unsqueeze":
        if x.rank > 4:
            return None
        axis = d.number(1, x.rank) if x.rank else 0
        shape = (*x.shape[:axis], 1, *x.shape[axis:])
        if g.opset < 13:
            return g.add("Unsqueeze", [x], shape, axes=[axis])
        return g.add("Unsqueeze", [x, g.ints(axis)], shape)
    if not numbers or x.rank < 2:
        return None
    if kind == "flatten":
        return g.add("Flatten", [x], (x.shape[0], rest))
    if kind == "computed":  # as exporters write x.view(x.size(0), -1)
        size = g.add("Gather", [g.add("Shape", [x], (x.rank,), kind=TensorProto.INT64), g.ints(0)], (1,), axis=0)
        target = g.add("Concat", [size, g.ints(-1)], (2,), axis=0)
        return g.add("Reshape", [x, target], (x.shape[0], rest), kind=x.kind)
    if kind == "join" and x.rank > 2:
        last = int(x.shape[-1]) * int(x.shape[-2])
        shape = (*x.shape[:-2], last)
        return g.add("Reshape", [x, g.ints(*[0] * (x.rank - 2), -1)], shape)
    last = int(x.shape[-1])
    if kind == "divide" and x.rank < 5 and last % 2 == 0:
        zeros = [0] * (x.rank - 1)
        return g.add("Reshape", [x, g.ints(*zeros, 2, last // 2)], (*x.shape[:-1], 2, last // 2))
    if isinstance(x.shape[0], int):
        return g.add("Reshape", [x, g.ints(-1)], (x.shape[0] * rest,))
    return None


def pick_elements(g: Scope, x: Tensor) -> Tensor | None:
    """Some of the elements: by Slice with any step, by Gather, as a part of a Split, or as the largest ones."""
    axes = x.free_axes(2)
    if not axes:
        return None
    d = g.draws
    axis = d.pick(*axes)
    size = int(x.shape[axis])
    kind = d.pick("slice", "split", "gather", "top")

    def of(length: int) -> tuple[Dim, ...]:
        return (*x.shape[:axis], length, *x.shape[axis + 1 :])

    if kind == "slice":
        begin, end, step = d.pick((0, size // 2, 1), (1, 2**31, 2), (-1, -(2**31), -1), (0, -1, 1))
        length = len(range(size)[slice(begin, None if abs(end) > size else end, step)])
        return g.add("Slice", [x, g.ints(begin), g.ints(end), g.ints(axis), g.ints(step)], of(length))
    if kind == "gather":
        chosen = d.pick([0], [size - 1, 0], [0, 0, -1])
        if len(chosen) == 1 and d.flag() and x.rank > 1:
            index = g.constant(np.array(chosen[0], np.int64), "i", plain=True)
            return g.add("Gather", [x, index], (*x.shape[:axis], *x.shape[axis + 1 :]), axis=axis)
        return g.add("Gather", [x, g.ints(*chosen)], of(len(chosen)), axis=axis)
    if kind == "top":
        names, k = [g.name("t"), g.name("t")], max(1, size // 2)
        g.node("TopK", [x, g.ints(k)], names, axis=axis)
        g.tensors.append(Tensor(names[0], of(k), x.kind))
        return g.tensors[-1]
    sizes = [size // 2, size // 2] if size % 2 == 0 else [1, size - 1]
    names = [g.name("t"), g.name("t")]
    more = {"num_outputs": 2} if g.opset >= 18 else {}
    if size % 2 == 0 and d.flag():
        g.node("Split", [x], names, axis=axis, **more)
    elif g.opset < 13:
        g.node("Split", [x], names, axis=axis, split=sizes)
    else:
        g.node("Split", [x, g.ints(*sizes)], names, axis=axis)
    g.tensors += [Tensor(name, of(length), x.kind) for name, length in zip(names, sizes, strict=True)]
    return g.tensors[-d.pick(1, 2)]


def concat(g: Scope, x: Tensor) -> Tensor | None:
    """Behind each other: a tensor with others, with a constant, or with itself."""
    d = g.draws
    axes = x.free_axes()
    if not axes:
        return None
    axis = d.pick(*axes)
    parts = [x]
    for other in g.readable():
        if other is x or other.kind != x.kind or other.rank != x.rank or not isinstance(other.shape[axis], int):
            continue
        if all(a == b for i, (a, b) in enumerate(zip(x.shape, other.shape, strict=True)) if i != axis):
            parts.append(other)
        if len(parts) == 3:
            break
    parts = d.shuffled(parts[: d.number(2, 3)]) if len(parts) > 1 else [x, x]
    shape = (*x.shape[:axis], sum(int(part.shape[axis]) for part in parts), *x.shape[axis + 1 :])
    named: list[Tensor | str] = list(parts)
    if x.fixed(but=()) and d.rarely():
        named.append(g.vector(*map(int, x.shape), kind=x.kind))
        shape = (*shape[:axis], int(shape[axis]) + int(x.shape[axis]), *shape[axis + 1 :])
    return g.add("Concat", named, shape, axis=d.pick(axis, axis - x.rank))


def resize(g: Scope, x: Tensor) -> Tensor | None:
    """A larger or smaller image, by any interpolation, or its pixels moved to channels and back."""
    if x.rank != 4 or not x.fixed():
        return None
    d = g.draws
    batch, channels, height, width = x.shape[0], *(int(dim) for dim in x.shape[1:])
    kind = d.pick("nearest", "linear", "DepthToSpace", "SpaceToDepth", "cubic")
    if kind == "DepthToSpace":
        if channels % 4:
            return None
        more = {"mode": d.pick("DCR", "CRD")}
        return g.add(kind, [x], (batch, channels // 4, height * 2, width * 2), blocksize=2, **more)
    if kind == "SpaceToDepth":
        if height % 2 or width % 2:
            return None
        return g.add(kind, [x], (batch, channels * 4, height // 2, width // 2), blocksize=2)
    if height * width > 200:
        return None
    up, right = d.pick(2, 1), d.pick(2, 3)
    scales = g.constant(np.array([1, 1, up, right], np.float32), "r", plain=True)
    ways = {"nearest": ("asymmetric", "half_pixel"), "linear": ("half_pixel", "align_corners", "pytorch_half_pixel")}
    more = {"mode": kind, "coordinate_transformation_mode": d.pick(*ways.get(kind, ("half_pixel",)))}
    if kind == "nearest":
        more["nearest_mode"] = d.pick("floor", "round_prefer_floor")
    region = "" if g.opset >= 13 else g.constant(np.zeros(0, np.float32), "r", plain=True)
    return g.add("Resize", [x, region, scales], (batch, channels, height * up, width * right), **more)


def pad(g: Scope, x: Tensor) -> Tensor | None:
    """A border of one element: of zeros, another number, copies or reflections."""
    axes = [axis for axis in x.free_axes(2) if axis or x.shape[0] != N]
    if not axes:
        return None
    d = g.draws
    mode = d.pick("constant", "reflect", "edge")
    ends = [[0] * x.rank, [0] * x.rank]
    shape = list(x.shape)
    for axis in axes[: d.number(1, min(2, len(axes)))]:
        for side in ends:
            side[axis] = d.pick(1, 0)
        shape[axis] = int(shape[axis]) + ends[0][axis] + ends[1][axis]
    inputs: list[Tensor | str] = [x, g.ints(*ends[0], *ends[1])]
    if mode == "constant" and d.flag():
        inputs.append(g.scalar(d.pick(0.0, 1.0, -0.5), x.kind))
    return g.add("Pad", inputs, shape, mode=mode)


def repeat(g: Scope, x: Tensor) -> Tensor | None:
    """An axis of one element expanded, or an axis repeated."""
    axes = x.free_axes()
    if not axes or len(axes) < x.rank - 1:
        return None
    axis = g.draws.pick(*axes)
    size = int(x.shape[axis])
    if size == 1:
        target = [1] * x.rank
        target[axis] = 3
        return g.add("Expand", [x, g.ints(*target)], (*x.shape[:axis], 3, *x.shape[axis + 1 :]))
    if size > 8:
        return None
    times = [2 if a == axis else 1 for a in range(x.rank)]
    return g.add("Tile", [x, g.ints(*times)], (*x.shape[:axis], size * 2, *x.shape[axis + 1 :]))


def choose(g: Scope, x: Tensor) -> Tensor | None:
    """Where: between a tensor and another one, by a constant or by its own sign."""
    d = g.draws
    if d.flag() and x.rank and isinstance(x.shape[-1], int):
        size = x.shape[-1]
        condition: Tensor | str = g.constant(np.arange(size) % 3 > 0, "m", plain=True)
    else:
        condition = g.add("Greater", [x, g.scalar(0.0, x.kind)], x.shape, kind=TensorProto.BOOL)
    others = g.like(x) if isinstance(condition, str) else []
    other: Tensor | str = d.pick(*others[:2]) if others else g.scalar(0.0, x.kind)
    return g.add("Where", [condition, x, other], x.shape, kind=x.kind)


def cast(g: Scope, x: Tensor) -> Tensor | None:
    """To half precision, or back; or to double and back at once."""
    if x.kind == HALF:
        return g.add("Cast", [x], x.shape, kind=FLOAT, to=FLOAT)
    if g.draws.flag():
        double = g.add("Cast", [x], x.shape, kind=TensorProto.DOUBLE, to=TensorProto.DOUBLE)
        return g.add("Cast", [double], x.shape, kind=FLOAT, to=FLOAT)
    return g.add("Cast", [x], x.shape, kind=HALF, to=HALF)
