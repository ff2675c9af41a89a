"""Weights rounded so that the outputs of their layers change least on given data, by GPTQ or AdaRound.

Each layer is rounded for the inputs that it has in the float network. Rounding changes the mean of an output, and a
bias can make up for that: Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", 2019.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

import numpy as np
import onnx_ir as ir

from amct_onnx.engine.engine import HERE, Engine
from amct_onnx.engine.processors import processors
from amct_onnx.graph.constants import ValueNames
from amct_onnx.graph.index import index_graph
from amct_onnx.graph.layer_view import Layer
from amct_onnx.graph.passes.normalize_layers import normalize_layers
from amct_onnx.graph.weights import join_groups, kernel_rows, output_rows_shape, row_scales, split_groups, weight_axis
from amct_onnx.numerics.arrays import Array, Doubles, Feed
from amct_onnx.numerics.grid import QParams
from amct_onnx.numerics.rounding import fake_quantize
from amct_onnx.numerics.settings import AdaRound
from amct_onnx.numerics.statistics.moments import SecondMoments
from amct_onnx.numerics.weights.bias import bias_correction
from amct_onnx.numerics.weights.second_order import Advance, covariances, round_rows
from amct_onnx.observe.second_moments import collect_moments
from amct_onnx.progress import Progress, silent
from amct_onnx.run.memory import give_back
from amct_onnx.run.round_layers import RoundingJob, round_layers
from amct_onnx.values.findings import WeightGrid

Method = Literal["gptq", "adaround"]

# Longer rows are rounded in blocks: the time to round a block grows with its cube. On MobileNetV2, SqueezeNet, a U-Net
# and a ResNet-50, GPTQ lost less than 0.1 dB by blocks of this length beside twice that.
_LONGEST: Mapping[Method, int] = {"gptq": 288, "adaround": 2304}


def round_weights(
    model: ir.Model,
    layers: Sequence[str],
    feeds: Collection[Feed],
    grids: Mapping[str, QParams],
    *,
    method: Method = "gptq",
    settings: AdaRound | None = None,
    corrected: Collection[str] = (),
    progress: Progress = silent,
    engine: Engine = HERE,
) -> dict[str, WeightGrid]:
    """The integers of the weights of `layers` by GPTQ or AdaRound.

    model: a fused float model, which is left as it is. layers, feeds: as `collect_moments` takes them. grids: the
    scales of the output channels of each weight, symmetric, at most 8 bits. settings: those of AdaRound. corrected: the
    layers whose results have a correction of the bias. The mean of their errors costs nothing then, so they are rounded
    by the covariance of their inputs. Layers with one weight and one grid get the same integers, by the inputs of all.
    engine: its workers round the layers.

    Raises like `collect_moments`, and CalibrationError where a weight or its Gram matrix cannot be rounded.
    """
    copy = model.clone()
    normalize_layers(copy, frozenset(layers))
    index, learning = index_graph(copy), (settings or AdaRound()) if method == "adaround" else None
    sharing = _sharing([index.layer(name) for name in layers], grids)
    order = [name for first, names in sharing.items() if names[0] == first for name in names]

    def jobs() -> Iterator[RoundingJob[dict[str, WeightGrid]]]:
        seen = _Readers({})
        for name, moments in collect_moments(copy, order, feeds, longest=_LONGEST[method]):
            if seen.means and name not in sharing[next(iter(seen.means))]:
                yield job(seen)
                seen = _Readers({})
            seen.add(name, moments, corrected=name in corrected)
        if seen.means:
            yield job(seen)

    def job(seen: _Readers) -> RoundingJob[dict[str, WeightGrid]]:
        first = next(iter(seen.means))
        solve = partial(_round, index.layer(first), grids[first], seen, learning)
        return RoundingJob(layer=first, solve=solve, size=len(sharing[first]))

    found = round_layers(
        jobs(), total=len(layers), workers=processors(), what="rounding", progress=progress, engine=engine
    )
    give_back()
    return {name: grid for grids_of in found.values() for name, grid in grids_of.items()}


def grid_arrays(weights: Mapping[str, WeightGrid]) -> dict[str, Array]:
    """What `round_weights` has found, as arrays by name, in which form state keeps it."""
    found: dict[str, Array] = {}
    for name, grid in weights.items():
        for kind, array in (("integers", grid.integers), ("correction", grid.correction)):
            if array is not None:
                found[f"{kind}/{name}"] = array
    return found


def grids_of_arrays(arrays: Mapping[str, Array], grids: Mapping[str, QParams]) -> dict[str, WeightGrid]:
    """The same again. grids: as `round_weights` takes them."""
    names = [name.removeprefix("integers/") for name in arrays if name.startswith("integers/")]
    return {
        name: WeightGrid(
            params=grids[name], integers=arrays[f"integers/{name}"], correction=arrays.get(f"correction/{name}")
        )
        for name in names
    }


def _sharing(layers: Sequence[Layer], grids: Mapping[str, QParams]) -> dict[str, tuple[str, ...]]:
    """For each layer those that have the same weight on the same grid, itself included, in their order.

    They get the same integers, so that a file holds them once. Weights are looked at where their scales are the same.
    """
    alike: dict[Hashable, list[Layer]] = {}
    for layer in layers:
        grid, shape = grids[layer.name], output_rows_shape(layer.shape, layer.node)
        alike.setdefault((shape, grid.spec, grid.scale.tobytes()), []).append(layer)
    found: dict[str, tuple[str, ...]] = {}
    for group in alike.values():
        equal: dict[bytes, list[str]] = {}
        for layer in group:
            rows = np.ascontiguousarray(kernel_rows(layer.array(), layer.node)) if len(group) > 1 else np.zeros(0)
            equal.setdefault(hashlib.blake2b(rows.data).digest(), []).append(layer.name)
        found |= {name: tuple(names) for names in equal.values() for name in names}
    return {layer.name: found[layer.name] for layer in layers}


@dataclass(eq=False)
class _Readers:
    """The layers that read one weight: the mean of each one's inputs, those to be corrected, and the moments of all
    columns together that count for rounding."""

    means: dict[str, Doubles]
    corrected: set[str] = field(default_factory=set)
    used: SecondMoments | None = None

    def add(self, name: str, moments: SecondMoments, *, corrected: bool) -> None:
        self.means[name] = moments.mean
        self.corrected |= {name} if corrected else set()
        used, before = covariances(moments) if corrected else moments, self.used
        if before is not None:
            columns = before.columns + used.columns
            share = used.columns / columns
            used = SecondMoments(
                columns=columns,
                mean=before.mean * (1 - share) + used.mean * share,
                gram=before.gram * (1 - share) + used.gram * share,
            )
        self.used = used


def _round(
    layer: Layer, grid: QParams, readers: _Readers, learning: AdaRound | None, advance: Advance
) -> dict[str, WeightGrid]:
    """The weight of `layer` for all that read it: the same integers, and each one's own correction."""
    assert readers.used is not None  # there is one at least
    shape = output_rows_shape(layer.shape, layer.node)
    rows = split_groups(kernel_rows(layer.array(), layer.node), shape, layer.node)
    scale = row_scales(grid.scale, shape)
    integers = round_rows(rows, scale, grid.spec, readers.used, learning, advance)
    joined = np.ascontiguousarray(join_groups(integers, layer.node))
    found = {}
    for name, mean in readers.means.items():
        correction = None
        if name in readers.corrected:
            means = mean.reshape(shape[0], -1)[:, : shape[2]]
            correction = bias_correction(rows, integers.astype(np.float64) * scale[..., None], means).reshape(-1)
        found[name] = WeightGrid(params=grid, integers=joined, correction=correction)
    return found


def with_rounded_weights(model: ir.Model, grids: Mapping[str, QParams]) -> ir.Model:
    """A copy of a fused float model whose layers have the nearest weights on `grids`, as `round_weights` takes them."""
    copy = model.clone()
    normalize_layers(copy, frozenset(grids))
    index, names = index_graph(copy), ValueNames(copy)
    for name, grid in grids.items():
        layer = index.layer(name)
        axis = weight_axis(layer.node, len(layer.shape))
        params = replace(grid, spec=replace(grid.spec, channel_axis=axis))
        layer.replace_weight(fake_quantize(layer.array(), params), names=names)
    return copy
