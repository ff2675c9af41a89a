"""What every dialect promises: the arithmetic of amct_formats.md: Fake-quant model, Deploy model, whatever the model
looks like.

Each case is a small float model and factors for its layers. `_expected` computes what integers give, in NumPy with
int64 sums, from the float model alone; both lowered models have to agree with it to the last bit.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper, parser
from opsets import newest_opset

from amct_onnx.errors import ModelError
from amct_onnx.graph.constants import constant_value
from amct_onnx.graph.passes.normalize_layers import normalize_layers
from amct_onnx.graph.read.lift_deploy import lift_deploy
from amct_onnx.numerics.grid import QParams, QSpec
from amct_onnx.numerics.packing import unpack_dequant
from amct_onnx.targets.ascend_dialect import AscendDialect
from amct_onnx.targets.simulation_dialect import SimulationDialect
from amct_onnx.targets.to_integers import Dialect, lower
from amct_onnx.values.layers import QuantizedLayer, QuantizedTensor

Array = np.ndarray[Any, Any]
Lower = Callable[[ir.Model, "Parts"], onnx.ModelProto]
WEIGHT_OPS = ("Conv", "ConvTranspose", "Gemm", "MatMul")

# An average is a quotient: how ONNX Runtime rounds it (sum / n or sum * (1 / n)) is its own affair.
POOL_TOLERANCE = 3e-7

# Sums of int8 layers beyond 2^24 are rounded by float32 where the deploy model has all of their digits.
LONG_SUM_TOLERANCE = 1e-6

# (scale, zero point) of int8, or with 16 behind them of int16.
Factors = tuple[float, int] | tuple[float, int, int]


# The cases


@dataclass(frozen=True, kw_only=True)
class Case:
    """A float model, the (scale, zero point) of each layer's activation, and the value that is fed.

    A key "node:1" has the factors of input 1: of a MatMul's second activation, or of a tensor in front of its node.
    """

    name: str
    model: onnx.ModelProto = field(repr=False)
    factors: Mapping[str, Factors]
    x: Array = field(repr=False)

    @property
    def layers(self) -> dict[str, Factors]:
        return {name: factors for name, factors in self.factors.items() if ":" not in name}

    @property
    def tensors(self) -> dict[tuple[str, int], Factors]:
        """By node and input index: what is quantized and restored in front of a float node."""
        keys = {tuple(key.split(":")): factors for key, factors in self.factors.items() if ":" in key}
        return {(node, int(index)): factors for (node, index), factors in keys.items() if node not in self.layers}

    @property
    def has_pool(self) -> bool:
        return any(node.op_type == "AveragePool" for node in self.model.graph.node)


def _normal(name: str, shape: tuple[int, ...]) -> Array:
    return np.random.default_rng(list(name.encode())).normal(0, 1, shape).astype(np.float32)


def _case(
    name: str,
    body: str,
    x: tuple[int, ...],
    factors: Mapping[str, Factors],
    *,
    opset: int = 17,
    ir_version: int = 8,
    imports: str | None = None,
    outputs: str = "float y",
    **weights: tuple[int, ...] | Array,
) -> Case:
    shape = ",".join(str(n) for n in x)
    text = (
        f'<ir_version: {ir_version}, opset_import: [{imports or f""""" : {opset}"""}]> '
        f"g (float[{shape}] x) => ({outputs}) {{{body}}}"
    )
    proto = parser.parse_model(text)
    for key, value in weights.items():
        array = value if isinstance(value, np.ndarray) else _normal(name + key, value)
        proto.graph.initializer.append(numpy_helper.from_array(array, key))
    for output in proto.graph.output:
        output.type.tensor_type.ClearField("shape")  # the text has said that it is a scalar
    proto = onnx.shape_inference.infer_shapes(proto, strict_mode=True, data_prop=True)
    return Case(name=name, model=proto, factors=factors, x=2 * _normal(name + "x", x))


_ONE = {"a": (0.05, -11)}
_IMAGE = (2, 4, 6, 7)
_POOL = "[a] y = AveragePool <kernel_shape=[3,2], pads=[1,0,1,1], strides=[2,1], count_include_pad={}> (x)"


def _cases() -> list[Case]:
    conv = "[a] y = Conv <pads=[1,1,1,1]> (x, w, b)"
    two = "[a] s = Conv (x, w, b) [r] t = Relu (s) [c] y = Conv (t, v, d)"
    two_weights: dict[str, tuple[int, ...]] = {"w": (6, 4, 3, 3), "b": (6,), "v": (5, 6, 1, 1), "d": (5,)}
    sharing = "[a] s = Conv (x, w, b) [c] t = Conv (x, v, d) [sum] y = Add (s, t)"
    shared: dict[str, tuple[int, ...]] = {"w": (6, 4, 3, 3), "b": (6,), "v": (6, 4, 3, 3), "d": (6,)}
    big: dict[str, tuple[int, ...]] = {"w": (6, 4, 3, 3), "b": (6,)}
    return [
        _case("conv_1d", "[a] y = Conv <pads=[2,0], dilations=[2]> (x, w, b)", (2, 4, 9), _ONE, w=(6, 4, 3), b=(6,)),
        _case("conv_2d", conv, _IMAGE, _ONE, **big),
        _case("conv_2d_strides", "[a] y = Conv <strides=[2,3]> (x, w, b)", _IMAGE, _ONE, **big),
        _case("conv_3d", "[a] y = Conv <pads=[1,0,0,0,1,1]> (x, w, b)", (1, 3, 4, 4, 5), {"a": (0.04, 0)},
              w=(4, 3, 2, 2, 2), b=(4,)),
        _case("conv_grouped", "[a] y = Conv <group=2> (x, w, b)", _IMAGE, _ONE, w=(6, 2, 3, 3), b=(6,)),
        _case("conv_depthwise", "[a] y = Conv <group=4> (x, w, b)", _IMAGE, _ONE, w=(8, 1, 3, 3), b=(8,)),
        _case("conv_one_channel", "[a] y = Conv (x, w, b)", _IMAGE, _ONE, w=(1, 4, 3, 3), b=(1,)),
        _case("conv_without_bias", "[a] y = Conv (x, w)", _IMAGE, _ONE, w=(6, 4, 3, 3)),
        _case("transpose", "[a] y = ConvTranspose <strides=[2,1], pads=[1,0,1,0], output_padding=[1,0]> (x, w, b)",
              _IMAGE, _ONE, w=(4, 6, 3, 2), b=(6,)),
        _case("transpose_grouped", "[a] y = ConvTranspose <group=2> (x, w, b)", _IMAGE, _ONE, w=(4, 3, 3, 3), b=(6,)),
        _case("transpose_depthwise", "[a] y = ConvTranspose <group=4, strides=[2,2]> (x, w)", _IMAGE, _ONE,
              w=(4, 1, 2, 2)),
        _case("gemm", "[a] y = Gemm (x, w, b)", (5, 7), _ONE, w=(7, 6), b=(6,)),
        _case("gemm_normalized", "[a] y = Gemm <transA=1, transB=1, alpha=0.5, beta=2.0> (x, w, b)", (7, 5), _ONE,
              w=(6, 7), b=(1, 6)),
        _case("gemm_without_bias", "[a] y = Gemm (x, w)", (5, 7), _ONE, w=(7, 6)),
        _case("matmul", "[a] y = MatMul (x, w)", (5, 7), _ONE, w=(7, 6)),
        _case("matmul_of_images", "[a] y = MatMul (x, w)", (2, 3, 5, 7), _ONE, w=(7, 6)),
        _case("matmul_3d", "[a] y = MatMul (x, w)", (3, 5, 7), _ONE, w=(3, 7, 6)),
        _case("matmul_3d_widens", "[a] y = MatMul (x, w)", (5, 7), _ONE, w=(3, 7, 6)),
        _case("matmul_add", "[a] m = MatMul (x, w) [add] y = Add (m, b)", (5, 7), _ONE, w=(7, 6), b=(6,)),
        _case("pool", _POOL.format(0), _IMAGE, _ONE),
        _case("pool_counts_pads", _POOL.format(1), _IMAGE, _ONE),
        _case("two_layers", two, _IMAGE, {"a": (0.05, 3), "c": (0.2, -128)}, **two_weights),
        _case("one_of_two", two, _IMAGE, {"c": (0.2, -128)}, **two_weights),
        _case("shared_input", sharing, _IMAGE, {"a": (0.05, 3), "c": (0.05, 3)}, **shared),
        _case("shared_input_other_scale", sharing, _IMAGE, {"a": (0.05, 3), "c": (0.06, 3)}, **shared),
        _case("shared_input_other_offset", sharing, _IMAGE, {"a": (0.05, 3), "c": (0.05, 4)}, **shared),
        _case("shared_input_half_float", sharing, _IMAGE, {"c": (0.05, 3)}, **shared),
        _case("inner_output", two, _IMAGE, {"a": (0.05, 3), "c": (0.2, -128)}, outputs="float y, float s",
              **two_weights),
        _case("output_twice_read", "[a] y = Conv (x, w, b) [r] z = Relu (y) [n] q = Neg (y)", _IMAGE, _ONE,
              outputs="float y, float z, float q", **big),
        _case("input_is_output", "[a] y = Conv (x, w, b) [same] z = Identity (x)", _IMAGE, _ONE,
              outputs="float y, float z", **big),
        _case("saturating", conv, _IMAGE, {"a": (0.004, 90)}, **big),
        _case("lowest_offset", conv, _IMAGE, {"a": (0.02, -128)}, **big),
        _case("highest_offset", conv, _IMAGE, {"a": (0.02, 127)}, **big),
        _case("opset_11", two, _IMAGE, {"a": (0.05, 3), "c": (0.2, -128)}, opset=11, ir_version=6, **two_weights),
        _case("opset_13", conv, _IMAGE, _ONE, opset=13, ir_version=7, **big),
        _case("opset_newest", two, _IMAGE, {"a": (0.05, 3), "c": (0.2, -128)}, opset=newest_opset(), ir_version=10,
              **two_weights),
        _case("ir_4", conv, _IMAGE, _ONE, opset=11, ir_version=4, **big),
        _case("opset_second", conv, _IMAGE, _ONE, imports='"ai.onnx.ml" : 3, "" : 13', **big),
        _case("product", "[a] y = MatMul (x, x)", (2, 3, 5, 5), {"a": (0.05, 0), "a:1": (0.06, 0)}),
        _case("product_shares_its_tensor", "[a] y = MatMul (x, x)", (5, 5), {"a": (0.05, 0), "a:1": (0.05, 0)}),
        _case("product_widens", "[flat] r = ReduceMean <axes=[0], keepdims=0> (x) [a] y = MatMul (x, r)", (3, 5, 5),
              {"a": (0.05, 0), "a:1": (0.03, 0)}),
        _case("tensor_of_a_pool", "[p] y = MaxPool <kernel_shape=[2,2]> (x)", _IMAGE, {"p:0": (0.05, -11)}),
        _case("tensors_of_an_add", "[n] t = Abs (x) [s] y = Add (t, x)", _IMAGE,
              {"s:0": (0.05, -50), "s:1": (0.06, 0)}),
        _case("tensor_twice_in_an_add", "[s] y = Add (x, x)", _IMAGE, {"s:0": (0.05, 3), "s:1": (0.05, 3)}),
        _case("tensor_shared_with_a_later_layer", "[p] t = MaxPool <kernel_shape=[1,1]> (x) [c] u = Conv (x, w, b) "
              "[m] v = ReduceMean <axes=[1]> (t) [s] y = Add (u, v)", _IMAGE, {"p:0": (0.05, 3), "c": (0.05, 3)},
              w=(6, 4, 1, 1), b=(6,)),
        _case("tensor_behind_a_layer", "[c] t = Conv (x, w, b) [p] y = MaxPool <kernel_shape=[2,2]> (t)", _IMAGE,
              {"c": (0.05, 3), "p:0": (0.1, 5)}, outputs="float y, float t", w=(6, 4, 1, 1), b=(6,)),
        _case("int16_conv", conv, _IMAGE, {"a": (2e-4, -1234, 16)}, **big),
        _case("int16_conv_1d", "[a] y = Conv <pads=[2,1]> (x, w)", (2, 4, 9), {"a": (2e-4, 9, 16)}, w=(6, 4, 3)),
        _case("int16_conv_grouped", "[a] y = Conv <group=2, strides=[2,1]> (x, w, b)", _IMAGE, {"a": (2e-4, 0, 16)},
              w=(6, 2, 3, 3), b=(6,)),
        _case("int16_transpose", "[a] y = ConvTranspose <strides=[2,1], pads=[1,0,1,0]> (x, w, b)",
              _IMAGE, {"a": (4e-4, -15000, 16)}, w=(4, 6, 3, 2), b=(6,)),
        _case("int16_gemm", "[a] y = Gemm <transB=1> (x, w, b)", (5, 7), {"a": (4e-4, 15000, 16)}, w=(6, 7), b=(6,)),
        _case("int16_then_int8", two, _IMAGE, {"a": (2e-4, 300, 16), "c": (0.2, -128)}, **two_weights),
        _case("int16_beside_int8", sharing, _IMAGE, {"a": (2e-4, 3, 16), "c": (0.05, 3)}, outputs="float y, float s",
              **shared),
        _case("int16_opset_newest", conv, _IMAGE, {"a": (2e-4, 0, 16)}, opset=newest_opset(), ir_version=10, **big),
        _case("int16_opset_11", conv, _IMAGE, {"a": (2e-4, 0, 16)}, opset=11, ir_version=6, **big),
        _case("names_taken", "[a] y = Conv (x, w, b) [r] a_output0 = Relu (y) [n] z = Neg (a_output0)", _IMAGE, _ONE,
              outputs="float y, float z", **big),
    ]  # fmt: skip


_CASES = _cases()


@pytest.fixture(params=_CASES, ids=lambda case: case.name)
def case(request: pytest.FixtureRequest) -> Case:
    """One case after the other."""
    chosen: Case = request.param
    return chosen


# Lowering


Parts = list[QuantizedLayer | QuantizedTensor]


def _activation(factors: Factors) -> QParams:
    spec = QSpec(bits=factors[2] if len(factors) == 3 else 8, symmetric=False)
    return QParams(scale=np.float32(factors[0]), zero_point=np.int32(factors[1]), spec=spec)


def _quantized(case: Case) -> tuple[ir.Model, Parts]:
    """The model with normalized layers; weights get the scales of `_weight_scale`."""
    model = ir.from_proto(case.model)
    normalize_layers(model, list(case.layers))
    layers: Parts = [
        QuantizedTensor(node=node, input_index=index, activation=_activation(factors))
        for (node, index), factors in case.tensors.items()
    ]
    for node in model.graph:
        if node.name not in case.layers:
            continue
        activation = _activation(case.factors[node.name])
        weight = second = None
        if f"{node.name}:1" in case.factors:
            second = _activation(case.factors[f"{node.name}:1"])
        elif node.op_type in WEIGHT_OPS:
            array = constant_value(node.inputs[1])
            assert array is not None
            group = node.attributes.get_int("group", 1)
            scales = _weight_scale(node.op_type, array, group)
            spec = QSpec(channel_axis=0) if node.op_type.startswith("Conv") else QSpec()
            weight = QParams(scale=scales, zero_point=np.zeros(scales.shape, np.int32), spec=spec)
        layers.append(QuantizedLayer(name=node.name, activation=activation, weight=weight, second=second))
    return model, layers


def _lower(model: ir.Model, parts: Parts, dialect: Dialect) -> onnx.ModelProto:
    layers = [part for part in parts if isinstance(part, QuantizedLayer)]
    tensors = [part for part in parts if isinstance(part, QuantizedTensor)]
    lower(model, layers, dialect, tensors=tensors)
    return ir.to_proto(model)


def _fake(model: ir.Model, parts: Parts) -> onnx.ModelProto:
    return _lower(model, parts, SimulationDialect(model))


def _deploy(model: ir.Model, parts: Parts) -> onnx.ModelProto:
    return _lower(model, parts, AscendDialect(model))


def _runnable(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model itself, or a deploy model lifted from its file."""
    lifted = ir.from_proto(onnx.load_from_string(model.SerializeToString()))
    lift_deploy(lifted)
    return ir.to_proto(lifted)


