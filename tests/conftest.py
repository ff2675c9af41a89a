"""Fixtures shared by all tests."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

# A shared machine may pause for longer than any deadline; and CI repeats the same examples.
settings.register_profile("here", deadline=None, derandomize=os.environ.get("CI") == "true")
settings.load_profile("here")

# A shell starts what runs in the background with Ctrl-C ignored, and children inherit that: tests send the signal.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

_ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def test_data() -> Callable[..., Path]:
    """`test_data("golden", "mlp")`: a path below $AMCT_TEST_DATA (default `../shared` beside the project).

    Where it is absent the test is skipped with the reason, except in CI, where the data must be there.
    """
    root = Path(os.environ.get("AMCT_TEST_DATA") or _ROOT.parent / "shared")

    def find(*parts: str) -> Path:
        path = root.joinpath(*parts)
        if not path.exists():
            reason = f"no test data at {path}: set AMCT_TEST_DATA to the folder that holds it"
            if os.environ.get("CI") == "true":
                pytest.fail(reason)
            pytest.skip(reason)
        return path

    return find
