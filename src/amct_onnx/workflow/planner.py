"""From a model and its settings to a plan: one decision for each candidate layer, taken once."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from amct_onnx.core.plan import Decision, GraphFacts, LayerTraits, QuantPlan
from amct_onnx.core.settings import ActivationSettings, Arq, LayerSettings, Nuq, Settings
from amct_onnx.core.target import Target
from amct_onnx.errors import ConfigError, ModelError
from amct_onnx.graph.layers import candidates
from amct_onnx.graph.passes.fusion import fusable_nodes


def graph_facts(model: ir.Model, target: Target) -> GraphFacts:
    """What file formats and planner need to know of a model whose nodes are named."""
    layers = {traits.name: target.judge(traits) for traits in candidates(model)}
    nodes = {node.name or "": node.op_type for node in model.graph.all_nodes()}
    return GraphFacts(nodes=nodes, layers=layers, fusable=fusable_nodes(model))


def decide(facts: GraphFacts, settings: Settings) -> tuple[Decision, ...]:
    """One decision a candidate, in graph order.

    Raises ConfigError when the settings ask for what this version cannot do, ModelError (AMCT's text, spec section
    1.4) when nothing is enabled.
    """
    _refuse_unsupported(settings)
    decisions = tuple(_decide(traits, settings.layers.get(name)) for name, traits in facts.layers.items())
    if not any(decision.quantized for decision in decisions):
        raise ModelError(
            "No quant enable layer in quant config file, please check the quant config file: "
            "set quant_enable to true for at least one layer."
        )
    return decisions


def _decide(traits: LayerTraits, settings: LayerSettings | None) -> Decision:
    if traits.reason is not None:
        return Decision(layer=traits.name, quantized=False, reason=traits.reason)
    if settings is None or not settings.quant_enable:
        return Decision(layer=traits.name, quantized=False, reason="quant_enable is false in the configuration")
    return Decision(layer=traits.name, quantized=True)


def make_plan(model: ir.Model, target: Target, decisions: Sequence[Decision], settings: Settings) -> QuantPlan:
    """The plan of a model whose layers are normalized: layers that read one tensor alike form a group."""
    nodes = {node.name: node for node in model.graph}
    groups: dict[tuple[ir.Value | None, ActivationSettings], list[str]] = {}
    chosen = {d.layer: settings.layers[d.layer] for d in decisions if d.quantized}
    for layer, entry in chosen.items():
        groups.setdefault((nodes[layer].inputs[0], entry.activation), []).append(layer)
    return QuantPlan(
        target=target.name,
        decisions=tuple(decisions),
        groups=tuple(tuple(group) for group in groups.values()),
        settings=chosen,
    )


def _refuse_unsupported(settings: Settings) -> None:
    wanted = []
    if settings.joint_quant:
        wanted.append("joint_quant")
    if settings.tensor_quantize:
        wanted.append("tensor_quantize")
    if settings.fakequant_precision_mode:
        wanted.append("fakequant_precision_mode")
    for name, layer in settings.layers.items():
        if not layer.quant_enable:
            continue
        if layer.activation.num_bits != 8:
            wanted.append(f"{name}.activation_quant_params.num_bits {layer.activation.num_bits}")
        if layer.weight.num_bits != 8:
            wanted.append(f"{name}.weight_quant_params.num_bits {layer.weight.num_bits}")
        if not isinstance(layer.weight.solver, Arq | Nuq):
            wanted.append(f"{name}.weight_quant_params.wts_algo {type(layer.weight.solver).__name__}")
    if wanted:
        raise ConfigError(f"Not supported by this version: {', '.join(wanted)}. Remove it from the configuration.")
