"""`make accuracy`: what quantization costs on real models, by this tool, by AMCT's recipe and by the installed peers.

All are calibrated with the same samples, and judged with other ones. Peers are found as by `make bench`: --python PATH,
once for each interpreter, or AMCT_PEERS. The data is that of $AMCT_TEST_DATA.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import os
import pickle
import shlex
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import onnxruntime as ort
from accuracy_report import LIKENESS, Row, report
from beside_peers import Bench, Entry, Run, choose, find_sides
from coverage import Coverage, read_coverage
from kept import Kept, digest
from measures import RESAMPLES, Array, Figure
from peers import ASCEND, FLOOR, OURS, PEERS
from processes import machine
from tasks import SQNR, TASKS, Feed, Tally, Task

from amct_onnx import deployed_session
from amct_onnx.values.findings import EFFORTS

WRITTEN = Path(__file__).resolve().parents[1] / "docs" / "accuracy.md"
EXPLANATION = """\
int8 models run with session.x64quantprecision=1: exact sums, where a CPU without VNNI would saturate.
dB: SQNR of the model's outputs against float. drop: against float. s: wall time of the whole process; *: of an earlier
run on this machine. layers %: Conv, Gemm and MatMul that the file quantizes, the input with one scale, and the weight.
int8 %: integer kernels among all kernels that compute, in the graph as ONNX Runtime optimises it.
[low, high]: 95 % of {resamples} paired bootstrap resamples of the test items. "noise": it holds zero.
"best peer": the one with the most of that figure in this very test, so chosen in its favour; "of like coverage": among
those of no less layers %, or whose int8 % is at most {likeness} points below this tool's.
Peers whose per-channel grids need opset 13 get the model converted to it; on the file as it is they may do worse.
Ascend's deploy models run in `deployed_session`; no % is given for them. The data has no model for segmentation.
"""


def open_exact(path: Path, *, ascend: bool = False) -> ort.InferenceSession:
    """A session on the CPU whose int8 products do not saturate."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.x64quantprecision", "1")
    # A dozen sessions take turns: threads that spin after a run would take the processors from the next one.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if ascend:
        return deployed_session(path, options)
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def one_line(reason: Exception) -> str:
    """The text of an exception for a table."""
    return "does not run: " + " ".join(str(reason).split())


@dataclass(frozen=True, kw_only=True, eq=False)
class Test:
    """The test items of a task, all in memory, and what the float model makes of them."""

    task: Task
    items: Sequence[tuple[Feed, Any]]
    exact: Sequence[Array]

    @classmethod
    def of(cls, task: Task, most: int | None) -> Test:
        items = list(task.test(most))
        session = open_exact(task.case.model)
        return cls(task=task, items=items, exact=[session.run(None, feed)[0] for feed, _ in items])

    def digest(self) -> str:
        """What results depend on besides the tested model."""
        found = hashlib.sha256(f"{ort.__version__} {self.task.name}".encode())
        for (_, truth), output in zip(self.items, self.exact, strict=True):
            found.update(pickle.dumps(truth))
            found.update(output.tobytes())
        return found.hexdigest()

    def float_tally(self) -> Tally:
        tally = self.task.tally()
        for (_, truth), output in zip(self.items, self.exact, strict=True):
            tally.add(output, output, truth)
        return tally

    def tally(self, path: Path, *, ascend: bool = False) -> Tally:
        """What the outputs of this model add up to."""
        return self.of_session(open_exact(path, ascend=ascend))

    def of_session(self, session: ort.InferenceSession) -> Tally:
        """The same of a session."""
        tally = self.task.tally()
        names = [value.name for value in session.get_inputs()]
        for (feed, truth), output in zip(self.items, self.exact, strict=True):
            # Some tools rename inputs; their order stays.
            named = feed if set(names) == feed.keys() else dict(zip(names, feed.values(), strict=True))
            tally.add(output, session.run(None, named)[0], truth)
        return tally


