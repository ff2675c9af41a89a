"""The whole flow on the golden cases: configuration, record, deploy graph, outputs."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from flow import CPU, Flow, sqnr
from onnx import helper, numpy_helper

import amct_onnx as amct
from amct_onnx.files.record import read_record
from amct_onnx.numerics.packing import pack_dequant, unpack_dequant
from amct_onnx.values.layers import LayerRecord

CASES = ("dmq", "hfmg", "ifmr_asymmetric", "ifmr_symmetric", "inverted", "mlp", "overrides", "vol")
LAYER_OPS = ("Conv", "ConvTranspose", "Gemm", "MatMul", "AveragePool")

FLOAT32_ROUNDING = 2.5e-7  # two float32 roundings
ONE_SEARCH_STEP = 0.015
HFMG_TOLERANCE = 0.02
LOSS_TOLERANCE = 0.005
# A neighbouring scale moves the grid, so the two simulations differ by about the noise of one (30 to 44 dB to float).
MINIMUM_SQNR_TO_REFERENCE_DB = 35.0
MAXIMUM_LOSS_TO_REFERENCE_DB = 1.5
MINIMUM_SQNR_DEPLOY_DB = 60.0
# With the same record only the fusions of the runtime that computed the stored output remain (139 dB for `vol`).
MINIMUM_SQNR_SAME_RECORD_DB = 120.0


@dataclass
class Case:
    """A golden case and what our flow made of it."""

    golden: Path
    flow: Flow

    @cached_property
    def settings(self) -> dict[str, Any]:
        settings: dict[str, Any] = json.loads((self.golden / "config.json").read_text())
        return settings

    @cached_property
    def batches(self) -> np.ndarray:
        return np.load(self.golden / "calibration.npy")

    @cached_property
    def expected(self) -> dict[str, np.ndarray]:
        return dict(np.load(self.golden / "expected_output.npz"))

    @property
    def feeds(self) -> dict[str, np.ndarray]:
        return {"input": self.expected["input"]}

    @cached_property
    def reference_records(self) -> dict[str, LayerRecord]:
        return read_record(self.golden / "record.txt")

    @cached_property
    def records(self) -> dict[str, LayerRecord]:
        return self.flow.records()

    def configure(self) -> None:
        if (self.golden / "quant.cfg").exists():
            self.flow.configure(config_defination=str(self.golden / "quant.cfg"))
        else:
            chosen = {key: self.settings[key] for key in ("batch_num", "activation_offset")}
            self.flow.configure(**chosen)

    @cached_property
    def layer_inputs(self) -> dict[str, np.ndarray]:
        """What calibration saw: all batches of each layer's input, from our calibration model without observers."""
        model = onnx.load(self.flow.modified)
        nodes = [node for node in model.graph.node if node.domain != "amct.customop"]
        del model.graph.node[:]
        model.graph.node.extend(nodes)
        reads = {node.name: node.input[0] for node in nodes if node.name in self.records}
        present = {value.name for value in model.graph.output}
        model.graph.output.extend(helper.make_empty_tensor_value_info(n) for n in {*reads.values()} - present)
        session = ort.InferenceSession(model.SerializeToString(), providers=CPU)
        names = list(dict.fromkeys(reads.values()))
        runs = [session.run(names, {"input": batch}) for batch in self.batches]
        tensors = {name: np.concatenate([run[i].ravel() for run in runs]) for i, name in enumerate(names)}
        return {layer: tensors[tensor] for layer, tensor in reads.items()}


_done: dict[str, Case] = {}


