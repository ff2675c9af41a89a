"""config.json and skip_layers may leave in float what cannot be quantized anyway, at every door."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from flow import Flow, build, images, normal
from refusal import refused
from searching import ErrorEvaluator

import amct_onnx as amct
from amct_onnx.errors import ConfigError

FEEDS = {"x": images(0)}
# One node of each reason: another type, a computed weight, a kernel, float16, inside a branch.
NEVER = ("relu", "computed", "line", "half", "product", "inside", "if")


def mixed() -> onnx.ModelProto:
    """One layer that can be quantized, `conv`, and nodes that cannot, each for another reason."""
    return build(
        """g (float[2,3,6,6] x) => (
            float[2,4,6,6] y, float z, float16[2,4,6,6] h, float[2,4,6,5] l, float16[2,4,6,6] p
        ) {
            [conv] a = Conv <kernel_shape=[1,1]> (x, w)
            [relu] r = Relu (a)
            [abs] v = Abs (k)
            [computed] b = Conv <kernel_shape=[1,1]> (r, v)
            [line] l = MaxPool <kernel_shape=[1,2]> (b)
            [cast] c = Cast <to=10> (b)
            [product] p = MatMul (c, c)
            [half] h = AveragePool <kernel_shape=[1,1]> (c)
            [sum] s = ReduceSum <keepdims=0> (b)
            [big] t = Greater (s, zero)
            [if] y = If (t) <
                then_branch = yes () => (float[2,4,6,6] i) { [inside] i = Conv <kernel_shape=[1,1]> (b, k) },
                else_branch = no () => (float[2,4,6,6] e) { [identity] e = Identity (b) }>
            [last] z = Neg (s) }""",
        w=normal(1, 4, 3, 1, 1),
        k=normal(2, 4, 4, 1, 1),
        zero=np.float32(0),
    )


def entries(*names: str) -> dict[str, object]:
    return {name: {"quant_enable": False, "activation_quant_params": {"num_bits": 8}} for name in names}


@pytest.fixture
def flow(tmp_path: Path) -> Flow:
    """The configuration with an entry for each node that cannot be quantized, switched off."""
    flow = Flow.of(mixed(), tmp_path).configure()
    config = json.loads(Path(flow.config).read_text())
    assert not config.keys() & set(NEVER)
    Path(flow.config).write_text(json.dumps(config | entries(*NEVER)))
    return flow


def quantize_and_save(flow: Flow) -> None:
    flow.quantize().calibrate([FEEDS]).save()


def search(flow: Flow) -> None:
    evaluator = ErrorEvaluator([FEEDS], 100.0)
    amct.accuracy_based_auto_calibration(flow.model, evaluator, flow.config, flow.record, str(flow.folder / "found"))


def one_call(flow: Flow) -> None:
    for target in ("onnxruntime", "ascend"):
        result = amct.quantize(flow.model, FEEDS["x"], target=target, settings=flow.config, batch_size=2)
        assert [decision.layer for decision in result.decisions if decision.quantized] == ["conv"]


@pytest.mark.parametrize("door", [quantize_and_save, search, one_call])
def test_an_entry_that_is_off_is_accepted(flow: Flow, door: Callable[[Flow], None]) -> None:
    door(flow)


def test_an_entry_that_is_on_is_refused_with_the_reason(flow: Flow) -> None:
    config = json.loads(Path(flow.config).read_text())
    for name in NEVER:
        Path(flow.config).write_text(json.dumps(config | {name: {"quant_enable": True}}))
        with refused(flow.folder, ConfigError, f"{name}: layer {name} does not support quant", "quant_enable to false"):
            flow.quantize()


def test_the_same_names_may_be_skipped(flow: Flow) -> None:
    """But for types that AMCT never quantizes: it refuses these."""
    layers = [name for name in NEVER if name not in ("relu", "line", "if")]
    flow.configure(skip_layers=layers).quantize()
    (flow.folder / "quant.cfg").write_text(f"skip_layers : {json.dumps(layers)}")
    flow.configure(config_defination=str(flow.folder / "quant.cfg")).quantize()
    amct.quantize(flow.model, FEEDS["x"], skip_layers=NEVER, batch_size=2, effort="fast")


def test_an_entry_of_no_node_is_refused_with_a_suggestion(flow: Flow) -> None:
    config = json.loads(Path(flow.config).read_text())
    Path(flow.config).write_text(json.dumps(config | entries("konv")))
    with refused(flow.folder, ConfigError, "konv: konv is an invalid layer name or parameter", "Did you mean 'conv'"):
        flow.quantize()
