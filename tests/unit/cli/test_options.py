"""The command line as text: what is understood, and what a wrong one is told (exit code 2)."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

import amct_onnx
from amct_onnx.cli.calibration_options import CalibrationCommand
from amct_onnx.cli.command import main_parser
from amct_onnx.cli.commands import COMMANDS, parse
from amct_onnx.cli.convert_options import ConvertCommand
from amct_onnx.data.input_texts import InputFolder

BASE = ["calibration", "--model", "m.onnx", "--save_path", "out/m"]
DATA = ["--input_shape", "x:1,3", "--data_dir", "d/", "--data_types", "float32"]


def calibration(*words: str) -> CalibrationCommand:
    options = parse([*BASE, *words]).value
    assert isinstance(options, CalibrationCommand)
    return options


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The last line on stderr; the lines before it are the usage."""
    with pytest.raises(SystemExit) as caught:
        parse(words)
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("usage: amct_onnx")
    return err.splitlines()[-1]


def test_data_options_become_inputs_in_order() -> None:
    options = calibration(
        *("--input_shape", "image:0:-1,3,8,8;mask:4", "--data_dir", "a/; b/", "--data_types", "float16;int32")
    )
    assert options == CalibrationCommand(
        model="m.onnx",
        save_path="out/m",
        calibration_config=None,
        batch_num=None,
        inputs=(
            InputFolder(name="image:0", shape=(-1, 3, 8, 8), folder="a/", dtype="float16"),
            InputFolder(name="mask", shape=(4,), folder="b/", dtype="int32"),
        ),
        evaluator=None,
    )


def test_name_and_value_may_be_one_word_and_names_may_be_short() -> None:
    short = parse(
        ["calibration", "--m=m.onnx", "--s=out/m", "--i=x:1,3", "--data_d=d/", "--data_type=float32", "--b=3", "--c=q"]
    ).value
    assert short == calibration(*DATA, "--batch_num", "3", "--calibration_config", "q")


def test_semicolons_at_the_end_begin_no_further_part() -> None:
    assert calibration("--input_shape=x:1,3;", "--data_dir=d/;", "--data_types=float32;") == calibration(*DATA)


def test_an_evaluator_needs_no_data() -> None:
    options = calibration("--evaluator", "e.py", "--batch_num=2")
    assert (options.evaluator, options.inputs, options.batch_num) == ("e.py", (), 2)


