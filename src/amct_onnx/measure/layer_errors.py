"""What rounding does in each part of a network: alone where it happens, with all that came before, and to the outputs.

The first two take one run of the network each and are measured for every part. The third takes a run of what lies
behind the part, for each of them, and so as many parts as fit a budget are measured, those that are worst alone first.
The budget is counted in multiplications and not in seconds: the same network gives the same numbers everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from amct_onnx.errors import DataError
from amct_onnx.graph.access import name_of
from amct_onnx.graph.index import index_graph
from amct_onnx.measure.rounded_network import RoundedNetwork, finite, power, side_by_side
from amct_onnx.numerics.arrays import Array, Doubles, Feed
from amct_onnx.numerics.sample_noise import pooled
from amct_onnx.progress import Progress, silent
from amct_onnx.targets.float_units import Unit, Units, operations
from amct_onnx.values.roundings import Roundings

BUDGET = 2.5e11  # multiplications: some seconds on two processors
_CALL, _MOVED = 5e6, 3  # what calling one session counts as; how many times their work parts take, for what they move
_MOST_SAMPLES = 4  # for the effects
_TRIED, _BEST = 5, 3  # parts that are tried in float, and of these so many together
_WORTH = 1.1
_WHAT = "looking at the layers"


@dataclass(frozen=True, kw_only=True)
class Closeness:
    """How near a tensor is to that of the float network. level: power of the error over that of the tensor. cosine: of
    the angle between the two, 1 for the same direction."""

    level: float
    cosine: float


@dataclass(frozen=True, kw_only=True)
class UnitErrors:
    """The errors of one part of a quantized network. Parts are those of `Units`; a tensor from elsewhere that several
    nodes read is one as well.

    tensor: where `alone` (only this part is rounded) and `together` (everything is) were measured. effect: the power of
    the error over that of the outputs where only this part is rounded, the mean over outputs. from_constants: the share
    of the error alone, 0 to 1, that comes from weights and other constants. What is None was not measured.
    """

    unit: str
    nodes: tuple[str, ...]
    reads: tuple[str, ...]
    tensor: str
    alone: Closeness | None = None
    together: Closeness | None = None
    effect: float | None = None
    from_constants: float | None = None


@dataclass(frozen=True, kw_only=True)
class InFloat:
    """What is left where some parts are in float: noise over signal of the outputs, `level`; `before` it was so much.
    nodes: all that are in float then."""

    units: tuple[str, ...]
    nodes: tuple[str, ...]
    before: float
    level: float


@dataclass(frozen=True, kw_only=True, eq=False)
class LayerErrors:
    """The errors of all parts, in the order of the graph.

    level: noise over signal of the outputs with everything rounded, the mean over outputs; by_sample: of each sample.
    samples: how many were run, effect_samples for the effects, float_samples for `in_float`. others: `together` of
    tensors that no part makes, by name. in_float: what is left with some of the worst parts in float, the best ones
    first, and then with these together. shapes: those of the tensors of the main graph.
    """

    units: tuple[UnitErrors, ...]
    level: float
    by_sample: tuple[float, ...]
    samples: int
    effect_samples: int
    float_samples: int
    others: Mapping[str, Closeness]
    in_float: tuple[InFloat, ...]
    shapes: Mapping[str, tuple[int, ...]]


def measure_layers(
    found: Units,
    samples: Sequence[Feed],
    *,
    others: Collection[str] = (),
    budget: float = BUDGET,
    progress: Progress = silent,
) -> LayerErrors:
    """Measure the parts `found` of a quantized network on `samples`, of which there is one at least.

    others: tensors of the main graph that no part makes and whose error is wanted too. Raises ModelError for a network
    that cannot be cut into parts, and DataError for samples that it cannot run or without float outputs to compare.
    """
    return _Bench(found, samples, others, progress).run(budget)


class _Bench:
    """The network, what it gave without rounding for each sample, and the sums over samples so far."""

    def __init__(self, found: Units, samples: Sequence[Feed], others: Collection[str], progress: Progress) -> None:
        index = index_graph(found.model)
        self._units, self._model, self._samples, self._progress = found.units, found.model, samples, progress
        self._ends = [
            _end(unit, [name_of(v) for n in unit.nodes for v in index.nodes[n].outputs]) for unit in self._units
        ]
        self._changes = [Roundings.union([unit.constants, unit.tensors]) for unit in self._units]
        self._others = [name for name in others if name in index.values]
        self._watched = [*filter(None, self._ends), *self._others]
        self._probe = RoundedNetwork(
            found.model, Roundings.union(self._changes), found.constants, samples[0], ends=self._watched
        )
        if not self._probe.outputs:
            raise DataError("The model has no float output in which an error could be seen.")
        count = len(self._units)
        self._alone, self._weights, self._together = (np.zeros((count, 4)) for _ in range(3))
        self._beside: dict[str, Doubles] = {name: np.zeros(4) for name in self._others}

    def run(self, budget: float) -> LayerErrors:
        probe, everything = self._probe, Roundings.union(self._changes)
        signal, noise, measured = [], [], []
        for number, sample in enumerate(self._samples):  # what a network holds is too much to be kept for all of them
            clean = probe.clean(sample)
            signal.append([power(finite(clean[name])) for name in probe.outputs])
            found = probe.changed(clean, everything, keep=self._watched)
            noise.append(probe.distances(clean, found))
            self._look(clean, found)
            self._progress(_WHAT, 0.3 * (number + 1) / len(self._samples))
        signals, whole = np.array(signal, np.float64), np.array(noise, np.float64)
        chosen, count = self._affordable(budget)
        changes = [self._changes[unit] for unit in chosen]
        for number, sample in enumerate(self._samples[:count]):
            measured.append(side_by_side(partial(probe.noise, probe.clean(sample)), changes))
            self._progress(_WHAT, 0.3 + 0.6 * (number + 1) / count)
        effects = np.array(measured).reshape(count, len(chosen), len(probe.outputs))
        levels = {unit: _level(effects[:, place], signals[:count]) for place, unit in enumerate(chosen)}
        few = min(len(self._samples), _MOST_SAMPLES)
        best = self._in_float(whole[:few], signals[:few], self._worst(levels))
        self._progress(_WHAT, 1.0)
        return LayerErrors(
            units=tuple(self._errors(number, levels.get(number)) for number in range(len(self._units))),
            level=_level(whole, signals),
            by_sample=tuple(_level(whole[row : row + 1], signals[row : row + 1]) for row in range(len(whole))),
            samples=len(self._samples),
            effect_samples=count,
            float_samples=few,
            others={name: close for name, sums in self._beside.items() if (close := _closeness(sums)) is not None},
            in_float=best,
            shapes=probe.shapes,
        )

    def _look(self, clean: Feed, found: Feed) -> None:
        """Add one sample to the sums of all parts."""

        def alone(number: int) -> tuple[Doubles, Doubles]:
            end, unit = self._ends[number], self._units[number]
            whole = self._probe.changed(clean, self._changes[number], until=end)
            if not unit.constants.constants:
                return _sums(clean, whole, end), np.zeros(4)
            weights = self._probe.changed(clean, unit.constants, until=end)
            return _sums(clean, whole, end), _sums(clean, weights, end)

        numbers = [number for number, end in enumerate(self._ends) if end in clean]
        for number, (whole, weights) in zip(numbers, side_by_side(alone, numbers), strict=True):
            self._alone[number] += whole
            self._weights[number] += weights
            self._together[number] += _sums(clean, found, self._ends[number])
        for name in self._others:
            if name in clean:
                self._beside[name] += _sums(clean, found, name)

    def _affordable(self, budget: float) -> tuple[list[int], int]:
        """Which parts are measured at the outputs, on how many samples: each run costs half of the network."""
        levels = [close.level if (close := _closeness(sums)) else np.inf for sums in self._alone]
        order = sorted(range(len(levels)), key=lambda number: -levels[number])
        nodes = [name_of(node) for node in self._model.graph]
        each = (_MOVED * operations(self._model, nodes, self._probe.shapes) + _CALL * self._probe.parts) / 2
        most = max(8, int(budget / each))
        if most < len(order):
            return sorted(order[:most]), 1
        return sorted(order), max(1, min(len(self._samples), _MOST_SAMPLES, most // max(1, len(order))))

    def _worst(self, levels: Mapping[int, float]) -> list[int]:
        """The parts with nodes that make most of the noise, with what they read of tensors from elsewhere."""
        own = {self._units[number].name: level for number, level in levels.items()}
        without_nodes = {unit.name for unit in self._units if not unit.nodes}

        def whole(number: int) -> float:
            read = (own.get(name, 0.0) for name in self._units[number].reads if name in without_nodes)
            return levels[number] + sum(read)

        able = [number for number in levels if self._units[number].nodes and not self._units[number].follows]
        return sorted((number for number in able if whole(number) > 0), key=lambda number: -whole(number))[:_TRIED]

    def _in_float(self, whole: Doubles, signals: Doubles, worst: Sequence[int]) -> tuple[InFloat, ...]:
        """What brings most in float, of the parts that make most of the noise, and then the best of them together.

        The tensor that a part makes stays on its grid for those who want it in integers. So a part is tried alone, and
        together with them where they are few.
        """
        choices = [choice for number in worst for choice in self._choices(number)]
        best: dict[str, InFloat] = {}
        for one in self._left(choices, whole, signals):
            known = best.get(one.units[0])
            if known is None or one.level * _WORTH < known.level:
                best[one.units[0]] = one
        found = sorted(best.values(), key=lambda one: one.level)[:_BEST]
        together = tuple(dict.fromkeys(name for one in found for name in one.units))
        if len(found) < 2 or any(set(one.units) == set(together) for one in found):
            return tuple(found)
        return (*found, *self._left([together], whole, signals))

    def _choices(self, number: int) -> list[tuple[str, ...]]:
        unit = self._units[number]
        nodes = {other.name for other in self._units if other.nodes}
        whole = tuple(dict.fromkeys([unit.name, *(name for name in unit.holders if name in nodes)]))
        return [(unit.name,), whole] if 1 < len(whole) <= _BEST else [(unit.name,)]

    def _left(self, choices: Sequence[tuple[str, ...]], whole: Doubles, signals: Doubles) -> list[InFloat]:
        """What is left of the noise of the first samples with each of these choices of parts in float."""
        left = [_without(self._units, chosen) for chosen in choices]
        noise = []
        for sample in self._samples[: len(signals)] if choices else ():
            noise.append(side_by_side(partial(self._probe.noise, self._probe.clean(sample)), [one for one, _ in left]))
        found = []
        for place, (chosen, (_, gone)) in enumerate(zip(choices, left, strict=True)):
            nodes = tuple(node for unit in self._units if unit.name in gone for node in unit.nodes)
            level = _level(np.array([sample[place] for sample in noise]), signals)
            found.append(InFloat(units=chosen, nodes=nodes, before=_level(whole, signals), level=level))
        return found

    def _errors(self, number: int, effect: float | None) -> UnitErrors:
        unit, alone = self._units[number], self._alone[number]
        constants = float(min(1.0, self._weights[number][0] / alone[0])) if alone[0] > 0 else None
        return UnitErrors(
            unit=unit.name,
            nodes=unit.nodes,
            reads=unit.reads,
            tensor=self._ends[number],
            alone=_closeness(alone),
            together=_closeness(self._together[number]),
            effect=effect,
            from_constants=constants if unit.constants.constants else 0.0,
        )


def _end(unit: Unit, made: Sequence[str]) -> str:
    """The tensor in which the error of a part is looked at: behind its rounding, or what its last node makes."""
    return unit.last or (made[-1] if made else "")


def _without(units: Sequence[Unit], chosen: Collection[str]) -> tuple[Roundings, set[str]]:
    """The roundings that are left where some parts are in float, and all parts that are in float then."""
    gone, by_name = set(chosen), {unit.name: unit for unit in units}

    def free(name: str) -> bool:
        holders = by_name[name].holders if name in by_name else ()
        return bool(holders) and gone.issuperset(holders)

    while True:
        more = {unit.name for unit in units if unit.follows and any(map(free, unit.reads))} - gone
        if not more:
            break
        gone |= more
    left = [unit.constants for unit in units if unit.name not in gone]
    left += [unit.tensors for unit in units if not free(unit.name)]
    return Roundings.union(left), gone


def _sums(clean: Feed, found: Feed, name: str) -> Doubles:
    """Powers of the error and of the exact tensor, their product with the found one, and its power, float64[4]; nothing
    where rounding changes the shape."""
    exact = finite(clean[name]).reshape(-1)
    other = finite(found[name]).reshape(-1) if name in found else exact
    if exact.shape != other.shape:
        return np.zeros(4)
    return np.array([power(other - exact), power(exact), _product(exact, other), power(other)])


def _product(one: Array, two: Array) -> float:
    """The sum of products in float64, in an order that does not depend on threads."""
    return float(np.multiply(one, two, dtype=np.float64).sum())


def _closeness(sums: Doubles) -> Closeness | None:
    noise, signal, product, other = (float(value) for value in sums)
    if signal <= 0:
        return None
    return Closeness(level=noise / signal, cosine=product / math.sqrt(signal * other) if other > 0 else 0.0)


def _level(noise: Doubles, signal: Doubles) -> float:
    return float(pooled(noise, signal).mean())
