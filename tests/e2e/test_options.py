"""Options of the configuration that change what is calculated: each test fails if its option is ignored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from flow import (
    CPU,
    MINIMUM_SQNR_DB,
    Flow,
    build,
    check_outputs,
    images,
    node_named,
    normal,
    operators,
    sqnr,
    two_convs,
)

import amct_onnx as amct
from amct_onnx.errors import ConfigError
from amct_onnx.numerics.activations.solve import solve_activation
from amct_onnx.numerics.settings import ActivationSettings, Hfmg, Ifmr
from amct_onnx.numerics.statistics.histogram import DyadicHistogram


def with_cfg(flow: Flow, cfg: str) -> Flow:
    """`flow` configured by a simplified configuration."""
    path = flow.folder / "quant.cfg"
    path.write_text(cfg)
    return flow.configure(config_defination=str(path))


def edit(flow: Flow, **changes: Any) -> Flow:
    """Change keys of config.json; a dict is merged into what is there, two levels deep."""
    path = Path(flow.config)
    document = json.loads(path.read_text())
    for key, value in changes.items():
        if isinstance(value, dict):
            for inner, content in value.items():
                old = document[key].get(inner)
                document[key][inner] = old | content if isinstance(old, dict) else content
        else:
            document[key] = value
    path.write_text(json.dumps(document))
    return flow


def finish(flow: Flow, *batches: dict[str, np.ndarray]) -> Flow:
    return flow.quantize().calibrate(batches).save()


def every_output(path: str, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """All tensors of a float model."""
    model = onnx.load(path)
    del model.graph.output[:]
    names = [name for node in model.graph.node for name in node.output]
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    session = ort.InferenceSession(model.SerializeToString(), providers=CPU)
    return dict(zip(names, session.run(None, feeds), strict=True)) | feeds


# tensor_quantize


POOLED = """g (float[N,3,H,W] x) => (float y) {
    [conv1] a = Conv (x, w1)
    [relu] r = Relu (a)
    [pool] p = MaxPool <kernel_shape=[2,2]> (r)
    [conv2] b = Conv (p, w2)
    [conv3] c = Conv (p, w3)
    [sum] y = Add (b, c)
}"""


def pooled(folder: Path) -> Flow:
    model = build(POOLED, w1=normal(1, 4, 3, 1, 1), w2=normal(2, 5, 4, 1, 1), w3=normal(3, 5, 4, 1, 1, scale=0.1))
    model.graph.output[0].type.tensor_type.ClearField("shape")
    return Flow.of(model, folder)


def tensor(name: str, index: int, **activation: Any) -> dict[str, Any]:
    return {"layer_name": name, "input_index": index, "activation_quant_params": activation}


@pytest.mark.parametrize("how", ["json", "cfg"])
def test_tensors_in_front_of_a_pool_and_an_add(tmp_path: Path, how: str) -> None:
    flow = pooled(tmp_path)
    if how == "json":
        edit(flow.configure(), tensor_quantize=[tensor("pool", 0), tensor("sum", 1, asymmetric=False)])
    else:
        with_cfg(
            flow,
            'tensor_quantize { layer_name : "pool" input_index : 0 }\n'
            'tensor_quantize { layer_name : "sum" input_index : 1 ifmr_quantize { asymmetric : false } }',
        )
    finish(flow, {"x": images(0)})
    records = flow.records()
    assert list(records) == ["conv1", "conv2", "conv3", "pool:0", "sum:1"]
    assert [records[key].is_tensor_quantize for key in records] == [None, None, None, True, True]
    assert records["sum:1"].offset_d == 0
    assert records["pool:0"].scale_w == ()
    found = operators(flow.deploy)
    assert (found.count("AscendQuant"), found.count("AscendDequant"), found.count("AscendAntiQuant")) == (4, 3, 2)
    for name, index in (("pool", 0), ("sum", 1)):
        anti = node_named(flow.deploy, f"{name}.{index}.anti_quant")
        assert node_named(flow.deploy, name).input[index] == anti.output[0]
        factors = {a.name: onnx.helper.get_attribute_value(a) for a in anti.attribute}
        record = records[f"{name}:{index}"]
        assert factors == {"scale": np.float32(record.scale_d or 0), "offset": record.offset_d}
    check_outputs(flow, {"x": images(0)}, {"x": images(1)})
    entries = json.loads((tmp_path / "model_quant.json").read_text())["graph"][0]["op"]
    owners = {e["name"]: e["attr"][0]["value"]["list"]["s"] for e in entries if "attr" in e}
    assert owners["pool.0.quant"] == owners["pool.0.anti_quant"] == ["pool"]


def test_the_factors_of_a_tensor_are_those_of_its_data(tmp_path: Path) -> None:
    flow = finish(edit(pooled(tmp_path).configure(), tensor_quantize=[tensor("pool", 0)]), {"x": images(0)})
    data = every_output(flow.modified.replace("modified", "float"), {"x": images(0)})["r"]
    # conv1's weights are quantized in the calibration model, which moves its output a little.
    params = solve_activation(DyadicHistogram.of(data), ActivationSettings())
    assert flow.records()["pool:0"].scale_d == pytest.approx(params.scale[0], rel=0.05)
    assert flow.records()["pool:0"].offset_d == -128  # behind a Relu


def test_a_tensor_read_by_layers_too_is_observed_and_quantized_once(tmp_path: Path) -> None:
    model = build(
        """g (float[N,3,H,W] x) => (float[N,3,H,W] y, float[N,3,H,W] z) {
            [pool] y = MaxPool <kernel_shape=[1,1]> (x)
            [conv] c = Conv (x, w)
            [sum] z = Add (c, x)
        }""",
        w=normal(1, 3, 3, 1, 1),
    )
    flow = edit(Flow.of(model, tmp_path).configure(), tensor_quantize=[tensor("pool", 0), tensor("sum", 1)])
    finish(flow, {"x": images(0)})
    assert operators(flow.modified).count("IFMR") == 1
    assert operators(flow.deploy).count("AscendQuant") == 1
    assert operators(flow.deploy).count("AscendAntiQuant") == 2
    assert len({(record.scale_d, record.offset_d) for record in flow.records().values()}) == 1
    check_outputs(flow, {"x": images(0)}, {"x": images(1)})


def test_tensors_alone_are_enough(tmp_path: Path) -> None:
    model = build("g (float[N,3,H,W] x) => (float[N,3,H,W] y) { [pool] y = MaxPool <kernel_shape=[1,1]> (x) }")
    flow = with_cfg(Flow.of(model, tmp_path), 'tensor_quantize { layer_name : "pool" input_index : 0 }')
    finish(flow, {"x": images(0)})
    assert operators(flow.deploy) == ["AscendQuant", "AscendAntiQuant", "MaxPool"]
    check_outputs(flow, {"x": images(0)}, {"x": images(1)})
    with pytest.raises(RuntimeError, match="The model cannot be quantized for following quant layers"):
        amct.create_quant_config(flow.config, flow.fake_quant)


def test_hfmg_for_a_tensor(tmp_path: Path) -> None:
    by_ifmr = finish(edit(pooled(tmp_path / "a").configure(), tensor_quantize=[tensor("pool", 0)]), {"x": images(0)})
    flow = edit(pooled(tmp_path / "b").configure(), tensor_quantize=[tensor("pool", 0, act_algo="hfmg")])
    finish(flow, {"x": images(0)})
    assert operators(flow.modified).count("HFMG") == 1
    assert flow.records()["pool:0"].scale_d != by_ifmr.records()["pool:0"].scale_d


def test_a_constant_input_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    model = build("g (float[N,2] x) => (float[N,2] y) { [sum] y = Add (x, k) }", k=normal(0, 2))
    flow = Flow.of(model, tmp_path)
    with pytest.raises(ConfigError, match="sum:1: its input 1 is a constant"):
        with_cfg(flow, 'tensor_quantize { layer_name : "sum" input_index : 1 }')
    assert not Path(flow.config).exists()


def test_an_add_that_is_fused_is_refused(tmp_path: Path) -> None:
    model = build(
        """g (float[N,4,H,W] x) => (float[N,4,H,W] y) {
            [conv] c = Conv (x, w) [bn] n = BatchNormalization (c, s, s, s, s) [shift] y = Add (n, k)
        }""",
        w=normal(1, 4, 4, 1, 1),
        s=np.ones(4, np.float32),
        k=np.ones((4, 1, 1), np.float32),
    )
    flow = edit(Flow.of(model, tmp_path).configure(), tensor_quantize=[tensor("shift", 0)])
    with pytest.raises(ConfigError, match="fused into a BatchNormalization: shift:0"):
        flow.quantize()
    finish(edit(flow, skip_fusion_layers=["bn"]), {"x": normal(0, 2, 4, 5, 5)})
    assert "shift:0" in flow.records()


# joint_quant


BRANCHES = """g (float[N,3,H,W] x) => (float[N,3,H,W] y, float[N,3,H,W] z, float[N,3,H,W] v) {
    [conv1] a = Conv (x, w1)
    [conv2] b = Conv (x, w2)
    [relu] r = Relu (b)
    [sum] y = Add (a, r)
    [conv3] z = Conv (a, w1)
    [conv4] v = Conv (r, w2)
}"""


def branches(folder: Path, *, joint: bool, batches: int = 2, extra: str = "") -> Flow:
    flow = Flow.of(build(BRANCHES, w1=normal(1, 3, 3, 1, 1), w2=normal(2, 3, 3, 1, 1, scale=0.2)), folder)
    return with_cfg(flow, f"batch_num : {batches} joint_quant : {str(joint).lower()} {extra}").quantize()


def test_branches_that_meet_in_an_add_share_one_factor(tmp_path: Path) -> None:
    batches = [{"x": images(0)}, {"x": images(1, count=3)}]
    apart = branches(tmp_path / "apart", joint=False).calibrate(batches).save().records()
    flow = branches(tmp_path / "joint", joint=True).calibrate(batches).save()
    records = flow.records()
    assert apart["conv3"].scale_d != apart["conv4"].scale_d
    assert (records["conv3"].scale_d, records["conv3"].offset_d) == (
        records["conv4"].scale_d,
        records["conv4"].offset_d,
    )
    for layer in ("conv1", "conv2"):  # they read x, which is no operand
        assert records[layer] == apart[layer]
    # One factor is that of all data together, as the calibration model shows it.
    model = onnx.load(flow.modified)
    for node in [node for node in model.graph.node if node.domain]:
        model.graph.node.remove(node)
    onnx.save(model, tmp_path / "plain.onnx")
    seen = [every_output(str(tmp_path / "plain.onnx"), feeds) for feeds in batches]
    data = np.concatenate([values[name].ravel() for values in seen for name in "ar"])
    params = solve_activation(DyadicHistogram.of(data), ActivationSettings())
    assert (records["conv3"].scale_d, records["conv3"].offset_d) == (params.scale[0], params.zero_point[0])
    check_outputs(flow, {"x": images(0)}, {"x": images(2)})


def test_joint_quant_of_config_json(tmp_path: Path) -> None:
    records = {}
    for joint in (False, True):
        model = build(BRANCHES, w1=normal(1, 3, 3, 1, 1), w2=normal(2, 3, 3, 1, 1, scale=0.2))
        flow = edit(Flow.of(model, tmp_path / str(joint)).configure(), joint_quant=joint)
        records[joint] = finish(flow, {"x": images(0)}).records()
    assert records[False]["conv3"].scale_d != records[False]["conv4"].scale_d
    assert records[True]["conv3"].scale_d == records[True]["conv4"].scale_d


def test_the_order_of_batches_and_sessions_does_not_matter_for_joint_factors(tmp_path: Path) -> None:
    batches = [{"x": images(0)}, {"x": images(1)}]
    first = branches(tmp_path / "a", joint=True).calibrate(batches)
    second = branches(tmp_path / "b", joint=True).calibrate(batches[1:]).calibrate(batches[:1])
    assert first.save().records() == second.save().records()


def test_joint_factors_wait_for_every_batch_and_ignore_further_ones(tmp_path: Path) -> None:
    flow = branches(tmp_path, joint=True).calibrate([{"x": images(0)}])
    with pytest.raises(RuntimeError, match="1 of 2 batches have run"):
        flow.save()
    records = flow.calibrate([{"x": images(1)}]).save().records()
    flow.calibrate([{"x": 100 * images(2)}]).save()
    assert flow.records() == records


def test_what_fails_in_one_branch_is_reported(tmp_path: Path) -> None:
    flow = branches(tmp_path, joint=True, batches=1)
    x = images(0)
    x[0, 0, 0, 0] = np.inf
    flow.calibrate([{"x": x}])
    with pytest.raises(RuntimeError, match="holds NaN or Inf"):
        flow.save()


def test_an_add_of_joint_tensors_gets_equal_factors(tmp_path: Path) -> None:
    tensors = " ".join(f'tensor_quantize {{ layer_name : "sum" input_index : {index} }}' for index in (0, 1))
    flow = branches(tmp_path / "joint", joint=True, extra=tensors, batches=1).calibrate([{"x": images(0)}]).save()
    records = flow.records()
    assert len({(records[key].scale_d, records[key].offset_d) for key in ("sum:0", "sum:1", "conv3", "conv4")}) == 1
    check_outputs(flow, {"x": images(0)}, {"x": images(2)})


# MatMul of two variables


ATTENTION = """g (float[N,7,8] x) => (float y) {
    [q] q = MatMul (x, wq)
    [k] k = MatMul (x, wk)
    [t] t = Transpose <perm=[0,2,1]> (k)
    [scores] s = MatMul (q, t)
    [soft] p = Softmax <axis=-1> (s)
    [mix] y = MatMul (p, x)
}"""


def attention(folder: Path) -> Flow:
    model = build(ATTENTION, wq=normal(1, 8, 8, scale=0.3), wk=normal(2, 8, 8, scale=0.3))
    model.graph.output[0].type.tensor_type.ClearField("shape")
    return Flow.of(model, folder)


X = {"x": normal(0, 2, 7, 8)}
FRESH = {"x": normal(9, 3, 7, 8)}


def test_products_are_off_by_default_in_the_config_and_the_log_says_why(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    flow = attention(tmp_path).configure()
    document = json.loads(Path(flow.config).read_text())
    entries = {name: document[name]["quant_enable"] for name in ("q", "k", "scores", "mix")}
    assert entries == {"q": True, "k": True, "scores": False, "mix": False}
    assert document["scores"]["activation_quant_params"]["asymmetric"] is False
    (line,) = [record.message for record in caplog.records if "two activations" in record.message]
    assert line.startswith(
        "2 MatMul layers multiply two activations (first: scores) and stay in float: quantizing them"
    )
    finish(flow, X)
    assert list(flow.records()) == ["q", "k"]
    check_outputs(flow, X, FRESH)


@pytest.mark.parametrize("how", ["json", "layer", "type"])
def test_a_product_is_quantized_on_both_sides(tmp_path: Path, how: str) -> None:
    flow = attention(tmp_path)
    if how == "json":
        edit(flow.configure(), scores={"quant_enable": True}, mix={"quant_enable": True})
    elif how == "layer":
        block = "calibration_config { ifmr_quantize { } }"
        names = [f'override_layer_configs {{ layer_name : "{name}" {block} }}' for name in ("scores", "mix")]
        with_cfg(flow, "\n".join(names))
    else:
        with_cfg(flow, 'override_layer_types { layer_type : "MatMul" calibration_config { ifmr_quantize { } } }')
    finish(flow, X)
    for name in ("scores", "mix"):
        record = flow.records()[name]
        assert (record.offset_d, record.offset_w, record.wts_type) == (0, (0,), "INT8")
        assert record.scale_d is not None
        assert record.scale_d > 0
        assert record.scale_w[0] > 0
        node = node_named(flow.deploy, name)
        producers = {output: n for n in onnx.load(flow.deploy).graph.node for output in n.output}
        assert [producers[value].op_type for value in node.input] == ["AscendQuant", "AscendQuant"]
        tensors = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(flow.deploy).graph.initializer}
        scale = tensors[f"{name}.dequant.param"].astype(np.uint32).view(np.float32)
        np.testing.assert_array_equal(scale, np.float32(record.scale_d) * np.float32(record.scale_w[0]))
    check_outputs(flow, X, FRESH)


def test_the_common_configuration_does_not_enable_products(tmp_path: Path) -> None:
    flow = with_cfg(attention(tmp_path), "common_config { ifmr_quantize { asymmetric : true } }")
    assert json.loads(Path(flow.config).read_text())["scores"]["quant_enable"] is False


def test_skip_layers_wins_over_an_override(tmp_path: Path) -> None:
    block = 'override_layer_types { layer_type : "MatMul" calibration_config { ifmr_quantize { } } }'
    flow = with_cfg(attention(tmp_path), f'skip_layers : "mix" {block}')
    document = json.loads(Path(flow.config).read_text())
    assert (document["scores"]["quant_enable"], document["mix"]["quant_enable"]) == (True, False)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"asymmetric": True}, "current layer scores only support act symmetric quant"),
        ({"num_bits": 16}, "current layer scores does not support int16 quant"),
        ({"num_bits": 4}, "current layer scores multiplies two activations, use 8 bits"),
    ],
)
def test_products_take_symmetric_int8_only(tmp_path: Path, params: dict[str, Any], message: str) -> None:
    flow = edit(attention(tmp_path).configure(), scores={"quant_enable": True, "activation_quant_params": params})
    with pytest.raises(ConfigError, match=message):
        flow.quantize()


def test_a_product_waits_for_its_second_operand_too(tmp_path: Path) -> None:
    flow = edit(attention(tmp_path).configure(), scores={"quant_enable": True}).quantize()
    with pytest.raises(RuntimeError, match=r"waiting for 1 more: q, k, scores\."):
        flow.save()
    assert operators(flow.modified).count("IFMR") == 3  # x, q and t: of the second operand, by a stamp of its own
    flow.calibrate([X])
    text = Path(flow.record).read_text()
    Path(flow.record).write_text(text.replace("scale_w", "scale_r").replace("offset_w", "offset_r"))
    with pytest.raises(RuntimeError, match="cannot find"):
        flow.save()


def test_a_constant_on_the_left_stays_float(tmp_path: Path) -> None:
    model = build(
        "g (float[N,8,5] x) => (float[N,6,5] y) { [a] t = MatMul (x, v) [l] y = MatMul (w, t) }",
        w=normal(1, 6, 8),
        v=normal(2, 5, 5),
    )
    flow = Flow.of(model, tmp_path).run({"x": normal(0, 2, 8, 5)})
    assert list(flow.records()) == ["a"]


# Weights of fewer bits


@pytest.mark.parametrize("bits", [4, 6, 7])
def test_weights_of_fewer_bits(tmp_path: Path, bits: int) -> None:
    flow = Flow.of(two_convs(), tmp_path).configure()
    edit(flow, conv1={"weight_quant_params": {"num_bits": bits}})
    finish(flow, {"x": images(0)})
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(flow.deploy).graph.initializer}
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    weight = stored["w1"]
    assert weight.dtype == np.int8
    assert low <= weight.min() <= weight.max() <= high
    assert max(-weight.min(), weight.max()) >= high
    assert np.abs(stored["w2"]).max() >= 127
    assert flow.records()["conv1"].wts_type == f"INT{bits}"
    assert flow.records()["conv2"].wts_type == "INT8"
    np.testing.assert_array_equal(flow.run_deploy({"x": images(1)}), flow.run_fake_quant({"x": images(1)}))
    assert sqnr(flow.run_float({"x": images(0)}), flow.run_fake_quant({"x": images(0)})) > MINIMUM_SQNR_DB - 6 * (
        8 - bits
    )


@pytest.mark.parametrize("bits", [6, 7])
def test_quant_bits_of_a_cfg(tmp_path: Path, bits: int) -> None:
    flow = with_cfg(Flow.of(two_convs(), tmp_path), f"common_config {{ arq_quantize {{ quant_bits : {bits} }} }}")
    finish(flow, {"x": images(0)})
    assert {record.wts_type for record in flow.records().values()} == {f"INT{bits}"}


def test_quant_bits_of_an_override_name_one_layer(tmp_path: Path) -> None:
    block = "calibration_config { arq_quantize { quant_bits : 6 } }"
    flow = with_cfg(Flow.of(two_convs(), tmp_path), f'override_layer_configs {{ layer_name : "conv2" {block} }}')
    finish(flow, {"x": images(0)})
    assert {name: record.wts_type for name, record in flow.records().items()} == {"conv1": "INT8", "conv2": "INT6"}
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(flow.deploy).graph.initializer}
    largest = [np.abs(stored[name].astype(int)).max() for name in ("w1", "w2")]
    assert largest[0] >= 127
    assert largest[1] in (31, 32)


# int16 activations


@pytest.mark.parametrize("how", ["json", "cfg"])
@pytest.mark.parametrize("algo", ["ifmr", "hfmg"])
def test_activations_of_16_bits(tmp_path: Path, how: str, algo: str) -> None:
    flow = Flow.of(two_convs(), tmp_path)
    if how == "json":
        edit(flow.configure(), conv1={"activation_quant_params": {"num_bits": 16, "act_algo": algo}})
        if algo == "hfmg":
            document = json.loads(Path(flow.config).read_text())
            document["conv1"]["activation_quant_params"] = {"num_bits": 16, "act_algo": algo}
            Path(flow.config).write_text(json.dumps(document))
    else:
        block = f"calibration_config {{ {algo}_quantize {{ dst_type : INT16 }} }}"
        with_cfg(flow, f'override_layer_configs {{ layer_name : "conv1" {block} }}')
    finish(flow, {"x": images(0)})
    solver = Hfmg() if algo == "hfmg" else Ifmr()
    params = solve_activation(DyadicHistogram.of(images(0)), ActivationSettings(num_bits=16, solver=solver))
    record = flow.records()["conv1"]
    assert (record.scale_d, record.offset_d, record.act_type) == (params.scale[0], params.zero_point[0], "INT16")
    assert record.scale_d < np.ptp(images(0)) / 2**15
    assert flow.records()["conv2"].act_type == "INT8"
    types = {n.name: {a.name: a.s for a in n.attribute}["dst_type"] for n in quantizers(flow)}
    assert types == {"conv1.quant": b"INT16", "conv2.quant": b"INT8"}
    check_outputs(flow, {"x": images(0)}, {"x": images(1)})


def quantizers(flow: Flow) -> list[onnx.NodeProto]:
    return [node for node in onnx.load(flow.deploy).graph.node if node.op_type == "AscendQuant"]


def test_16_bits_show_in_the_outputs(tmp_path: Path) -> None:
    """Weights that int8 holds exactly: what is left is the error of the activation."""
    weight = np.random.default_rng(0).integers(-127, 128, (4, 3, 1, 1)).astype(np.float32)
    weight[:, 0] = 127
    model = build("g (float[N,3,H,W] x) => (float[N,4,H,W] y) { [conv] y = Conv (x, w) }", w=weight)
    quality = {}
    for bits in (8, 16):
        flow = edit(
            Flow.of(model, tmp_path / str(bits)).configure(), conv={"activation_quant_params": {"num_bits": bits}}
        )
        finish(flow, {"x": images(0)})
        quality[bits] = sqnr(flow.run_float({"x": images(0)}), flow.run_deploy({"x": images(0)}))
        check_outputs(flow, {"x": images(0)}, {"x": 3 * images(1)})
    assert quality[16] > quality[8] + 6 * 8 - 6  # six decibels a bit


def test_16_bits_in_common_are_for_the_layers_that_have_them(tmp_path: Path) -> None:
    model = build(
        "g (float[N,8] x) => (float[N,3] y) { [fc] t = Gemm (x, w) [mul] y = MatMul (t, v) }",
        w=normal(1, 8, 6),
        v=normal(2, 6, 3),
    )
    flow = with_cfg(Flow.of(model, tmp_path), "common_config { ifmr_quantize { dst_type : INT16 } }")
    finish(flow, {"x": normal(0, 9, 8)})
    assert {name: record.act_type for name, record in flow.records().items()} == {"fc": "INT16", "mul": "INT8"}
    check_outputs(flow, {"x": normal(0, 9, 8)}, {"x": normal(1, 5, 8)})


# fakequant_precision_mode


@pytest.mark.parametrize("how", ["json", "cfg"])
def test_force_fp16_quant(tmp_path: Path, how: str) -> None:
    plain = Flow.of(two_convs(), tmp_path / "plain").run({"x": images(0)})
    flow = Flow.of(two_convs(), tmp_path / how)
    if how == "json":
        edit(flow.configure(), fakequant_precision_mode="FORCE_FP16_QUANT")
    else:
        with_cfg(flow, "fakequant_precision_mode : FORCE_FP16_QUANT")
    finish(flow, {"x": images(0)})
    first, without = flow.records()["conv1"], plain.records()["conv1"]
    assert (first.fakequant_precision_mode, without.fakequant_precision_mode) == ("FORCE_FP16_QUANT", None)
    assert first.scale_d == float(np.float16(without.scale_d)) != without.scale_d
    words = {
        t.name: onnx.numpy_helper.to_array(t)
        for t in onnx.load(flow.deploy).graph.initializer
        if t.name.endswith(".dequant.param")
    }
    assert set(words) == {"conv1.dequant.param", "conv2.dequant.param"}
    assert not any((param & np.uint64(0x1FFF)).any() for param in words.values())  # 10 bits of the mantissa are left
    for feeds in ({"x": images(0)}, {"x": 5 * images(3)}):
        got = flow.run_fake_quant(feeds)
        np.testing.assert_array_equal(got, flow.run_deploy(feeds))
        np.testing.assert_array_equal(got, got.astype(np.float16).astype(np.float32))
        assert (got != plain.run_fake_quant(feeds)).any()
    assert sqnr(flow.run_float({"x": images(0)}), flow.run_fake_quant({"x": images(0)})) > MINIMUM_SQNR_DB


def test_force_fp16_quant_with_16_bits_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    flow = edit(
        Flow.of(two_convs(), tmp_path).configure(),
        fakequant_precision_mode="FORCE_FP16_QUANT",
        conv1={"activation_quant_params": {"num_bits": 16}},
    )
    finish(flow, {"x": images(0)})
    assert "fewer than the 16 of 1 layers (first: conv1)" in caplog.text
    check_outputs(flow, {"x": images(0)}, {"x": images(1)})


# 1-D convolution


def test_one_dimensional_convolution(tmp_path: Path) -> None:
    """Batch normalization and a pool between, groups, dilation and a transposed one, which stays in float."""
    model = build(
        """g (float[N,4,L] x) => (float y) {
            [first] a = Conv <pads=[2,0], dilations=[2]> (x, w1, b1)
            [norm] n = BatchNormalization (a, s, b1, b1, s)
            [relu] r = Relu (n)
            [grouped] c = Conv <group=3, strides=[2]> (r, w2)
            [back] y = ConvTranspose <strides=[2]> (c, w3)
        }""",
        w1=normal(1, 6, 4, 3, scale=0.4),
        b1=normal(2, 6),
        s=np.linspace(0.5, 2, 6).astype(np.float32),
        w2=normal(3, 9, 2, 2),
        w3=normal(4, 9, 2, 3),
    )
    model.graph.output[0].type.tensor_type.ClearField("shape")
    seen, fresh = {"x": normal(0, 3, 4, 30)}, {"x": normal(1, 2, 4, 21)}
    flow = Flow.of(model, tmp_path).run(seen)
    assert list(flow.records()) == ["first", "grouped"]
    assert [len(record.scale_w) for record in flow.records().values()] == [6, 9]
    assert "BatchNormalization" not in operators(flow.deploy)
    assert operators(flow.deploy).count("AscendDequant") == 2
    check_outputs(flow, seen, fresh)
