"""What every dialect promises of tensors that stay float and of int8 outputs (amct_formats.md: Fake-quant model)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from flow import build, normal

from amct_onnx.graph.read.lift_deploy import lift_deploy
from amct_onnx.numerics.grid import QParams, QSpec
from amct_onnx.targets.ascend_dialect import AscendDialect
from amct_onnx.targets.simulation_dialect import SimulationDialect
from amct_onnx.targets.to_integers import lower
from amct_onnx.values.layers import QuantizedLayer, QuantizedOutput, QuantizedTensor

Lower = Callable[..., onnx.ModelProto]


def _params(scale: float, zero_point: int) -> QParams:
    return QParams(scale=np.float32(scale), zero_point=np.int32(zero_point), spec=QSpec(symmetric=False))


def _ascend(model: ir.Model, layers: list[QuantizedLayer], **more: object) -> onnx.ModelProto:
    lower(model, layers, AscendDialect(model), **more)  # type: ignore[arg-type]
    lift_deploy(model)
    return ir.to_proto(model)


def _simulation(model: ir.Model, layers: list[QuantizedLayer], **more: object) -> onnx.ModelProto:
    lower(model, layers, SimulationDialect(model), **more)  # type: ignore[arg-type]
    return ir.to_proto(model)


@pytest.fixture(params=[_ascend, _simulation], ids=["ascend", "simulation"])
def lowered(request: pytest.FixtureRequest) -> Lower:
    chosen: Lower = request.param
    return chosen


def _run(model: onnx.ModelProto, x: np.ndarray) -> list[np.ndarray]:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    outputs: list[np.ndarray] = session.run(None, {"x": x})
    return outputs


def _integers(x: np.ndarray, params: QParams) -> np.ndarray:
    inverse = np.float32(1) / params.scale[0]
    return np.clip(np.rint(x * inverse) + params.zero_point[0], -128, 127)


def _fake(x: np.ndarray, params: QParams) -> np.ndarray:
    return (_integers(x, params) - params.zero_point[0]).astype(np.float32) * params.scale[0]


@pytest.mark.parametrize("zero_point", [0, -128, 17, 127])
def test_one_input_of_a_node_is_rounded_to_its_grid(lowered: Lower, zero_point: int) -> None:
    params = _params(0.037, zero_point)
    model = ir.from_proto(build("g (float[4,9] x) => (float[4,9] y) { [s] y = Add (x, x) }"))
    got = _run(
        lowered(model, [], tensors=[QuantizedTensor(node="s", input_index=1, activation=params)]), x := normal(1, 4, 9)
    )
    np.testing.assert_array_equal(got[0], x + _fake(x, params))


def test_both_inputs_with_grids_of_their_own(lowered: Lower) -> None:
    grids = _params(0.037, 5), _params(0.2, -90)
    model = ir.from_proto(build("g (float[4,9] x) => (float[4,9] y) { [s] y = Sub (x, x) }"))
    tensors = [QuantizedTensor(node="s", input_index=index, activation=grid) for index, grid in enumerate(grids)]
    got = _run(lowered(model, [], tensors=tensors), x := normal(2, 4, 9))
    np.testing.assert_array_equal(got[0], _fake(x, grids[0]) - _fake(x, grids[1]))


def test_an_identity_makes_way_and_outputs_keep_their_names(lowered: Lower) -> None:
    params = _params(0.05, 3)
    text = "g (float[4,9] x) => (float[4,9] y, float[4,9] z) { [i] y = Identity (x) [j] z = Identity (x) }"
    tensors = [QuantizedTensor(node=name, input_index=0, activation=params, marker=True) for name in "ij"]
    proto = lowered(ir.from_proto(build(text)), [], tensors=tensors)
    assert [output.name for output in proto.graph.output] == ["y", "z"]
    for got in _run(proto, x := normal(3, 4, 9)):
        np.testing.assert_array_equal(got, _fake(x, params))


def test_an_int8_output(lowered: Lower) -> None:
    params = _params(0.02, -7)
    text = "g (float[4,9] x) => (int8[4,9] y) { [q] y = QuantizeLinear (x, s, z) }"
    model = ir.from_proto(build(text, s=np.float32(0.02), z=np.int8(-7)))
    proto = lowered(model, [], outputs=[QuantizedOutput(node="q", activation=params)])
    (got,) = _run(proto, x := normal(4, 4, 9, scale=3.0))
    assert got.dtype == np.int8
    np.testing.assert_array_equal(got, _integers(x, params))


def test_a_layer_and_a_tensor_share_one_quantization() -> None:
    """Whoever comes first in the graph makes the integers."""
    text = "g (float[4,9] x) => (float[4,9] y) { [s] a = Neg (x) [m] b = MatMul (x, w) [t] y = Add (a, b) }"
    model = ir.from_proto(build(text, w=np.eye(9, dtype=np.float32)))
    params, weight = _params(0.05, 3), QParams(scale=np.float32(1), zero_point=np.int32(0), spec=QSpec())
    layer = QuantizedLayer(name="m", activation=params, weight=weight)
    lower(model, [layer], AscendDialect(model), tensors=[QuantizedTensor(node="s", input_index=0, activation=params)])
    assert [node.op_type for node in model.graph] == [
        *("AscendQuant", "AscendAntiQuant", "Neg", "MatMul", "AscendDequant", "Add")
    ]
    anti = next(node for node in model.graph if node.op_type == "AscendAntiQuant")
    assert (anti.name, anti.attributes["offset"].as_float()) == ("s.0.anti_quant", 3.0)
    assert anti.attributes["scale"].as_float() == np.float32(0.05)
