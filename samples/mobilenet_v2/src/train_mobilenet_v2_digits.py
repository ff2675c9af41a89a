"""Train the embedded default model of this sample: a narrow MobileNetV2 on scikit-learn's handwritten digits.

Run it from the sample folder: ``python ./src/train_mobilenet_v2_digits.py``. It writes ``model/mobilenet_v2.onnx`` and
the held-out digits ``data/images/*.png`` with ``image_label.txt``, and prints the held-out accuracy. It needs
torch and scikit-learn, which the sample itself does not need.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime as ort
import torch
from images import LABEL_FILE, MEAN, STD, batches, central_pixels, count_hits, load_batch, preprocess, read_labels
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

SAMPLE = Path(__file__).resolve().parent.parent
CLASSES = 10
HELD_OUT_PER_CLASS = 40
VALIDATION_PER_CLASS = 16
SIZE = 96
LOW_RESOLUTION = 48
WIDTH = 0.25
LAST_CHANNELS = 320
# (expansion, channels at width 1, blocks, stride of the first block): table 2 of the MobileNetV2 paper.
STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
BATCH = 32
SPREAD = 1.5


# ---------------------------------------------------------------------------------------------------------------
# Data


class Split(NamedTuple):
    """Indices into the digits: three disjoint parts."""

    train: NDArray[np.int64]
    validation: NDArray[np.int64]
    held_out: NDArray[np.int64]


def split_digits(labels: NDArray[np.int64], seed: int) -> Split:
    """Draw the same number of held-out and of validation digits from every class; the rest is for training."""
    rng = np.random.default_rng(seed)
    end = HELD_OUT_PER_CLASS + VALIDATION_PER_CLASS
    shuffled = [rng.permutation(np.flatnonzero(labels == label)) for label in range(CLASSES)]
    held_out = np.concatenate([indices[:HELD_OUT_PER_CLASS] for indices in shuffled])
    validation = np.concatenate([indices[HELD_OUT_PER_CLASS:end] for indices in shuffled])
    train = np.concatenate([indices[end:] for indices in shuffled])
    return Split(rng.permutation(train), rng.permutation(validation), rng.permutation(held_out))


def render_digit(digit: NDArray[np.float64]) -> Image.Image:
    """Draw an 8x8 digit (0 to 16) as a 64x64 grayscale image whose black border is what the centre crop cuts off."""
    inner, size = 56, 64
    small = Image.fromarray(np.rint(digit * (255 / 16)).astype(np.uint8))
    image = Image.new("L", (size, size))
    image.paste(small.resize((inner, inner), Image.Resampling.BICUBIC), ((size - inner) // 2,) * 2)
    return image


def crop_pixels(image: Image.Image) -> NDArray[np.uint8]:
    """Return the pixels that ``preprocess`` normalises, as one gray channel [1, SIZE, SIZE]."""
    return central_pixels(image, SIZE)[None]


def normalise(gray: Tensor) -> Tensor:
    """Turn gray values from 0 to 1, [N, 1, H, W], into the normalised three channels of the sample."""
    mean, std = (torch.from_numpy(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    return ((gray - mean) / std).contiguous(memory_format=torch.channels_last)


def augment(pixels: Tensor, resolution: int) -> Tensor:
    """Move, scale, rotate and brighten digits a little, and sample them at the training resolution."""
    count = len(pixels)
    angle = torch.empty(count).uniform_(-0.15, 0.15)
    zoom = torch.empty(count, 2).uniform_(0.9, 1.15)
    shift = torch.empty(count, 2).uniform_(-0.1, 0.1)
    cos, sin = torch.cos(angle), torch.sin(angle)
    rows = [torch.stack((cos * zoom[:, 0], -sin * zoom[:, 1], shift[:, 0]), dim=1)]
    rows.append(torch.stack((sin * zoom[:, 0], cos * zoom[:, 1], shift[:, 1]), dim=1))
    grid = functional.affine_grid(torch.stack(rows, dim=1), [count, 1, resolution, resolution], align_corners=False)
    gray = functional.grid_sample(pixels.float() / 255, grid, align_corners=False)
    brightness = torch.empty(count, 1, 1, 1).uniform_(0.75, 1.15)
    return normalise((gray * brightness).clamp(0, 1))


# ---------------------------------------------------------------------------------------------------------------
# Model


def channels_of(wanted: float) -> int:
    """Round a number of channels to a multiple of 8, as MobileNetV2 does, but never below 90 % of it."""
    rounded = max(8, int(wanted + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * wanted else rounded


class ConvBn(nn.Module):
    """Convolution and batch normalisation, then ReLU6 unless the block is linear there."""

    def __init__(self, inputs: int, outputs: int, kernel: int, *, stride: int = 1, groups: int = 1, relu: bool = True):
        """Create the layers."""
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(outputs)
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        """Compute the layers."""
        out = self.bn(self.conv(x))
        return functional.relu6(out) if self.relu else out


class InvertedResidual(nn.Module):
    """1x1 expansion (unless it is 1), 3x3 depthwise convolution, linear 1x1 projection; a shortcut where it fits."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        """Create the layers."""
        super().__init__()
        hidden = inputs * expansion
        layers = [] if expansion == 1 else [ConvBn(inputs, hidden, 1)]
        layers.append(ConvBn(hidden, hidden, 3, stride=stride, groups=hidden))
        layers.append(ConvBn(hidden, outputs, 1, relu=False))
        self.layers = nn.Sequential(*layers)
        self.shortcut = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """Compute the block."""
        out = self.layers(x)
        return x + out if self.shortcut else out


class MobileNetV2(nn.Module):
    """MobileNetV2 with its 17 inverted residual blocks."""

    def __init__(self, width: float = WIDTH, classes: int = CLASSES) -> None:
        """Create the layers."""
        super().__init__()
        channels = channels_of(32 * width)
        self.stem = ConvBn(3, channels, 3, stride=2)
        blocks = []
        for expansion, wanted, count, stride in STAGES:
            for index in range(count):
                outputs = channels_of(wanted * width)
                blocks.append(InvertedResidual(channels, outputs, 1 if index else stride, expansion))
                channels = outputs
        self.blocks = nn.Sequential(*blocks)
        self.head = ConvBn(channels, LAST_CHANNELS, 1)
        self.fc = nn.Linear(LAST_CHANNELS, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")

    def forward(self, x: Tensor) -> Tensor:
        """Compute the class scores."""
        return self.fc(self.head(self.blocks(self.stem(x))).mean(dim=(2, 3)))


# ---------------------------------------------------------------------------------------------------------------
# Training


def make_optimizer(model: nn.Module, rate: float) -> torch.optim.Optimizer:
    """AdamW with weight decay on the weights only, not on batch normalisation and bias."""
    decayed = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    return torch.optim.AdamW([{"params": decayed}, {"params": others, "weight_decay": 0.0}], rate, weight_decay=0.05)


def train_batches(count: int) -> Iterator[Tensor]:
    """Shuffle the training digits and split them into full batches."""
    order = torch.randperm(count)
    return iter(order[: count - count % BATCH].split(BATCH))


def train_stage(model: nn.Module, pixels: Tensor, labels: Tensor, *, epochs: int, resolution: int, rate: float) -> None:
    """Train at one resolution with a one-cycle learning rate."""
    optimizer = make_optimizer(model, rate)
    steps = max(1, epochs * (len(pixels) // BATCH))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.2)
    for epoch in range(epochs):
        start, total = time.monotonic(), 0.0
        model.train()
        for indices in train_batches(len(pixels)):
            optimizer.zero_grad()
            loss = functional.cross_entropy(model(augment(pixels[indices], resolution)), labels[indices])
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() / (len(pixels) // BATCH)
        seconds = time.monotonic() - start
        print(f"{resolution}x{resolution} epoch {epoch + 1}/{epochs}: loss {total:.4f} ({seconds:.0f} s)", flush=True)


@torch.no_grad()
def spread_ranges(model: MobileNetV2, seed: int) -> None:
    """Give the channels between blocks ranges that differ widely, without changing what the network computes.

    Those of a MobileNetV2 trained on ImageNet differ widely, and that is why int8 costs it accuracy. Those of a network
    this small do not, and int8 costs it next to nothing. A block ends in a linear layer: its channels are multiplied by
    random factors, and what the next layers read is divided by them.
    """
    generator = torch.Generator().manual_seed(seed)
    factors: Tensor | None = None  # of the tensor that the block reads; a shortcut passes them on
    followers = [*(block.layers[0] for block in model.blocks[1:]), model.head]
    for block, follower in zip(model.blocks, followers, strict=True):
        last = block.layers[-1]
        if not block.shortcut:
            factors = torch.exp(SPREAD * torch.randn(last.bn.num_features, generator=generator))
        if factors is not None:
            last.bn.weight *= factors
            last.bn.bias *= factors
            follower.conv.weight /= factors.view(1, -1, 1, 1)


@torch.no_grad()
def predict(model: nn.Module, inputs: Tensor) -> Tensor:
    """Compute the scores in evaluation mode."""
    model.eval()
    return torch.cat([model(batch) for batch in inputs.split(BATCH)])


# ---------------------------------------------------------------------------------------------------------------
# Export


class GraphBuilder:
    """Collects ONNX nodes in topological order and names them ``{op_type}_{index}``."""

    def __init__(self) -> None:
        """Start with an empty graph."""
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def add(self, op_type: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        """Append a node and return the name of its output."""
        name = f"{op_type}_{len(self.nodes)}"
        output = output or f"{name}_output"
        self.nodes.append(helper.make_node(op_type, list(inputs), [output], name=name, **attributes))
        return output

    def parameter(self, name: str, value: Tensor) -> str:
        """Add a constant and return its name."""
        self.initializers.append(numpy_helper.from_array(value.detach().contiguous().numpy(), name))
        return name

    def conv_bn(self, x: str, prefix: str, layer: ConvBn) -> str:
        """Add a convolution, the batch normalisation that follows it, unfused, and ReLU6."""
        conv, batch_norm = layer.conv, layer.bn
        weight = self.parameter(f"{prefix}.conv.weight", conv.weight)
        padding = [int(pad) for pad in conv.padding] * 2
        out = self.add(
            "Conv", x, weight, kernel_shape=conv.kernel_size, strides=conv.stride, pads=padding, dilations=[1, 1],
            group=conv.groups,
        )  # fmt: skip
        names = ("weight", "bias", "running_mean", "running_var")
        parameters = [self.parameter(f"{prefix}.bn.{name}", getattr(batch_norm, name)) for name in names]
        out = self.add("BatchNormalization", out, *parameters, epsilon=batch_norm.eps, momentum=0.9)
        return self.add("Clip", out, "relu6.min", "relu6.max") if layer.relu else out

    def block(self, x: str, prefix: str, block: InvertedResidual) -> str:
        """Add an inverted residual block."""
        out = x
        for index, layer in enumerate(block.layers):
            out = self.conv_bn(out, f"{prefix}.{index}", layer)
        return self.add("Add", x, out) if block.shortcut else out


def build_onnx(model: MobileNetV2) -> onnx.ModelProto:
    """Write the network as an ONNX model with batch normalisation kept."""
    graph = GraphBuilder()
    graph.parameter("relu6.min", torch.tensor(0.0))
    graph.parameter("relu6.max", torch.tensor(6.0))
    x = graph.conv_bn("input", "stem", model.stem)
    for index, block in enumerate(model.blocks):
        x = graph.block(x, f"block{index}", block)
    x = graph.add("GlobalAveragePool", graph.conv_bn(x, "head", model.head))
    parameters = graph.parameter("fc.weight", model.fc.weight), graph.parameter("fc.bias", model.fc.bias)
    graph.add("Gemm", graph.add("Flatten", x, axis=1), *parameters, output="output", transB=1)
    graph_proto = helper.make_graph(
        graph.nodes,
        "mobilenet_v2",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 3, SIZE, SIZE])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["N", CLASSES])],
        graph.initializers,
    )
    opsets = [helper.make_opsetid("", 13)]
    return helper.make_model(graph_proto, producer_name=Path(__file__).stem, ir_version=8, opset_imports=opsets)


def verify(path: Path, model: nn.Module, inputs: Tensor) -> float:
    """Compare an exported model with the torch model; return the largest difference of the scores."""
    onnx.checker.check_model(str(path), full_check=True)
    (scores,) = ort.InferenceSession(str(path)).run(None, {"input": inputs.contiguous().numpy()})
    expected = predict(model, inputs).numpy()
    difference = float(np.abs(scores - expected).max())
    if not difference < 1e-4 * max(1.0, float(np.abs(expected).max())):
        raise RuntimeError(f"{path}: exported model differs from the torch model by {difference}")
    return difference


def export(model: MobileNetV2, path: Path, inputs: Tensor) -> None:
    """Write the model, verify it on random and real inputs, and only then move it in place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp.onnx")
    try:
        onnx.save(build_onnx(model), str(temporary))
        difference = max(verify(temporary, model, batch) for batch in (inputs, torch.randn(8, 3, SIZE, SIZE)))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    print(f"wrote {path} ({path.stat().st_size / 1e6:.2f} MB), largest difference to torch {difference:.1e}")


