"""What the user asks of `quantize`, and what that means for one tensor or weight of a Q/DQ target."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from amct_onnx.errors import ArgumentError, ArgumentTypeError, ConfigError
from amct_onnx.numerics.grid import QParams, QSpec
from amct_onnx.numerics.settings import (
    ActivationSettings,
    ActivationSolver,
    AdaRound,
    Entropy,
    Hfmg,
    Ifmr,
    LayerSettings,
    MinMax,
    Mse,
    Nuq,
    Percentile,
    Settings,
)
from amct_onnx.numerics.weights.arq import solve_arq
from amct_onnx.numerics.weights.mse import solve_weight_mse
from amct_onnx.numerics.weights.pairs import solve_pairs
from amct_onnx.values.findings import WeightGrid
from amct_onnx.values.qdq_tables import QdqTarget

ALGORITHMS: Mapping[str, type[ActivationSolver]] = {
    "mse": Mse,
    "min_max": MinMax,
    "percentile": Percentile,
    "entropy": Entropy,
    "ifmr": Ifmr,
    "hfmg": Hfmg,
}
_SAFE_BITS = 7  # two such weights cannot overflow


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The wishes for one result.

    settings: of config.json or .cfg, None for the defaults. algorithm: the solver of activations where `settings` has
    none, or for all if there are no settings. skip_layers: nodes that stay in float. reduce_range: no pair of weights
    overflows kernels that add pairs of products in 16 bits. wide: layers whose activations get 16 bits, where target
    ascend has that for them; other targets do not.
    """

    settings: Settings | None = None
    algorithm: ActivationSolver | None = None
    skip_layers: tuple[str, ...] = ()
    reduce_range: bool = False
    wide: tuple[str, ...] = ()

    @property
    def is_ours(self) -> bool:
        """Whether a recipe may change the model: whoever gives settings gets what they say."""
        return self.settings is None

    @property
    def is_default(self) -> bool:
        """Whether the ranges of activations are left to the tool."""
        return self.settings is None and self.algorithm is None

    def off(self) -> frozenset[str]:
        """The nodes that stay in float."""
        layers = self.settings.layers if self.settings is not None else {}
        return frozenset(self.skip_layers) | {name for name, layer in layers.items() if not layer.quant_enable}

    def activation(self, target: QdqTarget, readers: Collection[str]) -> ActivationSettings:
        """How a tensor that the layers `readers` read is quantized: as the first of them wants it."""
        layer = self._layer(readers)
        symmetric = target.activation.symmetric
        if layer is None:
            return ActivationSettings(asymmetric=not symmetric, solver=self.algorithm or Mse())
        solver = self.algorithm or layer.activation.solver
        return ActivationSettings(asymmetric=layer.activation.asymmetric and not symmetric, solver=solver)

    def _layer(self, names: Collection[str]) -> LayerSettings | None:
        if self.settings is None:
            return None
        return next((self.settings.layers[name] for name in names if name in self.settings.layers), None)

    def weight(
        self,
        name: str,
        rows: npt.NDArray[np.float32],
        spec: QSpec,
        least: npt.NDArray[np.float32],
        known: dict[bytes, QParams],
    ) -> WeightGrid:
        """The grid of the weight of layer `name`, as rows of output channels, and its integers where they are not the
        nearest; no scale is below `least`, float32[C]. Raises ValueError.

        known: grids that were found before by this choice, by digest of the weight; new ones are added.
        """
        layer = self._layer((name,))
        bits = spec.bits if layer is None else layer.weight.num_bits
        spec = QSpec(bits=bits, granularity=spec.granularity)
        if self.reduce_range and bits > _SAFE_BITS:
            params, integers = solve_pairs(rows, spec, least)
            return WeightGrid(params=params, integers=integers)
        params = solve_once(solve_weight_mse if layer is None else solve_arq, rows, spec, known)
        return WeightGrid(params=replace(params, scale=np.maximum(params.scale, least)))

    def check(self, target: str, *, integers: bool = True) -> None:
        """Raise ConfigError for settings that need more than one pass over the data, or (`integers`) more than int8."""
        wrong = []
        for name, layer in (self.settings.layers if self.settings is not None else {}).items():
            if not layer.quant_enable:
                continue
            if integers and layer.activation.num_bits != 8:
                wrong.append(f"{name}: activations of {layer.activation.num_bits} bits")
            if isinstance(layer.weight.solver, AdaRound) or (integers and isinstance(layer.weight.solver, Nuq)):
                wrong.append(f"{name}: {type(layer.weight.solver).__name__} for weights")
            if layer.dmq_strength is not None:
                wrong.append(f"{name}: dmq_balancer")
        if wrong:
            more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
            text = f"quantize for target {target} does not have"
            raise ConfigError(f"{text} {'; '.join(wrong[:3])}{more}: take them out of the settings.")


def solve_once(
    solve: Callable[[npt.NDArray[np.float32], QSpec], QParams],
    rows: npt.NDArray[np.float32],
    spec: QSpec,
    known: dict[bytes, QParams],
) -> QParams:
    """The grid of a weight, from `known` where it is there."""
    joined = np.ascontiguousarray(rows)
    digest = hashlib.blake2b(f"{solve.__name__} {rows.shape} {spec}".encode())  # equal bytes may be another weight
    digest.update(joined.data)
    key = digest.digest()
    if key not in known:
        known[key] = solve(joined, spec)
    return known[key]


def make_choice(
    *,
    settings: Settings | None,
    algorithm: str | ActivationSolver | None,
    skip_layers: Collection[str],
    reduce_range: bool,
    nodes: Collection[str],
) -> Choice:
    """The choice that arguments express; `nodes` are the names of the model's nodes. Raises ArgumentError."""
    if isinstance(algorithm, str):
        if algorithm not in ALGORITHMS:
            close = difflib.get_close_matches(algorithm, ALGORITHMS, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"use one of {', '.join(ALGORITHMS)}."
            raise ArgumentError(f"algorithm {algorithm!r} is unknown: {hint}")
        algorithm = ALGORITHMS[algorithm]()
    if algorithm is not None and not isinstance(algorithm, tuple(ALGORITHMS.values())):
        raise ArgumentTypeError(f"algorithm must be a name or a solver's settings, got {type(algorithm).__name__}")
    if isinstance(skip_layers, str):
        raise ArgumentTypeError(f"skip_layers must be a list of names, got the text {skip_layers!r}")
    for name in skip_layers:
        if name not in nodes:
            close = difflib.get_close_matches(name, nodes, n=1)
            hint = f", did you mean {close[0]!r}?" if close else "."
            raise ArgumentError(f"skip_layers: the model has no node {name!r}{hint}")
    return Choice(
        settings=settings, algorithm=algorithm, skip_layers=tuple(skip_layers), reduce_range=bool(reduce_range)
    )
