"""`amct_onnx quantize` as text: what is understood, and what a wrong command line is told (exit code 2)."""

from __future__ import annotations

import pytest

from amct_onnx.cli.commands import parse
from amct_onnx.cli.quantize_options import QuantizeCommand
from amct_onnx.cli.sensitivity_options import SensitivityCommand
from amct_onnx.ptq.options import ALGORITHM_NAMES, EFFORT_NAMES, TARGET_NAMES
from amct_onnx.ptq.request import ALGORITHMS
from amct_onnx.targets.table import TARGETS
from amct_onnx.values.findings import EFFORTS

BASE = ("quantize", "m.onnx", "--save_path", "out/m")


def options(*words: str) -> QuantizeCommand:
    parsed = parse([*BASE, *words]).value
    assert isinstance(parsed, QuantizeCommand)
    return parsed


def test_the_names_are_those_of_the_layers_that_know_them() -> None:
    assert set(TARGET_NAMES) == set(TARGETS)
    assert set(ALGORITHM_NAMES) == set(ALGORITHMS)
    assert EFFORT_NAMES == EFFORTS


def test_what_is_not_given_is_left_to_quantize() -> None:
    found = options("--data", "images/")
    assert (found.model, found.data, found.targets, found.report) == ("m.onnx", "images/", ("onnxruntime",), True)
    assert found.arguments == {}


def test_what_is_given_is_handed_on() -> None:
    found = options(
        *("--data", "a=x.npy", "--data", "b=y.npy", "--target", "ascend, onnxruntime,ascend", "--no_report"),
        *("--algorithm", "entropy", "--skip_layers", "c;d;", "--reduce_range", "--settings", "q.cfg"),
        *("--batch_size", "2", "--limit=8", "--input_shape", "a:0:1,3;b:-1", "--data_types", "a:0:float32;b:int64"),
        *("--names", "a:0=ids_a;b=mask", "--save_statistics", "s.npz", "--effort", "best"),
    )
    assert found.data == {"a": "x.npy", "b": "y.npy"}
    assert found.targets == ("ascend", "onnxruntime")
    assert (found.report, found.save_statistics) == (False, "s.npz")
    assert found.arguments == {
        "settings": "q.cfg",
        "algorithm": "entropy",
        "skip_layers": ("c", "d"),
        "reduce_range": True,
        "effort": "best",
        "batch_size": 2,
        "limit": 8,
        "shapes": {"a:0": [1, 3], "b": [-1]},
        "dtypes": {"a:0": "float32", "b": "int64"},
        "names": {"a:0": "ids_a", "b": "mask"},
    }


def test_a_target_of_accuracy_is_handed_on() -> None:
    found = options("--data", "x", "--min_sqnr", "20")
    assert (found.arguments["min_sqnr"], found.evaluator) == (20.0, None)
    found = options("--data", "x", "--max_drop", "0.5", "--evaluator", "e.py")
    assert (found.arguments["max_drop"], found.evaluator) == (0.5, "e.py")
    assert "min_sqnr" not in found.arguments


def test_the_options_of_sensitivity() -> None:
    found = parse(
        ["sensitivity", "m.onnx", "--data", "x", "--target", "ascend", "--samples", "2", "--limit", "8"]
    ).value
    assert isinstance(found, SensitivityCommand)
    assert (found.model, found.data) == ("m.onnx", "x")
    assert (found.arguments["target"], found.arguments["samples"], found.arguments["limit"]) == ("ascend", 2, 8)


def test_sensitivity_needs_data(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["sensitivity", "m.onnx"])
    assert "give --data" in capsys.readouterr().err


def test_weights_alone_need_no_data() -> None:
    found = options("--weight_only", "4")
    assert found.data is None
    assert found.arguments["weight_only"] == 4
    found = options("--weight_only", "8", "--block_size", "64", "--data", "x")
    assert found.data == "x"
    assert (found.arguments["weight_only"], found.arguments["block_size"]) == (8, 64)


