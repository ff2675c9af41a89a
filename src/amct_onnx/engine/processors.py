"""How many processors this process may use."""

from __future__ import annotations

import os

THREADS = "AMCT_ONNX_THREADS"  # the environment variable that allows fewer


def processors() -> int:
    """How many there are, as far as the system and the environment variable AMCT_ONNX_THREADS allow them."""
    found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    text = os.environ.get(THREADS, "")
    return min(found, int(text)) if text.isdecimal() and int(text) else found
