"""Every shape in which a model may come: opsets, external data, subgraphs, kinds of layers, weights, fusions."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from flow import (
    CPU,
    Flow,
    build,
    check_outputs,
    images,
    node_named,
    normal,
    operators,
    two_convs,
)
from onnx import helper, parser
from opsets import newest_opset

import amct_onnx as amct

# Versions of ONNX


@pytest.mark.parametrize("opset", [11, 12, 13, 15, 17, 18, 19, 21, newest_opset()])
def test_opsets_are_kept_from_11_to_the_newest(tmp_path: Path, opset: int) -> None:
    flow = Flow.of(two_convs(opset=opset), tmp_path).run({"x": images(0)})
    check_outputs(flow, {"x": images(0)}, {"x": images(1)})
    for path in (flow.deploy, flow.fake_quant):
        model = onnx.load(path)
        assert {entry.domain: entry.version for entry in model.opset_import} == {"": opset}
        assert model.ir_version == 8
    onnx.checker.check_model(flow.fake_quant, full_check=True)


@pytest.mark.parametrize("options", ["without", "with"])
def test_the_fake_quant_model_runs_with_and_without_amct_so(tmp_path: Path, options: str) -> None:
    flow = Flow.of(two_convs(), tmp_path).run({"x": images(0)})
    chosen = amct.AMCT_SO if options == "with" else None
    session = ort.InferenceSession(flow.fake_quant, chosen, providers=CPU)
    np.testing.assert_array_equal(session.run(None, {"x": images(1)})[0], flow.run_deploy({"x": images(1)}))


@pytest.mark.parametrize("level", ["ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_EXTENDED", "ORT_ENABLE_ALL"])
@pytest.mark.parametrize(
    "body",
    [
        "[conv] y = Conv (x, w)",
        "[conv] y = Conv (x, w, b)",
        "t = Conv (x, v) [conv] y = Conv (t, w)",
        "[conv] t = Conv (x, w) [pool] y = AveragePool <kernel_shape=[2,2]> (t)",
    ],
)
def test_no_optimization_level_changes_a_bit_of_the_fake_quant_model(tmp_path: Path, body: str, level: str) -> None:
    """ONNX Runtime merges a Mul into the Conv or MatMul before it where it can, which rounds elsewhere."""
    weights = {
        "w": normal(1, 64, 64, 1, 1),
        "b": normal(2, 64),
        "v": normal(4, 64, 64, 1, 1, scale=0.1),
    }
    used = {name: array for name, array in weights.items() if re.search(rf"\b{name}\b", body)}
    outputs = "float[N,64,h,w2] y"
    flow = Flow.of(build(f"g (float[N,64,5,4] x) => ({outputs}) {{ {body} }}", **used), tmp_path)
    flow.run({"x": normal(5, 2, 64, 5, 4)})
    so = ort.SessionOptions()
    so.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
    x = normal(6, 2, 64, 5, 4)
    got = ort.InferenceSession(flow.fake_quant, so, providers=CPU).run(None, {"x": x})[0]
    np.testing.assert_array_equal(got, flow.run_deploy({"x": x}))


@pytest.mark.parametrize("level", ["ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_EXTENDED", "ORT_ENABLE_ALL"])
def test_no_optimization_level_changes_a_bit_of_a_long_matmul(tmp_path: Path, level: str) -> None:
    """FusedMatMul scales the partial sums of each block of rows: a difference that only long sums show."""
    body = "g (float[N,2048] x) => (float[N,64] y) { [fc] y = MatMul (x, w) }"
    flow = Flow.of(build(body, w=normal(1, 2048, 64)), tmp_path)
    flow.run({"x": normal(3, 8, 2048)})
    so = ort.SessionOptions()
    so.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
    x = {"x": normal(4, 8, 2048)}
    got = ort.InferenceSession(flow.fake_quant, so, providers=CPU).run(None, x)[0]
    np.testing.assert_array_equal(got, flow.run_deploy(x))


def test_a_float_convolution_before_a_quantized_layer_is_not_merged_either(tmp_path: Path) -> None:
    model = build(
        "g (float[N,64,5,4] x) => (float[N,64,5,4] y) { [float] t = Conv (x, v) [conv] y = Conv (t, w) }",
        w=normal(1, 64, 64, 1, 1),
        v=normal(4, 64, 64, 1, 1, scale=0.1),
    )
    flow = Flow.of(model, tmp_path).run({"x": normal(5, 2, 64, 5, 4)}, skip_layers=["float"])
    x = normal(6, 2, 64, 5, 4)
    np.testing.assert_array_equal(flow.run_deploy({"x": x}), flow.run_fake_quant({"x": x}))


# Parts of a model that are no layers


def test_external_data_stays_external(tmp_path: Path) -> None:
    model = build(
        "g (float[N,16,H,W] x) => (float[N,16,H,W] y) { [c1] a = Conv (x, w1) [c2] y = Conv (a, w2) }",
        w1=normal(1, 16, 16, 3, 3, scale=0.1),
        w2=normal(2, 16, 16, 1, 1, scale=0.2),
    )
    folder = tmp_path / "in"
    folder.mkdir()
    onnx.save(model, folder / "float.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    flow = Flow(str(folder / "float.onnx"), tmp_path / "out")
    flow.folder.mkdir()
    flow.run({"x": normal(0, 2, 16, 8, 8)})
    models = {"modified.onnx", "model_deploy_model.onnx", "model_fake_quant_model.onnx"}
    others = {"config.json", "record.txt", "model_quant.json"}
    assert {p.name for p in flow.folder.iterdir()} == models | {f"{name}.data" for name in models} | others
    for name in models:
        tensors = onnx.load(flow.folder / name, load_external_data=False).graph.initializer
        places = {e.value for t in tensors for e in t.external_data if e.key == "location"}
        assert places == {f"{name}.data"}
    check_outputs(flow, {"x": normal(0, 2, 16, 8, 8)}, {"x": normal(1, 2, 16, 8, 8)})


def test_subgraphs_stay_as_they_are(tmp_path: Path) -> None:
    model = build(
        """g (float[N,3,H,W] x, bool flag) => (float[N,3,H,W] y) {
            [outer] a = Conv (x, w)
            [choose] y = If (flag) <
                then_branch = then () => (float[N,3,H,W] p) { [inner] p = Conv (a, v) },
                else_branch = else () => (float[N,3,H,W] q) { [neg] q = Neg (a) }>
        }""",
        w=normal(1, 3, 3, 1, 1),
        v=normal(2, 3, 3, 1, 1),
    )
    feeds = [{"x": images(seed), "flag": np.array(flag)} for seed, flag in ((0, True), (1, False))]
    flow = Flow.of(model, tmp_path).run(*feeds)
    assert list(flow.records()) == ["outer"]
    for path in (flow.deploy, flow.fake_quant):
        original = {a.name: a.g for a in node_named(flow.model, "choose").attribute}
        kept = {a.name: a.g for a in node_named(path, "choose").attribute}
        assert {n: [k.op_type for k in g.node] for n, g in kept.items()} == {
            n: [k.op_type for k in g.node] for n, g in original.items()
        }
    for batch in feeds:
        check_outputs(flow, batch, batch | {"x": images(2)})


def test_model_functions_stay_as_they_are(tmp_path: Path) -> None:
    model = parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17, "local" : 1]>
        g (float[N,3,H,W] x) => (float[N,3,H,W] y) {
            [conv] a = Conv (x, w)
            [twice] y = local.twice (a)
        }
        <domain: "local", opset_import: ["" : 17]>
        twice (v) => (z) { z = Add (v, v) }"""
    )
    model.graph.initializer.append(onnx.numpy_helper.from_array(normal(1, 3, 3, 1, 1), "w"))
    flow = Flow.of(model, tmp_path).run({"x": images(0)})
    for path in (flow.deploy, flow.fake_quant):
        assert [f.name for f in onnx.load(path).functions] == ["twice"]
        assert "twice" in operators(path)
    check_outputs(flow, {"x": images(0)}, {"x": images(1)})


