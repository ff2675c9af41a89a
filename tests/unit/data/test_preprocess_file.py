"""How images are prepared, from a file: ours in TOML and JSON, and Hugging Face's preprocessor_config.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from amct_onnx.cli.commands import parse
from amct_onnx.data.image_options import PRESETS, ImageOptions
from amct_onnx.data.preprocess_file import images_named, read_image_options
from amct_onnx.errors import AmctError

OURS = {"preset": "torch", "crop": [320, 416], "interpolation": "bicubic", "mean": [1, 2, 3], "divisor": 2.5}
TOML = 'preset = "torch"\ncrop = [320, 416]\ninterpolation = "bicubic"\nmean = [1, 2, 3]\ndivisor = 2.5\n'
EXPECTED = ImageOptions.preset("torch", crop=(320, 416), interpolation="bicubic", mean=(1.0, 2.0, 3.0), divisor=2.5)


def written(folder: Path, document: Any, name: str = "p.json") -> str:
    file = folder / name
    file.write_text(document if isinstance(document, str) else json.dumps(document))
    return str(file)


@pytest.mark.parametrize(("name", "document"), [("p.json", OURS), ("p.toml", TOML)])
def test_a_file_of_ours(tmp_path: Path, name: str, document: Any) -> None:
    path = written(tmp_path, document, name)
    assert read_image_options(path) == EXPECTED
    assert images_named(path, pad=7).pad == 7


def test_a_name_is_a_preset_or_a_file() -> None:
    assert images_named("clip") == PRESETS["clip"]
    with pytest.raises(AmctError, match="no preset, did you mean 'torch'"):
        images_named("troch")
    with pytest.raises(AmctError, match="does not exist"):
        images_named("nowhere.toml")


NORMAL = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.2, 0.3]}
MEAN_STD = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.2, 0.3), "divisor": 255.0}


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        (
            NORMAL | {"do_normalize": True, "size": {"height": 224, "width": 200}, "resample": 3},
            ImageOptions(**MEAN_STD, fit="stretch", crop=(224, 200), interpolation="bicubic"),
        ),
        (
            NORMAL
            | {"size": {"shortest_edge": 256}, "do_center_crop": True, "crop_size": {"height": 224, "width": 224}},
            ImageOptions(**MEAN_STD, resize=256, crop=(224, 224)),
        ),
        (
            NORMAL | {"size": 256, "do_center_crop": True, "crop_size": 224, "resample": 1},
            ImageOptions(**MEAN_STD, resize=256, crop=(224, 224), interpolation="lanczos"),
        ),
        (NORMAL | {"size": 224}, ImageOptions(**MEAN_STD, fit="stretch", crop=(224, 224))),
        (
            NORMAL | {"size": {"shortest_edge": 224}, "crop_pct": 0.875},
            ImageOptions(**MEAN_STD, resize=256, crop=(224, 224)),
        ),
        (
            {"do_normalize": False, "do_rescale": False, "do_resize": False, "do_center_crop": True, "crop_size": 96},
            ImageOptions(crop=(96, 96)),
        ),
    ],
)
def test_a_file_of_hugging_face(tmp_path: Path, document: dict[str, Any], expected: ImageOptions) -> None:
    found = read_image_options(written(tmp_path, document))
    assert found.divisor == pytest.approx(expected.divisor)
    assert ImageOptions(**{**vars(found), "divisor": expected.divisor}) == expected


@pytest.mark.parametrize(
    ("document", "told"),
    [
        ({"croop": 3}, "'croop' is no field, did you mean 'crop'?"),
        ({"crop": "big"}, "crop takes a number, got 'big'"),
        ({"mean": ["a"]}, "mean takes a number or a list of numbers"),
        ({"color": 3}, "color takes a text"),
        ({"color": "HSV"}, "'HSV' is unknown"),
        ({"preset": "troch"}, "did you mean 'torch'"),
        ([1], "holds no fields"),
        ("{", "no JSON"),
        ({"image_mean": [1, 2, 3]}, "'image_std' is missing"),
        ({"do_pad": True, "image_mean": [1]}, "do_pad is not supported"),
        ({"do_rescale": True, "size": {"shortest_edge": 800, "longest_edge": 1333}}, "longest_edge"),
        ({"do_rescale": True, "resample": 9}, "resample 9 is unknown"),
        ({"do_rescale": True, "size": {"height": 256, "width": 256}, "crop_size": 224, "do_center_crop": True}, "both"),
    ],
)
def test_a_mistake_is_told_with_its_file(tmp_path: Path, document: Any, told: str) -> None:
    path = written(tmp_path, document)
    with pytest.raises(AmctError, match=r"p\.json") as caught:
        read_image_options(path)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_toml(tmp_path: Path) -> None:
    with pytest.raises(AmctError, match="no TOML"):
        read_image_options(written(tmp_path, "a = = b", "p.toml"))


WORDS = ["quantize", "m.onnx", "--data", "photos", "--save_path", "o/m"]


def test_options_of_the_command_change_a_preset_or_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changes = ["--image_mean", "1,2,3", "--image_divisor", "2.5", "--image_crop", "320,416"]
    found = parse([*WORDS, "--preset", "torch", *changes, "--image_interpolation", "bicubic"]).value
    assert found.arguments["images"] == EXPECTED
    path = written(tmp_path, TOML, "p.toml")
    assert parse([*WORDS, "--images", path]).value.arguments["images"] == EXPECTED
    assert parse([*WORDS, "--preset", "yolox"]).value.arguments["images"] == "yolox"
    for words, told in (
        (["--image_pad", "3"], "--image_pad changes a preset: name it, as --preset torch"),
        (["--preset", "yolo"], "--preset yolo is no preset, did you mean 'yolox'?"),
        (["--preset", "torch", "--image_color", "HSV"], "--image_color HSV is unknown"),
        (["--preset", "torch", "--image_crop", "a"], "'a' is no size in pixels"),
        (["--preset", "torch", "--image_mean", "1;2"], "no list of numbers"),
    ):
        with pytest.raises(SystemExit):
            parse([*WORDS, *words])
        assert told in capsys.readouterr().err