@pytest.fixture(params=[_fake, _deploy], ids=["simulation", "ascend"])
def lowered(request: pytest.FixtureRequest) -> Lower:
    """One dialect after the other."""
    chosen: Lower = request.param
    return chosen


def _run(
    model: onnx.ModelProto,
    x: Array,
    level: ort.GraphOptimizationLevel = ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
) -> list[Array]:
    options = ort.SessionOptions()
    options.graph_optimization_level = level
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})


# What integers give, in NumPy


def _weight_scale(op_type: str, weight: Array, group: int) -> Array:
    """max|w| / 127 of each output channel, or of the whole matrix."""
    if op_type == "Conv":
        return np.abs(weight).reshape(weight.shape[0], -1).max(axis=1) / np.float32(127)
    if op_type == "ConvTranspose":
        grouped = np.abs(weight).reshape(group, weight.shape[0] // group, weight.shape[1], -1)
        return grouped.max(axis=(1, 3)).reshape(-1) / np.float32(127)
    return np.atleast_1d(np.abs(weight).max() / np.float32(127))


def _integer_weight(op_type: str, weight: Array, scale: Array, group: int) -> Array:
    if op_type == "Conv":
        per_weight = scale.reshape(-1, *[1] * (weight.ndim - 1))
    elif op_type == "ConvTranspose":
        # Input channel i belongs to group i // (C / group), its output j is channel group_index * M + j.
        groups = np.arange(weight.shape[0]) // (weight.shape[0] // group)
        per_weight = scale.reshape(group, -1)[groups].reshape(*weight.shape[:2], *[1] * (weight.ndim - 2))
    else:
        per_weight = scale
    return np.clip(np.rint(weight.astype(np.float64) / per_weight), -128, 127).astype(np.int64)


def _conv(x: Array, w: Array, attributes: Mapping[str, Any]) -> Array:
    rank = w.ndim - 2
    group, strides = attributes.get("group", 1), attributes.get("strides", [1] * rank)
    dilations, pads = attributes.get("dilations", [1] * rank), attributes.get("pads", [0] * 2 * rank)
    x = np.pad(x, [(0, 0), (0, 0), *zip(pads[:rank], pads[rank:], strict=True)])
    size = [
        (n - (k - 1) * d - 1) // s + 1 for n, k, d, s in zip(x.shape[2:], w.shape[2:], dilations, strides, strict=True)
    ]
    xg, wg = x.reshape(x.shape[0], group, -1, *x.shape[2:]), w.reshape(group, -1, *w.shape[1:])
    out = np.zeros((x.shape[0], group, wg.shape[1], *size), np.int64)
    for tap in itertools.product(*map(range, w.shape[2:])):
        spot = tuple(
            slice(k * d, k * d + (n - 1) * s + 1, s) for k, d, n, s in zip(tap, dilations, size, strides, strict=True)
        )
        out += np.einsum("ngc...,gmc->ngm...", xg[(..., *spot)], wg[(slice(None),) * 3 + tap])
    return out.reshape(x.shape[0], -1, *size)


def _conv_transpose(x: Array, w: Array, attributes: Mapping[str, Any]) -> Array:
    rank = w.ndim - 2
    group, strides = attributes.get("group", 1), attributes.get("strides", [1] * rank)
    pads, extra = attributes.get("pads", [0] * 2 * rank), attributes.get("output_padding", [0] * rank)
    full = [(n - 1) * s + k + e for n, s, k, e in zip(x.shape[2:], strides, w.shape[2:], extra, strict=True)]
    xg, wg = x.reshape(x.shape[0], group, -1, *x.shape[2:]), w.reshape(group, -1, *w.shape[1:])
    out = np.zeros((x.shape[0], group, w.shape[1], *full), np.int64)
    for tap in itertools.product(*map(range, w.shape[2:])):
        spot = tuple(slice(k, k + (n - 1) * s + 1, s) for k, n, s in zip(tap, x.shape[2:], strides, strict=True))
        out[(..., *spot)] += np.einsum("ngc...,gcm->ngm...", xg, wg[(slice(None),) * 3 + tap])
    out = out.reshape(x.shape[0], -1, *full)
    return out[(..., *(slice(b, n - e) for b, e, n in zip(pads[:rank], pads[rank:], full, strict=True)))]


def _pool(x: Array, attributes: Mapping[str, Any]) -> Array:
    """The mean of the integers in float64; padding is the integer 0 (of q - offset) or not counted."""
    (kh, kw), (sh, sw) = attributes["kernel_shape"], attributes["strides"]
    top, left, bottom, right = attributes["pads"]
    padding = [(0, 0), (0, 0), (top, bottom), (left, right)]
    values = np.pad(x, padding)
    counted = np.pad(np.ones_like(x), padding, constant_values=attributes.get("count_include_pad", 0))
    rows, columns = (values.shape[2] - kh) // sh + 1, (values.shape[3] - kw) // sw + 1
    out = np.zeros((*x.shape[:2], rows, columns))
    for i, j in itertools.product(range(rows), range(columns)):
        window = (..., slice(i * sh, i * sh + kh), slice(j * sw, j * sw + kw))
        out[..., i, j] = values[window].sum(axis=(2, 3)) / counted[window].sum(axis=(2, 3))
    return out


def _integers(x: Array, factors: Factors, *, half: bool = False) -> Array:
    """q - zero point, int64."""
    factor, zero_point = np.float32(1) / np.float32(factors[0]), factors[1]
    end = 1 << (factors[2] - 1 if len(factors) == 3 else 7)
    if half:
        factor = _half(factor) if factor <= 65504 else _half(np.sqrt(factor)) ** 2
        with np.errstate(over="ignore"):
            rounded = np.rint(_half(_half(_half(x) * factor) + np.float32(zero_point)))
    else:
        rounded = np.rint(x * factor) + zero_point
    q: Array = np.clip(rounded, -end, end - 1).astype(np.int64) - zero_point
    return q


def _half(x: Array | np.float32) -> Array:
    return np.asarray(x).astype(np.float16).astype(np.float32)


def _s19(scale: Array | np.float32) -> Array:
    """Ten bits of the mantissa are left of 23."""
    mantissa, exponent = np.frexp(np.asarray(scale, np.float64))
    return np.ldexp(np.floor(mantissa * 2**11) / 2**11, exponent).astype(np.float32)


def _layer(
    node: onnx.NodeProto, inputs: list[Array], factors: Factors, second: Factors | None, *, half: bool = False
) -> Array:
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    scale = np.float32(factors[0])
    x = inputs[0].T if node.op_type == "Gemm" and attributes.get("transA") else inputs[0]
    q = _integers(x, factors, half=half)
    if second is not None:
        sums, product = np.matmul(q, _integers(inputs[1], second, half=half)), scale * np.float32(second[0])
        return _half(sums.astype(np.float32) * _s19(product)) if half else sums.astype(np.float32) * product
    if node.op_type == "AveragePool":
        return (_pool(q, attributes).astype(np.float32) * scale).astype(np.float32)
    weight, bias = inputs[1], inputs[2] if len(inputs) > 2 else None
    if node.op_type == "Gemm":
        weight = (weight.T if attributes.get("transB") else weight) * np.float32(attributes.get("alpha", 1))
        bias = None if bias is None else bias.reshape(-1) * np.float32(attributes.get("beta", 1))
    group = attributes.get("group", 1)
    weight_scale = _weight_scale(node.op_type, weight, group)
    w = _integer_weight(node.op_type, weight, weight_scale, group)
    product = scale * weight_scale
    if node.op_type in ("Gemm", "MatMul"):
        sums = np.matmul(q, w)
        shape: tuple[int, ...] = (-1,)
    else:
        sums = _conv(q, w, attributes) if node.op_type == "Conv" else _conv_transpose(q, w, attributes)
        shape = (-1, *[1] * (weight.ndim - 2))
    if bias is not None:
        sums = sums + np.rint(bias.astype(np.float64) / product.astype(np.float64)).astype(np.int64).reshape(shape)
    if half:
        return _half(sums.astype(np.float32) * _s19(product).reshape(shape))
    return sums.astype(np.float32) * product.reshape(shape)


def _expected(case: Case, *, half: bool = False) -> list[Array]:
    """All outputs: quantized layers in integers, the rest as ONNX Runtime's float kernels have it."""
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in case.model.graph.initializer} | {"x": case.x}
    for node in case.model.graph.node:
        inputs = [values[name] for name in node.input]
        for index, x in enumerate(inputs):
            if (node.name, index) in case.tensors:
                factors = case.tensors[node.name, index]
                inputs[index] = _integers(x, factors).astype(np.float32) * np.float32(factors[0])
        if node.name in case.layers:
            second = case.factors.get(f"{node.name}:1")
            values[node.output[0]] = _layer(node, inputs, case.factors[node.name], second, half=half)
        else:
            values[node.output[0]] = _float_layer(case, node, inputs)
    return [values[output.name] for output in case.model.graph.output]


