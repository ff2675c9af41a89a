"""What `doctor` finds on a machine, as values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from amct_onnx.values.shown import Shown, Table

_GIGA = 1e9


@dataclass(frozen=True, kw_only=True)
class Package:
    """A package that this one uses. version: the one that is installed, "" where none is. required: as pip writes it.
    extra: the extra that brings it, "" where every installation has it."""

    name: str
    version: str
    required: str
    extra: str


@dataclass(frozen=True, kw_only=True)
class Extra:
    """An extra of this package. installed: all of its packages are there. command: what installs it."""

    name: str
    purpose: str
    installed: bool
    missing: tuple[str, ...]
    command: str


@dataclass(frozen=True, kw_only=True)
class Machine(Shown):
    """Versions, what the processor has, what is compiled, and what is installed.

    features: whether the processor has each of these instructions, None where that is not known. threads: how many this
    process may use; processors: how many the machine has. saturates: sums of products of uint8 and int8 are wrong when
    they are large, as measured with ONNX Runtime. compiled: whether each optional module of C is there.
    providers: what this ONNX Runtime can run on. memory, memory_free, disk_free: bytes; None where that is not known,
    the disk is that of `folder`, where temporary files go. problems: what to do about what was found, a sentence each.
    """

    version: str
    python: str
    platform: str
    cpu: str
    features: Mapping[str, bool | None]
    processors: int
    threads: int
    saturates: bool
    providers: tuple[str, ...]
    compiled: Mapping[str, bool]
    packages: tuple[Package, ...]
    extras: tuple[Extra, ...]
    memory: int | None
    memory_free: int | None
    disk_free: int | None
    folder: str
    problems: tuple[str, ...]

    def lines(self) -> list[str]:
        """What is to be known, in a few sentences."""
        has = [name for name, there in self.features.items() if there]
        lacks = [name for name, there in self.features.items() if there is False]
        kinds = f"has {', '.join(has) or 'none of these'}" + (f"; lacks {', '.join(lacks)}" if lacks else "")
        if not has and not lacks:
            kinds = "its instructions are not known here"
        saturation = "saturate: large sums are wrong" if self.saturates else "are exact"
        return [
            f"amct_onnx {self.version}, Python {self.python}, {self.platform}.",
            f"CPU: {self.cpu or 'unknown'}, {self.threads} of {self.processors} threads; {kinds}.",
            f"Products of uint8 and int8 {saturation} (measured). ONNX Runtime runs on {', '.join(self.providers)}.",
            f"Memory: {_size(self.memory_free)} free of {_size(self.memory)}. Disk: {_size(self.disk_free)} free in "
            f"{self.folder}.",
            "Compiled: "
            + ", ".join(f"{name} {'yes' if there else 'no'}" for name, there in self.compiled.items())
            + ".",
            *([f"Problem: {problem}" for problem in self.problems] or ["No problem was found."]),
        ]

    def tables(self) -> tuple[Table, ...]:
        needed = [package for package in self.packages if not package.extra]
        packages = Table.of(
            "Packages", ("package", "version", "needs"), [(p.name, p.version or "missing", p.required) for p in needed]
        )
        extras = Table.of(
            "Extras",
            ("extra", "installed", "what it is for", "install"),
            [(e.name, e.installed, e.purpose, "" if e.installed else e.command) for e in self.extras],
        )
        return packages, extras


def _size(count: int | None) -> str:
    return "unknown" if count is None else f"{count / _GIGA:.1f} GB"
