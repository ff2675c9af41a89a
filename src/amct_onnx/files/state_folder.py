"""A folder in which long work keeps what is done, so that the same call goes on where an earlier one was stopped.

It holds `state.json`, which says what the work is of, and a file for each part that is done: counts of tensors (.npz)
and other findings (.json). Each is written whole or not at all, by whoever has done that part.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from amct_onnx.errors import StateError
from amct_onnx.files.archive import writing_archive
from amct_onnx.files.statistics_file import histogram_arrays, read_histograms
from amct_onnx.files.whole_files import make_folder, system_reason, write_atomic
from amct_onnx.numerics.arrays import Array
from amct_onnx.values.counts import Counts
from amct_onnx.values.skipped_data import SkippedData
from amct_onnx.words import given

SCHEMA = 1
_FACTS, _LOCK = "state.json", ".lock"
_LEFT = ".amct-*"  # what a process that was killed had begun to write


class NoState:
    """Keeps nothing: all that is asked for is made."""

    def confirm(self, what: str, digest: str) -> None:
        """Nothing was there before."""

    def recalled(self, key: str, make: Callable[[], Any]) -> Any:
        return make()

    def recalled_arrays(self, key: str, make: Callable[[], Mapping[str, Array]]) -> Mapping[str, Array]:
        return make()


@dataclass(frozen=True, kw_only=True)
class StateFolder:
    """The state of one call in the folder `path`. It can be sent to others, who see the same folder."""

    path: str

    @classmethod
    @contextlib.contextmanager
    def opened(cls, path: str | os.PathLike[str], facts: Mapping[str, str]) -> Iterator[StateFolder]:
        """The state in this folder, which is new or of the same work, and belongs to this call while the block runs.
        facts: what the work is of, a text for each.

        Raises StateError for the state of other work, naming the difference, for a folder that holds something else,
        and where another call works with it; OutputError where it cannot be written.
        """
        folder, document = Path(path), {"schema": SCHEMA, **facts}
        with contextlib.ExitStack() as stack:
            try:
                if folder.exists() and not (folder / _FACTS).exists() and not _only_begun(folder):
                    raise StateError(f"{given('state', os.fspath(path))} holds something else: give a new folder.")
                make_folder(folder)
                with contextlib.suppress(NotImplementedError):  # a file system without locks has the state all the same
                    stack.enter_context(FileLock(folder / _LOCK, timeout=0))
                for left in folder.glob(_LEFT):
                    left.unlink(missing_ok=True)
            except Timeout:
                raise StateError(
                    f"{given('state', os.fspath(path))}: another call works with this folder now: wait until it has "
                    "ended, or give another folder."
                ) from None
            except OSError as reason:
                text = f"{given('state', os.fspath(path))} cannot be used ({system_reason(reason)})."
                raise StateError(text) from None
            if (folder / _FACTS).exists():
                _compare(folder, document)
            else:
                write_atomic(folder / _FACTS, json.dumps(document, indent=2, ensure_ascii=False) + "\n")
            yield cls(path=os.path.abspath(path))

    def recalled(self, key: str, make: Callable[[], Any]) -> Any:
        """What `make` gives, a JSON document that is kept; it is not called where an earlier call has kept one."""
        file = self._file(key, "json")
        with contextlib.suppress(FileNotFoundError):
            try:
                return json.loads(file.read_text(encoding="utf-8"))
            except (OSError, ValueError) as reason:
                if isinstance(reason, FileNotFoundError):
                    raise
                raise self._damaged(file, reason) from None
        made = make()
        write_atomic(file, json.dumps(made))
        return made

    def confirm(self, what: str, digest: str) -> None:
        """Raise StateError where an earlier call had another digest of `what`, as some samples."""
        if self.recalled(f"digest of {what}", lambda: digest) != digest:
            raise StateError(
                f"{self.path}: holds the state of another run: {what} were others. Give another folder, or delete it."
            )

    def recalled_arrays(self, key: str, make: Callable[[], Mapping[str, Array]]) -> Mapping[str, Array]:
        """The same for arrays of numbers and texts by name."""
        file = self._file(key, "npz")
        if file.exists():
            return self._read(file)
        made = make()
        with writing_archive(file) as write:
            for name, array in made.items():
                write(name, array)
        return made

    def load_counts(self, key: str) -> Counts | None:
        """What `save_counts` has kept for this part; None if that is nothing. Raises StateError for a damaged file."""
        file = self._file(key, "npz")
        if not file.exists():
            return None
        try:
            with np.load(file, allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive.files}
            return Counts(
                tensors=read_histograms(arrays),
                feeds=int(arrays["feeds"]),
                samples=int(arrays["samples"]),
                skipped=SkippedData.of_dict(json.loads(str(arrays["skipped"]))),
            )
        except Exception as reason:  # damaged bytes make zipfile and numpy raise almost anything
            raise self._damaged(file, reason) from None

    def save_counts(self, key: str, counts: Counts) -> None:
        """Keep what is counted of a part so far, in the place of what was kept of it before. Raises OutputError."""
        with writing_archive(self._file(key, "npz")) as write:
            write("feeds", np.array(counts.feeds))
            write("samples", np.array(counts.samples))
            write("skipped", np.array(json.dumps(counts.skipped.to_dict())))
            for name, array in histogram_arrays(counts.tensors).items():
                small = name == "counts"  # they take fewer bytes than 8
                write(name, array.astype(np.min_scalar_type(array.max(initial=0))) if small else array)

    def _file(self, key: str, suffix: str) -> Path:
        name = hashlib.blake2b(key.encode(), digest_size=12).hexdigest()
        return Path(self.path) / f"{name}.{suffix}"

    def _read(self, file: Path) -> dict[str, Array]:
        try:
            with np.load(file, allow_pickle=False) as archive:
                return {name: archive[name] for name in archive.files}
        except Exception as reason:  # damaged bytes make zipfile and numpy raise almost anything
            raise self._damaged(file, reason) from None

    def _damaged(self, file: Path, reason: object) -> StateError:
        return StateError(f"{file}: the file of state is damaged ({reason}): delete it, and this part is done again.")


def _only_begun(folder: Path) -> bool:
    """Whether a folder without facts has nothing but what a call leaves that was killed before it had written them."""
    return folder.is_dir() and all(one.name == _LOCK or one.match(_LEFT) for one in folder.iterdir())


State = StateFolder | NoState
NO_STATE = NoState()


def _compare(folder: Path, document: Mapping[str, Any]) -> None:
    """Raise StateError where the folder has the state of something else."""
    file = folder / _FACTS
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
        differences = [key for key in {**document, **kept} if kept.get(key) != document.get(key)]
    except (OSError, ValueError, AttributeError, TypeError) as reason:
        raise StateError(f"{file}: is no state of a run ({reason}): give another folder.") from None
    if differences:
        key = differences[0]
        text = f"{key} was {kept.get(key, 'not said')} and is {document.get(key, 'not said')}"
        more = f" ({', '.join(differences[1:])} differ as well)" if differences[1:] else ""
        raise StateError(f"{folder}: holds the state of another run: {text}{more}. Give another folder, or delete it.")
