"""Second-order rounding of layers: the outputs that ONNX Runtime computes with the integers are the judge."""

from __future__ import annotations

from functools import partial

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from flow import CPU, build, normal
from layer_kinds import KINDS, Kind, model_of, outputs_by_group
from threadpoolctl import threadpool_limits

from amct_onnx.errors import CalibrationError
from amct_onnx.graph.weights import from_kernel_rows, kernel_rows, output_rows_shape
from amct_onnx.numerics.grid import QParams, QSpec
from amct_onnx.numerics.rounding import dequantize, quantize
from amct_onnx.numerics.settings import AdaRound
from amct_onnx.numerics.weights.arq import solve_arq
from amct_onnx.observe import second_moments as grams
from amct_onnx.ptq.recipe import rounding as second_order
from amct_onnx.ptq.recipe.rounding import Method, round_weights, with_rounded_weights

SETTINGS = AdaRound(num_iteration=2000)
TOLERANCE = 1e-4  # float32 sums, of ONNX Runtime and of Gram matrices


def grid_of(node: ir.Node, weight: np.ndarray, bits: int) -> QParams:
    return solve_arq(kernel_rows(weight, node), QSpec(bits=bits, channel_axis=0))


def feeds_of(kind: Kind, count: int = 4) -> list[dict[str, np.ndarray]]:
    """Inputs that are correlated and have a mean, as behind a ReLU."""
    return [{"x": np.maximum(normal(seed, *kind.x) + normal(9 + seed, *kind.x[:-1], 1), 0)} for seed in range(count)]


def outputs(kind: Kind, weight: np.ndarray, feeds: list[dict[str, np.ndarray]], groups: int) -> np.ndarray:
    session = ort.InferenceSession(model_of(kind, weight)[0].SerializeToString(), providers=CPU)
    found = [outputs_by_group(kind, session.run(None, feed)[0], groups) for feed in feeds]
    return np.concatenate(found, axis=2).astype(np.float64)


@pytest.mark.parametrize("kind", KINDS.values(), ids=list(KINDS))
def test_nearest_weights_in_float(kind: Kind) -> None:
    proto, _, weight = model_of(kind)
    model, (feed, *_) = ir.from_proto(proto), feeds_of(kind)
    node = model.graph.node(0)
    grid = grid_of(node, weight, 4)
    nearest = from_kernel_rows(dequantize(quantize(kernel_rows(weight, node), grid), grid), weight.shape, node)
    rounded = with_rounded_weights(model, {"layer": grid})
    expected, got = (
        ort.InferenceSession(source.SerializeToString(), providers=CPU).run(None, feed)[0]
        for source in (model_of(kind, nearest)[0], ir.to_proto(rounded))
    )
    np.testing.assert_allclose(got, expected, rtol=TOLERANCE, atol=TOLERANCE * np.abs(expected).max())
    assert ir.to_proto(model) == ir.to_proto(ir.from_proto(proto))


