"""The data of the small networks in `networks/`: pictures of scikit-learn's digits, and parts of the shared sets.

Each set is split once into a part to train and a part to test. Composed samples use digits of their own part only, so
that no pixel of a test sample was trained on. All is deterministic: a part and a seed give the same samples anywhere.
numpy, Pillow and scikit-learn; no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import numpy as np
from detection import Boxes
from numpy.typing import NDArray
from PIL import Image
from shared_data import DATA, Labelled, load, read_labels, torch_style

Array = NDArray[Any]
CLASSES = 10
NODES = 40  # of a graph at most
NEIGHBOURS = 4
LETTERS = (3, 6)  # digits of a string, least and most
LINE = (24, 96)  # height and width of a string in pixels
_DIGIT = 8  # pixels of scikit-learn's digits, either way
_TRIES = 12  # places that are tried for a digit


@dataclass(frozen=True, kw_only=True, eq=False)
class Scene:
    """A picture of digits: pixels float32 [channels, size, size] in [0, 1], boxes, and the class of each pixel.

    mask: int64 [size, size], 0 for the background and 1 + digit elsewhere.
    """

    pixels: Array
    boxes: Boxes
    mask: Array


@dataclass(frozen=True, kw_only=True, eq=False)
class Graph:
    """A digit as a graph: its bright pixels, and for each the nearest others.

    nodes: float32 [NODES, 3] of brightness, row and column; zeros where there is no node. adjacency: float32
    [NODES, NODES], rows that add up to one.
    """

    nodes: Array
    adjacency: Array
    label: int


@lru_cache(maxsize=2)
def digits(part: str) -> tuple[Array, Array]:
    """Images float32 [n, 8, 8] in [0, 1] and labels of "train" (1,198) or "test" (599)."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    chosen = (np.arange(len(labels)) % 3 == 0) == _is_test(part)
    return (images[chosen] / 16).astype(np.float32).reshape(-1, _DIGIT, _DIGIT), labels[chosen].astype(np.int64)


def cifar(part: str) -> tuple[Array, Array]:
    """Images float32 [n, 3, 32, 32] and labels: two of three shared test images train, with the calibration images."""
    images: list[Labelled] = []
    for index, image in enumerate(read_labels("cifar10/test/image_label.txt", DATA)):
        images += [image] if (index % 3 == 0) == _is_test(part) else []
    if not _is_test(part):
        images += read_labels("cifar10/calibration/image_label.txt", DATA)
    labels = np.array([image.label for image in images], np.int64)
    return np.stack([load(image.path, torch_style) for image in images]), labels


def keywords(part: str) -> tuple[Array, Array]:
    """Spectrograms float32 [n, 1, 49, 10] and labels: every third of the shared ones tests."""
    with np.load(DATA / "images/kws/kws01.npz") as stored:
        samples, labels = stored["x_nchw"], stored["label"]
    chosen = (np.arange(len(labels)) % 3 == 0) == _is_test(part)
    return samples[chosen], labels[chosen]


def scenes(
    part: str, count: int, seed: int, *, size: int, sides: tuple[int, ...], most: int, colour: bool
) -> list[Scene]:
    """`count` pictures of 1 to `most` digits of these sides in pixels on a background that varies, with noise."""
    random = np.random.default_rng([seed, _is_test(part)])
    return [_scene(random, part, size, sides, most, 3 if colour else 1) for _ in range(count)]


def strings(part: str, count: int, seed: int) -> tuple[Array, list[list[int]]]:
    """Lines of text, float32 [count, 1, *LINE] in [0, 1], and the digits that they show."""
    random = np.random.default_rng([seed, _is_test(part)])
    lines, texts = np.empty((count, 1, *LINE), np.float32), []
    for line in lines:
        pixels, text = _string(random, part)
        line[0] = pixels
        texts.append(text)
    return lines, texts


def graphs(part: str) -> list[Graph]:
    """The digits as graphs."""
    return [_graph(image, int(label)) for image, label in zip(*digits(part), strict=True)]


def _is_test(part: str) -> bool:
    return {"train": False, "test": True}[part]


@cache
def _enlarged(part: str, height: int, width: int) -> Array:
    """The digits of a part in that size, float32 [n, height, width]."""
    pictures = [Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR) for image in digits(part)[0]]
    return np.stack([np.asarray(picture, np.float32) for picture in pictures])


@cache
def _interpolation(size: int, points: int) -> Array:
    """Rows of weights [size, points] of a line through `points` values."""
    place = np.linspace(0, points - 1, size)
    return np.maximum(0, 1 - np.abs(place[:, None] - np.arange(points))).astype(np.float32)


def _background(random: np.random.Generator, height: int, width: int, channels: int) -> Array:
    """A smooth pattern around one brightness of each channel."""
    coarse = random.uniform(0.15, 0.85, (channels, 1, 1)) + random.uniform(-0.15, 0.15, (channels, 4, 4))
    return _interpolation(height, 4) @ coarse.astype(np.float32) @ _interpolation(width, 4).T


