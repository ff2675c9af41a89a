"""What holds for every solver of activations."""

from __future__ import annotations

import numpy as np
import pytest

from amct_onnx.numerics.activations.solve import solve_activation
from amct_onnx.numerics.settings import (
    ActivationSettings,
    ActivationSolver,
    Entropy,
    Hfmg,
    Ifmr,
    MinMax,
    Mse,
    Percentile,
)
from amct_onnx.numerics.statistics.histogram import DyadicHistogram

SOLVERS = [Ifmr(), Hfmg(), MinMax(), Mse(), Percentile(), Entropy()]


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("asymmetric", [True, False])
@pytest.mark.parametrize("size", [1e-12, -1e-7, 1e-6])
def test_a_tensor_that_would_round_to_zero_is_refused(solver: ActivationSolver, asymmetric: bool, size: float) -> None:
    """The least scale is FLT_EPSILON: AMCT puts 1 in its place, and every value becomes 0."""
    stat = DyadicHistogram.of(np.linspace(0, size, 100, dtype=np.float32))
    with pytest.raises(ValueError, match="every value would round to zero"):
        solve_activation(stat, ActivationSettings(asymmetric=asymmetric, solver=solver))


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("asymmetric", [True, False])
@pytest.mark.parametrize("size", [0.0, 1e-4, -1e-4, 1.0])
def test_zeros_and_small_tensors_are_not(solver: ActivationSolver, asymmetric: bool, size: float) -> None:
    stat = DyadicHistogram.of(np.linspace(0, size, 100, dtype=np.float32))
    params = solve_activation(stat, ActivationSettings(asymmetric=asymmetric, solver=solver))
    assert (params.scale[0] == 1.0) == (size == 0.0)
