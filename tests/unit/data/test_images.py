"""Images as inputs: the preparations, what follows from the model, and files that are no images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import shared_data
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from amct_onnx.data.image_options import PRESETS, ImageOptions
from amct_onnx.data.images import find_images, image_options, open_images
from amct_onnx.errors import ArgumentError, DataError
from amct_onnx.graph.inputs import ModelInput


def model_input(*shape: int | None, dtype: str = "float32") -> ModelInput:
    return ModelInput(name="x", dtype=dtype, shape=shape, optional=False)


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Noise over a slope, so that every resize and each channel differ."""
    rng = np.random.default_rng(seed)
    slope = np.linspace(0, 180, width)[None, :, None] + np.array([0, 20, 40])
    return Image.fromarray((slope + rng.integers(0, 30, (height, width, 3))).astype(np.uint8))


def save(folder: Path, name: str, image: Image.Image) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return path


def prepared(file: Path, value: ModelInput, images: ImageOptions | str | None, notes: list[str]) -> np.ndarray:
    options = image_options(value, images, notes.append)
    table = open_images([file], options, value.dtype or "float32", "")
    (block,) = table.blocks(4, 1)
    assert block.shape == table.shape
    return block[0]


@settings(max_examples=examples(25))
@given(st.integers(40, 130), st.integers(40, 130), st.integers(0, 100))
@pytest.mark.parametrize(
    ("preset", "size", "oracle"),
    [
        ("torch", 70, partial(shared_data.torch_style, resize=80, crop=70)),
        ("tf", 84, partial(shared_data.tf_style, resize=96, crop=84)),
        ("yolox", 64, partial(shared_data.letterbox, size=64)),
        ("luminance", 50, partial(shared_data.luminance, size=50)),
    ],
)
def test_presets_are_the_usual_preparations_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory,
    preset: str,
    size: int,
    oracle: Callable[[Image.Image], np.ndarray],
    width: int,
    height: int,
    seed: int,
) -> None:
    file = save(tmp_path_factory.getbasetemp(), "any.png", picture(width, height, seed))
    channels = PRESETS[preset].channels
    np.testing.assert_array_equal(
        prepared(file, model_input(None, channels, size, size), preset, []), shared_data.load(file, oracle), strict=True
    )


@pytest.mark.parametrize(
    ("preset", "pixel"),
    [
        ("unit", np.float32([10, 20, 250]) / np.float32(255)),
        ("raw", np.float32([10, 20, 250])),
        ("caffe", np.float32([250, 20, 10]) - np.float32([103.939, 116.779, 123.68])),
    ],
)
def test_other_presets_on_one_colour(tmp_path: Path, preset: str, pixel: np.ndarray) -> None:
    file = save(tmp_path, "a.png", Image.new("RGB", (300, 260), (10, 20, 250)))
    got = prepared(file, model_input(None, 3, 224, 224), preset, [])
    np.testing.assert_array_equal(got, np.broadcast_to(pixel[:, None, None], (3, 224, 224)), strict=True)


def test_layout_follows_from_the_model(tmp_path: Path) -> None:
    file = save(tmp_path, "a.png", picture(90, 70))
    first = prepared(file, model_input(1, 3, 48, 64), None, [])
    last = prepared(file, model_input(1, 48, 64, 3), None, [])
    np.testing.assert_array_equal(first.transpose(1, 2, 0), last, strict=True)


@settings(max_examples=examples(40))
@given(st.integers(1, 200), st.integers(1, 200), st.integers(1, 120), st.integers(1, 120))
@pytest.mark.parametrize("fit", ["crop", "stretch", "letterbox"])
def test_any_image_gives_any_size(
    tmp_path_factory: pytest.TempPathFactory, fit: str, width: int, height: int, rows: int, columns: int
) -> None:
    file = save(tmp_path_factory.getbasetemp(), "size.png", Image.new("L", (width, height), 200))
    got = prepared(file, model_input(None, 3, rows, columns), ImageOptions(fit=fit, pad=200), [])
    assert got.shape == (3, rows, columns)
    assert np.all(got == 200)  # nothing outside of the image was cut out


