"""The cluster of Ray that all tests of a process share; tests that use it have the mark `ray`."""

from __future__ import annotations

from functools import cache

import pytest
from ray_nodes import RayNodes


@cache
def ray_nodes() -> RayNodes:
    """The cluster, which ends with the process; without Ray the test is skipped."""
    pytest.importorskip(
        "amct_onnx.engine.ray_engine", reason='Ray is not installed: pip install "amct-onnx[ray]"', exc_type=ImportError
    )
    return RayNodes()