@pytest.fixture(params=CASES)
def case(
    request: pytest.FixtureRequest, test_data: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Case:
    """One flow a case, shared by the tests of this module."""
    name: str = request.param
    if name not in _done:
        golden = test_data("golden", name)
        made = Case(golden, Flow(str(golden / "model.onnx"), tmp_path_factory.mktemp(name)))
        made.configure()
        if "dmq_balancer_param" in (golden / "config.json").read_text():
            made.flow.balance([{"input": made.batches[0]}])  # the reference saw the first batch only
        made.flow.quantize().calibrate({"input": batch} for batch in made.batches).save()
        _done[name] = made
    return _done[name]


# Configuration and record


def test_the_configuration_is_the_same_byte_for_byte(case: Case) -> None:
    assert Path(case.flow.config).read_bytes() == (case.golden / "config.json").read_bytes()


def test_the_record_has_the_same_layers_in_the_same_order_with_the_same_types(case: Case) -> None:
    assert list(case.records) == list(case.reference_records)
    for layer, reference in case.reference_records.items():
        mine = case.records[layer]
        assert (mine.act_type, mine.offset_w) == (reference.act_type, reference.offset_w), layer


def test_weight_scales_agree_up_to_float32_rounding(case: Case) -> None:
    for layer, reference in case.reference_records.items():
        np.testing.assert_allclose(case.records[layer].scale_w, reference.scale_w, rtol=FLOAT32_ROUNDING, err_msg=layer)


def test_balance_factors_agree_up_to_float32_rounding(case: Case) -> None:
    mine, reference = graphs(case)
    for layer, record in case.reference_records.items():
        factors = case.records[layer].tensor_balance_factor
        np.testing.assert_allclose(factors, record.tensor_balance_factor, rtol=FLOAT32_ROUNDING, err_msg=layer)
        balanced = "dmq_balancer_param" in case.settings[layer]
        assert bool(factors) == balanced, layer
        named = [node for node in mine.model.graph.node if node.name == f"{layer}.mul"]
        assert len(named) == balanced
        for node in named:
            assert node.input[1] == f"{layer}.tensor_balance_factor"
            wanted = reference.constants[f"{layer}.tensor_balance_factor.output0"]
            assert mine.constants[node.input[1]].shape == wanted.shape
            np.testing.assert_allclose(mine.constants[node.input[1]], wanted, rtol=FLOAT32_ROUNDING, err_msg=layer)


def test_activation_scales_are_within_one_search_step(case: Case) -> None:
    for layer, reference in case.reference_records.items():
        mine = case.records[layer]
        algorithm = case.settings[layer]["activation_quant_params"]["act_algo"]
        tolerance = HFMG_TOLERANCE if algorithm == "hfmg" else ONE_SEARCH_STEP
        np.testing.assert_allclose(scale(mine), scale(reference), rtol=tolerance, err_msg=layer)
        # The zero point is the lower bound in units of the scale: the same share of it, and one for the rounding.
        reach = 1 + tolerance * (offset(reference) + 128)
        assert abs(offset(mine) - offset(reference)) <= reach, layer


def test_the_loss_of_each_ifmr_scale_is_no_worse_than_that_of_the_recorded_one(case: Case) -> None:
    checked = 0
    for layer, reference in case.reference_records.items():
        params = case.settings[layer]["activation_quant_params"]
        if params["act_algo"] == "ifmr":
            x = case.layer_inputs[layer].astype(np.float64)
            mine, theirs = (ifmr_loss(x, scale(record), params) for record in (case.records[layer], reference))
            assert mine <= theirs * (1 + LOSS_TOLERANCE), f"{layer}: {mine} > {theirs}"
            checked += 1
    assert checked == sum(
        case.settings[layer]["activation_quant_params"]["act_algo"] == "ifmr" for layer in case.reference_records
    )


def scale(record: LayerRecord) -> float:
    assert record.scale_d is not None
    return record.scale_d


def offset(record: LayerRecord) -> int:
    assert record.offset_d is not None
    return record.offset_d


def ifmr_loss(x: np.ndarray, scale_d: float, params: dict[str, Any]) -> float:
    """Mean squared error of all values (amct_formats.md: IFMR) at the upper bound that a scale stands for."""
    ordered = np.sort(x)
    k_max, k_min = (
        max(1, x.size - math.floor(params[f"{side}_percentile"] * x.size)) if params[f"{side}_percentile"] < 1 else 1
        for side in ("max", "min")
    )
    high, low = max(0.0, ordered[-k_max]), min(0.0, ordered[k_min - 1])
    if params["asymmetric"]:
        bottom, top = low, scale_d * 255 + low
    else:
        top = scale_d * (127 if high > -low else 128)
        bottom = -top
    y = np.round(np.clip(x, bottom, top) / scale_d) * scale_d
    return float(np.mean((y - x) ** 2))


# Deploy graph


@dataclass
class Graph:
    """A deploy graph as its nodes see it; names of tensors, and of nodes that are no layer, do not matter."""

    model: onnx.ModelProto

    @cached_property
    def nodes(self) -> dict[str, onnx.NodeProto]:
        """Nodes by a key that both tools share: the name of layers and Ascend operators, `Relu#2` for the others."""
        keyed: dict[str, onnx.NodeProto] = {}
        counts: dict[str, int] = {}
        for node in self.model.graph.node:
            if node.op_type == "Constant":
                continue
            number = counts[node.op_type] = counts.get(node.op_type, 0) + 1
            named = node.op_type.startswith("Ascend") or node.op_type in LAYER_OPS
            keyed[node.name if named else f"{node.op_type}#{number}"] = node
        return keyed

    @cached_property
    def constants(self) -> dict[str, np.ndarray]:
        arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in self.model.graph.initializer}
        for node in self.model.graph.node:
            if node.op_type == "Constant":
                arrays[node.output[0]] = numpy_helper.to_array(helper.get_attribute_value(node.attribute[0]))
        return arrays

    def edges(self) -> dict[str, tuple[str, ...]]:
        """For each node, who produces each of its inputs."""
        producers = {output: key for key, node in self.nodes.items() for output in node.output}
        producers |= dict.fromkeys(self.constants, "constant") | {v.name: "input" for v in self.model.graph.input}
        return {key: tuple(producers[name] for name in node.input) for key, node in self.nodes.items()}

    def attributes(self, key: str) -> dict[str, Any]:
        """Attributes that differ from the operator's defaults."""
        node = self.nodes[key]
        found = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        if node.op_type.startswith("Ascend"):
            return found
        schema = onnx.defs.get_schema(node.op_type, 11)
        defaults = {
            n: helper.get_attribute_value(a.default_value) for n, a in schema.attributes.items() if a.default_value.name
        }
        return {name: value for name, value in found.items() if defaults.get(name) != value}

    def constant(self, key: str, index: int) -> np.ndarray | None:
        node = self.nodes[key]
        return self.constants[node.input[index]] if index < len(node.input) else None


