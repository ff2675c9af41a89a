"""Evaluator scripts: which object is taken, and where a failure is said to be."""

from __future__ import annotations

import sys
from pathlib import Path
from textwrap import dedent

import pytest

from amct_onnx.cli.evaluator import calibrate, evaluator_script
from amct_onnx.errors import ScriptError
from amct_onnx.tools.user_script import session_evaluator


@pytest.fixture
def script(tmp_path: Path) -> Path:
    (tmp_path / "helper_of_evaluator.py").write_text("WORD = 'helped'\n")
    return tmp_path / "evaluate_it.py"


def run(script: Path, text: str) -> str:
    """What the evaluator of a script notes in a file beside the model."""
    script.write_text(dedent(text))
    model = script.with_name("model.onnx")
    with evaluator_script(str(script)) as evaluator:
        calibrate(evaluator, str(script), str(model))
    return model.read_text()


CLASS = """
class Evaluator:
    def __init__(self, word='class'):
        self.word = word
    def calibration(self, model_file):
        open(model_file, 'w').write(self.word)
"""


@pytest.mark.parametrize(
    ("text", "word"),
    [
        (CLASS + "customize_evaluator = Evaluator('instance')", "instance"),
        (CLASS + "anything = Evaluator('any name')", "any name"),
        (CLASS + "a = Evaluator('a')\ncustomize_evaluator = Evaluator('usual')\n", "usual"),
        (CLASS + "a = b = Evaluator('same')", "same"),
        (CLASS, "class"),
        (CLASS + "class Derived(Evaluator):\n    def __init__(self): super().__init__('leaf')\n", "leaf"),
        (
            "from types import SimpleNamespace\n"
            "note = SimpleNamespace(calibration=lambda file: print('function', file=open(file, 'w'), end=''))",
            "function",
        ),
        ("import helper_of_evaluator as h\n" + CLASS + "e = Evaluator(h.WORD)", "helped"),
        (
            CLASS + "class Late(Evaluator):\n def calibration(self, file):\n"
            "  from helper_of_evaluator import WORD\n  open(file, 'w').write(WORD)\n",
            "helped",
        ),
        ("import sys\n" + CLASS + "e = Evaluator(' '.join(sys.argv[1:]) or 'no arguments')", "no arguments"),
        ("from dataclasses import dataclass\n@dataclass\nclass Box:\n    x: 'int' = 1\n" + CLASS, "class"),
        ("# -*- coding: latin-1 -*-\n" + CLASS, "class"),
        (
            "from amct_onnx.common.auto_calibration import AutoCalibrationEvaluatorBase\n"
            + CLASS.replace("Evaluator:", "ModelEvaluator(AutoCalibrationEvaluatorBase):"),
            "class",
        ),
        (CLASS + "if __name__ == '__main__':\n    raise SystemExit", "class"),
    ],
)
def test_the_evaluator_is_found(script: Path, text: str, word: str) -> None:
    assert run(script, text) == word


def test_nothing_is_left_in_the_process_nor_beside_the_script(script: Path) -> None:
    before = (list(sys.path), list(sys.argv), "evaluate_it" in sys.modules)
    assert run(script, CLASS) == "class"
    assert (list(sys.path), list(sys.argv), "evaluate_it" in sys.modules) == before
    assert not list(script.parent.glob("__pycache__/evaluate_it*"))


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        ("x = 1\ny = = 2\n", 2, "cannot be imported: SyntaxError: "),
        ("x = 1\n\nimport no_such_module\n", 3, "ModuleNotFoundError: No module named 'no_such_module'"),
        ("import sys\nsys.exit(3)\n", 2, "calls sys.exit(3)"),
        ("import argparse\nargparse.ArgumentParser().parse_args(['--x'])", 2, "calls sys.exit(2)"),
        (
            "class A:\n  def calibration(self, model_file):\n    self.go()\n  def go(self):\n    raise KeyError('k')\n",
            5,
            "failed in calibration(): KeyError: 'k'",
        ),
        ("class A:\n    def calibration(self, model_file):\n        int('x')\n", 3, "ValueError: invalid literal"),
        ("class A:\n    def calibration(self, model_file):\n        assert False\n", 3, "AssertionError"),
        (
            "class A:\n    def __init__(self, size): pass\n    def calibration(self, model_file): pass\n",
            None,
            "has no instance of A, and A() fails: TypeError",
        ),
        ("class A:\n    def calibration(self): pass\na = A()\n", None, "TypeError"),
        ("x = 1\n", None, "no evaluator"),
        (CLASS + "a = Evaluator()\nb = Evaluator()\n", None, "several objects have a calibration(): a, b. Name one"),
        (
            CLASS + "class Other:\n    calibration = print\n",
            None,
            "several classes have a calibration(): Evaluator, Oth",
        ),
    ],
)
def test_a_failing_script_is_named_with_its_line(script: Path, text: str, line: int | None, what: str) -> None:
    with pytest.raises(ScriptError) as caught:
        run(script, text)
    message = str(caught.value)
    assert message.startswith(f"{script}:{line}: " if line else f"{script}: "), message
    assert what in message
    assert "\n" not in message


def test_a_script_that_cannot_be_read(tmp_path: Path) -> None:
    for path, what in ((tmp_path / "no.py", "does not exist"), (tmp_path, "is a folder")):
        with pytest.raises(ScriptError, match=what), evaluator_script(str(path)):
            pass
    binary = tmp_path / "binary.py"
    binary.write_bytes(b"\x00\xff\xfe")
    with pytest.raises(ScriptError, match="cannot be imported"), evaluator_script(str(binary)):
        pass


def test_ctrl_c_is_no_mistake_of_the_script(script: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(script, "class A:\n    def calibration(self, model_file):\n        raise KeyboardInterrupt\n")


def test_a_script_may_evaluate_sessions(script: Path) -> None:
    script.write_text("import helper_of_evaluator\ndef evaluate(session):\n    return len(session)\n")
    with session_evaluator(str(script)) as evaluate:
        assert evaluate("abc") == 3
        with pytest.raises(ScriptError, match=r"evaluate_it.py:3: the script failed in evaluate\(\): TypeError"):
            evaluate(3)


def test_a_script_without_evaluate(script: Path) -> None:
    script.write_text("evaluate = 3")
    with pytest.raises(ScriptError, match=r"needs a function evaluate\(session\)"), session_evaluator(str(script)):
        pass
