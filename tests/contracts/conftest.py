"""Small models with everything that is awkward about ONNX; every pass has to survive each of them.

A model is ONNX text for its structure, and arrays from a fixed seed for its initializers. The name `none` stands for an
empty input, `__` in a name for a dot. Tests take the fixture `awkward` and run once for each model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import pytest
from graphs import graphs
from onnx import helper, numpy_helper, parser
from opsets import newest_opset
from qdq_cases import Case, make_case, why_refused

from amct_onnx.values.qdq_tables import QDQ_TARGETS, TENSORRT, QdqTarget

_CHANNELS_IN, _CHANNELS = 4, 6
_IR_VERSION = 10


NEWEST = newest_opset()


@dataclass(frozen=True, kw_only=True)
class Awkward:
    """A model, and inputs to compare it on (those of an overridable initializer both given and left out)."""

    name: str
    model: onnx.ModelProto
    feeds: tuple[Mapping[str, np.ndarray], ...] = field(repr=False)


def _array(name: str, shape: tuple[int, ...]) -> np.ndarray:
    rng = np.random.default_rng(list(name.encode()))
    if name.startswith("v"):  # variances are positive
        return rng.uniform(0.5, 2.0, shape).astype(np.float32)
    return rng.normal(0.0, 0.5, shape).astype(np.float32)


_C = (_CHANNELS,)
_ARRAYS: dict[str, tuple[int, ...]] = {
    "w": (_CHANNELS, _CHANNELS_IN, 3, 3),
    "w2": (_CHANNELS, _CHANNELS, 1, 1),
    "b": _C,
    "s": _C, "o": _C, "m": _C, "v": _C,
    "s2": _C, "o2": _C, "m2": _C, "v2": _C,
    "c": (_CHANNELS, 1, 1),
    "d": (1, _CHANNELS, 1, 1),
}  # fmt: skip

_X = "float[2,4,5,5] x"
_Y = "float[2,6,5,5] y"
_CONV = "Conv <pads=[1,1,1,1]>"
_BN = "BatchNormalization"


def _parse(
    body: str,
    *,
    inputs: str = _X,
    outputs: str = _Y,
    imports: str = '"" : 17',
    functions: str = "",
    **arrays: np.ndarray | tuple[int, ...],
) -> onnx.ModelProto:
    """The model; its initializers are those of `_ARRAYS` and `arrays` that the text mentions, and `junk`."""
    text = f"<ir_version: {_IR_VERSION}, opset_import: [{imports}]> g ({inputs}) => ({outputs}) {{{body}}} {functions}"
    model = parser.parse_model(text)
    found = list(graphs(model.graph))
    for graph in found:
        for node in graph.node:
            node.input[:] = ["" if name == "none" else name.replace("__", ".") for name in node.input]
            node.output[:] = [name.replace("__", ".") for name in node.output]
    used = {name for graph in found for node in graph.node for name in node.input}
    for name, value in {**_ARRAYS, **arrays}.items():
        if name in used or name == "junk":
            array = value if isinstance(value, np.ndarray) else _array(name, value)
            model.graph.initializer.append(numpy_helper.from_array(array, name))
    model.producer_name, model.producer_version, model.doc_string = "awkward", "1", "a model"
    helper.set_model_props(model, {"author": "tests"})
    return model


def _constants(model: onnx.ModelProto) -> onnx.ModelProto:
    """Every initializer as a Constant node, vectors as value_floats."""
    nodes = []
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        attribute = {"value_floats": array.tolist()} if array.ndim == 1 else {"value": tensor}
        nodes.append(helper.make_node("Constant", [], [tensor.name], name=f"const_{tensor.name}", **attribute))
    del model.graph.initializer[:]
    nodes.extend(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def _overridable(model: onnx.ModelProto, *names: str) -> onnx.ModelProto:
    for tensor in model.graph.initializer:
        if tensor.name in names:
            model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    return model


def _unnamed(model: onnx.ModelProto, names: list[str]) -> onnx.ModelProto:
    for node, name in zip(model.graph.node, names, strict=True):
        node.name = name
    return model


_BLOCK = f"""
    [conv] t = {_CONV} (x, w, b)
    [bn] n = {_BN} (t, s, o, m, v)
    [mul] p = Mul (n, c)
    [add] q = Add (d, p)
    [relu] y = Relu (q)
