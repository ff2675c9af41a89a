"""Options as values: one class gives the options of a command, and the text that documents arguments."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import pytest

from amct_onnx.errors import ArgumentError
from amct_onnx.options import Flag, add_options, documented, given_options, option, positive_number


def split(text: str) -> list[str]:
    if not text:
        raise ArgumentError("names nothing")
    return text.split(",")


@dataclass(frozen=True, kw_only=True)
class Oven:
    """Options of an oven."""

    heat: int = option(180, "degrees", "More is " + "much " * 30 + "hotter.", flag=Flag(read=positive_number))
    fan: bool = option(False, "the fan runs", flag=Flag(switch=True))
    trays: list[str] | None = option(
        None, "where things stand", flag=Flag(name="--on", metavar="TRAYS", example="low,high", read=split)
    )
    door: str = option("closed", "for whoever opens it")


@pytest.fixture
def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser()
    add_options(made, Oven)
    return made


def test_the_value_has_the_defaults() -> None:
    assert Oven() == Oven(heat=180, fan=False, trays=None, door="closed")


@pytest.mark.parametrize(
    ("words", "given"),
    [
        ([], {}),
        (["--heat", "5", "--fan"], {"heat": 5, "fan": True}),
        (["--on", "low,high"], {"trays": ["low", "high"]}),
    ],
)
def test_only_what_is_given_is_read(parser: argparse.ArgumentParser, words: list[str], given: object) -> None:
    assert given_options(Oven, parser.parse_args(words)) == given


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--on", ""], "argument --on: names nothing"),
        (["--heat", "0"], "argument --heat: '0' is not a whole number greater than 0"),
        (["--door", "open"], "unrecognized arguments: --door open"),
    ],
)
def test_wrong_texts(
    parser: argparse.ArgumentParser, words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parser.parse_args(words)
    assert told in capsys.readouterr().err


def test_help_has_meaning_and_example(parser: argparse.ArgumentParser) -> None:
    text = parser.format_help()
    assert "--on TRAYS   where things stand: low,high" in text
    assert "much" not in text


def test_only_some_options_are_added() -> None:
    made = argparse.ArgumentParser()
    add_options(made, Oven, ["fan"])
    assert "--heat" not in made.format_help()


def test_docstrings_get_the_arguments_that_the_function_has() -> None:
    @documented(Oven)
    def bake(cake: str, *, heat: int = 180, door: str = "closed") -> None:
        """Bake.

        cake: what is baked.
        """

    lines = (bake.__doc__ or "").splitlines()
    assert lines[:3] == ["Bake.", "", "cake: what is baked."]
    assert lines[4].startswith("heat: degrees. More is much")
    assert lines[5].startswith("    much")
    assert lines[-1] == "door: for whoever opens it."
    assert max(map(len, lines)) <= 116


def test_a_function_without_docstring_stays_without() -> None:
    @documented(Oven)
    def bake(heat: int) -> None:
        pass

    assert bake.__doc__ is None
