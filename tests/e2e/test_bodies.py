"""Layers inside the bodies of If, Loop and Scan: int8 for Q/DQ targets where the data have run them, else a reason."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from far_engine import FarEngine
from flow import build, normal, sqnr
from graphs import graphs

import amct_onnx as amct
from amct_onnx.errors import AmctError
from amct_onnx.ptq.mixed.effects import measure
from amct_onnx.run.saturation import saturates

TARGETS = ("onnxruntime", "openvino", "tensorrt")
Feed = dict[str, np.ndarray]


def branches() -> onnx.ModelProto:
    """Both branches have tensors of the same names, a weight of their own and one of the graph around them."""
    return build(
        """g (float[N,3,10,10] x, bool wide) => (float[N,5,8,8] y) {
            [stem] s = Conv <pads=[1,1,1,1]> (x, w0)
            r = Relu (s)
            y = If (wide) <
                then_branch = yes () => (float[N,5,8,8] o) {
                    own = Constant <value = float[5] {0.1, -0.2, 0.3, 0.0, 0.5}> ()
                    [yes_conv] a = Conv (r, w1, own)
                    o = Relu (a) },
                else_branch = no () => (float[N,5,8,8] p) {
                    [no_conv] a = Conv (r, w2)
                    [no_point] p = Conv (a, w3) }>
        }""",
        w0=normal(1, 4, 3, 3, 3, scale=0.2),
        w1=normal(2, 5, 4, 3, 3, scale=0.2),
        w2=normal(3, 6, 4, 3, 3, scale=0.2),
        w3=normal(4, 5, 6, 1, 1, scale=0.4),
    )


def loop() -> onnx.ModelProto:
    """A state that is multiplied by a weight in each turn."""
    return build(
        """g (float[N,8] x) => (float[N,8] y) {
            turns = Constant <value = int64 {3}> ()
            go = Constant <value = bool {1}> ()
            y = Loop (turns, go, x) <
                body = b (int64 i, bool c, float[N,8] h) => (bool d, float[N,8] k) {
                    d = Identity (c)
                    [step] m = MatMul (h, w)
                    k = Tanh (m) }>
        }""",
        w=normal(1, 8, 8, scale=0.35),
    )


def scan() -> onnx.ModelProto:
    return build(
        """g (float[5,N,8] x, float[N,8] h0) => (float[N,8] h, float[5,N,4] y) {
            h, y = Scan <num_scan_inputs = 1,
                body = b (float[N,8] old, float[N,8] t) => (float[N,8] new, float[N,4] out) {
                    [mix] m = MatMul (t, w)
                    s = Add (m, old)
                    new = Tanh (s)
                    [head] out = MatMul (new, v) }> (h0, x)
        }""",
        w=normal(1, 8, 8, scale=0.35),
        v=normal(2, 8, 4, scale=0.35),
    )


def nested() -> onnx.ModelProto:
    return build(
        """g (float[N,8] x, bool c, bool d) => (float[N,8] y) {
            [first] s = MatMul (x, w)
            y = If (c) <
                then_branch = yes () => (float[N,8] o) {
                    [outer] a = MatMul (s, v)
                    o = If (d) <
                        then_branch = deep () => (float[N,8] p) { [inner] p = MatMul (a, w) },
                        else_branch = flat () => (float[N,8] q) { q = Relu (a) }> },
                else_branch = no () => (float[N,8] r) { r = Abs (s) }>
        }""",
        w=normal(1, 8, 8, scale=0.35),
        v=normal(2, 8, 8, scale=0.35),
    )


def feeds(**inputs: Any) -> list[Feed]:
    """Twelve feeds; a shape becomes noise, a list of values is gone through."""
    return [
        {
            name: np.array(value[seed % len(value)]) if isinstance(value, list) else normal(seed + 10, *value)
            for name, value in inputs.items()
        }
        for seed in range(12)
    ]


MODELS = {
    "branches": (branches(), feeds(x=(2, 3, 10, 10), wide=[True, False]), ["stem", "yes_conv", "no_conv", "no_point"]),
    "loop": (loop(), feeds(x=(3, 8)), ["step"]),
    "scan": (scan(), feeds(x=(5, 3, 8), h0=(3, 8)), ["mix", "head"]),
    "nested": (nested(), feeds(x=(3, 8), c=[True, True, False], d=[True, False]), ["first", "outer", "inner"]),
}


def sessions(file: str) -> list[ort.InferenceSession]:
    found = []
    for level in (ort.GraphOptimizationLevel.ORT_DISABLE_ALL, ort.GraphOptimizationLevel.ORT_ENABLE_ALL):
        options = ort.SessionOptions()
        options.graph_optimization_level = level
        options.add_session_config_entry("session.x64quantprecision", "1")
        found.append(ort.InferenceSession(file, options))
    return found


def interface(model: onnx.ModelProto) -> list[bytes]:
    return [value.SerializeToString() for value in (*model.graph.input, *model.graph.output)]


def all_names(model: onnx.ModelProto) -> list[str]:
    """The names of all tensors, as often as one is given."""
    found = list(graphs(model.graph))
    made = [name for graph in found for node in graph.node for name in node.output if name]
    return made + [value.name for graph in found for value in (*graph.input, *graph.initializer)]


@pytest.mark.parametrize("effort", ["fast", "default"])
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", MODELS)
def test_layers_of_bodies_are_int8(name: str, target: str, effort: Any, tmp_path: Path) -> None:
    model, data, layers = MODELS[name]
    before = model.SerializeToString()
    result = amct.quantize(model, data, target=target, effort=effort)
    assert model.SerializeToString() == before
    said = {decision.layer: decision.quantized for decision in result.decisions}
    assert [said[layer] for layer in layers] == [True] * len(layers)
    (file,) = result.save(str(tmp_path / "m"), inspect=False).files
    written = onnx.load(file)
    onnx.checker.check_model(written, full_check=True)
    assert interface(written) == interface(model)
    names = all_names(written)
    assert len(names) == len(set(names))
    plain = ort.InferenceSession(before)
    for session in sessions(file):
        for feed in data:
            for expected, got in zip(plain.run(None, feed), session.run(None, feed), strict=True):
                assert sqnr(expected, got) > 25


@pytest.mark.parametrize("name", MODELS)
def test_no_float_weight_is_left(name: str, tmp_path: Path) -> None:
    """A weight that a body reads from around it is stored once for it, in eight bits, and not in float as well."""
    model, data, _ = MODELS[name]
    (file,) = amct.quantize(model, data, effort="fast").save(str(tmp_path / "m"), inspect=False).files
    tensors = [tensor for graph in graphs(onnx.load(file).graph) for tensor in graph.initializer]
    floats = [tensor for tensor in tensors if tensor.data_type == onnx.TensorProto.FLOAT]
    assert not [tensor.name for tensor in floats if len(tensor.dims) > 1]


def test_a_branch_runs_on_integers(tmp_path: Path) -> None:
    """ONNX Runtime makes integer kernels of what is inside, too."""
    model, data, _ = MODELS["branches"]
    (file,) = amct.quantize(model, data, effort="fast").save(str(tmp_path / "m"), inspect=False).files
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    ort.InferenceSession(file, options)
    _, *bodies = graphs(onnx.load(tmp_path / "optimized.onnx").graph)
    assert len(bodies) == 2
    for body in bodies:
        operators = [node.op_type for node in body.node]
        assert "QLinearConv" in operators
        assert "Conv" not in operators


@pytest.mark.parametrize("target", TARGETS)
def test_a_branch_that_no_data_run_stays_in_float(target: str, tmp_path: Path) -> None:
    model, data, _ = MODELS["branches"]
    result = amct.quantize(model, data[::2], target=target)
    said = {decision.layer: decision.quantized or decision.reason for decision in result.decisions}
    assert said["yes_conv"] is True
    assert "none of the data ran what is inside" in str(said["no_point"])
    (file,) = result.save(str(tmp_path / "m"), inspect=False).files
    plain = ort.InferenceSession(model.SerializeToString())
    for session, feed in itertools.product(sessions(file), data):
        assert sqnr(plain.run(None, feed)[0], session.run(None, feed)[0]) > 25


def test_a_layer_of_a_branch_can_be_skipped() -> None:
    model, data, _ = MODELS["branches"]
    result = amct.quantize(model, data, effort="fast", skip_layers=["no_point"])
    said = {decision.layer: decision.quantized or decision.reason for decision in result.decisions}
    assert said["no_point"] == "it is switched off by the settings"
    assert said["no_conv"] is True


def test_one_calibration_serves_every_target_and_reruns_are_the_same(tmp_path: Path) -> None:
    model, data, _ = MODELS["nested"]
    result = amct.quantize(model, data, effort="fast")
    for target in TARGETS:
        again = amct.quantize(model, data, effort="fast", target=target)
        files = [
            Path(r.save(str(tmp_path / f"{n}"), inspect=False).files[0]).read_bytes()
            for n, r in enumerate((result.to(target), again))
        ]
        assert files[0] == files[1]


@pytest.mark.parametrize("name", MODELS)
def test_effects_of_layers_in_bodies_are_those_of_each_alone(name: str, tmp_path: Path) -> None:
    """And together they are what the written model loses."""
    model, data, layers = MODELS[name]
    samples = data[:4]
    plain = ort.InferenceSession(model.SerializeToString())

    def noise(**more: Any) -> float:
        (file,) = amct.quantize(model, data, effort="fast", **more).save(str(tmp_path / "m"), inspect=False).files
        _, session = sessions(file)
        both = [[run.run(None, feed) for feed in samples] for run in (plain, session)]
        found = []
        for exact, got in zip(zip(*both[0], strict=True), zip(*both[1], strict=True), strict=True):
            errors = sum(np.square(a.astype(np.float64) - b).sum() for a, b in zip(exact, got, strict=True))
            found.append(errors / sum(np.square(a, dtype=np.float64).sum() for a in exact))
        return float(np.mean(found))

    quantized, far = amct.quantize(model, data, effort="fast"), FarEngine()
    found = measure(quantized, samples).sensitivity()
    assert repr(measure(quantized, samples, engine=far).sensitivity()) == repr(found)
    assert "NoiseAlone" in far.works
    assert {effect.layer for effect in found.layers} == set(layers)
    assert found.together == pytest.approx(noise(), rel=1e-6)
    inside = [effect for effect in found.layers if np.isnan(effect.from_weight)]
    assert inside
    for effect in inside:
        others = [layer for layer in layers if layer != effect.layer]
        assert effect.effect == pytest.approx(noise(skip_layers=others), rel=1e-6)


@pytest.mark.parametrize("name", ["scan", "nested"])
def test_layers_in_bodies_go_to_float_for_a_target_of_accuracy(name: str) -> None:
    model, data, _ = MODELS[name]
    found = amct.quantize(model, data, effort="fast", min_sqnr=43, reduce_range=saturates()).precision
    assert found is not None
    assert found.result.value >= 43  # of so few samples, not all targets can be proven
    assert {"scan": "mix", "nested": "outer"}[name] in found.evaluations[found.chosen].float_layers


def test_target_ascend_says_that_a_layer_is_inside(tmp_path: Path) -> None:
    model, data, _ = MODELS["branches"]
    result = amct.quantize(model, data, target="ascend", effort="fast")
    said = {decision.layer: decision.quantized or decision.reason for decision in result.decisions}
    assert said == {"stem": True} | dict.fromkeys(("yes_conv", "no_conv", "no_point"), "it is inside a subgraph")


def test_a_model_whose_layers_are_all_inside_is_told_so_for_ascend() -> None:
    model, _, _ = MODELS["loop"]
    with pytest.raises(AmctError, match="step: it is inside a subgraph"):
        amct.quantize(model, [], target="ascend")  # before the data are looked at


def test_a_weight_that_only_a_branch_reads_is_there_when_the_model_runs() -> None:
    """Large enough that the runtime is lent it."""
    model = build(
        """g (float[N,64] x, bool c) => (float[N,64] y) {
            [first] s = MatMul (x, w)
            y = If (c) <
                then_branch = yes () => (float[N,64] o) { o = Mul (s, big) },
                else_branch = no () => (float[N,64] p) { p = Identity (s) }>
        }""",
        w=normal(1, 64, 64, scale=0.1),
        big=normal(2, 64, 64)[:1].repeat(64, 0)[:1] * np.ones((1, 64), np.float32),
    )
    model.graph.initializer[1].CopyFrom(onnx.numpy_helper.from_array(normal(2, 40, 64), "big"))
    data = feeds(x=(40, 64), c=[True, False])
    result = amct.quantize(model, data)
    assert {d.layer for d in result.decisions if d.quantized} >= {"first"}
