"""Errors are one line that somebody reads: lists in them are short."""

from __future__ import annotations

import pytest

from amct_onnx.errors import listed

NAMES = [f"conv{number}" for number in range(9)]


@pytest.mark.parametrize(
    ("shown", "text"),
    [(9, ", ".join(NAMES)), (2, "conv0, conv1 and 7 more"), (12, ", ".join(NAMES)), (1, "conv0 and 8 more")],
)
def test_a_list_shows_the_first_items(shown: int, text: str) -> None:
    assert listed(NAMES, shown) == text


def test_of_long_items_fewer_are_shown_but_never_none() -> None:
    long = [name + ": its weight may be overridden" + "." * 60 for name in NAMES]
    assert listed(long, 5, "; ") == f"{long[0]}; {long[1]} and 7 more"
    assert listed([name * 100 for name in NAMES], 3) == "conv0" * 100 + " and 8 more"
