"""Train the embedded Q/DQ model of the QAT sample: a narrow MobileNetV2 on scikit-learn's handwritten digits.

Run it from the sample folder: ``python ./src/train_mobilenet_v2_qat.py``. Float training comes first; then batch
normalization is folded into the convolutions, the ranges of the activations are measured, and the model learns on with
rounded weights and activations. It writes ``model/mobilenet_v2_qat.onnx`` (QuantizeLinear and DequantizeLinear before
each layer) and the held-out digits ``data/qat/*.png`` with ``image_label.txt``. It needs torch, onnx and scikit-learn,
which the sample itself does not need.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from images import preprocess
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

SAMPLE = Path(__file__).resolve().parent.parent
CLASSES, SIZE, BATCH = 10, 32, 64
HELD_OUT, WRITTEN = 16, 4  # digits per class
# expansion, channels, blocks, stride of the first block: MobileNetV2's table at a quarter of its width
STAGES = ((1, 4, 1, 1), (6, 8, 2, 1), (6, 8, 3, 2), (6, 16, 4, 2), (6, 24, 3, 1), (6, 40, 3, 2), (6, 80, 1, 1))
STEM, LAST = 8, 160


class FakeQuant(nn.Module):
    """Round a tensor to int8: per tensor with a zero point, or per output channel through zero for weights.

    `mode`: "off", "observe" (ranges of activations), "on", or "frozen", with scales of weights as constants.
    """

    low: Tensor
    high: Tensor
    scale: Tensor

    def __init__(self, *, weight: bool) -> None:
        super().__init__()
        self.weight, self.mode = weight, "off"
        self.register_buffer("low", torch.zeros(()))
        self.register_buffer("high", torch.zeros(()))
        self.register_buffer("scale", torch.zeros(0))

    def forward(self, x: Tensor) -> Tensor:
        if self.mode == "off":
            return x
        if self.weight:
            scale = self.scale if self.mode == "frozen" else self.weight_scale(x)
            zeros = torch.zeros(scale.shape, dtype=torch.int32)
            return torch.fake_quantize_per_channel_affine(x, scale, zeros, 0, -128, 127)
        if self.mode == "observe":
            self.low, self.high = torch.minimum(self.low, x.amin()), torch.maximum(self.high, x.amax())
            return x
        scale = float(self.high - self.low) / 255
        zero_point = round(-128 - float(self.low) / scale)
        return torch.fake_quantize_per_tensor_affine(x, scale, zero_point, -128, 127)

    @staticmethod
    def weight_scale(x: Tensor) -> Tensor:
        """The scale of each output channel."""
        return x.detach().abs().flatten(1).amax(1).clamp_min(1e-8) / 127

    def freeze(self, weight: Tensor) -> None:
        """Keep the scales of a weight that will not change any more."""
        self.scale, self.mode = self.weight_scale(weight), "frozen"


class Layer(nn.Module):
    """A convolution or linear layer with batch normalization behind it until it is folded."""

    def __init__(self, core: nn.Conv2d | nn.Linear, norm: nn.BatchNorm2d | None, *, relu6: bool) -> None:
        super().__init__()
        self.core, self.norm, self.relu6 = core, norm, relu6
        self.activation, self.rounded = FakeQuant(weight=False), FakeQuant(weight=True)

    def forward(self, x: Tensor) -> Tensor:
        core, weight = self.core, self.rounded(self.core.weight)
        x = self.activation(x)
        if isinstance(core, nn.Linear):
            return functional.linear(x, weight, core.bias)
        y = functional.conv2d(x, weight, core.bias, core.stride, core.padding, core.dilation, core.groups)
        y = self.norm(y) if self.norm is not None else y
        return functional.relu6(y) if self.relu6 else y

    def fold(self) -> None:
        """Move the batch normalization into the convolution."""
        if self.norm is None:
            return
        norm = self.norm
        gain = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        self.core.weight = nn.Parameter((self.core.weight * gain[:, None, None, None]).detach())
        self.core.bias = nn.Parameter((norm.bias - norm.running_mean * gain).detach())
        self.norm = None


def conv(inputs: int, outputs: int, *, kernel: int = 1, stride: int = 1, groups: int = 1, relu6: bool = True) -> Layer:
    core = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return Layer(core, nn.BatchNorm2d(outputs), relu6=relu6)


class InvertedResidual(nn.Module):
    """Expand, filter each channel, project; add the input where shapes allow."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        layers = [conv(inputs, hidden)] if expansion > 1 else []
        layers.append(conv(hidden, hidden, kernel=3, stride=stride, groups=hidden))
        layers.append(conv(hidden, outputs, relu6=False))
        self.layers, self.residual = nn.Sequential(*layers), stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.residual else self.layers(x)