def _float_layer(case: Case, node: onnx.NodeProto, inputs: list[Array]) -> Array:
    names = [f"i{index}" for index in range(len(inputs))]
    alone = onnx.NodeProto()
    alone.CopyFrom(node)
    alone.input[:] = names
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in (*names, node.output[0])]
    graph = helper.make_graph([alone], "one", values[:-1], values[-1:])
    model = helper.make_model(graph, opset_imports=case.model.opset_import, ir_version=case.model.ir_version)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    result: Array = session.run(None, dict(zip(names, inputs, strict=True)))[0]
    return result


# The contract


@pytest.mark.parametrize(
    "level",
    [ort.GraphOptimizationLevel.ORT_DISABLE_ALL, ort.GraphOptimizationLevel.ORT_ENABLE_BASIC],
    ids=["as_written", "optimized"],
)
def test_computes_the_integers(lowered: Lower, case: Case, level: ort.GraphOptimizationLevel) -> None:
    got = _run(_runnable(lowered(*_quantized(case))), case.x, level)
    for want, have in zip(_expected(case), got, strict=True):
        assert (have.shape, have.dtype) == (want.shape, want.dtype)
        if case.has_pool:
            np.testing.assert_allclose(have, want, rtol=POOL_TOLERANCE, atol=POOL_TOLERANCE * np.abs(want).max())
        else:
            np.testing.assert_array_equal(have, want)


