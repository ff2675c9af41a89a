"""What ONNX Runtime makes of the files of Q/DQ targets: with any optimisation they compute what they say.

Each operator that a target quantizes stands between two convolutions or products, with every value of its attributes.
The oracles are the same file without optimisations, and the float model.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from flow import CPU, build, normal, sqnr
from opsets import newest_opset

import amct_onnx
from amct_onnx.values.qdq_tables import QDQ_TARGETS

_LEVELS = (
    ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
)
# dB. A result that is rounded elsewhere differs by a step here and there; a wrong kernel is at 15 and below.
_SAME, _ENOUGH = 32, 20


def _run(model: onnx.ModelProto, level: ort.GraphOptimizationLevel, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.graph_optimization_level, options.log_severity_level = level, 4
    options.add_session_config_entry("session.x64quantprecision", "1")  # no saturation where the CPU has no VNNI
    outputs: list[np.ndarray] = ort.InferenceSession(model.SerializeToString(), options, providers=CPU).run(None, feed)
    return outputs


def _check(model: onnx.ModelProto, feeds: list[dict[str, np.ndarray]], target: str) -> dict[str, str | bool]:
    """Quantize, and compare all levels; the decisions."""
    result = amct_onnx.quantize(model, feeds, target=target, effort="fast")
    quantized = ir.to_proto(result.model())
    onnx.checker.check_model(quantized)
    floats = _run(model, _LEVELS[0], feeds[0])
    exact, *optimised = (_run(quantized, level, feeds[0]) for level in _LEVELS)
    for wanted, plain in zip(floats, exact, strict=True):
        assert sqnr(wanted, plain) > _ENOUGH
    for outputs in optimised:
        for plain, got in zip(exact, outputs, strict=True):
            assert sqnr(plain, got) > _SAME
    return {decision.layer: decision.quantized or decision.reason for decision in result.decisions}


def _between(node: str, *, opset: int = 17, rank: int = 2, size: int = 7, **constants: np.ndarray) -> onnx.ModelProto:
    """conv -> node -> conv."""
    dims, ones = ",".join([str(size)] * rank), [1] * rank
    return build(
        f"""g (float[N,3,{dims}] x) => (float[N,8,{",".join("?" * rank)}] y) {{
            [first] a = Conv<pads={ones * 2}>(x, A)
            [node] b = {node}
            [last] y = Conv(b, B) }}""",
        opset=opset, ir_version=10, A=normal(1, 8, 3, *[3] * rank) / 5, B=normal(2, 8, 8, *ones) / 2.8, **constants,
    )  # fmt: skip


def _images(rank: int, size: int) -> list[dict[str, np.ndarray]]:
    return [{"x": normal(seed, 2, 3, *[size] * rank)} for seed in range(3)]


def _pools(rank: int) -> Iterator[str]:
    """AveragePool and MaxPool in every configuration."""
    pads = ("", f", pads={[0] * rank + [1] * rank}", ', auto_pad="SAME_LOWER"')
    for (kernel, stride), pad, ceil in product(((3, 2), (2, 3)), pads, (0, 1)):
        attributes = f"kernel_shape={[kernel] * rank}, strides={[stride] * rank}, ceil_mode={ceil}{pad}"
        yield f"MaxPool<{attributes}>(a)"
        for counted in (0, 1):
            yield f"AveragePool<{attributes}, count_include_pad={counted}>(a)"


_SMALL = "small windows"  # why a right kernel is not used: it is slower than the one of floats


@pytest.mark.slow
@pytest.mark.parametrize(("rank", "opset"), [(1, 19), (2, 11), (2, 17), (2, 22), (3, 19)])
def test_pools(rank: int, opset: int) -> None:
    for node in _pools(rank):
        said = _check(_between(node, opset=opset, rank=rank), _images(rank, 7), "onnxruntime")
        wrong = "ceil_mode=1" in node and "count_include_pad=1" in node
        if "AveragePool" in node:
            assert (said["node"] is True or _SMALL in str(said["node"])) != wrong, node


@pytest.mark.parametrize("target", QDQ_TARGETS)
@pytest.mark.parametrize("behind", ["a", "Relu"])
def test_a_pool_whose_integer_kernel_is_wrong_is_in_float_between_integers(behind: str, target: str) -> None:
    """Though there are integers on both sides of it, of which ONNX Runtime would make the kernel."""
    pool = "AveragePool<kernel_shape=[3,3], strides=[2,2], ceil_mode=1, count_include_pad=1>(a)"
    node = pool if behind == "a" else f"{pool} c = Relu(b)"
    model = _between(node, size=8)
    if behind != "a":
        model.graph.node[-1].input[0] = "c"
    said = _check(model, _images(2, 8), target)
    assert "hangs over" in str(said["node"])
    assert said["first"] is said["last"] is True


@pytest.mark.parametrize("target", QDQ_TARGETS)
@pytest.mark.parametrize("pool", ["AveragePool<kernel_shape=[5,5], strides=[2,2]>(a)", "GlobalAveragePool(a)"])
@pytest.mark.parametrize("opset", [20, 21, newest_opset()])
def test_a_pool_between_integers_loads_at_every_opset(opset: int, pool: str, target: str) -> None:
    """From opset 21 on QuantizeLinear says its type by an attribute, which the runtime's kernel of a pool ignores."""
    if opset <= QDQ_TARGETS[target].maximum_opset or QDQ_TARGETS[target].beyond:
        assert _check(_between(pool, opset=opset), _images(2, 7), target)["node"] is True


