"""From a statistic and the settings of an activation to its QParams."""

from __future__ import annotations

from amct_onnx.core.calibrate.hfmg import solve_hfmg
from amct_onnx.core.calibrate.ifmr import solve_ifmr
from amct_onnx.core.qparams import FLT_EPSILON, QParams
from amct_onnx.core.settings import ActivationSettings, Ifmr
from amct_onnx.core.spec import QSpec
from amct_onnx.core.stats.histogram import DyadicHistogram


def solve_activation(stat: DyadicHistogram, settings: ActivationSettings) -> QParams:
    """Per-tensor QParams of one activation; scale 1 for a tensor of zeros (spec section 6.0).

    Raises ValueError when the tensor's range has no legal scale, be it too large or so small that every value would
    round to zero.
    """
    spec = QSpec(bits=settings.num_bits, symmetric=not settings.asymmetric)
    if isinstance(settings.solver, Ifmr):
        params = solve_ifmr(stat, spec, settings.solver)
    else:
        params = solve_hfmg(stat, spec, settings.solver)
    largest = max(-stat.minimum, stat.maximum)
    if 0 < largest < 0.5 * float(params.scale[0]):
        raise ValueError(
            f"every value would round to zero: the largest is {largest:.3g}, the least scale {FLT_EPSILON:.3g}; "
            "scale the data up, or add the layer to skip_layers"
        )
    return params
