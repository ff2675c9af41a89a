"""docs/images.md, in both languages, has the table of presets as the code has it, and names every field."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from amct_onnx.data.image_options import PRESETS, ImageOptions

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture(params=["images.md", "images.zh.md"])
def page(request: pytest.FixtureRequest) -> str:
    return (DOCS / str(request.param)).read_text("utf-8")


def numbers(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:.15g}" for value in values)


def test_the_table_of_presets_is_that_of_the_code(page: str) -> None:
    rows = re.findall(r"^\| `(\w+)` \| [^|]* \| (.*?) \|$", page, re.MULTILINE)
    expected = {}
    for name, preset in PRESETS.items():
        fit = f"letterbox, {preset.align}" if preset.fit == "letterbox" else preset.fit
        cells = [preset.color, f"{preset.divisor:g}", numbers(preset.mean), numbers(preset.std), fit]
        expected[name] = " | ".join([*cells, preset.interpolation])
    assert {name: row for name, row in rows if name in PRESETS} == expected


def test_every_field_is_named(page: str) -> None:
    assert [field.name for field in dataclasses.fields(ImageOptions) if f"`{field.name}`" not in page] == []
