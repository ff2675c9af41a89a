"""Fixtures of tests that drive the functions as a user's script does."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture
def config_log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """What is logged about configurations; the package's own handlers stay as they are."""
    logger = logging.getLogger("amct_onnx.Config")
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)