# Layers and their constants


def run_layers(body: str, folder: Path, shape: str = "N,3,H,W", **weights: np.ndarray) -> Flow:
    dims = [2 if d == "N" else 6 if d in "HW" else int(d) for d in shape.split(",")]
    model = build(f"g (float[{shape}] x) => (float y) {{ {body} }}", **weights)
    del model.graph.output[0].type.tensor_type.shape.dim[:]
    model.graph.output[0].type.tensor_type.ClearField("shape")
    flow = Flow.of(model, folder).run({"x": normal(0, *dims)})
    check_outputs(flow, {"x": normal(0, *dims)}, {"x": normal(1, *dims)})
    return flow


def test_a_weight_and_a_bias_shared_by_two_layers_are_quantized_for_each(tmp_path: Path) -> None:
    body = """
        [c1] a = Conv (x, w, b)
        [relu] r = Relu (a)
        [c2] y = Conv (r, w, b)
    """
    flow = run_layers(body, tmp_path, w=normal(1, 3, 3, 1, 1), b=normal(2, 3))
    records = flow.records()
    assert records["c1"].scale_w == records["c2"].scale_w
    assert records["c1"].scale_d != records["c2"].scale_d
    biases = [node_named(flow.deploy, name).input[2] for name in ("c1", "c2")]
    assert len(set(biases)) == 2  # int32 biases differ with scale_d


