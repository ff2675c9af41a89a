"""Effects of layers inside the bodies of If, Loop and Scan, each from the model in which it alone is quantized.

The float model that takes roundings is cut into segments of the main graph, and a body is a part of one of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace

import numpy as np

from amct_onnx.engine.engine import HERE, Engine
from amct_onnx.errors import StatisticsError
from amct_onnx.graph.access import input_of
from amct_onnx.graph.layer_view import Layer, as_layer
from amct_onnx.measure.output_noise import OutputNoise
from amct_onnx.numerics.arrays import Doubles, Feed
from amct_onnx.ptq.quantized_model import QuantizedModel
from amct_onnx.targets.float_units import Unit
from amct_onnx.values.roundings import Roundings


@dataclass(frozen=True, kw_only=True)
class InsideEffects:
    """Noise of the `units` of bodies, float64[samples, units, outputs], of the whole quantized model and the signal,
    float64[samples, outputs]. operations: what each unit costs in a sample, in multiplications."""

    units: tuple[Unit, ...]
    outputs: tuple[str, ...]
    noise: Doubles
    together: Doubles
    signal: Doubles
    operations: tuple[int, ...]


def layers_inside(quantized: QuantizedModel) -> tuple[Layer, ...]:
    """The layers inside bodies that are quantized."""
    chosen = {decision.layer for decision in quantized.decisions if decision.quantized}
    nodes = (node for graph in quantized.calibration.source.model.graph.subgraphs() for node in graph)
    layers = (as_layer(node) for node in nodes if node.name in chosen)
    return tuple(layer for layer in layers if layer is not None)


@dataclass(frozen=True, kw_only=True, eq=False)
class NoiseAlone:
    """The work of measuring the noise of a model in which one layer alone is quantized."""

    quantized: QuantizedModel
    noise: OutputNoise

    @contextmanager
    def open(self) -> Iterator[Callable[[str], Doubles]]:
        yield self._measure

    def _measure(self, layer: str) -> Doubles:
        calibration = self.quantized.calibration
        others = sorted(d.layer for d in self.quantized.decisions if d.quantized and d.layer != layer)
        skipped = tuple(dict.fromkeys([*calibration.request.skip_layers, *others]))
        request = replace(calibration.request, skip_layers=skipped)
        alone = self.quantized.solved(replace(calibration, request=request))
        return self.noise.by_sample(alone.lowered.exact_session())


def measure_inside(
    quantized: QuantizedModel, layers: Sequence[Layer], samples: Sequence[Feed], engine: Engine = HERE
) -> InsideEffects:
    """The effects of `layers`, of which there is one at least. Raises DataError for samples that cannot be run."""
    noise = OutputNoise(quantized.calibration.source.model, samples)
    work = NoiseAlone(quantized=quantized, noise=noise)
    with closing(engine.map(work, [layer.name for layer in layers])) as outcomes:
        effects = list(outcomes)
    return InsideEffects(
        units=tuple(
            Unit(
                name=layer.name,
                op_type=layer.op_type,
                nodes=(layer.name,),
                constants=Roundings(),
                tensors=Roundings(),
                last="",
            )
            for layer in layers
        ),
        outputs=noise.outputs,
        noise=np.stack(effects, axis=1),
        together=noise.by_sample(quantized.lowered.exact_session()),
        signal=noise.signal,
        operations=tuple(_operations(quantized, layer) for layer in layers),
    )


def _operations(quantized: QuantizedModel, layer: Layer) -> int:
    """Multiplications in a sample: the weight, as often as the input has positions; a body may run for some only."""
    statistics = quantized.calibration.statistics
    try:
        elements = quantized.calibration.statistic([input_of(layer.node, 0)]).total
    except StatisticsError:
        elements = statistics.samples * layer.input_channels
    positions = elements / max(1, statistics.samples * layer.input_channels)
    return max(1, round(positions * math.prod(layer.shape)))
