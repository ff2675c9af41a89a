"""MatMulNBits: ONNX Runtime computes with the weights that the grid says, whatever the shape of the product."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from flow import CPU, build, normal, sqnr

from amct_onnx.numerics.weights.block_grid import BlockGrid, solve_block_grid
from amct_onnx.targets.to_nbits import BlockWeight, lower_nbits

# Sums of up to 100 products in float32.
ROUNDING = 1e-5

MATMUL = "g (float[N,L,{k}] x) => (float[N,L,{n}] y) {{ [product] y = MatMul (x, w) }}"
GEMM = "g (float[N,{k}] x) => (float[N,{n}] y) {{ [product] y = Gemm <transB=1, beta=2.0> (x, w, b) }}"


def run(model: ir.Model | onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    proto = model if isinstance(model, onnx.ModelProto) else ir.to_proto(model)
    onnx.checker.check_model(proto)
    return np.asarray(ort.InferenceSession(proto.SerializeToString(), providers=CPU).run(None, {"x": x})[0])


def rounded(rows: np.ndarray, grid: BlockGrid) -> BlockWeight:
    return BlockWeight(integers=grid.quantize(rows), grid=grid)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(("length", "block"), [(64, 32), (100, 32), (33, 16), (8, 16), (100, 128)])
def test_a_matmul_has_the_weights_of_its_grid(bits: int, symmetric: bool, length: int, block: int) -> None:
    weight, x = normal(0, length, 5), normal(1, 2, 3, length)
    grid = solve_block_grid(weight.T, block=block, bits=bits)
    if symmetric:
        grid = replace(grid, zero_point=np.full_like(grid.zero_point, 1 << (bits - 1)))
    model = ir.from_proto(build(MATMUL.format(k=length, n=5), w=weight))
    lower_nbits(model, {"product": rounded(weight.T, grid)}, exact=True)
    assert [node.op_type for node in model.graph] == ["MatMulNBits"]
    assert len(model.graph.initializers) == (2 if symmetric else 3)
    exact = x @ grid.dequantize(grid.quantize(weight.T)).T
    np.testing.assert_allclose(run(model, x), exact, rtol=ROUNDING, atol=ROUNDING * np.abs(exact).max())


def test_a_gemm_keeps_its_bias() -> None:
    weight, bias, x = normal(0, 5, 48), normal(2, 5), normal(1, 3, 48)
    grid = solve_block_grid(weight, block=16, bits=4)
    model = ir.from_proto(build(GEMM.format(k=48, n=5), w=weight, b=bias))
    lower_nbits(model, {"product": rounded(weight, grid)}, exact=True)
    exact = x @ grid.dequantize(grid.quantize(weight)).T + 2 * bias
    np.testing.assert_allclose(run(model, x), exact, rtol=ROUNDING, atol=ROUNDING * np.abs(exact).max())


def test_a_weight_that_others_read_stays_for_them() -> None:
    proto = build(
        """g (float[N,32] x) => (float[N,32] y, float[N,32] z) {
            [product] y = MatMul (x, w) [other] z = MatMul (y, w) }""",
        w=normal(0, 32, 32),
    )
    weight = normal(0, 32, 32)
    grid = solve_block_grid(weight.T, block=32, bits=4)
    model = ir.from_proto(proto)
    lower_nbits(model, {"product": rounded(weight.T, grid)}, exact=True)
    x = normal(1, 2, 32)
    y, z = ort.InferenceSession(ir.to_proto(model).SerializeToString(), providers=CPU).run(None, {"x": x})
    np.testing.assert_allclose(y, x @ grid.dequantize(grid.quantize(weight.T)).T, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(z, y @ weight, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("bits", "block", "level"), [(4, 16, 0), (4, 32, 4), (4, 128, 4), (8, 16, 4), (8, 32, 4)])
def test_the_runtime_may_round_activations_to_int8_where_that_is_faster(bits: int, block: int, level: int) -> None:
    weight, x = normal(0, 256, 48), normal(1, 2, 3, 256)
    grid = solve_block_grid(weight.T, block=block, bits=bits)
    model = ir.from_proto(build(MATMUL.format(k=256, n=48), w=weight))
    lower_nbits(model, {"product": rounded(weight.T, grid)})
    assert model.graph.node("product").attributes.get_int("accuracy_level", 0) == level
    exact = x @ grid.dequantize(grid.quantize(weight.T)).T
    assert sqnr(exact, run(model, x)) > 38  # int8 with a scale for each block
