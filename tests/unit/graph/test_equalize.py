"""Groups of channels that are divided alike, and that dividing them leaves the float function as it is."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from amct_onnx.graph.naming import name_nodes
from amct_onnx.graph.passes.equalize import ChannelGroup, channel_groups, equalize_channels

# Float32 sums of a few dozen products, relative to the largest output.
ROUNDING = 2e-6


def model_of(body: str, shapes: dict[str, tuple[int, ...]], *, inputs: str = "float[n,3,6,6] x") -> ir.Model:
    """Random initializers `shapes` for a graph from x to y."""
    random = np.random.default_rng(0)
    model = ir.from_onnx_text(
        f'<ir_version: 8, opset_import: ["": 17]> g ({inputs}) => (y)\n<int64[1] zero = {{0}}>\n{{ {body} }}'
    )
    for name, shape in shapes.items():
        array = random.standard_normal(shape).astype(np.float32)
        model.graph.register_initializer(ir.Value(name=name, const_value=ir.tensor(array, name=name)))
        value = model.graph.initializers[name]
        value.type, value.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(shape)
    bound = {value.name: value for value in model.graph.initializers.values()}
    for node in model.graph:
        for index, value in enumerate(node.inputs):
            if value is not None and value.name in bound and value is not bound[value.name]:
                node.replace_input_with(index, bound[value.name])
    name_nodes(model)
    return model


def run(model: ir.Model, x: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])


def factors_of(group: ChannelGroup) -> np.ndarray:
    return np.random.default_rng(1).uniform(0.1, 1.0, group.channels).astype(np.float32)


CHAIN = "a = Conv(x, w, b)  k0 = Constant<value_float=1.0>()  r = Relu(a)  y = Conv(r, v)"
RESIDUAL = """
    a = Conv(x, w, b)  c = Conv(a, v)  s = Add(a, c)  d = Conv(s, u)  t = Add(s, d)  q = MaxPool<kernel_shape=[2,2]>(t)
    y = Conv(q, o)