def test_quantization_shows(case: Case) -> None:
    """The oracle itself: near the float model, and not equal to it."""
    if case.name in ("saturating", "lowest_offset", "highest_offset"):
        return  # far from the float model on purpose
    for index, (exact, want) in enumerate(zip(_run(case.model, case.x), _expected(case), strict=True)):
        if case.model.graph.output[index].name == "z" and case.name == "input_is_output":
            continue
        noise = 10 * np.log10(np.mean(exact.astype(np.float64) ** 2) / np.mean((exact - want.astype(np.float64)) ** 2))
        assert 20 < noise < 60


def test_simulation_and_deployment_are_one(case: Case) -> None:
    simulated = _run(_fake(*_quantized(case)), case.x)
    deployed = _run(_runnable(_deploy(*_quantized(case))), case.x)
    for want, have in zip(simulated, deployed, strict=True):
        np.testing.assert_array_equal(have, want)


def test_keeps_the_interface(lowered: Lower, case: Case) -> None:
    before, after = ir.to_proto(ir.from_proto(case.model)), lowered(*_quantized(case))
    assert list(after.graph.input) == list(before.graph.input)
    assert list(after.graph.output) == list(before.graph.output)
    assert after.opset_import == before.opset_import
    assert after.ir_version == before.ir_version


