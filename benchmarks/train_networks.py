"""Trains the small networks of `networks/` and writes them as ONNX files: python benchmarks/train_networks.py [NAMES].

It needs the extra `train`: torch 2.13.0 made the files that are here. One thread and one seed a network, so that the
same versions on the same machine give the same file; each takes minutes. `hard_tasks.py` has the tests, and
`networks/scores.json` gets what the float networks reach there.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import network_data as data
import numpy as np
import torch
from detector_loss import detector_loss, pack
from hard_tasks import DETECTED, HARD, PLACED, SEGMENTED, state_score
from network_modules import (
    Detector,
    GraphNetwork,
    Recognizer,
    Segmenter,
    Transformer,
    convnext,
    efficientnet,
    mobilenet,
)
from torch import Tensor, nn
from torch.nn import functional

Batch = tuple[Tensor, ...]
SEED = 16


def classes_loss(network: nn.Module, *batch: Tensor) -> Tensor:
    """Cross entropy of logits; the last of the batch is the truth."""
    return functional.cross_entropy(network(*batch[:-1]), batch[-1], label_smoothing=0.05)


def pixels_loss(network: nn.Module, pixels: Tensor, mask: Tensor) -> Tensor:
    """Cross entropy of each pixel; the background, which most are, counts less."""
    return functional.cross_entropy(network(pixels), mask, weight=torch.tensor([0.2] + [1.0] * data.CLASSES))


def strings_loss(network: nn.Module, lines: Tensor, texts: Tensor, lengths: Tensor) -> Tensor:
    """Connectionist temporal classification; class 0 is the blank."""
    steps = network.logits(lines).log_softmax(2).transpose(0, 1)
    counts = torch.full((len(lines),), len(steps))
    return functional.ctc_loss(steps, texts, counts, lengths, zero_infinity=True)


def as_they_are(*batch: Tensor) -> Batch:
    """No augmentation."""
    return batch


def photos(pixels: Tensor, labels: Tensor) -> Batch:
    """Mirrored and moved by up to four pixels; a square is taken out of some."""
    mirrored = torch.where(torch.rand(len(pixels), 1, 1, 1) < 0.5, pixels.flip(3), pixels)
    padded, moved = functional.pad(mirrored, (4, 4, 4, 4)), torch.empty_like(pixels)
    for k, (y, x, hole) in enumerate(torch.randint(0, 9, (len(pixels), 3)).tolist()):
        moved[k] = padded[k, :, y : y + 32, x : x + 32]
        if hole < 4:
            moved[k, :, 3 * y : 3 * y + 8, 3 * x : 3 * x + 8] = 0
    return moved, labels


def spoken(samples: Tensor, labels: Tensor) -> Batch:
    """Moved in time by up to five frames, somewhat louder or softer, with noise."""
    moved = torch.stack([sample.roll(int(torch.randint(-5, 6, ())), 1) for sample in samples])
    louder = moved * torch.empty(len(samples), 1, 1, 1).uniform_(0.9, 1.1)
    return louder + torch.randn_like(samples), labels


def lit(pixels: Tensor, *truth: Tensor) -> Batch:
    """Brighter or darker, with other noise."""
    bright = pixels * torch.empty(len(pixels), 1, 1, 1).uniform_(0.8, 1.2)
    return (bright + torch.randn_like(pixels) * 0.03, *truth)


@dataclass(frozen=True, kw_only=True, eq=False)
class Training:
    """How one network is trained and exported.

    free: the batch is a free axis in the file. last: channels are last in memory, with which depthwise convolutions
    take less time.
    """

    build: Callable[[], nn.Module]
    samples: Callable[[], Batch]
    loss: Callable[..., Tensor] = classes_loss
    change: Callable[..., Batch] = as_they_are
    steps: int
    batch: int = 64
    rate: float = 3e-3
    decay: float = 0.02
    opset: int
    inputs: Sequence[str] = field(default=("input",))
    output: str = "output"
    free: bool = True
    last: bool = False


def _tensors(*arrays: Any) -> Batch:
    return tuple(torch.from_numpy(np.ascontiguousarray(array)) for array in arrays)


def _scenes() -> Batch:
    found = data.scenes("train", 4000, SEED, **DETECTED)
    return (*_tensors(np.stack([scene.pixels for scene in found])), *pack([scene.boxes for scene in found]))


def _masks() -> Batch:
    found = data.scenes("train", 3000, SEED + 1, **SEGMENTED)
    return _tensors(np.stack([scene.pixels for scene in found]), np.stack([scene.mask for scene in found]))


def _placed() -> Batch:
    found = data.scenes("train", 6000, SEED + 2, **PLACED)
    return _tensors(np.stack([scene.pixels for scene in found]), np.array([scene.boxes.classes[0] for scene in found]))


def _strings() -> Batch:
    lines, texts = data.strings("train", 5000, SEED + 3)
    padded = np.zeros((len(texts), data.LETTERS[1]), np.int64)
    for row, text in enumerate(texts):
        padded[row, : len(text)] = np.add(text, 1)
    return _tensors(lines, padded, np.array([len(text) for text in texts]))


def _graphs() -> Batch:
    found = data.graphs("train")
    return _tensors(
        np.stack([graph.nodes for graph in found]),
        np.stack([graph.adjacency for graph in found]),
        np.array([graph.label for graph in found]),
    )


TRAININGS = {
    "detector": Training(
        build=lambda: Detector(DETECTED["size"], data.CLASSES),
        samples=_scenes,
        loss=detector_loss,
        change=lit,
        steps=1800,
        batch=24,
        opset=17,
        inputs=("images",),
        output="output0",
        free=False,
    ),
    "mobilenetv3": Training(
        build=lambda: mobilenet(10),
        samples=lambda: _tensors(*data.cifar("train")),
        change=photos,
        steps=1000,
        opset=13,
        last=True,
    ),
    "efficientnet": Training(
        build=lambda: efficientnet(10),
        samples=lambda: _tensors(*data.cifar("train")),
        change=photos,
        steps=1000,
        opset=11,
        last=True,
    ),
    "crnn": Training(
        build=lambda: Recognizer(1 + data.CLASSES),
        samples=_strings,
        loss=strings_loss,
        change=lit,
        steps=1500,
        opset=14,
    ),
    "vit": Training(
        build=lambda: Transformer(data.CLASSES),
        samples=_placed,
        change=lit,
        steps=1600,
        rate=1e-3,
        opset=17,
        free=False,
    ),
    "convnext": Training(
        build=lambda: convnext(12),
        samples=lambda: _tensors(*data.keywords("train")),
        change=spoken,
        steps=1500,
        decay=0.1,
        opset=13,
    ),
    "unet": Training(
        build=lambda: Segmenter(1 + data.CLASSES),
        samples=_masks,
        loss=pixels_loss,
        change=lit,
        steps=1200,
        batch=16,
        opset=11,
    ),
    "graph": Training(
        build=lambda: GraphNetwork(data.CLASSES),
        samples=_graphs,
        steps=2000,
        opset=16,
        inputs=("nodes", "adjacency"),
    ),
}


def _shuffled(samples: Batch, size: int) -> Iterator[Batch]:
    """Batches without end, each sample once before any comes again."""
    while True:
        order = torch.randperm(len(samples[0]))
        for start in range(0, len(order) - size + 1, size):
            yield tuple(part[order[start : start + size]] for part in samples)


def train(name: str) -> tuple[nn.Module, Batch]:
    """The trained network, ready to be exported, and a sample of its inputs."""
    training = TRAININGS[name]
    torch.manual_seed(SEED)
    layout = torch.channels_last if training.last else torch.contiguous_format
    network, samples = training.build().train().to(memory_format=layout), training.samples()
    optimizer = torch.optim.AdamW(network.parameters(), training.rate, weight_decay=training.decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, training.rate, training.steps, pct_start=0.15)
    total, start = 0.0, time.perf_counter()
    for step, batch in enumerate(_shuffled(samples, training.batch), start=1):
        changed = training.change(*batch)
        loss = training.loss(network, changed[0].contiguous(memory_format=layout), *changed[1:])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimizer.step()
        schedule.step()
        total += loss.item()
        if step % 100 == 0:
            print(f"{name}: step {step}, loss {total / 100:.3f}, {time.perf_counter() - start:.0f} s", flush=True)
            total = 0.0
        if step == training.steps:
            break
    example = tuple(part[:1] for part in samples[: len(training.inputs)])
    return network.eval().to(memory_format=torch.contiguous_format), example


def export(name: str, network: nn.Module, example: Batch) -> None:
    """Write the ONNX file, as torch's exporter by tracing writes it."""
    training = TRAININGS[name]
    axes = {value: {0: "N"} for value in (*training.inputs, training.output)} if training.free else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it announces another exporter, and what tracing fixes
        torch.onnx.export(
            network,
            example,
            str(HARD[name].case.model),
            input_names=list(training.inputs),
            output_names=[training.output],
            opset_version=training.opset,
            dynamic_axes=axes,
            dynamo=False,
        )


def main(words: Sequence[str] | None = None) -> int:
    """Train, export, and state the score of each network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(TRAININGS)} (all)")
    names = parser.parse_args(words).names or list(TRAININGS)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    for name in names:
        export(name, *train(name))
        print(f"{name}: {state_score(name)}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
