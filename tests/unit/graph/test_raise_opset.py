"""Raising a model to opset 13; ONNX Runtime on the original is the oracle."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import defs, numpy_helper, parser

from amct_onnx.errors import ModelError
from amct_onnx.graph.passes.raise_opset import CHANGED, raise_opset

# Operators that say something new in opset 12 or 13 and yet compute the same. Most only take more types, or have
# clearer words for the same; the second group got attributes whose default is the old meaning.
SAME = frozenset(
    {
        "Abs", "Add", "Cast", "Ceil", "Clip", "Concat", "DepthToSpace", "Div", "Equal", "Erf", "Exp", "Expand",
        "Flatten", "Floor", "Gather", "GatherElements", "Gemm", "Greater", "Identity", "If", "IsNaN", "LRN", "Less",
        "Log", "Loop", "MatMul", "Max", "MaxPool", "Mean", "MeanVarianceNormalization", "Min", "Mod", "Mul", "Neg",
        "NonZero", "Pad", "Pow", "Reciprocal", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax",
        "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSumSquare", "Relu", "Reshape", "ScatterElements", "ScatterND",
        "Shape", "Sigmoid", "Sign", "Size", "Slice", "SpaceToDepth", "Sqrt", "Sub", "Sum", "Tanh", "Tile",
        "Transpose", "SoftmaxCrossEntropyLoss", "NegativeLogLikelihoodLoss"
    }
)  # fmt: skip
NEW_ATTRIBUTES: dict[str, dict[str, object]] = {
    "ArgMax": {"select_last_index": 0},
    "ArgMin": {"select_last_index": 0},
    "Constant": dict.fromkeys(
        ("value_float", "value_floats", "value_int", "value_ints", "value_string", "value_strings")
    ),
    "DequantizeLinear": {"axis": 1},  # for scales that are vectors
    "GatherND": {"batch_dims": 0},
    "QuantizeLinear": {"axis": 1},
}


def _schemas(opset: int) -> dict[str, Any]:
    """The operators of the default domain that are valid at an opset."""
    found: dict[str, Any] = {}
    for schema in defs.get_all_schemas_with_history():
        older = found.get(schema.name)
        if schema.domain == "" and schema.since_version <= opset:
            found[schema.name] = schema if older is None or older.since_version < schema.since_version else older
    return {name: schema for name, schema in found.items() if not schema.deprecated}


def _defaults(schema: Any) -> dict[str, object]:
    return {
        name: onnx.helper.get_attribute_value(attribute.default_value) if attribute.default_value.name else None
        for name, attribute in schema.attributes.items()
    }


def _parameters(parameters: Any) -> list[tuple[str, object]]:
    return [(parameter.name, parameter.option) for parameter in parameters]


@pytest.mark.parametrize("opset", [11, 12])
def test_no_operator_is_forgotten(opset: int) -> None:
    before, after = _schemas(opset), _schemas(13)
    assert before.keys() <= after.keys()
    changed = {name for name in before if before[name].since_version != after[name].since_version}
    assert changed <= CHANGED | SAME | NEW_ATTRIBUTES.keys()
    assert not CHANGED & (SAME | NEW_ATTRIBUTES.keys())
    for name in changed - CHANGED:
        old, new = before[name], after[name]
        assert _parameters(old.inputs) == _parameters(new.inputs), name
        assert _parameters(old.outputs) == _parameters(new.outputs), name
        added = {} if _defaults(new) == _defaults(old) else NEW_ATTRIBUTES[name]
        assert _defaults(new) == _defaults(old) | added, name


def _proto(
    body: str, inputs: str, outputs: str, *, opset: int = 11, functions: str = "", domain: str = "", **arrays: Any
) -> onnx.ModelProto:
    text = f'<ir_version: 6, opset_import: ["{domain}" : {opset}, "local" : 1]> g ({inputs}) => ({outputs}) {{{body}}}'
    proto = parser.parse_model(text + functions)
    proto.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in arrays.items())
    return proto


def _run(proto: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    results: list[np.ndarray] = ort.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    ).run(None, dict(feeds))
    return results


def _declare_outputs(proto: onnx.ModelProto, **feeds: np.ndarray) -> onnx.ModelProto:
    """The model with the true rank of each output, and sizes that nobody knows."""
    for value in proto.graph.output:
        value.type.tensor_type.ClearField("shape")
    for value, result in zip(proto.graph.output, _run(proto, feeds), strict=True):
        value.type.tensor_type.shape.SetInParent()
        for k in range(result.ndim):
            value.type.tensor_type.shape.dim.add(dim_param=f"{value.name}{k}")
    return proto


def _raised(proto: onnx.ModelProto) -> ir.Model:
    model = ir.from_proto(proto)
    raise_opset(model, 13)
    return model


def _check_same(proto: onnx.ModelProto, **feeds: np.ndarray) -> ir.Model:
    """Raise it: valid, stable, same interface, same numbers."""
    model = _raised(proto)
    raised = ir.to_proto(model)
    onnx.checker.check_model(raised, full_check=True)
    assert [value.name for value in raised.graph.output] == [value.name for value in proto.graph.output]
    assert list(raised.graph.input) == list(proto.graph.input)
    assert (raised.ir_version, model.opset_imports["local"]) == (7, 1)
    for expected, actual in zip(_run(proto, feeds), _run(raised, feeds), strict=True):
        assert actual.dtype == expected.dtype
        np.testing.assert_array_equal(actual, expected)
    raise_opset(model, 13)
    assert ir.to_proto(model) == raised
    return model


def _normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(7).normal(0, 1, shape).astype(np.float32)


def _ops(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


@st.composite
def _softmaxes(draw: st.DrawFn) -> tuple[str, tuple[int, ...], str, int | None]:
    """Operator, shape of the data, type of the input as the model declares it, axis."""
    shape = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=5)))
    rank = len(shape)
    axes = st.integers(-rank, rank - 1)
    axis = draw(axes if rank == 1 else st.none() | axes)
    known = [draw(st.sampled_from([str(size), f"n{k}"])) for k, size in enumerate(shape)]
    declared = draw(st.sampled_from([f"float[{','.join(known)}]", "float"]))
    return draw(st.sampled_from(["Softmax", "LogSoftmax", "Hardmax"])), shape, declared, axis


@given(case=_softmaxes(), opset=st.sampled_from([11, 12]))
def test_softmax_works_on_a_matrix(case: tuple[str, tuple[int, ...], str, int | None], opset: int) -> None:
    op_type, shape, declared, axis = case
    attribute = "" if axis is None else f"<axis={axis}>"
    # A shape that nobody knows is behind a Reshape; text has no input without one.
    start, data = "x = Identity (data)", declared
    if declared == "float":
        start, data = "x = Reshape (data, size)", f"float[{','.join('m' * len(shape))}]"
    proto = _proto(
        f"{start} [s] y = {op_type} {attribute} (x) z = Neg (y)",
        f"{data} data, int64[{len(shape)}] size",
        "float y, float z",
        opset=opset,
    )
    feeds = {"data": _normal(*shape), "size": np.array(shape, np.int64)}
    _check_same(_declare_outputs(proto, **feeds), **feeds)


@pytest.mark.parametrize(("axis", "flat"), [("<axis=2>", False), ("<axis=-1>", False), ("<axis=1>", True), ("", True)])
def test_softmax_along_the_last_axis_stays_alone(axis: str, flat: bool) -> None:
    model = _check_same(_proto(f"[s] y = Softmax {axis} (x)", "float[N,3,4] x", "float[N,3,4] y"), x=_normal(2, 3, 4))
    assert _ops(model) == (["Flatten", "Shape", "Softmax", "Reshape"] if flat else ["Softmax"])
    assert next(node for node in model.graph if node.op_type == "Softmax").name == "s"


def test_softmax_of_a_batch_of_nothing() -> None:
    _check_same(_proto("y = Softmax (x)", "float[N,3,4] x", "float[N,3,4] y"), x=_normal(0, 3, 4))


@pytest.mark.parametrize(
    ("body", "shape"),
    [
        ("y = Squeeze <axes=[0, -1]> (x)", (1, 3, 1)),
        ("y = Squeeze (x)", (1, 3, 1)),
        ("y = Unsqueeze <axes=[0, 3]> (x)", (2, 3)),
        ("y = Unsqueeze <axes: ints = []> (x)", (2, 3)),
        ("y = ReduceSum <axes=[1], keepdims=0> (x)", (2, 3)),
        ("y = ReduceSum (x)", (2, 3)),
        ("y = ReduceSum <axes: ints = []> (x)", (2, 3)),
        ("y, z = Split <axis=1, split=[1, 3]> (x)", (2, 4)),
        ("y, z = Split <axis=-1> (x)", (2, 4)),
        ("y = Dropout <ratio=0.25> (x)", (2, 3)),
        ("y, mask = Dropout <ratio=0.25> (x)", (2, 3)),
        ("y = Dropout (x)", (2, 3)),
        ("s = Squeeze <axes=[0]> (x) y = Unsqueeze <axes=[0]> (s)", (1, 3)),
        ("y = ArgMax <axis=1> (x)", (2, 3)),
    ],
)
def test_attributes_become_inputs(body: str, shape: tuple[int, ...]) -> None:
    outputs = "float y, float z" if "z =" in body else "int64 y" if "Arg" in body else "float y"
    proto = _proto(body, f"float[{','.join(map(str, shape))}] x", outputs)
    x = _normal(*shape)
    _check_same(_declare_outputs(proto, x=x), x=x)


def test_an_empty_list_of_axes_stays_one() -> None:
    """ONNX's shape inference and ONNX Runtime disagree on what it means; ONNX Runtime's numbers stay."""
    proto = _proto("y = Squeeze <axes: ints = []> (x)", "float[1,3,1] x", "float[m] y")
    x = _normal(1, 3, 1)
    for expected, actual in zip(_run(proto, {"x": x}), _run(ir.to_proto(_raised(proto)), {"x": x}), strict=True):
        np.testing.assert_array_equal(actual, expected)


def test_float16_dropout_has_a_float_ratio() -> None:
    proto = _proto("y = Dropout <ratio=0.25> (x)", "float16[2,3] x", "float16[2,3] y")
    model = _check_same(proto, x=_normal(2, 3).astype(np.float16))
    ratio = model.graph[0].inputs[1]
    assert ratio is not None
    assert ratio.const_value is not None
    assert (ratio.const_value.dtype, tuple(ratio.const_value.shape)) == (ir.DataType.FLOAT, ())


_EMPTY = np.zeros(0, np.float32)


def test_resize_to_sizes_has_no_scales() -> None:
    sizes = np.array([1, 1, 6, 6], np.int64)
    body = 'y = Resize <mode="nearest"> (x, roi, scales, sizes)'
    proto = _proto(body, "float[1,1,4,4] x", "float[1,1,6,6] y", roi=_EMPTY, scales=_EMPTY, sizes=sizes)
    model = _check_same(proto, x=_normal(1, 1, 4, 4))
    assert model.graph[0].inputs[2] is None
    assert "scales" not in model.graph.initializers


def test_resize_by_scales_stays() -> None:
    scales = np.array([1, 1, 1.5, 1.5], np.float32)
    proto = _proto(
        'y = Resize <mode="linear"> (x, roi, scales)',
        "float[1,1,4,4] x", "float[1,1,6,6] y", roi=_EMPTY, scales=scales,
    )  # fmt: skip
    _check_same(proto, x=_normal(1, 1, 4, 4))


def test_nodes_in_subgraphs() -> None:
    branch = "[{0}] {0} = Softmax <axis=0> (x) [u] {1} = Unsqueeze <axes=[0]> ({0})"
    proto = _proto(
        f"""y = If (flag) <then_branch = a () => (float[1,2,3] t) {{{branch.format("q", "t")}}},
                           else_branch = b () => (float[1,2,3] e) {{{branch.format("r", "e")}}}>""",
        "float[2,3] x, bool flag",
        "float[1,2,3] y",
    )
    for flag in (False, True):
        _check_same(proto, x=_normal(2, 3), flag=np.array(flag))


_FUNCTION = """<opset_import: ["" : {}], domain: "local"> f (a) => (c)
               {{ b = Softmax <axis=0> (a) [u] u__axes = Unsqueeze <axes=[0]> (b) c = Squeeze <axes=[0]> (u__axes) }}"""


@pytest.mark.parametrize("opset", [11, 12])
def test_functions_are_raised(opset: int) -> None:
    proto = _proto("y = local.f (x)", "float[2,3] x", "float[2,3] y", functions=_FUNCTION.format(opset))
    for node in proto.functions[0].node:  # a name that the new constant of `u` would like to have
        node.input[:] = [name.replace("__", ".") for name in node.input]
        node.output[:] = [name.replace("__", ".") for name in node.output]
    model = _check_same(proto, x=_normal(2, 3))
    assert [function.opset_imports[""] for function in model.functions.values()] == [13]


def test_the_default_domain_has_two_names() -> None:
    proto = _proto("y = Unsqueeze <axes=[0]> (x)", "float[2,3] x", "float[1,2,3] y", domain="ai.onnx")
    assert _check_same(proto, x=_normal(2, 3)).opset_imports["ai.onnx"] == 13


def test_an_initializer_that_had_to_be_an_input_stays_constant() -> None:
    """Up to IR version 3; at version 7 it would be one that callers may override."""
    proto = _proto("y = Add (x, w)", "float[2,3] x, float[3] w", "float[2,3] y", w=_normal(3))
    proto.ir_version = 3
    model = _raised(proto)
    assert [value.name for value in model.graph.inputs] == ["x"]
    assert model.ir_version == 7


def test_metadata_stays() -> None:
    proto = _proto("[s] y = Softmax <axis=0> (x)", "float[2,3] x", "float[2,3] y")
    proto.producer_name = "somebody"
    proto.metadata_props.add(key="k", value="v")
    proto.graph.node[0].metadata_props.add(key="from", value="a layer")
    raised = ir.to_proto(_raised(proto))
    assert raised.producer_name == "somebody"
    assert [(entry.key, entry.value) for entry in raised.metadata_props] == [("k", "v")]
    assert [node.metadata_props[0].value for node in raised.graph.node if node.op_type == "Softmax"] == ["a layer"]


def test_data_on_disk_is_not_read() -> None:
    proto = _proto("u = Unsqueeze <axes=[0]> (x) y = MatMul (u, w)", "float[2,3] x", "float[1,2,3] y")
    model = ir.from_proto(proto)
    model.graph.register_initializer(
        weight := ir.Value(
            name="w",
            const_value=ir.ExternalTensor(
                "absent.bin", 0, 36, ir.DataType.FLOAT, shape=ir.Shape([3, 3]), name="w", base_dir="/nowhere"
            ),
        )
    )
    model.graph[1].replace_input_with(1, weight)
    raise_opset(model, 13)
    assert model.graph.initializers["w"].const_value is weight.const_value


@pytest.mark.parametrize(("opset", "version"), [(13, 13), (17, 13), (11, 11), (12, 11), (9, 9)])
def test_a_model_that_is_there_stays(opset: int, version: int) -> None:
    proto = _proto("y = Relu (x)", "float[2,3] x", "float[2,3] y", opset=opset)
    model = ir.from_proto(proto)
    before = ir.to_proto(model)
    raise_opset(model, version)
    assert ir.to_proto(model) == before


@pytest.mark.parametrize(("opset", "version"), [(10, 13), (7, 13), (11, 12), (11, 14), (13, 14)])
def test_other_versions_are_refused(opset: int, version: int) -> None:
    proto = _proto("y = Relu (x)", "float[2,3] x", "float[2,3] y", opset=opset)
    model = ir.from_proto(proto)
    before = ir.to_proto(model)
    with pytest.raises(ModelError, match=rf"opset {opset} and opset {version} is needed.*onnx\.version_converter"):
        raise_opset(model, version)
    assert ir.to_proto(model) == before


def test_a_model_without_opset_is_refused() -> None:
    proto = _proto("y = Relu (x)", "float[2,3] x", "float[2,3] y")
    del proto.opset_import[0]
    with pytest.raises(ModelError, match="does not say of which opset it is"):
        raise_opset(ir.from_proto(proto), 13)


_ARGUMENT = (
    """<opset_import: ["" : 11], domain: "local"> f <axes> (a) => (c) { [u] c = Squeeze <axes: ints = @axes> (a) }"""
)


@pytest.mark.parametrize(
    ("body", "functions", "message"),
    [
        (
            "s = Squeeze <axes=[0]> (x) [d] y, m = Dropout (s) n = Not (m)",
            "",
            r"Node d \(Dropout\) in the graph .* mask",
        ),
        (
            '[r] y = Resize <coordinate_transformation_mode="tf_half_pixel_for_nn"> (x, k, k)',
            "",
            r"Node r \(Resize\).*tf_half_pixel_for_nn",
        ),
        ("y = local.f <axes=[0]> (x)", _ARGUMENT, r"Node u \(Squeeze\) in function f .* its axes is an argument"),
        ("y = local.f (x)", _FUNCTION.format(10), "Function f of the model is of opset 10"),
    ],
)
def test_what_has_no_form_is_refused_before_anything_changes(body: str, functions: str, message: str) -> None:
    model = ir.from_proto(_proto(body, "float[1,3] x, float[0] k", "float y", functions=functions))
    before = ir.to_proto(model)
    with pytest.raises(ModelError, match=message):
        raise_opset(model, 13)
    assert ir.to_proto(model) == before


def test_a_mask_of_opset_12_stays() -> None:
    proto = _proto("y, m = Dropout (x) n = Not (m)", "float[2,3] x", "float[2,3] y, bool[2,3] n", opset=12)
    _check_same(proto, x=_normal(2, 3))


@pytest.mark.parametrize("name", ["mobilenetv2_tv1", "squeezenet1.1", "yolox_nano", "super_resolution_10"])
def test_real_models(test_data: Callable[..., Path], name: str) -> None:
    proto = onnx.load(test_data("models", f"{name}.onnx"))
    raised = ir.to_proto(_raised(proto))
    assert [entry.version for entry in raised.opset_import] == [13]
    onnx.checker.check_model(raised, full_check=True)
    constant = {tensor.name for tensor in proto.graph.initializer}
    feeds = {
        value.name: _normal(*(dim.dim_value or 1 for dim in value.type.tensor_type.shape.dim))
        for value in proto.graph.input
        if value.name not in constant
    }
    for expected, actual in zip(_run(proto, feeds), _run(raised, feeds), strict=True):
        np.testing.assert_array_equal(actual, expected)
