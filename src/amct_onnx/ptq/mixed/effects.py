"""What each rounding of a quantized model does to its output: `sensitivity`."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np

from amct_onnx.data.data_source import announcer
from amct_onnx.data.image_options import ImageOptions
from amct_onnx.data.keep_samples import SampleKeeper
from amct_onnx.data.open_data import open_data
from amct_onnx.data.options import DataOptions, OnBadData
from amct_onnx.engine.engine import HERE, Engine
from amct_onnx.errors import ArgumentError, DataError, ModelError
from amct_onnx.files.state_folder import NO_STATE, State
from amct_onnx.frozen import FrozenDict
from amct_onnx.graph.access import name_of
from amct_onnx.graph.inputs import model_inputs
from amct_onnx.graph.outputs import purpose_of
from amct_onnx.measure.rounded_network import RoundedNetwork
from amct_onnx.numerics.arrays import Doubles, Feed
from amct_onnx.numerics.sample_noise import is_wild, medians, pooled, typical
from amct_onnx.numerics.settings import ActivationSolver, Settings
from amct_onnx.options import documented
from amct_onnx.plan.float_model import FloatModel
from amct_onnx.progress import Progress, progress_of, silent
from amct_onnx.ptq.calibrate import calibrate, tell
from amct_onnx.ptq.mixed.inside import InsideEffects, layers_inside, measure_inside
from amct_onnx.ptq.mixed.unit_noise import UnitNoise
from amct_onnx.ptq.options import QuantizeOptions
from amct_onnx.ptq.quantized_model import QuantizedModel
from amct_onnx.ptq.request import make_request
from amct_onnx.run.float_network import FloatNetwork
from amct_onnx.run.providers import checked_providers
from amct_onnx.run.workers import opened_workers
from amct_onnx.targets.float_units import Unit, Units, float_price, operations, whole_price
from amct_onnx.targets.table import TARGETS, target_of
from amct_onnx.values.sensitivity import LayerEffect, Sensitivity
from amct_onnx.words import either, given

SAMPLES = 16
FLOAT_PRICE = 3.0  # of a multiplication beyond int8, in those of int8: by the bytes of an activation
# Fewer where networks are large, but no fewer than so many: multiplications of all roundings and samples together.
_LEAST_SAMPLES, _MOST_OPERATIONS = 4, 3 * 10**11


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
    tokenizer: str | os.PathLike[str] | None = None,
    on_bad_data: OnBadData = "fail",
    samples: int | None = None,
    progress: Progress | bool | None = None,
    engine: str | Engine = "local",
    providers: Sequence[str | tuple[str, Mapping[str, Any]]] | None = None,
) -> Sensitivity:
    """The effect of each quantized layer alone, and of all together, on the output of `model`.

    `model` and `data` are those of `quantize`. The model is calibrated with the data. Then `samples` of them (None: 16,
    or as many as a large network runs in short) run through the float model once for each quantized node, from that
    node on. A `QuantizedModel` in the place of `model` is taken as it is, with its target and settings: nothing is
    calibrated, and `data` only give the samples. Without data, the sample is the one that the model keeps. Errors of
    several tensors are added up by their powers, as if they had nothing to do with each other.

    progress: as for `quantize`.

    Raises what `quantize` raises, and ModelError for a model without float outputs or of which nothing is quantized.
    """
    most, cheap, told = samples or SAMPLES, samples is None, progress_of(progress)
    if samples is not None and samples < 1:
        raise ArgumentError(f"{given('samples', samples)} is no number of samples, give 1 or more.")
    if isinstance(model, QuantizedModel) and data is None and model.sample is None:
        raise ArgumentError(
            f"The model was quantized from statistics and has no sample: give {either('data', '--data')}."
        )
    chosen = checked_providers(providers)
    calibrated = model if isinstance(model, QuantizedModel) else None
    source = calibrated.calibration.source if calibrated is not None else FloatModel.open(model).prepared()
    data_options = DataOptions(
        images=images,
        batch_size=batch_size,
        limit=limit if calibrated is None else min(limit or most, most),
        shapes=shapes,
        dtypes=dtypes,
        names=names,
        tokenizer=tokenizer,
        on_bad_data=on_bad_data,
    )
    with opened_workers(engine, chosen) as workers:
        measured = partial(measure, progress=told, engine=workers)
        if calibrated is not None and data is None and calibrated.sample is not None:
            return measured(calibrated, [calibrated.sample]).sensitivity()
        opened = open_data(
            data,
            model_inputs(source.model),
            data_options,
            FloatNetwork(source.model),
            purpose_of(source.model),
            announcer(told),
        )
        kept = SampleKeeper(opened, most=most)
        if calibrated is not None:
            kept.gather()
            return measured(calibrated, kept.kept, cheap=cheap).sensitivity()
        found = target_of(target)
        tell(source.notes)
        request = make_request(source.facts, settings, algorithm, skip_layers, reduce_range)
        request = replace(request, full_int8=True)  # also what is in float for its time is asked about
        found.check(source, request)
        parts = None if workers.alone else kept.parts()
        quantized = calibrate(
            source,
            kept,
            opened.total,
            target=found,
            request=request,
            effort="fast",
            rule=opened.rule,
            progress=told,
            parts=parts,
            engine=workers,
        )
        if parts is not None:
            kept.gather()
        return measured(quantized, kept.kept, cheap=cheap).sensitivity()


@dataclass(frozen=True, kw_only=True, eq=False)
class Effects:
    """Noise of each unit and sample, float64[samples, units, outputs]; `together` that of all at once, and `signal`
    those of the outputs, float64[samples, outputs].

    from_constants: the share of the noise of each unit that comes from its constants, float64[units]; NaN where it is
    not known. prices: what each unit costs more in float than in int8: in nanoseconds, or in int8 multiplications;
    `whole` is what all costs as it is.
    """

    target: str
    units: tuple[Unit, ...]
    outputs: tuple[str, ...]
    noise: Doubles
    together: Doubles
    signal: Doubles
    from_constants: Doubles
    prices: tuple[float, ...]
    whole: float = 0.0

    @cached_property
    def wild(self) -> bool:
        """Whether a few samples own all noise, or all signal."""
        return is_wild(self.together, self.signal)

    def typical(self) -> Doubles:
        """Noise over signal of each unit, float64[units]: pooled, or of the median sample where samples are wild."""
        found = [typical(self.noise[:, unit], self.signal, wild=self.wild) for unit in range(len(self.units))]
        return np.array(found, np.float64)

    def sensitivity(self) -> Sensitivity:
        """The effects by node. What a node reads counts for it where no other quantized node makes it."""
        number = {unit.name: index for index, unit in enumerate(self.units)}
        layers = []
        for index, unit in enumerate(self.units):
            if not unit.nodes:
                continue
            read = [number[name] for name in unit.reads if not self.units[number[name]].nodes]
            noise = self.noise[:, [index, *read]].sum(axis=1)
            alone = pooled(noise, self.signal)
            own, whole = float(pooled(self.noise[:, index], self.signal).mean()), float(alone.mean())
            layers.append(
                LayerEffect(
                    layer=unit.name,
                    op_type=unit.op_type,
                    nodes=unit.nodes,
                    effect=whole,
                    outputs=self._by_output(alone),
                    median=float(medians(noise, self.signal).mean()),
                    from_weight=float(self.from_constants[index]) * (own / whole if whole > 0 else 1.0),
                )
            )
        together = pooled(self.together, self.signal)
        return Sensitivity(
            target=self.target,
            layers=tuple(sorted(layers, key=lambda layer: -layer.effect)),
            together=float(together.mean()),
            outputs=self._by_output(together),
            median=float(medians(self.together, self.signal).mean()),
            samples=len(self.signal),
        )

    def _by_output(self, effects: Doubles) -> Mapping[str, float]:
        return FrozenDict(dict(zip(self.outputs, effects.tolist(), strict=True)))


def measure(
    quantized: QuantizedModel,
    samples: Sequence[Feed],
    *,
    cheap: bool = False,
    progress: Progress | None = None,
    engine: Engine = HERE,
    state: State = NO_STATE,
) -> Effects:
    """Run `samples` through the float model, with the roundings of each unit in turn and with all of them.

    cheap: only some of the samples where all of them would take long. engine: its workers run the samples. state:
    knows samples that were run before, and keeps the others. Raises ModelError for a model without float outputs or
    of which nothing is quantized, and DataError for samples that it cannot run.
    """
    layers, name = layers_inside(quantized), quantized.calibration.source.name
    found = quantized.lowered.units()
    effects = None
    if any(unit.nodes for unit in found.units):
        effects = _measure_units(quantized, found, samples, cheap, progress or silent, engine, state)
        samples = samples[: len(effects.signal)]
    inside = measure_inside(quantized, layers, samples, engine) if layers else None
    if inside is not None:
        return _of_bodies(quantized, inside) if effects is None else _joined(quantized, effects, inside)
    if effects is None:
        raise ModelError(f"{name} has no layer that is quantized for target {quantized.target}.")
    return effects


def _no_output(name: str) -> ModelError:
    return ModelError(f"{name} has no float output that the effect of a layer could be seen in.")


def _inside_prices(quantized: QuantizedModel, inside: InsideEffects) -> tuple[float, ...]:
    """Multiplications, in nanoseconds where other prices are: a body is priced by its layers' weights alone."""
    known = TARGETS[quantized.target].prices
    each = FLOAT_PRICE if known is None else known.dense[0].product - known.dense[1].product
    return tuple(each * count for count in inside.operations)


