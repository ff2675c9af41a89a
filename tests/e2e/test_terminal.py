"""The command on a terminal: a bar that goes, no lines of the log but warnings, colours that NO_COLOR takes away."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from flow import build, normal

pty = pytest.importorskip("pty", reason="no pseudo terminals here")
MODEL = "g (float[N,3,8,8] x) => (float[N,8,6,6] y) { [conv] y = Conv (x, w) }"


def on_terminal(folder: Path, *words: str, **environment: str) -> str:
    """All that the command writes to its terminal, of 70 columns."""
    command = [sys.executable, "-m", "amct_onnx", *words]
    # A child that is not forked: pty.fork in a process with threads of ONNX Runtime may hang.
    script = (
        "import os, pty, subprocess, sys\n"
        "one, two = pty.openpty()\n"
        "done = subprocess.Popen(sys.argv[1:], stdin=two, stdout=two, stderr=two, close_fds=True)\n"
        "os.close(two)\n"
        "try:\n"
        "    while part := os.read(one, 1 << 16):\n"
        "        sys.stdout.buffer.write(part)\n"
        "except OSError:\n"
        "    pass\n"
        "sys.exit(done.wait())\n"
    )
    known = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "AMCT_LOG_LEVEL")}
    found = subprocess.run(
        [sys.executable, "-c", script, *command],
        cwd=folder,
        env={**known, "COLUMNS": "70", "TERM": "xterm-256color", **environment},
        capture_output=True,
        check=False,
        timeout=120,
    )
    assert found.returncode == 0, found.stdout
    return found.stdout.decode()


@pytest.mark.slow
def test_a_terminal(tmp_path: Path) -> None:
    onnx.save(build(MODEL, w=normal(1, 8, 3, 3, 3)), tmp_path / "m.onnx")
    (tmp_path / "data").mkdir()
    for number in range(5):
        np.save(tmp_path / "data" / f"{number}.npy", normal(number, 1, 3, 8, 8))
    words = ["quantize", "m.onnx", "--data", "data", "--save_path", "out/m", "--effort", "fast"]
    text = on_terminal(tmp_path, *words)
    assert "calibration [" in text
    assert "\x1b[" in text
    assert "INFO" not in text
    assert text.count("Only 5 samples calibrate") == 1
    assert text.index("WARNING") > text.index("calibration [")
    left = [line.rpartition("\r")[2] for line in text.replace("\r\n", "\n").split("\n")]
    assert not any("calibration [" in line for line in left)
    assert max(len(line) for line in left if not line.startswith("WARNING") and "\x1b" not in line) <= 70
    plain = on_terminal(tmp_path, *words, NO_COLOR="1", AMCT_LOG_LEVEL="INFO")
    assert "\x1b" not in plain
    assert "INFO - [AMCT]:[Quantize]: The file is saved in out/m_onnxruntime.onnx" in plain
    assert "accuracy" not in on_terminal(tmp_path, *words, "--quiet")
