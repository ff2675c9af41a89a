from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper, parser

from amct_onnx.graph.constants import constant_value
from amct_onnx.graph.passes.fuse_affine import fuse_affine_into_batch_norm
from amct_onnx.graph.passes.fuse_batch_norm import fuse_batch_norm_into_conv
from amct_onnx.graph.passes.fusion import Fusion, fusable_nodes, original_nodes

_PARAMETERS = {
    "w": np.array([[1.0], [2.0]], np.float32).reshape(2, 1, 1, 1),
    "b": np.array([1.0, 1.0], np.float32),
    "s": np.array([1.0, 3.0], np.float32),
    "o": np.array([5.0, 7.0], np.float32),
    "m": np.array([0.0, 2.0], np.float32),
    "v": np.array([1.0, 4.0], np.float32),
}
_BN = "[bn] y = BatchNormalization <epsilon=0.0> (t, s, o, m, v)"


def _proto(
    body: str, *, inputs: str = "float[1,1,3,3] x", outputs: str = "float[1,2,3,3] y", opset: int = 17, **arrays: Any
) -> onnx.ModelProto:
    text = f'<ir_version: 10, opset_import: ["" : {opset}]> g ({inputs}) => ({outputs}) {{{body}}}'
    proto = parser.parse_model(text)
    constants = {**_PARAMETERS, **arrays}
    proto.graph.initializer.extend(numpy_helper.from_array(np.asarray(a), name) for name, a in constants.items())
    return proto


def _model(body: str, **kwargs: Any) -> ir.Model:
    return ir.from_proto(_proto(body, **kwargs))


def _node(model: ir.Model, name: str) -> ir.Node:
    return next(node for graph in model.graphs() for node in graph if node.name == name)


def _array(model: ir.Model, name: str, index: int) -> list[float]:
    array = constant_value(_node(model, name).inputs[index])
    assert array is not None
    flat: list[float] = array.ravel().tolist()
    return flat


@pytest.mark.parametrize("conv", ["Conv (x, w, b)", "Conv (x, w, )", "Conv (x, w)"])
def test_folds_into_the_convolution(conv: str) -> None:
    model = _model(f"[conv] t = {conv} {_BN}")
    assert fuse_batch_norm_into_conv(model) == ([Fusion(kept="conv", absorbed="bn")], [])
    assert [node.op_type for node in model.graph] == ["Conv"]
    assert _array(model, "conv", 1) == [1.0, 3.0]
    has_bias = "b" in conv
    assert _array(model, "conv", 2) == ([6.0, 5.5] if has_bias else [5.0, 4.0])
    bias = _node(model, "conv").inputs[2]
    assert bias is not None
    assert bias.name == ("b" if has_bias else "conv.bias")
    # An initializer that nobody reads from the start (b in two of the cases) is not ours to remove.
    assert sorted(model.graph.initializers) == (["b", "w"] if has_bias else ["b", "conv.bias", "w"])


def test_takes_over_the_name_of_a_graph_output_only() -> None:
    model = _model(f"[conv] t = Conv (x, w) {_BN}")
    fuse_batch_norm_into_conv(model)
    output = _node(model, "conv").outputs[0]
    assert model.graph.outputs[0] is output
    assert (output.name, output.shape) == ("y", ir.Shape((1, 2, 3, 3)))

    model = _model("[conv] t = Conv (x, w) [bn] n = BatchNormalization (t, s, o, m, v) [relu] y = Relu (n)")
    fuse_batch_norm_into_conv(model)
    assert _node(model, "conv").outputs[0].name == "t"
    assert model.graph.outputs[0].name == "y"


def test_transposed_convolution_scales_by_group_and_output_channel() -> None:
    weight = np.ones((4, 3, 1), np.float32)
    six = {name: np.ones(6, np.float32) for name in ("o", "m", "v")}
    model = _model(
        f"[deconv] t = ConvTranspose <group=2> (x, w) {_BN}",
        inputs="float[1,4,5] x", outputs="float[1,6,5] y", w=weight, s=np.arange(1, 7, dtype=np.float32), **six,
    )  # fmt: skip
    fuse_batch_norm_into_conv(model)
    fused = np.array(_array(model, "deconv", 1)).reshape(4, 3)
    assert fused.tolist() == [[1, 2, 3], [1, 2, 3], [4, 5, 6], [4, 5, 6]]


def test_several_batch_norms_and_their_affine_nodes_fold() -> None:
    model = _model(
        """[conv] t = Conv (x, w) [bn1] n1 = BatchNormalization (t, s, o, m, v) [mul] p = Mul (n1, c)
           [bn2] n2 = BatchNormalization (p, s, o, m, v) [add] y = Add (n2, c)""",
        c=np.float32(2),
    )
    fusions = [*fuse_affine_into_batch_norm(model), *fuse_batch_norm_into_conv(model)[0]]
    assert [node.name for node in model.graph] == ["conv"]
    assert original_nodes(fusions) == {"conv": ("conv", "bn1", "mul", "bn2", "add")}
    assert [fusion.absorbed for fusion in fusions] == ["mul", "add", "bn1", "bn2"]