def write_images(directory: Path, pictures: list[Image.Image], labels: NDArray[np.int64]) -> None:
    """Write the held-out digits as PNG files and their label file, instead of earlier ones."""
    directory.mkdir(parents=True, exist_ok=True)
    for old in directory.glob("digit_*.png"):
        old.unlink()
    lines = []
    for index, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
        name = f"digit_{index:03d}.png"
        picture.save(directory / name, optimize=True)
        lines.append(f"{name} {label}\n")
    (directory / LABEL_FILE).write_text("".join(lines), encoding="utf-8")


def accuracy(model_path: Path, images_dir: Path) -> float:
    """Measure top-1 of the written model on the written images, as the sample does."""
    images = read_labels(images_dir)
    session = ort.InferenceSession(str(model_path))
    parts = batches(images, BATCH)
    hits = sum(count_hits(session.run(None, {"input": load_batch(part, SIZE)})[0], part) for part in parts)
    return hits / len(images)


# ---------------------------------------------------------------------------------------------------------------


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0, help="seed of split, weights and augmentation (default 0)")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default 1)")
    parser.add_argument("--low_epochs", type=int, default=30, help=f"epochs at {LOW_RESOLUTION}x{LOW_RESOLUTION}")
    parser.add_argument("--epochs", type=int, default=10, help=f"epochs at {SIZE}x{SIZE}, after the others")
    parser.add_argument("--output", type=Path, default=SAMPLE, help="folder that gets model/ and data/images/")
    return parser.parse_args()


