"""LSTM and GRU through the three functions: factors, both files, and what stays in float."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from flow import CPU, Flow, build, normal, sqnr
from graphs import graphs
from half import to_half
from onnx import TensorProto, helper, numpy_helper
from recurrent import GATES, HIDDEN, INPUT, Feeds, recurrent, sequences
from searching import ErrorEvaluator, Fixed, Search

import amct_onnx as amct
from amct_onnx.errors import ModelError, RecordError
from amct_onnx.files.record import write_record

# 8 bits for X, h, W and R, and a few steps in which the error of h comes back: 40 to 50 dB on noise.
MINIMUM_SQNR_DB = 30.0


def _outputs(flow: Flow, feeds: Feeds) -> list[list[np.ndarray]]:
    """All outputs of the float, the fake-quant and the deploy model."""
    sessions = [ort.InferenceSession(path, providers=CPU) for path in (flow.model, flow.fake_quant)]
    sessions.append(amct.deployed_session(flow.deploy))
    return [session.run(None, dict(feeds)) for session in sessions]


def _check(flow: Flow, seen: Feeds, fresh: Feeds) -> None:
    exact, simulated, _ = _outputs(flow, seen)
    assert all(sqnr(a, b) > MINIMUM_SQNR_DB for a, b in zip(exact, simulated, strict=True))
    for feeds in (seen, fresh):
        _, simulated, deployed = _outputs(flow, feeds)
        for a, b in zip(simulated, deployed, strict=True):
            np.testing.assert_array_equal(a, b)


def _int8_products(path: str) -> int:
    """AscendQuant nodes of a deploy model, those in bodies too."""
    return sum(node.op_type == "AscendQuant" for graph in graphs(onnx.load(path).graph) for node in graph.node)


@pytest.mark.parametrize("op_type", GATES)
@pytest.mark.parametrize("length", ["T", 1, 5])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("states", [True, False], ids=["states", "no_states"])
def test_both_files_compute_the_same_integers(
    tmp_path: Path, op_type: str, length: int | str, batch: int, states: bool
) -> None:
    model = recurrent(op_type, shape=(length, "N", INPUT), states=states)
    size = length if isinstance(length, int) else 5
    seen, fresh = (sequences(model, length=size, batch=batch, seed=seed) for seed in (0, 9))
    flow = Flow.of(model, tmp_path).run(seen)
    _check(flow, seen, fresh)
    assert _int8_products(flow.deploy) == 2
    assert ("Scan" in [node.op_type for node in onnx.load(flow.deploy).graph.node]) == (length != 1)


@pytest.mark.parametrize("op_type", GATES)
def test_the_record_has_factors_for_all_four_tensors(tmp_path: Path, op_type: str) -> None:
    model = recurrent(op_type)
    flow = Flow.of(model, tmp_path).configure().quantize()
    (record,) = flow.records().values()
    assert record.scale_d is record.scale_h is None
    assert record.wts_type == "INT8"
    rows = GATES[op_type] * HIDDEN
    for name, scales, offsets in (("w", record.scale_w, record.offset_w), ("r", record.scale_r, record.offset_r)):
        weight = next(numpy_helper.to_array(t) for t in model.graph.initializer if t.name == name)
        low, high = weight[0].min(axis=1), weight[0].max(axis=1)
        np.testing.assert_allclose(scales, np.where(high >= -low, high / 127, -low / 128), rtol=1e-6)
        assert offsets == (0,) * rows
    flow.calibrate([sequences(model)])
    (record,) = flow.records().values()
    assert record.scale_d is not None
    assert record.scale_h is not None
    assert (record.act_type, record.op_data_type) == ("INT8", "FLOAT32")


@pytest.mark.parametrize("op_type", GATES)
def test_one_scale_a_gate_without_channel_wise(tmp_path: Path, op_type: str) -> None:
    model = recurrent(op_type)
    flow = Flow.of(model, tmp_path).configure()
    document = json.loads(Path(flow.config).read_text())
    assert document["cell"]["weight_quant_params"]["channel_wise"] is True
    document["cell"]["weight_quant_params"]["channel_wise"] = False
    Path(flow.config).write_text(json.dumps(document))
    flow.quantize().calibrate([sequences(model)]).save()
    (record,) = flow.records().values()
    assert len(record.scale_w) == len(record.scale_r) == GATES[op_type]
    r = next(numpy_helper.to_array(t) for t in model.graph.initializer if t.name == "r")
    extremes = np.abs(r.reshape(GATES[op_type], -1)).max(axis=1)
    assert ((extremes / 128.001 < record.scale_r) & (record.scale_r < extremes / 126.999)).all()
    _check(flow, sequences(model), sequences(model, seed=9))


def test_hidden_factors_come_from_the_initial_state_and_from_all_steps(tmp_path: Path) -> None:
    """The recurrent product reads both: a large initial state widens scale_h, and a longer sequence may."""
    model = recurrent("LSTM")

    def scale_h(name: str, feeds: Feeds) -> float:
        flow = Flow.of(model, tmp_path / name).configure().quantize().calibrate([feeds])
        return flow.records()["cell"].scale_h or 0.0

    feeds = sequences(model)
    still = feeds | {"h0": np.zeros_like(feeds["h0"])}
    large = feeds | {"h0": 20 * np.ones_like(feeds["h0"])}
    assert 0 < scale_h("still", still) < 2.6 / 255  # |h_t| < 1, and the search goes to 1.3 of it
    assert scale_h("large", large) > 0.7 * 20 / 255


def test_y_is_observed_where_the_model_does_not_ask_for_it(tmp_path: Path) -> None:
    whole, last = (recurrent("GRU", states=False, outputs=o) for o in (("y", "y_h"), ("", "y_h")))
    flows = [Flow.of(model, tmp_path / name) for model, name in ((whole, "whole"), (last, "last"))]
    for flow in flows:
        flow.run(sequences(whole))
    assert flows[0].records() == flows[1].records()
    _check(flows[1], sequences(last), sequences(last, seed=9))


def test_bits_and_symmetry_of_a_configuration(tmp_path: Path) -> None:
    cfg = tmp_path / "quant.cfg"
    cfg.write_text(
        "override_layer_types : { layer_type : 'LSTM' calibration_config : {"
        " hfmg_quantize : { num_of_bins : 2048 asymmetric : false } arq_quantize : { channel_wise : false } } }"
    )
    model = recurrent("LSTM")
    flow = Flow.of(model, tmp_path).run(sequences(model), config_defination=str(cfg))
    (record,) = flow.records().values()
    assert record.offset_d == record.offset_h == 0
    assert len(record.scale_w) == len(record.scale_r) == 4
    observers = {n.name: n.op_type for n in onnx.load(flow.modified).graph.node if n.domain == "amct.customop"}
    assert observers == {"cell.observer": "HFMG", "cell.observer_initial_h": "HFMG"}
    _check(flow, sequences(model), sequences(model, seed=9))


# Options that change what is calculated


def _edit(flow: Flow, activation: dict[str, Any] | None = None, **changes: Any) -> Flow:
    """Change keys of config.json, and those of the activations of all layers."""
    document = json.loads(Path(flow.config).read_text()) | changes
    for entry in document.values():
        if isinstance(entry, dict) and "activation_quant_params" in entry:
            entry["activation_quant_params"] |= activation or {}
    Path(flow.config).write_text(json.dumps(document))
    return flow


@pytest.mark.parametrize("op_type", GATES)
@pytest.mark.parametrize("length", ["T", 1])
def test_activations_of_16_bits(tmp_path: Path, op_type: str, length: int | str) -> None:
    model = recurrent(op_type, shape=(length, "N", INPUT))
    size = length if isinstance(length, int) else 5
    seen, fresh = (sequences(model, length=size, seed=seed) for seed in (0, 9))
    flow = _edit(Flow.of(model, tmp_path).configure(), {"num_bits": 16}).quantize().calibrate([seen]).save()
    record = flow.records()["cell"]
    assert record.act_type == "INT16"
    assert max(record.scale_d or 1, record.scale_h or 1) < 1e-3  # 8 bits: some hundredths
    _check(flow, seen, fresh)


@pytest.mark.parametrize("op_type", GATES)
def test_force_fp16_quant(tmp_path: Path, op_type: str) -> None:
    model = recurrent(op_type)
    plain = Flow.of(model, tmp_path / "plain").run(sequences(model)).records()["cell"]
    flow = _edit(Flow.of(model, tmp_path / "forced").configure(), fakequant_precision_mode="FORCE_FP16_QUANT")
    flow.quantize().calibrate([sequences(model)]).save()
    forced = flow.records()["cell"]
    for name in ("scale_d", "scale_h"):
        assert getattr(forced, name) == float(np.float16(getattr(plain, name))) != getattr(plain, name)
    _check(flow, sequences(model), sequences(model, seed=9))


def test_joint_quant_joins_the_input_and_leaves_the_states_alone(tmp_path: Path) -> None:
    """relu and neg meet in an Add: GRU and MatMul, which read them, share a factor; h has its own."""
    model = build(
        """g (float[T,N,4] x) => (float[T,1,N,4] y, float[T,N,2] z, float[T,N,4] s) {
            [relu] a = Relu (x)
            [neg] b = Mul (x, c)
            [sum] s = Add (a, b)
            [gru] y = GRU <hidden_size=4, linear_before_reset=1> (a, w, r)
            [matmul] z = MatMul (b, k)
        }""",
        w=normal(1, 1, 12, 4),
        r=normal(2, 1, 12, 4),
        k=normal(3, 4, 2),
        c=np.float32(-2),
    )
    feeds = {"x": normal(0, 5, 3, 4)}
    apart, joint = (
        _edit(Flow.of(model, tmp_path / name).configure(), joint_quant=name == "joint").quantize().calibrate([feeds])
        for name in ("apart", "joint")
    )
    assert apart.records()["gru"].scale_d != apart.records()["matmul"].scale_d
    assert joint.records()["gru"].scale_d == joint.records()["matmul"].scale_d
    assert joint.records()["gru"].scale_h == apart.records()["gru"].scale_h
    joint.save()
    _check(joint, feeds, {"x": normal(9, 2, 1, 4)})


class SecondTrial(ErrorEvaluator):
    """Refuses the first quantized model and takes the second, whatever they are worth."""

    def metric_eval(self, original_metric: float, new_metric: float) -> tuple[bool, float]:
        return self.calls.count("evaluate") != 2, new_metric - original_metric


@pytest.mark.parametrize("outputs", [("y", "y_h", "y_c"), ("", "y_h")], ids=["y", "y_h"])
@pytest.mark.parametrize("half", [False, True], ids=["float32", "float16"])
def test_automatic_calibration_ranks_and_rolls_back(tmp_path: Path, outputs: tuple[str, ...], half: bool) -> None:
    dense = helper.make_node("MatMul", ["y_h", "k"], ["z"], name="matmul")
    model = recurrent("LSTM", states=False, outputs=outputs, nodes=[dense])
    model.graph.initializer.append(numpy_helper.from_array(normal(5, HIDDEN, 2), "k"))
    model.graph.output.insert(0, helper.make_tensor_value_info("z", TensorProto.FLOAT, [1, "N", 2]))
    feeds = sequences(model)
    if half:
        model, feeds = to_half(model), {name: array.astype(np.float16) for name, array in feeds.items()}
    search = Search(tmp_path, model, batch_num=1)
    search.run(SecondTrial([feeds], target=0), strategy=Fixed("matmul"))
    assert sorted(name for name, _ in search.ranking) == ["cell", "matmul"]
    assert all(0.9 < value < 1 for _, value in search.ranking)
    assert search.quantized == ["cell"]
    assert _int8_products(search.deploy) == 2
    sessions = [ort.InferenceSession(search.fake_quant, providers=CPU), amct.deployed_session(search.deploy)]
    for a, b in zip(*(session.run(None, feeds) for session in sessions), strict=True):
        np.testing.assert_array_equal(a, b)


# A small network


def _network() -> onnx.ModelProto:
    """x [T,N,8] -> LSTM of 16 -> GRU of 16 -> its last state -> Gemm -> y [N,6]."""
    return build(
        """g (float[T,N,8] x) => (float[N,6] y, float[1,N,16] h) {
            [lstm] s, h = LSTM <hidden_size=16> (x, w, r, b)
            [squeeze] q = Squeeze (s, one)
            [gru] , last = GRU <hidden_size=16, linear_before_reset=1> (q, v, u, a)
            [flat] f = Squeeze (last, zero)
            [gemm] y = Gemm (f, k, c)
        }""",
        w=normal(1, 1, 64, 8, scale=0.4),
        r=normal(2, 1, 64, 16, scale=0.3),
        b=normal(3, 1, 128, scale=0.2),
        v=normal(4, 1, 48, 16, scale=0.4),
        u=normal(5, 1, 48, 16, scale=0.3),
        a=normal(6, 1, 96, scale=0.2),
        k=normal(7, 16, 6),
        c=normal(8, 6),
        one=np.array([1], np.int64),
        zero=np.array([0], np.int64),
    )


def test_a_network_of_recurrent_layers(tmp_path: Path) -> None:
    """Calibrated on several batches of several lengths, run on others."""
    batches = [{"x": normal(seed, length, 3, 8)} for seed, length in ((0, 5), (1, 9), (2, 1))]
    flow = Flow.of(_network(), tmp_path).run(*batches)
    assert list(flow.records()) == ["lstm", "gru", "gemm"]
    for batch in (*batches, {"x": normal(3, 7, 1, 8)}):
        _check(flow, batch, batch)


def test_the_same_values_give_the_same_files(tmp_path: Path) -> None:
    flows = [Flow.of(_network(), tmp_path / name).run({"x": normal(0, 5, 3, 8)}) for name in "ab"]
    for path in ("deploy", "fake_quant"):
        first, second = (Path(getattr(flow, path)).read_bytes() for flow in flows)
        assert first == second
    assert flows[0].records() == flows[1].records()


def test_quant_json_names_the_original_layer(tmp_path: Path) -> None:
    Flow.of(_network(), tmp_path).run({"x": normal(0, 5, 3, 8)})
    document = json.loads((tmp_path / "model_quant.json").read_text())
    entries = {entry["name"]: entry for entry in document["graph"][0]["op"]}

    def originals(name: str) -> list[str]:
        attributes = {a["key"]: a["value"] for a in entries[name].get("attr", [])}
        names: list[str] = attributes["_datadump_original_op_names"]["list"]["s"]
        return names

    inner = ["lstm.input", "lstm.input.quant", "lstm.input.dequant", "lstm.scan", "lstm.sequence"]
    inner += ["lstm.recurrence", "lstm.recurrence.quant", "lstm.recurrence.dequant", "lstm.c"]  # in the body
    assert {name: originals(name) for name in inner} == {name: ["lstm"] for name in inner}
    assert originals("gru.recurrence") == ["gru"]
    producing = {
        name: {a["key"]: a["value"] for a in entry["output_desc"][0]["attr"]}["_datadump_origin_name"]["s"]
        for name, entry in entries.items()
        if "output_desc" in entry
    }
    assert producing == {"lstm.scan": "lstm", "gru.scan": "gru", "gemm.dequant": "gemm"}
    assert originals("gemm.quant") == ["gemm"]


# Awkward models


def test_two_layers_that_share_their_weights(tmp_path: Path) -> None:
    model = build(
        """g (float[T,N,4] x) => (float[T,1,N,4] y) {
            [first] s = GRU <hidden_size=4, linear_before_reset=1> (x, w, r)
            [squeeze] q = Squeeze (s, one)
            [second] y = GRU <hidden_size=4, linear_before_reset=1> (q, w, r)
        }""",
        w=normal(1, 1, 12, 4),
        r=normal(2, 1, 12, 4),
        one=np.array([1], np.int64),
    )
    flow = Flow.of(model, tmp_path).run({"x": normal(0, 5, 3, 4)})
    first, second = flow.records().values()
    assert (first.scale_w, first.scale_r) == (second.scale_w, second.scale_r)
    assert first.scale_d != second.scale_d
    _check(flow, {"x": normal(0, 5, 3, 4)}, {"x": normal(1, 2, 1, 4)})


def test_weights_behind_constants_casts_and_transpositions(tmp_path: Path) -> None:
    plain = recurrent("LSTM", states=False)
    arrays = {t.name: numpy_helper.to_array(t) for t in plain.graph.initializer}
    hidden = onnx.ModelProto()
    hidden.CopyFrom(plain)
    del hidden.graph.initializer[:]
    doubles = numpy_helper.from_array(arrays["r"].astype(np.float64), "r64")
    turned = numpy_helper.from_array(np.ascontiguousarray(arrays["w"].transpose(0, 2, 1)), "w_turned")
    hidden.graph.initializer.extend([doubles, turned])
    for node in (
        helper.make_node("Transpose", ["w_turned"], ["w"], perm=[0, 2, 1], name="turn"),
        helper.make_node("Cast", ["r64"], ["r"], to=TensorProto.FLOAT, name="cast"),
        helper.make_node("Constant", [], ["b"], value=numpy_helper.from_array(arrays["b"]), name="bias"),
    ):
        hidden.graph.node.insert(0, node)
    flows = [Flow.of(model, tmp_path / name) for model, name in ((plain, "plain"), (hidden, "hidden"))]
    for flow in flows:
        flow.run(sequences(plain))
    assert flows[0].records() == flows[1].records()
    for kind in ("run_fake_quant", "run_deploy"):
        np.testing.assert_array_equal(*(getattr(flow, kind)(sequences(plain, seed=9)) for flow in flows))


@pytest.mark.parametrize("opset", [11, 13, 18])
def test_old_and_new_opsets(tmp_path: Path, opset: int) -> None:
    model = recurrent("LSTM", opset=opset)
    flow = Flow.of(model, tmp_path).run(sequences(model))
    _check(flow, sequences(model), sequences(model, seed=9))


def test_a_tensor_that_a_recurrent_and_another_layer_read_is_observed_once(tmp_path: Path) -> None:
    model = build(
        """g (float[T,N,4] x) => (float[T,1,N,4] y, float[T,N,2] z) {
            [gru] y = GRU <hidden_size=4, linear_before_reset=1> (x, w, r)
            [matmul] z = MatMul (x, k)
        }""",
        w=normal(1, 1, 12, 4),
        r=normal(2, 1, 12, 4),
        k=normal(3, 4, 2),
    )
    flow = Flow.of(model, tmp_path).run({"x": normal(0, 5, 3, 4)})
    observers = [n.name for n in onnx.load(flow.modified).graph.node if n.domain == "amct.customop"]
    assert sorted(observers) == ["gru.observer", "gru.observer_initial_h"]
    records = flow.records()
    assert records["gru"].scale_d == records["matmul"].scale_d
    _check(flow, {"x": normal(0, 5, 3, 4)}, {"x": normal(1, 2, 1, 4)})


def test_a_layer_that_is_switched_off_stays(tmp_path: Path) -> None:
    flow = Flow.of(_network(), tmp_path).run({"x": normal(0, 5, 3, 8)}, skip_layers=["lstm"])
    assert list(flow.records()) == ["gru", "gemm"]
    assert "LSTM" in [node.op_type for node in onnx.load(flow.deploy).graph.node]
    _check(flow, {"x": normal(0, 5, 3, 8)}, {"x": normal(1, 2, 1, 8)})


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"direction": "bidirectional"}, "its direction is bidirectional"),
        ({"clip": 3.0}, "it has the attribute clip"),
        ({"activations": ["Sigmoid", "Relu"]}, "its activations are not the default ones"),
        ({"linear_before_reset": 0}, "its linear_before_reset is not 1"),
        ({"layout": 1}, "its layout is not 0"),
    ],
)
def test_a_layer_that_cannot_be_quantized_stays_with_a_reason(
    tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        Flow.of(recurrent("GRU", **change), tmp_path).configure()


@pytest.mark.parametrize(
    ("inputs", "attributes", "reason"),
    [
        ("x, w, r, b, n", "", "it has an input sequence_lens"),
        ("x, w, r, b, none, none, none, p", "", "it has peepholes"),
        ("x, w, r, b", ", input_forget=1", "it couples its input and forget gates"),
        ("x, v, r, b", "", "its weight is computed at run time"),
        ("x, w, r, a", "", "its bias is computed at run time"),
        ("x, w2, r2, b2", ', direction="bidirectional"', "its direction is bidirectional"),
    ],
)
def test_an_lstm_of_another_kind_stays_as_it_is_and_the_log_says_why(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, inputs: str, attributes: str, reason: str
) -> None:
    """Beside a layer that is quantized: the LSTM is in both files as it was, and computes what it did."""
    arrays = {
        "w": normal(1, 1, 16, 3),
        "r": normal(2, 1, 16, 4),
        "b": normal(3, 1, 32),
        "n": np.array([5, 3, 1], np.int32),
        "p": normal(4, 1, 12),
        "w2": normal(5, 2, 16, 3),
        "r2": normal(6, 2, 16, 4),
        "b2": normal(7, 2, 32),
        "k": normal(8, 3, 2),
    }
    used = {name: array for name, array in arrays.items() if name in {*inputs.split(", "), "k"}}
    computed = {"v": "v = Relu (w0)", "a": "a = Relu (b0)"}
    used |= {"w0": arrays["w"]} if "v" in inputs else {}
    used |= {"b0": arrays["b"]} if inputs.endswith("a") else {}
    nodes = " ".join(text for name, text in computed.items() if name in inputs.split(", "))
    model = build(
        f"""g (float[5,3,3] x) => (float[5,D,3,4] y, float[5,3,2] z) {{
            {nodes}
            [lstm] y = LSTM <hidden_size=4{attributes}> ({inputs})
            [matmul] z = MatMul (x, k)
        }}""",
        **used,
    )
    for node in model.graph.node:
        node.input[:] = ["" if name == "none" else name for name in node.input]
    flow = Flow.of(model, tmp_path).run({"x": normal(0, 5, 3, 3)})
    assert f"1 of 2 layers cannot be quantized, and stay in float: lstm: {reason}" in caplog.text
    assert list(flow.records()) == ["matmul"]
    exact, simulated, deployed = _outputs(flow, {"x": normal(9, 5, 3, 3)})
    np.testing.assert_array_equal(exact[0], simulated[0])
    np.testing.assert_array_equal(exact[0], deployed[0])


@pytest.mark.parametrize("wanted", ["nuq_quantize : { num_steps : 16 }", "ada_quantize : { }"])
def test_weights_that_a_recurrent_layer_cannot_have_are_refused(tmp_path: Path, wanted: str) -> None:
    cfg = tmp_path / "quant.cfg"
    cfg.write_text(f"override_layer_configs : {{ layer_name : 'cell' calibration_config : {{ {wanted} }} }}")
    with pytest.raises(ValueError, match="cell"):
        Flow.of(recurrent("GRU"), tmp_path).configure(config_defination=str(cfg))


def test_a_layer_in_a_subgraph_stays_with_a_reason(tmp_path: Path) -> None:
    model = build(
        """g (bool c, float[T,N,4] x) => (float[T,1,N,4] y) {
            y = If (c) <
                then_branch = t () => (float[T,1,N,4] a) {
                    [gru] a = GRU <hidden_size=4, linear_before_reset=1> (x, w, r)
                },
                else_branch = e () => (float[T,1,N,4] b) { b = Unsqueeze (x, one) }
            >
        }""",
        w=normal(1, 1, 12, 4),
        r=normal(2, 1, 12, 4),
        one=np.array([1], np.int64),
    )
    with pytest.raises(ValueError, match="gru: it is inside a subgraph"):
        Flow.of(model, tmp_path).configure()


# Mistakes


@pytest.mark.parametrize("field", ["scale_h", "scale_r"])
def test_a_record_without_factors_of_the_recurrence_is_refused(tmp_path: Path, field: str) -> None:
    model = recurrent("LSTM")
    flow = Flow.of(model, tmp_path).configure().quantize().calibrate([sequences(model)])
    text = [line for line in Path(flow.record).read_text().splitlines() if not line.strip().startswith(f"{field}:")]
    text = [line for line in text if field != "scale_r" or not line.strip().startswith("offset_r:")]
    Path(flow.record).write_text("\n".join(text) + "\n")
    with pytest.raises(RecordError, match=f"cannot find {field} of layer cell"):
        flow.save()


@pytest.mark.parametrize("field", ["scale_w", "scale_r"])
def test_scales_that_do_not_fit_the_weights_are_refused(tmp_path: Path, field: str) -> None:
    model = recurrent("GRU")
    flow = Flow.of(model, tmp_path).configure().quantize().calibrate([sequences(model)])
    (record,) = flow.records().values()
    write_record(flow.record, {"cell": replace(record, **{field: tuple(1.1 * s for s in getattr(record, field))})})
    with pytest.raises(RecordError, match=f"{field} of layer cell does not fit the weights"):
        flow.save()


def test_what_calibration_lacks_is_said_of_the_hidden_states_too(tmp_path: Path) -> None:
    model = recurrent("LSTM")
    flow = Flow.of(model, tmp_path).configure(batch_num=2).quantize().calibrate([sequences(model)])
    with pytest.raises(RecordError, match=r"1 of 2 batches have run.*waiting for 1 more: cell"):
        flow.save()


def test_a_bias_that_leaves_int32_names_the_users_layer(tmp_path: Path) -> None:
    model = recurrent("LSTM", states=False)
    bias = next(t for t in model.graph.initializer if t.name == "b")
    bias.CopyFrom(numpy_helper.from_array(np.full((1, 32), 1e9, np.float32), "b"))
    flow = Flow.of(model, tmp_path).configure().quantize().calibrate([sequences(model)])
    with pytest.raises(ModelError, match='Quantized bias of layer "cell" exceed int32'):
        flow.save()


@pytest.mark.parametrize("name", ["w", "r", "b"])
def test_constants_that_are_not_finite_are_refused(tmp_path: Path, name: str) -> None:
    model = recurrent("LSTM")
    tensor = next(t for t in model.graph.initializer if t.name == name)
    array = numpy_helper.to_array(tensor).copy()
    array.flat[0] = np.nan
    tensor.CopyFrom(numpy_helper.from_array(array, name))
    with pytest.raises(ModelError, match=r'Layer "cell": the .* holds NaN or Inf'):
        Flow.of(model, tmp_path).configure().quantize()
