"""What each rounding of a quantized model does to its output: `sensitivity`."""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np

from amct_onnx.data.images import ImageOptions
from amct_onnx.data.keep_samples import SampleKeeper
from amct_onnx.data.open_data import open_data
from amct_onnx.data.options import DataOptions
from amct_onnx.errors import ArgumentError, DataError, ModelError
from amct_onnx.graph.inputs import model_inputs
from amct_onnx.measure.rounded_network import RoundedNetwork, power, side_by_side
from amct_onnx.numerics.arrays import Doubles, Feed
from amct_onnx.numerics.settings import ActivationSolver, Settings
from amct_onnx.options import documented
from amct_onnx.plan.float_model import FloatModel
from amct_onnx.progress import Progress, silent
from amct_onnx.ptq.calibrate import calibrate, tell
from amct_onnx.ptq.mixed.inside import InsideEffects, layers_inside, measure_inside
from amct_onnx.ptq.options import QuantizeOptions
from amct_onnx.ptq.quantized_model import QuantizedModel
from amct_onnx.ptq.request import make_request
from amct_onnx.run.float_network import FloatNetwork
from amct_onnx.targets.float_units import Unit, Units, operations
from amct_onnx.targets.table import target_of
from amct_onnx.values.roundings import Roundings
from amct_onnx.values.sensitivity import LayerEffect, Sensitivity

SAMPLES = 4


@documented(QuantizeOptions, DataOptions)
def sensitivity(
    model: Any,
    data: Any = None,
    *,
    target: str = "onnxruntime",
    settings: Settings | str | os.PathLike[str] | None = None,
    algorithm: str | ActivationSolver | None = None,
    skip_layers: Collection[str] = (),
    reduce_range: bool = False,
    images: ImageOptions | str | None = None,
    batch_size: int | None = None,
    limit: int | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    dtypes: Mapping[str, str] | None = None,
    names: Mapping[str, str] | None = None,
    samples: int = SAMPLES,
    progress: Progress | None = None,
) -> Sensitivity:
    """The effect of each quantized layer alone, and of all together, on the output of `model`.

    `model` and `data` are those of `quantize`. The model is calibrated with the data. Then `samples` of them run
    through the float model once for each layer, from that layer on. A `QuantizedModel` in the place of `model` is taken
    as it is, with its target and settings: nothing is calibrated, and `data` only give the samples. Without data, the
    sample is the one that the model keeps. Errors of several tensors are added up by their powers, as if they had
    nothing to do with each other.

    Raises what `quantize` raises, and ModelError for a model without float outputs or of which nothing is quantized.
    """
    if samples < 1:
        raise ArgumentError(f"samples={samples} is no number of samples, give 1 or more.")
    if isinstance(model, QuantizedModel) and data is None:
        if model.sample is None:
            raise ArgumentError("The model was quantized from statistics and has no sample: give data.")
        return measure(model, [model.sample], progress=progress).sensitivity()
    calibrated = model if isinstance(model, QuantizedModel) else None
    source = calibrated.calibration.source if calibrated is not None else FloatModel.open(model).prepared()
    data_options = DataOptions(
        images=images,
        batch_size=batch_size,
        limit=limit if calibrated is None else min(limit or samples, samples),
        shapes=shapes,
        dtypes=dtypes,
        names=names,
    )
    opened = open_data(data, model_inputs(source.model), data_options, FloatNetwork(source.model))
    kept = SampleKeeper(opened, most=samples, hold_out=False)
    if calibrated is not None:
        for _ in kept:  # those that it keeps are all that is wanted
            pass
        return measure(calibrated, kept.kept, progress=progress).sensitivity()
    found = target_of(target)
    tell(source.notes)
    request = make_request(source.facts, settings, algorithm, skip_layers, reduce_range)
    found.check(source, request)
    quantized = calibrate(
        source,
        kept,
        opened.total,
        target=found,
        request=request,
        effort="fast",
        rule=opened.rule,
        progress=progress or silent,
    )
    return measure(quantized, kept.kept, progress=progress).sensitivity()


@dataclass(frozen=True, kw_only=True, eq=False)
class Effects:
    """Noise over signal of each unit and float output.

    constants, tensors: from the two kinds of its roundings, float64[units, outputs]. together: all at once,
    float64[outputs]. operations: what each unit costs, in multiplications. whole: units of which the two kinds are not
    told apart, and stand with the constants.
    """

    target: str
    units: tuple[Unit, ...]
    outputs: tuple[str, ...]
    constants: Doubles
    tensors: Doubles
    together: Doubles
    operations: tuple[int, ...]
    samples: int
    whole: frozenset[str] = frozenset()

    def sensitivity(self) -> Sensitivity:
        """The effects by layer."""
        number = {unit.name: index for index, unit in enumerate(self.units)}
        layers = []
        for index, unit in enumerate(self.units):
            if not unit.nodes:
                continue
            read = sum((self.tensors[number[name]] for name in unit.reads), np.zeros(len(self.outputs)))
            alone = self.constants[index] + self.tensors[index] + read
            effect = float(alone.mean())
            share = float(self.constants[index].mean() / effect) if effect > 0 else 0.0
            share = math.nan if unit.name in self.whole else share
            layers.append(
                LayerEffect(
                    layer=unit.name,
                    op_type=unit.op_type,
                    nodes=unit.nodes,
                    effect=effect,
                    outputs=self._by_output(alone),
                    from_weight=share,
                )
            )
        return Sensitivity(
            target=self.target,
            layers=tuple(sorted(layers, key=lambda layer: -layer.effect)),
            together=float(self.together.mean()),
            outputs=self._by_output(self.together),
            samples=self.samples,
        )

    def _by_output(self, effects: Doubles) -> Mapping[str, float]:
        return MappingProxyType(dict(zip(self.outputs, effects.tolist(), strict=True)))