def test_the_simulation_is_valid_onnx(case: Case) -> None:
    onnx.checker.check_model(_fake(*_quantized(case)), full_check=True)


def test_names_stay_unique(lowered: Lower, case: Case) -> None:
    graph = lowered(*_quantized(case)).graph
    values = [name for node in graph.node for name in node.output] + [tensor.name for tensor in graph.initializer]
    assert len(set(values)) == len(values)
    nodes = [node.name for node in graph.node]
    assert len(set(nodes)) == len(nodes)


def test_does_not_touch_the_float_model(lowered: Lower, case: Case) -> None:
    untouched = case.model.SerializeToString(deterministic=True)
    lowered(*_quantized(case))
    assert case.model.SerializeToString(deterministic=True) == untouched


def test_is_deterministic(lowered: Lower, case: Case) -> None:
    first, second = (lowered(*_quantized(case)).SerializeToString(deterministic=True) for _ in range(2))
    assert first == second


# The file that is deployed (amct_formats.md: Deploy model)


def _by_name(model: onnx.ModelProto) -> tuple[dict[str, onnx.NodeProto], dict[str, onnx.TensorProto]]:
    nodes = {node.name: node for node in model.graph.node}
    return nodes, {tensor.name: tensor for tensor in model.graph.initializer}


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def test_nodes_of_the_deploy_model(case: Case) -> None:
    nodes, tensors = _by_name(_deploy(*_quantized(case)))
    producers = {name: node for node in nodes.values() for name in node.output}
    for layer, (scale, zero_point, *bits) in case.layers.items():
        node = nodes[layer]
        quant = producers[node.input[0]]
        assert (quant.op_type, quant.domain) == ("AscendQuant", "")
        assert {a.name: a.type for a in quant.attribute} == {
            "scale": onnx.AttributeProto.FLOAT,
            "offset": onnx.AttributeProto.FLOAT,
            "dst_type": onnx.AttributeProto.STRING,
        }
        want = {"scale": np.float32(1) / np.float32(scale), "offset": zero_point}
        want["dst_type"] = b"INT16" if bits else b"INT8"
        assert _attributes(quant) == want
        dequant = nodes[f"{layer}.dequant"]
        assert (dequant.op_type, dequant.domain) == ("AscendDequant", "")
        assert list(dequant.input) == [node.output[0], f"{layer}.dequant.param"]
        assert _attributes(dequant) == {"dtype": 0}
        param = tensors[f"{layer}.dequant.param"]
        assert param.data_type == TensorProto.UINT64
        words = numpy_helper.to_array(param)
        assert not (words >> np.uint64(32)).any()  # no shift, no weight offset
        if node.op_type == "AveragePool":
            assert unpack_dequant(words).scale.tolist() == [np.float32(scale)]
            continue
        if f"{layer}:1" in case.factors:
            assert producers[node.input[1]].op_type == "AscendQuant"
            product = np.float32(scale) * np.float32(case.factors[f"{layer}:1"][0])
            assert unpack_dequant(words).scale.tolist() == [product]
            continue
        assert tensors[node.input[1]].data_type == TensorProto.INT8
        assert len(words) == (len(_first_output_channels(node, tensors)) if node.op_type.startswith("Conv") else 1)
        if len(node.input) > 2:
            assert tensors[node.input[2]].data_type == TensorProto.INT32


