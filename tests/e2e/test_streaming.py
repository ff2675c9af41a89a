"""Memory does not grow with the data: `make streaming`, with fewer images."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_many_images_take_the_memory_of_few(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "streaming.py"), "--images", "6000"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300)
    assert run.returncode == 0, f"{run.stdout}{run.stderr}"
    rows = [line.split() for line in run.stdout.splitlines()]
    assert [row[:3] for row in rows if row[1].isdigit()] == [
        [kind, *counts] for kind in ("tar", "parquet") for counts in (("1000", "0"), ("5999", "1"))
    ]
