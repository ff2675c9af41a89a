"""The mark of tests that take seconds each: a developer may leave them out, CI runs them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def mark_slow(cases: Iterable[str], *slow: str) -> list[Any]:
    """Parameters of a test, of which those in `slow` have the mark."""
    return [pytest.param(case, marks=pytest.mark.slow) if case in slow else case for case in cases]
