"""`doctor`: what this machine and this installation have, and what is missing or in the way."""

from __future__ import annotations

import os
import platform
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from importlib import metadata
from importlib.util import find_spec

from amct_onnx.engine.processors import processors
from amct_onnx.measure.machine import cpu_features, cpu_name, memory, providers
from amct_onnx.run.saturation import saturates
from amct_onnx.values.machine import Extra, Machine, Package

_NAME = "amct-onnx"
# What each extra is for; a test holds the names to those of the package.
PURPOSES = {
    "completion": "the words of the command line by the Tab key of a shell",
    "dev": "to run the tests",
    "docs": "to build the site of the documentation",
    "evaluate": "mean average precision of detectors, as COCO computes it (evaluate)",
    "pandas": "results as tables of pandas (to_pandas)",
    "parquet": "parquet files as data",
    "ray": "work on a cluster (engine)",
    "remote": "data behind URLs, as s3://",
    "samples": "the samples",
    "text": "text files as data, by a tokenizer.json",
    "train": "to train the networks of the benchmarks",
}
_COMPILED = {
    "histograms": "amct_onnx.numerics.statistics._accumulator",
    "calibration operators": "amct_onnx.custom_op.libamct_onnx_ops",
}
_RUNTIMES = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-openvino")
_LITTLE = 2 * 10**9  # bytes
_REQUIREMENT = re.compile(r"^([A-Za-z0-9._-]+)\s*([^;]*?)\s*(?:;\s*(.*))?$")
_EXTRA = re.compile(r"""extra\s*==\s*["']([\w-]+)["']""")


def doctor() -> Machine:
    """Versions, the processor, memory and disk, what is compiled, and the extras with what each is for.

    Takes part of a second: whether products of integers saturate is measured.
    """
    packages, folder = tuple(_packages()), tempfile.gettempdir()
    total, free = memory()
    compiled = {name: _is_there(module) for name, module in _COMPILED.items()}
    try:
        disk: int | None = shutil.disk_usage(folder).free
    except OSError:
        disk = None
    overflows = saturates()
    return Machine(
        version=_installed(_NAME),
        python=platform.python_version(),
        platform=platform.platform(terse=True),
        cpu=cpu_name(),
        features=cpu_features(),
        processors=os.cpu_count() or 1,
        threads=processors(),
        saturates=overflows,
        providers=providers(),
        compiled=compiled,
        packages=packages,
        extras=tuple(_extras(packages)),
        memory=total,
        memory_free=free,
        disk_free=disk,
        folder=folder,
        problems=tuple(_problems(packages, compiled, overflows, free, disk, folder)),
    )


def _packages() -> Iterator[Package]:
    """What the metadata of this package ask for on this platform."""
    try:
        wanted = metadata.requires(_NAME) or []
    except metadata.PackageNotFoundError:
        return
    for text in wanted:
        match = _REQUIREMENT.match(text)
        if match is None:
            continue
        name, version, marker = match[1], match[2], match[3] or ""
        extra = _EXTRA.search(marker)
        if "python_version" in marker and not extra and not _installed(name):
            continue  # for other versions of Python
        yield Package(name=name, version=_installed(name), required=version, extra="" if extra is None else extra[1])


def _extras(packages: Sequence[Package]) -> Iterator[Extra]:
    for name in sorted({package.extra for package in packages if package.extra}):
        missing = tuple(package.name for package in packages if package.extra == name and not package.version)
        command = f'pip install "{_NAME}[{name}]"'
        purpose = PURPOSES.get(name, "")
        yield Extra(name=name, purpose=purpose, installed=not missing, missing=missing, command=command)


def _problems(
    packages: Sequence[Package],
    compiled: dict[str, bool],
    overflows: bool,
    free: int | None,
    disk: int | None,
    folder: str,
) -> Iterator[str]:
    if not packages:
        yield "amct_onnx is not installed, only found in a folder: pip install . in the checkout."
    for package in packages:
        if not package.extra and not package.version:
            yield f"{package.name} is missing: pip install {package.name}."
        elif not package.extra and _is_older(package):
            name = package.name
            yield f'{name} {package.version} is older than needed: pip install --upgrade "{name}{package.required}".'
    several = [f"{name} {version}" for name in _RUNTIMES if (version := _installed(name))]
    if len(several) > 1:
        yield f"{' and '.join(several)} share one folder, and one of them is damaged: uninstall all, install one."
    if not all(compiled.values()):
        names = " and ".join(name for name, there in compiled.items() if not there)
        yield f"{names} are not compiled, calibration is slower: install a C compiler and amct_onnx again."
    if overflows:
        yield "this CPU has no VNNI, and large sums of int8 products overflow: quantize with reduce_range=True."
    if free is not None and free < _LITTLE:
        yield f"only {free / 1e9:.1f} GB of memory are free: use small batches."
    if disk is not None and disk < _LITTLE:
        yield f"only {disk / 1e9:.1f} GB are free in {folder}: set TMPDIR to a folder with more room for large models."


def _installed(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _is_older(package: Package) -> bool:
    least = re.search(r">=\s*([\d.]+)", package.required)
    return least is not None and _numbers(package.version) < _numbers(least[1])


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.partition("+")[0])[:3])


def _is_there(module: str) -> bool:
    if find_spec(module) is not None:
        return True
    package, _, name = module.rpartition(".")
    spec = find_spec(package)
    folders = [] if spec is None or spec.submodule_search_locations is None else list(spec.submodule_search_locations)
    return any(os.path.exists(os.path.join(folder, name + ending)) for folder in folders for ending in (".so", ".pyd"))
