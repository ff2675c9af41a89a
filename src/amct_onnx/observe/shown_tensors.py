"""Who reads the tensors that a session shows: each node `Show` has the number of an object of this process."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

from amct_onnx.numerics.arrays import Floats
from amct_onnx.numerics.statistics.accumulator import CompiledAccumulator


class Reader(Protocol):
    """Is shown tensors in the thread that runs the session, where that has one run at a time."""

    def add(self, x: Floats) -> None:
        """Read `x`, which is valid during the call only. Raises no `Exception`: nothing would come of it."""


_running: dict[int, Reader] = {}
# The addresses of those that `_operators.c` may add to without Python.
addresses: dict[int, int] = {}
_numbers = itertools.count(1)


@contextmanager
def showing(readers: Mapping[str, Reader]) -> Iterator[dict[str, int]]:
    """The number of each reader: nodes of these numbers show it their tensors while the block runs.

    A session that has such nodes must not run after the block.
    """
    numbers = {name: next(_numbers) for name in readers}
    for name, reader in readers.items():
        _running[numbers[name]] = reader
        if isinstance(reader, CompiledAccumulator):
            addresses[numbers[name]] = reader.address
    try:
        yield numbers
    finally:
        for number in numbers.values():
            _running.pop(number)
            addresses.pop(number, None)


def show(x: Floats, attributes: Mapping[str, Any]) -> None:
    """Body of the operator where it is not counted in C; a number that is not in use is ignored."""
    reader = _running.get(int(attributes["input_index"]))
    if reader is not None:
        reader.add(x)