@pytest.mark.parametrize("name", [case.name for case in _CASES if case.tensors])
def test_tensors_of_the_deploy_model(name: str) -> None:
    case = next(case for case in _CASES if case.name == name)
    nodes, _ = _by_name(_deploy(*_quantized(case)))
    producers = {name: node for node in nodes.values() for name in node.output}
    for (node, index), (scale, zero_point) in case.tensors.items():
        anti = producers[nodes[node].input[index]]
        assert (anti.op_type, anti.domain, anti.name) == ("AscendAntiQuant", "", f"{node}.{index}.anti_quant")
        assert _attributes(anti) == {"scale": np.float32(scale), "offset": zero_point}
        quant = producers[anti.input[0]]
        want = {"scale": np.float32(1) / np.float32(scale), "offset": zero_point, "dst_type": b"INT8"}
        assert (quant.op_type, _attributes(quant)) == ("AscendQuant", want)


def _first_output_channels(node: onnx.NodeProto, tensors: Mapping[str, onnx.TensorProto]) -> range:
    shape = tensors[node.input[1]].dims
    return range(shape[0] if node.op_type == "Conv" else shape[1] * _attributes(node).get("group", 1))


def test_weights_keep_their_layout_and_names(case: Case) -> None:
    _, before = _by_name(ir.to_proto(_quantized(case)[0]))
    _, after = _by_name(_deploy(*_quantized(case)))
    assert {name: list(tensor.dims) for name, tensor in before.items()}.items() <= {
        name: list(tensor.dims) for name, tensor in after.items()
    }.items()


