"""`make without-vnni ARGS="benchmarks/patterns.py"`: a script whose libraries find a CPU with AVX2 alone.

Linux on x86-64, with gcc: `without_vnni.c` answers the CPUID instruction. It is the same machine, with the kernels of
ONNX Runtime for AVX2: caches and clock are not those of an older CPU.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_suffix(".c")
REFUSED = 3  # the exit code where the CPU or the kernel does not allow it


def build(folder: Path) -> Path:
    """The library that hides instructions. Raises OSError or CalledProcessError where there is no compiler for it."""
    library = folder / "without_vnni.so"
    subprocess.run(["gcc", "-O1", "-shared", "-fPIC", "-o", str(library), str(SOURCE)], check=True)
    return library


def main(words: list[str]) -> int:
    """Run a script of Python with its arguments; its exit code."""
    if not words:
        print(__doc__, file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="without_vnni_") as folder:
        environment = os.environ | {"LD_PRELOAD": str(build(Path(folder))), "AMCT_BENCH_CPU": "AVX2 kernels alone"}
        return subprocess.run([sys.executable, *words], env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
