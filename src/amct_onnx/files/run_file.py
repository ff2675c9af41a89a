"""Reads and writes run files, `<prefix>_<target>_run.json`: what `quantize` did, for a report that needs no data.

A run file is one JSON object, of which `report/run_data.py` says what it holds; "schema" is the version of its layout.
"""

from __future__ import annotations

import glob
import json
import os
from pathlib import Path
from typing import Any

from amct_onnx.errors import FileMissingError, RunFileError, listed, one_line
from amct_onnx.files.whole_files import system_reason, write_atomic

ENDING = "_run.json"
_SUFFIX = ".onnx"


def run_path(prefix: str | os.PathLike[str], target: str) -> str:
    """The path of the run file beside the files that are saved under `prefix` for a target."""
    folder, stem = os.path.split(os.fspath(prefix))
    return os.path.join(folder, f"{stem}_{target}{ENDING}" if stem else f"{target}{ENDING}")


def write_run(path: str | os.PathLike[str], document: Any) -> None:
    """Write a run, whole or not at all; equal ones give equal bytes. Raises OutputError."""
    text = json.dumps(document, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    write_atomic(path, text + "\n")


def find_run(word: str | os.PathLike[str]) -> str:
    """The path of the run file that is meant: the file itself, the prefix that its model was saved under, the model, or
    the folder that it is in. Raises FileMissingError where there is none, RunFileError where there are several."""
    name = os.fspath(word)
    if os.path.isfile(name) and not name.endswith(_SUFFIX):
        return name
    stem = name.removesuffix(_SUFFIX)
    patterns = [os.path.join(glob.escape(name), f"*{ENDING}")] if os.path.isdir(name) else []
    patterns += [f"{glob.escape(stem)}{ENDING}", f"{glob.escape(stem)}_*{ENDING}"]
    found = sorted({path for pattern in patterns for path in glob.glob(pattern) if os.path.isfile(path)})
    if len(found) == 1:
        return found[0]
    if found:
        raise RunFileError(f"{name} has several runs, {listed(found, 3)}: name one of them.")
    raise FileMissingError(
        f"{name} has no run file ({stem}_<target>{ENDING}): give the prefix that amct_onnx quantize saved under "
        "(--save_path), or quantize again."
    )


def read_run(path: str | os.PathLike[str]) -> Any:
    """The JSON object in a run file, not yet checked. Raises FileMissingError, RunFileError."""
    name = os.fspath(path)
    try:
        document = json.loads(Path(name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileMissingError(f"The run file {name} does not exist: check the path.") from None
    except OSError as error:
        raise RunFileError(f"{name} cannot be read ({system_reason(error)}).") from None
    except (ValueError, RecursionError) as error:
        raise damaged(name, error) from None
    if not isinstance(document, dict) or "schema" not in document:
        raise RunFileError(f"{name} is no run file: give one that amct_onnx quantize wrote, it ends with {ENDING}.")
    return document


def damaged(name: str, error: Exception) -> RunFileError:
    """The error for a run file that holds something else than it should."""
    return RunFileError(f"{name}: the run file is damaged ({one_line(error)}), quantize again.")