def test_a_weight_that_is_also_read_elsewhere_stays_float_there(tmp_path: Path) -> None:
    w = normal(1, 3, 3, 1, 1)
    body = "[conv] a = Conv (x, w) [largest] k = ReduceMax <keepdims=0> (w) [mul] y = Mul (a, k)"
    flow = run_layers(body, tmp_path, w=w)
    kept = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(flow.deploy).graph.initializer}
    np.testing.assert_array_equal(kept[node_named(flow.deploy, "largest").input[0]], w)


@pytest.mark.parametrize(
    ("producer", "stored"),
    [
        ("w = Identity (v)", normal(1, 4, 3, 1, 1)),
        ("w = Transpose <perm=[1,0,2,3]> (v)", normal(1, 3, 4, 1, 1)),
        ("w = Cast <to=1> (v)", normal(1, 4, 3, 1, 1).astype(np.float16)),
        ("t = Identity (v) w = Transpose <perm=[1,0,2,3]> (t)", normal(1, 3, 4, 1, 1)),
    ],
)
def test_weights_behind_other_nodes(tmp_path: Path, producer: str, stored: np.ndarray) -> None:
    flow = run_layers(f"{producer} [conv] y = Conv (x, w)", tmp_path, v=stored)
    assert list(flow.records()) == ["conv"]
    assert operators(flow.deploy) == ["AscendQuant", "Conv", "AscendDequant"]


def test_a_weight_in_a_constant_node(tmp_path: Path) -> None:
    model = build("g (float[N,3,H,W] x) => (float[N,4,H,W] y) { [conv] y = Conv (x, w) }")
    tensor = onnx.numpy_helper.from_array(normal(1, 4, 3, 1, 1))
    model.graph.node.insert(0, helper.make_node("Constant", [], ["w"], "const", value=tensor))
    flow = Flow.of(model, tmp_path).run({"x": images(0)})
    assert operators(flow.deploy) == ["AscendQuant", "Conv", "AscendDequant"]
    check_outputs(flow, {"x": images(0)}, {"x": images(1)})


