"""`doctor` tells what is there, by the files of the system and the metadata of packages."""

from __future__ import annotations

import os
import platform
import shutil
from importlib import metadata
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import tomllib
from flow import CPU

import amct_onnx
from amct_onnx.tools.doctor import PURPOSES
from amct_onnx.values.machine import Machine

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def machine() -> Machine:
    return amct_onnx.doctor()


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="there is no /proc")
def test_the_processor_is_that_of_the_system(machine: Machine) -> None:
    text = Path("/proc/cpuinfo").read_text()
    words = set(next(line for line in text.splitlines() if line.startswith(("flags", "Features"))).split())
    if platform.machine() == "x86_64":
        assert machine.features["AVX2"] == ("avx2" in words)
        assert machine.features["AVX-512"] == ("avx512f" in words)
        assert machine.features["VNNI"] == bool({"avx512_vnni", "avx_vnni"} & words)
        assert machine.cpu in text
    assert machine.processors == os.cpu_count()
    assert machine.threads == len(os.sched_getaffinity(0))


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="there is no /proc")
def test_memory_and_disk(machine: Machine) -> None:
    total = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal"))
    assert machine.memory == int(total.split()[1]) * 1024
    assert machine.memory_free is not None
    assert 0 < machine.memory_free <= machine.memory
    assert machine.disk_free == pytest.approx(shutil.disk_usage(machine.folder).free, rel=0.2)


def test_saturation_is_what_a_product_shows(machine: Machine) -> None:
    from flow import build

    model = build("g (uint8[N,64] a) => (int32[N,4] y) { y = MatMulInteger (a, b) }", b=np.full((64, 4), 127, np.int8))
    session = ort.InferenceSession(model.SerializeToString(), providers=CPU)
    exact = session.run(None, {"a": np.full((4, 64), 255, np.uint8)})[0][0, 0] == 255 * 127 * 64
    assert machine.saturates == (not exact)
    assert any("reduce_range" in problem for problem in machine.problems) == machine.saturates
    assert machine.providers == tuple(ort.get_available_providers())


def test_packages_and_extras_are_those_of_the_project(machine: Machine) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(PURPOSES) == set(project["optional-dependencies"])
    assert {extra.name for extra in machine.extras} == set(PURPOSES)
    assert all(extra.purpose for extra in machine.extras)
    for package in machine.packages:
        if not package.extra:
            assert package.version == metadata.version(package.name)
    assert {package.name for package in machine.packages if not package.extra} >= {"numpy", "onnxruntime", "onnx-ir"}
    missing = [extra for extra in machine.extras if not extra.installed]
    assert all(f"[{extra.name}]" in extra.command and extra.missing for extra in missing)


def test_what_is_compiled_is_told(machine: Machine) -> None:
    source = ROOT / "src" / "amct_onnx"
    there = any(source.glob("numerics/statistics/_accumulator*.so"))
    assert machine.compiled["histograms"] == there
    assert machine.compiled["calibration operators"] == any(source.glob("custom_op/libamct_onnx_ops*.so"))
    assert any("compiler" in problem for problem in machine.problems) == (not all(machine.compiled.values()))
