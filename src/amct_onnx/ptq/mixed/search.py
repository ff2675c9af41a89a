"""Mixed precision by measurement: the layers that a target of accuracy needs in float, or with int16 activations.

Effects are measured once (`ptq.mixed.effects`); they order the nodes by what each buys for its cost. Along that order
the accuracy rises, so bisection finds the first set that is enough; then cheaper sets of as little noise are tried.
Each set is lowered and judged as it will run (`ptq.mixed.goals`): the answer is proven by its own evaluation.
"""

from __future__ import annotations

import logging
import math
import pickle
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from amct_onnx.engine.engine import HERE, Engine
from amct_onnx.errors import AmctError
from amct_onnx.files.state_folder import NO_STATE, State
from amct_onnx.numerics.arrays import Feed
from amct_onnx.progress import Progress
from amct_onnx.ptq.mixed.effects import SAMPLES, Effects, measure
from amct_onnx.ptq.mixed.goals import Goal, Judgement, Measuring
from amct_onnx.ptq.mixed.order import NONE, Order, Part, Wish, Wishes
from amct_onnx.ptq.mixed.same_function import same_function
from amct_onnx.ptq.quantized_model import QuantizedModel
from amct_onnx.run.session import open_session
from amct_onnx.targets.table import TARGETS
from amct_onnx.values.mixed_precision import Evaluation, MixedPrecision

MOST_EVALUATIONS = 10  # of lowered models; the float model is one more
_REFINED = 3  # of them are for cheaper sets than the one that bisection finds
_WIDE = 1 / 3  # of the price of float: what int16 activations cost beyond int8, by their bytes
_log = logging.getLogger("amct_onnx.Search")


def search_mixed(
    quantized: QuantizedModel,
    goal: Goal,
    samples: Sequence[Feed],
    progress: Progress,
    engine: Engine = HERE,
    state: State = NO_STATE,
) -> QuantizedModel:
    """`quantized` with as few and as cheap layers in more than int8 as `goal` allows.

    The result has the search in `precision`. Where the goal is missed it is the best model that was evaluated, and a
    warning is logged. `samples`: those that calibrated it, some of them; for the effects of layers, and to calibrate
    it again where steps of the recipe have changed the function of the float network (`same_function`). engine: its
    workers measure effects, and models that the search may come to, before it does; the result does not tell. state:
    knows what was measured before, and keeps what is.
    """
    search = _Search(quantized, goal, progress, engine if engine.alone else travelling(goal, engine), state)
    enough = search.try_wishes(NONE)
    if not enough and any(decision.quantized for decision in quantized.decisions):
        try:
            enough = search.keep_function(samples)
            if not enough:
                some, model = spread(samples), search.quantized
                search.look_for(measure(model, some, cheap=True, progress=progress, engine=engine, state=state))
        except AmctError as error:  # e.g. outputs that are empty for all samples
            _log.warning("Which layers are to blame could not be measured: %s", error)
    result = search.result()
    if result.precision is not None and not result.precision.met:
        _log.warning("%s", result.precision)
    return result


