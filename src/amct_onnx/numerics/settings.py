"""Everything a run can be told, as frozen values. config.json, .cfg files and keywords all become these.

The solvers' settings carry AMCT's defaults and bounds (amct_formats.md: Layer entries); whoever reads a file checks the
bounds, so that a message can point at the place in the document.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from amct_onnx.errors import ArgumentError


@dataclass(frozen=True, kw_only=True)
class Ifmr:
    """Settings of IFMR (amct_formats.md: IFMR): percentiles in (0.5, 1], 0 < start < end, step <= end - start."""

    max_percentile: float = 0.999999
    min_percentile: float = 0.999999
    search_start: float = 0.7
    search_end: float = 1.3
    search_step: float = 0.01


@dataclass(frozen=True, kw_only=True)
class Hfmg:
    """Settings of the HFMG search (amct_formats.md: HFMG): 1024, 2048, 4096 or 8192 bins."""

    num_of_bins: int = 4096


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
        if not 0.5 < self.percentile <= 1:
            raise ArgumentError(f"percentile must be within (0.5, 1], got {self.percentile}")


@dataclass(frozen=True, kw_only=True)
class Entropy:
    """The range of least information lost (Kullback-Leibler), on a histogram of at most `num_of_bins` bins.

    512 to 16384. A step is at least one bin, so more bins also let the range become smaller.
    """

    num_of_bins: int = 4096

    def __post_init__(self) -> None:
        if not 512 <= self.num_of_bins <= 16384:
            raise ArgumentError(f"num_of_bins must be within [512, 16384], got {self.num_of_bins}")


ActivationSolver = Ifmr | Hfmg | MinMax | Mse | Percentile | Entropy


@dataclass(frozen=True, kw_only=True)
class Arq:
    """Weights by their extremes (amct_formats.md: ARQ)."""


@dataclass(frozen=True, kw_only=True)
class AdaRound:
    """Settings of learned rounding (amct_formats.md: AdaRound)."""

    num_iteration: int = 10000
    reg_param: float = 0.01
    beta_range: tuple[float, float] = (20.0, 2.0)
    warm_start: float = 0.2

    def __post_init__(self) -> None:
        object.__setattr__(self, "beta_range", tuple(self.beta_range))  # JSON has lists


@dataclass(frozen=True, kw_only=True)
class Nuq:
    """Settings of non-uniform weights (amct_formats.md: NUQ)."""

    num_steps: int = 32
    num_of_iteration: int = 1


@dataclass(frozen=True, kw_only=True)
class ActivationSettings:
    """How one activation is quantized."""

    num_bits: int = 8
    asymmetric: bool = True
    solver: ActivationSolver = field(default_factory=Ifmr)


@dataclass(frozen=True, kw_only=True)
class WeightSettings:
    """How the weight of one layer is quantized."""

    num_bits: int = 8
    channel_wise: bool = False
    solver: Arq | AdaRound | Nuq = field(default_factory=Arq)


@dataclass(frozen=True, kw_only=True)
class LayerSettings:
    """One layer's entry; `dmq_strength` is the migration strength of DMQ balancing, None when it is off."""

    quant_enable: bool = True
    activation: ActivationSettings = field(default_factory=ActivationSettings)
    weight: WeightSettings = field(default_factory=WeightSettings)
    dmq_strength: float | None = None


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
    layers: Mapping[str, LayerSettings] = field(default_factory=lambda: MappingProxyType({}))