@pytest.mark.parametrize("target", QDQ_TARGETS)
@pytest.mark.parametrize("dilation", [1, 2])
def test_dilations_of_an_average_pool(dilation: int, target: str) -> None:
    """ONNX Runtime's integer kernel does not know the attribute, not even where it says nothing."""
    size = 5 if dilation == 1 else 2
    node = f"AveragePool<kernel_shape=[{size},{size}], dilations=[{dilation},{dilation}]>(a)"
    said = _check(_between(node, opset=19), _images(2, 7), target)
    assert said["node"] == (True if dilation == 1 else "ONNX Runtime has no integer kernel for its dilations")


def _others() -> dict[str, tuple[str, dict[str, np.ndarray]]]:
    """Every other operator that is quantized among tensors, with its attributes, at opset 19."""

    def ints(*values: int) -> np.ndarray:
        return np.array(values, np.int64)

    found: dict[str, tuple[str, dict[str, np.ndarray]]] = {
        "GlobalAveragePool": ("GlobalAveragePool(a)", {}),
        "Sigmoid": ("Sigmoid(a)", {}),
        "Add": ("Add(a, c)", {"c": normal(3, 8, 1, 1)}),
        "Mul": ("Mul(a, c)", {"c": normal(3, 8, 1, 1)}),
        "Add of itself": ("Add(a, a)", {}),
        "Gather": ("Gather<axis=2>(a, i)", {"i": ints(1, 0, -1)}),
        "Slice": ("Slice(a, s, e, i, k)", {"s": ints(5), "e": ints(-9), "i": ints(3), "k": ints(-2)}),
        "Tile": ("Tile(a, i)", {"i": ints(1, 1, 2, 3)}),
        "ReduceMax": ("ReduceMax(a, i)", {"i": ints(2)}),
        "Pad": ("Pad(a, i)", {"i": ints(0, 0, 1, 0, 0, 0, 2, 1)}),
        "Pad by edges": ('Pad<mode="edge">(a, i)', {"i": ints(0, 0, 1, 0, 0, 0, 2, 1)}),
    }
    for slope in (0.01, 0.5, 2.0, -1.0):
        found[f"LeakyRelu {slope}"] = f"LeakyRelu<alpha={slope}>(a)", {}
    for axis in (2, -1):
        found[f"Concat {axis}"] = f"Concat<axis={axis}>(a, a)", {}
    for mode, nearest in product(
        ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric", "half_pixel_symmetric"),
        ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil"),
    ):
        attributes = f'coordinate_transformation_mode="{mode}", nearest_mode="{nearest}"'
        scales = {"s": np.array([1, 1, 1.5, 0.7], np.float32)}
        found[f"Resize {mode} {nearest}"] = f"Resize<{attributes}>(a, , s)", scales
    return found


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("name", _others())
def test_other_operators(name: str, target: str) -> None:
    node, constants = _others()[name]
    _check(_between(node, opset=19, **constants), _images(2, 7), target)


def _network(opset: int) -> onnx.ModelProto:
    """Convolutions and products with what is usual around them, in sizes that are known."""
    return build(
        """g (float[1,3,8,8] x, float[1,8,16] t) => (float[1,8,8,8] y, float[1,8,16] z, float[1,4] u) {
            a = Conv<pads=[1,1,1,1]>(x, A, a0)
            r = Relu(a)
            b = Conv<pads=[1,1,1,1]>(r, B)
            y = Add(b, r)
            p = GlobalAveragePool(y)
            f = Flatten(p)
            u = Gemm<transB=1>(f, U, u0)
            c = MatMul(t, C)
            d = Add(c, c0)
            e = Transpose<perm=[0,2,1]>(d)
            g = Sigmoid(e)
            h = Transpose<perm=[0,2,1]>(g)
            i = MatMul(h, D)
            z = Add(i, d0) }""",
        opset=opset, ir_version=8 if opset < 19 else 10,
        A=normal(1, 8, 3, 3, 3) / 5, a0=normal(2, 8), B=normal(3, 8, 8, 3, 3) / 8, U=normal(4, 4, 8) / 3,
        u0=normal(5, 4), C=normal(6, 16, 16) / 4, c0=normal(7, 16), D=normal(8, 16, 16) / 4, d0=normal(9, 16),
    )  # fmt: skip


@pytest.mark.parametrize("target", QDQ_TARGETS)
@pytest.mark.parametrize("opset", range(11, newest_opset() + 1))
def test_every_opset_loads_with_every_optimisation(opset: int, target: str) -> None:
    if opset > QDQ_TARGETS[target].maximum_opset and not QDQ_TARGETS[target].beyond:
        pytest.skip("refused with a reason")
    feeds = [{"x": normal(seed, 1, 3, 8, 8), "t": normal(seed + 50, 1, 8, 16)} for seed in range(6)]
    said = _check(_network(opset), feeds, target)
    assert all(said[layer] is True for layer in ("Conv_0", "Conv_2", "Gemm_6", "MatMul_7", "MatMul_12"))