@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize(("method", "blocks"), [("gptq", False), ("gptq", True), ("adaround", False)])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("kind", KINDS.values(), ids=list(KINDS))
def test_worse_on_weights_better_on_outputs_and_the_mean_is_kept(
    kind: Kind, bits: int, method: Method, blocks: bool, corrected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if blocks:
        monkeypatch.setattr(second_order, "_LONGEST", {"gptq": 5, "adaround": 5})
    monkeypatch.setattr(grams, "_LEAST_COLUMNS", 1 << 12)  # all of them, as the outputs below
    proto, _, weight = model_of(kind)
    model, feeds = ir.from_proto(proto), feeds_of(kind)
    node = model.graph.node(0)
    rows, grid = kernel_rows(weight, node), grid_of(node, weight, bits)
    layers, chosen = ["layer"], ["layer"] if corrected else []
    found = round_weights(model, layers, feeds, {"layer": grid}, method=method, settings=SETTINGS, corrected=chosen)
    integers, correction = found["layer"].integers, found["layer"].correction
    assert integers is not None
    assert integers.shape == rows.shape
    assert integers.min() >= grid.spec.qmin
    assert integers.max() <= grid.spec.qmax
    groups, count, _ = output_rows_shape(weight.shape, node)
    exact = outputs(kind, weight, feeds, groups)
    got = [outputs(kind, from_kernel_rows(dequantize(q, grid), weight.shape, node), feeds, groups) for q in
           (quantize(rows, grid), integers)]  # fmt: skip
    lost = [(exact - y).mean(axis=2, keepdims=True) if corrected else np.zeros(1) for y in got]
    nearest, learned = (np.square(y + mean - exact).sum() for y, mean in zip(got, lost, strict=True))
    on_weights = [np.square(dequantize(q, grid) - rows).sum() for q in (quantize(rows, grid), integers)]
    assert on_weights[1] >= on_weights[0]
    if not blocks:  # between blocks nothing is known
        assert learned <= nearest * (1 + TOLERANCE)
        assert learned < 0.95 * nearest or groups * count <= 6
    assert (correction is not None) == corrected
    if correction is not None:
        np.testing.assert_allclose(correction, (exact - got[1]).mean(axis=2).reshape(-1), atol=TOLERANCE)
    assert found["layer"].params is grid


def network() -> ir.Model:
    return ir.from_proto(
        build(
            """g (float[N,6,H,W] x) => (float[N,4] y) {
                [wide] a = Conv <pads=[1,1,1,1]> (x, w1)
                b = Relu (a)
                [deep] c = Conv <pads=[1,1,1,1], group=16> (b, w2)
                d = Relu (c)
                e = GlobalAveragePool (d)
                f = Flatten (e)
                [fc] y = Gemm <transB=1, alpha=0.5> (f, w3)
            }""",
            w1=normal(1, 16, 6, 3, 3),
            w2=normal(2, 16, 1, 3, 3),
            w3=normal(3, 4, 16),
        )
    )


LAYERS = ["wide", "deep", "fc"]


def grids(bits: int = 4) -> dict[str, QParams]:
    shapes = {"wide": normal(1, 16, 54), "deep": normal(2, 16, 9), "fc": 0.5 * normal(3, 4, 16)}
    return {name: solve_arq(rows, QSpec(bits=bits, channel_axis=0)) for name, rows in shapes.items()}


def images(count: int = 6) -> list[dict[str, np.ndarray]]:
    return [{"x": normal(seed, 2, 6, 9, 9) + 0.5} for seed in range(count)]


@pytest.mark.parametrize("method", ["gptq", "adaround"])
def test_neither_threads_nor_memory_change_a_bit(method: Method, monkeypatch: pytest.MonkeyPatch) -> None:
    def run() -> list[tuple[str, bytes, bytes]]:
        found = round_weights(network(), LAYERS, images(), grids(), method=method, settings=SETTINGS, corrected=LAYERS)
        return [(n, grid.integers.tobytes(), grid.correction.tobytes()) for n, grid in found.items()]

    want = run()
    assert [name for name, *_ in want] == LAYERS
    monkeypatch.setattr(second_order, "collect_moments", partial(grams.collect_moments, memory=1))
    for threads in (1, 3):
        monkeypatch.setattr(second_order, "processors", lambda threads=threads: threads)
        with threadpool_limits(threads, user_api="blas"):
            assert run() == want


def test_inputs_that_never_vary_leave_nothing_to_round_by() -> None:
    """With corrected biases whatever the integers are, the outputs are exact; without, rounding goes by the means."""
    feeds = [{"x": np.full((2, 6, 9, 9), 0.3, np.float32)} for _ in range(3)]
    model = ir.from_proto(build("g (float[N,6,9,9] x) => (float[N,4,9,9] y) { [layer] y = Conv (x, w) }",
                                w=normal(1, 4, 6, 1, 1)))  # fmt: skip
    rows = normal(1, 4, 6)
    grid = solve_arq(rows, QSpec(bits=4, channel_axis=0))
    found = round_weights(model, ["layer"], feeds, {"layer": grid}, corrected=["layer"])
    assert found["layer"].integers.tolist() == quantize(rows, grid).tolist()
    plain = dequantize(round_weights(model, ["layer"], feeds, {"layer": grid})["layer"].integers, grid)
    assert np.abs(0.3 * (rows - plain).sum(axis=1)).max() < np.abs(found["layer"].correction).max()


def test_weights_as_the_lowering_reads_them() -> None:
    """A Gemm with alpha and a turned weight: the integers are those of alpha * w, turned."""
    found = round_weights(network(), ["fc"], images(), grids(8))
    weight = 0.5 * normal(3, 4, 16)
    assert np.abs(dequantize(found["fc"].integers, grids(8)["fc"]) - weight).max() < 2 * grids(8)["fc"].scale.max()


def test_progress_and_the_model_stay_as_they_should() -> None:
    model, shown = network(), []
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    round_weights(model, LAYERS, images(), grids(), progress=lambda what, share: shown.append((what, share)))
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before
    assert shown == [("rounding", (done + 1) / 3) for done in range(3)]


def test_a_weight_that_cannot_be_rounded_is_an_error() -> None:
    wrong = grids() | {"deep": QParams(scale=np.ones(16, np.float32), zero_point=np.zeros(16, np.int32),
                                       spec=QSpec(bits=16, channel_axis=0))}  # fmt: skip
    with pytest.raises(CalibrationError, match='Layer "deep" cannot be rounded: the grid must have'):
        round_weights(network(), LAYERS, images(), wrong)


def test_layers_with_one_weight_get_the_same_integers_which_are_best_for_all_of_them() -> None:
    weight = normal(1, 12, 6)
    proto = build(
        "g (float[N,12] x, float[N,12] z) => (float[N,6] p, float[N,6] q, float[N,6] r) "
        "{ [one] p = MatMul (x, w) [two] q = MatMul (z, v) [other] r = MatMul (x, u) }",
        **{"w": weight, "v": weight.copy(), "u": normal(2, 12, 6)},
    )
    halves = {"x": np.repeat([3.0, 0.1], 6), "z": np.repeat([0.1, 3.0], 6)}  # each knows half of the columns well
    feeds = [
        {name: ((normal(s + k, 64, 1) + 0.5 * normal(s + k + 9, 64, 12)) * half).astype(np.float32)}
        for k in (1, 2)
        for s, (name, half) in enumerate(halves.items())
    ]
    feeds = [feeds[0] | feeds[1], feeds[2] | feeds[3]]
    layers = ["one", "other", "two"]
    grids = {
        n: grid_of(ir.from_proto(proto).graph.node(n), weight if n != "other" else normal(2, 12, 6), 3) for n in layers
    }
    found = round_weights(ir.from_proto(proto), layers, feeds, grids)
    assert set(found) == set(layers)
    one, two = (found[name].integers for name in ("one", "two"))
    assert one is not None
    assert two is not None
    np.testing.assert_array_equal(one, two)

    def error(integers: np.ndarray) -> float:
        lost = weight - dequantize(integers, grids["one"]).T
        return float(sum(np.square(feed[name] @ lost).sum() for feed in feeds for name in ("x", "z")))

    alone = [round_weights(ir.from_proto(proto), [name], feeds, grids)[name].integers for name in ("one", "two")]
    nearest = quantize(kernel_rows(weight, ir.from_proto(proto).graph.node("one")), grids["one"])
    assert error(one) < min(error(nearest), *(error(found) for found in alone if found is not None))
