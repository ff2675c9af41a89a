"""Reads a file of jobs: `[defaults]`, `[[job]]` tables, and lists and patterns that multiply to jobs.

Paths are those of the file's folder. All mistakes are told at once, each with the job and the key.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from amct_onnx.errors import AmctError, ArgumentTypeError, ConfigError, did_you_mean
from amct_onnx.files.toml_file import read_toml
from amct_onnx.files.whole_files import Mistakes
from amct_onnx.ptq.options import QuantizeOptions
from amct_onnx.targets.target import without_suffix
from amct_onnx.tools.batch.job import Data, Job, is_local
from amct_onnx.tools.batch.option_values import OPTIONS, first_error, images_of, known_as
from amct_onnx.tools.batch.record import recorded_files

JobSource = str | os.PathLike[str] | Mapping[str, Any]
_OWN: Mapping[str, str] = {
    "name": "a text",
    "model": "a path or a list of paths, which may be patterns",
    "data": "a path, a list of paths, or a table with them by input",
    "save_path": "a path and a prefix",
    "report": "true or false",
    "state": "true or false",
    "target": "a name or a list of names",
    "evaluator": "the path of a Python script",
}
_PLACES = re.compile(r"\{(\w*)\}")
_MAGIC = re.compile(r"[*?\[]")


@dataclass(frozen=True, kw_only=True)
class JobFile:
    """All jobs of a file. name: what messages call it. stem: the path without its suffix, which names what a batch
    writes for all of them. mistakes: what is wrong with the file, which more may be added to."""

    name: str
    stem: str
    jobs: tuple[Job, ...]
    mistakes: Mistakes


def read_jobs(source: JobSource) -> JobFile:
    """The jobs of a file, or of a mapping of the same layout, whose paths are those of the working directory.

    Raises FileMissingError, ConfigError for what is no TOML, ArgumentTypeError.
    """
    if isinstance(source, Mapping):
        return _Reader("jobs", "").read(_as_toml(source), "batch")
    if not isinstance(source, str | os.PathLike):
        raise ArgumentTypeError(f"jobs must be the path of a TOML file or a mapping, got {type(source).__name__}")
    name = os.fspath(source)
    document = read_toml(name, what="file of jobs")
    return _Reader(name, os.path.dirname(name)).read(document, os.path.splitext(name)[0])


def _as_toml(value: Any) -> Any:
    """A value of Python as a file would have it: lists for tuples, texts for paths."""
    if isinstance(value, Mapping):
        return {key: _as_toml(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_as_toml(item) for item in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value


class _Reader:
    def __init__(self, name: str, folder: str) -> None:
        self._name, self._folder, self._mistakes = name, folder, Mistakes(name)

    def read(self, document: Mapping[str, Any], stem: str) -> JobFile:
        for key in document:
            if key not in ("defaults", "job"):
                hint = did_you_mean(key, ("defaults", "job"), "a file of jobs has [defaults] and [[job]]")
                self._mistakes.add("", f"{key!r} is unknown: {hint}")
        defaults, tables = document.get("defaults", {}), document.get("job", [])
        if not isinstance(defaults, Mapping):
            self._mistakes.add("defaults", "is no table: write [defaults], and the options below it")
            defaults = {}
        if not isinstance(tables, Sequence) or not all(isinstance(table, Mapping) for table in tables):
            self._mistakes.add("job", "is no list of tables: write [[job]] above each")
            tables = []
        elif not tables:
            self._mistakes.add("", "has no job: write [[job]] and its model below")
        if "name" in defaults:
            self._mistakes.add("defaults", "name is for one job: write it below [[job]]")
        common = self._checked("defaults", {key: value for key, value in defaults.items() if key != "name"})
        jobs = [job for number, table in enumerate(tables, 1) for job in self._jobs(number, table, common)]
        return JobFile(name=self._name, stem=stem, jobs=_without_results(jobs), mistakes=self._mistakes)

    def _checked(self, where: str, table: Mapping[str, Any]) -> dict[str, Any]:
        """The values of a table that can be used; what is wrong with the others is a mistake."""
        values = {}
        for key, value in table.items():
            problem = "" if value == "" else _problem(key, value)
            if problem:
                self._mistakes.add(where, problem)
            else:
                values[key] = value
        return values

    def _jobs(self, number: int, table: Mapping[str, Any], defaults: Mapping[str, Any]) -> list[Job]:
        """The jobs that one table asks for."""
        name = table.get("name")
        where = f'job {number} "{name}"' if isinstance(name, str) and name else f"job {number}"
        own = self._checked(where, table)
        complete = len(own) == len(table)
        # An empty text takes away what the defaults say.
        values = {key: value for key, value in {**defaults, **own}.items() if value != ""}
        for key in ("model", "save_path"):
            if key not in values and (complete or key not in table):
                self._mistakes.add(where, f"{key} is missing")
        if not complete or "model" not in values or "save_path" not in values:
            return []
        models = [found for word in _listed(values["model"]) for found in self._models(where, word)]
        targets = list(dict.fromkeys(_listed(values.get("target", QuantizeOptions.target))))
        options = self._options(where, values)
        made = []
        for model in dict.fromkeys(models):
            stem = without_suffix(os.path.basename(model))
            title = stem if name in (None, "") else name if len(models) == 1 else f"{name} {stem}"
            for target in targets:
                places = {"name": name or stem, "model": stem, "target": target}
                made.append(
                    Job(
                        where=where,
                        name=title,
                        model=model,
                        target=target,
                        data=self._data(values.get("data")),
                        prefix=self._prefix(where, values["save_path"], places),
                        options=options,
                        evaluator=self._path(values["evaluator"]) if "evaluator" in values else "",
                        report=values.get("report", True),
                        state=values.get("state", True),
                    )
                )
        return made

    def _models(self, where: str, word: str) -> list[str]:
        path = self._path(word)
        if os.path.isfile(path):
            return [path]
        if not _MAGIC.search(word):
            self._mistakes.add(where, f"model: {path} does not exist")
            return []
        found = [match for match in sorted(glob.glob(path, recursive=True)) if os.path.isfile(match)]
        results = {file for folder in set(map(os.path.dirname, found)) for file in recorded_files(folder)}
        found = [match for match in found if os.path.realpath(match) not in results]
        if not found:
            self._mistakes.add(where, f"model: no file is like {path}")
        return found

    def _options(self, where: str, values: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of `quantize`, with paths of the file's folder."""
        options = {}
        for key, value in values.items():
            if key in _OWN:
                continue
            options[key] = value
            try:
                if key == "images":
                    options[key] = images_of(value, self._path(value) if isinstance(value, str) else "")
                elif OPTIONS[key].is_path and isinstance(value, str):
                    options[key] = self._path(value)
                    if is_local(options[key]) and not os.path.exists(options[key]):
                        raise ConfigError(f"{options[key]} does not exist")
            except AmctError as error:
                self._mistakes.add(where, f"{key}: {error}")
        refused = first_error(options)
        if refused is not None:
            self._mistakes.add(where, str(refused))
        return options

    def _data(self, data: Any) -> Data | None:
        if isinstance(data, Mapping):
            return {name: self._each(item) for name, item in data.items()}
        return None if data is None else self._each(data)

    def _each(self, item: str | Sequence[str]) -> str | list[str]:
        return self._path(item) if isinstance(item, str) else [self._path(path) for path in item]

    def _prefix(self, where: str, text: str, places: Mapping[str, str]) -> str:
        for unknown in _PLACES.findall(text):
            if unknown not in places:
                known = ", ".join(f"{{{place}}}" for place in places)
                self._mistakes.add(where, f"save_path: {{{unknown}}} is unknown: use {known}")
        return self._path(_PLACES.sub(lambda found: places.get(found[1], ""), text))

    def _path(self, word: str) -> str:
        """A path of the file's folder; an address as it is."""
        return word if "://" in word else os.path.join(self._folder, os.path.expanduser(word))


