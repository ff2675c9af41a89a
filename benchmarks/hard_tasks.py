"""The tasks of `make hard`: the small networks of `networks/`, their calibration data, their tests and their judge.

The judge of this benchmark is its own: it shares nothing with that by which `quantize` keeps its steps.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import network_data as data
import numpy as np
import onnxruntime as ort
from detection import IOUS, Boxes, matches, overlaps, suppress
from measures import Array, Figure, average, percentage, powers
from prepared import Case
from tasks import JUDGE, Classes, Feed, Tally, Task

NETWORKS = Path(__file__).resolve().parent / "networks"
SCORES = NETWORKS / "scores.json"
DETECTED: dict[str, Any] = {"size": 80, "sides": (16, 20, 24, 28, 34), "most": 4, "colour": True}
SEGMENTED: dict[str, Any] = {"size": 48, "sides": (16, 20, 24), "most": 3, "colour": False}
PLACED: dict[str, Any] = {"size": 32, "sides": (26, 30), "most": 1, "colour": False}
_CALIBRATION, _TEST = 1000, 2000  # seeds; those of training are others
_CEILING = 80.0  # dB of a sample that is as good as exact
_CERTAIN = 0.25  # the score from which a detection is one that users see
_LEAST_SCORE = 0.02
_SAME = 0.7  # intersection over union of two boxes of one detection
_UNLIKELY = 1e-3  # a probability: what is less makes no difference


def sample_decibels(reference: Array, got: Array) -> float:
    """Signal to noise ratio of one sample, at most `_CEILING`; the mean of an output, which moves nothing, is left."""
    signal, noise = powers(reference, got)
    return min(_CEILING, 10 * float(np.log10(max(signal, 1e-30) / max(noise, 1e-30))))


class Logits(Tally):
    """Adds the mean over samples of the decibels in front of a final Softmax, where the network has one."""

    def __init__(self) -> None:
        super().__init__()
        self._decibels: list[float] = []

    def add(self, reference: Array, got: Array, truth: Any) -> None:
        super().add(reference, got, truth)
        self._decibels.append(sample_decibels(self.logits(reference), self.logits(got)))

    def logits(self, output: Array) -> Array:
        """What the judge compares."""
        return output

    def figures(self) -> dict[str, Figure]:
        return super().figures() | {JUDGE: Figure(of=average, items=(np.array(self._decibels),))}


class Labels(Logits, Classes):
    """Of a classifier."""


class Strings(Logits):
    """Share of lines that are read without a mistake, and of those that are read as by the float model."""

    def __init__(self) -> None:
        super().__init__()
        self._hits: list[tuple[bool, bool]] = []

    def logits(self, output: Array) -> Array:
        return np.log(np.maximum(output, _UNLIKELY) / _UNLIKELY)

    def judge(self, reference: Array, got: Array, truth: list[int]) -> None:
        text = read(got[0])
        self._hits.append((text == truth, text == read(reference[0])))

    def own(self) -> dict[str, Figure]:
        right, same = np.array(self._hits, bool).reshape(-1, 2).T
        return {name: Figure(of=percentage, items=(hits,)) for name, hits in (("strings", right), ("agree", same))}


def read(probabilities: Array) -> list[int]:
    """The digits of the best class of each step [steps, classes]: repetitions are one, class 0 is no digit."""
    best = probabilities.argmax(axis=1)
    return [int(k) - 1 for k in best[np.diff(best, prepend=0) != 0] if k]


class Pixels(Logits):
    """Mean intersection over union of classes, and the share of pixels whose class is that of the float model."""

    def __init__(self) -> None:
        super().__init__()
        self._areas: list[tuple[Array, Array]] = []
        self._same: list[float] = []

    def judge(self, reference: Array, got: Array, truth: Array) -> None:
        found, kinds = got[0].argmax(axis=0), np.arange(got.shape[1])[:, None]
        mine, theirs = found.ravel() == kinds, truth.ravel() == kinds
        self._areas.append(((mine & theirs).sum(axis=1), (mine | theirs).sum(axis=1)))
        self._same.append(100 * float(np.mean(found == reference[0].argmax(axis=0))))

    def own(self) -> dict[str, Figure]:
        shared, union = np.array(self._areas, np.float64).transpose(1, 0, 2)
        return {
            "mIoU": Figure(of=_mean_overlap, items=(shared, union)),
            "agree": Figure(of=average, items=(np.array(self._same),)),
        }


def _mean_overlap(counts: Array, shared: Array, union: Array) -> Array:
    return np.asarray(100 * np.mean((counts @ shared) / np.maximum(counts @ union, 1), axis=1))


class Detected(Tally):
    """Mean average precision; detections kept; and as judge the noise of boxes and scores, each over its own signal."""

    def __init__(self) -> None:
        super().__init__()
        self._hits: list[tuple[Array, Array, Array]] = []
        self._truth: list[Array] = []
        self._kept: list[tuple[int, float]] = []
        self._parts: list[tuple[float, float, float, float]] = []

    def judge(self, reference: Array, got: Array, truth: Boxes) -> None:
        mine, exact = decode(got[0]), decode(reference[0])
        hits = np.zeros((len(mine.classes), len(IOUS)), bool)
        for kind in np.unique(mine.classes):
            chosen = mine.classes == kind
            table = overlaps(mine.corners[chosen], truth.corners[truth.classes == kind])
            hits[chosen] = np.stack([matches(table, least) for least in IOUS], axis=1)
        self._hits.append((mine.scores, mine.classes, hits))
        self._truth.append(np.bincount(truth.classes, minlength=data.CLASSES))
        self._kept.append(_both(mine, exact))
        self._parts.append((*powers(reference[:, :4], got[:, :4]), *powers(reference[:, 4:], got[:, 4:])))

    def own(self) -> dict[str, Figure]:
        hits = np.empty(len(self._hits), object)
        hits[:] = self._hits
        both, mean = np.array(self._kept, np.float64).T
        return {
            "mAP50-95": Figure(of=_average_precision, items=(hits, np.array(self._truth, np.float64))),
            "kept": Figure(of=_ratio, items=(both, mean)),
        }

    def figures(self) -> dict[str, Figure]:
        parts = tuple(np.array(self._parts).T)
        return super().figures() | {
            "boxes": Figure(of=_parts_decibel, items=parts[:2]),
            "scores": Figure(of=_parts_decibel, items=parts[2:]),
            JUDGE: Figure(of=_parts_decibel, items=parts),
        }


def decode(output: Array) -> Boxes:
    """Boxes from an output [4 + classes, cells] of centres, sizes and scores, after NMS by class; best first."""
    values = np.asarray(output, np.float64).T
    corners = np.concatenate([values[:, :2] - values[:, 2:4] / 2, values[:, :2] + values[:, 2:4] / 2], axis=1)
    classes, scores = values[:, 4:].argmax(axis=1), values[:, 4:].max(axis=1)
    sound = np.flatnonzero(scores > _LEAST_SCORE)
    order = sound[np.argsort(-scores[sound], kind="stable")]
    order = order[suppress(corners[order], classes[order])]
    return Boxes(corners=corners[order], classes=classes[order], scores=scores[order])


def _both(mine: Boxes, exact: Boxes) -> tuple[int, float]:
    """How many detections are in both, and the mean of the two counts."""
    found, wanted = mine.scores > _CERTAIN, exact.scores > _CERTAIN
    same = mine.classes[found][:, None] == exact.classes[wanted][None]
    table = np.where(same, overlaps(mine.corners[found], exact.corners[wanted]), 0)
    return int(matches(table, _SAME).sum()), (found.sum() + wanted.sum()) / 2


def _ratio(counts: Array, part: Array, whole: Array) -> Array:
    return 100 * (counts @ part) / np.maximum(counts @ whole, 1)


def _parts_decibel(counts: Array, *parts: Array) -> Array:
    """Of signal and noise of each part in turn: the mean over parts of noise over signal, in dB."""
    ratios = [(counts @ noise) / (counts @ signal) for signal, noise in zip(parts[::2], parts[1::2], strict=True)]
    return np.asarray(-10 * np.log10(np.maximum(np.mean(ratios, axis=0), 10 ** (-_CEILING / 10))))


def _average_precision(counts: Array, hits: Array, truth: Array) -> Array:
    """mAP in percent: the area below the precision, which is made monotonous, at each of `IOUS` and of each class."""
    owner = np.concatenate([np.full(len(found[0]), k) for k, found in enumerate(hits)])
    scores, classes, right = (np.concatenate([found[part] for found in hits]) for part in range(3))
    totals, order = counts @ truth, np.argsort(-scores, kind="stable")
    values = []
    for kind in np.flatnonzero(truth.sum(axis=0)):
        chosen = order[classes[order] == kind]
        weights = counts[:, owner[chosen]]
        found = np.cumsum(weights, axis=1)
        for column in right[chosen].T:
            true = weights * column
            precision = np.cumsum(true, axis=1) / np.maximum(found, 1)
            precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
            values.append((true * precision).sum(axis=1) / np.maximum(totals[:, kind], 1))
    return np.asarray(100 * np.mean(values, axis=0))


@dataclass(frozen=True, kw_only=True)
class Hard(Task):
    """A network of `networks/`. `sampling`: which of several draws of calibration samples, each from the train part."""

    sampling: int = 0

    @property
    def case(self) -> Case:
        return Case(name=self.name, model=NETWORKS / self.file)

    @abstractmethod
    def calibration(self, count: int) -> dict[str, Array]:
        """At most `count` samples of each input."""

    def write_calibration(self, path: Path, count: int) -> int:
        found = self.calibration(count)
        first = next(iter(found.values()))
        if len(found) == 1:
            np.save(path, first)
        else:
            np.savez(path, **found)
        return len(first)

    def drawn(self, total: int, count: int) -> Array:
        """`count` of `total` samples, drawn without order."""
        return np.random.default_rng(_CALIBRATION + self.sampling).permutation(total)[:count]


@dataclass(frozen=True, kw_only=True)
class Scenes(Hard):
    """Composed pictures: `look` has the arguments of `network_data.scenes`."""

    look: dict[str, Any]
    count: int
    input: str = "input"

    def calibration(self, count: int) -> dict[str, Array]:
        found = data.scenes("train", count, _CALIBRATION + self.sampling, **self.look)
        return {self.input: np.stack([scene.pixels for scene in found])}

    def truth(self, scene: data.Scene) -> Any:
        """What the tally wants."""
        if self.tally is Pixels:
            return scene.mask
        return scene.boxes if self.tally is Detected else int(scene.boxes.classes[0])

    def test(self, most: int | None) -> Iterator[tuple[Feed, Any]]:
        for scene in data.scenes("test", most or self.count, _TEST, **self.look):
            yield {self.input: scene.pixels[None]}, self.truth(scene)


@dataclass(frozen=True, kw_only=True)
class Lines(Hard):
    """Strings of digits."""

    count: int = 2400

    def calibration(self, count: int) -> dict[str, Array]:
        return {"input": data.strings("train", count, _CALIBRATION + self.sampling)[0]}

    def test(self, most: int | None) -> Iterator[tuple[Feed, list[int]]]:
        for line, text in zip(*data.strings("test", most or self.count, _TEST), strict=True):
            yield {"input": line[None]}, text


@dataclass(frozen=True, kw_only=True)
class Stored(Hard):
    """One of the shared sets: `network_data.cifar` or `network_data.keywords`."""

    read: Any

    def calibration(self, count: int) -> dict[str, Array]:
        samples, _ = self.read("train")
        return {"input": samples[self.drawn(len(samples), count)]}

    def test(self, most: int | None) -> Iterator[tuple[Feed, int]]:
        samples, labels = self.read("test")
        for index in _some(len(labels), most):
            yield {"input": samples[index][None]}, int(labels[index])


@dataclass(frozen=True, kw_only=True)
class Graphs(Hard):
    """Digits as graphs."""

    def calibration(self, count: int) -> dict[str, Array]:
        found = data.graphs("train")
        chosen = [found[index] for index in self.drawn(len(found), count)]
        return {
            "nodes": np.stack([graph.nodes for graph in chosen]),
            "adjacency": np.stack([graph.adjacency for graph in chosen]),
        }

    def test(self, most: int | None) -> Iterator[tuple[Feed, int]]:
        found = data.graphs("test")
        for index in _some(len(found), most):
            graph = found[index]
            yield {"nodes": graph.nodes[None], "adjacency": graph.adjacency[None]}, graph.label


def _some(total: int, most: int | None) -> Sequence[int]:
    """All indices, or `most` at equal distances."""
    return range(total) if most is None else np.linspace(0, total, min(most, total), endpoint=False).astype(int)


def _all() -> Iterator[Hard]:
    yield Scenes(name="detector", file="detector.onnx", tally=Detected, look=DETECTED, count=400, input="images")
    yield Stored(name="mobilenetv3", file="mobilenetv3.onnx", tally=Labels, read=data.cifar)
    yield Stored(name="efficientnet", file="efficientnet.onnx", tally=Labels, read=data.cifar)
    yield Lines(name="crnn", file="crnn.onnx", tally=Strings)
    yield Scenes(name="vit", file="vit.onnx", tally=Labels, look=PLACED, count=3200)
    yield Stored(name="convnext", file="convnext.onnx", tally=Labels, read=data.keywords)
    yield Scenes(name="unet", file="unet.onnx", tally=Pixels, look=SEGMENTED, count=800)
    yield Graphs(name="graph", file="graph.onnx", tally=Labels, suffix=".npz")


HARD: dict[str, Hard] = {task.name: task for task in _all()}


def float_score(name: str, most: int | None = None) -> tuple[str, float, int]:
    """What the float network reaches on its test items, or on `most` of them: the measure, its value, the items."""
    task = HARD[name]
    session = ort.InferenceSession(str(task.case.model), providers=["CPUExecutionProvider"])
    tally, items = task.tally(), 0
    for feed, truth in task.test(most):
        output = session.run(None, feed)[0]
        tally.add(output, output, truth)
        items += 1
    measure, figure = next(iter(tally.own().items()))
    return measure, figure.value, items


def state_score(name: str) -> str:
    """Write the score of the float network in `scores.json`; in words."""
    measure, value, items = float_score(name)
    scores = json.loads(SCORES.read_text(encoding="utf-8")) if SCORES.exists() else {}
    scores[name] = {"measure": measure, "float": round(value, 2), "items": items}
    SCORES.write_text(json.dumps(dict(sorted(scores.items())), indent=1) + "\n", encoding="utf-8")
    return f"{measure} {value:.2f} on {items} test items"