@pytest.mark.parametrize(
    ("body", "shape", "weights"),
    [
        ("[l] y = Conv <pads=[1,1]> (x, w)", "N,3,W", {"w": normal(1, 4, 3, 3)}),
        ("[l] y = Conv (x, w)", "N,3,W,W,W", {"w": normal(1, 4, 3, 2, 2, 2)}),
        ("[l] y = Conv <group=3, strides=[2,2]> (x, w, b)", "N,3,H,W", {"w": normal(1, 6, 1, 3, 3), "b": normal(2, 6)}),
        ("[l] y = Conv <dilations=[2,2]> (x, w)", "N,3,H,W", {"w": normal(1, 4, 3, 2, 2)}),
        ("[l] y = ConvTranspose <strides=[2,2]> (x, w, b)", "N,3,H,W", {"w": normal(1, 3, 5, 2, 2), "b": normal(2, 5)}),
        ("[l] y = ConvTranspose <group=2> (x, w)", "N,4,H,W", {"w": normal(1, 4, 3, 2, 2)}),
        ("[l] y = Gemm (x, w, b)", "N,8", {"w": normal(1, 8, 5), "b": normal(2, 5)}),
        ("[l] y = Gemm <transB=1> (x, w)", "N,8", {"w": normal(1, 5, 8)}),
        (
            "[l] y = Gemm <alpha=0.5, beta=2.0, transA=1, transB=1> (x, w, b)",
            "N,8",
            {"w": normal(1, 5, 2), "b": normal(2, 5)},
        ),
        ("[l] y = Gemm (x, w, b)", "N,8", {"w": normal(1, 8, 5), "b": normal(2, 1)}),
        ("[l] t = MatMul (x, w) [add] y = Add (t, b)", "N,7,8", {"w": normal(1, 8, 5), "b": normal(2, 5)}),
        ("[l] y = MatMul (x, w)", "8", {"w": normal(1, 8, 5)}),
        ("[l] y = MatMul (x, w)", "3,7,8", {"w": normal(1, 3, 8, 5)}),
        ("[l] y = AveragePool <kernel_shape=[3,3], pads=[1,1,1,1], strides=[2,2]> (x)", "N,3,H,W", {}),
        ("[l] y = AveragePool <kernel_shape=[3,3], pads=[1,1,1,1], count_include_pad=1> (x)", "N,3,H,W", {}),
    ],
)
def test_every_kind_of_layer(tmp_path: Path, body: str, shape: str, weights: dict[str, np.ndarray]) -> None:
    flow = run_layers(body, tmp_path, shape, **weights)
    assert list(flow.records()) == ["l"]
    found = operators(flow.deploy)
    assert (found.count("AscendQuant"), found.count("AscendDequant")) == (1, 1)


def test_a_matmul_is_dequantized_before_its_add(tmp_path: Path) -> None:
    flow = run_layers("[l] t = MatMul (x, w) y = Add (t, b)", tmp_path, "N,8", w=normal(1, 8, 5), b=normal(2, 5))
    assert operators(flow.deploy) == ["AscendQuant", "MatMul", "AscendDequant", "Add"]


def test_a_tensor_read_by_several_layers_is_observed_once_and_quantized_once(tmp_path: Path) -> None:
    body = "[c1] a = Conv (x, w) [c2] b = Conv (x, v) [c3] c = Conv (x, w) [s] y = Sum (a, b, c)"
    flow = run_layers(body, tmp_path, w=normal(1, 3, 3, 1, 1), v=normal(2, 3, 3, 1, 1))
    assert operators(flow.modified).count("IFMR") == 1
    assert operators(flow.deploy).count("AscendQuant") == 1
    assert operators(flow.fake_quant).count("Round") == 1
    records = flow.records()
    assert len({(record.scale_d, record.offset_d) for record in records.values()}) == 1
    readers = {node.input[0] for node in onnx.load(flow.deploy).graph.node if node.op_type == "Conv"}
    assert len(readers) == 1