"""
_CONV_BN = f"[conv] t = {_CONV} (x, w, b)   [bn] y = {_BN} (t, s, o, m, v)"


def _conv_variant(
    conv: str, x: str, weight: tuple[int, ...], y: str, channels: int, *, bias: bool = False
) -> onnx.ModelProto:
    shape = (channels,)
    return _parse(
        f"[conv] t = {conv} (x, weight{', bias' if bias else ''}) [bn] y = {_BN} <epsilon=0.01> (t, sc, of, me, va)",
        inputs=f"float[{x}] x", outputs=f"float[{y}] y",
        weight=weight, bias=shape, sc=shape, of=shape, me=shape, va=shape,
    )  # fmt: skip


def _cases() -> Iterator[tuple[str, onnx.ModelProto]]:
    for opset in (11, 13, 15, 17, NEWEST):
        yield f"opset_{opset}", _parse(_BLOCK, imports=f'"" : {opset}')
    yield "default_opset_second", _parse(_BLOCK, imports='"com.microsoft" : 1, "" : 13')
    yield "default_opset_by_its_other_name", _parse(_BLOCK, imports='"com.microsoft" : 1, "ai.onnx" : 13')

    # Outputs
    yield "bn_is_output", _parse(_CONV_BN)
    yield "conv_is_output", _parse(_CONV_BN, outputs=f"{_Y}, float[2,6,5,5] t")
    yield "conv_feeds_two", _parse(_CONV_BN + " [relu] z = Relu (t)", outputs=f"{_Y}, float[2,6,5,5] z")
    yield (
        "bn_is_output_and_feeds_mul",
        _parse(
            f"[conv] t = {_CONV} (x, w) [bn] n = {_BN} (t, s, o, m, v) [mul] y = Mul (n, c)",
            outputs=f"{_Y}, float[2,6,5,5] n",
        ),
    )
    yield (
        "initializer_is_output",
        _parse(_BLOCK, outputs=f"{_Y}, float[6] b, float[6] s, float[6,4,3,3] w, float[6,1,1] c"),
    )
    yield (
        "constants_are_outputs",
        _constants(_parse(_BLOCK, outputs=f"{_Y}, float[6] b, float[6] s, float[6,4,3,3] w, float[6,1,1] c")),
    )

    # Inputs
    yield "missing_bias", _parse(f"[conv] t = {_CONV} (x, w) [bn] y = {_BN} (t, s, o, m, v)")
    yield (
        "empty_inputs",
        _parse(
            f"[conv] t = {_CONV} (x, w, none) [bn] n = {_BN} (t, s, o, m, v) [clip] y = Clip (n, none, top)",
            top=np.array(0.5, np.float32),
        ),
    )
    yield "overridable_weight", _overridable(_parse(_BLOCK), "w")
    yield "overridable_bias", _overridable(_parse(_BLOCK), "b")
    yield "overridable_scale", _overridable(_parse(_BLOCK), "s", "c")

    # Constants
    yield (
        "shared_weight",
        _parse(
            f"""[conv_a] t = {_CONV} (x, w, b) [bn_a] n = {_BN} (t, s, o, m, v)
                [conv_b] u = {_CONV} (x, w, b) [bn_b] k = {_BN} (u, s2, o2, m, v) [add] y = Add (n, k)"""
        ),
    )
    yield (
        "shared_within_one_node",
        _parse(
            f"""[conv] t = {_CONV} (x, w, b) [bn] n = {_BN} (t, v, o, o, v) [mul] p = Mul (n, c) [add] q = Add (p, c)
                [conv2] r = Conv (q, w2, b) [bn2] y = {_BN} (r, b, b, b, v)"""
        ),
    )
    yield "behind_constant", _constants(_parse(_BLOCK))
    yield (
        "behind_shared_constant",
        _constants(
            _parse(
                f"""[conv] t = {_CONV} (x, w, b) [bn] n = {_BN} (t, s, o, o, v)
                    [mul] p = Mul (n, c) [add] q = Add (p, c) [conv2] y = Conv (q, w2, b)"""
            )
        ),
    )
    yield (
        "behind_transpose",
        _parse(
            f"""[flip] wt = Transpose <perm=[3,2,0,1]> (flipped) [conv] t = {_CONV} (x, wt)
                [bn] n = {_BN} (t, s, o, m, v) [flip_c] ct = Transpose (cc) [mul] y = Mul (n, ct)""",
            flipped=(3, 3, 4, 6),
            cc=(1, 1, 6),
        ),
    )
    yield (
        "behind_shared_chain",
        _parse(
            f"""[flip] wt = Transpose <perm=[3,2,0,1]> (flipped) [same] wi = Identity (wt) [again] wj = Identity (wt)
                [conv_a] t = {_CONV} (x, wi) [bn_a] n = {_BN} (t, s, o, m, v)
                [conv_b] u = {_CONV} (x, wj) [bn_b] k = {_BN} (u, s, o, m, v) [add] y = Add (n, k)""",
            flipped=(3, 3, 4, 6),
        ),
    )
    yield (
        "behind_identity_and_cast",
        _parse(
            f"""[up] wc = Cast <to=1> (half) [same] wi = Identity (wc) [bias] bi = Identity (b)
                [conv] t = {_CONV} (x, wi, bi) [scale] sc = Cast <to=1> (whole) [bn] y = {_BN} (t, sc, o, m, v)""",
            half=_array("half", (6, 4, 3, 3)).astype(np.float16),
            whole=np.arange(1, 7, dtype=np.int64),
        ),
    )
    yield (
        "behind_identity_of_overridable",
        _overridable(
            _parse(f"[same] wi = Identity (w) [conv] t = {_CONV} (x, wi, b) [bn] y = {_BN} (t, s, o, m, v)"), "w"
        ),
    )

    # Mul and Add that are not per channel, or just so
    square = "float[2,6,6,6] x", "float[2,6,6,6] y"
    for name, shape in {
        "one_number": (),
        "a_vector_of_one": (1,),
        "ones_of_full_rank": (1, 1, 1, 1),
        "along_the_last_axis": (6,),
        "along_height": (6, 1),
        "along_channels_and_width": (6, 1, 6),
        "full_rank": (1, 6, 1, 1),
    }.items():
        yield (
            f"mul_{name}",
            _parse(
                f"[bn] n = {_BN} (x, s, o, m, v) [mul] p = Mul (k, n) [add] y = Add (p, k)",
                inputs=square[0], outputs=square[1], k=shape,
            ),
        )  # fmt: skip
    yield (
        "add_raises_rank",
        _parse(
            f"[bn] n = {_BN} (x, s, o, m, v) [add] y = Add (n, k)",
            inputs="float[2,6,5,5] x", outputs="float[1,2,6,5,5] y", k=(1, 1, 1, 1, 1),
        ),
    )  # fmt: skip
    yield (
        "add_widens",
        _parse(
            f"[bn] n = {_BN} (x, s1, o1, m1, v1) [add] y = Add (n, k)",
            inputs="float[2,1,5,5] x", outputs="float[2,6,5,5] y", k=(6, 1, 1), s1=(1,), o1=(1,), m1=(1,), v1=(1,),
        ),
    )  # fmt: skip
    yield "residual_add", _parse(f"[bn] n = {_BN} (x, s, o, m, v) [add] y = Add (n, x)", inputs="float[2,6,5,5] x")
    yield "squared", _parse(f"[bn] n = {_BN} (x, s, o, m, v) [mul] y = Mul (n, n)", inputs="float[2,6,5,5] x")
    yield (
        "two_bn",
        _parse(
            f"""[conv] t = {_CONV} (x, w) [bn] n = {_BN} (t, s, o, m, v) [mul] p = Mul (c, n)
                [bn2] q = {_BN} (p, s2, o2, m2, v2) [add] y = Add (q, d)"""
        ),
    )

    # Convolutions
    yield "conv_1d", _conv_variant("Conv", "2,4,7", (6, 4, 3), "2,6,5", 6)
    yield "conv_3d", _conv_variant("Conv", "2,4,3,4,5", (6, 4, 2, 2, 2), "2,6,2,3,4", 6, bias=True)
    yield "conv_grouped", _conv_variant("Conv <group=2>", "2,4,5,5", (6, 2, 3, 3), "2,6,3,3", 6, bias=True)
    yield "conv_depthwise", _conv_variant("Conv <group=4>", "2,4,5,5", (8, 1, 3, 3), "2,8,3,3", 8)
    yield "transpose_1d", _conv_variant("ConvTranspose", "2,4,5", (4, 6, 3), "2,6,7", 6)
    yield (
        "transpose_grouped",
        _conv_variant("ConvTranspose <group=2>", "2,4,5,5", (4, 3, 3, 3), "2,6,7,7", 6, bias=True),
    )
    yield "transpose_depthwise", _conv_variant("ConvTranspose <group=4>", "2,4,5,5", (4, 2, 3, 3), "2,8,7,7", 8)

    # Graphs within graphs
    yield (
        "if_contains",
        _parse(
            f"""[if] y = If (flag) <
                then_branch = g1 () => (float[2,6,5,5] y1)
                    {{[conv] t = {_CONV} (x, w, b) [bn] y1 = {_BN} (t, s, o, m, v)}},
                else_branch = g2 () => (float[2,6,5,5] y2) <float[6] local = {{1,2,3,4,5,6}}>
                    {{[conv2] t2 = {_CONV} (x, w) [bn2] n2 = {_BN} (t2, local, o, m, v)
                      [k] k2 = Constant <value_float=2.0> () [mul] p2 = Mul (n2, k2) [add] y2 = Add (p2, d)}} >""",
            inputs=f"{_X}, bool flag",
        ),
    )
    yield (
        "if_captures",
        _parse(
            f"""[conv] t = {_CONV} (x, w) [bn] n = {_BN} (t, s, o, m, v)
                [conv2] t2 = {_CONV} (x, w, b) [bn2] n2 = {_BN} (t2, s2, o2, m, v) [mul2] p2 = Mul (n2, c)
                [conv3] t3 = {_CONV} (x, w)
                [if] y = If (flag) <
                then_branch = g1 () => (float[2,6,5,5] y1) {{[take] y1 = Add (t, p2)}},
                else_branch = g2 () => (float[2,6,5,5] y2)
                    {{[bn3] n3 = {_BN} (t3, s, o2, m2, v2) [add3] y2 = Add (n, n3)}} >""",
            inputs=f"{_X}, bool flag",
        ),
    )
    yield (
        "loop_contains_and_captures",
        _parse(
            f"""[conv] t = {_CONV} (x, w, b) [bn] n = {_BN} (t, s, o, m, v)
                [loop] y = Loop (trips, go, n) <
                body = g1 (int64 i, bool more_in, float[2,6,5,5] state) => (bool more, float[2,6,5,5] next)
                    {{[same] more = Identity (more_in) [conv2] t2 = Conv (state, w2)
                      [bn2] n2 = {_BN} (t2, s, o2, m2, v2) [mul2] p2 = Mul (n2, c) [add2] next = Add (p2, n)}} >""",
            trips=np.array(3, np.int64),
            go=np.array(True),
        ),
    )
    yield (
        "names_taken_in_subgraph",
        _parse(
            f"""[conv] t = {_CONV} (x, w) [bn] n = {_BN} (t, s, o, m, v)
                [conv_b] u = {_CONV} (x, w, none) [bn_b] k = {_BN} (u, s, o, m, v)
                [if] y = If (flag) <
                then_branch = g1 () => (float[2,6,5,5] y1) {{conv__bias = Relu (n) w__conv = Relu (k)
                                                            y1 = Add (conv__bias, w__conv)}},
                else_branch = g2 () => (float[2,6,5,5] y2) {{conv_b__bias = Relu (n) y2 = Add (conv_b__bias, k)}} >
            """,
            inputs=f"{_X}, bool flag",
        ),
    )
    yield (
        "function",
        _parse(
            f"""[call] f = local.block (x, w, s, o, m, v) [conv] t = {_CONV} (x, w) [bn] n = {_BN} (t, s, o, m, v)
                [add] y = Add (f, n)""",
            imports='"local" : 1, "" : 17',
            functions=f"""<opset_import: ["" : 17], domain: "local"> block (fx, fw, fs, fo, fm, fv) => (fy)
                {{[conv] ft = {_CONV} (fx, fw) [bn] fn = {_BN} (ft, fs, fo, fm, fv)
                  [two] ftwo = Constant <value_float=2.0> () [mul] fy = Mul (fn, ftwo)}}""",
        ),
    )

    # Names, and parts that nobody reads
    yield "unnamed", _unnamed(_parse(_BLOCK), ["", "", "", "", ""])
    yield "duplicate_names", _unnamed(_parse(_BLOCK), ["n", "n", "n_1", "", "n"])
    yield "unused", _parse(_BLOCK + " [dead] z = Relu (x) [dead_k] k = Constant <value_float=1.0> ()", junk=(3,))


def _feeds(model: onnx.ModelProto) -> tuple[Mapping[str, np.ndarray], ...]:
    """Both values of a flag, two random values of everything else; overridable inputs given only the second time."""
    initialized = {tensor.name for tensor in model.graph.initializer}
    feeds = []
    for run in range(2):
        rng = np.random.default_rng(run)
        feed: dict[str, np.ndarray] = {}
        for value in model.graph.input:
            tensor_type = value.type.tensor_type
            shape = [dim.dim_value for dim in tensor_type.shape.dim]
            if tensor_type.elem_type == onnx.TensorProto.BOOL:
                feed[value.name] = np.array(bool(run))
            elif value.name not in initialized or run:
                feed[value.name] = rng.normal(0.0, 1.0, shape).astype(np.float32)
        feeds.append(feed)
    return tuple(feeds)


_MODELS = [Awkward(name=name, model=model, feeds=_feeds(model)) for name, model in _cases()]


@pytest.fixture(params=_MODELS, ids=lambda case: case.name)
def awkward(request: pytest.FixtureRequest) -> Awkward:
    """One model after the other."""
    case: Awkward = request.param
    return case


def _pairs(*, refused: bool = False, targets: Sequence[QdqTarget] = tuple(QDQ_TARGETS.values())) -> list[Any]:
    """Every awkward model with each of the targets that takes it, or (`refused`) that does not."""
    return [
        pytest.param((model, target), id=f"{model.name}-{target.name}")
        for model in _MODELS
        for target in targets
        if (why_refused(model, target) is not None) == refused
    ]


# Made once: the tests of a case share its result.
_MADE: dict[tuple[str, str], Case] = {}


@pytest.fixture(params=_pairs())
def case(request: pytest.FixtureRequest) -> Case:
    """Every model for every target that takes it."""
    model, target = request.param
    return _MADE.setdefault((model.name, target.name), make_case(model, target))


@pytest.fixture(params=_pairs(targets=[TENSORRT]))
def tensorrt_case(request: pytest.FixtureRequest) -> Case:
    """Every model for TensorRT."""
    return make_case(*request.param)


@pytest.fixture(params=_pairs(refused=True))
def refused_case(request: pytest.FixtureRequest) -> tuple[Case, str]:
    """A model for a target that does not take it, and what the error says."""
    model, target = request.param
    return make_case(model, target), str(why_refused(model, target))
