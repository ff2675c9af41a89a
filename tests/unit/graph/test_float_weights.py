"""What is observed at a layer, times its rows, is what ONNX Runtime computes; float weights go in and out again."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from flow import CPU
from layer_kinds import KINDS, Kind, model_of, outputs_by_group
from onnx import numpy_helper

from amct_onnx.errors import ModelError
from amct_onnx.graph.constants import ValueNames
from amct_onnx.graph.layer_view import layer_of
from amct_onnx.graph.passes.float_weights import keep_float_weight, layer_columns, take_float_weights
from amct_onnx.graph.weights import from_output_rows, output_rows, output_rows_shape
from amct_onnx.numerics.im2col import sample_columns, spread_evenly
from amct_onnx.numerics.settings import AdaRound

TOLERANCE = 1e-5  # float32 sums of a few dozen products around 1
WIDE = 1 << 12


@pytest.mark.parametrize("width", [WIDE, 5, 1], ids=["whole", "blocks", "entries"])
@pytest.mark.parametrize("kind", KINDS.values(), ids=list(KINDS))
def test_columns_times_the_weight_are_the_outputs_of_the_layer(kind: Kind, width: int) -> None:
    model, x, w = model_of(kind)
    (y,) = ort.InferenceSession(model.SerializeToString(), providers=CPU).run(None, {"x": x})
    node = ir.from_proto(model).graph.node(0)
    task = layer_columns(layer_of(node), "w", width, AdaRound())
    assert task.block <= width
    rows = output_rows(w, node)
    assert rows.shape == output_rows_shape(w.shape, node)
    columns = np.concatenate(list(sample_columns(x, task, 1 << 30)), axis=2)
    groups, _, length = rows.shape
    assert columns.shape[:2] == (groups * -(-length // task.block), task.block)
    columns = columns.reshape(groups, -1, columns.shape[2])
    np.testing.assert_allclose(rows @ columns[:, :length], outputs_by_group(kind, y, groups), atol=TOLERANCE)
    assert not columns[:, length:].any()


@pytest.mark.parametrize("kind", KINDS.values(), ids=list(KINDS))
def test_rows_are_put_back_where_they_were(kind: Kind) -> None:
    model, _, w = model_of(kind)
    node = ir.from_proto(model).graph.node(0)
    np.testing.assert_array_equal(from_output_rows(output_rows(w, node), w.shape, node), w)


@pytest.mark.parametrize("name", ["strides", "depthwise", "transpose_strides", "gemm", "matmul_4d"])
def test_a_sample_is_some_of_the_columns_in_their_order(name: str) -> None:
    model, x, _ = model_of(KINDS[name])
    task = layer_columns(layer_of(ir.from_proto(model).graph.node(0)), "w", WIDE, AdaRound())
    whole = np.concatenate(list(sample_columns(x, task, 1 << 30)), axis=2)
    some = np.concatenate(list(sample_columns(x, task, 4)), axis=2)
    np.testing.assert_array_equal(some, whole[..., spread_evenly(whole.shape[2], 4)])
    assert some.shape[2] <= 4 < whole.shape[2]


def test_a_sample_is_spread_evenly() -> None:
    chosen = spread_evenly(224 * 224, 1000)
    assert 990 <= len(chosen) <= 1000  # two of the sequence may fall on one position
    rows, columns = np.divmod(chosen, 224)
    for places in (rows, columns):  # no part of the image is left out: 100 are expected in each tenth
        assert (np.histogram(places, 10, (0, 224))[0] > 70).all()


def test_all_are_taken_where_there_are_few() -> None:
    np.testing.assert_array_equal(spread_evenly(7, 7), np.arange(7))


@pytest.mark.parametrize(
    ("name", "shape"), [("conv", (2, 3, 5)), ("grouped", (2, 5, 5, 5)), ("matmul_3d", (4, 5, 6))], ids=str
)
def test_a_tensor_that_the_layer_does_not_read_is_refused(name: str, shape: tuple[int, ...]) -> None:
    model, _, _ = model_of(KINDS[name])
    task = layer_columns(layer_of(ir.from_proto(model).graph.node(0)), "w", WIDE, AdaRound())
    with pytest.raises(ValueError, match=r"tensor of shape|broadcast"):
        list(sample_columns(np.zeros(shape, np.float32), task, 10))


def test_the_kept_weight_runs_quietly_at_every_level_and_is_taken_out_again(capfd: pytest.CaptureFixture[str]) -> None:
    proto, x, w = model_of(KINDS["grouped"])
    model = ir.from_proto(proto)
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    name = keep_float_weight(layer_of(model.graph.node(0)), names=ValueNames(model))
    kept = ir.to_proto(model)
    assert [numpy_helper.to_array(t).tolist() for t in kept.graph.initializer if t.name == name] == [w.tolist()]
    (y,) = ort.InferenceSession(proto.SerializeToString(), providers=CPU).run(None, {"x": x})
    for level in (ort.GraphOptimizationLevel.ORT_DISABLE_ALL, ort.GraphOptimizationLevel.ORT_ENABLE_ALL):
        options = ort.SessionOptions()
        options.graph_optimization_level = level
        session = ort.InferenceSession(kept.SerializeToString(), options, providers=CPU)
        np.testing.assert_array_equal(session.run(None, {"x": x})[0], y)
    assert capfd.readouterr().err == ""
    taken = take_float_weights(model, [name])
    np.testing.assert_array_equal(taken[name].numpy(), w)
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


def test_a_missing_float_weight_is_an_error_with_advice() -> None:
    model = ir.from_proto(model_of(KINDS["conv"])[0])
    with pytest.raises(ModelError, match="no initializer gone, which ada_quantize needs: pass the modified_onnx_file"):
        take_float_weights(model, ["gone"])


def test_blocks_hold_whole_channels_where_they_can() -> None:
    node = ir.from_proto(model_of(Kind("Conv (x, w)", (1, 10, 5, 5), (4, 10, 3, 3)))[0]).graph.node(0)
    task = layer_columns(layer_of(node), "w", 40, AdaRound())
    assert task.block == 36  # 4 channels of 9: three blocks for 10 channels
    assert replace(task, block=1) == layer_columns(layer_of(node), "w", 1, AdaRound())
