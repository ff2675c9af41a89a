"""Weights on grids of blocks: the nearest integers, or those of GPTQ or AdaRound where they are better on other data.

With fewer rows of data than a weight has inputs, a second moment is known in some directions only, and rounding that
goes by it may be worse than the nearest everywhere else. So methods are fitted on some samples and compared on others.
Where rows are few, they are tried with correlations shrunk as well: it saves what the data do tell if all directions
matter, and loses where the data do lie in a few.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx_ir as ir

from amct_onnx.engine.engine import HERE, Engine
from amct_onnx.engine.processors import processors
from amct_onnx.errors import ModelError
from amct_onnx.graph.index import index_graph
from amct_onnx.graph.layer_view import Layer
from amct_onnx.graph.weights import kernel_rows
from amct_onnx.numerics.arrays import Floats, Uint8s
from amct_onnx.numerics.settings import AdaRound
from amct_onnx.numerics.statistics.moments import SecondMoments
from amct_onnx.numerics.weights.block_grid import BlockGrid
from amct_onnx.numerics.weights.second_order import Advance, round_block_rows, shrunk
from amct_onnx.observe.second_moments import MEMORY, collect_moments
from amct_onnx.progress import Progress
from amct_onnx.ptq.held_out import Division
from amct_onnx.ptq.recipe.rounding import Method
from amct_onnx.run.round_layers import RoundingJob, round_layers
from amct_onnx.targets.to_nbits import BlockWeight

GridSolver = Callable[[Floats], BlockGrid]
# A layer, and what it reads of the samples to fit and of those that judge.
_Moments = tuple[str, SecondMoments, SecondMoments]
_LONGEST = 4096  # columns whose second moments are known together
_MANY = 3  # rows for each input: with as many, shrinking correlations changes little


@dataclass(frozen=True, kw_only=True, eq=False)
class RoundedBlocks:
    """A weight in its nearest integers, and in those of the method that is best on data held out.

    method: its name. helps: whether the layer's outputs have less noise with it, on these data.
    """

    nearest: BlockWeight
    learned: BlockWeight
    method: Method
    helps: bool


def nearest_blocks(layer: Layer, solve: GridSolver) -> BlockWeight:
    """The weight of a normalized layer in its nearest integers. Raises ModelError for one without a grid."""
    rows, grid = _rows_and_grid(layer, solve)
    return BlockWeight(integers=grid.quantize(rows), grid=grid)


def learn_blocks(
    model: ir.Model,
    layers: Sequence[str],
    twins: Mapping[str, str],
    division: Division,
    solve: GridSolver,
    *,
    methods: Sequence[Method],
    settings: AdaRound,
    progress: Progress,
    engine: Engine = HERE,
) -> dict[str, RoundedBlocks]:
    """The weights of `layers` of a normalized model, by layer; one that the data do not reach is left out.

    twins: for each layer the first one that has the same weight. They are rounded together, for the inputs of all.

    Raises like `collect_moments` and `round_layers`, and ModelError for a weight without a grid.
    """
    index = index_graph(model)

    def jobs() -> Iterator[RoundingJob[RoundedBlocks]]:
        for name, fit, judge in _joined(_both_moments(model, layers, division), twins):
            tries = partial(_learn, index.layer(name), solve, fit, judge, methods, settings)
            yield RoundingJob(layer=name, solve=tries)

    total = len(set(twins.values()))
    found = round_layers(jobs(), total=total, workers=processors(), what="rounding", progress=progress, engine=engine)
    return {name: found[twins[name]] for name in layers if twins[name] in found}


def _both_moments(model: ir.Model, layers: Sequence[str], division: Division) -> Iterator[_Moments]:
    """What each layer reads of the samples to fit, and of those that judge."""
    collect = partial(collect_moments, model, layers, memory=MEMORY // 2, longest=_LONGEST)
    judges, place = collect(feeds=division.judge), {name: number for number, name in enumerate(layers)}
    judge = next(judges, None)
    for name, fit in collect(feeds=division.fit):
        while judge is not None and place[judge[0]] < place[name]:
            judge = next(judges, None)
        if judge is not None and judge[0] == name:
            yield name, fit, judge[1]


def _joined(moments: Iterable[_Moments], twins: Mapping[str, str]) -> Iterator[_Moments]:
    """The moments of all that layers of one weight read, when the last of them is there."""
    waiting, left = dict[str, _Moments](), Counter(twins.values())
    for name, fit, judge in moments:
        owner = twins[name]
        if owner in waiting:
            _, earlier, judged = waiting[owner]
            waiting[owner] = owner, _together(earlier, fit), _together(judged, judge)
        else:
            waiting[owner] = owner, fit, judge
        left[owner] -= 1
        if not left[owner]:
            yield waiting.pop(owner)
    yield from waiting.values()


def _together(one: SecondMoments, two: SecondMoments) -> SecondMoments:
    count = one.columns + two.columns
    first, second = one.columns / count, two.columns / count
    return SecondMoments(
        columns=count, mean=first * one.mean + second * two.mean, gram=first * one.gram + second * two.gram
    )


def _learn(
    layer: Layer,
    solve: GridSolver,
    fit: SecondMoments,
    judge: SecondMoments,
    methods: Sequence[Method],
    settings: AdaRound,
    advance: Advance,
) -> RoundedBlocks:
    rows, grid = _rows_and_grid(layer, solve)
    nearest = grid.quantize(rows)
    few = fit.columns < _MANY * fit.gram.shape[1]
    tries = [(method, known) for method in methods for known in ((fit, shrunk(fit)) if few else (fit,))]
    best: tuple[float, Method, Uint8s] | None = None
    for method, known in tries:
        learning = settings if method == "adaround" else None
        integers = round_block_rows(rows, grid, known, learning, lambda share: advance(share / len(tries)))
        noise = _noise(rows, grid, integers, judge)
        if best is None or noise < best[0]:
            best = noise, method, integers
    assert best is not None
    return RoundedBlocks(
        nearest=BlockWeight(integers=nearest, grid=grid),
        learned=BlockWeight(integers=best[2], grid=grid),
        method=best[1],
        helps=best[0] < _noise(rows, grid, nearest, judge),
    )


def _noise(rows: Floats, grid: BlockGrid, integers: Uint8s, moments: SecondMoments) -> float:
    """The mean square of what rounding adds to the outputs of a layer that reads inputs of these moments."""
    error = grid.dequantize(integers).astype(np.float64) - rows
    width, total = moments.gram.shape[1], 0.0
    for unit, gram in enumerate(moments.gram):
        part = error[:, unit * width : (unit + 1) * width]
        size = part.shape[1]
        total += float(np.einsum("ij,ij->", part @ gram[:size, :size], part))
    return total


def _rows_and_grid(layer: Layer, solve: GridSolver) -> tuple[Floats, BlockGrid]:
    """The weight of a layer in rows of outputs, and its grid; its scales are of the layer's own type."""
    rows = kernel_rows(layer.array(), layer.node).astype(np.float32)
    try:
        grid = solve(rows)
        return rows, grid.in_float16() if layer.half else grid
    except ValueError as error:
        raise ModelError(f'Layer "{layer.name}": {error}. Correct the model or switch the layer off.') from error


def chosen_blocks(rounded: Mapping[str, RoundedBlocks]) -> dict[str, BlockWeight]:
    """The learned weights of the layers that they help; of all, where they help none, so that this can be told."""
    helped = {name: found.learned for name, found in rounded.items() if found.helps}
    return helped or {name: found.learned for name, found in rounded.items()}
