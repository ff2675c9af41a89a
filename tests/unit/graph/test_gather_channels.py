"""A shuffle of channels becomes a Gather of them, bit for bit; what only looks like one stays."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from flow import CPU, build, normal
from hypothesis import given
from hypothesis import strategies as st

from amct_onnx.graph.naming import name_nodes
from amct_onnx.graph.passes.gather_channels import gather_channels, with_gathered_channels


def shuffle(
    apart: list[int], together: list[int], *, shape: str = "N,12,4,5", perm: str = "0,2,1,3,4"
) -> onnx.ModelProto:
    body = f"r = Relu (x) a = Reshape (r, s) t = Transpose <perm = [{perm}]> (a) b = Reshape (t, u) y = Neg (b)"
    sizes = {"s": np.array(apart, np.int64), "u": np.array(together, np.int64)}
    return build(f"g (float[{shape}] x) => (float[] y) {{ {body} }}", **sizes)


def declared(model: onnx.ModelProto) -> onnx.ModelProto:
    return onnx.shape_inference.infer_shapes(model)


def changed(model: onnx.ModelProto) -> tuple[onnx.ModelProto, Counter[str]]:
    result = ir.from_proto(model)
    name_nodes(result)
    gather_channels(result)
    return ir.to_proto(result), Counter(node.op_type for node in result.graph)


def run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    result: np.ndarray = ort.InferenceSession(model.SerializeToString(), providers=CPU).run(None, {"x": x})[0]
    return result


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 2), st.booleans(), st.sampled_from([-1, 0]))
def test_it_gives_the_same_numbers(groups: int, each: int, batch: int, known: bool, first: int) -> None:
    channels = groups * each
    model = shuffle([first, groups, each, 2, 3], [-1, channels, 2, 3], shape=f"N,{channels},2,3")
    model = declared(model) if known else model
    result, counted = changed(model)
    x = normal(0, batch, channels, 2, 3)
    assert np.array_equal(run(result, x), run(model, x))
    assert counted == Counter(Relu=1, Gather=1, Neg=1) + Counter(Reshape=0 if known else 2)


@pytest.mark.parametrize("together", [[-1], [-1, 12], [-1, 12, 4, 5, 1], [4, -1, 4, 5], [0, -1, 4, 5], [-1, 12, 20, 1]])
def test_another_shape_behind_it_stays_another_one(together: list[int]) -> None:
    model = declared(shuffle([-1, 3, 4, 4, 5], together))
    result, _ = changed(model)
    x = normal(0, 2, 12, 4, 5)
    assert np.array_equal(run(result, x), run(model, x))


@pytest.mark.parametrize("shape", ["N,12,4,5", "N,6,8,5", "N,240"])
def test_where_the_shape_is_unknown_any_input_will_do(shape: str) -> None:
    model = shuffle([-1, 3, 4, 4, 5], [-1, 240], shape=shape)
    result, counted = changed(model)
    sizes = [2 if size == "N" else int(size) for size in shape.split(",")]
    x = normal(0, *sizes)
    assert np.array_equal(run(result, x), run(model, x))
    assert counted["Transpose"] == 0


@pytest.mark.parametrize(
    "model",
    [
        shuffle([-1, 3, 4, 4, 5], [-1, 12, 4, 5], perm="0,1,2,4,3"),
        shuffle([-1, 3, 4, 4, 5], [-1, 12, 4, 5], perm="0,2,1,4,3"),
        shuffle([-1, 3, 4, 20], [-1, 12, 4, 5], perm="0,2,1,3"),
        shuffle([-1, 3, 4, 0, 5], [-1, 12, 4, 5], shape="N,12,5,4"),
        shuffle([-1, 0, 1, 4, 5], [-1, 12, 4, 5]),
    ],
)
def test_what_is_no_shuffle_of_channels_stays(model: onnx.ModelProto) -> None:
    before = ir.from_proto(model)
    assert with_gathered_channels(before) is before


def test_a_model_may_give_what_comes_of_it_and_keeps_its_names() -> None:
    model = declared(shuffle([-1, 3, 4, 4, 5], [-1, 12, 4, 5]))
    del model.graph.node[-1]
    model.graph.output[0].name = "b"
    result, _ = changed(model)
    assert [output.name for output in result.graph.output] == ["b"]
    assert np.array_equal(run(result, x := normal(0, 2, 12, 4, 5)), run(model, x))


def test_who_reads_the_five_dimensions_still_can() -> None:
    model = shuffle([-1, 3, 4, 4, 5], [-1, 12, 4, 5])
    model.graph.output.append(onnx.helper.make_tensor_value_info("t", onnx.TensorProto.FLOAT, None))
    before = ir.from_proto(model)
    assert with_gathered_channels(before) is before
