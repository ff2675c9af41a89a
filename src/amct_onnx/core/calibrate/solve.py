"""From a statistic and the settings of an activation to its QParams."""

from __future__ import annotations

from amct_onnx.core.calibrate.hfmg import solve_hfmg
from amct_onnx.core.calibrate.ifmr import solve_ifmr
from amct_onnx.core.qparams import QParams
from amct_onnx.core.settings import ActivationSettings, Ifmr
from amct_onnx.core.spec import QSpec
from amct_onnx.core.stats.histogram import DyadicHistogram


def solve_activation(stat: DyadicHistogram, settings: ActivationSettings) -> QParams:
    """Per-tensor QParams of one activation. Raises ValueError when the tensor's range has no legal scale."""
    spec = QSpec(bits=settings.num_bits, symmetric=not settings.asymmetric)
    if isinstance(settings.solver, Ifmr):
        return solve_ifmr(stat, spec, settings.solver)
    return solve_hfmg(stat, spec, settings.solver)
