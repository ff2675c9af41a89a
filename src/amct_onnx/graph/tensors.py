"""Tensors whose data is not in memory: mapped from a file while it is looked at, or computed when it is asked for.

A model of several GB is quantized in less than its own size, because no weight of it is held: the tensor of an
initializer is a file and an offset, or a recipe from such a tensor (transposed, rounded, as integers). Shape and dtype
are known without data. `array_of` gives the data for as long as the caller holds the array, and writing a model takes
one tensor at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from amct_onnx.numerics.arrays import Array

# Smaller tensors are computed at once: a recipe is computed again by each who asks.
_SMALL = 1 << 20


def unmapped(tensor: ir.ExternalTensor) -> ir.ExternalTensor:
    """The same tensor without the mapping of its file, which belongs to whoever reads it."""
    return ir.ExternalTensor(
        tensor.location,
        tensor.offset,
        tensor.length,
        tensor.dtype,
        shape=tensor.shape,
        name=tensor.name,
        base_dir=tensor.base_dir,
    )


def array_of(tensor: ir.TensorProtocol) -> Array:
    """The data of `tensor`, read-only.

    External data is mapped anew by each call and unmapped with the array: its pages do not pile up, a model of
    thousands of tensors does not run out of file handles, and the file can be replaced on Windows.
    """
    while isinstance(tensor, ir.LazyTensor):
        tensor = tensor.raw()
    if isinstance(tensor, ir.ExternalTensor):
        tensor = unmapped(tensor)
    array: Array = np.asarray(tensor.numpy()).view()  # a view, since the flag of the tensor's own array is not ours
    array.flags.writeable = False
    return array


class Computed(ir.LazyTensor):
    """Computed whenever its data is asked for; once where it is pickled, and then it is in memory."""

    def __reduce__(self) -> tuple[Any, ...]:
        return tensor_of_parts, (*parts_of(array_of(self)), self.dtype)


def parts_of(array: Array) -> tuple[Array, tuple[int, ...]]:
    """An array as it lies in memory, and how its axes are turned then. Pickle would lose that of one that is turned,
    and sums of another order in memory have other last bits."""
    order = np.argsort([-abs(stride) for stride in array.strides], kind="stable")
    return array.transpose(order), tuple(int(axis) for axis in np.argsort(order))


def tensor_of_parts(array: Array, axes: tuple[int, ...], dtype: ir.DataType) -> ir.TensorProtocol:
    """The tensor of an array that `parts_of` took apart."""
    return ir.Tensor(array.transpose(axes), dtype)


class _Renamed(Computed):
    """Another tensor under a name of its own."""

    def __init__(self, tensor: ir.TensorProtocol, name: str | None) -> None:
        super().__init__(lambda: tensor, tensor.dtype, ir.Shape(shape_of(tensor)), name=name)

    def __reduce__(self) -> tuple[Any, ...]:
        return renamed, (self.raw(), self.name)


def deferred(compute: Callable[[], Array], dtype: npt.DTypeLike, shape: tuple[int, ...]) -> ir.TensorProtocol:
    """A tensor with the data that `compute` returns: at once when it is small, else whenever the data is asked for.

    `compute` must give the same array of `dtype` and `shape` each time, so it may refer to tensors and to arrays that
    nobody changes, and not to values of a graph.
    """
    dtype = np.dtype(dtype)
    if math.prod(shape) * dtype.itemsize <= _SMALL:
        return ir.Tensor(np.array(compute(), dtype, order="C"))
    kind = ir.DataType.from_numpy(dtype)
    return Computed(lambda: ir.Tensor(np.asarray(compute(), dtype)), kind, ir.Shape(shape))


def renamed(tensor: ir.TensorProtocol, name: str | None) -> ir.TensorProtocol:
    """A tensor of the same data called `name`; the data is neither read nor copied."""
    if tensor.name == name:
        return tensor
    if isinstance(tensor, ir.ExternalTensor | ir.LazyTensor):
        return _Renamed(tensor, name)
    return ir.Tensor(array_of(tensor), dtype=tensor.dtype, name=name)


def original(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    """The tensor that may have been renamed: what has the same original has the same data."""
    while isinstance(tensor, _Renamed):
        tensor = tensor.raw()
    return tensor


def shape_of(tensor: ir.TensorProtocol) -> tuple[int, ...]:
    """The shape of a tensor in a file, whose dimensions are numbers."""
    return tuple(int(n) for n in tensor.shape.numpy())
