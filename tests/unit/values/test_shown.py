"""Results show themselves: text, HTML in which everything is escaped, dictionaries for JSON, and tables of pandas."""

from __future__ import annotations

import builtins
import json
import math
from dataclasses import dataclass
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from flow import normal, two_convs

import amct_onnx
from amct_onnx.errors import AmctError
from amct_onnx.values.shown import Shown, Table, plain

EVIL = "<script>alert('x')</script> & \"more\""


@dataclass(frozen=True, kw_only=True)
class Example(Shown):
    """A result with all kinds of values."""

    name: str
    ratio: float
    counts: tuple[int, ...]

    def lines(self) -> list[str]:
        return [f"It is {self.name}."]

    def tables(self) -> tuple[Table, ...]:
        rows = [(self.name, self.ratio, 12345, None, True), ("other", 3.14159, 6, 0.5, False)]
        return (Table.of(self.name, ("name", "SQNR", "count", "half", "is it"), rows, SQNR="dB"),)


class Reader(HTMLParser):
    """The tags and the text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_html_is_escaped() -> None:
    page = Reader(Example(name=EVIL, ratio=math.inf, counts=(1,))._repr_html_())
    assert set(page.tags) == {"div", "table", "caption", "thead", "tbody", "tr", "th", "td"}
    assert page.text.count(EVIL) == 2
    assert f"It is {EVIL}." in page.text


def test_text_has_the_same() -> None:
    text = str(Example(name="good", ratio=math.inf, counts=(1,)))
    assert text.splitlines() == [
        "It is good.",
        "",
        "good",
        "name     SQNR   count  half  is it",
        "good    exact  12 345        yes",
        "other  3.1 dB       6   0.5  no",
    ]


def test_dictionaries_are_json() -> None:
    document = Example(name="n", ratio=math.nan, counts=(1, 2)).to_dict()
    assert json.loads(json.dumps(document, allow_nan=False)) == {"name": "n", "ratio": None, "counts": [1, 2]}
    assert plain({1: np.float32(0.5), "a": np.int64(3), "b": np.bool_(True), "c": np.array([math.inf, 1.0])}) == {
        "1": 0.5, "a": 3, "b": True, "c": [None, 1.0],
    }  # fmt: skip


def test_pandas_gets_the_values_and_not_their_texts() -> None:
    frame = Example(name="n", ratio=2.0, counts=()).to_pandas()
    assert list(frame.columns) == ["name", "SQNR", "count", "half", "is it"]
    assert frame["SQNR"].tolist() == [2.0, 3.14159]


def test_without_pandas_the_command_that_installs_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    load = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "pandas":
            raise ImportError(name)
        return load(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(AmctError, match=r'pip install "amct-onnx\[pandas\]"'):
        Example(name="n", ratio=2.0, counts=()).to_pandas()


def results() -> dict[str, Shown]:
    model, data = two_convs(), normal(1, 8, 3, 6, 6)
    quantized = amct_onnx.quantize(model, data, effort="fast", full_int8=True)
    return {
        "sensitivity": amct_onnx.sensitivity(quantized, data),
        "inspect": amct_onnx.inspect(model),
        "compare": amct_onnx.compare(model, quantized, data),
        "doctor": amct_onnx.doctor(),
    }


@pytest.fixture(scope="module")
def shown() -> dict[str, Shown]:
    return results()


@pytest.mark.parametrize("name", ["sensitivity", "inspect", "compare", "doctor", "report"])
def test_each_result_shows_itself(name: str, shown: dict[str, Shown], tmp_path: Any) -> None:
    if name == "report":
        result = amct_onnx.quantize(two_convs(), normal(1, 8, 3, 6, 6), effort="fast").save(tmp_path / "m").report
        assert isinstance(result, Shown)
    else:
        result = shown[name]
    json.dumps(result.to_dict(), allow_nan=False)
    assert len(result.to_pandas()) == len(result.tables()[0].rows) > 0
    page = Reader(result._repr_html_())
    assert "script" not in page.tags
    assert str(result)
