"""From a statistic and the settings of an activation to its QParams."""

from __future__ import annotations

from dataclasses import replace

from amct_onnx.numerics.activations.entropy import solve_entropy
from amct_onnx.numerics.activations.hfmg import solve_hfmg
from amct_onnx.numerics.activations.ifmr import solve_ifmr
from amct_onnx.numerics.activations.minmax import solve_minmax
from amct_onnx.numerics.activations.mse import solve_mse
from amct_onnx.numerics.activations.percentile import solve_percentile
from amct_onnx.numerics.grid import QParams, QSpec
from amct_onnx.numerics.settings import ActivationSettings, ActivationSolver, Entropy, Hfmg, Ifmr, MinMax, Percentile
from amct_onnx.numerics.statistics.histogram import DyadicHistogram
from amct_onnx.words import named

_RECORD = QSpec()


def solve_activation(stat: DyadicHistogram, settings: ActivationSettings, within: QSpec = _RECORD) -> QParams:
    """Per-tensor QParams of one activation; scale 1 for a tensor of zeros (amct_formats.md: Rounding and scales).

    within: its bounds of scales count, by default those of AMCT's records.
    Raises ValueError when the tensor's range has no legal scale, be it too large or so small that every value would
    round to zero.
    """
    spec = replace(within, bits=settings.num_bits, symmetric=not settings.asymmetric)
    params = _solve(stat, spec, settings.solver)
    largest = max(-stat.minimum, stat.maximum)
    if 0 < largest < 0.5 * float(params.scale[0]):
        raise ValueError(
            f"every value would round to zero: the largest is {largest:.3g}, the least scale {spec.least_scale:.3g}; "
            f"scale the data up, or add the layer to {named('skip_layers')}"
        )
    return params


def _solve(stat: DyadicHistogram, spec: QSpec, solver: ActivationSolver) -> QParams:
    if isinstance(solver, Ifmr):
        return solve_ifmr(stat, spec, solver)
    if isinstance(solver, Hfmg):
        return solve_hfmg(stat, spec, solver)
    if isinstance(solver, Percentile):
        return solve_percentile(stat, spec, solver)
    if isinstance(solver, Entropy):
        return solve_entropy(stat, spec, solver)
    return solve_minmax(stat, spec) if isinstance(solver, MinMax) else solve_mse(stat, spec)
