"""The small networks of `train_networks.py` in torch, built of the blocks that well-known networks have.

References: YOLOv8 (detector), MobileNetV3 (Howard et al., 2019), EfficientNet (Tan and Le, 2019), CRNN (Shi et al.,
2015), ViT (Dosovitskiy et al., 2020), ConvNeXt (Liu et al., 2022), U-Net (Ronneberger et al., 2015), GCN (Kipf and
Welling, 2016).
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional


def conv(
    inputs: int,
    outputs: int,
    kernel: int = 3,
    stride: int = 1,
    *,
    groups: int = 1,
    act: Callable[[], nn.Module] | None = nn.SiLU,
) -> nn.Sequential:
    """Convolution, BatchNormalization, activation."""
    layer = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs), *([] if act is None else [act()]))


# --- detector


class C2f(nn.Module):
    """YOLOv8's block: split, one residual pair of convolutions, Concat of all parts."""

    def __init__(self, inputs: int, outputs: int, *, shortcut: bool = True) -> None:
        super().__init__()
        half = outputs // 2
        self.first, self.last, self.shortcut = conv(inputs, 2 * half, 1), conv(3 * half, outputs, 1), shortcut
        self.pair = nn.Sequential(conv(half, half), conv(half, half))

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.first(x).chunk(2, 1)
        c = self.pair(b)
        return cast(Tensor, self.last(torch.cat([a, b, b + c if self.shortcut else c], 1)))


class Pyramid(nn.Module):
    """YOLOv8's SPPF: three poolings in a row, Concat."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.last = conv(channels, channels // 2, 1), conv(2 * channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        parts = [self.first(x)]
        for _ in range(3):
            parts.append(functional.max_pool2d(parts[-1], 5, 1, 2))
        return cast(Tensor, self.last(torch.cat(parts, 1)))


class Detector(nn.Module):
    """Boxes (centre, width, height in pixels) and class scores in one output [n, 4 + classes, cells]."""

    STRIDES = (8, 16)
    BINS = 8  # of the distribution of each distance from a cell's centre to an edge, in strides

    def __init__(self, size: int, classes: int) -> None:
        super().__init__()
        self.classes = classes
        self.to4 = nn.Sequential(conv(3, 12, 3, 2), conv(12, 24, 3, 2), C2f(24, 24))
        self.to8 = nn.Sequential(conv(24, 40, 3, 2), C2f(40, 40))
        self.to16 = nn.Sequential(conv(40, 56, 3, 2), C2f(56, 56), Pyramid(56))
        self.up, self.down = C2f(96, 40, shortcut=False), conv(40, 40, 3, 2)
        self.out = C2f(96, 56, shortcut=False)
        self.boxes = nn.ModuleList(self._head(width, 4 * self.BINS) for width in (40, 56))
        self.scores = nn.ModuleList(self._head(width, classes) for width in (40, 56))
        for head in self.scores:
            nn.init.constant_(cast(nn.Conv2d, cast(nn.Sequential, head)[-1]).bias, -4.0)
        cells, strides = [], []
        for stride in self.STRIDES:
            y, x = torch.meshgrid(*[torch.arange(size // stride) + 0.5] * 2, indexing="ij")
            cells.append(torch.stack([x.flatten(), y.flatten()]))
            strides.append(torch.full((1, cells[-1].shape[1]), float(stride)))
        self.register_buffer("cells", torch.cat(cells, 1), persistent=False)
        self.register_buffer("strides", torch.cat(strides, 1), persistent=False)
        self.register_buffer("bins", torch.arange(float(self.BINS)).view(1, self.BINS, 1, 1), persistent=False)

    @staticmethod
    def _head(width: int, outputs: int) -> nn.Sequential:
        return nn.Sequential(conv(width, 24), conv(24, 24), nn.Conv2d(24, outputs, 1))

    def raw(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of distances [n, 4 * BINS, cells] and of classes [n, classes, cells]."""
        x = self.to4(x)
        p8 = self.to8(x)
        p16 = self.to16(p8)
        n8 = self.up(torch.cat([functional.interpolate(p16, scale_factor=2.0, mode="nearest"), p8], 1))
        levels = (n8, self.out(torch.cat([self.down(n8), p16], 1)))
        return tuple(  # type: ignore[return-value]
            torch.cat([head(level).flatten(2) for head, level in zip(heads, levels, strict=True)], 2)
            for heads in (self.boxes, self.scores)
        )

    def corners(self, distances: Tensor) -> tuple[Tensor, Tensor]:
        """Upper left and lower right corners [n, 2, cells] in pixels."""
        count, _, cells = distances.shape
        spread = distances.view(count, 4, self.BINS, cells).transpose(1, 2).softmax(1)
        edges = (spread * self.bins).sum(1) if self.training else functional.conv2d(spread, self.bins).squeeze(1)
        near, far = edges.chunk(2, 1)
        return (self.cells - near) * self.strides, (self.cells + far) * self.strides

    def forward(self, x: Tensor) -> Tensor:
        distances, classes = self.raw(x)
        low, high = self.corners(distances)
        return torch.cat([(low + high) / 2, high - low, classes.sigmoid()], 1)


