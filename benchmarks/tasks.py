"""The tasks of `make accuracy`: for each shared model its calibration data, its test items and what is measured."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from detection import Boxes, decode, mean_average_precision, read_truth
from measures import Array, Figure, average, decibel, percentage, powers, psnr, spearman
from PIL import Image
from prepared import Case
from shared_data import DATA, MODELS, Labelled, letterbox, load, luminance, read_labels, spread

Feed = dict[str, Array]
T = TypeVar("T")
SQNR = "dB"
JUDGE = "judge"  # of `make hard`
# Figures that compare with the float model, so that it has none itself.
RELATIVE = frozenset({SQNR, "agree", JUDGE, "kept", "boxes", "scores"})
COCO_CALIBRATION = 28
_SR_SCALE, _SR_SIZE, _SR_BORDER = 3, 224, 8
_YOLOX_SIZE = 416
_LARGE = ("mobilenetv2", "squeezenet", "mobilenetv1")  # their tensors are tens of megabytes for each image


class Tally(ABC):
    """What the outputs of one model add up to, one test item after the other."""

    def __init__(self) -> None:
        self._powers: list[tuple[float, float]] = []

    def add(self, reference: Array, got: Array, truth: Any) -> None:
        """Count the output `got` of one item; `reference` is that of the float model."""
        self._powers.append(powers(reference, got))
        self.judge(reference, got, truth)

    @abstractmethod
    def judge(self, reference: Array, got: Array, truth: Any) -> None:
        """What the task itself measures of one item."""

    @abstractmethod
    def own(self) -> dict[str, Figure]:
        """The figures of the task itself, the main one first."""

    def figures(self) -> dict[str, Figure]:
        """All figures by the heading of their column."""
        signal, noise = np.array(self._powers).reshape(-1, 2).T
        return self.own() | {SQNR: Figure(of=decibel, items=(signal, noise))}


class Classes(Tally):
    """Top-1, top-5 and how often the best class is that of the float model."""

    def __init__(self) -> None:
        super().__init__()
        self._hits: list[tuple[bool, bool, bool]] = []

    def judge(self, reference: Array, got: Array, truth: int) -> None:
        best = np.argsort(-got.ravel(), kind="stable")[:5]
        self._hits.append((best[0] == truth, truth in best, best[0] == reference.argmax()))

    def own(self) -> dict[str, Figure]:
        columns = np.array(self._hits, bool).reshape(-1, 3).T
        names = ("top-1", "top-5", "agree")
        return {name: Figure(of=percentage, items=(hits,)) for name, hits in zip(names, columns, strict=True)}


class Detections(Tally):
    """Mean average precision."""

    def __init__(self) -> None:
        super().__init__()
        self._found: list[Boxes] = []
        self._truth: list[Boxes] = []

    def judge(self, reference: Array, got: Array, truth: Boxes) -> None:
        self._found.append(decode(got[0], _YOLOX_SIZE))
        self._truth.append(truth)

    def own(self) -> dict[str, Figure]:
        items = np.empty((2, len(self._found)), object)
        items[0, :], items[1, :] = self._found, self._truth
        return {"mAP50-95": Figure(of=_average_precision, items=(items[0], items[1]), resampled=False)}


def _average_precision(_: Array, found: Array, truth: Array) -> Array:
    return np.array([mean_average_precision(found, truth)])


@dataclass(frozen=True, kw_only=True, eq=False)
class Enlarged:
    """A picture [h, w] in [0, 1], of which the small form is in the upper left corner of the input."""

    picture: Array


class Enlargements(Tally):
    """Mean PSNR over the pictures, without their borders."""

    def __init__(self) -> None:
        super().__init__()
        self._psnr: list[float] = []

    def judge(self, reference: Array, got: Array, truth: Enlarged) -> None:
        height, width = truth.picture.shape
        inner = np.s_[_SR_BORDER : height - _SR_BORDER, _SR_BORDER : width - _SR_BORDER]
        self._psnr.append(psnr(truth.picture[inner], np.clip(got[0, 0], 0, 1)[inner]))

    def own(self) -> dict[str, Figure]:
        return {"PSNR": Figure(of=average, items=(np.array(self._psnr),))}


class Similarities(Tally):
    """Spearman's correlation between the cosine of two embeddings [2, d] and the score that people gave, times 100."""

    def __init__(self) -> None:
        super().__init__()
        self._pairs: list[tuple[float, float]] = []

    def judge(self, reference: Array, got: Array, truth: float) -> None:
        a, b = np.asarray(got, np.float64)
        self._pairs.append((float(a @ b / max(np.linalg.norm(a) * np.linalg.norm(b), 1e-30)), truth))

    def own(self) -> dict[str, Figure]:
        cosines, scores = np.array(self._pairs).reshape(-1, 2).T
        return {"Spearman": Figure(of=_spearman_percent, items=(cosines, scores))}


