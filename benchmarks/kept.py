"""What an earlier run found of peers: `make accuracy ARGS="--keep FOLDER"` need not quantize and test them again."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

from beside_peers import Entry, Run
from tasks import Tally

_ABOUT = "about.json"
_RUN = "run.json"
_MODEL = "model.onnx"


def digest(path: Path) -> str:
    """SHA-256 of the bytes of a file."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            found.update(block)
    return found.hexdigest()


class Kept:
    """A folder with one subfolder for each run of a peer: what it was made of, its model, its seconds, its tallies.

    A run that failed is kept as well; who wants it tried again deletes its subfolder. Tallies are pickles: the folder
    must be one that only these runs write to.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def holds(self, model: Path) -> bool:
        """Whether the model is in the folder."""
        return model.is_relative_to(self._folder)

    def run(self, entry: Entry, inputs: dict[str, str], make: Callable[[], Run]) -> Run:
        """The run of `entry` that is here for the same `inputs`; else that of `make`, whose model moves here.

        `inputs` says what the result depends on besides the setting: version, model, calibration data, machine.
        """
        about = {"side": entry.side.name, "scheme": entry.scheme.name, **inputs}
        text = json.dumps(about, indent=1, sort_keys=True)
        place = self._folder / hashlib.sha256(text.encode()).hexdigest()[:16]
        if (place / _RUN).is_file():
            stored = json.loads((place / _RUN).read_text(encoding="utf-8"))
            return Run(**stored, model=place / _MODEL if stored["problem"] is None else None, kept=True)
        found = make()
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        (place / _ABOUT).write_text(text, encoding="utf-8")
        if found.model is not None:
            shutil.move(found.model, place / _MODEL)
            found = replace(found, model=place / _MODEL)
        numbers = {name: value for name, value in asdict(found).items() if name in ("seconds", "peak", "problem")}
        # Last, and not in one go with the model: what has no such file is of a run that was stopped.
        (place / _RUN).write_text(json.dumps(numbers), encoding="utf-8")
        return found

    def tally(self, model: Path, test: str, make: Callable[[], Tally]) -> Tally:
        """What that model of this folder adds up to in `test`: as stored beside it, else as `make` finds."""
        place = model.parent / f"tally_{test[:16]}.pickle"
        if place.is_file():
            stored = pickle.loads(place.read_bytes())
            if isinstance(stored, Tally):
                return stored
        found = make()
        unfinished = place.with_suffix(".part")
        unfinished.write_bytes(pickle.dumps(found))
        unfinished.replace(place)
        return found
