"""Decide what Ascend quantizes of a model: which layers, which tensors are observed, and which share their factors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import onnx_ir as ir

from amct_onnx.errors import ConfigError, ModelError, listed
from amct_onnx.graph.access import input_of, name_of
from amct_onnx.graph.index import GraphIndex, index_graph
from amct_onnx.graph.joint_tensors import joined_tensors
from amct_onnx.graph.layers import candidates, is_product, tensor_reason
from amct_onnx.graph.passes.fusion import fusable_nodes
from amct_onnx.graph.recurrent import RECURRENT_OPS
from amct_onnx.numerics.settings import ActivationSettings, LayerSettings, Settings, TensorSettings
from amct_onnx.values.ascend_table import ASCEND
from amct_onnx.values.layers import Decision, GraphFacts, LayerTraits, ObservedTensor, QuantPlan


def graph_facts(model: ir.Model) -> GraphFacts:
    """What the graph says of each node and layer, and what Ascend says of each layer; all nodes have names."""
    layers = {traits.name: ASCEND.judge(traits) for traits in candidates(model)}
    nodes = {name_of(node): node.op_type for node in model.graph.all_nodes()}
    return GraphFacts(nodes=nodes, layers=layers, fusable=fusable_nodes(model))


def decide_layers(facts: GraphFacts, settings: Settings) -> tuple[Decision, ...]:
    """`layer_decisions`; raises ModelError (AMCT's text, amct_formats.md: quantize_model) where none is to quantize."""
    decisions = layer_decisions(facts, settings)
    if not any(decision.quantized for decision in decisions) and not settings.tensor_quantize:
        left = [f"{d.layer}: {d.reason}" for d in decisions if facts.layers[d.layer].reason is not None]
        raise ModelError(
            "No quant enable layer in quant config file, please check the quant config file: "
            "set quant_enable to true for at least one layer."
            + (f" These cannot be quantized: {listed(left, 3, '; ')}." if left else "")
        )
    return decisions


def layer_decisions(facts: GraphFacts, settings: Settings) -> tuple[Decision, ...]:
    """Whether each layer that could be quantized is, and why where it is not; in graph order.

    Raises ConfigError when the settings ask for what this version cannot do.
    """
    _refuse_unsupported(settings)
    return tuple(_decide(traits, settings.layers.get(name)) for name, traits in facts.layers.items())


def _decide(traits: LayerTraits, settings: LayerSettings | None) -> Decision:
    if traits.reason is not None:
        return Decision(layer=traits.name, quantized=False, reason=traits.reason)
    if settings is None or not settings.quant_enable:
        return Decision(layer=traits.name, quantized=False, reason="quant_enable is false in the configuration")
    return Decision(layer=traits.name, quantized=True)


def plan_ascend(model: ir.Model, decisions: Sequence[Decision], settings: Settings) -> QuantPlan:
    """The plan of a model whose quantized layers are normalized (`normalize_layers`).

    Layers that read one tensor with the same settings share an observer, and with it their factors.
    """
    chosen = {d.layer: settings.layers[d.layer] for d in decisions if d.quantized}
    tensors = {tensor.key: tensor for tensor in settings.tensor_quantize}
    index, notes = index_graph(model), _lost_digits(settings)
    observed = _observed_tensors(index, chosen, tensors)
    if settings.joint_quant:
        observed, apart = _join_branches(index, joined_tensors(model), observed)
        notes += apart
    return QuantPlan(
        decisions=tuple(decisions),
        observed=observed,
        settings=chosen,
        tensors=tensors,
        notes=notes,
    )


def _observed_tensors(
    index: GraphIndex, layers: Mapping[str, LayerSettings], tensors: Mapping[str, TensorSettings]
) -> tuple[ObservedTensor, ...]:
    """What is read as data by layers and by quantized tensors, then the second operands and the hidden states."""
    data = [(name, name, 0, entry.activation) for name, entry in layers.items()]
    data += [(key, tensor.layer_name, tensor.input_index, tensor.activation) for key, tensor in tensors.items()]
    first: dict[tuple[ir.Value, ActivationSettings], ObservedTensor] = {}
    for key, node, number, activation in sorted(data, key=lambda reader: index.positions[reader[1]]):
        value = input_of(index.nodes[node], number)
        new = ObservedTensor(keys=(key,), node=node, input_index=number, activation=activation)
        old = first.get((value, activation))
        first[value, activation] = new if old is None else replace(old, keys=(*old.keys, key))
    observed = list(first.values())
    for layer in sorted(layers, key=lambda name: index.positions[name]):
        more = ObservedTensor(keys=(layer,), node=layer, input_index=0, activation=layers[layer].activation)
        if is_product(index.nodes[layer]):
            observed.append(replace(more, input_index=1, stamp="weight"))
        if index.nodes[layer].op_type in RECURRENT_OPS:
            observed.append(replace(more, stamp="initial_h"))
    return tuple(observed)


def _join_branches(
    index: GraphIndex, sets: Mapping[ir.Value, ir.Value], observed: Sequence[ObservedTensor]
) -> tuple[tuple[ObservedTensor, ...], tuple[str, ...]]:
    """`observed` with a joint group for those of one set of `joined_tensors`, and what a user should know of it."""
    members: dict[ir.Value, list[ObservedTensor]] = {}
    for tensor in observed:
        value = input_of(index.nodes[tensor.node], tensor.input_index)
        if value in sets and tensor.stamp != "initial_h":
            members.setdefault(sets[value], []).append(tensor)
    joined: dict[ObservedTensor, ObservedTensor] = {}
    notes = []
    for tensors in members.values():
        if len({tensor.activation for tensor in tensors}) > 1:
            names = ", ".join(tensor.keys[0] for tensor in tensors)
            notes.append(f"joint_quant: {names} meet in an Add, and keep factors of their own where settings differ.")
        for tensor in tensors:
            alike = [other for other in tensors if other.activation == tensor.activation]
            if len(alike) > 1:
                joined[tensor] = replace(tensor, joint=f"{alike[0].node}:{alike[0].input_index}")
    return tuple(joined.get(tensor, tensor) for tensor in observed), tuple(notes)


def check_tensors(model: ir.Model, facts: GraphFacts, settings: Settings) -> None:
    """Refuse `tensor_quantize` entries whose input cannot be quantized: ConfigError with all of them."""
    nodes = index_graph(model, subgraphs=True).nodes
    wrong = []
    for tensor in settings.tensor_quantize:
        reason = tensor_reason(nodes[tensor.layer_name], tensor.input_index, model.graph)
        if reason is None and tensor.key in facts.layers:
            reason = "a layer of the model has the name of its record; rename one of the two nodes"
        if reason is not None:
            wrong.append(f"{tensor.key}: {reason}")
    if wrong:
        text = "tensor_quantize names inputs that cannot be quantized, remove the entries"
        raise ConfigError(f"{text}: {'; '.join(wrong)}.")


def refuse_fused_tensors(model: ir.Model, settings: Settings) -> None:
    """Refuse `tensor_quantize` entries whose node is not in the fused model any more: ConfigError with all of them."""
    left = index_graph(model).nodes
    fused = [tensor.key for tensor in settings.tensor_quantize if tensor.layer_name not in left]
    if fused:
        raise ConfigError(
            f"tensor_quantize names nodes that are fused into a BatchNormalization: {', '.join(fused)}. Remove the "
            "entries, or name the BatchNormalization or its convolution in skip_fusion_layers."
        )


def _lost_digits(settings: Settings) -> tuple[str, ...]:
    """What to tell of layers whose 16 bits a chip that rounds to float16 does not keep."""
    wide = [name for name, layer in settings.layers.items() if layer.quant_enable and layer.activation.num_bits == 16]
    if not wide or settings.fakequant_precision_mode != "FORCE_FP16_QUANT":
        return ()
    digits = "FORCE_FP16_QUANT rounds to float16, whose 11 digits are fewer than the 16 of"
    return (f"{digits} {len(wide)} layers (first: {wide[0]}).",)


def _refuse_unsupported(settings: Settings) -> None:
    wanted = [
        f"{name}.activation_quant_params.num_bits 4"
        for name, layer in settings.layers.items()
        if layer.quant_enable and layer.activation.num_bits == 4
    ]
    if wanted:
        raise ConfigError(f"Not supported by this version: {', '.join(wanted)}. Remove it from the configuration.")
