"""Gives memory that is free inside of this process back to the system."""

from __future__ import annotations

import ctypes
from contextlib import suppress


def give_back() -> None:
    """Let the C library return what it keeps for later, where it can (glibc).

    Arrays of megabytes that threads make and drop stay with it otherwise: a process that has rounded a large model
    would hold twice as much as it uses, while the next session asks for more.
    """
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