@pytest.mark.parametrize(
    ("body", "infinite"),
    [
        (f"[conv] t = Conv (x, w) {_BN} [relu] z = Relu (t)", []),  # the output of conv feeds two nodes
        ("[conv] t = Conv (x, w) [bn] y = BatchNormalization <training_mode=1> (t, s, o, m, v)", []),
        # More than one output is in use.
        ("[conv] t = Conv (x, w) [bn] y, mm = BatchNormalization (t, s, o, m, v) [relu] z = Relu (mm)", []),
        # The weight, the bias and a parameter are not constant.
        (f"[neg] nw = Neg (w) [conv] t = Conv (x, nw) {_BN}", []),
        (f"[neg] nb = Neg (b) [conv] t = Conv (x, w, nb) {_BN}", []),
        ("[neg] nm = Neg (m) [conv] t = Conv (x, w) [bn] y = BatchNormalization (t, s, o, nm, v)", []),
        ("[conv] t = Conv (x, w) [bn] y = BatchNormalization (t, s, o, m, neg)", ["bn"]),
        ("[conv] t = Conv (x, w) [bn] y = BatchNormalization (t, s, nan, m, v)", ["bn"]),
        (f"[conv] t = Conv (x, w3) {_BN}", []),  # both differ in channels
        (
            "[conv] t = Conv (x, w) [bn] y = BatchNormalization (t, s, three, m, v)",
            [],
        ),  # the parameters differ in shape
    ],
)
def test_non_matches_change_nothing(body: str, infinite: list[str]) -> None:
    model = _model(
        body,
        neg=-np.ones(2, np.float32), nan=np.full(2, np.nan, np.float32), three=np.ones(3, np.float32),
        w3=np.ones((3, 1, 1, 1), np.float32),
    )  # fmt: skip
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    assert fuse_batch_norm_into_conv(model) == ([], infinite)
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


def test_output_of_the_graph_or_in_a_subgraph_is_not_for_the_batch_norm_alone() -> None:
    model = _model(f"[conv] t = Conv (x, w) {_BN}", outputs="float[1,2,3,3] y, float[1,2,3,3] t")
    assert fuse_batch_norm_into_conv(model) == ([], [])

    model = _model(
        """[conv] t = Conv (x, w)
           y = If (flag) <then_branch = g1 () => (float[1,2,3,3] y1) {[bn] y1 = BatchNormalization (t, s, o, m, v)},
                          else_branch = g2 () => (float[1,2,3,3] y2) {y2 = Conv (x, w)}>""",
        inputs="float[1,1,3,3] x, bool flag",
    )
    assert fuse_batch_norm_into_conv(model) == ([], [])


@pytest.mark.parametrize(("opset", "fuses"), [(9, False), (13, False), (14, True), (17, True)])
def test_named_extra_outputs_mean_training_before_opset_14(opset: int, fuses: bool) -> None:
    model = _model("[conv] t = Conv (x, w) [bn] y, mm, vv = BatchNormalization (t, s, o, m, v)", opset=opset)
    assert bool(fuse_batch_norm_into_conv(model)[0]) == fuses


@pytest.mark.parametrize(
    ("opset", "attributes", "fuses"),
    [(6, "is_test=0", False), (6, "is_test=1", True), (7, "spatial=1", True), (7, "spatial=0", False)],
)
def test_attributes_of_old_opsets(opset: int, attributes: str, fuses: bool) -> None:
    model = _model(f"[conv] t = Conv (x, w) [bn] y = BatchNormalization <{attributes}> (t, s, o, m, v)", opset=opset)
    assert bool(fuse_batch_norm_into_conv(model)[0]) == fuses


@pytest.mark.parametrize("domain", ["", "ai.onnx"])
@pytest.mark.parametrize(("opset", "fuses"), [(13, False), (14, True)])
def test_the_default_opset_need_not_be_the_first_import(domain: str, opset: int, fuses: bool) -> None:
    for other in (1, 20):
        model = _model("[conv] t = Conv (x, w) [bn] y, mm, vv = BatchNormalization (t, s, o, m, v)")
        model.opset_imports.clear()
        model.opset_imports.update({"custom": other, domain: opset})
        assert bool(fuse_batch_norm_into_conv(model)[0]) == fuses


def test_an_output_that_is_listed_twice_stays_listed_twice() -> None:
    model = _model(f"[conv] t = Conv (x, w) {_BN}", outputs="float[1,2,3,3] y, float[1,2,3,3] y")
    fuse_batch_norm_into_conv(model)
    assert [value.name for value in model.graph.outputs] == ["y", "y"]
    assert {value.producer() for value in model.graph.outputs} == {_node(model, "conv")}


@pytest.mark.parametrize("skip", ["conv", "bn"])
def test_listed_nodes_are_not_fused(skip: str) -> None:
    model = _model(f"[conv] t = Conv (x, w) {_BN}")
    assert fuse_batch_norm_into_conv(model, skip={skip}) == ([], [])
    assert len(model.graph) == 2


