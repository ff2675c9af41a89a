"""What is wanted of one quantized model: which settings, and which layers stay in float."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from amct_onnx.errors import ConfigError, listed
from amct_onnx.numerics.settings import ActivationSolver, AdaRound, LayerSettings, Nuq, Settings

_SWITCHED_OFF = "it is switched off by the settings"
_SEARCHED = "the search left it there for the accuracy"


@dataclass(frozen=True, kw_only=True)
class Request:
    """The wishes for one result, checked against the model.

    settings: of config.json or .cfg, None for the defaults. algorithm: the solver of activations where `settings` has
    none, or for all if there are no settings. skip_layers: nodes that stay in float, searched: those that a search has
    left there. reduce_range: no pair of weights overflows kernels that add pairs of products in 16 bits. wide: layers
    whose activations get 16 bits, where the target has that for them. full_int8: no layer is left in float because it
    gains nothing from int8.
    """

    settings: Settings | None = None
    algorithm: ActivationSolver | None = None
    skip_layers: tuple[str, ...] = ()
    searched: tuple[str, ...] = ()
    reduce_range: bool = False
    wide: tuple[str, ...] = ()
    full_int8: bool = False

    @property
    def allows_recipe(self) -> bool:
        """Whether steps beyond the settings may be tried: a user who gives settings wants just what they say."""
        return self.settings is None

    @property
    def takes_everything(self) -> bool:
        """Whether what can be quantized is, also where it is sure to cost time: as settings name it, for one."""
        return self.full_int8 or self.settings is not None

    def off(self) -> dict[str, str]:
        """The nodes that stay in float, and why, as clauses."""
        layers = self.settings.layers if self.settings is not None else {}
        switched_off = [*self.skip_layers, *(name for name, layer in layers.items() if not layer.quant_enable)]
        return dict.fromkeys(self.searched, _SEARCHED) | dict.fromkeys(switched_off, _SWITCHED_OFF)

    def layer(self, names: Collection[str]) -> LayerSettings | None:
        """The settings of the first of these layers that has some."""
        layers = self.settings.layers if self.settings is not None else {}
        return next((layers[name] for name in names if name in layers), None)

    def refuse_for(self, target: str, *, integers: bool) -> None:
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
            text = f"quantize for target {target} does not have"
            raise ConfigError(f"{text} {listed(wrong, 3, '; ')}: take them out of the settings.")