def _spearman_percent(counts: Array, cosines: Array, scores: Array) -> Array:
    return 100 * spearman(counts, cosines, scores)


@dataclass(frozen=True, kw_only=True)
class Task(ABC):
    """A model, what it is calibrated with and what it is tested on.

    `fitting`: samples whose tensors, all of the model, fit in a few gigabytes together; None for any number.
    """

    name: str
    file: str
    tally: type[Tally]
    suffix: str = field(default=".npy")
    fitting: int | None = None

    @property
    def case(self) -> Case:
        return Case(name=self.name, model=(DATA / "models" / self.file).resolve())

    @abstractmethod
    def write_calibration(self, path: Path, count: int) -> int:
        """Write at most `count` samples; how many there are."""

    @abstractmethod
    def test(self, most: int | None) -> Iterator[tuple[Feed, Any]]:
        """Test items, none of which calibration has seen: the inputs, and the truth that the tally wants."""


@dataclass(frozen=True, kw_only=True)
class Classification(Task):
    """A model of `shared_data.MODELS`."""

    def write_calibration(self, path: Path, count: int) -> int:
        count = min(count, len(read_labels(MODELS[self.name].calibration, DATA)))
        self.case.write_images(path, count)
        return count

    def test(self, most: int | None) -> Iterator[tuple[Feed, int]]:
        model = MODELS[self.name]
        images = read_labels(model.test, DATA)
        for image in _capped(images, most):
            yield {model.input: load(image.path, model.prepare)[None]}, image.label


@dataclass(frozen=True, kw_only=True)
class Keywords(Task):
    """Spectrograms: there is one set, of which every sixth is for calibration."""

    def part(self, *, test: bool) -> tuple[Array, Array]:
        """The spectrograms and their labels."""
        with np.load(DATA / "images/kws/kws01.npz") as stored:
            samples, labels = stored["x_nchw"], stored["label"]
        chosen = (np.arange(len(labels)) % 6 != 0) == test
        return samples[chosen], labels[chosen]

    def write_calibration(self, path: Path, count: int) -> int:
        samples, _ = self.part(test=False)
        np.save(path, samples[:count])
        return min(count, len(samples))

    def test(self, most: int | None) -> Iterator[tuple[Feed, int]]:
        for sample, label in _capped(list(zip(*self.part(test=True), strict=True)), most):
            yield {"input": sample[None]}, int(label)


@dataclass(frozen=True, kw_only=True)
class Detection(Task):
    """The first 28 pictures calibrate."""

    def write_calibration(self, path: Path, count: int) -> int:
        prepare = partial(letterbox, size=_YOLOX_SIZE)
        pictures = _coco()[: min(count, COCO_CALIBRATION)]
        np.save(path, np.stack([load(picture, prepare) for picture in pictures]))
        return len(pictures)

    def test(self, most: int | None) -> Iterator[tuple[Feed, Boxes]]:
        for path in _capped(_coco()[COCO_CALIBRATION:], most):
            with Image.open(path) as image:
                width, height = image.size
                pixels = letterbox(image.convert("RGB"), size=_YOLOX_SIZE)
            ratio = min(_YOLOX_SIZE / width, _YOLOX_SIZE / height)
            yield {"images": pixels[None]}, read_truth(_labels(path), width * ratio, height * ratio)


