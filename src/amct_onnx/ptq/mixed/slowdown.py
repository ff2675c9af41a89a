"""The accuracy that a little more time buys: nodes in float, or in int16, as far as `max_slowdown` goes."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import onnx_ir as ir

from amct_onnx.engine.engine import HERE, Engine
from amct_onnx.errors import AmctError
from amct_onnx.files.state_folder import NO_STATE, State
from amct_onnx.measure.output_judge import OutputJudge, gain
from amct_onnx.numerics.arrays import Feed
from amct_onnx.progress import Progress
from amct_onnx.ptq.mixed.effects import measure
from amct_onnx.ptq.mixed.order import NONE, Order, Wishes
from amct_onnx.ptq.mixed.search import order_of, spread, with_wishes
from amct_onnx.ptq.quantized_model import QuantizedModel
from amct_onnx.values.findings import Step

_LEAST = 0.02  # of the noise: the last sets of an order that take away less together are not taken
_log = logging.getLogger("amct_onnx.Search")


def spend_time(
    quantized: QuantizedModel,
    most: float,
    *,
    model: ir.Model,
    samples: Sequence[Feed],
    held_out: Sequence[Feed],
    progress: Progress,
    engine: Engine = HERE,
    state: State = NO_STATE,
) -> QuantizedModel:
    """`quantized` with the nodes in float that make most of the noise, if that helps on samples `held_out`.

    most: how many times as long as now it may take, by the prices of nodes and not by measurement. model: the float
    network that it is judged by. samples: some that calibrated it. engine: its workers run them. state: knows and
    keeps what they show. The step is the last of `steps`.
    """
    try:
        effects = measure(quantized, spread(samples), cheap=True, progress=progress, engine=engine, state=state)
    except AmctError as error:
        _log.warning("Which layers are to blame could not be measured: %s", error)
        return quantized
    order, nodes = order_of(quantized, effects), {unit.name: unit.nodes for unit in effects.units}
    wishes = affordable(order, (most - 1) * effects.whole)
    tried = with_wishes(quantized, wishes, nodes) if wishes else None
    if tried is None:
        reason = f"nothing that lowers the noise costs less than {most - 1:.0%} of the time"
        step = Step(name="nodes in float", before=float("inf"), after=None, kept=False, reason=reason)
        return replace(quantized, steps=(*quantized.steps, step))
    judge = OutputJudge(model, held_out)
    before, after = judge.scores(quantized.lowered), judge.scores(tried.lowered)
    better, error_of_it = gain(before, after)
    slower = 1 + order.cost(wishes) / max(effects.whole, 1e-30)
    step = Step(
        name=f"{len(wishes)} nodes in more than int8, {slower:.2f} times the time",
        before=before.decibels,
        after=after.decibels,
        kept=better > error_of_it,
        error=error_of_it,
    )
    return replace(tried if step.kept else quantized, steps=(*quantized.steps, step))


def affordable(order: Order, budget: float) -> Wishes:
    """The least set on the path of an order that takes away nearly all noise which can go for `budget`."""
    within = [wishes for wishes in order.path() if order.cost(wishes) <= budget]
    enough = order.noise(within[-1]) + _LEAST * order.noise(NONE)
    return next(wishes for wishes in within if order.noise(wishes) <= enough)
