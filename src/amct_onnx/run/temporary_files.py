"""Where a large temporary file goes."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from amct_onnx.errors import OutputError


def place_with_room(needed: int, path: Path) -> Path:
    """A folder for a temporary file of `needed` bytes: the system's, or that of the model `path` if it has more room.

    Raises OutputError if neither has the room.
    """
    places = [Path(tempfile.gettempdir()), path.resolve().parent]
    free = {place: shutil.disk_usage(place).free for place in places if os.access(place, os.W_OK)}
    for place, room in free.items():
        if room > needed:
            return place
    raise OutputError(
        f"Running {path} takes a temporary file of {needed / 1e9:.2f} GB, and neither {places[0]} nor {places[1]} has "
        "the room: free some, or name another folder in the environment variable TMPDIR."
    )