@dataclass(frozen=True, kw_only=True)
class SuperResolution(Task):
    """Test pictures keep their pixels: a third of their size goes in, and they are what should come out."""

    def write_calibration(self, path: Path, count: int) -> int:
        images: list[Labelled] = spread(read_labels("imagenet1000/calibration_label.txt", DATA), count)
        prepare = partial(luminance, size=_SR_SIZE)
        np.save(path, np.stack([load(image.path, prepare) for image in images]))
        return len(images)

    def test(self, most: int | None) -> Iterator[tuple[Feed, Enlarged]]:
        for path in _capped(_coco()[COCO_CALIBRATION:], most):
            with Image.open(path) as image:
                y = image.convert("YCbCr").split()[0]
            width, height = (min(side // _SR_SCALE, _SR_SIZE) for side in y.size)
            y = y.crop((0, 0, _SR_SCALE * width, _SR_SCALE * height))
            small = np.asarray(y.resize((width, height), Image.Resampling.BICUBIC), np.float32) / np.float32(255)
            padded = np.pad(small, ((0, _SR_SIZE - height), (0, _SR_SIZE - width)), mode="edge")
            yield {"input": padded[None, None]}, Enlarged(picture=np.asarray(y, np.float32) / np.float32(255))


@dataclass(frozen=True, kw_only=True)
class Sentences(Task):
    """Pairs of sentences; both of each calibration pair are samples, unless they occur in the test as well."""

    def _pairs(self, part: str) -> tuple[Array, Array, Array]:
        """Token ids and masks, int64 [pairs, 2, length], and scores [pairs]."""
        with np.load(DATA / f"text/stsb/{part}.npz") as stored:
            ids, mask = (
                np.stack([stored[f"{kind}_a"], stored[f"{kind}_b"]], axis=1).astype(np.int64)
                for kind in ("ids", "mask")
            )
            return ids, mask, stored["score"]

    def write_calibration(self, path: Path, count: int) -> int:
        tested = {sentence.tobytes() for pair in self._pairs("test")[0] for sentence in pair}
        ids, mask = (array.reshape(-1, array.shape[2]) for array in self._pairs("calibration")[:2])
        new = _capped([k for k, sentence in enumerate(ids) if sentence.tobytes() not in tested], count)
        np.savez(path, input_ids=ids[new], attention_mask=mask[new])
        return len(new)

    def test(self, most: int | None) -> Iterator[tuple[Feed, float]]:
        for ids, mask, score in _capped(list(zip(*self._pairs("test"), strict=True)), most):
            yield {"input_ids": ids, "attention_mask": mask}, float(score)


def _capped(items: Sequence[T], most: int | None) -> list[T]:
    """All, or `most` at equal distances: some sets are sorted by class or origin."""
    return spread(items, len(items) if most is None else most)


def _coco() -> list[Path]:
    return sorted((DATA / "images/coco128").glob("*.jpg"))


def _labels(picture: Path) -> Path:
    return picture.parent / "labels" / f"{picture.stem}.txt"


TASKS: dict[str, Task] = {
    **{
        name: Classification(name=name, file=model.file, tally=Classes, fitting=32 if name in _LARGE else None)
        for name, model in MODELS.items()
    },
    "kws": Keywords(name="kws", file="kws_dscnn_mlperftiny.onnx", tally=Classes),
    "yolox_nano": Detection(name="yolox_nano", file="yolox_nano.onnx", tally=Detections),
    "super_resolution": SuperResolution(
        name="super_resolution", file="super_resolution_10.onnx", tally=Enlargements, fitting=32
    ),
    "minilm": Sentences(name="minilm", file="minilm_l6.onnx", tally=Similarities, suffix=".npz"),
}