def spread(samples: Sequence[Feed]) -> list[Feed]:
    count = min(SAMPLES, len(samples))
    return [samples[index * len(samples) // count] for index in range(count)]


def order_of(quantized: QuantizedModel, effects: Effects) -> Order:
    """The parts of the noise, what takes each away, and at what price."""
    wide = TARGETS[quantized.target].wide_layers(quantized.calibration)
    parts: list[Part] = []
    prices: dict[Wish, float] = {}
    holders = {unit.name: _in_float(unit.holders) for unit in effects.units}
    for unit, price, noise, share in zip(
        effects.units, effects.prices, effects.typical(), effects.from_constants, strict=True
    ):
        of_constants = 1.0 if math.isnan(share) else float(share)
        if unit.nodes:
            prices["float", unit.name] = price
            parts.append(Part(noise=noise * of_constants, cures=(_in_float([unit.name]),)))
        cures = [holders[unit.name]] if unit.holders else []
        if unit.name in wide:
            prices["int16", unit.name] = _WIDE * price
            cures.append(frozenset([("int16", unit.name)]))
        parts.append(Part(noise=noise * (1 - of_constants), cures=tuple(cures)))
    follows = {unit.name: [holders[name] for name in unit.reads] for unit in effects.units if unit.follows}
    return Order(parts=parts, prices=prices, follows=follows)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a goal's `measuring` gives for a model. done: whether it did; else the search tries it itself."""

    found: Any = None
    done: bool = False


def key_of(quantized: QuantizedModel, wishes: Wishes) -> str:
    """What resumable state calls the model with these wishes."""
    return f"trial of {quantized.statistics.digest} with {sorted(wishes)}"


@dataclass(frozen=True, kw_only=True, eq=False)
class MeasureTrials:
    """The work of lowering models with other wishes than `quantized`, and measuring them. nodes: those of each unit."""

    quantized: QuantizedModel
    nodes: Mapping[str, Sequence[str]]
    measuring: Measuring
    state: State

    @contextmanager
    def open(self) -> Iterator[Callable[[Wishes], Measured]]:
        yield self._measure

    def _measure(self, wishes: Wishes) -> Measured:
        try:
            model = with_wishes(self.quantized, wishes, self.nodes)
            if model is None:
                return Measured()
            key = key_of(self.quantized, wishes)
            found = self.state.recalled(key, lambda: self.measuring(model.lowered.session()))
            return Measured(found=found, done=True)
        except Exception:  # the search may never come here; where it does, it meets the same
            return Measured()


def travelling(goal: Goal, engine: Engine) -> Engine:
    """`engine`, or this process where others do not know the function that measures models, which the log says."""
    try:
        unknown = b"__main__" in pickle.dumps(goal.measuring())
    except Exception:  # whatever a function of the user's holds says why it cannot be pickled
        unknown = True
    if unknown:
        _log.info("The evaluator runs in this process, since others cannot import it: put it into a module for that.")
    return HERE if unknown else engine


def with_wishes(quantized: QuantizedModel, wishes: Wishes, nodes: Mapping[str, Sequence[str]]) -> QuantizedModel | None:
    """`quantized` with these wishes, None where no layer is left in integers. nodes: those of each unit."""
    units = {unit for kind, unit in wishes if kind == "float"}
    off = [node for name, own in nodes.items() if name in units for node in own]
    wide = [name for name in nodes if ("int16", name) in wishes and name not in units]
    request = quantized.calibration.request
    if {decision.layer for decision in quantized.decisions if decision.quantized} <= set(off):
        return None
    searched = tuple(dict.fromkeys([*request.searched, *off]))
    model = quantized.solved(
        replace(quantized.calibration, request=replace(request, searched=searched, wide=tuple(wide)))
    )
    return model if any(decision.quantized for decision in model.decisions) else None


def _in_float(units: Sequence[str]) -> Wishes:
    return frozenset(("float", unit) for unit in units)


@dataclass
class _Search:
    quantized: QuantizedModel
    goal: Goal
    progress: Progress
    engine: Engine = HERE
    state: State = NO_STATE
    nodes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    order: Order | None = None
    found: list[QuantizedModel] = field(default_factory=list)  # without what they were lowered to
    evaluations: list[Evaluation] = field(default_factory=list)
    known: dict[tuple[object, ...], int] = field(default_factory=dict)
    most: int = MOST_EVALUATIONS
    notes: tuple[str, ...] = ()
    tried: set[Wishes] = field(default_factory=set)
    ahead: dict[Wishes, Measured] = field(default_factory=dict)  # of models that are not evaluated yet

    def keep_function(self, samples: Sequence[Feed]) -> bool:
        """Go on without the steps that changed the float function, where that is in the way; whether it is enough."""
        plain = same_function(self.quantized, samples)
        if plain is None:
            return False
        changed = self.quantized.calibration.source.model
        self.most -= 1
        hinders = not self.state.recalled(
            "trial of the changed float model",
            lambda: self.goal.leaves_room(open_session(changed.clone(), own_model=True)),
        )
        with_it, before = self.quantized, self.evaluations[0].value
        self.quantized = plain
        enough = self.try_wishes(NONE)
        if not hinders and self.evaluations[-1].value <= before:
            self.quantized = with_it
        else:
            self.notes = ("Equalization behind a Clip is undone: layers in float would have kept what it changed.",)
        return enough

    def look_for(self, effects: Effects) -> None:
        """Find sets of the order that are enough, as far as the accuracy rises along it."""
        self.nodes = {unit.name: unit.nodes for unit in effects.units}
        self.order = order = order_of(self.quantized, effects)
        path = order.path()
        low, high = self._bisect(path, self.try_wishes)
        if not any(evaluation.enough for evaluation in self.evaluations):
            self._bisect(path, self._is_likely)  # the result is what is likely to be enough, and as cheap as can be
        if high == len(path):
            return
        best, tried = path[high], 0
        noise = order.noise(path[high]), order.noise(path[low])
        for limit in ((noise[0] + noise[1]) / 2, noise[0]):
            cheaper = order.cheapest(limit, [best], path[low])
            if tried < _REFINED and len(self.evaluations) < self.most and order.cost(cheaper) < order.cost(best):
                tried += 1
                best = cheaper if self.try_wishes(cheaper) else best

    def _bisect(self, path: Sequence[Wishes], good: Callable[[Wishes], bool]) -> tuple[int, int]:
        """The last place on the path that is not good and the first one that is, as far as there are evaluations."""
        low, high = 0, len(path)
        while high - low > 1 and len(self.evaluations) < self.most:
            middle = (low + high) // 2
            if not self.engine.alone and path[middle] not in self.tried | self.ahead.keys():
                self._measure_ahead(path, low, high)
            low, high = (low, middle) if good(path[middle]) else (middle, high)
        return low, high

    def _measure_ahead(self, path: Sequence[Wishes], low: int, high: int) -> None:
        """Let each worker measure one of the models that the bisection of this part of the path may come to next."""
        waiting, wanted = deque([(low, high, self.most - len(self.evaluations))]), list[Wishes]()
        while waiting and len(wanted) < self.engine.workers:
            low, high, left = waiting.popleft()
            middle = (low + high) // 2
            if high - low > 1 and left:
                wanted += [path[middle]] if path[middle] not in self.tried | self.ahead.keys() else []
                waiting += [(low, middle, left - 1), (middle, high, left - 1)]
        measuring = self.goal.measuring()
        work = MeasureTrials(quantized=self.quantized, nodes=self.nodes, measuring=measuring, state=self.state)
        with closing(self.engine.map(work, wanted)) as outcomes:
            self.ahead |= zip(wanted, outcomes, strict=True)

    def try_wishes(self, wishes: Wishes) -> bool:
        """Lower and evaluate the model with these wishes; whether it is good enough. All in float is."""
        evaluation = self._evaluated(wishes)
        return evaluation is None or evaluation.enough

    def _is_likely(self, wishes: Wishes) -> bool:
        evaluation = self._evaluated(wishes)
        return evaluation is None or evaluation.likely

    def _evaluated(self, wishes: Wishes) -> Evaluation | None:
        """Lower and evaluate the model with these wishes, once; None where no layer is left in integers."""
        self.tried.add(wishes)
        model = self._model(wishes)
        if model is None:
            return None
        request = model.calibration.request
        key = (id(self.quantized), model.decisions, request.wide)
        if key not in self.known:
            known, session = self.ahead.pop(wishes, Measured()), model.lowered.session
            found = known.found if known.done else self._measured(wishes, session)
            judgement = self.goal.judge(found)
            self.known[key] = len(self.evaluations)
            self.found.append(replace(self.quantized, calibration=model.calibration))
            self.evaluations.append(self._evaluation(model, judgement, self._share(wishes)))
            self.progress("evaluation", len(self.evaluations) / MOST_EVALUATIONS)
        return self.evaluations[self.known[key]]

    def _measured(self, wishes: Wishes, session: Callable[[], Any]) -> Any:
        return self.state.recalled(key_of(self.quantized, wishes), lambda: self.goal.measuring()(session()))

    def _share(self, wishes: Wishes) -> float:
        if self.order is None or not wishes:
            return 0.0
        whole = self.order.cost(frozenset(wish for wish in self.order.prices if wish[0] == "float"))
        return self.order.cost(wishes) / max(whole, 1e-30)

    def _evaluation(self, model: QuantizedModel, judgement: Judgement, share: float) -> Evaluation:
        return Evaluation(
            float_layers=_lost(self.quantized, model),
            wide_layers=model.calibration.request.wide,
            value=judgement.value,
            checked=judgement.checked,
            cost=share,
            met=judgement.met,
            enough=judgement.enough,
            likely=judgement.likely,
        )

    def _model(self, wishes: Wishes) -> QuantizedModel | None:
        """The quantized model with these wishes, None where no layer is left in integers."""
        return with_wishes(self.quantized, wishes, self.nodes) if wishes else self.quantized

    def result(self) -> QuantizedModel:
        """The cheapest model that is surely good enough, else the cheapest that seems so or is likely to be, else the
        best one."""
        chosen = max(range(len(self.evaluations)), key=lambda number: _rank(self.evaluations[number]))
        precision = MixedPrecision(
            measure=self.goal.measure,
            reference=self.goal.reference,
            required=self.goal.required,
            evaluations=tuple(self.evaluations),
            chosen=chosen,
            notes=self.notes if self.found[chosen].calibration.source is self.quantized.calibration.source else (),
        )
        model = self.found[chosen]
        same = model.calibration is self.quantized.calibration
        return replace(self.quantized if same else model.solved(model.calibration), precision=precision)


def _rank(evaluation: Evaluation) -> tuple[bool, bool, bool, float, float, float]:
    good = evaluation.met, evaluation.enough, evaluation.likely
    return *good, -evaluation.cost if any(good) else 0.0, evaluation.value, -evaluation.cost


def _lost(whole: QuantizedModel, model: QuantizedModel) -> tuple[str, ...]:
    """The nodes that `whole` quantizes and `model` does not."""
    kept = {decision.layer for decision in model.decisions if decision.quantized}
    return tuple(d.layer for d in whole.decisions if d.quantized and d.layer not in kept)
