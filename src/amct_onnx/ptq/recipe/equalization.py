"""Factors of equalization for groups of channels, and what they promise before anything is quantized with them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from amct_onnx.graph.access import input_of, is_op, name_of
from amct_onnx.graph.index import index_graph
from amct_onnx.graph.layer_view import Layer
from amct_onnx.graph.passes.equalize import ChannelGroup
from amct_onnx.numerics.arrays import Floats, Reals
from amct_onnx.numerics.channel_factors import equalizing_factors, rounding_noise
from amct_onnx.numerics.sample_noise import decibel


def group_factors(
    groups: Sequence[ChannelGroup], maxima: Mapping[str, Floats], strengths: tuple[float, float]
) -> dict[str, Floats]:
    """The factors of each group that has some, by its key.

    maxima: the largest magnitude of each channel, by tensor. strengths: without and with a Clip in the group.
    """
    found = {}
    for group in groups:
        magnitudes = [maxima[name] for name in group.measured if name in maxima]
        if magnitudes and all(magnitude.size == group.channels for magnitude in magnitudes):
            factors = equalizing_factors(magnitudes, strength=strengths[group.ceiling < np.inf], ceiling=group.ceiling)
            if (factors != 1).any():
                found[group.key] = factors
    return found


def promised_gain(
    model: ir.Model,
    groups: Sequence[ChannelGroup],
    maxima: Mapping[str, Floats],
    factors: Mapping[str, Floats],
    in_float: Collection[str] = (),
) -> float:
    """By how many dB `factors` lower the noise that int8 makes in the layers behind the groups, as far as magnitudes
    tell: see `rounding_noise`. Layers that are in float make none. 0 where no layer can be looked at."""
    index = index_graph(model)
    before = after = 0.0
    for group in groups:
        if group.key not in factors:
            continue
        for consumer in (name for name in group.consumers if name not in in_float):
            layer = index.layer(consumer)
            magnitudes = maxima.get(_measured(layer))
            if magnitudes is None or magnitudes.size != group.channels:
                continue
            kernel = _kernel(layer)
            repeats = kernel.shape[0] * kernel.shape[2] // group.channels  # positions, behind a Flatten
            each, divisors = np.repeat(magnitudes, repeats), np.repeat(factors[group.key], repeats)
            one, other = rounding_noise(kernel, each, np.ones_like(divisors), divisors)
            before, after = before + one, after + other
    return decibel(after / before) if before > 0 else 0.0


def _measured(layer: Layer) -> str:
    """The tensor that a layer reads, in front of a Flatten."""
    value = layer.input
    while is_op(node := value.producer(), "Flatten"):
        value = input_of(node, 0)
    return name_of(value)


def _kernel(layer: Layer) -> Reals:
    """The weight of a Conv or Gemm as [groups, outputs, inputs, taps]."""
    weight = layer.array()
    if layer.op_type == "Conv":
        return weight.reshape(layer.groups, weight.shape[0] // layer.groups, weight.shape[1], -1)
    rows = weight if layer.weight_is_turned else weight.T
    return rows[None, :, :, None]
