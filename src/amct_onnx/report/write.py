"""`write_report` and `save_run`: a report as one HTML file, and the run file from which one can be made later."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from amct_onnx.errors import AmctError, ArgumentTypeError, RunFileError
from amct_onnx.files.onnx_file import model_bytes
from amct_onnx.files.run_file import damaged, find_run, read_run, run_path, write_run
from amct_onnx.files.whole_files import write_atomic
from amct_onnx.progress import Progress, progress_of
from amct_onnx.ptq.quantized_model import QuantizedModel, SavedModel
from amct_onnx.report.gather import gather
from amct_onnx.report.render import render
from amct_onnx.report.run_data import SCHEMA, RunData, run_of, to_document
from amct_onnx.run.temporary_files import temporary_folder
from amct_onnx.targets.table import TARGETS

Run = QuantizedModel | str | os.PathLike[str]


def write_report(
    result: Run,
    path: str | os.PathLike[str] = "report.html",
    *,
    beside: Run | None = None,
    saved: SavedModel | None = None,
    progress: Progress | bool | None = None,
) -> str:
    """Write a report as one HTML file, which needs no network and no other file; its path.

    result: what `quantize` gave; or the path of a run file (`save_run`, `amct_onnx quantize`), or the prefix it has.
    path: of the page. beside: a second run, shown side by side with the first. saved: what `result.save` gave; without
        it the model is saved to a temporary folder, to see its size, its kernels and its speed.
    progress: called with what is being done and the share of it that is. None shows a bar on a terminal and in a
        notebook, and nothing elsewhere; False shows none.

    Looking at the layers of a `QuantizedModel` takes some seconds, with the few samples that it has kept. What cannot
    be measured is missing on the page, which says why.

    Raises ArgumentTypeError, FileMissingError, RunFileError, OutputError.
    """
    told = progress_of(progress)
    opened = [_opened(result, saved, told)] + ([] if beside is None else [_opened(beside, None, told)])
    names = _told_apart([name for name, _ in opened])
    write_atomic(path, render([run for _, run in opened], names))
    return os.fspath(path)


def save_run(
    result: QuantizedModel,
    prefix: str | os.PathLike[str],
    *,
    saved: SavedModel | None = None,
    progress: Progress | bool | None = None,
) -> str:
    """Write the run file `<prefix>_<target>_run.json`, from which `write_report` and `amct_onnx report` make a page
    later, without the data; its path.

    result, saved, progress: as for `write_report`. Raises ArgumentTypeError, OutputError.
    """
    _check(result)
    path = run_path(prefix, result.target)
    write_run(path, to_document(_gathered(result, saved, progress_of(progress))))
    return path


def load_run(word: str | os.PathLike[str]) -> tuple[str, RunData]:
    """The path and the data of the run file that `word` means, as `find_run` understands it.

    Raises FileMissingError, RunFileError.
    """
    path = find_run(word)
    document = read_run(path)
    if document["schema"] != SCHEMA:
        text = f"has the layout {document['schema']}, and this version of amct_onnx reads {SCHEMA}"
        raise RunFileError(f"{path} {text}: quantize again.")
    try:
        return path, run_of(document)
    except ValueError as error:
        raise damaged(path, error) from None


def _opened(one: Run, saved: SavedModel | None, progress: Progress) -> tuple[str, RunData]:
    """The data of a run, and what the reader calls it."""
    if isinstance(one, str | os.PathLike):
        path, run = load_run(one)
        return Path(path).name.removesuffix("_run.json"), run
    _check(one)
    run = _gathered(one, saved, progress)
    return run.model.name.removesuffix(".onnx"), run


def _check(result: object) -> None:
    if not isinstance(result, QuantizedModel):
        raise ArgumentTypeError(
            f"A report is made of what quantize returned or of the path of a run, got {type(result).__name__}."
        )


def _told_apart(names: Sequence[str]) -> list[str]:
    if len(set(names)) == len(names):
        return list(names)
    return [f"{name} ({letter})" for name, letter in zip(names, "AB", strict=True)]


def _gathered(result: QuantizedModel, saved: SavedModel | None, progress: Progress) -> RunData:
    if saved is not None or not TARGETS[result.target].runs_here:
        return gather(result, saved, progress=progress)
    size = model_bytes(result.calibration.source.model)
    try:
        with temporary_folder(2 * size, Path("report")) as folder:
            return gather(result, result.save(os.path.join(folder, "model")), progress=progress)
    except AmctError:  # no disk has room for the model: the report does without its kernels
        return gather(result, progress=progress)