def evaluate(test: Test, runs: Mapping[Entry, Run], kept: Kept | None) -> dict[Entry, Tally | str]:
    """Each model's tally, or why there is none. The models take turns, so that one session at a time is open."""
    found: dict[Entry, Tally | str] = {}
    digest = "" if kept is None else test.digest()
    for entry, run in runs.items():
        if run.model is None:
            found[entry] = str(run.problem)
            continue
        make = partial(test.tally, run.model, ascend=entry.side is ASCEND)
        try:
            found[entry] = kept.tally(run.model, digest, make) if kept and kept.holds(run.model) else make()
        except Exception as reason:  # ONNX Runtime has a class for each status code, and they share no base
            found[entry] = one_line(reason)
    return found


def measure(bench: Bench, task: Task, entries: Mapping[Entry, str]) -> None:
    """Print the table of one model; `entries` has the version of each."""
    reference, rows = measured_rows(bench, task, entries)
    report(reference, rows, bench.args.resamples)


def measured_rows(bench: Bench, task: Task, entries: Mapping[Entry, str]) -> tuple[Mapping[str, Figure], Sequence[Row]]:
    """Quantize and test one model by all entries, and print what with: the figures of the float model, and the rows."""
    args = bench.args
    images = bench.folder / f"{task.name}_calibration{task.suffix}"
    count = task.write_calibration(images, args.calibration)
    kept = None if args.keep is None else Kept(args.keep)
    limits = {entry: min(count, *_limits(entry, task)) for entry in entries}
    runs = run_entries(bench, task, images, entries, limits, kept)
    images.unlink()
    bench.say(f"{task.name}: test")
    test = Test.of(task, args.test)
    tallies = evaluate(test, runs, kept)
    bench.hush()
    rows = []
    for entry, run in runs.items():
        tally, share = tallies[entry], Coverage()
        if isinstance(tally, Tally) and run.model is not None and entry.side is not ASCEND:
            share = read_coverage(task.case.model, run.model)
        rows.append(
            Row(
                entry=entry,
                label=entry.label + (f" ({limits[entry]} samples)" if limits[entry] < count else ""),
                seconds=run.seconds,
                kept=run.kept,
                coverage=share,
                figures=tally.figures() if isinstance(tally, Tally) else {},
                problem=None if isinstance(tally, Tally) else tally,
            )
        )
        if run.model is not None and not (kept and kept.holds(run.model)):
            run.model.unlink()
    reference = test.float_tally().figures()
    print(f"\n{task.name}: {count} calibration samples, {len(reference[SQNR].items[0])} test items")
    return reference, rows


def _limits(entry: Entry, task: Task) -> list[int]:
    """How many samples the entry may have at most."""
    limits = [entry.scheme.most, task.fitting if entry.scheme.hoards else None]
    return [limit for limit in limits if limit is not None] or [sys.maxsize]


def run_entries(
    bench: Bench,
    task: Task,
    images: Path,
    entries: Mapping[Entry, str],
    limits: Mapping[Entry, int],
    kept: Kept | None,
) -> dict[Entry, Run]:
    """Run all entries, each with at most that many samples; peers only where there is no kept run."""
    inputs = {} if kept is None else {"model": digest(task.case.model), "calibration": digest(images)}
    runs = {}
    for entry, version in entries.items():
        make = partial(bench.run, entry, task.case, images, limits[entry])
        if kept is None or not entry.is_peer:
            runs[entry] = make()
        else:
            about = inputs | {"version": version, "samples": str(limits[entry]), "machine": machine()}
            runs[entry] = kept.run(entry, about, make)
    return runs


class _Tee(io.StringIO):
    """Keeps what is printed, and prints it."""

    def __init__(self, shown: TextIO) -> None:
        super().__init__()
        self._shown = shown

    def write(self, text: str) -> int:
        self._shown.write(text)
        self._shown.flush()
        return super().write(text)


