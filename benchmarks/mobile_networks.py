"""A MobileNetV3 and an EfficientNet of real size, made here with seeded random weights: what phones and edge boxes run.

The layers are those of MobileNetV3-Small and EfficientNet-B0 (Howard et al., "Searching for MobileNetV3", 2019; Tan and
Le, "EfficientNet", 2019), batch normalization folded, as an exporter leaves them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from grouped_networks import write_resnext50, write_shufflenet_v2
from real_sizes import Builder


@dataclass(frozen=True, kw_only=True)
class Block:
    """An inverted residual: `inner` channels, `outputs` of them behind it, a depthwise convolution in the middle."""

    kernel: int
    inner: int
    outputs: int
    stride: int = 1
    squeeze: int = 0
    swish: bool = True


_V3 = (
    Block(kernel=3, inner=16, outputs=16, stride=2, squeeze=8, swish=False),
    Block(kernel=3, inner=72, outputs=24, stride=2, swish=False),
    Block(kernel=3, inner=88, outputs=24, swish=False),
    Block(kernel=5, inner=96, outputs=40, stride=2, squeeze=24),
    Block(kernel=5, inner=240, outputs=40, squeeze=64),
    Block(kernel=5, inner=240, outputs=40, squeeze=64),
    Block(kernel=5, inner=120, outputs=48, squeeze=32),
    Block(kernel=5, inner=144, outputs=48, squeeze=40),
    Block(kernel=5, inner=288, outputs=96, stride=2, squeeze=72),
    Block(kernel=5, inner=576, outputs=96, squeeze=144),
    Block(kernel=5, inner=576, outputs=96, squeeze=144),
)
_STAGES = ((1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 40, 2, 2, 5), (6, 80, 3, 2, 3), (6, 112, 3, 1, 5), (6, 192, 4, 2, 5))


class _Network(Builder):
    """Collects the layers of a network; `hard`: its swish is the hard one."""

    def __init__(self, *, hard: bool) -> None:
        super().__init__()
        self.hard = hard

    def gate(self, x: str) -> str:
        return self.node("HardSigmoid", x, alpha=1 / 6, beta=0.5) if self.hard else self.node("Sigmoid", x)

    def swish(self, x: str) -> str:
        return self.node("Mul", x, self.gate(x))

    def depthwise(self, x: str, channels: int, kernel: int, stride: int) -> str:
        weight = self.normal(channels, 1, kernel, kernel, deviation=(2 / kernel**2) ** 0.5)
        bias = self.constant(self.normal(channels, deviation=0.1))
        attributes = {"strides": [stride] * 2, "pads": [kernel // 2] * 4, "group": channels}
        return self.node("Conv", x, self.constant(weight), bias, **attributes)

    def squeezed(self, x: str, channels: int, few: int) -> str:
        inner = self.convolution(self.node("GlobalAveragePool", x), channels, few, 1, gain=2)
        inner = self.node("Relu", inner) if self.hard else self.swish(inner)
        return self.node("Mul", x, self.gate(self.convolution(inner, few, channels, 1, gain=1)))

    def block(self, x: str, channels: int, block: Block) -> str:
        y = x

        def active(tensor: str) -> str:
            return self.swish(tensor) if block.swish else self.node("Relu", tensor)

        if block.inner != channels:
            y = active(self.convolution(y, channels, block.inner, 1, gain=2))
        y = active(self.depthwise(y, block.inner, block.kernel, block.stride))
        if block.squeeze:
            y = self.squeezed(y, block.inner, block.squeeze)
        y = self.convolution(y, block.inner, block.outputs, 1, gain=1)
        return self.node("Add", x, y) if block.stride == 1 and block.outputs == channels else y

    def write(self, path: Path, stem: int, blocks: tuple[Block, ...], last: int) -> None:
        x, channels = self.swish(self.convolution("x", 3, stem, 3, stride=2, gain=2)), stem
        for block in blocks:
            x, channels = self.block(x, channels, block), block.outputs
        x = self.swish(self.convolution(x, channels, last, 1, gain=2))
        self.save_classifier(path, x, last)


def _write_mobilenet_v3(path: Path) -> None:
    _Network(hard=True).write(path, 16, _V3, 576)


def _write_efficientnet_b0(path: Path) -> None:
    blocks, channels = [], 32
    for widen, outputs, count, first, kernel in (*_STAGES, (6, 320, 1, 1, 3)):
        for number in range(count):
            few, stride = max(1, channels // 4), 1 if number else first
            block = Block(kernel=kernel, inner=channels * widen, outputs=outputs, stride=stride, squeeze=few)
            blocks.append(block)
            channels = outputs
    _Network(hard=False).write(path, 32, tuple(blocks), 1280)


MOBILE: dict[str, Callable[[Path], None]] = {
    "mobilenet_v3_small": _write_mobilenet_v3,
    "efficientnet_b0": _write_efficientnet_b0,
    "shufflenet_v2": write_shufflenet_v2,
    "resnext50": write_resnext50,
}


def pictures(count: int) -> np.ndarray:
    """Random pictures, float32 [count, 3, 224, 224]."""
    return np.random.default_rng(1).standard_normal((count, 3, 224, 224), dtype=np.float32)
