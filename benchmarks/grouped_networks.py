"""A ShuffleNet and a ResNeXt of real size, made here with seeded random weights: convolutions of groups, and shuffles.

The layers are those of ShuffleNetV2 1.0x and ResNeXt-50 32x4d (Ma et al., "ShuffleNet V2", 2018; Xie et al.,
"Aggregated Residual Transformations for Deep Neural Networks", 2017), batch normalization folded, as an exporter
leaves them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from real_sizes import Builder

_GROUPS = 32
_STAGES = ((116, 4, 28), (232, 8, 14), (464, 4, 7))  # channels, blocks, pixels a side


class _Network(Builder):
    def grouped(self, x: str, channels: int, groups: int, *, stride: int = 1, gain: float) -> str:
        """A convolution of 3 x 3 that keeps the number of channels."""
        each = channels // groups
        weight = self.normal(channels, each, 3, 3, deviation=(gain / (each * 9)) ** 0.5)
        bias = self.constant(self.normal(channels, deviation=0.1))
        return self.node("Conv", x, self.constant(weight), bias, strides=[stride] * 2, pads=[1] * 4, group=groups)

    def active(self, x: str, channels: int, outputs: int, kernel: int = 1, stride: int = 1) -> str:
        """A convolution and a Relu."""
        return self.node("Relu", self.convolution(x, channels, outputs, kernel, stride=stride, gain=2))

    def pooled(self, x: str) -> str:
        return self.node("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])

    def shuffled(self, one: str, two: str, each: int, size: int) -> str:
        """Two tensors of `each` channels, which come in turns then."""
        apart, together = (self.constant(np.array(s)) for s in ((-1, 2, each, size, size), (-1, 2 * each, size, size)))
        x = self.node("Reshape", self.node("Concat", one, two, axis=1), apart)
        return self.node("Reshape", self.node("Transpose", x, perm=[0, 2, 1, 3, 4]), together)

    def half(self, x: str, first: int, last: int) -> str:
        places = [self.constant(np.array([place], np.int64)) for place in (first, last, 1)]
        return self.node("Slice", x, *places)


def write_shufflenet_v2(path: Path) -> None:
    """Input x [N, 3, 224, 224], output y [N, 1000]."""
    build = _Network()
    x, channels = build.pooled(build.active("x", 3, 24, 3, stride=2)), 24
    for outputs, blocks, size in _STAGES:
        each = outputs // 2
        for block in range(blocks):
            if block:
                kept, y = build.half(x, 0, each), build.half(x, each, outputs)
            else:
                kept = build.grouped(x, channels, channels, stride=2, gain=1)
                kept, y = build.active(kept, channels, each), x
            y = build.active(y, each if block else channels, each)
            y = build.grouped(y, each, each, stride=1 if block else 2, gain=1)
            x = build.shuffled(kept, build.active(y, each, each), each, size)
        channels = outputs
    build.save_classifier(path, build.active(x, channels, 1024), 1024)


def write_resnext50(path: Path) -> None:
    """Input x [N, 3, 224, 224], output y [N, 1000]."""
    build = _Network()
    x, channels = build.pooled(build.active("x", 3, 64, 7, stride=2)), 64
    for stage, blocks in enumerate((3, 4, 6, 3)):
        width = 128 << stage
        for block in range(blocks):
            stride, shortcut = (2 if stage and not block else 1), x
            y = build.active(x, channels, width)
            y = build.node("Relu", build.grouped(y, width, _GROUPS, stride=stride, gain=2))
            y = build.convolution(y, width, 2 * width, 1, gain=0.5)
            if not block:
                shortcut = build.convolution(x, channels, 2 * width, 1, stride=stride, gain=1)
            x, channels = build.node("Relu", build.node("Add", y, shortcut)), 2 * width
    build.save_classifier(path, x, channels)
