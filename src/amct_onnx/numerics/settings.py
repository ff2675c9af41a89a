"""Everything a run can be told, as frozen values. config.json, .cfg files and keywords all become these.

The solvers' settings carry AMCT's defaults and bounds (amct_formats.md: Layer entries), and refuse what is outside of
them. Whoever reads a file checks the bounds first, so that a message can point at the place in the document.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import numpy as np

from amct_onnx.errors import ArgumentError, ArgumentTypeError
from amct_onnx.frozen import FrozenDict

# Bounds that AMCT does not have. They leave room around all that makes sense, and keep a slip of the keyboard from work
# without an end.
LEAST_RATIO, LARGEST_RATIO = 1e-5, 100.0  # of a bound that is tried to the extreme that was seen; also the least step
MOST_CANDIDATES = 10_000  # of one search
MOST_BATCHES = 2**31 - 1
MOST_ITERATIONS = 1_000_000
LARGEST_BETA = 1000.0
BINS, STEPS, ROUNDS = (1024, 2048, 4096, 8192), (16, 32), (0, 1, 2, 3, 4, 5)
ACTIVATION_BITS, WEIGHT_BITS = (4, 8, 16), (4, 6, 7, 8)
STRENGTHS = (0.2, 0.8)  # of DMQ balancing


_REAL, _WHOLE = (float, int, np.floating, np.integer), (int, np.integer)


def _check(
    owner: object, name: str, kinds: tuple[type, ...], allowed: Callable[[Any], bool], words: str, value: Any = None
) -> None:
    """Refuse a field (or a part `value` of it) that is no finite number of these kinds, or that is not allowed."""
    value = getattr(owner, name) if value is None else value
    place = f"{type(owner).__name__}.{name}"
    if isinstance(value, bool) or not isinstance(value, kinds):
        number = "a whole number" if kinds is _WHOLE else "a number"
        raise ArgumentTypeError(f"{place} must be {number}, got {type(value).__name__}")
    given: Any = value
    if not -math.inf < given < math.inf or not allowed(value):
        shown = "a huge number" if 1e30 < abs(given) < math.inf else value  # Python prints no integer of 5000 digits
        raise ArgumentError(f"{place} must be {words}, got {shown}")


def _check_choice(owner: object, name: str, choices: tuple[int, ...]) -> None:
    _check(owner, name, _WHOLE, choices.__contains__, f"one of {', '.join(map(str, choices))}")


def _check_within(owner: object, name: str, low: float, high: float, kinds: tuple[type, ...] = _REAL) -> None:
    _check(owner, name, kinds, lambda v: low <= v <= high, f"within [{low}, {high}]")


def _check_percentile(owner: object, name: str) -> None:
    _check(owner, name, _REAL, lambda v: 0.5 < v <= 1, "within (0.5, 1]")


def count_candidates(start: float, end: float, step: float) -> int:
    """How many of start, start + step, ... are at most `end`, counted in decimals."""
    first, last, width = (Decimal(str(value)) for value in (start, end, step))
    return int((last - first) / width) + 1


@dataclass(frozen=True, kw_only=True)
class Ifmr:
    """Settings of IFMR (amct_formats.md: IFMR): percentiles in (0.5, 1], 1e-5 <= start <= end <= 100, step >= 1e-5.

    At most 10000 candidates may come of the last three.
    """

    max_percentile: float = 0.999999
    min_percentile: float = 0.999999
    search_start: float = 0.7
    search_end: float = 1.3
    search_step: float = 0.01

    def __post_init__(self) -> None:
        _check_percentile(self, "max_percentile")
        _check_percentile(self, "min_percentile")
        _check_within(self, "search_start", LEAST_RATIO, LARGEST_RATIO)
        _check_within(self, "search_end", self.search_start, LARGEST_RATIO)
        _check_within(self, "search_step", LEAST_RATIO, LARGEST_RATIO)
        if self.candidates > MOST_CANDIDATES + 1:  # one more, since a calibration model keeps seven digits
            area = f"from {self.search_start} to {self.search_end}"
            text = f"Ifmr.search_step must be larger, got {self.search_step}: at most {MOST_CANDIDATES} candidates"
            raise ArgumentError(f"{text} are tried, {area} these are {self.candidates}")

    @property
    def candidates(self) -> int:
        """How many ranges are tried."""
        return count_candidates(self.search_start, self.search_end, self.search_step)


@dataclass(frozen=True, kw_only=True)
class Hfmg:
    """Settings of the HFMG search (amct_formats.md: HFMG): 1024, 2048, 4096 or 8192 bins."""

    num_of_bins: int = 4096

    def __post_init__(self) -> None:
        _check_choice(self, "num_of_bins", BINS)


@dataclass(frozen=True, kw_only=True)
class MinMax:
    """The whole range of what was seen."""


@dataclass(frozen=True, kw_only=True)
class Mse:
    """The range of least squared error, by a search over both of its bounds."""


@dataclass(frozen=True, kw_only=True)
class Percentile:
    """The range without the outermost elements: on each side it holds the fraction `percentile`, in (0.5, 1]."""

    percentile: float = 0.99999

    def __post_init__(self) -> None:
        _check_percentile(self, "percentile")


@dataclass(frozen=True, kw_only=True)
class Entropy:
    """The range of least information lost (Kullback-Leibler), on a histogram of at most `num_of_bins` bins.

    512 to 16384. A step is at least one bin, so more bins also let the range become smaller.
    """

    num_of_bins: int = 4096

    def __post_init__(self) -> None:
        _check_within(self, "num_of_bins", 512, 16384, _WHOLE)


ActivationSolver = Ifmr | Hfmg | MinMax | Mse | Percentile | Entropy


@dataclass(frozen=True, kw_only=True)
class Arq:
    """Weights by their extremes (amct_formats.md: ARQ)."""


@dataclass(frozen=True, kw_only=True)
class AdaRound:
    """Settings of learned rounding (amct_formats.md: AdaRound).

    num_iteration is at most a million, reg_param and warm_start are within (0, 1), 1000 >= beta_range[0] >
    beta_range[1] > 0.
    """

    num_iteration: int = 10000
    reg_param: float = 0.01
    beta_range: tuple[float, float] = (20.0, 2.0)
    warm_start: float = 0.2

    def __post_init__(self) -> None:
        object.__setattr__(self, "beta_range", tuple(self.beta_range))  # JSON has lists
        _check_within(self, "num_iteration", 0, MOST_ITERATIONS, _WHOLE)
        for name in ("reg_param", "warm_start"):
            _check(self, name, _REAL, lambda v: 0 < v < 1, "within (0, 1)")
        if len(self.beta_range) != 2:
            raise ArgumentError(f"AdaRound.beta_range must be two numbers, got {len(self.beta_range)}")
        start, end = self.beta_range
        words = f"[start, end] with {LARGEST_BETA} >= start > end > 0"
        _check(self, "beta_range", _REAL, lambda v: 0 < v <= LARGEST_BETA, words, start)
        _check(self, "beta_range", _REAL, lambda v: 0 < v < start, words, end)


@dataclass(frozen=True, kw_only=True)
class Nuq:
    """Settings of non-uniform weights (amct_formats.md: NUQ)."""

    num_steps: int = 32
    num_of_iteration: int = 1

    def __post_init__(self) -> None:
        _check_choice(self, "num_steps", STEPS)
        _check_choice(self, "num_of_iteration", ROUNDS)


@dataclass(frozen=True, kw_only=True)
class ActivationSettings:
    """How one activation is quantized."""

    num_bits: int = 8
    asymmetric: bool = True
    solver: ActivationSolver = field(default_factory=Ifmr)

    def __post_init__(self) -> None:
        _check_within(self, "num_bits", 2, 16, _WHOLE)


@dataclass(frozen=True, kw_only=True)
class WeightSettings:
    """How the weight of one layer is quantized."""

    num_bits: int = 8
    channel_wise: bool = False
    solver: Arq | AdaRound | Nuq = field(default_factory=Arq)

    def __post_init__(self) -> None:
        _check_within(self, "num_bits", 2, 16, _WHOLE)


@dataclass(frozen=True, kw_only=True)
class LayerSettings:
    """One layer's entry; `dmq_strength` is the migration strength of DMQ balancing, None when it is off."""

    quant_enable: bool = True
    activation: ActivationSettings = field(default_factory=ActivationSettings)
    weight: WeightSettings = field(default_factory=WeightSettings)
    dmq_strength: float | None = None

    def __post_init__(self) -> None:
        if self.dmq_strength is not None:
            _check_within(self, "dmq_strength", *STRENGTHS)


@dataclass(frozen=True, kw_only=True)
class TensorSettings:
    """Activation-only quantization of one input of a MaxPool or Add (amct_formats.md: tensor_quantize)."""

    layer_name: str
    input_index: int
    activation: ActivationSettings = field(default_factory=ActivationSettings)

    @property
    def key(self) -> str:
        """The key of its record (amct_formats.md: Record keys)."""
        return f"{self.layer_name}:{self.input_index}"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """A whole configuration; `layers` has an entry for every supported layer of the model."""

    batch_num: int = 1
    activation_offset: bool = True
    joint_quant: bool = False
    do_fusion: bool = True
    fakequant_precision_mode: str | None = None
    skip_fusion_layers: tuple[str, ...] = ()
    tensor_quantize: tuple[TensorSettings, ...] = ()
    layers: Mapping[str, LayerSettings] = field(default_factory=FrozenDict)

    def __post_init__(self) -> None:
        _check_within(self, "batch_num", 1, MOST_BATCHES, _WHOLE)