def _problem(key: str, value: Any) -> str:
    """What is wrong with a key or its value; "" for nothing."""
    if key in _OWN:
        right = {
            "model": _is_listed(value),
            "target": _is_listed(value),
            "data": _is_listed(value) or (isinstance(value, Mapping) and all(map(_is_listed, value.values()))),
            "report": isinstance(value, bool),
            "state": isinstance(value, bool),
        }.get(key, isinstance(value, str))
        if not right:
            return f"{key} takes {_OWN[key]}, got {value!r}"
        if key != "target":
            return ""
    if key not in OPTIONS:
        return f"{key} is unknown: {known_as(key, tuple(_OWN))}"
    try:
        for item in _listed(value) if key == "target" else [value]:
            OPTIONS[key].check(item)
    except ConfigError as error:
        return str(error)
    return ""


def _is_listed(value: Any) -> bool:
    """Whether it is a text, or a list of some."""
    return isinstance(value, str) or (
        isinstance(value, list) and bool(value) and all(isinstance(item, str) for item in value)
    )


def _listed(value: str | Sequence[str]) -> Sequence[str]:
    return [value] if isinstance(value, str) else value


def _without_results(jobs: Sequence[Job]) -> tuple[Job, ...]:
    """The jobs whose model is not what another one writes: an earlier call may have left it where a pattern looks."""
    makers = {os.path.realpath(file): job.model for job in jobs for file in job.files}
    return tuple(job for job in jobs if makers.get(os.path.realpath(job.model), job.model) == job.model)
