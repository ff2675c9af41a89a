"""Tensors, weights and biases of any magnitude, from 1e-38 to 1e37, through `quantize` for all targets.

Every file is valid and near the float network, and what a target has no grid for stays in float with that reason.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from flow import build, normal, sqnr

import amct_onnx
from amct_onnx.ptq.options import TARGET_NAMES
from amct_onnx.ptq.quantized_model import QuantizedModel

Made = tuple[onnx.ModelProto, list[dict[str, np.ndarray]]]
MAGNITUDES = (1e-38, 1e-30, 1e-19, 1e-10, 1e-6, 1e6, 1e10, 1e19, 1e30, 1e37)
X4, X2 = ([normal(seed, 2, *shape) for seed in range(6)] for shape in ((4, 8, 8), (16,)))
A, A0, B = normal(1, 8, 4, 3, 3, scale=0.17), normal(2, 8), normal(3, 4, 8, 3, 3, scale=0.12)
V, V0 = normal(4, 16, 16, scale=0.25), normal(5, 16)


def times(array: np.ndarray, factor: float) -> np.ndarray:
    with np.errstate(over="ignore", under="ignore"):
        return (array.astype(np.float64) * factor).astype(np.float32)


def conv(x: float, w: float, b: float) -> Made:
    text = "g (float[N,4,8,8] x) => (float[N,4,4,4] y) { [c] a = Conv (x, w, b) r = Relu (a) [d] y = Conv (r, v) }"
    return build(text, w=times(A, w), b=times(A0, b), v=B), [{"x": times(array, x)} for array in X4]


def gemm(x: float, w: float, b: float) -> Made:
    text = "g (float[N,16] x) => (float[N,16] y) { [c] y = Gemm (x, w, b) }"
    return build(text, w=times(V, w), b=times(V0, b)), [{"x": times(array, x)} for array in X2]


def matmul(x: float, w: float, b: float) -> Made:
    text = "g (float[N,16] x) => (float[N,16] y) { [c] a = MatMul (x, w) y = Add (a, b) }"
    return build(text, w=times(V, w), b=times(V0, b)), [{"x": times(array, x)} for array in X2]


def pair(join: str, *, linear: bool = False) -> Callable[[float, float, float], Made]:
    """Two branches that meet, of which one has these magnitudes."""

    def make(x: float, w: float, b: float) -> Made:
        shape = "16" if linear else "4,8,8"
        op, end = ("Gemm", "Gemm (j, e)") if linear else ("Conv", "Conv (j, e)")
        result = "float[N,16]" if linear else "float[N,C,H,W]"
        text = f"""g (float[N,{shape}] x, float[N,{shape}] t) => ({result} j, {result.replace("C,H,W", "D,I,J")} y) {{
            [c] p = {op} (x, w, b) [d] q = {op} (t, u, v) k = Relu (p) l = Relu (q) j = {join} [e] y = {end} }}"""
        own, bias, data = (V, V0, X2) if linear else (A, A0, X4)
        after = V if linear else normal(6, 4, 16 if "Concat" in join else 8, 3, 3, scale=0.1)
        model = build(text, w=times(own, w), b=times(bias, b), u=own, v=bias, e=after)
        return model, [{"x": times(one, x), "t": two} for one, two in zip(data, data[::-1], strict=True)]

    return make


def pools(x: float, w: float, b: float) -> Made:
    text = """g (float[N,4,8,8] x) => (float[N,16] y) { [c] a = Conv (x, w, b) r = Relu (a)
        p = AveragePool<kernel_shape=[2,2], strides=[2,2]> (r) m = MaxPool<kernel_shape=[2,2]> (p) f = Flatten (m)
        [d] y = Gemm (f, v) }"""
    return build(text, w=times(A, w), b=times(A0, b), v=normal(7, 32, 16)), [{"x": times(array, x)} for array in X4]


NETWORKS = {
    "conv": conv, "gemm": gemm, "matmul": matmul, "pools": pools, "sum": pair("Add (k, l)", linear=True),
    "product": pair("Mul (k, l)"), "concatenation": pair("Concat<axis=1> (k, l)"),
}  # fmt: skip


def factors_of(magnitudes: tuple[float, ...]) -> list[tuple[float, float, float]]:
    """Of the input, the weight and the bias: one of them, two that cancel, and all that are alike."""
    some = (((m, 1, 1), (1, m, 1), (1, 1, m), (m, 1 / m, 1), (m, 1, m)) for m in magnitudes)
    return [*itertools.chain.from_iterable(some), *((m, m, m) for m in magnitudes if 1e-19 <= m <= 1e10)]


def outputs(session: ort.InferenceSession, feeds: list[dict[str, np.ndarray]]) -> list[np.ndarray]:
    """Each output of all feeds."""
    runs = [session.run(None, feed) for feed in feeds]
    return [np.concatenate([array.ravel() for array in arrays]) for arrays in zip(*runs, strict=True)]


def floats(made: Made) -> list[np.ndarray]:
    """Those of the float network."""
    return outputs(ort.InferenceSession(made[0].SerializeToString()), made[1])


def check(made: Made, result: QuantizedModel, folder: Path, floor: float) -> None:
    """Each output of the file is near that of the float network, where that has numbers that are not denormal."""
    file = next(f for f in result.save(folder / "m", inspect=False).files if f.endswith("onnx") and "deploy" not in f)
    options = ort.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")
    for wanted, got in zip(floats(made), outputs(ort.InferenceSession(file, options), made[1]), strict=True):
        if np.isfinite(wanted).all() and np.abs(wanted).max() > 1e-37:
            assert sqnr(wanted, got) > floor


# Targets of Q/DQ files have one way to solve grids: one of them sees every magnitude.
SOME = {target: MAGNITUDES[:: 1 if target in ("onnxruntime", "ascend") else 4] for target in TARGET_NAMES}
TIMES = [
    pytest.param(target, magnitudes, marks=marks)
    for target in TARGET_NAMES
    for magnitudes, marks in (((1e-30, 1e10), []), (SOME[target], [pytest.mark.slow]))
]


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize(("target", "magnitudes"), TIMES)
def test_every_magnitude_gives_a_file_that_is_right(
    tmp_path: Path, target: str, network: str, magnitudes: tuple[float, ...]
) -> None:
    for factors in factors_of(magnitudes):
        made = NETWORKS[network](*factors)
        if not all(np.isfinite(array).all() for array in floats(made)):
            continue
        result = amct_onnx.quantize(*made, target=target, effort="fast")
        for decision in result.decisions:
            assert decision.quantized or decision.reason
        check(made, result, tmp_path, 25)


@pytest.mark.parametrize("network", ["conv", "gemm", "concatenation"])
@pytest.mark.parametrize("target", ["onnxruntime", "ascend"])
@pytest.mark.parametrize("m", [1e-30, 1e-10, 1e10, 1e30])
def test_the_recipe_bears_every_magnitude(tmp_path: Path, target: str, network: str, m: float) -> None:
    for factors in ((m, 1, 1), (1, m, 1), (1, 1, m), (m, 1 / m, 1)):
        made = NETWORKS[network](*factors)
        check(made, amct_onnx.quantize(*made, target=target), tmp_path, 25)


@pytest.mark.parametrize("m", [1e-30, 1e-10, 1e10, 1e30])
def test_a_q_dq_file_has_no_bounds_of_scales(tmp_path: Path, m: float) -> None:
    for made in (gemm(m, 1, 1), gemm(1, m, m), conv(m, 1, m)):
        result = amct_onnx.quantize(*made, effort="fast")
        assert all(decision.quantized for decision in result.decisions if decision.layer in ("c", "d"))


@pytest.mark.parametrize(
    ("factors", "reason"),
    [
        ((1e-9, 1, 1), r'tensor "x": every value would round to zero: the largest is .*, the least scale 1.19e-07'),
        ((1e12, 1, 1), r'tensor "x": the scale exceeds 8388608: the tensor is too large for int8'),
        ((1, 1e-9, 1), "every weight would round to zero"),
        ((1, 1e12, 1), "the scale exceeds 8388608"),
        ((1, 1, 1e9), r"its quantized bias exceeds int32 \(largest .*\)"),
    ],
)
def test_what_a_record_has_no_scale_for_stays_in_float(
    tmp_path: Path, factors: Any, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The other layer is quantized all the same."""
    model, feeds = pair("Add (k, l)", linear=True)(*factors)
    result = amct_onnx.quantize(model, feeds, target="ascend", effort="fast")
    decisions = {decision.layer: decision for decision in result.decisions}
    assert (decisions["c"].quantized, decisions["d"].quantized) == (False, True)
    assert re.search(reason, decisions["c"].reason)
    assert 'Layer "c" stays in float' in caplog.text
