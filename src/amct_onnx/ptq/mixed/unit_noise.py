"""What the roundings of each unit do to the outputs, sample by sample: a work that an engine shares out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial

from amct_onnx.files.packed_model import HoldsGraphs
from amct_onnx.files.state_folder import NO_STATE, State
from amct_onnx.measure.rounded_network import RoundedNetwork, finite, power, side_by_side
from amct_onnx.numerics.arrays import Feed
from amct_onnx.targets.float_units import Unit, Units
from amct_onnx.values.roundings import Roundings


@dataclass(frozen=True, kw_only=True)
class SampleSeen:
    """What one sample shows. signal: power of each output. noise: that of each unit, and at last of all together, in
    each output. shares: what `_local` gives for each unit. elements: of all outputs."""

    signal: list[float]
    noise: list[list[float]]
    shares: list[tuple[float, float]]
    elements: int


@dataclass(frozen=True, kw_only=True, eq=False)
class UnitNoise(HoldsGraphs):
    """The work of running a sample, which comes with its number, with the roundings of each unit in turn.

    first: a sample that shows the shapes. state: knows samples that were run, as those of `key`, and keeps others.
    """

    units: Units
    first: Feed
    state: State = NO_STATE
    key: str = ""

    @cached_property
    def probe(self) -> RoundedNetwork:
        """The network that takes the roundings, which does not travel."""
        units = self.units.units
        everything = Roundings.union(change for unit in units for change in (unit.constants, unit.tensors))
        ends = [unit.last for unit in units if unit.last]
        return RoundedNetwork(self.units.model, everything, self.units.constants, self.first, ends=ends)

    @contextmanager
    def open(self) -> Iterator[Callable[[tuple[int, Feed]], SampleSeen]]:
        changes = [Roundings.union([unit.constants, unit.tensors]) for unit in self.units.units]
        changes.append(Roundings.union(changes))
        yield partial(self._see, self.probe, changes)

    def _see(self, probe: RoundedNetwork, changes: Sequence[Roundings], item: tuple[int, Feed]) -> SampleSeen:
        number, sample = item
        seen = self.state.recalled(f"{self.key}, sample {number}", lambda: vars(self._run(probe, changes, sample)))
        return SampleSeen(**seen)

    def _run(self, probe: RoundedNetwork, changes: Sequence[Roundings], sample: Feed) -> SampleSeen:
        clean = probe.clean(sample)
        return SampleSeen(
            signal=[power(finite(clean[name])) for name in probe.outputs],
            noise=side_by_side(partial(probe.noise, clean), changes),
            shares=side_by_side(partial(_local, probe, clean), self.units.units),
            elements=sum(clean[name].size for name in probe.outputs),
        )


def _local(probe: RoundedNetwork, clean: Feed, unit: Unit) -> tuple[float, float]:
    """Of the error of a unit where it ends, the powers that come from its constants and from its tensors."""
    if not unit.constants.constants or not unit.last:
        return (1.0, 0.0) if unit.constants.constants else (0.0, 1.0)
    alone = probe.noise_at(clean, unit.constants, unit.last)
    whole = probe.noise_at(clean, Roundings.union([unit.constants, unit.tensors]), unit.last)
    return alone, max(whole - alone, 0.0)