def test_small_inputs_take_images_of_their_size_as_they_are(tmp_path: Path) -> None:
    image = picture(32, 32)
    file = save(tmp_path, "a.png", image)
    got = prepared(file, model_input(None, 3, 32, 32), "raw", [])
    np.testing.assert_array_equal(got, np.asarray(image, np.float32).transpose(2, 0, 1))


def test_integer_inputs_take_pixels(tmp_path: Path) -> None:
    image = picture(32, 32)
    file = save(tmp_path, "a.png", image)
    notes: list[str] = []
    got = prepared(file, model_input(None, 32, 32, 3, dtype="uint8"), None, notes)
    np.testing.assert_array_equal(got, np.asarray(image), strict=True)
    assert "preset 'raw'" in notes[-1]
    with pytest.raises(ArgumentError, match=r"takes images as uint8.*'raw'"):
        prepared(file, model_input(None, 32, 32, 3, dtype="uint8"), "torch", [])


def test_half_precision_rounds_once(tmp_path: Path) -> None:
    file = save(tmp_path, "a.png", picture(32, 32))
    single = prepared(file, model_input(None, 3, 32, 32), "torch", [])
    half = prepared(file, model_input(None, 3, 32, 32, dtype="float16"), "torch", [])
    np.testing.assert_array_equal(half, single.astype(np.float16), strict=True)


def test_what_was_assumed_is_said(tmp_path: Path) -> None:
    notes: list[str] = []
    options = image_options(model_input(None, None, None, None), None, notes.append)
    assert (options.size, options.layout) == ((224, 224), "NCHW")
    assert notes == [
        "input 'x': the layout is taken to be NCHW",
        "input 'x': the model leaves the size open, 224 x 224 pixels are used",
        "input 'x': images short side resized to 256, cropped to 224 x 224 (bilinear), RGB, divided by 255, minus "
        "[0.485, 0.456, 0.406], over [0.229, 0.224, 0.225], NCHW (preset 'torch', since no other was asked for)",
    ]
    notes.clear()
    image_options(model_input(None, 3, None, None), replace(PRESETS["yolox"], crop=(320, 416)), notes.append)
    assert notes[-1] == (
        "input 'x': images fitted into the upper left of 320 x 416, padded with 114 (bilinear), BGR, NCHW"
    )


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "CMYK", "1"])
def test_every_mode_becomes_colour(tmp_path: Path, mode: str) -> None:
    image = Image.new("RGB", (40, 40), (255, 255, 255)).convert(mode)
    file = save(tmp_path, "a.jpg" if mode == "CMYK" else "a.png", image)
    assert np.all(prepared(file, model_input(None, 3, 40, 40), "raw", []) >= 254)  # JPEG may be one off


def test_the_orientation_of_a_camera_is_applied(tmp_path: Path) -> None:
    image = picture(40, 40)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise
    image.save(tmp_path / "turned.png", exif=exif)
    got = prepared(tmp_path / "turned.png", model_input(None, 40, 40, 3), "raw", [])
    np.testing.assert_array_equal(got, np.rot90(np.asarray(image), -1))


