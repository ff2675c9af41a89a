"""Reads and writes files as a whole, and collects all mistakes of one file for one error.

A result is written under a temporary name in its own folder and then moved into place, so nobody ever sees half of it.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amct_onnx.errors import AmctError, ConfigError, FileMissingError, OutputError

FILE_MODE = 0o640
DIR_MODE = 0o750
_ADVICE = "check that the folder is writable and the disk is not full"


@dataclass(frozen=True, order=True, kw_only=True)
class Position:
    """A place in a text; the first character of a file is line 1, column 1."""

    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.line}:{self.column}"


@dataclass(frozen=True)
class Mistake:
    """One mistake of a document."""

    where: str
    """The path in the document, "" for the whole document."""
    what: str
    is_type: bool = False
    """Whether a value has the wrong type."""
    position: Position | None = None
    """The place in the text, if `where` does not say it."""

    def __str__(self) -> str:
        return f"{self.where}: {self.what}" if self.where else self.what


class Mistakes:
    """The mistakes that were found so far in one document. `file` is None for the arguments of a call.

    `locate` gives the position of a path in the document. It is called only if there are mistakes.
    """

    def __init__(
        self, file: str | os.PathLike[str] | None, locate: Callable[[str], Position | None] | None = None
    ) -> None:
        self._file = None if file is None else os.fspath(file)
        self._locate = locate
        self._found: dict[Mistake, None] = {}  # one setting for many layers is one mistake

    def __bool__(self) -> bool:
        return bool(self._found)

    def __iter__(self) -> Iterator[Mistake]:
        return iter(self._found)

    def add(self, where: str, what: str, *, is_type: bool = False, position: Position | None = None) -> None:
        self._found[Mistake(where, what, is_type, position)] = None

    def raise_any(self, error: type[AmctError]) -> None:
        """Raise `error` with all mistakes, if there are some."""
        if self:
            raise error(str(self))

    def place(self, where: str, position: Position | None = None) -> str:
        """`file:line:column` of a path in the document, or those parts of it that are known."""
        if position is None and self._locate is not None:
            position = self._locate(where)
        return ":".join(str(part) for part in (self._file, position) if part is not None)

    def __str__(self) -> str:
        """The text of an error: one line for one mistake; for several, a headline and a line for each.

        The mistakes are in the order of the file. If their positions are known, each line begins with file and
        position.
        """
        mistakes = sorted(self._found, key=self._order)
        if len(mistakes) == 1:
            return self._line(mistakes[0])
        headline = f"{len(mistakes)} mistakes" if self._file is None else f"{self._file}: {len(mistakes)} mistakes"
        lines = [str(mistake) if self._locate is None else self._line(mistake) for mistake in mistakes]
        return "\n  ".join([headline, *lines])

    def _line(self, mistake: Mistake) -> str:
        place = self.place(mistake.where, mistake.position)
        return f"{place}: {mistake}" if place else str(mistake)

    def _order(self, mistake: Mistake) -> Position:
        found = mistake.position or (self._locate(mistake.where) if self._locate is not None else None)
        return found or Position(line=0, column=0)


def read_text(path: str | os.PathLike[str], *, error: type[AmctError] = ConfigError, what: str = "file") -> str:
    """The text of a UTF-8 file, without a byte order mark and with "\\n" at the end of each line.

    Raises FileMissingError, or `error` for a file that exists and cannot be read as text. `what` names the kind of file
    in the message.
    """
    name = os.fspath(path)
    try:
        data = Path(name).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise FileMissingError(f"{name}: the {what} does not exist, check the path") from None
    except IsADirectoryError:
        raise error(f"{name}: is a folder, give the path of the {what}") from None
    except (OSError, ValueError) as reason:  # ValueError: a NUL byte in the path
        raise error(f"{name}: the {what} cannot be read ({system_reason(reason)})") from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as reason:
        line = data.count(b"\n", 0, reason.start) + 1
        raise error(f"{name}:{line}: the {what} is no UTF-8 text; is it the right file?") from None
    return text.replace("\r\n", "\n")


def read_json(
    path: str | os.PathLike[str], *, what: str, advice: str, hook: Callable[[list[tuple[str, Any]]], Any] | None = None
) -> Any:
    """The document in a JSON file, whose objects `hook` makes of their pairs.

    Raises what `read_text` raises, and ConfigError, with line and column and `advice`, for what is no JSON.
    """
    text, name = read_text(path, what=what), os.fspath(path)
    try:
        return json.loads(text, object_pairs_hook=hook)
    except json.JSONDecodeError as reason:
        raise ConfigError(f"{name}:{reason.lineno}:{reason.colno}: no JSON: {reason.msg}; {advice}") from None
    except (ValueError, RecursionError) as reason:  # an integer of thousands of digits, absurd nesting
        raise ConfigError(f"{name}: no JSON that can be read: {reason}; {advice}") from None


def write_atomic(path: str | os.PathLike[str], data: bytes | str) -> None:
    """Write a whole file or nothing. Missing folders are made. Raises OutputError."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data.encode("utf-8") if isinstance(data, str) else data)


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path with the suffix of `path`, for the block to write. The file is moved to `path` after the block.

    If the block fails, the file is removed. Raises OutputError for whatever the system refuses, also while the block
    writes. Other exceptions of the block pass unchanged.
    """
    name = os.fspath(path)
    temporary: Path | None = None
    try:
        # A link stays a link: its target is replaced, as a plain open(path, "w") would do.
        target = Path(os.path.realpath(name))
        _check_kind(target, name)
        make_folder(target.parent)
        handle, made = tempfile.mkstemp(prefix=".amct-", suffix=target.suffix, dir=target.parent)
        os.close(handle)
        temporary = Path(made)
        yield temporary
        temporary.chmod(FILE_MODE)
        os.replace(temporary, target)
        temporary = None
    except OutputError:
        raise
    except OSError as reason:
        raise OutputError(f"{name}: cannot be written ({system_reason(reason)}); {_ADVICE}") from reason
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def check_writable(*paths: str | os.PathLike[str]) -> None:
    """Raise OutputError where a file could not be written, before the work begins that makes it.

    Nothing is made. What the system says only while it writes, as a full disk, is not found out.
    """
    for path in paths:
        name = os.fspath(path)
        try:
            target = Path(os.path.realpath(name))
            _check_kind(target, name)
            folder = target.parent
            while not os.path.lexists(folder) and folder != folder.parent:
                folder = folder.parent
            if not folder.is_dir():
                what = f"{folder} is a file and no folder" if folder.exists() else f"there is no {folder}"
                raise OutputError(f"{name}: cannot be written, {what}; give another path")
            for part in target.relative_to(folder).parts:
                with contextlib.suppress(FileNotFoundError):
                    os.lstat(folder / part)  # refuses what is too long for a name
            with tempfile.TemporaryFile(prefix=".amct-", dir=folder):
                pass
        except (OSError, ValueError) as reason:
            if isinstance(reason, OutputError):
                raise
            raise OutputError(f"{name}: cannot be written ({system_reason(reason)}); {_ADVICE}") from None


def _check_kind(target: Path, name: str) -> None:
    """Raise OutputError where something stands in the place of the file `target` that is none."""
    if target.exists() and not target.is_file():
        kind = "a folder" if target.is_dir() else "not a regular file"
        raise OutputError(f"{name}: cannot be written, it is {kind}; give another path")


def make_folder(folder: Path) -> None:
    """Make a folder and its parents with mode 0750. (pathlib would give the mode to the last folder only.)"""
    missing: list[Path] = []
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    for new in reversed(missing):
        new.mkdir(mode=DIR_MODE, exist_ok=True)


def system_reason(error: Exception) -> str:
    """What the system says of a file that cannot be read or written."""
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
