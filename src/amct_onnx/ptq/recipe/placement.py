"""Which first layers of a network may stay in float: it is hardly slower there than int8.

Kernels for few channels gain nothing from int8, and the first layers have few. They also make much of the noise, since
all others pass it on. Only the layers in front are looked at: others in float would need a quantization on either side.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice, takewhile

from amct_onnx.graph.layer_view import as_layer
from amct_onnx.targets.calibration import Calibration
from amct_onnx.targets.target import Lowered
from amct_onnx.words import named

_SHARE = 0.05  # of the time of the model: what a prefix may cost beside the fastest placement
_SHORT, _LONG = 3, 12  # layers


@dataclass(frozen=True, kw_only=True)
class Prefix:
    """The first layers of a network. layers: those of them that are in int8 as yet. count: of all of them."""

    layers: tuple[str, ...]
    count: int

    @property
    def name(self) -> str:
        """The name of the step that leaves them in float."""
        return f"the first {self.count} layers in float" if self.count > 1 else "the first layer in float"

    @property
    def reason(self) -> str:
        """Why they stay in float, as a clause."""
        return f"int8 costs accuracy in the first layers and wins no time; {named('full_int8')} quantizes them"


def float_prefixes(calibration: Calibration, lowered: Lowered) -> list[Prefix]:
    """The prefixes that cost little, and no time beside all in int8: the longest one of up to three layers, one of up
    to twelve, and one of up to a quarter of all, as far as there are such, and not all of it is in float already.

    The first of them comes again at the end without its last layer, for networks that the others do harm.
    """
    found = [as_layer(node) for node in calibration.source.model.graph]
    layers = [layer for layer in found if layer is not None]
    first = [layer.name for layer in takewhile(lambda layer: layer.op_type == "Conv", layers)]  # products gain time
    longest = min(len(first), max(min(_LONG, len(layers) // 2), len(layers) // 4))
    prefixes = [Prefix(layers=tuple(n for n in first[:k] if n in lowered.rows), count=k) for k in range(1, longest + 1)]
    new = [prefix for prefix in prefixes if prefix.layers and first[prefix.count - 1] in prefix.layers]

    def free(least: int, most: int) -> Iterator[Prefix]:
        """Those of more than `least` layers and up to `most` that cost little, the longest first."""
        wanted = (prefix for prefix in reversed(new) if least < prefix.count <= most)
        return (prefix for prefix in wanted if lowered.affords(prefix.layers, _SHARE))

    chosen: list[Prefix] = []
    for most in (_SHORT, _LONG, len(layers) // 4):
        chosen += list(islice(free(chosen[-1].count if chosen else 0, most), 1))
    return chosen + (list(islice(free(0, chosen[0].count - 1), 1)) if chosen else [])
