"""What every pass promises, on every awkward model: see docs of the house, "each pass must ...".

To put a new pass under the contract add it to `PASSES`. A pass whose purpose is to change the float function does not
belong here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from amct_onnx.files.record import read_notes, write_record
from amct_onnx.graph.constants import ValueNames, lift_ir3
from amct_onnx.graph.index import index_graph
from amct_onnx.graph.instrument.observers import Observer, insert_observers, remove_observers
from amct_onnx.graph.layers import candidates
from amct_onnx.graph.naming import name_nodes
from amct_onnx.graph.passes.balance import balance_layers
from amct_onnx.graph.passes.equalize import channel_groups, equalize_channels
from amct_onnx.graph.passes.float_weights import keep_float_weight, take_float_weights
from amct_onnx.graph.passes.fuse_affine import fuse_affine_into_batch_norm
from amct_onnx.graph.passes.fuse_batch_norm import fuse_batch_norm_into_conv
from amct_onnx.graph.passes.gather_channels import gather_channels
from amct_onnx.graph.passes.normalize_layers import normalize_layers
from amct_onnx.graph.passes.raise_opset import raise_opset
from amct_onnx.graph.passes.share_weights import copy_shared_weights, share_weights
from amct_onnx.graph.passes.smooth import product_inputs, smooth_inputs
from amct_onnx.numerics.settings import ActivationSettings
from amct_onnx.observe.calibration import finish
from amct_onnx.observe.operators import session_options

if TYPE_CHECKING:
    from conftest import Awkward


def _all_fusions(model: ir.Model) -> None:
    name_nodes(model)
    fuse_affine_into_batch_norm(model)
    fuse_batch_norm_into_conv(model)


def _layers(model: ir.Model) -> list[str]:
    name_nodes(model)
    return [traits.name for traits in candidates(model) if traits.reason is None]


def _normalize_all(model: ir.Model) -> None:
    normalize_layers(model, _layers(model))


def _balance_all(model: ir.Model) -> None:
    """Normalized and balanced by factors that differ from channel to channel."""
    layers = _layers(model)
    normalize_layers(model, layers)
    nodes = {node.name: node for node in model.graph}
    chosen = [t for t in candidates(model) if t.reason is None and t.supports_balancing and t.name in nodes]
    balance_layers(model, {t.name: np.geomspace(0.01, 100, t.input_channels, dtype=np.float32) for t in chosen})


def _smooth_all(model: ir.Model) -> None:
    """Smoothed once: a second time the factors would be others."""
    name_nodes(model)
    if any("smooth" in (node.name or "") for node in model.graph):
        return
    found = product_inputs(model)
    smooth_inputs(model, {name: np.geomspace(0.1, 10, t.channels, dtype=np.float32) for name, t in found.items()})


def _equalize_all(model: ir.Model) -> None:
    """By powers of two, so that nothing is rounded, and once: a second time the factors would be others."""
    name_nodes(model)
    if model.metadata_props.get("equalized"):
        return
    groups = [group for group in channel_groups(model) if group.ceiling == np.inf]
    equalize_channels(model, {g.key: 2.0 ** -(np.arange(g.channels) % 5).astype(np.float32) for g in groups})
    if groups:
        model.metadata_props["equalized"] = "yes"


def _observers(layers: list[str], record_path: str) -> list[Observer]:
    """One for each layer, of which none is done after one batch."""
    activation = ActivationSettings()
    return [
        Observer(layers=(layer,), task=activation, batch_num=2, record_path=record_path, observers=len(layers))
        for layer in layers
    ]


def _observe_and_remove(model: ir.Model) -> None:
    """The pair: a model with observers alone runs only where their operators are registered."""
    layers = _layers(model)
    observers = _observers(layers, "r")
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    insert_observers(model, observers)
    assert sorted(remove_observers(model), key=lambda observer: layers.index(observer.layers[0])) == observers
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


def _keep_and_take_float_weights(model: ir.Model) -> None:
    """The pair, again: what it adds is taken out to the byte."""
    layers = _layers(model)
    normalize_layers(model, layers)
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    names, index, kept = ValueNames(model), index_graph(model), {}
    for name in (traits.name for traits in candidates(model) if traits.name in layers and traits.has_weight):
        layer = index.layer(name)
        kept[keep_float_weight(layer, names=names)] = np.array(layer.array())
    taken = take_float_weights(model, kept)
    assert all(np.array_equal(taken[name].numpy(), array) for name, array in kept.items())
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


def _raise_opset(model: ir.Model) -> None:
    """One of these models is of opset 11; all others are above 13 and have to stay as they are."""
    raise_opset(model, 13)


PASSES: dict[str, Callable[[ir.Model], object]] = {
    "name_nodes": name_nodes,
    "lift_ir3": lift_ir3,
    "raise_opset": _raise_opset,
    "fuse_affine_into_batch_norm": fuse_affine_into_batch_norm,
    "fuse_batch_norm_into_conv": fuse_batch_norm_into_conv,
    "all_fusions": _all_fusions,
    "normalize_layers": _normalize_all,
    "balance_layers": _balance_all,
    "smooth_inputs": _smooth_all,
    "equalize_channels": _equalize_all,
    "gather_channels": gather_channels,
    "share_weights": share_weights,
    "copy_shared_weights": copy_shared_weights,
    "insert_and_remove_observers": _observe_and_remove,
    "keep_and_take_float_weights": _keep_and_take_float_weights,
}

# Fusing rounds each weight once more: a few units of the last place of float32, relative to the largest output.
FUSION_TOLERANCE = 1e-5


@pytest.fixture(params=list(PASSES.values()), ids=list(PASSES))
def apply(request: pytest.FixtureRequest) -> Callable[[ir.Model], object]:
    """One pass after the other."""
    chosen: Callable[[ir.Model], object] = request.param
    return chosen


def _round_trip(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model as onnx_ir writes it, so that differences are those of the pass."""
    return ir.to_proto(ir.from_proto(model))


