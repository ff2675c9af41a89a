"""Lines of text become tokens: by a tokenizer.json, for the inputs that take ids, masks and types."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from amct_onnx.data.open_data import open_data
from amct_onnx.data.options import DataOptions
from amct_onnx.errors import DataError
from amct_onnx.graph.inputs import ModelInput

WORDS = {"[UNK]": 0, "a": 1, "bird": 2, "sings": 3, "[PAD]": 4}


@pytest.fixture
def tokenizer(tmp_path: Path) -> str:
    """A tokenizer of whole words."""
    model = {"type": "WordLevel", "vocab": WORDS, "unk_token": "[UNK]"}
    document = {"version": "1.0", "added_tokens": [], "pre_tokenizer": {"type": "Whitespace"}, "model": model}
    parts = dict.fromkeys(("truncation", "padding", "normalizer", "post_processor", "decoder"))
    (tmp_path / "tokenizer.json").write_text(json.dumps({**parts, **document}))
    (tmp_path / "lines.txt").write_text("a bird sings\n\nbird\n  \na fish\n")
    return str(tmp_path / "tokenizer.json")


def takes(name: str, length: int | None = None, dtype: str = "int64") -> ModelInput:
    return ModelInput(name=name, dtype=dtype, shape=(None, length), optional=False)


def read(tokenizer: str, *inputs: ModelInput, file: str = "lines.txt") -> list[dict[str, np.ndarray]]:
    data = Path(tokenizer).with_name(file)
    return [dict(feed) for feed in open_data(data, inputs, DataOptions(tokenizer=tokenizer, batch_size=1))]


def test_each_line_has_its_own_length(tokenizer: str) -> None:
    feeds = read(tokenizer, takes("input_ids"), takes("attention_mask", dtype="int32"), takes("token_type_ids"))
    assert [feed["input_ids"].tolist() for feed in feeds] == [[[1, 2, 3]], [[2]], [[1, 0]]]
    assert [feed["attention_mask"].tolist() for feed in feeds] == [[[1, 1, 1]], [[1]], [[1, 1]]]
    assert [feed["token_type_ids"].tolist() for feed in feeds] == [[[0, 0, 0]], [[0]], [[0, 0]]]
    assert feeds[0]["attention_mask"].dtype == np.int32


def test_a_fixed_length_cuts_and_pads(tokenizer: str) -> None:
    feeds = read(tokenizer, takes("ids", 2), takes("mask", 2))
    assert [feed["ids"].tolist() for feed in feeds] == [[[1, 2]], [[2, 0]], [[1, 0]]]
    assert [feed["mask"].tolist() for feed in feeds] == [[[1, 1]], [[1, 0]], [[1, 1]]]


def test_what_does_not_fit(tokenizer: str) -> None:
    picture = ModelInput(name="x", dtype="float32", shape=(None, 3, 8, 8), optional=False)
    for inputs, told in (([picture], "a text gives tokens"), ([takes("a"), takes("b")], "is not clear from their")):
        with pytest.raises(DataError, match=told):
            read(tokenizer, *inputs)
    with pytest.raises(DataError, match="becomes tokens by tokenizer"):
        open_data(Path(tokenizer).with_name("lines.txt"), [takes("ids")], DataOptions())
    Path(tokenizer).write_text("{}")
    with pytest.raises(DataError, match=r"is no tokenizer.json"):
        read(tokenizer, takes("ids"))
    Path(tokenizer).unlink()
    with pytest.raises(DataError, match="the tokenizer does not exist"):
        read(tokenizer, takes("ids"))
