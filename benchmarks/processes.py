"""Measurements in processes of their own: wall time, peak memory, and what the machine is.

Standard library only: the interpreters that measure peers import it too.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a process ended. `seconds` is its wall time; `problem` says in one line why it failed, None if it did not."""

    seconds: float
    stdout: str
    problem: str | None


def run_process(command: Sequence[str], *, timeout: float | None = None) -> Outcome:
    """Run `command` to its end, from the start of its interpreter to its exit; it never raises for a failing one."""
    start = time.perf_counter()
    try:
        done = subprocess.run(
            command,
            check=False,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
        )
    except subprocess.TimeoutExpired:
        return Outcome(seconds=time.perf_counter() - start, stdout="", problem=f"stopped after {timeout:.0f} s")
    except OSError as reason:
        return Outcome(seconds=time.perf_counter() - start, stdout="", problem=f"does not start: {reason}")
    seconds = time.perf_counter() - start
    if done.returncode == 0:
        return Outcome(seconds=seconds, stdout=done.stdout, problem=None)
    if done.returncode < 0:
        problem = f"ended by signal {-done.returncode}"
    else:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        problem = lines[-1].strip()[:300] if lines else f"exit code {done.returncode}"
    return Outcome(seconds=seconds, stdout=done.stdout, problem=problem)


def peak_mebibytes() -> float | None:
    """Peak resident memory of this process; None where the system does not tell."""
    # Linux lets a child begin with the peak of its parent in ru_maxrss; VmHWM is that of the program itself.
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    try:
        import resource
    except ImportError:
        return None
    unit = 1 << 20 if sys.platform == "darwin" else 1 << 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def limit_memory() -> None:
    """Let this process fail, rather than another one, when it wants more memory than there is (Linux)."""
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return
    import resource

    fields = dict(line.split(":", 1) for line in meminfo.read_text(encoding="ascii").splitlines())
    available = int(fields["MemAvailable"].split()[0]) * 1024
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if hard == resource.RLIM_INFINITY or available < hard:
        resource.setrlimit(resource.RLIMIT_DATA, (available, hard))


def cpu_count() -> int:
    """The processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine() -> str:
    """One line: processor, how many, and whether it has the integer dot products (VNNI) that int8 kernels want."""
    name, vnni = platform.processor() or platform.machine(), "VNNI: this system does not tell"
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
        fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
        name = fields.get("model name", name)
        if "flags" in fields:
            flags = set(fields["flags"].split())
            found = sorted(flags & {"avx512_vnni", "avx_vnni"})
            widest = next((flag for flag in ("avx512f", "avx2", "avx") if flag in flags), "no AVX")
            vnni = f"VNNI ({', '.join(found)})" if found else f"no VNNI ({widest} only)"
            vnni = os.environ.get("AMCT_BENCH_CPU", vnni)  # `make without-vnni`
    return f"{name}, {cpu_count()} processors, {vnni}"
