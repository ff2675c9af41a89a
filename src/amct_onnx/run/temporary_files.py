"""Where a large temporary file goes."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from amct_onnx.errors import OutputError


def temporary_folder(needed: int, path: Path) -> tempfile.TemporaryDirectory[str]:
    """A new folder for `needed` bytes: where the system has those, or beside the model `path` if that has more room.

    Where an open file cannot be deleted the folder is left to the system. Raises OutputError if neither has the room.
    """
    places = [Path(tempfile.gettempdir()), path.resolve().parent]
    free = {place: shutil.disk_usage(place).free for place in places if os.access(place, os.W_OK)}
    for place, room in free.items():
        if room > needed:
            return tempfile.TemporaryDirectory(prefix="amct_onnx_", dir=place, ignore_cleanup_errors=True)
    raise OutputError(
        f"Running {path} takes a temporary file of {needed / 1e9:.2f} GB, and neither {places[0]} nor {places[1]} has "
        "the room: free some, or name another folder in the environment variable TMPDIR."
    )
