"""What `batch` made: each job with what came of it, as values."""

from __future__ import annotations

from dataclasses import dataclass

from amct_onnx.errors import listed
from amct_onnx.values.accuracy import Accuracy
from amct_onnx.values.shown import Shown, Table
from amct_onnx.values.used_data import UsedData

DONE, KEPT, FAILED, WAITING = "done", "kept", "failed", "waiting"
_STATES = {DONE: "done", KEPT: "kept from before", FAILED: "failed", WAITING: "waiting"}
_SHOWN = 3  # jobs that a sentence names
_LARGE = 100_000  # bytes: a size from there on is told in megabytes

_LONG = 100  # seconds, of which tenths are of no interest


@dataclass(frozen=True, kw_only=True)
class JobResult:
    """What came of one job: a model for one target.

    name: of the job, as the table has it. model: the path of the float model. state: "done" by this call; "kept", since
    an earlier call made the same; "failed"; "waiting" until its turn comes. because: why it was done again, as a
    clause; "" where it was not. error: why it failed, in one line. seconds: what it took when it was done. data: what
    calibrated, and what of it was left out, None for a job without. accuracy: None where it was not measured. met:
    whether the target of accuracy is met, None without one. bytes_before, bytes_after: of the float model and of what
    the target loads. speedup: how many times as fast as the float model in ONNX Runtime on this machine; None where
    that was not measured. quantized: nodes, of the `candidates` that the target could quantize. files: the results.
    run: the run file, report: the page made of it; "" where there is none. warnings: what the log warned of.
    assumptions: what was assumed of the data.
    """

    name: str
    target: str
    model: str
    state: str
    because: str = ""
    error: str = ""
    seconds: float | None = None
    data: UsedData | None = None
    accuracy: Accuracy | None = None
    met: bool | None = None
    bytes_before: int | None = None
    bytes_after: int | None = None
    speedup: float | None = None
    quantized: int | None = None
    candidates: int | None = None
    files: tuple[str, ...] = ()
    run: str = ""
    report: str = ""
    warnings: tuple[str, ...] = ()
    assumptions: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.name} for {self.target}"

    @property
    def in_float(self) -> int | None:
        """How many nodes stay in float that the target could quantize."""
        return None if self.candidates is None or self.quantized is None else self.candidates - self.quantized

    @property
    def size(self) -> str:
        """Before and after, as `13.9->3.6 MB`; "" where it is not known."""
        if self.bytes_before is None or self.bytes_after is None:
            return ""
        large = self.bytes_before >= _LARGE
        scale, unit = (1e6, "MB") if large else (1e3, "kB")
        return f"{self.bytes_before / scale:.1f}->{self.bytes_after / scale:.1f} {unit}"


@dataclass(frozen=True, kw_only=True)
class BatchResult(Shown):
    """All jobs of a batch in their order. page: the path of the page over all. seconds: what this call took."""

    jobs: tuple[JobResult, ...]
    page: str
    seconds: float

    def in_state(self, state: str) -> tuple[JobResult, ...]:
        """The jobs in one state."""
        return tuple(job for job in self.jobs if job.state == state)

    @property
    def failed(self) -> tuple[JobResult, ...]:
        """The jobs that failed."""
        return self.in_state(FAILED)

    def lines(self) -> list[str]:
        """How many jobs there are in each state, and what should not be overlooked."""
        counts = [f"{len(found)} {word}" for state, word in _STATES.items() if (found := self.in_state(state))]
        lines = [f"{len(self.jobs)} job{'s' * (len(self.jobs) != 1)}: {', '.join(counts)}."]
        reasons: dict[str, list[str]] = {}
        for job in self.jobs:
            if job.because:
                reasons.setdefault(job.because, []).append(str(job))
        lines += [f"Again, since {because}: {listed(names, _SHOWN)}." for because, names in reasons.items()]
        missed = [str(job) for job in self.jobs if job.met is False]
        if missed:
            lines.append(f"The target of accuracy is not met: {listed(missed, _SHOWN)}.")
        warned = [job for job in self.jobs if job.warnings]
        if warned:
            count, where = sum(len(job.warnings) for job in warned), listed([str(job) for job in warned], _SHOWN)
            lines.append(f"{count} warning{'s' * (count != 1)}, which the page has: {where}.")
        return lines

    def tables(self) -> tuple[Table, ...]:
        """A row for each job."""
        columns = ("job", "target", "accuracy", "size", "speed", "float", "s", "state")
        return (Table.of("Jobs", columns, [_row(job) for job in self.jobs]),)


def _row(job: JobResult) -> tuple[object, ...]:
    accuracy = "" if job.accuracy is None else f"{job.accuracy.decibels:.1f} dB"
    return (
        job.name,
        job.target,
        accuracy,
        job.size,
        "" if job.speedup is None else f"{job.speedup:.2f}x",
        "" if job.in_float is None else f"{job.in_float}/{job.candidates}",
        "" if job.seconds is None else f"{job.seconds:.{0 if job.seconds >= _LONG else 1}f}",
        job.state,
    )