def graphs(case: Case, deploy: str | None = None) -> tuple[Graph, Graph]:
    return Graph(onnx.load(deploy or case.flow.deploy)), Graph(onnx.load(case.golden / "deploy_model.onnx"))


def test_the_deploy_graph_has_the_same_operators_in_the_same_order(case: Case) -> None:
    mine, reference = graphs(case)
    # An AscendQuant stands behind its producer there and before its first reader here: its place is in the edges.
    order = [[key for key, node in g.nodes.items() if node.op_type != "AscendQuant"] for g in (mine, reference)]
    assert order[0] == order[1]
    assert all(node.domain == "" for node in mine.nodes.values())


def test_the_deploy_graph_is_wired_the_same_way(case: Case) -> None:
    mine, reference = (g.edges() for g in graphs(case))
    quants = [{edges for key, edges in g.items() if key.endswith(".quant")} for g in (mine, reference)]
    assert quants[0] == quants[1]  # one AscendQuant for each quantized tensor, shared or not
    assert merged(mine) == merged(reference)


def merged(edges: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """Edges of everything but AscendQuant, which goes by the tensor that it reads and the layers that it feeds.

    Of several layers with equal factors any may have given the AscendQuant its name.
    """
    readers: dict[str, list[str]] = {}
    for key, inputs in edges.items():
        for name in inputs:
            if name.endswith(".quant"):
                readers.setdefault(name, []).append(key)
    names = {q: f"quant({edges[q][0]} for {sorted(keys)})" for q, keys in readers.items()}
    return {k: tuple(names.get(i, i) for i in inputs) for k, inputs in edges.items() if not k.endswith(".quant")}


def test_attributes_are_the_same(case: Case) -> None:
    mine, reference = graphs(case)
    for key, node in reference.nodes.items():
        if node.op_type == "AscendQuant":
            assert set(mine.attributes(key)) == set(reference.attributes(key)) == {"scale", "offset", "dst_type"}
            assert mine.attributes(key)["dst_type"] == reference.attributes(key)["dst_type"]
            record = case.records[key.removesuffix(".quant")]
            assert mine.attributes(key)["scale"] == np.float32(1) / np.float32(scale(record))
            assert mine.attributes(key)["offset"] == offset(record)
        else:
            assert mine.attributes(key) == reference.attributes(key), key


def test_int8_weights_are_the_same(case: Case) -> None:
    mine, reference = graphs(case)
    weighted = [layer for layer in case.records if mine.nodes[layer].op_type != "AveragePool"]
    assert weighted
    for layer in weighted:
        got, wanted = mine.constant(layer, 1), reference.constant(layer, 1)
        assert got is not None
        assert got.dtype == np.int8
        np.testing.assert_array_equal(got, wanted, err_msg=layer)


def test_int32_biases_differ_by_what_the_scales_explain(case: Case) -> None:
    mine, reference = graphs(case)
    for layer, record in case.records.items():
        got, wanted = mine.constant(layer, 2), reference.constant(layer, 2)
        assert (got is None) == (wanted is None), layer
        if got is None or wanted is None:
            continue
        assert got.dtype == wanted.dtype == np.int32
        steps = [np.asarray(r.scale_w) * scale(r) for r in (record, case.reference_records[layer])]
        floats = [got * steps[0], wanted * steps[1]]
        rounding = 0.5 * (steps[0] + steps[1]) + 1e-6 * np.abs(floats[1])
        assert (np.abs(floats[0] - floats[1]) <= rounding).all(), layer


def test_dequantization_parameters_hold_the_product_of_the_scales(case: Case) -> None:
    mine, reference = graphs(case)
    for layer, record in case.records.items():
        got, wanted = mine.constant(f"{layer}.dequant", 1), reference.constant(f"{layer}.dequant", 1)
        assert got is not None
        assert wanted is not None
        assert (got.dtype, got.shape) == (wanted.dtype, wanted.shape), layer
        product = np.float32(scale(record)) * np.asarray(record.scale_w, np.float32)
        np.testing.assert_array_equal(got, pack_dequant(product), err_msg=layer)
        ratio = scale(record) / scale(case.reference_records[layer])
        theirs = unpack_dequant(wanted).scale * ratio
        np.testing.assert_allclose(unpack_dequant(got).scale, theirs, rtol=4 * FLOAT32_ROUNDING, err_msg=layer)


# Outputs


def test_the_simulation_is_as_close_to_float_as_the_reference(case: Case) -> None:
    got = case.flow.run_fake_quant(case.feeds)
    assert sqnr(case.expected["fake_quant"], got) > MINIMUM_SQNR_TO_REFERENCE_DB
    reference = sqnr(case.expected["float"], case.expected["fake_quant"])
    assert sqnr(case.expected["float"], got) > reference - MAXIMUM_LOSS_TO_REFERENCE_DB


def test_the_deploy_model_computes_what_is_simulated(case: Case) -> None:
    got, wanted = case.flow.run_deploy(case.feeds), case.flow.run_fake_quant(case.feeds)
    assert sqnr(wanted, got) > MINIMUM_SQNR_DEPLOY_DB


def test_the_references_own_record_gives_the_references_models(case: Case, tmp_path: Path) -> None:
    amct.save_model(case.flow.modified, str(case.golden / "record.txt"), str(tmp_path / "same"))
    session = ort.InferenceSession(str(tmp_path / "same_fake_quant_model.onnx"), providers=CPU)
    got = session.run(None, case.feeds)[0]
    assert sqnr(case.expected["fake_quant"], got) > MINIMUM_SQNR_SAME_RECORD_DB
    mine, reference = graphs(case, str(tmp_path / "same_deploy_model.onnx"))
    for layer in case.reference_records:
        np.testing.assert_array_equal(mine.constant(layer, 1), reference.constant(layer, 1), err_msg=layer)
        bias = reference.constant(layer, 2)
        if bias is not None:  # the sum of a fused bias may round to the neighbour
            np.testing.assert_allclose(mine.constant(layer, 2), bias, rtol=0, atol=1, err_msg=layer)