def test_a_layer_output_that_is_a_graph_output_and_feeds_another_layer(tmp_path: Path) -> None:
    model = build(
        "g (float[N,3,H,W] x) => (float[N,3,H,W] p, float[N,3,H,W] q) { [c1] p = Conv (x, w) [c2] q = Conv (p, w) }",
        w=normal(1, 3, 3, 1, 1),
    )
    flow = Flow.of(model, tmp_path).run({"x": images(0)})
    x = {"x": images(1)}
    both = [
        s.run(None, x)
        for s in (amct.deployed_session(flow.deploy), ort.InferenceSession(flow.fake_quant, providers=CPU))
    ]
    np.testing.assert_array_equal(both[0], both[1])
    assert [v.name for v in onnx.load(flow.deploy).graph.output] == ["p", "q"]


# Fusion


BATCH_NORM = """
    [conv] a = Conv (x, w)
    [bn] n = BatchNormalization (a, s, o, m, v)
    [relu] r = Relu (n)
    [conv2] b = Conv (r, w2)
    [bn2] y = BatchNormalization (b, s2, o2, m2, v2)
"""
BN_WEIGHTS = {
    "w": normal(1, 4, 3, 1, 1),
    "w2": normal(6, 5, 4, 1, 1),
    **{name: normal(seed, 4) for seed, name in enumerate("som", 2)},
    **{f"{name}2": normal(seed, 5) for seed, name in enumerate("som", 7)},
    "v": np.abs(normal(5, 4)) + 0.5,
    "v2": np.abs(normal(10, 5)) + 0.5,
}


@pytest.mark.parametrize(
    ("cfg", "kept"),
    [("", []), ("do_fusion : false", ["bn", "bn2"]), ('skip_fusion_layers : "conv"', ["bn"])],
)
def test_batch_normalization_is_folded_unless_the_configuration_says_no(
    tmp_path: Path, cfg: str, kept: list[str]
) -> None:
    model = build(f"g (float[N,3,H,W] x) => (float[N,5,H,W] y) {{ {BATCH_NORM} }}", **BN_WEIGHTS)
    flow = Flow.of(model, tmp_path)
    (tmp_path / "quant.cfg").write_text(f"batch_num : 1\n{cfg}\n")
    flow.configure(config_defination=str(tmp_path / "quant.cfg")).quantize().calibrate([{"x": images(0)}]).save()
    for path in (flow.deploy, flow.fake_quant):
        nodes = onnx.load(path).graph.node
        assert [node.name for node in nodes if node.op_type == "BatchNormalization"] == kept
    assert list(flow.records()) == ["conv", "conv2"]
    check_outputs(flow, {"x": images(0)}, {"x": images(1)})


def test_skipped_layers_stay_float(tmp_path: Path) -> None:
    flow = Flow.of(two_convs(), tmp_path).run({"x": images(0)}, skip_layers=["conv1"])
    assert list(flow.records()) == ["conv2"]
    weights = {t.name: t for t in onnx.load(flow.deploy).graph.initializer}
    floats = {t.name: t for t in onnx.load(flow.model).graph.initializer}
    assert weights["w1"] == floats["w1"]
    assert operators(flow.deploy) == ["Conv", "Relu", "AscendQuant", "Conv", "AscendDequant"]
    check_outputs(flow, {"x": images(0)}, {"x": images(1)})


def test_the_simplified_configuration_wins_over_the_arguments(tmp_path: Path) -> None:
    (tmp_path / "quant.cfg").write_text('batch_num : 3\nskip_layers : "conv1"\n')
    flow = Flow.of(two_convs(), tmp_path)
    flow.configure(
        skip_layers=["conv2"], batch_num=7, activation_offset=False, config_defination=str(tmp_path / "quant.cfg")
    )
    flow.quantize().calibrate({"x": images(i)} for i in range(3)).save()
    assert list(flow.records()) == ["conv2"]
