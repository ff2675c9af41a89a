"""AdaRound: choose for each weight whether it is rounded down or up, so that the layer's outputs change least.

Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization", 2020; amct_formats.md: AdaRound. For a row
w of the weight with scale s and integers q, let u = q - w / s. The expected squared error of its output is s^2 u G u^T,
with G the Gram matrix of the layer's input columns, so the data is needed no more once G is known. Three steps:

1. Relaxation, as in the paper: h = clip(1.2 sigmoid(a) - 0.1, 0, 1) stands for the upper integer, Adam minimizes
   u G u^T + reg_param * sum(1 - |2h - 1|^beta), and the second term, which comes in after `warm_start` of the steps
   while beta falls along a cosine, drives h to 0 or 1.
2. Descent: as long as rounding one weight of a row the other way lowers the error, the one that lowers it most is
   taken. It also starts from rounding to nearest, and each row takes the better end. So no row is worse than nearest.
3. A weight that is an integer multiple of its scale, or that is clipped, stays as rounding to nearest leaves it.

The paper draws batches of samples, and its gradients are noisy; here the gradient is that of all data, and one step
with learning rate 0.02 does what 20 of AMCT's with 0.001 do: `num_iteration` counts AMCT's. The error of a row counts
in units of its error by rounding to nearest, a weight's share of it, so that reg_param means the same in every layer.

Results do not depend on the number of threads: matrices are multiplied as integers in float64, small enough for every
sum to be exact whatever the order; all else is elementwise or summed by numpy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from amct_onnx.numerics.arrays import Doubles, Floats, Int32s, Int64s
from amct_onnx.numerics.exact_products import LONGEST_SUM, digits, product_of_digits
from amct_onnx.numerics.grid import QParams, QSpec, legal_scale
from amct_onnx.numerics.settings import AdaRound
from amct_onnx.numerics.statistics.moments import SecondMoments
from amct_onnx.numerics.weights.arq import solve_arq

LONGEST_BLOCK = LONGEST_SUM
_ITERATIONS_PER_STEP = 20
_LEARNING_RATE = 1e-3 * _ITERATIONS_PER_STEP  # AMCT's, for so many of its iterations at once
_REGULARIZATION = 400.0  # times reg_param: the weight of the second term beside an error in units of nearest rounding's
_ZETA, _GAMMA = 1.1, -0.1
_CHUNK = 1 << 17  # weights learned at a time, so that what a step touches stays in the cache
_ON_GRID = 1e-4  # a weight so near to an integer multiple of its scale is one: float32 leaves up to 1.5e-5
_SHRINKS = tuple(1 - 0.02 * i for i in range(20))


@dataclass(frozen=True, kw_only=True)
class LearnedRounding:
    """integers: int32[G, R, K]. nearest, learned: float64[G, R], the expected squared output error of each row by
    rounding to nearest and by these integers; learned <= nearest."""

    integers: Int32s
    nearest: Doubles
    learned: Doubles


def solve_scale(weight: Floats, spec: QSpec) -> QParams:
    """QParams of a weight seen as rows [channels, rest], for rounding to be learned: least squares.

    AMCT takes the least KL divergence between histograms here; the squared error, over the same 20 shrunken ranges, is
    nearer to what AdaRound minimizes, and never above that of the extremes (ARQ). Raises ValueError like `solve_arq`.
    """
    params = solve_arq(weight, spec)
    rows = weight.reshape(params.scale.size, -1).astype(np.float64)
    best, least = params.scale, np.full(params.scale.size, np.inf)
    for shrink in _SHRINKS:
        scale = legal_scale(params.scale * np.float32(shrink), params.spec)
        steps = rows / scale[:, None].astype(np.float64)
        steps -= np.clip(np.rint(steps), spec.qmin, spec.qmax)
        error = np.square(steps, out=steps).sum(axis=1) * scale.astype(np.float64) ** 2
        best, least = np.where(error < least, scale, best), np.minimum(error, least)
    return QParams(scale=best, zero_point=params.zero_point, spec=spec)


def learn_rounding(
    weight: Floats,
    scale: Floats,
    spec: QSpec,
    moments: SecondMoments,
    settings: AdaRound,
    advance: Callable[[float], None] = lambda share: None,
    *,
    shift: Doubles | None = None,
) -> LearnedRounding:
    """Integers within the spec's range for `weight` [G, R, K]: G groups with columns of their own, R rows of length K.

    scale: [G, R], or [G, R, K] where blocks of columns have scales of their own. shift: None, or [G, R, K] in integers,
    what is added to the ratios of weights and scales first (a zero point). moments: of the columns, G groups of blocks
    of B entries, the last one filled up with zeros. advance: called with the share of this layer's work that was done
    since the last call. What it raises ends the work.
    """
    groups, rows, length = weight.shape
    width = moments.mean.shape[-1]
    blocks = moments.mean.shape[0] // groups
    by_column = scale.ndim == 3
    unit = scale.max(axis=2) if by_column else scale

    def cut(values: Doubles) -> Doubles:
        filled = np.zeros((groups, rows, blocks * width))
        filled[..., :length] = values
        return np.asarray(filled.reshape(groups, rows, blocks, width).transpose(0, 2, 1, 3))

    steps = scale.astype(np.float64) if by_column else scale[..., None].astype(np.float64)
    ratio = cut(weight.astype(np.float64) / steps + (0 if shift is None else shift))
    factors = cut(steps / unit[..., None]) if by_column else None
    integers = np.empty((groups, blocks, rows, width))
    nearest, learned = np.empty((groups, rows)), np.empty((groups, rows))
    gram = moments.gram.reshape(groups, blocks, width, width)
    mean = moments.mean.reshape(groups, blocks, width)
    for part, some in _chunks(groups, rows, blocks * width):
        quadratic = _Quadratic(gram[part], mean[part], None if factors is None else factors[part, :, some])
        share = ratio[part, :, some].size / ratio.size
        chunk = _Chunk(ratio[part, :, some], spec, quadratic)
        integers[part, :, some] = chunk.learn(settings, _scaled(advance, share))
        nearest[part, some], learned[part, some] = chunk.nearest_error, chunk.learned_error
    rounded = integers.transpose(0, 2, 1, 3).reshape(groups, rows, -1)[..., :length]
    squares = unit.astype(np.float64) ** 2
    return LearnedRounding(integers=rounded.astype(np.int32), nearest=nearest * squares, learned=learned * squares)


def _scaled(advance: Callable[[float], None], share: float) -> Callable[[float], None]:
    return lambda done: advance(done * share)


def _chunks(groups: int, rows: int, length: int) -> Iterator[tuple[slice, slice]]:
    """Slices of groups and rows with about _CHUNK weights each."""
    some = max(1, min(rows, _CHUNK // length))
    many = max(1, _CHUNK // (some * length))
    for group in range(0, groups, many):
        for row in range(0, rows, some):
            yield slice(group, group + many), slice(row, row + some)


class _Quadratic:
    """u S G S u^T for rows u float64[G, blocks, R, B] of any number of groups.

    G has the blocks' matrices on its diagonal. Between blocks only the product of the means is known and used. S is
    diagonal, with the scales of each row's columns in units of that of the row: None where they are 1.
    """

    def __init__(self, gram: Doubles, mean: Doubles, scales: Doubles | None = None) -> None:
        self._mean = mean[:, :, None, :] if mean.shape[1] > 1 else None
        self._matrix = gram if self._mean is None else gram - mean[..., :, None] * mean[..., None, :]
        self._digits, self._scales = digits(self._matrix), scales
        self.diagonal: Doubles = np.einsum("gbkk->gbk", gram)[:, :, None, :]
        if scales is not None:
            self.diagonal = self.diagonal * scales**2

    def times(self, u: Doubles) -> Doubles:
        """u S G S, with u S and G rounded to 20 bits: enough for a gradient."""
        u = self._scaled(u)
        high, _, unit = digits(u)
        return self._scaled(self._with_means(u, (high @ self._digits[0]) * (unit * self._digits[2])))

    def times_precisely(self, u: Doubles) -> Doubles:
        """u S G S, with u S and G rounded to 40 bits."""
        u = self._scaled(u)
        return self._scaled(self._with_means(u, product_of_digits(digits(u), self._digits)))

    def add_flips(self, product: Doubles, rows: tuple[Int64s, ...], steps: Doubles) -> None:
        """Bring product = u S G S up to date, in place, after u[group, block, row, column] changed by steps."""
        group, block, row, column = rows
        if self._scales is not None:
            steps = steps * self._scales[rows]
        change = steps[:, None] * self._matrix[group, block, column]
        product[group, block, row] += change if self._scales is None else change * self._scales[group, block, row]
        if self._mean is not None:
            moved = (steps * self._mean[group, block, 0, column])[:, None, None] * self._mean[group, :, 0]
            product[group, :, row] += moved if self._scales is None else moved * self._scales[group, :, row]

    def _scaled(self, u: Doubles) -> Doubles:
        return u if self._scales is None else u * self._scales

    def _with_means(self, u: Doubles, product: Doubles) -> Doubles:
        if self._mean is not None:
            product += (u * self._mean).sum(axis=(1, 3), keepdims=True) * self._mean
        return product


class _Chunk:
    """Some rows of a weight in units of its scale: ratio float64[G, blocks, R, B] = w / s."""

    def __init__(self, ratio: Doubles, spec: QSpec, quadratic: _Quadratic) -> None:
        whole = np.rint(ratio)
        self._ratio, self._quadratic = np.where(np.abs(ratio - whole) < _ON_GRID, whole, ratio), quadratic
        self._floor = np.floor(self._ratio)
        self._nearest = np.clip(np.rint(self._ratio), spec.qmin, spec.qmax)
        fits = (self._floor >= spec.qmin) & (self._floor < spec.qmax)
        self._free = fits & (self._floor != self._ratio)
        self.nearest_error = self._error(self._nearest)
        self.learned_error = self.nearest_error

    def learn(self, settings: AdaRound, advance: Callable[[float], None]) -> Doubles:
        """The integers; `learned_error` is theirs."""
        steps = -(-settings.num_iteration // _ITERATIONS_PER_STEP)
        if not steps or not self._free.any() or not self.nearest_error.any():
            advance(1.0)
            return self._nearest
        relaxed = self._relax(settings, steps, advance)
        tick = partial(advance, 0.0)  # descent is short and of unknown length; but the caller may want to stop it
        best = self._nearest
        for start in (self._nearest, np.where(self._free, self._floor + (relaxed >= 0.5), self._nearest)):
            integers = self._descend(start, tick)
            error = self._error(integers)
            better = error < self.learned_error
            best = np.where(better[:, None, :, None], integers, best)
            self.learned_error = np.where(better, error, self.learned_error)
        return best

    def _error(self, integers: Doubles) -> Doubles:
        """[G, R], the squared error of each row in units of its scale."""
        u = integers - self._ratio
        error: Doubles = (self._quadratic.times_precisely(u) * u).sum(axis=(1, 3))
        return np.maximum(error, 0)  # rounding of G may leave a null vector with less than nothing

    def _relax(self, settings: AdaRound, steps: int, advance: Callable[[float], None]) -> Floats:
        """h float32[G, blocks, R, B] after all steps; it has no meaning where a weight is not free."""
        free = self._free.astype(np.float32)
        fraction = (self._ratio - self._floor).astype(np.float32)
        fixed = np.where(self._free, -fraction, self._nearest - self._ratio).astype(np.float32)
        logit = (fraction - np.float32(_GAMMA)) / np.float32(_ZETA - _GAMMA)
        a = np.log(logit / (1 - logit))  # so that h = fraction
        share = np.maximum(free.sum(axis=(1, 3)), 1)
        with np.errstate(divide="ignore"):
            norm = np.where(self.nearest_error > 0, 2 * share / self.nearest_error, 0)[:, None, :, None]
        first, second = np.zeros_like(a), np.zeros_like(a)
        warm = settings.warm_start * steps
        for step in range(steps):
            sigmoid = 1 / (1 + np.exp(-a))
            h = np.clip(sigmoid * np.float32(_ZETA - _GAMMA) + np.float32(_GAMMA), 0, 1)
            gradient = (self._quadratic.times((h * free + fixed).astype(np.float64)) * norm).astype(np.float32)
            if step >= warm:
                beta = _anneal((step - warm) / (steps - warm), settings.beta_range)
                gradient -= _pull(h, beta, settings.reg_param)
            sigmoid -= np.square(sigmoid)
            sigmoid *= free
            sigmoid *= (h > 0) & (h < 1)
            gradient *= sigmoid
            first += np.float32(0.1) * (gradient - first)
            second += np.float32(0.001) * (np.square(gradient) - second)
            rate = _LEARNING_RATE / (1 - 0.9 ** (step + 1))
            spread = np.sqrt(second * np.float32(1 / (1 - 0.999 ** (step + 1))))
            spread += np.float32(1e-8)
            a -= np.float32(rate) * first / spread
            advance(1 / steps)
        return np.asarray(h, np.float32)

    def _descend(self, start: Doubles, tick: Callable[[], None]) -> Doubles:
        """Integers from which no single change of rounding lowers the error of its row."""
        integers = start.copy()
        product = self._quadratic.times_precisely(integers - self._ratio)
        groups, blocks, rows, width = integers.shape
        active = np.ones((groups, rows), np.bool_)
        least = -1e-9 * self.nearest_error  # below this a gain is rounding noise
        curvature = self._quadratic.diagonal
        for _ in range(blocks * width):
            tick()
            step = np.where(integers > self._floor, -1.0, 1.0)
            gain = np.where(self._free, step * (2 * product) + curvature, np.inf)
            flat = gain.transpose(0, 2, 1, 3).reshape(groups, rows, -1)
            column = flat.argmin(axis=2)
            active = np.take_along_axis(flat, column[..., None], axis=2)[..., 0] < least
            if not active.any():
                break
            group, row = np.nonzero(active)
            block, place = np.divmod(column[group, row], width)
            flips = (group, block, row, place)
            integers[flips] += step[flips]
            self._quadratic.add_flips(product, flips, step[flips])
        return np.asarray(integers, np.float64)


def _anneal(share: float, beta_range: tuple[float, float]) -> float:
    start, end = beta_range
    return float(end + 0.5 * (start - end) * (1 + np.cos(share * np.pi)))


def _pull(h: Floats, beta: float, reg_param: float) -> Floats:
    """Minus the derivative of reg_param * (1 - |2h - 1|^beta) by h, up to the factor of the sigmoid."""
    y = 2 * h - 1
    magnitude = np.maximum(np.abs(y), np.float32(1e-30))
    power = np.exp(np.log(magnitude) * np.float32(beta - 1))
    return np.asarray(np.copysign(power * np.float32(2 * beta * reg_param * _REGULARIZATION), y), np.float32)
