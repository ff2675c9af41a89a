"""The settings of solvers as classes: what lies outside of the bounds is refused in one line that names the field."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from amct_onnx.errors import ArgumentError, ArgumentTypeError
from amct_onnx.numerics.activations.ifmr import candidate_ratios
from amct_onnx.numerics.settings import (
    MOST_CANDIDATES,
    ActivationSettings,
    AdaRound,
    Entropy,
    Hfmg,
    Ifmr,
    LayerSettings,
    Nuq,
    Percentile,
    Settings,
    WeightSettings,
)

OUTSIDE: dict[tuple[type, str], tuple[Any, ...]] = {
    (Ifmr, "max_percentile"): (0.5, 1.01, -1.0),
    (Ifmr, "min_percentile"): (0.5, 1.01, -1.0),
    (Ifmr, "search_start"): (0, -0.7, 1e-9, 101),
    (Ifmr, "search_end"): (0.6, -1.3, 1e23, 100.5),
    (Ifmr, "search_step"): (0, -0.01, 1e-300, 1e-6, 1e23),
    (Hfmg, "num_of_bins"): (0, -1024, 1000, 10**400),
    (Percentile, "percentile"): (0.5, 1.01, -1.0),
    (Entropy, "num_of_bins"): (0, 511, 16385, 10**400),
    (AdaRound, "num_iteration"): (-1, 10**7, 10**400),
    (AdaRound, "reg_param"): (0, 1, -0.1, 1e23),
    (AdaRound, "warm_start"): (0, 1, -0.1, 1e23),
    (AdaRound, "beta_range"): ((1e23, 2.0), (20.0, 0.0), (2.0, 20.0), (20.0, math.nan), (20.0,), (3.0, 2.0, 1.0)),
    (Nuq, "num_steps"): (0, 8, 64),
    (Nuq, "num_of_iteration"): (-1, 6),
    (ActivationSettings, "num_bits"): (0, 1, 17),
    (WeightSettings, "num_bits"): (0, 1, 17),
    (LayerSettings, "dmq_strength"): (0, 0.1, 0.9, 1e23),
    (Settings, "batch_num"): (0, -1, 2**31),
}
NUMBERS = [case for case in OUTSIDE if case[1] != "beta_range"]


@pytest.mark.parametrize(
    ("kind", "name", "value"), [(kind, name, value) for (kind, name), values in OUTSIDE.items() for value in values]
)
def test_a_value_outside_of_the_bounds(kind: type, name: str, value: Any) -> None:
    with pytest.raises(ArgumentError, match=rf"^{kind.__name__}\.{name} must be [^\n]*, got [^\n]*$"):
        kind(**{name: value})


@pytest.mark.parametrize(("kind", "name"), NUMBERS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_finite_number(kind: type, name: str, value: float) -> None:
    with pytest.raises((ArgumentError, ArgumentTypeError), match=rf"^{kind.__name__}\.{name} must be "):
        kind(**{name: value})


@pytest.mark.parametrize(("kind", "name"), NUMBERS)
@pytest.mark.parametrize("value", ["0.7", True, [1.0], Fraction(7, 10)])
def test_what_is_no_number(kind: type, name: str, value: Any) -> None:
    with pytest.raises(ArgumentTypeError, match=rf"^{kind.__name__}\.{name} must be a (whole )?number, got "):
        kind(**{name: value})


def test_a_number_that_python_does_not_print() -> None:
    with pytest.raises(ArgumentError, match=r"^Settings.batch_num must be within \[1, \d+\], got a huge number$"):
        Settings(batch_num=10**5000)


def test_numbers_of_numpy_are_numbers() -> None:
    solver = Ifmr(search_start=np.float32(0.8), search_end=np.float64(1.2), search_step=np.float32(0.1))
    assert candidate_ratios(solver).tolist() == [0.8, 0.9, 1.0, 1.1, 1.2]
    assert Hfmg(num_of_bins=np.int64(1024)) == Hfmg(num_of_bins=1024)


def test_the_number_of_candidates_is_bounded_and_not_only_each_of_its_parts() -> None:
    most = Ifmr(search_start=1.0, search_end=99.99, search_step=0.0099)
    assert candidate_ratios(most).size == most.candidates == MOST_CANDIDATES - 1
    with pytest.raises(ArgumentError, match=r"^Ifmr.search_step must be larger, got 0.001: at most 10000 candidates"):
        Ifmr(search_start=1.0, search_end=99.99, search_step=0.001)
