"""What processes tell each other: pickled values in a stream of bytes, and large ones in a file that all map."""

from __future__ import annotations

import mmap
import pickle
from pathlib import Path
from typing import IO, Any

_LENGTH = 8  # bytes in front of each part
_ALIGNED = 64  # bytes: where arrays begin in a file


def send(stream: IO[bytes], data: bytes) -> None:
    """Write a message, which `receive` reads at the other end."""
    stream.write(len(data).to_bytes(_LENGTH, "little"))
    stream.write(data)
    stream.flush()


def receive(stream: IO[bytes]) -> bytes:
    """The next message. Raises EOFError where the other end is gone, also in the middle of a message."""
    return _exactly(stream, int.from_bytes(_exactly(stream, _LENGTH), "little"))


def _exactly(stream: IO[bytes], count: int) -> bytes:
    data = stream.read(count)
    if len(data) < count:
        raise EOFError
    return data


def dump(value: Any, path: Path) -> None:
    """Pickle `value` into a file; its arrays follow as they are, so that `load` need not copy them.

    Raises what pickle raises, for a value that cannot be pickled.
    """
    arrays: list[pickle.PickleBuffer] = []
    head = pickle.dumps(value, protocol=5, buffer_callback=arrays.append)
    sizes = [array.raw().nbytes for array in arrays]
    with path.open("wb") as file:
        send(file, pickle.dumps(sizes))
        send(file, head)
        for array in arrays:
            file.write(bytes(-file.tell() % _ALIGNED))
            file.write(array.raw())


def load(path: Path) -> Any:
    """The value in a file of `dump`. Its arrays are read-only, and in memory as far as somebody reads them."""
    with path.open("rb") as file:
        sizes, head, place = pickle.loads(receive(file)), receive(file), file.tell()
        mapped = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    arrays = []
    for size in sizes:
        place += -place % _ALIGNED
        arrays.append(mapped[place : place + size])
        place += size
    return pickle.loads(head, buffers=arrays)