class MobileNetV2(nn.Module):
    """Scores [N, 10] of normalised images [N, 3, 32, 32]."""

    def __init__(self) -> None:
        super().__init__()
        blocks: list[nn.Module] = [conv(3, STEM, kernel=3, stride=2)]
        inputs = STEM
        for expansion, channels, count, stride in STAGES:
            for index in range(count):
                blocks.append(InvertedResidual(inputs, channels, stride if index == 0 else 1, expansion))
                inputs = channels
        self.features = nn.Sequential(*blocks, conv(inputs, LAST))
        self.classifier = Layer(nn.Linear(LAST, CLASSES), None, relu6=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.classifier(self.features(x).mean((2, 3)))
        return y


def draw(digit: NDArray[np.float64]) -> Image.Image:
    """An 8x8 digit (0 to 16) as a 32x32 grey image."""
    small = Image.fromarray(np.rint(digit * (255 / 16)).astype(np.uint8))
    return small.resize((SIZE, SIZE), Image.Resampling.BICUBIC)


def to_input(images: list[Image.Image]) -> Tensor:
    """[N, 3, 32, 32], as `convert_qat_model.py` prepares it."""
    return torch.from_numpy(np.stack([preprocess(image.convert("RGB"), SIZE) for image in images]))


def shifted(x: Tensor, generator: torch.Generator) -> Tensor:
    """A copy of each image moved by up to two pixels."""
    dx, dy = torch.randint(-2, 3, (2,), generator=generator).tolist()
    return torch.roll(x, (dy, dx), (2, 3))


def train(model: nn.Module, x: Tensor, y: Tensor, *, epochs: int, rate: float, generator: torch.Generator) -> None:
    """Adam with a rate that falls to zero along a cosine."""
    optimizer = torch.optim.AdamW(model.parameters(), rate, weight_decay=1e-3)
    steps = epochs * (len(x) // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(epochs):
        order = torch.randperm(len(x), generator=generator)
        for start in range(0, len(x) - BATCH + 1, BATCH):
            part = order[start : start + BATCH]
            loss = functional.cross_entropy(model(shifted(x[part], generator)), y[part], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Share of right answers."""
    model.eval()
    with torch.no_grad():
        return float((model(x).argmax(1) == y).float().mean())


def main() -> None:
    """Train, export, write the held-out digits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="seed of everything random")
    parser.add_argument("--epochs", type=int, default=20, help="epochs in float")
    parser.add_argument("--qat_epochs", type=int, default=4, help="epochs with rounding")
    parser.add_argument("--output", type=Path, default=SAMPLE, help="sample folder to write to")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    torch.set_num_threads(2)
    generator = torch.Generator().manual_seed(args.seed)

    digits, labels = load_digits(return_X_y=True)
    images = [draw(digit) for digit in digits.reshape(-1, 8, 8)]
    rng = np.random.default_rng(args.seed)
    shuffled = [rng.permutation(np.flatnonzero(labels == label)) for label in range(CLASSES)]
    held_out = np.stack([indices[:HELD_OUT] for indices in shuffled], axis=1).reshape(-1)  # one of each class in turn
    rest = np.concatenate([indices[HELD_OUT:] for indices in shuffled])
    x, y = to_input([images[i] for i in rest]), torch.from_numpy(labels[rest])
    test_x, test_y = to_input([images[i] for i in held_out]), torch.from_numpy(labels[held_out])

    model = MobileNetV2()
    train(model.train(), x, y, epochs=args.epochs, rate=4e-3, generator=generator)
    print(f"float: held-out top1 {accuracy(model, test_x, test_y):.4f} ({len(held_out)} digits)", flush=True)
    layers = [module for module in model.modules() if isinstance(module, Layer)]
    quantizers = [module for module in model.modules() if isinstance(module, FakeQuant)]
    for layer in layers:
        layer.fold()
    for mode in ("observe", "on"):
        for quantizer in quantizers:
            quantizer.mode = mode
        if mode == "observe":
            accuracy(model, x, y)
    print(f"rounded: held-out top1 {accuracy(model, test_x, test_y):.4f}", flush=True)
    train(model.train(), x, y, epochs=args.qat_epochs, rate=3e-4, generator=generator)
    print(f"rounded and trained: held-out top1 {accuracy(model, test_x, test_y):.4f}", flush=True)

    for layer in layers:
        layer.rounded.freeze(layer.core.weight)
    (args.output / "model").mkdir(parents=True, exist_ok=True)
    torch.onnx.export(
        model.eval(),
        (test_x[:1],),
        str(args.output / "model" / "mobilenet_v2_qat.onnx"),
        dynamo=False,
        opset_version=13,
        input_names=["input"],
        output_names=["output"],
        dynamic_axes={"input": {0: "N"}, "output": {0: "N"}},
    )
    folder = args.output / "data" / "qat"
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number, index in enumerate(held_out[: WRITTEN * CLASSES]):
        images[index].save(folder / f"digit_{number:02d}.png", optimize=True)
        lines.append(f"digit_{number:02d}.png {labels[index]}\n")
    (folder / "image_label.txt").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