def main() -> None:
    """Train, export and measure."""
    args = parse_arguments()
    start = time.monotonic()
    torch.set_num_threads(args.threads)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(args.seed)
    digits = load_digits()
    split = split_digits(digits.target, args.seed)
    pictures = [render_digit(digit) for digit in digits.images]

    pixels = torch.from_numpy(np.stack([crop_pixels(pictures[index]) for index in split.train]))
    labels = torch.from_numpy(digits.target)
    model = MobileNetV2().to(memory_format=torch.channels_last)
    stage = {"pixels": pixels, "labels": labels[split.train]}
    train_stage(model, **stage, epochs=args.low_epochs, resolution=LOW_RESOLUTION, rate=5e-3)
    train_stage(model, **stage, epochs=args.epochs, resolution=SIZE, rate=1e-3)
    spread_ranges(model, args.seed)

    inputs = torch.from_numpy(
        np.stack([preprocess(pictures[index].convert("RGB"), SIZE) for index in split.validation])
    )
    correct = predict(model, inputs).argmax(dim=1) == labels[split.validation]
    print(f"validation top1: {correct.float().mean():.4f} ({len(correct)} digits)")
    model_path, images_dir = args.output / "model" / "mobilenet_v2.onnx", args.output / "data" / "images"
    export(model, model_path, inputs[:BATCH])
    write_images(images_dir, [pictures[index] for index in split.held_out], digits.target[split.held_out])
    top1 = accuracy(model_path, images_dir)
    print(f"held-out top1: {top1} ({len(split.held_out)} digits, seed {args.seed})")
    print(f"training and export took {(time.monotonic() - start) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