def _after(apply: Callable[[ir.Model], object], model: onnx.ModelProto) -> onnx.ModelProto:
    lifted = ir.from_proto(model)
    apply(lifted)
    return ir.to_proto(lifted)


def _run(model: onnx.ModelProto, feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL  # its own fusions would hide ours
    options.intra_op_num_threads = 1
    anonymous = onnx.ModelProto()
    anonymous.CopyFrom(model)
    for node in anonymous.graph.node:
        node.ClearField("name")  # the runtime refuses duplicates
    session = ort.InferenceSession(anonymous.SerializeToString(), options, providers=["CPUExecutionProvider"])
    outputs: list[np.ndarray] = session.run(None, dict(feed))
    return outputs


def _unread(model: onnx.ModelProto) -> set[str]:
    """The names of all values that neither a node nor an output reads, over all graphs."""
    lifted = ir.from_proto(model)
    values: list[ir.Value] = []
    for graph in lifted.graphs():
        values.extend(graph.initializers.values())
        values.extend(value for node in graph for value in node.outputs)
    return {value.name or "" for value in values if not value.uses() and not value.is_graph_output()}


def test_preserves_the_float_function(apply: Callable[[ir.Model], object], awkward: Awkward) -> None:
    changed = _after(apply, awkward.model)
    for feed in awkward.feeds:
        for expected, actual in zip(_run(awkward.model, feed), _run(changed, feed), strict=True):
            assert actual.shape == expected.shape
            assert actual.dtype == expected.dtype
            assert np.abs(actual - expected).max() <= FUSION_TOLERANCE * np.abs(expected).max()


def test_is_idempotent(apply: Callable[[ir.Model], object], awkward: Awkward) -> None:
    model = ir.from_proto(awkward.model)
    apply(model)
    once = ir.to_proto(model).SerializeToString(deterministic=True)
    apply(model)
    assert ir.to_proto(model).SerializeToString(deterministic=True) == once
    reread = ir.from_proto(onnx.load_from_string(once))
    apply(reread)
    assert ir.to_proto(reread).SerializeToString(deterministic=True) == once


def test_is_deterministic(apply: Callable[[ir.Model], object], awkward: Awkward) -> None:
    first, second = (_after(apply, awkward.model).SerializeToString(deterministic=True) for _ in range(2))
    assert first == second


def test_keeps_interface_and_header(apply: Callable[[ir.Model], object], awkward: Awkward) -> None:
    before, after = _round_trip(awkward.model), _after(apply, awkward.model)
    assert list(after.graph.input) == list(before.graph.input)
    assert list(after.graph.output) == list(before.graph.output)
    if apply is _raise_opset:
        for entry in before.opset_import:
            entry.version = max(entry.version, 13) if entry.domain == "" else entry.version
    after.graph.CopyFrom(before.graph)
    assert after == before  # opset imports, functions, metadata, producer, documentation


def test_leaves_a_valid_model(apply: Callable[[ir.Model], object], awkward: Awkward) -> None:
    onnx.checker.check_model(_after(apply, awkward.model), full_check=True)


def test_leaves_no_new_unread_values(apply: Callable[[ir.Model], object], awkward: Awkward) -> None:
    assert _unread(_after(apply, awkward.model)) == _unread(awkward.model)


def test_keeps_the_order_of_the_nodes_that_stay(apply: Callable[[ir.Model], object], awkward: Awkward) -> None:
    before = [node.op_type for node in awkward.model.graph.node]
    nodes = _after(apply, awkward.model).graph.node
    after = iter(node.op_type for node in nodes if not any(".tensor_balance_factor" in name for name in node.input))
    rest = iter(before)
    assert all(op_type in rest for op_type in after)


def test_does_not_touch_arrays_of_the_caller(apply: Callable[[ir.Model], object], awkward: Awkward) -> None:
    untouched = awkward.model.SerializeToString(deterministic=True)
    _after(apply, awkward.model)
    assert awkward.model.SerializeToString(deterministic=True) == untouched


@pytest.mark.parametrize(
    "level",
    [ort.GraphOptimizationLevel.ORT_DISABLE_ALL, ort.GraphOptimizationLevel.ORT_ENABLE_ALL],
    ids=["as_written", "optimized"],
)
def test_every_observer_fires_and_changes_no_output(
    awkward: Awkward, tmp_path: Path, level: ort.GraphOptimizationLevel
) -> None:
    """Nobody reads an observer's output; that ONNX Runtime runs it all the same is a habit, which this test watches."""
    model = ir.from_proto(awkward.model)
    layers = _layers(model)
    record = str(tmp_path / "record.txt")
    write_record(record, {})
    insert_observers(model, _observers(layers, record))
    feed = awkward.feeds[0]
    results = []
    for proto in (awkward.model, ir.to_proto(model)):
        options = session_options()
        options.graph_optimization_level = level
        options.intra_op_num_threads = 1
        named = ir.from_proto(proto)
        name_nodes(named)  # the runtime refuses duplicates
        session = ort.InferenceSession(
            ir.to_proto(named).SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        results.append(session.run(None, dict(feed)))
    for expected, actual in zip(*results, strict=True):
        # Observed tensors are not fused away, so optimized operators may add up in another order.
        assert np.abs(actual - expected).max() <= FUSION_TOLERANCE * np.abs(expected).max()
    finish(record)
    assert sorted((note.layer, note.seen, note.error) for note in read_notes(record)) == sorted(
        (layer, 1, None) for layer in layers
    )
