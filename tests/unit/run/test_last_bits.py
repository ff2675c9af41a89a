"""What a processor computes is told apart from what another kind computes."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from amct_onnx.run.last_bits import last_bits

PRINTED = "from amct_onnx.run.last_bits import last_bits; print(last_bits())"


def printed(**environment: str) -> str:
    command = [sys.executable, "-c", PRINTED]
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=True).stdout


def test_other_processes_compute_the_same_here() -> None:
    assert printed(AMCT_ONNX_THREADS="1", OMP_NUM_THREADS="1").strip() == last_bits()


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the old kernel of BLAS is one for x86")
def test_kernels_for_other_instructions_compute_others() -> None:
    assert printed(OPENBLAS_CORETYPE="Prescott").strip() != last_bits()
