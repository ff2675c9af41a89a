"""The tensors that are counted in this process: what a node `Tally` shows goes to the tally of its number."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from amct_onnx.core.stats.tally import CompiledTally, Tally, new_tally

_running: dict[int, Tally | CompiledTally] = {}
# The addresses of those that `_observer.c` may add to without Python.
addresses: dict[int, int] = {}
_numbers = itertools.count(1)


@contextmanager
def tallying(names: Sequence[str], parts: int) -> Iterator[dict[str, tuple[int, Tally | CompiledTally]]]:
    """A new tally, with its number, for each name; nodes of these numbers fill them while the block runs.

    A session that has such nodes must be gone when the block ends. `parts` threads, 1 to 16, fill a tally at a time.
    """
    tallies = {name: (next(_numbers), new_tally(parts)) for name in names}
    _running.update(tallies.values())
    addresses.update((number, tally.address) for number, tally in tallies.values() if isinstance(tally, CompiledTally))
    try:
        yield tallies
    finally:
        for number, _ in tallies.values():
            _running.pop(number)
            addresses.pop(number, None)


def show(x: npt.NDArray[np.float32], attributes: Mapping[str, Any]) -> None:
    """Body of the operator where it is not counted in C; a number that is not in use is ignored."""
    tally = _running.get(int(attributes["input_index"]))
    if tally is not None:
        tally.add(x)
