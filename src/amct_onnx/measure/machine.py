"""What the machine is made of: instructions of the processor, memory, and what ONNX Runtime can run on."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path

import onnxruntime as ort

# By the name that people know: the flags that mean it, as Linux and macOS write them.
FEATURES: Mapping[str, tuple[str, ...]] = {
    "AVX2": ("avx2",),
    "AVX-512": ("avx512f",),
    "VNNI": ("avx512_vnni", "avx_vnni", "avx512vnni"),
    "AMX int8": ("amx_int8",),
    "ARM dot product": ("asimddp", "feat_dotprod"),
    "ARM i8mm": ("i8mm", "feat_i8mm"),
}
_X86 = ("x86_64", "amd64", "i386", "i686")
_SECONDS = 5


def cpu_name() -> str:
    """What the processor calls itself; "" where that is not known."""
    for line in _cpuinfo():
        if line.startswith(("model name", "Model", "Hardware")):
            return line.partition(":")[2].strip()
    return _sysctl("machdep.cpu.brand_string").strip() or platform.processor()


def cpu_features() -> dict[str, bool | None]:
    """Whether the processor has the instructions of FEATURES of its kind; None where that is not known."""
    flags: set[str] = set()
    for line in _cpuinfo():
        if line.startswith(("flags", "Features")):
            flags = set(line.partition(":")[2].lower().split())
            break
    if not flags:
        flags = set(_sysctl("machdep.cpu.features", "machdep.cpu.leaf7_features").lower().split())
        flags |= {name.rpartition(".")[2].lower() for name in _sysctl("hw.optional.arm").split() if name.endswith(":1")}
    is_x86 = platform.machine().lower() in _X86
    wanted = {name: known for name, known in FEATURES.items() if name.startswith("ARM") != is_x86}
    return {name: bool(flags.intersection(known)) if flags else None for name, known in wanted.items()}


def memory() -> tuple[int | None, int | None]:
    """The bytes of memory that the machine has, and those that are free; None where that is not known."""
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii", errors="replace")
        rows = (line.partition(":") for line in text.splitlines())
        sizes = {name: int(rest.split()[0]) * 1024 for name, _, rest in rows}
        return sizes.get("MemTotal"), sizes.get("MemAvailable")
    except (OSError, ValueError, IndexError):
        pass
    if hasattr(os, "sysconf"):
        try:
            return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), None
        except (OSError, ValueError):
            return None, None
    return None, None


def providers() -> tuple[str, ...]:
    """What this ONNX Runtime can run on, by its own names."""
    return tuple(ort.get_available_providers())


def _cpuinfo() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def _sysctl(*names: str) -> str:
    """What macOS says of itself; "" elsewhere."""
    if platform.system() != "Darwin":
        return ""
    command = ["sysctl", *(["-n"] if len(names) > 1 or names[0].startswith("machdep") else []), *names]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except (OSError, subprocess.SubprocessError):
        return ""
    return found.stdout.replace(": ", ":")
