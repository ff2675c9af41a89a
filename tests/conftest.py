"""Fixtures shared by all tests."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

# Of pytest-xdist. Each worker has its part of the processors, since threads of several workers would wait for each
# other; numpy reads this when it is loaded, and the processes that tests start inherit it.
_WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
_THREADS = max(1, (os.cpu_count() or 1) // _WORKERS)
if _WORKERS > 1:
    for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(_variable, str(_THREADS))

import onnxruntime as ort  # noqa: E402
import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402

# How many examples of a law are tried. A shared machine may pause for longer than any deadline; CI repeats the same
# examples.
_IN_CI = os.environ.get("CI") == "true"
settings.register_profile("quick", max_examples=25, deadline=None)
settings.register_profile("thorough", max_examples=50, deadline=None, derandomize=_IN_CI)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE") or ("thorough" if _IN_CI else "quick"))

# A shell starts what runs in the background with Ctrl-C ignored, and children inherit that: tests send the signal.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

if _WORKERS > 1:
    _open = ort.InferenceSession.__init__

    def _open_with_few_threads(self, path_or_bytes, sess_options=None, *args, **kwargs):  # type: ignore[no-untyped-def]
        """Sessions that leave the number of threads to ONNX Runtime would take all processors in each worker."""
        given = ort.SessionOptions() if sess_options is None else sess_options
        if given.intra_op_num_threads:
            return _open(self, path_or_bytes, given, *args, **kwargs)
        given.intra_op_num_threads = _THREADS
        try:
            return _open(self, path_or_bytes, given, *args, **kwargs)
        finally:
            given.intra_op_num_threads = 0

    ort.InferenceSession.__init__ = _open_with_few_threads

_ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def caplog(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """What the package logs, once, whether or not an earlier test of this process has started its log."""
    logger = logging.getLogger("amct_onnx")
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)


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
            if _IN_CI:
                pytest.fail(reason)
            pytest.skip(reason)
        return path

    return find
