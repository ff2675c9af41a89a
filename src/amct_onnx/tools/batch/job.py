"""One job of a batch: a model, a target, and all that a call of `quantize` takes."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from amct_onnx.files.run_file import ENDING, run_path
from amct_onnx.targets.table import TARGETS
from amct_onnx.targets.target import without_suffix

Data = str | Sequence[str] | Mapping[str, str | Sequence[str]]
RECORD, _REPORT = "_job.json", "_report.html"


@dataclass(frozen=True, kw_only=True)
class Job:
    """A model for one target.

    where: what messages call it, with its number in the file. name: of its row in the table. model: the path. data:
    None for a job without. prefix: of the results. options: arguments of `quantize`, without those that have a field
    here. evaluator: the path of a script, "" for none. report: whether the result is measured and gets a page. state:
    whether what is done of it is kept as it comes.
    """

    where: str
    name: str
    model: str
    target: str
    data: Data | None
    prefix: str
    options: Mapping[str, Any]
    evaluator: str
    report: bool
    state: bool

    def __str__(self) -> str:
        return f"{self.name} for {self.target}"

    @property
    def keeps_state(self) -> bool:
        """Whether there is state to keep: data are run through the network for ranges of activations."""
        return self.state and not self.options.get("dynamic") and self.options.get("weight_only") is None

    @property
    def files(self) -> tuple[str, ...]:
        """The model files that `quantize` writes."""
        return tuple(TARGETS[self.target].files(self.prefix))

    @property
    def run(self) -> str:
        """The run file."""
        return run_path(without_suffix(self.prefix), self.target)

    @property
    def page(self) -> str:
        """The report."""
        return self.run.removesuffix(ENDING) + _REPORT

    @property
    def record(self) -> str:
        """The file that says what the results were made from."""
        return self.run.removesuffix(ENDING) + RECORD

    @property
    def written(self) -> tuple[str, ...]:
        """All files of the job."""
        return (*self.files, *((self.run, self.page) if self.report else ()), self.record)


def paths_of(data: Data | None) -> tuple[str, ...]:
    """All paths that data name."""
    if data is None:
        return ()
    if isinstance(data, str):
        return (data,)
    items = data.values() if isinstance(data, Mapping) else data
    return tuple(path for item in items for path in ((item,) if isinstance(item, str) else item))


def is_local(path: str) -> bool:
    """Whether a path is one of this machine's files, and no address or pattern, which those who read it open."""
    return "://" not in path and not any(letter in os.path.basename(path) for letter in "*?[{")
