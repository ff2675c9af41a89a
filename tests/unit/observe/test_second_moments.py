"""`collect_moments`: the columns that ONNX Runtime itself multiplies a weight with are the oracle."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from flow import CPU, build, normal, two_convs
from layer_kinds import KINDS, Kind, model_of, outputs_by_group
from threadpoolctl import threadpool_limits

from amct_onnx.errors import CalibrationError, DataError, ModelError
from amct_onnx.graph.weights import from_kernel_rows, kernel_rows, output_rows_shape
from amct_onnx.numerics.statistics.moments import SecondMoments
from amct_onnx.observe import operators as observer_op
from amct_onnx.observe import second_moments as grams
from amct_onnx.observe.second_moments import collect_moments

TOLERANCE = 2e-5  # of columns around 1: float32, here and in the oracle


class Feeds(Collection[dict[str, np.ndarray]]):
    """Counts how often it is read."""

    def __init__(self, *arrays: np.ndarray) -> None:
        self.feeds, self.reads = [{"x": array} for array in arrays], 0

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        self.reads += 1
        return iter(self.feeds)

    def __len__(self) -> int:
        return len(self.feeds)

    def __contains__(self, feed: object) -> bool:
        return feed in self.feeds


def columns_of(kind: Kind, node: ir.Node, feeds: Feeds) -> np.ndarray:
    """[G, n, all columns]: outputs of the layer with rows of an identity in place of its weight."""
    groups, _, length = output_rows_shape(kind.w, node)
    identity = np.eye(length, dtype=np.float32)
    conv = node.op_type == "Conv"
    outputs = length * groups if conv else length
    shape = (outputs, *kind.w[1:]) if conv else tuple(kind.w)
    axis = {"Conv": 0, "ConvTranspose": 1}.get(node.op_type, len(shape) - 1)
    shape = (*shape[:axis], outputs, *shape[axis + 1 :])
    rows = np.tile(identity, (groups, 1) if conv else (1, groups))
    weight = from_kernel_rows(rows, shape, node)
    np.testing.assert_array_equal(kernel_rows(weight, node), rows)
    session = ort.InferenceSession(model_of(kind, weight)[0].SerializeToString(), providers=CPU)
    found = [outputs_by_group(kind, session.run(None, feed)[0], groups) for feed in feeds]
    return np.concatenate(found, axis=2).astype(np.float64)


@pytest.mark.parametrize("longest", [4096, 5], ids=["whole", "blocks"])
@pytest.mark.parametrize("kind", KINDS.values(), ids=list(KINDS))
def test_the_moments_of_every_kind_of_layer(kind: Kind, longest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grams, "_LEAST_COLUMNS", 1 << 12)  # all of them
    model = ir.from_proto(model_of(kind)[0])
    feeds = Feeds(*(normal(seed, *kind.x, scale=1 + seed) + 0.5 for seed in range(3)))
    columns = columns_of(kind, model.graph.node(0), feeds)
    [(layer, moments)] = collect_moments(model, ["layer"], feeds, longest=longest)
    groups, length, count = columns.shape
    blocks = -(-length // longest)
    filled = np.zeros((groups, blocks * moments.mean.shape[1], count))
    filled[:, :length] = columns
    filled = filled.reshape(groups * blocks, -1, count)
    assert layer == "layer"
    assert moments.columns == count
    np.testing.assert_allclose(moments.mean, filled.mean(axis=2), atol=TOLERANCE)
    np.testing.assert_allclose(moments.gram, filled @ filled.transpose(0, 2, 1) / count, atol=10 * TOLERANCE)


def test_gemm_as_the_integer_operator_reads_it() -> None:
    model = build(
        "g (float[6,5] x) => (float[5,4] y) { [fc] y = Gemm <alpha=0.5, beta=2.0, transA=1, transB=1> (x, w, b) }",
        w=normal(1, 4, 6),
        b=normal(2, 4),
    )
    x = normal(3, 6, 5)
    [(_, moments)] = collect_moments(ir.from_proto(model), ["fc"], Feeds(x))
    np.testing.assert_allclose(moments.gram[0], x.astype(np.float64) @ x.T / 5, atol=TOLERANCE)


def chain() -> ir.Model:
    """Three layers, of which two read the same tensor."""
    return ir.from_proto(
        build(
            """g (float[N,6,H,W] x) => (float[N,8,H,W] y, float[N,5,H,W] z) {
                [first] a = Conv <pads=[1,1,1,1], group=6> (x, w1)
                r = Relu (a)
                [second] y = Conv (r, w2)
                [third] z = Conv <pads=[1,1,1,1]> (r, w3)
            }""",
            w1=normal(1, 6, 1, 3, 3),
            w2=normal(2, 8, 6, 1, 1),
            w3=normal(3, 5, 6, 3, 3),
        )
    )


LAYERS = ["second", "first", "third"]


def images(count: int = 7, size: int = 17) -> Feeds:
    return Feeds(*(normal(seed, 1 + seed % 3, 6, size, size + seed) for seed in range(count)))


def as_bytes(found: Iterator[tuple[str, SecondMoments]]) -> list[tuple[str, int, bytes, bytes]]:
    return [(layer, m.columns, m.mean.tobytes(), m.gram.tobytes()) for layer, m in found]


def test_a_budget_of_memory_costs_runs_and_changes_nothing() -> None:
    plenty, little = images(), images()
    want = as_bytes(collect_moments(chain(), LAYERS, plenty))
    assert [layer for layer, *_ in want] == LAYERS
    assert plenty.reads == 1
    found = collect_moments(chain(), LAYERS, little, memory=1)
    got = []
    for done, moments in enumerate(found, 1):
        got.append(moments)
        assert little.reads == done  # no layer is collected before the one in front of it was taken
    assert as_bytes(iter(got)) == want


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("operator", ["compiled", "python"])
def test_the_number_of_threads_does_not_matter(threads: int, operator: str, monkeypatch: pytest.MonkeyPatch) -> None:
    want = as_bytes(collect_moments(chain(), LAYERS, images()))
    monkeypatch.setattr(grams, "processors", lambda: threads)
    if operator == "python":
        monkeypatch.setattr(observer_op, "compiled", None)
    with threadpool_limits(threads, user_api="blas"):
        assert as_bytes(collect_moments(chain(), LAYERS, images())) == want


def test_of_many_positions_some_of_every_image_are_read() -> None:
    """What is read of an image of ones, twos, ... says how much of each image is in the mean."""
    count = 12
    feeds = Feeds(np.concatenate([np.full((1, 6, 64, 64), value, np.float32) for value in range(1, count + 1)]))
    [(_, moments)] = collect_moments(chain(), ["first"], feeds)
    assert 200 < moments.columns <= 256  # of 49152
    middle = moments.mean[:, 4]  # the middle of the kernel is never outside of the image
    np.testing.assert_allclose(middle, (count + 1) / 2, rtol=0.05)
    # Like images give the same places only where they were not read before.
    ramp = np.arange(64 * 64, dtype=np.float32).reshape(1, 1, 64, 64).repeat(6, axis=1)
    [(_, moments)] = collect_moments(chain(), ["first"], Feeds(*[ramp] * count))
    np.testing.assert_allclose(moments.mean[:, 4], ramp.mean(), rtol=0.02)
    np.testing.assert_allclose(moments.gram[:, 4, 4], np.square(ramp.astype(np.float64)).mean(), rtol=0.02)


def test_the_model_stays_as_it_is() -> None:
    model = chain()
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    list(collect_moments(model, LAYERS, images()))
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


def test_what_cannot_be_collected_is_an_error() -> None:
    model = ir.from_proto(two_convs())
    with pytest.raises(ModelError, match='no convolution or product "relu" with a constant weight: check the name'):
        list(collect_moments(model, ["relu"], Feeds(normal(0, 1, 3, 5, 5))))
    with pytest.raises(ModelError, match='"gone"'):
        list(collect_moments(model, ["gone"], Feeds(normal(0, 1, 3, 5, 5))))
    with pytest.raises(DataError, match="no calibration data"):
        list(collect_moments(model, ["conv1"], Feeds()))
    with pytest.raises(DataError, match="Batch 2: ONNX Runtime cannot run"):
        list(collect_moments(model, ["conv1"], Feeds(normal(0, 1, 3, 5, 5), normal(0, 1, 4, 5, 5))))
    with pytest.raises(CalibrationError, match=r'Layer "conv1", batch 2: .* NaN or Inf'):
        list(collect_moments(model, ["conv1"], Feeds(normal(0, 1, 3, 5, 5), np.full((1, 3, 5, 5), np.nan, np.float32))))


def test_feeds_without_elements_add_nothing_and_a_layer_that_saw_nothing_is_left_out() -> None:
    model, some, nothing = ir.from_proto(two_convs()), normal(0, 1, 3, 5, 5), np.zeros((0, 3, 5, 5), np.float32)
    (layer, found), *others = collect_moments(model, ["conv1"], Feeds(nothing, some, nothing))
    assert (layer, others) == ("conv1", [])
    assert found.columns == 25
    assert list(collect_moments(model, ["conv1", "conv2"], Feeds(nothing))) == []