def test_the_model_may_be_an_option() -> None:
    named = parse(["quantize", "--model", "m.onnx", "--save_path", "out/m", "--data", "images/"]).value
    assert named == options("--data", "images/")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((), "give either --data or --statistics"),
        (("--data", "x", "--statistics", "s.npz"), "give either --data or --statistics"),
        (("--statistics", "s.npz", "--save_statistics", "t.npz"), "delete one of them"),
        (("--data", "x", "--model", "n.onnx"), "give one model"),
        (("--data", "x", "--target", "cuda"), "'cuda' is unknown, use onnxruntime"),
        (("--data", "x", "--target", "onnxruntme"), "did you mean 'onnxruntime'?"),
        (("--data", "x", "--algorithm", "magic"), "invalid choice: 'magic', use one of mse"),
        (("--data", "x", "--algorithm", "entropie"), "did you mean 'entropy'?"),
        (("--data", "x", "--effort", "defualt"), "did you mean 'default'?"),
        (("--data", "x", "--limit", "0"), "'0' is not a whole number greater than 0"),
        (("--data", "x", "--min_sqnr", "high"), "--min_sqnr: invalid float value: 'high'"),
        (("--data", "x", "--data", "y"), "NAME=PATH"),
        (("--data", "a=x", "--data", "a=y"), "'a' is given twice"),
        (("--data", "x", "--names", "a"), "--names: 'a' is not NAME=VALUE"),
        (("--data", "x", "--input_shape", "a"), "--input_shape: Invalid input_shape. In 'a'"),
        (("--data", "x", "--data_types", "a:float31"), "Did you mean float32"),
        (("--data", "x", "--max_drop", "1"), "--min_sqnr and --max_slowdown need none"),
        (("--data", "x", "--evaluator", "e.py"), "go with --evaluator"),
        (("--data", "x", "--min_sqnr", "9", "--max_drop", "1", "--evaluator", "e.py"), "give one of them"),
        (("--data", "x", "--min_sqnr", "9", "--target", "ascend,onnxruntime"), "searches for one target"),
        (("--statistics", "s.npz", "--min_sqnr", "9"), "give --data in the place of --statistics"),
        (("--data", "x", "--weight_only", "3"), "invalid choice: 3"),
        (("--dynamic", "--data", "x"), "delete --data"),
        (("--dynamic", "--statistics", "s.npz"), "delete --statistics"),
        (("--dynamic", "--save_statistics", "s.npz"), "delete --save_statistics"),
        (("--dynamic", "--weight_only", "4"), "give one of them"),
        (("--dynamic", "--algorithm", "mse"), "delete --algorithm"),
        (("--dynamic", "--target", "tensorrt"), "needs --target onnxruntime"),
        (("--dynamic", "--min_sqnr", "20"), "delete the target of accuracy"),
        (("--weight_only", "4", "--block_size", "24"), "24 is no power of two from 16 on"),
        (("--data", "x", "--block_size", "32"), "belongs to --weight_only"),
        (("--weight_only", "4", "--statistics", "s.npz"), "no statistics of activations"),
        (("--weight_only", "4", "--target", "openvino"), "needs --target onnxruntime"),
        (("--weight_only", "4", "--min_sqnr", "20"), "delete the target of accuracy"),
        (("--data", "x", "--reduce-range"), "did you mean --reduce_range"),
        (("--data", "x", "--output", "y"), "unknown option --output, did you mean --save_path?"),
        (("--data", "x", "-o", "y"), "unknown option -o, did you mean --save_path?"),
        (("--calib_dta", "x"), "unknown option --calib_dta, did you mean --data?"),
    ],
)
def test_wrong_command_lines(capsys: pytest.CaptureFixture[str], words: tuple[str, ...], told: str) -> None:
    with pytest.raises(SystemExit) as caught:
        parse([*BASE, *words])
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert told in err.splitlines()[-1]