@pytest.mark.parametrize(
    ("name", "quants"),
    [
        ("shared_input", ["a.quant"]),
        ("shared_input_other_scale", ["a.quant", "c.quant"]),
        ("shared_input_other_offset", ["a.quant", "c.quant"]),
        ("shared_input_half_float", ["c.quant"]),
        ("two_layers", ["a.quant", "c.quant"]),
        ("product", ["a.quant", "a.1.quant"]),
        ("product_shares_its_tensor", ["a.quant"]),
        ("tensors_of_an_add", ["s.0.quant", "s.1.quant"]),
        ("tensor_twice_in_an_add", ["s.0.quant"]),
        ("tensor_shared_with_a_later_layer", ["p.0.quant"]),
    ],
)
def test_layers_with_equal_factors_share_a_quantization(name: str, quants: list[str]) -> None:
    case = next(case for case in _CASES if case.name == name)
    deploy = _deploy(*_quantized(case))
    assert [node.name for node in deploy.graph.node if node.op_type == "AscendQuant"] == quants
    fake = _fake(*_quantized(case))
    assert [node.name for node in fake.graph.node if node.op_type == "Round"] == [f"{name}.round" for name in quants]


def test_an_output_keeps_its_name_and_the_tensor_inside_gives_way() -> None:
    case = next(case for case in _CASES if case.name == "conv_2d")
    nodes, _ = _by_name(_deploy(*_quantized(case)))
    assert list(nodes["a"].output) == ["a_output0"]
    assert list(nodes["a.dequant"].output) == ["y"]


def test_a_matmul_is_dequantized_before_its_add() -> None:
    case = next(case for case in _CASES if case.name == "matmul_add")
    assert [node.op_type for node in _deploy(*_quantized(case)).graph.node] == [
        "AscendQuant",
        "MatMul",
        "AscendDequant",
        "Add",
    ]


def test_the_simulation_has_standard_operators_only() -> None:
    for case in _CASES:
        model = _fake(*_quantized(case))
        assert {node.domain for node in model.graph.node} == {""}
        assert not any(node.op_type.startswith("Ascend") for node in model.graph.node)


# Extremes


def _one_layer(weight: Array, bias: Array | None, factors: Factors, x: Array) -> Case:
    arrays = {"w": weight} | ({"b": bias} if bias is not None else {})
    body = f"[a] y = Conv ({', '.join(['x', *arrays])})"
    case = _case("extreme", body, x.shape, {"a": factors}, **arrays)
    return Case(name=case.name, model=case.model, factors=case.factors, x=x)


@pytest.mark.parametrize("zero_point", [-128, 0, 127])
@pytest.mark.parametrize(("value", "activation"), list(itertools.product([-1e9, 1e9], [-128, 127])))
def test_the_extremes_of_int8(lowered: Lower, value: float, activation: int, zero_point: int) -> None:
    """Saturated inputs times weights of -128 and 127: scales of one show the integers themselves."""
    weight = np.full((1, 4, 3, 3), activation, np.float32)
    case = _one_layer(weight, None, (1.0, zero_point), np.full((1, 4, 3, 3), value, np.float32))
    model, (layer,) = _quantized(case)
    assert isinstance(layer, QuantizedLayer)
    exact = QParams(scale=np.ones(1, np.float32), zero_point=np.zeros(1, np.int32), spec=QSpec())
    quantized = QuantizedLayer(name="a", activation=layer.activation, weight=exact)
    got = _run(_runnable(lowered(model, [quantized])), case.x)[0]
    q = (127 if value > 0 else -128) - zero_point
    assert got.reshape(-1).tolist() == [36.0 * q * activation]


def test_halves_are_rounded_to_even_and_then_shifted(lowered: Lower) -> None:
    x = np.array([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5], np.float32).reshape(6, 1, 1, 1)
    case = _one_layer(np.full((1, 1, 1, 1), 127, np.float32), None, (1.0, 1), x)
    got = _run(_runnable(lowered(*_quantized(case))), x)[0]
    assert (got.reshape(-1) / 127).tolist() == [-2.0, -2.0, 0.0, 0.0, 2.0, 2.0]


_LIMIT = 2.0**31


# int16 activations and long sums


@pytest.mark.parametrize(
    "level", [ort.GraphOptimizationLevel.ORT_DISABLE_ALL, ort.GraphOptimizationLevel.ORT_ENABLE_ALL]
)
@pytest.mark.parametrize("zero_point", [-32768, -1, 0, 32767])
@pytest.mark.parametrize("value", [-1e9, 1e9, None], ids=["low", "high", "random"])
@pytest.mark.parametrize("op", ["Conv", "ConvTranspose", "Gemm"])
def test_the_largest_sums_of_int16(
    lowered: Lower, op: str, value: float | None, zero_point: int, level: ort.GraphOptimizationLevel
) -> None:
    """Weights of one sign, as long as int32 allows, and a large bias: float32 would round partial sums."""
    size = int(_LIMIT * 0.99) // (127 * max(32767 - zero_point, zero_point + 32768))
    x, w = ((2, size), (size, 3)) if op == "Gemm" else ((2, size, 1, 1), (size, 3, 1, 1))
    w = (3, size, 1, 1) if op == "Conv" else w
    bias = np.array([0.4, -3e3, 5e3], np.float32)
    case = _case(
        f"{op}{zero_point}",
        f"[a] y = {op} (x, w, b)",
        x,
        {"a": (1.0, zero_point, 16)},
        w=np.ones(w, np.float32),
        b=bias,
    )
    feed = np.full(x, value, np.float32) if value else _normal("x", x) * np.float32(3e4)
    case = dataclasses.replace(case, x=feed)
    np.testing.assert_array_equal(_run(_runnable(lowered(*_quantized(case))), feed, level)[0], _expected(case)[0])


def test_int16_layers_alone_have_two_parts_and_their_weight_once() -> None:
    for case in _CASES:
        layers = [node.op_type for node in case.model.graph.node if node.op_type in WEIGHT_OPS]
        wide = sum(len(factors) == 3 for factors in case.layers.values())
        graph = _fake(*_quantized(case)).graph
        assert sum(node.op_type in WEIGHT_OPS for node in graph.node) == len(layers) + wide
    graph = _fake(*_quantized(next(case for case in _CASES if case.name == "int16_conv"))).graph
    assert len({node.input[1] for node in graph.node if node.op_type == "Conv"}) == 1


