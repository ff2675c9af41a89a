"""`evaluate`: top-1, top-5 and mAP of one model or two, and what is told of labels that do not fit."""

from __future__ import annotations

import json
import tarfile
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from detection import decode, mean_average_precision, read_truth
from flow import CPU, build, normal
from PIL import Image
from shared_data import MODELS, batches, letterbox, load, read_labels, spread

import amct_onnx
from amct_onnx.errors import AmctError, ArgumentError, DataError, FileMissingError, ModelError
from amct_onnx.tools.detections import boxes_of

COLORS = [(250, 10, 10), (10, 250, 10), (10, 10, 250)]


def color_model(classes: int = 3) -> onnx.ModelProto:
    """A classifier of pictures: the score of class k is the mean of colour k; others have lower ones."""
    weight = np.full((classes, 3), -1.0, np.float32)
    weight[:3] = np.eye(3)
    return build(
        """g (float[N,3,16,16] x) => (float[N,C] y) {
            p = GlobalAveragePool (x) f = Flatten (p) y = Gemm <transB=1> (f, w) }""",
        w=weight,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve pictures: pic<k>.png has colour k % 3."""
    for number in range(12):
        (tmp_path / "all").mkdir(exist_ok=True)
        Image.new("RGB", (20, 16), COLORS[number % 3]).save(tmp_path / "all" / f"pic{number}.png")
    return tmp_path / "all"


LABELS = {f"pic{k}.png": k % 3 for k in range(12)} | {"pic0.png": 1, "pic1.png": 2}  # two of twelve are wrong


def text_file(path: Path, kind: str) -> Any:
    """The labels in one of the forms that are read."""
    lines = {
        "spaces": [f"{name} {label}" for name, label in LABELS.items()],
        "commas": ["file,label", *(f"{name},{label}" for name, label in LABELS.items())],
        "tabs": [f"{Path(name).stem}\t{label}" for name, label in LABELS.items()],
    }
    if kind == "mapping":
        return LABELS
    target = path / ("labels.json" if kind == "json" else "labels.txt")
    target.write_text(json.dumps(LABELS) if kind == "json" else "\n".join(lines[kind]))
    return target


@pytest.mark.parametrize("kind", ["spaces", "commas", "tabs", "json", "mapping"])
def test_labels_by_name(folder: Path, tmp_path: Path, kind: str) -> None:
    found = amct_onnx.evaluate(color_model(), images=folder, labels=text_file(tmp_path, kind), preset="unit")
    assert found.samples == 12
    assert found.figures == {"top-1": pytest.approx(100 * 10 / 12), "top-5": 100.0}
    assert found.task == "classification"
    assert found.agreement is None


def test_folders_are_classes(folder: Path, tmp_path: Path) -> None:
    for number, name in enumerate(["a_red", "b_green", "c_blue"]):
        (tmp_path / "sorted" / name).mkdir(parents=True)
        for k in range(number, 12, 3):
            (folder / f"pic{k}.png").rename(tmp_path / "sorted" / name / f"{k}.png")
    assert amct_onnx.evaluate(color_model(), tmp_path / "sorted", preset="unit").figures["top-1"] == 100


def test_two_models_side_by_side(folder: Path) -> None:
    worse = color_model()
    worse.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(-np.eye(3, dtype=np.float32), "w"))
    found = amct_onnx.evaluate((color_model(), worse), folder, LABELS, preset="unit")
    assert [one.figures["top-1"] for one in found.models] == [pytest.approx(1000 / 12), pytest.approx(100 / 12)]
    assert found.agreement == 0.0
    assert "difference" in str(found)


def test_a_background_class_and_a_limit(folder: Path) -> None:
    weight = np.full((1001, 3), -1.0, np.float32)
    weight[1:4] = np.eye(3)
    model = color_model(1001)
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(weight, "w"))
    found = amct_onnx.evaluate(model, folder, {f"pic{k}.png": k % 3 for k in range(12)}, preset="unit", limit=7)
    assert found.samples == 7
    assert found.figures["top-1"] == 100
    assert any("background" in note for note in found.notes)


def test_arrays(tmp_path: Path) -> None:
    x, labels = normal(1, 30, 6), np.arange(30) % 4
    model = build("g (float[N,6] x) => (float[N,4] y) { y = MatMul (x, w) }", w=normal(2, 6, 4))
    wanted = 100 * float((np.argmax(x @ normal(2, 6, 4), axis=1) == labels).mean())
    np.save(tmp_path / "labels.npy", labels)
    np.save(tmp_path / "x.npy", x)
    for given, known in ((x, labels), (tmp_path / "x.npy", tmp_path / "labels.npy"), (x, labels.tolist())):
        assert amct_onnx.evaluate(model, given, known).figures["top-1"] == pytest.approx(wanted)
    assert amct_onnx.evaluate(model, x, labels, limit=10).samples == 10


def tar_files(folder: Path, to: Path, *, without: str = "") -> str:
    """The pictures and their classes in two tar files; one has no class."""
    for shard in range(2):
        with tarfile.open(to / f"shard-{shard}.tar", "w") as archive:
            for name, label in list(LABELS.items())[6 * shard : 6 * shard + 6]:
                archive.add(folder / name, name)
                if name != without:
                    content = f"{label}\n".encode()
                    header = tarfile.TarInfo(Path(name).with_suffix(".cls").name)
                    header.size = len(content)
                    archive.addfile(header, BytesIO(content))
    return str(to / "shard-{0..1}.tar")


@pytest.mark.parametrize("engine", ["local", "processes:2"])
def test_classes_lie_beside_images_in_tar_files(folder: Path, tmp_path: Path, engine: str) -> None:
    shards = tar_files(folder, tmp_path)
    found = amct_onnx.evaluate(color_model(), shards, preset="unit", batch_size=5, engine=engine)
    assert (found.samples, found.figures["top-1"]) == (12, pytest.approx(100 * 10 / 12))
    assert amct_onnx.evaluate(color_model(), shards, preset="unit", limit=2).figures["top-1"] == 0
    assert amct_onnx.evaluate(color_model(), shards, list(LABELS.values()), preset="unit").figures == found.figures


def test_classes_are_a_column_of_parquet(folder: Path, tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    images = [{"bytes": (folder / name).read_bytes(), "path": name} for name in LABELS]
    table = pyarrow.table({"image": images, "label": list(LABELS.values())})
    pyarrow.parquet.write_table(table, tmp_path / "part.parquet", row_group_size=5)
    found = amct_onnx.evaluate(color_model(), tmp_path / "part.parquet", preset="unit")
    assert found.figures["top-1"] == pytest.approx(100 * 10 / 12)
    assert amct_onnx.evaluate(color_model(), tmp_path / "part.parquet", preset="unit", limit=7).samples == 7
    pyarrow.parquet.write_table(table.select(["image"]), tmp_path / "part.parquet")
    with pytest.raises(ArgumentError, match="or parquet with a column 'label'"):
        amct_onnx.evaluate(color_model(), tmp_path / "part.parquet", preset="unit")


def test_a_class_is_missing_in_tar_files(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"shard-1\.tar: pic7\.png: has no 'cls' beside it, which others have"):
        amct_onnx.evaluate(color_model(), tar_files(folder, tmp_path, without="pic7.png"), preset="unit")
    with pytest.raises(ArgumentError, match=r"unless they are tar files with a \.cls beside each image"):
        amct_onnx.evaluate(color_model(), tar_files(folder, tmp_path, without="pic0.png"), preset="unit")
    with pytest.raises(DataError, match=r"shard-2\.tar: the data do not exist"):
        amct_onnx.evaluate(color_model(), str(tmp_path / "shard-{0..2}.tar"), preset="unit")
    (tmp_path / "boxes").mkdir()
    with pytest.raises(ArgumentError, match="boxes are those of a folder of images"):
        amct_onnx.evaluate(color_model(), str(tmp_path / "shard-0.tar"), tmp_path / "boxes", preset="unit")


def test_models_of_two_batches_are_judged_on_the_same_samples(folder: Path, tmp_path: Path) -> None:
    fixed = color_model()
    fixed.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 5
    for pair in ((fixed, color_model()), (color_model(), fixed)):
        found = amct_onnx.evaluate(pair, tar_files(folder, tmp_path), preset="unit")
        assert (found.samples, found.agreement) == (10, 100.0)
        with pytest.raises(DataError, match="has 12 labels, and there are 10 samples"):
            amct_onnx.evaluate(pair, tar_files(folder, tmp_path), list(LABELS.values()), preset="unit")


@pytest.mark.parametrize("engine", ["local", "processes:2"])
def test_scores_that_are_no_numbers_are_not_judged(engine: str) -> None:
    """Ranked, they would make class 0 the best."""
    model = build("g (float[N,6] x) => (float[N,4] y) { a = MatMul (x, w) y = Log (a) }", w=-abs(normal(2, 6, 4)))
    with pytest.raises(DataError, match="gives NaN for a sample, so that it cannot be judged"):
        amct_onnx.evaluate(model, abs(normal(1, 30, 6)), np.zeros(30, np.int64), engine=engine)


def test_a_batch_that_the_model_fixes(folder: Path) -> None:
    model = color_model()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 5
    assert amct_onnx.evaluate(model, folder, LABELS, preset="unit").figures["top-1"] == pytest.approx(1000 / 12)


@pytest.mark.parametrize(
    ("change", "error", "told"),
    [
        ({"labels": "missing.txt"}, FileMissingError, "missing.txt does not exist"),
        ({"images": "nowhere"}, AmctError, "nowhere"),
        ({"labels": {"other.png": 1}}, DataError, "no image of the folder has a label"),
        ({"labels": {"pic0.png": 7}}, DataError, "has 3 classes, and a label is 7"),
        ({"labels": None}, ArgumentError, "no folder for each class"),
        ({"preset": "torhc"}, ArgumentError, "torch"),
    ],
)
def test_what_does_not_fit_is_told(folder: Path, change: dict[str, Any], error: type[AmctError], told: str) -> None:
    arguments: dict[str, Any] = {"images": folder, "labels": LABELS, "preset": "unit"} | change
    with pytest.raises(error, match=told):
        amct_onnx.evaluate(color_model(), **arguments)


def test_other_mistakes(folder: Path, tmp_path: Path) -> None:
    image = build("g (float[N,3,16,16] x) => (float[N,3,16,16] y) { y = Relu (x) }")
    with pytest.raises(DataError, match="no scores of classes"):
        amct_onnx.evaluate(image, folder, LABELS, preset="unit")
    (tmp_path / "bad.txt").write_text("pic0.png 1\npic1.png one\n")
    with pytest.raises(DataError, match="line 2: 'one' is no number of a class"):
        amct_onnx.evaluate(color_model(), folder, tmp_path / "bad.txt", preset="unit")
    two = build("g (float[N,3,16,16] x, float[N,3,16,16] z) => (float[N,3,16,16] y) { y = Add (x, z) }")
    with pytest.raises(ModelError, match="2 inputs"):
        amct_onnx.evaluate(two, folder, LABELS, preset="unit")
    with pytest.raises(DataError, match="has 3 labels, and there are 4 samples"):
        amct_onnx.evaluate(color_model(), normal(1, 4, 3, 16, 16), [0, 1, 2])


# --- beside the arithmetic of the benchmarks


def test_top_classes_of_a_shared_model(test_data: Any) -> None:
    model, data = MODELS["resnet20"], test_data()
    images = spread(read_labels(model.test, data), 120)
    session = ort_session(test_data("models", "resnet20_cifar10.onnx"))
    hits = []
    for x, labels in batches(images, 8, model.prepare):
        order = np.argsort(-session.run(None, {model.input: x})[0], axis=1, kind="stable")[:, :5]
        hits += [(row[0] == label, label in row) for row, label in zip(order, labels, strict=True)]
    found = amct_onnx.evaluate(
        test_data("models", "resnet20_cifar10.onnx"),
        test_data("images", "cifar10", "test"),
        {image.path.name: image.label for image in images},
        preset="torch",
    )
    assert found.samples == 120
    top1, top5 = 100 * np.mean(hits, axis=0)
    assert found.figures == {"top-1": pytest.approx(top1), "top-5": pytest.approx(top5)}


def ort_session(path: Any) -> Any:
    import onnxruntime as ort

    return ort.InferenceSession(str(path), providers=CPU)


@pytest.mark.slow
def test_the_published_figures(test_data: Any) -> None:
    folder = test_data("images", "cifar10", "test")
    found = amct_onnx.evaluate(
        test_data("models", "resnet20_cifar10.onnx"), folder, Path(folder) / "image_label.txt", preset="torch"
    )
    assert found.samples == 2000
    assert found.figures == {"top-1": pytest.approx(82.0), "top-5": pytest.approx(98.8)}
    with np.load(test_data("images", "kws", "kws01.npz")) as stored:
        words = amct_onnx.evaluate(test_data("models", "kws_dscnn_mlperftiny.onnx"), stored["x_nchw"], stored["label"])
    assert words.figures["top-1"] == pytest.approx(90.1)


@pytest.mark.slow
def test_boxes_of_the_shared_detector(test_data: Any) -> None:
    pytest.importorskip("pycocotools")
    folder = Path(test_data("images", "coco128"))
    pictures = sorted(folder.glob("*.jpg"))[:10]
    session = ort_session(test_data("models", "yolox_nano.onnx"))
    boxes, truth = [], []
    for path in pictures:
        with Image.open(path) as image:
            width, height = image.size
        ratio = min(416 / width, 416 / height)
        output = session.run(None, {"images": load(path, lambda image: letterbox(image, size=416))[None]})[0][0]
        boxes.append(decode(output, 416))
        mine = boxes_of(output, (416, 416))
        assert np.allclose(mine.corners, boxes[-1].corners)
        assert np.array_equal(mine.classes, boxes[-1].classes)
        truth.append(read_truth(folder / "labels" / f"{path.stem}.txt", width * ratio, height * ratio))
    wanted = mean_average_precision(boxes, truth)
    # The same pictures in a folder of their own, labels as they are.
    found = evaluate_some(folder, pictures, test_data)
    assert found["mAP50-95"] == pytest.approx(wanted, abs=0.5)
    assert found["mAP50"] > found["mAP50-95"] > 10


def evaluate_some(folder: Path, pictures: list[Path], test_data: Any) -> dict[str, float]:
    import tempfile

    with tempfile.TemporaryDirectory() as place:
        for picture in pictures:
            (Path(place) / picture.name).write_bytes(picture.read_bytes())
        model = test_data("models", "yolox_nano.onnx")
        found = amct_onnx.evaluate(model, place, folder / "labels", preset="yolox")
        coco = Path(place) / "instances.json"
        coco.write_text(json.dumps(as_coco(pictures, folder)))
        again = amct_onnx.evaluate(model, place, coco, preset="yolox")
    assert found.task == again.task == "detection"
    assert found.figures == pytest.approx(again.figures, abs=1e-6)
    return dict(found.figures)


def as_coco(pictures: list[Path], folder: Path) -> dict[str, Any]:
    """Labels in text files as a document of COCO, with ids of classes that have gaps."""
    annotations: list[dict[str, Any]] = []
    for number, picture in enumerate(pictures):
        with Image.open(picture) as image:
            boxes = read_truth(folder / "labels" / f"{picture.stem}.txt", *image.size)
        for corner, kind in zip(boxes.corners, boxes.classes, strict=True):
            box = [*corner[:2].tolist(), *(corner[2:] - corner[:2]).tolist()]
            annotations.append({"image_id": number, "bbox": box, "category_id": 3 * int(kind) + 1, "iscrowd": 0})
    return {
        "images": [{"id": number, "file_name": picture.name} for number, picture in enumerate(pictures)],
        "categories": [{"id": 3 * kind + 1} for kind in range(80)],
        "annotations": annotations,
    }


@pytest.mark.parametrize("kind", ["yolox", "ultralytics", "ends"])
def test_outputs_of_other_detectors(kind: str) -> None:
    """One box in the cell (3, 5) of stride 16 of an input of 64 x 96 pixels, with class 2 of 4."""
    rows = np.zeros((8 * 12 + 4 * 6 + 2 * 3, 9))
    cell = 8 * 12 + 2 * 6 + 5
    if kind == "yolox":
        rows[cell, :5] = [0.5, 0.5, np.log(2), np.log(1), 0.9]
        rows[cell, 5 + 2] = 1.0
        output = rows
    elif kind == "ultralytics":
        rows[cell, :4] = [88, 40, 32, 16]
        rows[cell, 4 + 2] = 0.9
        output = rows[:, :8].T
    else:
        output = np.array([[72, 32, 104, 48, 0.9, 2], [0, 0, 1, 1, 0.001, 1]], float)
    found = boxes_of(output, (64, 96))
    assert found.corners.tolist() == [pytest.approx([72, 32, 104, 48])]
    assert found.classes.tolist() == [2]
    assert found.scores.tolist() == [pytest.approx(0.9)]