def _finish(random: np.random.Generator, canvas: Array) -> Array:
    """Noise of some strength, and 8 bits as a camera gives."""
    noisy = canvas + random.normal(0, random.uniform(0.02, 0.1), canvas.shape)
    return (np.round(np.clip(noisy, 0, 1) * 255) / 255).astype(np.float32)


def _paint(random: np.random.Generator, canvas: Array, shape: Array) -> None:
    """Draw `shape` [h, w] in [0, 1] on the part of a picture [channels, h, w], in a colour that can be told from it."""
    mean = canvas.mean(axis=(1, 2))
    sign = np.where(random.random(len(mean)) < 0.5, -1, 1) if random.random() < 0.5 else np.where(mean < 0.5, 1, -1)
    colour = np.clip(mean + sign * random.uniform(0.3, 0.7, len(mean)), 0, 1)
    colour = np.where(np.abs(colour - mean) < 0.25, np.where(mean < 0.5, mean + 0.35, mean - 0.35), colour)
    canvas += shape * (colour[:, None, None] - canvas)


def _scene(
    random: np.random.Generator, part: str, size: int, sides: tuple[int, ...], most: int, channels: int
) -> Scene:
    canvas = _background(random, size, size, channels)
    mask = np.zeros((size, size), np.int64)
    corners: list[tuple[int, int, int, int]] = []
    classes: list[int] = []
    labels = digits(part)[1]
    for _ in range(random.integers(1, most + 1)):
        which, side = random.integers(len(labels)), int(random.choice(sides))
        shape = _enlarged(part, side, int(side * random.choice([0.75, 1.0])))[which]
        rows, columns = (np.flatnonzero((shape > 0.25).any(axis=axis)) for axis in (1, 0))
        shape = shape[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        height, width = shape.shape
        for _ in range(_TRIES):
            top, left = random.integers(size - height + 1), random.integers(size - width + 1)
            box = (left, top, left + width, top + height)
            if all(box[0] >= o[2] or o[0] >= box[2] or box[1] >= o[3] or o[1] >= box[3] for o in corners):
                place = np.s_[top : top + height, left : left + width]
                _paint(random, canvas[(slice(None), *place)], shape)
                mask[place][shape > 0.5] = 1 + labels[which]
                corners.append(box)
                classes.append(int(labels[which]))
                break
    boxes = Boxes(corners=np.array(corners, float), classes=np.array(classes), scores=np.ones(len(classes)))
    return Scene(pixels=_finish(random, canvas), boxes=boxes, mask=mask)


def _string(random: np.random.Generator, part: str) -> tuple[Array, list[int]]:
    height, width = LINE
    canvas = _background(random, height, width, 1)
    labels, text = digits(part)[1], []
    left = int(random.integers(0, 8))
    for _ in range(random.integers(LETTERS[0], LETTERS[1] + 1)):
        which, side = random.integers(len(labels)), int(random.choice([16, 18, 20]))
        shape = _enlarged(part, side, int(side * random.choice([0.7, 0.85])))[which]
        columns = np.flatnonzero((shape > 0.25).any(axis=0))
        shape = shape[:, columns[0] : columns[-1] + 1]
        if left + shape.shape[1] > width:
            break
        top = random.integers(height - side + 1)
        if not text:
            sign = 1.0 if canvas.mean() < 0.5 else -1.0
            ink = float(np.clip(canvas.mean() + sign * random.uniform(0.3, 0.6), 0, 1))
        place = canvas[:, top : top + side, left : left + shape.shape[1]]
        place += shape * (ink - place)
        text.append(int(labels[which]))
        left += shape.shape[1] + int(random.integers(1, 5))
    return _finish(random, canvas)[0], text


def _graph(image: Array, label: int) -> Graph:
    bright = np.argsort(-image.ravel(), kind="stable")[:NODES]
    bright = np.sort(bright[image.ravel()[bright] > 0])
    rows, columns = np.divmod(bright, _DIGIT)
    nodes = np.zeros((NODES, 3), np.float32)
    nodes[: len(bright)] = np.stack([image.ravel()[bright], rows / 4 - 0.875, columns / 4 - 0.875], axis=1)
    present = nodes[: len(bright)]
    distances = np.square(present[:, None] - present[None]).sum(axis=2)
    nearest = np.argsort(distances, axis=1, kind="stable")[:, : NEIGHBOURS + 1]  # each is the nearest to itself
    links = np.zeros((NODES, NODES), bool)
    links[np.arange(len(bright))[:, None], nearest] = True
    links |= links.T
    adjacency = links / np.maximum(links.sum(axis=1, keepdims=True), 1)
    return Graph(nodes=nodes, adjacency=adjacency.astype(np.float32), label=label)
