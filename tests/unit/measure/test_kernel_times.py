"""Times of nodes by the runtime's profile."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
from flow import images, two_convs

import amct_onnx
from amct_onnx.measure.kernel_times import kernel_times


def test_each_layer_of_a_file_has_its_kernel_and_its_time(tmp_path: Path) -> None:
    result = amct_onnx.quantize(two_convs(), images(0, 8), effort="fast")
    (file,) = result.save(tmp_path / "m", inspect=False).files
    found = kernel_times(file, {"x": images(1, 1)}, budget=0.02)
    assert found["conv1"].kernels == ("QLinearConv",)
    assert found["conv2"].kernels == ("QLinearConv",)
    assert all(0 < one.seconds < 1 for one in found.values())


def test_a_model_in_memory_is_timed_as_well() -> None:
    found = kernel_times(ir.from_proto(two_convs()), {"x": images(1, 1)}, budget=0.02)
    assert {"conv1", "conv2"} <= found.keys()
    assert not any(kernel.startswith("QLinear") for one in found.values() for kernel in one.kernels)