# --- classifiers of squeeze-and-excitation


class Excite(nn.Module):
    """Channels weighed by what they hold on average; `gate` is Sigmoid or Hardsigmoid."""

    def __init__(self, channels: int, hidden: int, act: Callable[[], nn.Module], gate: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.weigh = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, hidden, 1), act(), nn.Conv2d(hidden, channels, 1), gate()
        )

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, x * self.weigh(x))


class Inverted(nn.Module):
    """The inverted residual of MobileNet and EfficientNet."""

    def __init__(
        self,
        inputs: int,
        wide: int,
        outputs: int,
        kernel: int,
        stride: int,
        act: Callable[[], nn.Module],
        excite: nn.Module | None,
    ) -> None:
        super().__init__()
        expand = [conv(inputs, wide, 1, act=act)] if wide != inputs else []
        middle = [conv(wide, wide, kernel, stride, groups=wide, act=act), *([] if excite is None else [excite])]
        self.body = nn.Sequential(*expand, *middle, conv(wide, outputs, 1, act=None))
        self.shortcut = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, x + self.body(x) if self.shortcut else self.body(x))


def mobilenet(classes: int) -> nn.Module:
    """Squeeze-and-excitation with hard-swish, as in MobileNetV3."""

    def block(
        i: int, wide: int, o: int, kernel: int, stride: int, act: Callable[[], nn.Module], *, se: bool
    ) -> nn.Module:
        return Inverted(
            i, wide, o, kernel, stride, act, Excite(wide, wide // 4, nn.ReLU, nn.Hardsigmoid) if se else None
        )

    hard = nn.Hardswish
    return nn.Sequential(
        conv(3, 16, 3, 2, act=hard),
        block(16, 16, 16, 3, 1, nn.ReLU, se=True),
        block(16, 64, 24, 3, 2, nn.ReLU, se=False),
        block(24, 88, 24, 3, 1, nn.ReLU, se=False),
        block(24, 96, 40, 5, 1, hard, se=True),
        block(40, 120, 40, 5, 1, hard, se=True),
        block(40, 160, 56, 5, 2, hard, se=True),
        block(56, 192, 56, 5, 1, hard, se=True),
        conv(56, 192, 1, act=hard),
        nn.AdaptiveAvgPool2d(1),
        nn.Conv2d(192, 128, 1),
        hard(),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(128, classes),
    )


def efficientnet(classes: int) -> nn.Module:
    """Swish with depthwise convolutions and squeeze-and-excitation, as in EfficientNet."""

    def block(inputs: int, ratio: int, outputs: int, kernel: int, stride: int) -> nn.Module:
        excite = Excite(inputs * ratio, max(inputs // 4, 4), nn.SiLU, nn.Sigmoid)
        return Inverted(inputs, inputs * ratio, outputs, kernel, stride, nn.SiLU, excite)

    return nn.Sequential(
        conv(3, 24, 3, 2),
        block(24, 1, 16, 3, 1),
        block(16, 4, 24, 3, 2),
        block(24, 4, 24, 3, 1),
        block(24, 4, 40, 5, 1),
        block(40, 4, 40, 5, 1),
        block(40, 4, 56, 3, 2),
        block(56, 4, 56, 3, 1),
        conv(56, 224, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(224, classes),
    )


# --- sequences, attention, GELU


class Recognizer(nn.Module):
    """CRNN: convolutions, a bidirectional LSTM over columns, probabilities [n, steps, classes] for CTC."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        plain, pool = nn.ReLU, nn.MaxPool2d
        self.columns = nn.Sequential(
            conv(1, 16, act=plain),
            pool(2),
            conv(16, 32, act=plain),
            pool(2),
            conv(32, 48, act=plain),
            conv(48, 48, act=plain),
            pool((2, 1)),
            conv(48, 64, act=plain),
            pool((3, 1)),
        )
        self.lstm = nn.LSTM(64, 48, bidirectional=True, batch_first=True)
        self.classify = nn.Linear(96, classes)

    def logits(self, x: Tensor) -> Tensor:
        """In front of the Softmax."""
        steps, _ = self.lstm(self.columns(x).squeeze(2).transpose(1, 2))
        return cast(Tensor, self.classify(steps))

    def forward(self, x: Tensor) -> Tensor:
        return self.logits(x).softmax(2)


class Encoder(nn.Module):
    """A layer of a transformer, normalized in front."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mixed, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.hidden, self.last = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        count, tokens, width = x.shape
        q, k, v = self.mixed(self.first(x)).view(count, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        attention = (q @ k.transpose(-2, -1) * (width // self.heads) ** -0.5).softmax(-1)
        x = x + self.out((attention @ v).transpose(1, 2).reshape(count, tokens, width))
        return cast(Tensor, x + self.last(functional.gelu(self.hidden(self.second(x)))))


class Transformer(nn.Module):
    """ViT: patches, a token for the class, encoders."""

    def __init__(self, classes: int, *, size: int = 32, patch: int = 4, width: int = 64, depth: int = 4) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, patch, patch)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.places = nn.Parameter(torch.randn(1, (size // patch) ** 2 + 1, width) * 0.5)
        self.layers = nn.Sequential(*(Encoder(width, 4) for _ in range(depth)), nn.LayerNorm(width))
        self.classify = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches((x - 0.5) / 0.25).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.places
        return cast(Tensor, self.classify(self.layers(x)[:, 0]))


class Next(nn.Module):
    """ConvNeXt's block, with Linear layers over channels that come last; gelu is written as erf in ONNX."""

    def __init__(self, width: int, kernel: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=width)
        self.norm, self.wide, self.narrow = (
            nn.LayerNorm(width),
            nn.Linear(width, 4 * width),
            nn.Linear(4 * width, width),
        )
        self.scale = nn.Parameter(torch.full((width,), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.narrow(functional.gelu(self.wide(y))) * self.scale
        return x + y.permute(0, 3, 1, 2)


def convnext(classes: int) -> nn.Module:
    """For spectrograms [1, 49, 10]: ConvNeXt's blocks behind a convolution with BatchNormalization and GELU."""
    return nn.Sequential(
        conv(1, 24, 3, 2, act=nn.GELU),
        nn.Conv2d(24, 32, 1),
        Next(32, 5),
        Next(32, 5),
        conv(32, 56, 3, 2, act=nn.GELU),
        Next(56, 5),
        Next(56, 5),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.LayerNorm(56),
        nn.Dropout(0.2),
        nn.Linear(56, classes),
    )


# --- segmentation, graphs


class Segmenter(nn.Module):
    """U-Net: logits of the class of each pixel."""

    def __init__(self, classes: int, widths: tuple[int, int, int] = (16, 32, 56)) -> None:
        super().__init__()
        a, b, c = widths
        self.down = nn.ModuleList([self._twice(1, a), self._twice(a, b), self._twice(b, c)])
        self.up = nn.ModuleList([nn.ConvTranspose2d(c, b, 2, 2), nn.ConvTranspose2d(b, a, 2, 2)])
        self.join = nn.ModuleList([self._twice(2 * b, b), self._twice(2 * a, a)])
        self.classify = nn.Conv2d(a, classes, 1)

    @staticmethod
    def _twice(inputs: int, outputs: int) -> nn.Sequential:
        return nn.Sequential(conv(inputs, outputs, act=nn.ReLU), conv(outputs, outputs, act=nn.ReLU))

    def forward(self, x: Tensor) -> Tensor:
        kept = []
        for level in self.down:
            x = level(functional.max_pool2d(x, 2) if kept else x)
            kept.append(x)
        for up, join, across in zip(self.up, self.join, kept[-2::-1], strict=True):
            x = join(torch.cat([across, up(x)], 1))
        return cast(Tensor, self.classify(x))


class GraphNetwork(nn.Module):
    """Graph convolutions: features of neighbours are averaged by a product with the adjacency."""

    def __init__(self, classes: int, width: int = 64) -> None:
        super().__init__()
        sizes = (3, width, width, width)
        self.layers = nn.ModuleList(nn.Linear(2 * i, o) for i, o in pairwise(sizes))
        self.classify = nn.Sequential(nn.Linear(2 * width, width), nn.ReLU(), nn.Linear(width, classes))

    def forward(self, nodes: Tensor, adjacency: Tensor) -> Tensor:
        for layer in self.layers:
            nodes = torch.relu(layer(torch.cat([nodes, torch.matmul(adjacency, nodes)], 2)))
        return cast(Tensor, self.classify(torch.cat([nodes.mean(1), nodes.amax(1)], 1)))