def test_folders_of_classes_and_sorted_paths(tmp_path: Path) -> None:
    names = ["cat/2.png", "cat/1.JPG", "z.bmp", "a.webp", "dog/1.jpeg"]
    for name in [*names, ".hidden.png", ".dir/a.png", "cat/deep/a.png"]:
        save(tmp_path, name, Image.new("RGB", (4, 4)))
    (tmp_path / "labels.txt").write_text("a 1")
    assert [file.relative_to(tmp_path).as_posix() for file in find_images(tmp_path)] == sorted(names)


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n"])
def test_a_file_that_is_no_image_is_named_before_any_is_used(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "b.png"
    file.write_bytes(content)
    options = image_options(model_input(None, 3, 8, 8), None, lambda _: None)
    with pytest.raises(DataError, match=r"b\.png: the image cannot be read .*repair or remove it"):
        open_images([file], options, "float32", "")


def test_a_file_that_ends_early_is_named_when_it_is_read(tmp_path: Path) -> None:
    file = save(tmp_path, "b.jpg", picture(200, 200))
    file.write_bytes(file.read_bytes()[:3000])
    with pytest.raises(DataError, match=r"b\.jpg: the image cannot be read \(.*truncated"):
        prepared(file, model_input(None, 3, 8, 8), None, [])


def test_sixteen_bits_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "deep.png"
    Image.fromarray(np.full((8, 8), 40000, np.uint16)).save(file)
    with pytest.raises(DataError, match=r"deep\.png: has pixels of mode 'I"):
        prepared(file, model_input(None, 1, 8, 8), None, [])


@pytest.mark.parametrize(
    ("shape", "images", "kind", "text"),
    [
        ((None, 3, 8, 8), "toch", ArgumentError, "no preset, did you mean 'torch'"),
        ((None, 3, 8, 8), "zzz", ArgumentError, "use one of torch, tf"),
        (
            (None, 1, 8, 8),
            "torch",
            ArgumentError,
            "takes 1 channels, the image options give RGB; use",
        ),
        ((None, 3, 8, 8), "luminance", ArgumentError, "takes 3 channels, the image options give Y"),
        ((None, 4, 8, 8), None, DataError, "has 4 channels in NCHW, images give 1 or 3"),
        ((None, 3), None, DataError, "it has 2 dimensions, images need 4"),
        ((None, 3, 8, 8), ImageOptions(crop=9), ArgumentError, "takes 8 x 8 pixels, the image option crop asks for 9"),
    ],
)
def test_options_that_do_not_fit_the_model(
    shape: tuple[int | None, ...], images: ImageOptions | str | None, kind: type[Exception], text: str
) -> None:
    with pytest.raises(kind, match=text):
        image_options(model_input(*shape), images, lambda _: None)


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"color": "HSV"}, "color='HSV' is unknown, use one of RGB"),
        ({"fit": "pad"}, "use one of crop, letterbox"),
        ({"interpolation": "cubic"}, "did you mean 'bicubic'"),
        ({"layout": "CHW"}, "did you mean 'NCHW'"),
        ({"mean": (1.0, 2.0)}, "mean has 2 numbers, RGB takes 3 or 1"),
        ({"std": (0.0,)}, "cannot be 0"),
        ({"divisor": 0}, "cannot be 0"),
        ({"pad": 256}, "use 0 to 255"),
        ({"crop": 0}, "give numbers of pixels"),
        ({"crop": (3, -1)}, "give numbers of pixels"),
        ({"crop": [3, 3]}, "a tuple"),
        ({"crop": 224, "resize": 200}, "resize=200 is smaller than crop=224"),
        ({"fit": "stretch", "resize": 200}, "resize is for fit='crop'"),
    ],
)
def test_values_that_cannot_be_used(wrong: dict[str, object], text: str) -> None:
    with pytest.raises(ArgumentError, match=text):
        ImageOptions(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("folder", "preset", "shape", "oracle"),
    [
        ("imagenet1000", "torch", (None, 3, 224, 224), shared_data.MODELS["mobilenetv2"].prepare),
        ("imagenet1000", "tf", (None, 3, 160, 160), partial(shared_data.tf_style, resize=183, crop=160)),
        ("cifar10/calibration", "torch", (None, 3, 32, 32), shared_data.torch_style),
        ("coco128", "yolox", (1, 3, 416, 416), partial(shared_data.letterbox, size=416)),
        ("coco128", "luminance", (None, 1, 224, 224), partial(shared_data.luminance, size=224)),
    ],
)
def test_real_images_bit_for_bit(
    test_data: Callable[..., Path],
    folder: str,
    preset: str,
    shape: tuple[int | None, ...],
    oracle: Callable[[Image.Image], np.ndarray],
) -> None:
    files = find_images(test_data("images", *folder.split("/")))[::17][:12]
    assert len(files) >= 8
    for file in files:
        np.testing.assert_array_equal(
            prepared(file, model_input(*shape), preset, []), shared_data.load(file, oracle), strict=True
        )


def test_a_preset_with_other_values() -> None:
    assert ImageOptions.preset("torch") == PRESETS["torch"]
    assert ImageOptions.preset("torch", crop=160) == replace(PRESETS["torch"], crop=160)
    with pytest.raises(ArgumentError, match="did you mean 'torch'"):
        ImageOptions.preset("troch")
    with pytest.raises(ArgumentError, match="crop"):
        ImageOptions.preset("torch", crop=0)
