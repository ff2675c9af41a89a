"""Messages call options as the door does that a user came through: arguments of Python, or options of the command."""

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from flow import build, normal

import amct_onnx
from amct_onnx.cli.commands import COMMANDS, parse
from amct_onnx.data.image_options import ImageOptions
from amct_onnx.data.options import DataOptions
from amct_onnx.errors import AmctError
from amct_onnx.ptq.options import QuantizeOptions
from amct_onnx.words import given, given_for, named, of_images, of_the_command_line

SOURCE = Path(amct_onnx.__file__).parent
# The rooms whose messages reach users of the command; those of AMCT's flow speak of AMCT's arguments.
ROOMS = ("data", "ptq", "plan", "run", "measure", "targets", "numerics", "values")
FIELDS = [field.name for kind in (QuantizeOptions, DataOptions, ImageOptions) for field in dataclasses.fields(kind)]
ARGUMENT = re.compile(
    rf"(?<![\w-])(?:{'|'.join(FIELDS)})=|(?<![\w.-])(?:{'|'.join(n for n in FIELDS if '_' in n)})(?!\w)"
)
# What only Python can be told of: classes and methods that the command has no door to.
OF_PYTHON = (
    "Statistics of differently equalized models cannot be merged",
    "A model of weight_only has no other target",
    "skip_layers must be a list of names",
)


def texts(tree: ast.AST) -> Iterator[ast.Constant]:
    """The texts of a module that are no docstrings, and not the meaning of an option."""
    skipped: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            skipped.add(id(node.value))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("option", "either", "_flag"):
            skipped |= {id(inner) for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in skipped:
            yield node


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("pass reduce_range=True", True),
        ("min_sqnr=%d leaves layers", True),
        ("give it in dtypes=", True),
        ("give --batch_size 4", False),
        ("the sizes of a batch", False),
    ],
)
def test_an_argument_in_a_text_is_seen(text: str, found: bool) -> None:
    assert bool(ARGUMENT.search(text)) == found


def test_no_message_has_an_argument_of_python_in_it() -> None:
    """Names come from `words`, which knows the door."""
    paths = [path for room in ROOMS for path in sorted((SOURCE / room).rglob("*.py"))]
    found = [
        f"{path.relative_to(SOURCE)}:{text.lineno}: {text.value}"
        for path in paths
        for text in texts(ast.parse(path.read_text()))
        if " " in text.value and ARGUMENT.search(text.value) and not text.value.startswith(OF_PYTHON)
    ]
    assert found == []


def test_the_words_of_both_doors() -> None:
    assert (named("images"), given("effort", "best"), given("reduce_range", True)) == (
        *("images", "effort='best'", "reduce_range=True"),
    )
    assert (given_for("shapes", "x"), of_images("pad", 7)) == ("shapes={'x': ...}", "pad=7")
    with of_the_command_line():
        assert (named("images"), given("effort", "best"), given("reduce_range", True)) == (
            *("--preset", "--effort best", "--reduce_range"),
        )
        assert (given_for("shapes", "x"), of_images("pad", 7)) == ('--input_shape "x:..."', "--image_pad 7")
    assert named("images") == "images"


def test_every_option_that_a_message_may_name_is_one_of_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["quantize", "--help"])
    shown = capsys.readouterr().out
    with of_the_command_line():
        names = [*map(named, [f.name for k in (QuantizeOptions, DataOptions) for f in dataclasses.fields(k)])]
        names += [of_images(field.name) for field in dataclasses.fields(ImageOptions)]
    assert [name for name in names if not re.search(rf"{name}\b", shown)] == []


MODEL = """g (float[N,3,H,W] x, float[N,4] z) => (float[N,8,P,Q] y, float[N,2] v) {
    [conv] y = Conv (x, w)
    [gemm] v = Gemm (z, u)
}"""


def image(folder: Path) -> None:
    from PIL import Image

    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(folder / "0.png")


def half(folder: Path) -> None:
    np.savez(folder / "half.npz", x=normal(1, 4, 3, 8, 8))
    (folder / "broken.npy").write_bytes(b"broken")


@pytest.mark.parametrize(
    ("make", "words", "told"),
    [
        (image, ["--data", "."], "give --data x=PATH --data z=PATH"),
        (half, ["--data", "half.npz"], '--names "z=..."'),
        (half, ["--data", "half.npz", "--input_shape", "q:1,3"], "--input_shape: the model has no input 'q'"),
        (half, ["--data", "half.npz", "--names", "q=x"], "--names: the model has no input 'q'"),
        (half, ["--data", "half.npz", "--data_types", "q:int8"], "--data_types: the model has no input 'q'"),
        (half, ["--data", "half.npz", "--skip_layers", "cnv"], "--skip_layers: the model has no node 'cnv'"),
        (half, ["--data", "half.npz", "--input_shape", "z:1,3"], "--input_shape: 'z' has the shape"),
        (half, ["--data", "nowhere"], "check the path of --data"),
        (half, ["--data", "x=broken.npy", "--data", "z=broken.npy"], "it is broken, or holds objects of Python"),
        (image, ["--data", "x=.", "--data", "z=."], "input 'z': a folder of images does not fit (it has 2 dimensions"),
    ],
)
def test_a_command_is_told_of_its_options(
    make: Callable[[Path], None],
    words: list[str],
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    onnx.save(build(MODEL, w=normal(1, 8, 3, 3, 3), u=normal(2, 4, 2)), "m.onnx")
    make(tmp_path)
    asked = parse(["quantize", "m.onnx", "--save_path", "out/m", *words])
    with pytest.raises(AmctError) as caught:
        asked.run()
    assert told in str(caught.value)
    assert not ARGUMENT.search(str(caught.value))
    assert not (tmp_path / "out").exists()


def test_every_command_of_ours_answers_in_both_ways() -> None:
    assert {name for name, command in COMMANDS.items() if not command.shows} == {"calibration", "convert"}