def measure(quantized: QuantizedModel, samples: Sequence[Feed], *, progress: Progress | None = None) -> Effects:
    """Run `samples` through the float model, with the roundings of each unit in turn and with all of them.

    Raises ModelError for a model without float outputs or of which nothing is quantized, and DataError for samples that
    it cannot run.
    """
    layers, name = layers_inside(quantized), quantized.calibration.source.name
    inside = measure_inside(quantized, layers, samples) if layers else None
    found = quantized.lowered.units()
    if any(unit.nodes for unit in found.units):
        effects = _measure_units(quantized, found, samples, progress or silent)
        return effects if inside is None else _joined(effects, inside)
    if inside is None:
        raise ModelError(f"{name} has no layer that is quantized for target {quantized.target}.")
    if not inside.outputs:
        raise _no_output(name)
    nothing = np.zeros((0, len(inside.outputs)))
    none = Effects(
        target=quantized.target,
        units=(),
        outputs=inside.outputs,
        constants=nothing,
        tensors=nothing,
        together=inside.together,
        operations=(),
        samples=len(samples),
    )
    return _joined(none, inside)


def _no_output(name: str) -> ModelError:
    return ModelError(f"{name} has no float output that the effect of a layer could be seen in.")


def _joined(effects: Effects, inside: InsideEffects) -> Effects:
    """The effects of units of the main graph, and those inside of bodies; together as the quantized model has them."""
    places = [inside.outputs.index(output) for output in effects.outputs]
    more = inside.effects[:, places]
    return replace(
        effects,
        units=(*effects.units, *inside.units),
        constants=np.concatenate([effects.constants, more]),
        tensors=np.concatenate([effects.tensors, np.zeros_like(more)]),
        together=inside.together[places],
        operations=(*effects.operations, *inside.operations),
        whole=frozenset(unit.name for unit in inside.units),
    )


def _measure_units(quantized: QuantizedModel, found: Units, samples: Sequence[Feed], progress: Progress) -> Effects:
    units, probe = found.units, _open(found, samples)
    if not probe.outputs:
        raise _no_output(quantized.calibration.source.name)
    signal, elements = np.zeros(len(probe.outputs)), 0
    noise, shares = np.zeros((len(units) + 1, len(probe.outputs))), np.zeros((len(units), 2))
    changes = [Roundings.union([unit.constants, unit.tensors]) for unit in units]
    changes.append(Roundings.union(changes))
    for number, sample in enumerate(samples):
        clean = probe.clean(sample)
        signal += [power(clean[name]) for name in probe.outputs]
        elements += sum(clean[name].size for name in probe.outputs)
        noise += side_by_side(partial(probe.noise, clean), changes)
        shares += side_by_side(partial(_local, probe, clean), units)
        progress("sensitivity", (number + 1) / len(samples))
    if not elements:
        raise DataError(
            "No effect can be seen, the outputs of the model are empty for all of the samples: give others."
        )
    if not np.isfinite(noise).all() or not np.isfinite(signal).all():
        raise DataError("The outputs of the model for the samples hold NaN or Inf, so that effects cannot be compared.")
    relative = noise / np.where(signal > 0, signal, 1.0)
    of_constants = np.divide(shares[:, 0], shares.sum(axis=1), out=np.zeros(len(units)), where=shares.any(axis=1))
    return Effects(
        target=quantized.target,
        units=units,
        outputs=probe.outputs,
        constants=relative[:-1] * of_constants[:, None],
        tensors=relative[:-1] * (1 - of_constants[:, None]),
        together=relative[-1],
        operations=tuple(operations(found.model, unit.nodes, probe.shapes) for unit in units),
        samples=len(samples),
    )


def _open(units: Units, samples: Sequence[Feed]) -> RoundedNetwork:
    everything = Roundings.union(change for unit in units.units for change in (unit.constants, unit.tensors))
    ends = [unit.last for unit in units.units if unit.last]
    return RoundedNetwork(units.model, everything, units.constants, samples[0], ends=ends)


def _local(probe: RoundedNetwork, clean: Feed, unit: Unit) -> tuple[float, float]:
    """Of the error of a unit where it ends, the powers that come from its constants and from its tensors."""
    if not unit.constants.constants or not unit.last:
        return (1.0, 0.0) if unit.constants.constants else (0.0, 1.0)
    alone = probe.noise_at(clean, unit.constants, unit.last)
    whole = probe.noise_at(clean, Roundings.union([unit.constants, unit.tensors]), unit.last)
    return alone, max(whole - alone, 0.0)