def test_convert() -> None:
    expected = ConvertCommand(model="q.onnx", save_path="out/")
    assert parse(["convert", "--model", "q.onnx", "--save_path=out/"]).value == expected


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ([], ["required: command"]),
        (["calibrate"], ["unknown command 'calibrate', did you mean calibration?"]),
        (["frobnicate"], ["use batch or calibration or compare"]),
        (["calibration"], ["required: --model, --save_path"]),
        (["convert", "--model", "m"], ["required: --save_path"]),
        (["convert", "--model", "m", "--save_path", "p", "--batch_num", "1"], ["unknown option --batch_num"]),
        ([*BASE, "--modle", "x"], ["unknown option --modle, did you mean --model?"]),
        ([*BASE, "--save-path=x"], ["unknown option --save-path, did you mean --save_path?"]),
        ([*BASE, "-model", "x"], ["unknown option -model, did you mean --model?"]),
        ([*BASE, "--data", "d"], ["ambiguous option: --data could match --data_dir, --data_types"]),
        ([*BASE, *DATA, "spare"], ["spare"]),
        ([*BASE, *DATA, "--batch_num", "0"], ["--batch_num", "'0' is not a whole number greater than 0"]),
        ([*BASE, *DATA, "--batch_num", "-2"], ["--batch_num", "'-2'"]),
        ([*BASE, *DATA, "--batch_num", "many"], ["--batch_num", "'many'"]),
        (BASE, ["--input_shape, --data_dir, --data_types missing", "or --evaluator"]),
        ([*BASE, *DATA[:4]], ["--data_types missing"]),
        ([*BASE, *DATA[2:]], ["--input_shape missing"]),
        ([*BASE, *DATA[:2], *DATA[4:]], ["--data_dir missing"]),
        (
            [*BASE, *DATA, "--evaluator", "e.py"],
            ["--evaluator", "combined with --input_shape, --data_dir, --data_types"],
        ),
        ([*BASE, "--evaluator", "e.py", *DATA[:2]], ["cannot be combined with --input_shape"]),
        ([*BASE, "--evaluator", "e.py", *DATA[2:4]], ["cannot be combined with --data_dir"]),
        ([*BASE, "--evaluator", "e.py", *DATA[4:]], ["cannot be combined with --data_types"]),
        ([*BASE, *DATA, "--input_shape", "1,3"], ["--input_shape: Invalid input_shape. In '1,3' the input name"]),
        ([*BASE, *DATA, "--input_shape", "x:1,,3"], ["the dimension '' must be a positive integer or -1"]),
        ([*BASE, *DATA, "--input_shape", "x:1,a"], ["the dimension 'a'"]),
        ([*BASE, *DATA, "--input_shape", "x:0"], ["the dimension '0'"]),
        ([*BASE, *DATA, "--input_shape", "x:-1,-1"], ["only one dimension can be -1"]),
        ([*BASE, *DATA, "--input_shape", "x:1;x:2"], ["The input 'x' is given twice"]),
        ([*BASE, *DATA, "--input_shape", "x:1;y:2"], ["--data_dir has 1 parts for 2 inputs (x, y)"]),
        ([*BASE, *DATA, "--data_types", "float32;int8"], ["--data_types has 2 parts for 1 input (x)"]),
        ([*BASE, *DATA, "--data_dir", ""], ["--data_dir: a part is empty"]),
        ([*BASE, *DATA, "--data_types", "flot32"], ["Unsupported data type[flot32]!", "Did you mean float32?"]),
    ],
)
def test_a_wrong_command_line(capsys: pytest.CaptureFixture[str], words: list[str], parts: list[str]) -> None:
    line = refused(capsys, *words)
    assert all(part in line for part in parts), line
    assert "--help explains the options" in line


@pytest.mark.parametrize(
    "words",
    [
        *(["-h"], ["--help"], ["--version"], ["calibration", "-h"]),
        *(["convert", "--help"], ["quantize", "--help"], ["sensitivity", "-h"]),
    ],
)
def test_help_loads_nothing_heavy(words: list[str]) -> None:
    script = f"""
import sys
from amct_onnx.cli.main import main
try:
    main({words!r})
except SystemExit as end:
    assert end.code == 0, end.code
heavy = {{"numpy", "onnx", "onnx_ir", "onnxruntime", "google.protobuf", "rich", "sympy"}} & set(sys.modules)
assert not heavy, heavy
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60)
    assert result.returncode == 0, result.stderr
    assert ("amct_onnx command line tools." in result.stdout) == (words in (["-h"], ["--help"]))
    assert (amct_onnx.__version__ in result.stdout) == (words == ["--version"])


@pytest.mark.parametrize("command", COMMANDS)
def test_help_names_every_option_and_fits_a_screen(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as caught:
        parse([command, "--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    parser = COMMANDS[command].add_to(main_parser("").add_subparsers())
    known = {action.option_strings[0] for action in parser._actions if action.option_strings} - {"--model"}
    assert [name for name in known if name not in text] == []
    assert "exit code: 0" in text
    assert len(text.splitlines()) <= 52
    assert max(map(len, text.splitlines())) <= 80


def test_help_starts_at_once() -> None:
    """Within 0.3 s of a processor: other work on the machine would count in the time of the clock."""
    words = [sys.executable, "-m", "amct_onnx", "quantize", "--help"]
    before = os.times()
    subprocess.run(words, capture_output=True, check=True, timeout=60)
    after = os.times()
    assert after.children_user + after.children_system - before.children_user - before.children_system < 0.3


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_a_shell_learns_to_complete(capsys: pytest.CaptureFixture[str], shell: str) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(["--completion", shell])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    assert all(word in out for word in ("quantize", "sensitivity", "--save_path", "--preset"))


def test_an_unknown_shell(capsys: pytest.CaptureFixture[str]) -> None:
    assert "'cmd' is unknown, use one of bash" in refused(capsys, "--completion", "cmd")
