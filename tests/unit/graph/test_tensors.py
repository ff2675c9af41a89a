"""Tensors whose data is elsewhere: what is known without it, when it is read or computed, that nobody changes it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from flow import normal

from amct_onnx.graph.tensors import array_of, deferred, renamed, shape_of

LARGE = normal(0, 600, 500)  # 1.2 MB
SMALL = normal(1, 3, 4)


def counted(array: np.ndarray) -> tuple[Callable[[], np.ndarray], list[int]]:
    calls: list[int] = []

    def compute() -> np.ndarray:
        calls.append(1)
        return array

    return compute, calls


def test_a_large_tensor_is_computed_whenever_it_is_asked_for() -> None:
    compute, calls = counted(LARGE)
    tensor = deferred(compute, np.float32, LARGE.shape)
    assert (shape_of(tensor), tensor.dtype, tensor.nbytes) == (LARGE.shape, ir.DataType.FLOAT, LARGE.nbytes)
    assert shape_of(renamed(tensor, "w")) == LARGE.shape
    assert not calls
    for count in (1, 2):
        np.testing.assert_array_equal(array_of(tensor), LARGE)
        assert len(calls) == count


def test_a_small_tensor_is_computed_once_and_at_once() -> None:
    source = SMALL.copy()
    compute, calls = counted(source)
    tensor = deferred(compute, np.float32, SMALL.shape)
    source[:] = 0
    for _ in range(2):
        np.testing.assert_array_equal(array_of(tensor), SMALL)
    assert len(calls) == 1


@pytest.mark.parametrize("array", [SMALL, LARGE])
def test_a_name_is_all_that_renaming_changes(array: np.ndarray) -> None:
    tensor = renamed(deferred(lambda: array, np.float32, array.shape), "w")
    assert tensor.name == "w"
    np.testing.assert_array_equal(array_of(tensor), array)
    assert tensor.tobytes() == array.tobytes()
    assert renamed(tensor, "w") is tensor


def test_nobody_changes_the_data_of_a_tensor(tmp_path: Path) -> None:
    for tensor in (deferred(lambda: LARGE, np.float32, LARGE.shape), ir.Tensor(SMALL), external(tmp_path, LARGE)):
        with pytest.raises(ValueError, match="read-only"):
            array_of(tensor)[0] = 1


def external(folder: Path, array: np.ndarray) -> ir.ExternalTensor:
    array.tofile(folder / "w.bin")
    shape = ir.Shape(array.shape)
    return ir.ExternalTensor("w.bin", 0, array.nbytes, ir.DataType.FLOAT, shape=shape, name="w", base_dir=folder)


def test_external_data_is_mapped_by_the_array_alone(tmp_path: Path) -> None:
    """What the tensor itself kept would pile up to the size of the model, and its file handles with it."""
    tensor = renamed(external(tmp_path, LARGE), "v")
    array = array_of(tensor)
    np.testing.assert_array_equal(array, LARGE)
    (tmp_path / "w.bin").unlink()
    (-LARGE).tofile(tmp_path / "w.bin")  # another file of this name: a mapping that is kept would show the old one
    np.testing.assert_array_equal(array_of(tensor), -LARGE)
    np.testing.assert_array_equal(array, LARGE)
