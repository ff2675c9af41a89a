"""How far the tensors of a quantized model are from those of the float model: in all, and by each layer alone.

The error of a tensor in all is that of the whole network in front of it. What a layer adds alone is seen by giving the
float layer what the quantized one reads: both then differ by what this layer, and the rounding of its result, do.

A tool that evens out channels multiplies some of a tensor, and divides the weights that read it: see `channel_gains`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from amct_onnx.errors import ModelError
from amct_onnx.graph.correspondence import Correspondence, TensorPair
from amct_onnx.graph.instrument.apart import take_apart
from amct_onnx.measure.channel_gains import Gains, fit_gains, gains_that_readers_undo, without_gains
from amct_onnx.measure.shown_network import ShownNetwork
from amct_onnx.numerics.arrays import Array, Feed
from amct_onnx.progress import Progress, silent

_FITTED = 2  # samples that gains of channels are looked for in


@dataclass(frozen=True, kw_only=True, eq=False)
class Powers:
    """Sums over all samples of one tensor: `signal` and `noise` are powers, `product` that of both tensors.

    rival: the power of the tensor in the quantized model. largest: the greatest error of an element.
    """

    signal: float
    noise: float
    rival: float
    product: float
    largest: float

    @classmethod
    def of(cls, expected: Array, found: Array) -> Powers:
        """Those of one sample. Where the float model holds no number, as a masked score, nothing is compared."""
        kind = np.promote_types(expected.dtype, np.float32)  # squares of float16 are soon too large for it
        expected, found = expected.astype(kind, copy=False), found.astype(kind, copy=False)
        known = np.isfinite(expected)
        if not known.all():
            expected, found = (np.where(known, array, 0) for array in (expected, found))
        with np.errstate(invalid="ignore", over="ignore"):
            error = np.subtract(found, expected)
            noise, largest = _product(error, error), float(np.abs(error).max(initial=0.0))
            if not np.isfinite(noise):
                noise = largest = float("inf")
            return cls(
                signal=_product(expected, expected),
                noise=noise,
                rival=_product(found, found),
                product=_product(expected, found),
                largest=largest,
            )

    def __add__(self, other: Powers) -> Powers:
        return Powers(
            signal=self.signal + other.signal,
            noise=self.noise + other.noise,
            rival=self.rival + other.rival,
            product=self.product + other.product,
            largest=max(self.largest, other.largest),
        )

    @property
    def ratio(self) -> float:
        """Noise over signal; infinite where there is noise alone."""
        if self.signal > 0:
            return self.noise / self.signal
        return float("inf") if self.noise > 0 else 0.0

    @property
    def cosine(self) -> float:
        """Between both tensors, seen as vectors; 1 where both are zero, NaN where one holds no numbers."""
        length = float(np.sqrt(self.signal) * np.sqrt(self.rival))
        if length == 0:
            return 1.0 if self.signal == self.rival else 0.0
        return self.product / length if np.isfinite(length) else float("nan")


@dataclass(frozen=True, kw_only=True, eq=False)
class TensorErrors:
    """The errors of one pair of tensors: in all; of its layer alone; and alone before the result is rounded, None where
    it is not rounded or only there after rounding.

    span: the least and the greatest element in the float model. scaled: the quantized model has channels multiplied,
    and what reads them takes that back; it is not counted as an error.
    """

    pair: TensorPair
    whole: Powers
    alone: Powers
    unrounded: Powers | None
    span: tuple[float, float]
    scaled: bool

    def __add__(self, other: TensorErrors) -> TensorErrors:
        both = self.unrounded is not None and other.unrounded is not None
        return TensorErrors(
            pair=self.pair,
            whole=self.whole + other.whole,
            alone=self.alone + other.alone,
            unrounded=self.unrounded + other.unrounded if both else None,  # type: ignore[operator]
            span=(min(self.span[0], other.span[0]), max(self.span[1], other.span[1])),
            scaled=self.scaled,
        )


class LayerErrors:
    """Runs two models side by side. `pairs` are those whose tensors are comparable, `left_out` the layers of others.

    floats, quantized: as `match_models` took them, to give `found`. Raises ModelError for models that ONNX Runtime
    cannot open or of which nothing can be compared, and DataError for data that they do not take.
    """

    def __init__(self, floats: ir.Model, quantized: ir.Model, found: Correspondence, sample: Feed) -> None:
        self._model = floats
        self._floats = ShownNetwork(floats, [pair.tensor for pair in found.pairs], "float")
        self._rivals = ShownNetwork(quantized, [name for pair in found.pairs for name in _names(pair)], "quantized")
        mine, theirs = self._run(sample)
        self.pairs = tuple(pair for pair in found.pairs if _comparable(pair, mine, theirs))
        if not any(pair.nodes for pair in self.pairs):
            raise ModelError("The two models have no tensor in common: compare a model with what was made from it.")
        kept = {pair.tensor for pair in self.pairs}
        real = {name for name, array in mine.items() if isinstance(array, np.ndarray) and array.dtype.kind == "f"}
        self.left_out = tuple(p.layer for p in found.pairs if p.tensor in real - kept)
        kinds = {name: (ir.DataType.from_numpy(mine[name].dtype), mine[name].ndim) for name in kept}
        apart, self._given = take_apart(floats, kinds)
        self._apart = ShownNetwork(apart, [pair.tensor for pair in self.pairs if pair.nodes], "float")

    def measure(self, samples: Sequence[Feed], progress: Progress = silent) -> tuple[TensorErrors, ...]:
        """The errors of all pairs in the order of the float model, over all samples, of which there is one at least."""
        progress("comparison", 0.0)
        gains = self._gains(samples[:_FITTED])
        sums: dict[str, TensorErrors] = {}
        for number, sample in enumerate(samples):
            for errors in self._measure(sample, gains):
                name = errors.pair.tensor
                sums[name] = sums[name] + errors if name in sums else errors
            progress("comparison", (number + 1) / len(samples))
        return tuple(sums.values())

    def _gains(self, samples: Sequence[Feed]) -> Gains:
        """The gains of channels that what reads them takes back, by tensor."""
        shown = [self._run(sample) for sample in samples]
        runs = [self._read(mine, theirs) for mine, theirs in shown]
        # Rounding cuts off what is too large for its grid: before it, gains are seen as they are.
        exact = [self._read(mine, theirs, exact=True) for mine, theirs in shown]
        tried = {}
        for pair in self.pairs:
            pairs = [(mine[pair.tensor], one[pair.tensor]) for (mine, _), one in zip(shown, exact, strict=True)]
            if (gain := fit_gains(pairs)) is not None:
                tried[pair.tensor] = gain
        if not tried:
            return {}
        ratios: list[dict[str, float]] = []
        for used in ({}, tried):
            made = self._layers(samples[0], runs[0], used)
            # What a layer makes may have gains of its own or none: nobody knows yet.
            results = {name: (exact[0][name], without_gains(exact[0][name], tried.get(name))) for name in made}
            ratios.append(
                {name: min(Powers.of(made[name], one).ratio for one in both) for name, both in results.items()}
            )
        undone = gains_that_readers_undo(self._model, tried, *ratios)
        # Fitted anew to what each layer alone makes, they are free of the noise of the layers before.
        alone = [self._layers(sample, read, undone) for sample, read in zip(samples, runs, strict=True)]
        for name in [name for name in undone if name in alone[0]]:
            pairs = [(one[name], read[name]) for one, read in zip(alone, exact, strict=True)]
            undone[name] = fit_gains(pairs, along=undone[name][1]) or undone[name]
        return undone

    def _measure(self, sample: Feed, gains: Gains) -> Iterator[TensorErrors]:
        mine, theirs = self._run(sample)
        read = self._read(mine, theirs)
        made = self._layers(sample, read, gains)
        for pair in self.pairs:
            name, expected, gain = pair.tensor, mine[pair.tensor], gains.get(pair.tensor)
            alone, result = made.get(name, expected), without_gains(read[name], gain)
            exact = without_gains(_like(theirs[pair.exact], expected), gain) if pair.exact and pair.rounded else None
            finite = expected[np.isfinite(expected)]
            yield TensorErrors(
                pair=pair,
                whole=Powers.of(expected, result),
                alone=Powers.of(alone, result),
                unrounded=None if exact is None else Powers.of(alone, exact),
                span=(float(finite.min(initial=np.inf)), float(finite.max(initial=-np.inf))),
                scaled=gain is not None,
            )

    def _layers(self, sample: Feed, read: Mapping[str, Array], gains: Gains) -> dict[str, Array]:
        """What each float layer makes of what the quantized one reads, without gains."""
        feed = {name: without_gains(read[tensor], gains.get(tensor)) for tensor, name in self._given.items()}
        made = self._apart.run({**sample, **feed})
        return {pair.tensor: made[pair.tensor] for pair in self.pairs if pair.nodes}

    def _read(self, mine: Mapping[str, Array], theirs: Mapping[str, Array], *, exact: bool = False) -> dict[str, Array]:
        """By the names of the float model, what stands for its tensors in the quantized one.

        exact: before it is rounded, where that is there.
        """
        return {
            pair.tensor: _like(
                theirs[pair.exact] if exact and pair.exact else _worst(pair, mine, theirs), mine[pair.tensor]
            )
            for pair in self.pairs
        }

    def _run(self, sample: Feed) -> tuple[dict[str, Array], dict[str, Array]]:
        """The tensors of both models; inputs of the quantized one may have other names."""
        theirs = self._rivals.inputs
        renamed = sample if set(theirs) <= set(sample) else dict(zip(theirs, sample.values(), strict=False))
        return self._floats.run(sample), self._rivals.run(renamed)


def _product(one: Array, two: Array) -> float:
    """The sum of products. No BLAS: its threads would wait for those of ONNX Runtime."""
    with np.errstate(over="ignore", invalid="ignore"):
        found = float(np.multiply(one, two).sum(dtype=np.float64))
    return found if np.isfinite(found) else float(np.multiply(one, two, dtype=np.float64).sum())


def _names(pair: TensorPair) -> Iterator[str]:
    if pair.exact:
        yield pair.exact
    yield from pair.rounded


def _comparable(pair: TensorPair, mine: Mapping[str, Array], theirs: Mapping[str, Array]) -> bool:
    arrays = [mine.get(pair.tensor), *(theirs.get(name) for name in _names(pair))]
    known = [array for array in arrays if isinstance(array, np.ndarray) and array.dtype.kind == "f"]
    return len(known) == len(arrays) > 1 and len({array.size for array in known}) == 1


def _worst(pair: TensorPair, mine: Mapping[str, Array], theirs: Mapping[str, Array]) -> Array:
    """Of what stands for a tensor after rounding, that which is farthest from it: each reader may round it anew."""
    names = pair.rounded or (pair.exact,)
    if len(names) == 1:
        return theirs[names[0]]
    expected = mine[pair.tensor]
    return max((theirs[name] for name in names), key=lambda array: Powers.of(expected, _like(array, expected)).noise)


def _like(array: Array, other: Array) -> Array:
    return array.reshape(other.shape).astype(other.dtype, copy=False)
