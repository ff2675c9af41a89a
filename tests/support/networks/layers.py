"""Nodes that a target may quantize: convolutions, products, recurrent layers, poolings."""

from __future__ import annotations

import numpy as np

from networks.scope import HALF, Dim, N, Scope, Tensor

_CHANNELS = (4, 3, 6, 8, 1)


def conv(g: Scope, x: Tensor) -> Tensor | None:
    """A convolution of any rank, in groups or depthwise, with strides, dilations and padding of every kind."""
    if not x.fixed():
        return None
    d, channels, sizes = g.draws, int(x.shape[1]), [int(dim) for dim in x.shape[2:]]
    kernel = [min(d.pick(3, 1, 2), size) for size in sizes]
    strides = [d.pick(1, 2) for _ in sizes]
    dilations = [d.pick(1, 2) if (k - 1) * 2 < size else 1 for k, size in zip(kernel, sizes, strict=True)]
    groups = d.pick(*dict.fromkeys([1, channels, *(2 for _ in range(channels % 2 == 0))]))
    out = groups * d.pick(2, 1) if groups > 1 else d.pick(*_CHANNELS)
    spans = [(k - 1) * dilation + 1 for k, dilation in zip(kernel, dilations, strict=True)]
    attributes: dict[str, object] = {"strides": strides, "dilations": dilations, "group": groups}
    if d.flag():
        attributes["kernel_shape"] = kernel
    auto = d.pick("NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID")
    if auto.startswith("SAME"):
        attributes |= {"auto_pad": auto, "dilations": [1 for _ in sizes]}  # ONNX Runtime takes no others there
        after = [-(-size // stride) for size, stride in zip(sizes, strides, strict=True)]
    else:
        pads = [d.pick(span // 2, 0) for span in spans] + [d.pick(span // 2, 0) for span in spans]
        if auto == "VALID":
            attributes["auto_pad"], pads = auto, [0] * len(pads)
        else:
            attributes["pads"] = pads
        padded = [size + a + b for size, a, b in zip(sizes, pads, pads[len(sizes) :], strict=False)]
        after = [(size - span) // stride + 1 for size, span, stride in zip(padded, spans, strides, strict=True)]
    inputs: list[Tensor | str] = [x, g.weight(out, channels // groups, *kernel, kind=x.kind)]
    if d.flag():
        inputs.append(g.vector(out, kind=x.kind))
    return g.add("Conv", inputs, (x.shape[0], out, *after), **attributes)


def same_conv(g: Scope, x: Tensor) -> Tensor | None:
    """A convolution that keeps the shape."""
    if not x.fixed():
        return None
    channels, rank = int(x.shape[1]), x.rank - 2
    weight = g.weight(channels, channels, *[3] * rank, kind=x.kind)
    return g.add("Conv", [x, weight], x.shape, pads=[1] * 2 * rank)


def conv_transpose(g: Scope, x: Tensor) -> Tensor | None:
    """A transposed convolution with strides, groups and padding on both sides."""
    if not x.fixed() or max(int(dim) for dim in x.shape[2:]) > 12:
        return None
    d, channels, sizes = g.draws, int(x.shape[1]), [int(dim) for dim in x.shape[2:]]
    kernel = [d.pick(2, 3, 1) for _ in sizes]
    strides = [d.pick(2, 1) for _ in sizes]
    more = [d.pick(0, stride - 1) for stride in strides]
    groups = d.pick(*dict.fromkeys([1, channels]))
    out = d.pick(4, 2, 3) if groups == 1 else d.pick(1, 2)
    whole = [(s - 1) * stride + k for s, stride, k in zip(sizes, strides, kernel, strict=True)]
    attributes: dict[str, object] = {"strides": strides}
    if d.flag():
        attributes["kernel_shape"] = kernel
    if d.rarely():
        attributes["auto_pad"] = d.pick("SAME_UPPER", "SAME_LOWER")
        after = [s * stride for s, stride in zip(sizes, strides, strict=True)]
        if any(length > target for length, target in zip(after, whole, strict=True)):
            return None
    else:
        pads = [d.pick(0, 1) if size > 2 else 0 for size in [*whole, *whole]]
        attributes |= {"pads": pads, "output_padding": more}
        ends = zip(whole, pads, pads[len(whole) :], more, strict=False)
        after = [length - a - b + extra for length, a, b, extra in ends]
        if min(after) < 1:
            return None
    # each output element is the sum of about channels * kernel / strides products
    share = np.sqrt(out * np.prod(kernel) / (channels // groups * np.prod(kernel) / np.prod(strides)))
    inputs: list[Tensor | str] = [x, g.weight(channels, out, *kernel, kind=x.kind, gain=round(float(share), 2))]
    if d.flag():
        inputs.append(g.vector(out * groups, kind=x.kind))
    return g.add("ConvTranspose", inputs, (x.shape[0], out * groups, *after), group=groups, **attributes)


def gemm(g: Scope, x: Tensor) -> Tensor | None:
    """A Gemm with any of its attributes; its third operand has any shape that may be broadcast."""
    d = g.draws
    turned = d.rarely() and x.fixed(but=())
    rows, inner = (x.shape[1], x.shape[0]) if turned else x.shape
    if not isinstance(inner, int):
        return None
    out = d.pick(*_CHANNELS)
    attributes: dict[str, object] = {"transA": int(turned)} if turned else {}
    if d.flag():
        attributes["transB"] = 1
    if d.rarely():
        attributes["alpha"], attributes["beta"] = d.pick(0.5, 2.0), d.pick(0.5, 0.0, 1.0)
    shape = (out, inner) if "transB" in attributes else (inner, out)
    gain = 1.0 if "transB" in attributes else round(float(np.sqrt(out / inner)), 2)
    inputs: list[Tensor | str] = [x, g.weight(*shape, kind=x.kind, gain=gain)]
    bias = d.pick("vector", "none", "row", "scalar", "column", "activation")
    if bias == "vector":
        inputs.append(g.vector(out, kind=x.kind))
    elif bias == "row":
        inputs.append(g.vector(1, out, kind=x.kind))
    elif bias == "scalar":
        inputs.append(g.scalar(0.3, x.kind))
    elif bias == "column" and isinstance(rows, int):
        inputs.append(g.vector(rows, 1, kind=x.kind))
    elif bias == "activation":
        same = [t for t in g.readable() if t.shape == (rows, out) and t.kind == x.kind]
        inputs += same[:1]
    return g.add("Gemm", inputs, (rows, out), **attributes)


def product(g: Scope, x: Tensor) -> Tensor | None:
    """A MatMul by a constant of one to three dimensions, on either side."""
    d = g.draws
    side = d.pick("right", "right", "left", "vector", "stack")
    if side == "left":
        if x.rank < 2 or not isinstance(x.shape[-2], int):
            return None
        out = d.pick(*_CHANNELS)
        return g.add(
            "MatMul", [g.weight(out, x.shape[-2], kind=x.kind), x], (*x.shape[:-2], out, x.shape[-1]), kind=x.kind
        )
    inner = x.shape[-1]
    if not isinstance(inner, int):
        return None
    if side == "vector":
        return g.add(
            "MatMul", [x, g.weight(inner, kind=x.kind, gain=round(float(1 / np.sqrt(inner)), 2))], x.shape[:-1]
        )
    if side == "stack" and x.rank >= 3 and isinstance(x.shape[-3], int):
        out = d.pick(*_CHANNELS)
        weight = g.weight(x.shape[-3], inner, out, kind=x.kind, gain=round(float(np.sqrt(out)), 2))
        return g.add("MatMul", [x, weight], (*x.shape[:-1], out))
    return square(g, x, d.pick(*_CHANNELS))


def square(g: Scope, x: Tensor, out: int | None = None) -> Tensor | None:
    """A MatMul by a constant matrix, which keeps the shape if no other width is asked for."""
    inner = x.shape[-1] if x.rank else N
    if not isinstance(inner, int):
        return None
    out = out or inner
    weight = g.weight(inner, out, kind=x.kind, gain=round(float(np.sqrt(out / inner)), 2))
    return g.add("MatMul", [x, weight], (*x.shape[:-1], out))


def linear(g: Scope, x: Tensor) -> Tensor | None:
    """A product with its bias, which exporters write as MatMul and Add."""
    made = square(g, x, g.draws.pick(*_CHANNELS))
    if made is None:
        return None
    bias = g.vector(int(made.shape[-1]), kind=x.kind)
    operands = [made, bias] if g.draws.flag() else [bias, made]
    return g.add("Add", operands, made.shape, kind=x.kind)


def _projected(g: Scope, x: Tensor) -> Tensor:
    return square(g, x) or x


def attention(g: Scope, x: Tensor) -> Tensor | None:
    """softmax(q k') v, with q, k and v from one tensor or from two."""
    inner, rows = x.shape[-1], x.shape[-2]
    if not isinstance(inner, int) or rows == N or x.kind == HALF:
        return None
    source = g.draws.pick(x, *g.like(x)[:1])
    q, k, v = (_projected(g, t) for t in (x, source, source))
    turn = [*range(x.rank - 2), x.rank - 1, x.rank - 2]
    scores = g.add(
        "MatMul", [q, g.add("Transpose", [k], (*k.shape[:-2], k.shape[-1], rows), perm=turn)], (*x.shape[:-1], rows)
    )
    scaled = g.add("Mul", [scores, g.scalar(1 / np.sqrt(inner), x.kind)], scores.shape)
    return g.add("MatMul", [g.add("Softmax", [scaled], scaled.shape, axis=x.rank - 1), v], x.shape)


def recurrent(g: Scope, x: Tensor) -> Tensor | None:
    """LSTM, GRU or RNN over the second axis or over the first, in any direction."""
    d = g.draws
    if x.kind == HALF:
        return None
    if isinstance(x.shape[0], str):
        if not x.fixed():
            return None
        x = g.add("Transpose", [x], (x.shape[1], x.shape[0], x.shape[2]), perm=[1, 0, 2])
    if not isinstance(x.shape[2], int):
        return None
    steps, batch, width = x.shape
    op_type, gates = d.pick(("LSTM", 4), ("GRU", 3), ("RNN", 1))
    direction = d.pick("forward", "reverse", "bidirectional")
    ways, hidden = 1 + (direction == "bidirectional"), d.pick(4, 3)
    inputs: list[Tensor | str] = [x]
    inputs += [
        g.weight(ways, gates * hidden, n, kind=x.kind, gain=float(np.sqrt(gates * hidden).round(2)))
        for n in (int(width), hidden)
    ]
    if d.flag():
        inputs.append(g.vector(ways, 2 * gates * hidden, kind=x.kind))
    attributes: dict[str, object] = {"hidden_size": hidden, "direction": direction}
    if op_type == "GRU":
        attributes["linear_before_reset"] = d.pick(1, 0)
    every, last = g.name("t"), g.name("t")
    both = d.pick("every", "last")
    g.node(op_type, inputs, [every] if both == "every" else ["", last], **attributes)
    if both == "last":
        made = Tensor(last, (ways, batch, hidden), x.kind)
        g.tensors.append(made)
        return made
    shape: tuple[Dim, ...] = (steps, ways, batch, hidden)
    made = Tensor(every, shape, x.kind)
    g.tensors.append(made)
    if ways == 1 and d.flag():
        return squeeze(g, made, 1)
    flat = g.add("Transpose", [made], (steps, batch, ways, hidden), perm=[0, 2, 1, 3])
    return g.add("Reshape", [flat, g.ints(0, 0, -1)], (steps, batch, ways * hidden))


def squeeze(g: Scope, x: Tensor, axis: int) -> Tensor:
    shape = (*x.shape[:axis], *x.shape[axis + 1 :])
    if g.opset < 13:
        return g.add("Squeeze", [x], shape, axes=[axis])
    return g.add("Squeeze", [x, g.ints(axis)], shape)


def pool(g: Scope, x: Tensor) -> Tensor | None:
    """MaxPool or AveragePool with strides, padding and, perhaps, a last window that sticks out."""
    if not x.fixed():
        return None
    d, sizes = g.draws, [int(dim) for dim in x.shape[2:]]
    kernel = [min(d.pick(2, 3), size) for size in sizes]
    strides = [d.pick(2, 1) for _ in sizes]
    op_type = d.pick("MaxPool", "AveragePool")
    attributes: dict[str, object] = {"kernel_shape": kernel, "strides": strides}
    pads = [d.pick(0, min(1, k - 1)) for k in [*kernel, *kernel]]
    if op_type == "AveragePool":
        attributes["count_include_pad"] = d.pick(0, 1)
    rounded_up = d.rarely()
    if d.rarely():
        attributes["auto_pad"] = d.pick("SAME_UPPER", "SAME_LOWER")
        after = [-(-size // stride) for size, stride in zip(sizes, strides, strict=True)]
        return g.add(op_type, [x], (*x.shape[:2], *after), **attributes)
    attributes["pads"] = pads
    spare = [s + a + b - k for s, a, b, k in zip(sizes, pads, pads[len(sizes) :], kernel, strict=False)]
    if rounded_up:
        attributes["ceil_mode"] = 1
        after = [-(-rest // stride) + 1 for rest, stride in zip(spare, strides, strict=True)]
        ends = zip(after, strides, sizes, pads, strict=False)
        if any((length - 1) * stride >= size + pad for length, stride, size, pad in ends):
            return None  # a window outside of the image, of which versions differ
    else:
        after = [rest // stride + 1 for rest, stride in zip(spare, strides, strict=True)]
    return g.add(op_type, [x], (*x.shape[:2], *after), **attributes)


def global_pool(g: Scope, x: Tensor) -> Tensor | None:
    shape = (*x.shape[:2], *[1] * (x.rank - 2))
    return g.add(g.draws.pick("GlobalAveragePool", "GlobalMaxPool"), [x], shape)


def excitation(g: Scope, x: Tensor) -> Tensor | None:
    """A squeeze-and-excitation block: channels weighted by what their means say."""
    if not isinstance(x.shape[1], int):
        return None
    mean = g.add("GlobalAveragePool", [x], (*x.shape[:2], *[1] * (x.rank - 2)))
    weight = g.weight(x.shape[1], x.shape[1], *[1] * (x.rank - 2), kind=x.kind)
    gate = g.add("Sigmoid", [g.add("Conv", [mean, weight], mean.shape)], mean.shape)
    return g.add("Mul", [x, gate] if g.draws.flag() else [gate, x], x.shape)
