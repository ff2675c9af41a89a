"""What equalization promises: a lot where channels differ and the layers behind make up for it, else nothing."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from flow import build, normal

from amct_onnx.graph.naming import name_nodes
from amct_onnx.graph.passes.equalize import channel_groups, equalize_channels
from amct_onnx.ptq.recipe.equalization import group_factors, promised_gain

CONV = """g (float[N,3,8,8] x) => (float[N,4,8,8] y) {
    a = Conv<pads=[1,1,1,1]>(x, w) r = Relu(a) y = Conv(r, v) }"""
GEMM = """g (float[N,3,4,4] x) => (float[N,4] y) {
    a = Conv<pads=[1,1,1,1]>(x, w) r = Relu(a) p = MaxPool<kernel_shape=[2,2],strides=[2,2]>(r)
    f = Flatten(p) y = Gemm<transB=1>(f, v) }"""


def network(text: str, spread: np.ndarray) -> tuple[ir.Model, dict[str, np.ndarray]]:
    """Channels of the middle tensors are as large as `spread` says, which the last layer makes up for."""
    w = normal(0, 8, 3, 3, 3) * spread[:, None, None, None]
    v = normal(1, 4, 32) / np.repeat(spread, 4) if "Gemm" in text else normal(1, 4, 8, 1, 1) / spread[:, None, None]
    model = ir.from_proto(build(text, w=w.astype(np.float32), v=v.astype(np.float32)))
    name_nodes(model)
    (group,) = channel_groups(model)
    return model, dict.fromkeys(group.measured, spread.astype(np.float32))


@pytest.mark.parametrize("text", [CONV, GEMM])
def test_uneven_channels_promise_much_and_equal_ones_nothing(text: str) -> None:
    uneven, maxima = network(text, np.geomspace(1, 100, 8))
    groups = channel_groups(uneven)
    factors = group_factors(groups, maxima, (0.5, 0.25))
    assert promised_gain(uneven, groups, maxima, factors) > 10
    even, maxima = network(text, np.ones(8))
    groups = channel_groups(even)
    assert group_factors(groups, maxima, (0.5, 0.25)) == {}
    assert promised_gain(even, groups, maxima, {}) == 0.0


@pytest.mark.parametrize("text", [CONV, GEMM])
def test_what_is_promised_is_what_is_left_once_it_is_done(text: str) -> None:
    model, maxima = network(text, np.geomspace(1, 100, 8))
    groups = channel_groups(model)
    half, whole = (group_factors(groups, maxima, (strength, strength)) for strength in (0.5, 1.0))
    done = model.clone()
    equalize_channels(done, half)
    rest = {key: whole[key] / half[key] for key in whole}
    divided = {name: values / half[groups[0].key] for name, values in maxima.items()}
    expected = promised_gain(model, groups, maxima, whole) - promised_gain(model, groups, maxima, half)
    assert promised_gain(done, channel_groups(done), divided, rest) == pytest.approx(expected, abs=1e-3)


def test_tensors_that_were_not_measured_promise_nothing() -> None:
    model, maxima = network(CONV, np.geomspace(1, 100, 8))
    groups = channel_groups(model)
    factors = group_factors(groups, maxima, (0.5, 0.5))
    assert promised_gain(model, groups, {}, factors) == 0.0