"""
DEPTHWISE = "a = Conv(x, w, b)  r = LeakyRelu(a)  e = Conv<group=8>(r, k)  f = Relu(e)  y = Conv(f, o)"
SLOPES = "a = Conv(x, w, b)  r = PRelu(a, slope)  c = Conv(r, v)  q = PRelu(c, one)  y = Conv(q, o)"
GROUPED = "a = Conv(x, w, b)  r = Relu(a)  e = Conv<group=2>(r, h)  y = Relu(e)"
CLASSIFIER = "a = Conv(x, w, b)  p = GlobalAveragePool(a)  f = Flatten(p)  y = Gemm<transB=1>(f, m, n)"
FLAT = "a = Conv(x, w, b)  f = Flatten(a)  y = Gemm(f, z)"
GEMMS = "f = Flatten(x)  a = Gemm(f, g1, b)  r = Relu(a)  y = Gemm<transB=1>(r, m)"
SHAPES: dict[str, tuple[int, ...]] = {
    **{"w": (8, 3, 1, 1), "b": (8,), "v": (8, 8, 1, 1), "u": (8, 8, 1, 1), "o": (4, 8, 1, 1), "k": (8, 1, 1, 1)},
    **{"slope": (8, 1, 1), "one": (1,)},
    **{"h": (4, 4, 1, 1), "m": (5, 8), "n": (5,), "z": (288, 4), "g1": (108, 8)},
}


@pytest.mark.parametrize(
    ("body", "groups", "consumers"),
    [
        (CHAIN, 1, 1),
        (RESIDUAL, 1, 3),
        (DEPTHWISE, 2, 2),
        (SLOPES, 2, 2),
        (GROUPED, 1, 1),
        (CLASSIFIER, 1, 1),
        (FLAT, 1, 1),
        (GEMMS, 1, 1),
    ],
    ids=["chain", "residual", "depthwise", "slopes", "grouped", "classifier", "flat", "gemms"],
)
def test_the_float_function_stays(body: str, groups: int, consumers: int) -> None:
    model = model_of(body, {name: shape for name, shape in SHAPES.items() if f"{name})" in body or f"{name}," in body})
    found = channel_groups(model)
    assert len(found) == groups
    assert sum(len(group.consumers) for group in found) == consumers
    x = np.random.default_rng(2).standard_normal((2, 3, 6, 6)).astype(np.float32)
    before = run(model, x)
    text = ir.to_proto(model).SerializeToString(deterministic=True)
    equalize_channels(model, {group.key: factors_of(group) for group in found})
    assert ir.to_proto(model).SerializeToString(deterministic=True) != text
    np.testing.assert_allclose(run(model, x), before, rtol=0, atol=ROUNDING * np.abs(before).max() * 8)


def test_channels_are_divided_by_their_factors() -> None:
    model = model_of(CHAIN, {name: SHAPES[name] for name in "wbv"})
    (group,) = channel_groups(model)
    assert (group.measured, group.channels, group.ceiling) == (("r",), 8, np.inf)  # only the Relu reads "a"
    shown = model.clone()
    shown.graph.outputs[:] = [value for node in shown.graph for value in node.outputs if value.name == "r"]
    x = np.random.default_rng(2).standard_normal((2, 3, 6, 6)).astype(np.float32)
    before, factors = run(shown, x), factors_of(group)
    equalize_channels(shown, {})
    divided = model.clone()
    equalize_channels(divided, {group.key: factors})
    divided.graph.outputs[:] = [value for node in divided.graph for value in node.outputs if value.name == "r"]
    np.testing.assert_allclose(run(divided, x), before / factors.reshape(1, 8, 1, 1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "body",
    [
        "a = Conv(x, w, b)  r = Sigmoid(a)  y = Conv(r, v)",
        "a = Conv(x, w, b)  c = Conv(x, w, b)  r = PRelu(a, c)  y = Conv(r, v)",
        "a = Conv(x, w, b)  r = Softmax<axis=1>(a)  y = Conv(r, v)",
        "a = Conv(x, w, b)  c = Conv(x, w, b)  r = Mul(a, c)  y = Conv(r, v)",
        "a = Conv(x, w, b)  c = Conv(x, w, b)  r = Concat<axis=1>(a, c)  y = Relu(r)",
        "a = Conv(x, w, b)  r = Add(a, b1)  y = Conv(r, v)",
        "a = Conv(x, w, b)  r = Clip(a, low, high)  y = Conv(r, v)",
        "a = Conv(x, w, b)  y = Relu(a)",
    ],
    ids=["sigmoid", "slopes", "softmax", "product", "concat", "constant", "clip-at-minus-one", "output"],
)
def test_what_does_not_commute_with_factors_is_left_alone(body: str) -> None:
    shapes = {name: SHAPES[name] for name in "wbv" if f"{name})" in body or f" {name}," in body}
    shapes |= {name: (8, 1, 1) for name in ["b1"] if "b1" in body}
    shapes |= {name: () for name in ("low", "high") if "low" in body}
    model = model_of(body, shapes)
    if "low" in body:
        for name, bound in (("low", -1.0), ("high", 1.0)):
            model.graph.initializers[name].const_value = ir.tensor(np.float32(bound), name=name)
    assert channel_groups(model) == ()


def test_a_clip_from_zero_has_a_ceiling() -> None:
    model = model_of("a = Conv(x, w, b)  r = Clip(a, low, high)  y = Conv(r, v)", {
        **{name: SHAPES[name] for name in "wbv"}, "low": (), "high": (),
    })  # fmt: skip
    for name, bound in (("low", 0.0), ("high", 6.0)):
        model.graph.initializers[name].const_value = ir.tensor(np.float32(bound), name=name)
    (group,) = channel_groups(model)
    assert (group.ceiling, group.measured) == (6.0, ("r",))


def test_factors_of_another_model_are_refused() -> None:
    model = model_of(CHAIN, {name: SHAPES[name] for name in "wbv"})
    with pytest.raises(KeyError):
        equalize_channels(model, {"nothing": np.ones(8, np.float32)})
    with pytest.raises(ValueError, match="8 channels"):
        equalize_channels(model, {channel_groups(model)[0].key: np.ones(7, np.float32)})