def test_long_sums_of_int8_are_near_in_the_simulation_and_exact_in_the_deploy_model() -> None:
    """float32 has no integers between 2^24 and 2^25 but the even ones, and so on: documented, and not bit for bit."""
    case = _case("long", "[a] y = MatMul (x, w)", (2, 40000), {"a": (0.02, -128)}, w=np.abs(_normal("w", (40000, 3))))
    case = dataclasses.replace(case, x=np.abs(case.x))
    want = _expected(case)[0]
    np.testing.assert_array_equal(_run(_runnable(_deploy(*_quantized(case))), case.x)[0], want)
    np.testing.assert_allclose(_run(_fake(*_quantized(case)), case.x)[0], want, rtol=LONG_SUM_TOLERANCE)


# FORCE_FP16_QUANT: what is quantized and what comes out are rounded to float16 on the way


@pytest.mark.parametrize(
    "name", ["conv_2d", "gemm", "matmul_3d", "transpose_grouped", "two_layers", "product", "int16_conv"]
)
@pytest.mark.parametrize("dialect", [SimulationDialect, AscendDialect])
@pytest.mark.parametrize(
    "level", [ort.GraphOptimizationLevel.ORT_DISABLE_ALL, ort.GraphOptimizationLevel.ORT_ENABLE_ALL]
)
def test_half_precision(
    name: str, dialect: type[SimulationDialect] | type[AscendDialect], level: ort.GraphOptimizationLevel
) -> None:
    case = next(case for case in _CASES if case.name == name)
    model, parts = _quantized(case)
    got = _run(_runnable(_lower(model, parts, dialect(model, half=True))), case.x, level)[0]
    want = _expected(case, half=True)[0]
    assert (want != _expected(case)[0]).any()
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("dialect", [SimulationDialect, AscendDialect])
def test_half_precision_of_scales_beyond_its_range(dialect: type[SimulationDialect] | type[AscendDialect]) -> None:
    """1 / scale is 10^5, which float16 lacks: the square of a float16 stands for it."""
    case = _case("small", "[a] y = Conv (x, w)", (2, 4, 3, 3), {"a": (1e-5, 7)}, w=(3, 4, 1, 1))
    case = dataclasses.replace(case, x=case.x * np.float32(4e-4))
    model, parts = _quantized(case)
    got = _run(_runnable(_lower(model, parts, dialect(model, half=True))), case.x)[0]
    np.testing.assert_array_equal(got, _expected(case, half=True)[0])
    assert np.unique(got).size > 20


@pytest.mark.parametrize("bias", [_LIMIT, -_LIMIT * 1.001, 1e30])
def test_a_bias_beyond_int32_is_an_error(lowered: Lower, bias: float) -> None:
    weight = np.full((2, 1, 1, 1), 127, np.float32)  # scale 1, and so the bias is its integer
    case = _one_layer(weight, np.array([0, bias], np.float32), (1.0, 0), np.ones((1, 1, 1, 1), np.float32))
    text = 'Do bias quantize failed. Quantized bias of layer "a" exceed int32 range'
    with pytest.raises(ModelError) as caught:
        lowered(*_quantized(case))
    assert str(caught.value).startswith(text)
    assert str(caught.value).endswith("please add it to skip layer.")


_REACH = 127 * 128  # the largest product of this weight and an int8 activation


@pytest.mark.parametrize("bias", [-(_LIMIT - 2 * 2**14), _LIMIT - 2 * 2**14])
def test_a_bias_whose_sums_stay_in_int32_is_kept(bias: float) -> None:
    weight = np.full((1, 1, 1, 1), 127, np.float32)
    case = _one_layer(weight, np.array([bias], np.float32), (1.0, 0), np.ones((1, 1, 1, 1), np.float32))
    nodes, tensors = _by_name(_deploy(*_quantized(case)))
    assert numpy_helper.to_array(tensors[nodes["a"].input[2]]).tolist() == [int(bias)]


@pytest.mark.parametrize("bias", [-_LIMIT, _LIMIT - 128])
def test_sums_that_could_wrap_around_are_an_error(lowered: Lower, bias: float) -> None:
    """The largest float32 below 2^31 is 2^31 - 128: the bias fits, and bias plus product does not."""
    assert abs(bias) + _REACH >= _LIMIT
    weight = np.full((1, 1, 1, 1), 127, np.float32)
    case = _one_layer(weight, np.array([bias], np.float32), (1.0, 0), np.ones((1, 1, 1, 1), np.float32))
    with pytest.raises(ModelError, match=r'sums of layer "a" may exceed int32 range .* add it to skip layer'):
        lowered(*_quantized(case))


@settings(max_examples=examples(60))
@given(
    st.floats(2.0**-10, 1.0, width=32),
    st.integers(-128, 127),
    st.lists(st.floats(-50, 50, width=32), min_size=16, max_size=16),
)
def test_any_factors(scale: float, zero_point: int, values: list[float]) -> None:
    x = np.array(values, np.float32).reshape(1, 4, 2, 2)
    case = _one_layer(_normal("w", (3, 4, 2, 2)), _normal("b", (3,)), (scale, zero_point), x)
    want = _expected(case)[0]
    for dialect in (_fake, _deploy):
        np.testing.assert_array_equal(_run(_runnable(dialect(*_quantized(case))), x)[0], want)
