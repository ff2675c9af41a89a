"""What a command says on stdout: text for people, one JSON document, or nothing."""

from __future__ import annotations

import json
import math

import pytest

from amct_onnx.cli.commands import parse
from amct_onnx.cli.output import Output

WORDS = ["quantize", "m.onnx", "--data", "x", "--save_path", "o/m"]


def test_text_is_for_people_only(capsys: pytest.CaptureFixture[str]) -> None:
    for output, expected in ((Output(), "a [b] line\n"), (Output(quiet=True), ""), (Output(json=True), "")):
        output.say("a [b] line")
        assert capsys.readouterr().out == expected


def test_a_document_is_json_without_numbers_that_json_lacks(capsys: pytest.CaptureFixture[str]) -> None:
    Output(json=True).document({"a": math.inf, "b": (1.5, math.nan), "c": {"d": "é"}})
    assert json.loads(capsys.readouterr().out) == {"a": None, "b": [1.5, None], "c": {"d": "é"}}
    Output().document({"a": 1})
    assert capsys.readouterr().out == ""


def test_the_way_to_answer_is_asked_for_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert parse(WORDS).output == Output()
    assert parse([*WORDS, "--json"]).output == Output(json=True)
    assert parse([*WORDS, "--quiet"]).output == Output(quiet=True)
    with pytest.raises(SystemExit):
        parse([*WORDS, "--quiet", "--json"])
    assert "give one of them" in capsys.readouterr().err