def test_shared_weight_is_split_and_the_other_reader_keeps_the_original() -> None:
    model = _model(f"[conv] t = Conv (x, w, b) {_BN} [other] z = Conv (x, w, b)", outputs="float y, float z")
    fuse_batch_norm_into_conv(model)
    assert sorted(model.graph.initializers) == ["b", "b.conv", "w", "w.conv"]
    assert _array(model, "other", 1) == [1.0, 2.0]
    assert _array(model, "conv", 1) == [1.0, 3.0]


def test_other_domains_and_other_producers_are_no_candidates() -> None:
    for body in (f"[conv] t = custom.Conv (x, w) {_BN}", f"[relu] t = Relu (x) {_BN}"):
        assert fuse_batch_norm_into_conv(_model(body)) == ([], [])


def test_fusable_nodes() -> None:
    model = _model(f"[conv] t = Conv (x, w) {_BN} [gemm] g = Gemm (b, b) [c] c = custom.Conv (x) u = Conv (x, w)")
    assert fusable_nodes(model) == {"conv", "bn"}


def test_metadata_of_the_convolution_stays() -> None:
    model = _model(f"[conv] t = Conv (x, w) {_BN}")
    _node(model, "conv").metadata_props["origin"] = "layer1"
    fuse_batch_norm_into_conv(model)
    assert _node(model, "conv").metadata_props == {"origin": "layer1"}


@pytest.mark.parametrize("large", [False, True])
def test_float16_is_computed_in_float64_and_stays_float16(large: bool) -> None:
    half: dict[str, Any] = {name: array.astype(np.float16) for name, array in _PARAMETERS.items()}
    if large:
        half["s"] = np.full(2, 6e4, np.float16)  # 2 * 6e4 is too large for float16
        half["v"] = np.full(2, 1.0, np.float16)
    model = _model(f"[conv] t = Conv (x, w) {_BN}", inputs="float16[1,1,3,3] x", outputs="float16[1,2,3,3] y", **half)
    result = fuse_batch_norm_into_conv(model)
    if large:
        assert result == ([], ["bn"])
    else:
        assert {value.dtype for value in _node(model, "conv").inputs if value is not None} == {ir.DataType.FLOAT16}
        assert _array(model, "conv", 1) == [1.0, 3.0]


def _run(proto: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    output: np.ndarray = session.run(None, {"x": x})[0]
    return output


# Both sides round in float32; the cancellation of b - mean may cost more than the last place.
FUSION_TOLERANCE = 1e-5


@given(
    transposed=st.booleans(),
    spatial=st.integers(1, 3),
    group=st.integers(1, 3),
    per_group=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    kernel=st.integers(1, 3),
    with_bias=st.booleans(),
    affine=st.lists(st.sampled_from(["Mul", "Add"]), max_size=3),
    epsilon=st.sampled_from([0.0, 1e-5, 1e-2]),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=examples(60))
def test_law_the_float_function_stays(
    transposed: bool,
    spatial: int,
    group: int,
    per_group: tuple[int, int],
    kernel: int,
    with_bias: bool,
    affine: list[str],
    epsilon: float,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    cin, cout = per_group[0] * group, per_group[1] * group
    kernel_shape = (kernel,) * spatial
    shape = (cin, per_group[1], *kernel_shape) if transposed else (cout, per_group[0], *kernel_shape)
    draw: dict[str, Any] = {name: rng.normal(0, 1, cout).astype(np.float32) for name in ("b", "s", "o", "m")}
    draw["v"] = rng.uniform(1e-2, 4.0, cout).astype(np.float32)
    draw["w"] = rng.normal(0, 1, shape).astype(np.float32)
    body = f"[conv] t = {'ConvTranspose' if transposed else 'Conv'} <group={group}> (x, w{', b' if with_bias else ''})"
    body += f"[bn] n0 = BatchNormalization <epsilon={epsilon:.5f}> (t, s, o, m, v)"
    for index, op_type in enumerate(affine):
        name = f"c{index}"
        draw[name] = rng.normal(0, 1, (cout,) + (1,) * spatial).astype(np.float32)
        operands = f"n{index}, {name}" if index % 2 else f"{name}, n{index}"
        body += f"[a{index}] n{index + 1} = {op_type} ({operands})"
    body += f"[out] y = Identity (n{len(affine)})"
    x = rng.normal(0, 1, (2, cin, *(4,) * spatial)).astype(np.float32)
    dims = ",".join(str(dim) for dim in x.shape)
    proto = _proto(body, inputs=f"float[{dims}] x", outputs="float y", **draw)

    model = ir.from_proto(proto)
    fuse_affine_into_batch_norm(model)
    fuse_batch_norm_into_conv(model)
    assert [node.op_type for node in model.graph] == ["ConvTranspose" if transposed else "Conv", "Identity"]
    expected, actual = _run(proto, x), _run(ir.to_proto(model), x)
    assert np.abs(actual - expected).max() <= FUSION_TOLERANCE * max(1.0, float(np.abs(expected).max()))