def chosen_entries(args: argparse.Namespace, found: Mapping[str, tuple[str, str]]) -> dict[Entry, str]:
    """This tool for both targets, then the peers that the options leave; each with its version."""
    entries = [entry for entry in choose(found, everything=not args.plain) if entry.side is not FLOOR]
    ours = [entry for entry in entries if not entry.is_peer]
    ours += [
        Entry(side=ASCEND, scheme=scheme, python=found[OURS.name][0])
        for scheme in ASCEND.schemes
        if scheme.plain or not args.plain
    ]
    ours = [entry for entry in ours if entry.scheme.name not in EFFORTS or entry.scheme.name in args.efforts]
    peers = [entry for entry in entries if entry.is_peer and (args.peers is None or entry.side.name in args.peers)]
    chosen = [*ours, *(peer for peer in peers if not any(word in peer.scheme.name for word in args.without))]
    return {entry: found[OURS.name if entry.side is ASCEND else entry.side.name][1] for entry in chosen}


def parse_arguments(words: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add(
        "--python", action="append", default=[], metavar="PATH", help="another interpreter, with peers; may be repeated"
    )
    add("--models", nargs="+", choices=TASKS, default=list(TASKS), help="which models (all)")
    add("--peers", nargs="*", choices=[side.name for side in PEERS], help="which peers (all that are installed)")
    add("--plain", action="store_true", help="the default of this tool and the min-max settings of the peers only")
    add("--without", nargs="+", default=[], metavar="WORD", help="leave out settings of peers whose name contains it")
    add("--calibration", type=int, help="most calibration samples (160)")
    add("--test", type=int, help="most test items (all)")
    add("--quick", action="store_true", help="few samples: whether it works, not what it says")
    add(
        "--keep",
        type=Path,
        metavar="FOLDER",
        help="keep the models of peers, and take those that are there from the same calibration data",
    )
    add("--timeout", type=float, default=1800, help="seconds that one process may take")
    add("--efforts", nargs="+", choices=EFFORTS, default=list(EFFORTS), help="of this tool (all)")
    add("--append", action="store_true", help="add to that file: the tables of other models")
    add("--write", action="store_true", help=f"write {WRITTEN.name} in docs as printed")
    args = parser.parse_args(words)
    args.calibration = args.calibration or (4 if args.quick else 160)
    args.test = args.test or (6 if args.quick else None)
    args.resamples = 20 if args.quick else RESAMPLES
    args.plain = args.plain or args.quick
    args.keep = args.keep and args.keep.resolve()
    return args


def run_all(args: argparse.Namespace, words: Sequence[str]) -> None:
    """Print the header and the table of each model."""
    others = [path for path in os.environ.get("AMCT_PEERS", "").split(os.pathsep) if path]
    found = find_sides([sys.executable, *args.python, *others])
    print(f"make accuracy ARGS={json.dumps(shlex.join(words))}" if words else "make accuracy")
    print(machine())
    print("sides: " + ", ".join(f"{name} {version}" for name, (_, version) in found.items() if name != FLOOR.name))
    absent = [side.name for side in PEERS if side.name not in found]
    if absent:
        print(f"not installed: {', '.join(absent)}")
    print(EXPLANATION.format(resamples=args.resamples, likeness=LIKENESS), end="")
    entries = chosen_entries(args, found)
    with tempfile.TemporaryDirectory(prefix="accuracy_") as folder:
        for name in args.models:
            place = Path(folder) / name
            place.mkdir()
            measure(Bench(args, place), TASKS[name], entries)


def main(words: Sequence[str] | None = None) -> int:
    """Print the tables; exit code 1 where the data is missing."""
    words = sys.argv[1:] if words is None else words
    args = parse_arguments(words)
    missing = [path for name in args.models if not (path := TASKS[name].case.model).is_file()]
    if missing:
        print(f"[ERROR] no such model: {missing[0]}; set AMCT_TEST_DATA", file=sys.stderr)
        return 1
    tee = _Tee(sys.stdout)
    with contextlib.redirect_stdout(tee):
        run_all(args, words)
    if args.write or args.append:
        before = WRITTEN.read_text(encoding="utf-8") if args.append else "# Accuracy beside other tools\n"
        WRITTEN.write_text(f"{before}\n```none\n{tee.getvalue()}```\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    os.environ.setdefault("AMCT_LOG_LEVEL", "ERROR")
    sys.exit(main())