def _of_bodies(quantized: QuantizedModel, inside: InsideEffects) -> Effects:
    if not inside.outputs:
        raise _no_output(quantized.calibration.source.name)
    return Effects(
        target=quantized.target,
        units=inside.units,
        outputs=inside.outputs,
        noise=inside.noise,
        together=inside.together,
        signal=inside.signal,
        from_constants=np.full(len(inside.units), np.nan),
        prices=_inside_prices(quantized, inside),
    )


def _joined(quantized: QuantizedModel, effects: Effects, inside: InsideEffects) -> Effects:
    """The effects of units of the main graph, and those inside of bodies; together as the quantized model has them."""
    places = [inside.outputs.index(output) for output in effects.outputs]
    return replace(
        effects,
        units=(*effects.units, *inside.units),
        noise=np.concatenate([effects.noise, inside.noise[..., places]], axis=1),
        together=inside.together[:, places],
        from_constants=np.concatenate([effects.from_constants, np.full(len(inside.units), np.nan)]),
        prices=(*effects.prices, *_inside_prices(quantized, inside)),
    )


def _measure_units(
    quantized: QuantizedModel,
    found: Units,
    samples: Sequence[Feed],
    cheap: bool,
    progress: Progress,
    engine: Engine,
    state: State,
) -> Effects:
    units, key = found.units, f"effects in {quantized.statistics.digest}"
    work = UnitNoise(units=found, first=samples[0], state=state, key=key)
    probe = work.probe
    if not probe.outputs:
        raise _no_output(quantized.calibration.source.name)
    if cheap:
        samples = samples[: _cheap_count(found, probe)]
    signal, noise, shares, elements = [], [], np.zeros((len(units), 2)), 0
    with closing(engine.map(work, enumerate(samples))) as outcomes:
        for number, seen in enumerate(outcomes, 1):
            signal.append(seen.signal)
            noise.append(seen.noise)
            shares += seen.shares
            elements += seen.elements
            progress("sensitivity", number / len(samples))
    if not elements:
        raise DataError(
            "No effect can be seen, the outputs of the model are empty for all of the samples: give others."
        )
    measured = np.array(noise, np.float64)
    return Effects(
        target=quantized.target,
        units=units,
        outputs=probe.outputs,
        noise=measured[:, :-1],
        together=measured[:, -1],
        signal=np.array(signal, np.float64),
        from_constants=np.divide(shares[:, 0], shares.sum(axis=1), out=np.zeros(len(units)), where=shares.any(axis=1)),
        prices=tuple(_price(quantized.target, found, unit, probe) for unit in units),
        whole=_whole_price(quantized.target, found, probe),
    )


def _price(target: str, found: Units, unit: Unit, probe: RoundedNetwork) -> float:
    known = TARGETS[target].prices
    if known is not None:
        return float_price(found.model, unit.nodes, probe.shapes, known)
    return FLOAT_PRICE * operations(found.model, unit.nodes, probe.shapes)


def _whole_price(target: str, found: Units, probe: RoundedNetwork) -> float:
    known, nodes = TARGETS[target].prices, [node for unit in found.units for node in unit.nodes]
    if known is not None:
        return whole_price(found.model, frozenset(nodes), probe.shapes, known)
    return float(operations(found.model, nodes, probe.shapes))


def _cheap_count(units: Units, probe: RoundedNetwork) -> int:
    """How many samples are run where nobody says how many: each rounding runs half of the network, on average."""
    nodes = [name_of(node) for node in units.model.graph]
    work = operations(units.model, nodes, probe.shapes) * (len(units.units) / 2 + 1)
    return max(_LEAST_SAMPLES, min(SAMPLES, int(_MOST_OPERATIONS / max(work, 1))))
