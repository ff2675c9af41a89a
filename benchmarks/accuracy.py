"""`make accuracy`: what quantization costs on real models, by this tool, by AMCT's recipe and by the installed peers.

All are calibrated with the same samples, and judged with other ones. Peers are found as by `make bench`: --python PATH,
once for each interpreter, or AMCT_PEERS. The data is that of $AMCT_TEST_DATA.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import shlex
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import onnxruntime as ort
from beside_peers import Bench, Entry, Run, choose, find_sides, print_table
from measures import RESAMPLES, Figure, paired_difference
from peers import ASCEND, FLOOR, OURS, PEERS
from processes import machine
from tasks import SQNR, TASKS, Tally, Task

from amct_onnx import deployed_session
from amct_onnx.runtime.inspection import inspect_model

FLOAT = "float"
WRITTEN = Path(__file__).resolve().parents[1] / "docs" / "accuracy.md"
# Intervals against float are shown for these; all figures have them beside the peers.
DROPS = ("top-1", "Spearman")
EXPLANATION = """\
int8 models run with session.x64quantprecision=1: exact sums, where a CPU without VNNI would saturate.
dB: SQNR of the model's outputs against float. int8 %: integer kernels among all kernels that compute, in the graph as
ONNX Runtime optimises it. s: wall time of the whole process. drop: against float.
[low, high]: 95 % of {resamples} paired bootstrap resamples of the test items; "noise" where it holds zero.
Peers whose per-channel grids need opset 13 get the model converted to it; on the file as it is they may do worse.
Ascend's deploy models run in `deployed_session`; no int8 % is given for them.
"""


@dataclass(frozen=True, kw_only=True, eq=False)
class Row:
    """What was measured of one quantized model; `figures` is empty where there is a problem."""

    entry: Entry
    seconds: float
    coverage: float | None
    figures: Mapping[str, Figure]
    problem: str | None = None


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
    return "does not run: " + " ".join(str(reason).split())[:200]


def coverage(float_model: Path, quantized: Path) -> float | None:
    """Integer kernels in percent of those that compute anything."""
    kernels = inspect_model(str(float_model), str(quantized)).kernels
    integer, floating = sum(kernels.integer.values()), sum(kernels.floating.values())
    return 100 * integer / (integer + floating) if integer + floating else None


def evaluate(
    task: Task, models: Mapping[Entry, Path], most: int | None
) -> tuple[dict[Entry, Tally], Tally, dict[Entry, str]]:
    """Run every model on every test item: what each adds up to, what float does, and what did not run."""
    reference = open_exact(task.case.model)
    sessions, problems = {}, {}
    for entry, path in models.items():
        try:
            sessions[entry] = open_exact(path, ascend=entry.side is ASCEND)
        except Exception as reason:  # ONNX Runtime has a class for each status code, and they share no base
            problems[entry] = one_line(reason)
    own, tallies = task.tally(), {entry: task.tally() for entry in sessions}
    for feed, truth in task.test(most):
        exact = reference.run(None, feed)[0]
        own.add(exact, exact, truth)
        for entry, session in list(sessions.items()):
            try:
                # Some tools rename inputs; their order stays.
                named = dict(zip((value.name for value in session.get_inputs()), feed.values(), strict=True))
                tallies[entry].add(exact, session.run(None, feed if named.keys() == feed.keys() else named)[0], truth)
            except Exception as reason:
                problems[entry] = one_line(reason)
                del sessions[entry]
    return tallies, own, problems


def measure(bench: Bench, task: Task, entries: Sequence[Entry]) -> None:
    """Print the table of one model."""
    args = bench.args
    images = bench.folder / f"{task.name}_calibration{task.suffix}"
    count = task.write_calibration(images, args.calibration)
    runs = {entry: bench.run(entry, task.case, images) for entry in entries}
    images.unlink()
    models = {entry: run.model for entry, run in runs.items() if run.model is not None}
    bench.say(f"{task.name}: test")
    tallies, own, problems = evaluate(task, models, args.test)
    bench.hush()
    reference = own.figures()
    rows = [
        _row(task, entry, run, tallies[entry].figures() if entry in tallies else {}, problems.get(entry))
        for entry, run in runs.items()
    ]
    items = len(reference[SQNR].items[0])
    print(f"\n{task.name}: {count} calibration samples, {items} test items")
    report(reference, rows, args.resamples)
    _forget(runs)


def _forget(runs: Mapping[Entry, Run]) -> None:
    """Delete the quantized models."""
    for run in runs.values():
        if run.model is not None:
            run.model.unlink()


def _row(task: Task, entry: Entry, run: Run, figures: Mapping[str, Figure], problem: str | None) -> Row:
    problem = run.problem or problem
    share = None
    if problem is None and run.model is not None and entry.side is not ASCEND:
        share = coverage(task.case.model, run.model)
    return Row(
        entry=entry,
        seconds=run.seconds,
        coverage=share,
        figures=figures if problem is None else {},
        problem=problem,
    )


def report(reference: Mapping[str, Figure], rows: Sequence[Row], resamples: int) -> None:
    """Print the figures of all models, then this tool beside the best peers."""
    names = list(reference)
    main = names[0]
    shown = [main in DROPS and resamples > 0, *([False] * (len(names) - 1))]
    header = ["", *(cell for name, drop in zip(names, shown, strict=True) for cell in _headings(name, drop))]
    lines: list[tuple[str, Sequence[str] | str]] = []
    cells = [cell for name, drop in zip(names, shown, strict=True) for cell in _float_cells(name, reference, drop)]
    lines.append((FLOAT, [*cells, "", ""]))
    for row in rows:
        if row.problem is not None:
            lines.append((row.entry.label, row.problem))
            continue
        cells = []
        for name, drop in zip(names, shown, strict=True):
            cells.append(f"{row.figures[name].value:.2f}")
            if drop:
                found = paired_difference(reference[name], row.figures[name], resamples=resamples)
                cells.append(f"{found.value:+.2f} [{found.low:+.2f}, {found.high:+.2f}]")
        cells.append("" if row.coverage is None else f"{row.coverage:.0f}")
        lines.append((row.entry.label, [*cells, f"{row.seconds:.1f}"]))
    print_table([*header, "int8 %", "s"], lines)
    sound = [row for row in rows if row.problem is None]
    for row in sound:
        if row.entry.side is OURS:
            for line in beside_peers(row, [peer for peer in sound if peer.entry.is_peer], names, resamples):
                print(line)
    ascend = [row for row in sound if row.entry.side is ASCEND]
    for row in ascend[:-1]:
        print(f"{row.entry.label} - {ascend[-1].entry.label}: {_differences(row, ascend[-1], names, resamples)}")


def _headings(name: str, drop: bool) -> list[str]:
    return [name, "drop"] if drop else [name]


def _float_cells(name: str, reference: Mapping[str, Figure], drop: bool) -> list[str]:
    value = "" if name in (SQNR, "agree") else f"{reference[name].value:.2f}"
    return [value, ""] if drop else [value]


def beside_peers(row: Row, peers: Sequence[Row], names: Sequence[str], resamples: int) -> Iterator[str]:
    """Of each figure a line: this tool beside the peer that has the most of it, and the best of at least its coverage.

    The best peer is chosen by the test itself, in its favour.
    """
    wide = [peer for peer in peers if (peer.coverage or 0) >= (row.coverage or 0)]
    for name in names:
        told = None
        for group, rivals in (("best peer", peers), ("best peer of no less int8 %", wide)):
            if not rivals:
                continue
            best = max(rivals, key=lambda peer: peer.figures[name].value)
            if best is not told:
                yield f"{row.entry.label} - {group}, {best.entry.label}: {_differences(row, best, [name], resamples)}"
            told = best


def _differences(first: Row, second: Row, names: Sequence[str], resamples: int) -> str:
    """`first - second` in each figure, with intervals where the figure has them."""
    parts = []
    for name in names:
        mine, theirs = first.figures[name], second.figures[name]
        if not (mine.resampled and theirs.resampled and resamples):
            parts.append(f"{name} {mine.value - theirs.value:+.2f} (no interval)")
            continue
        found = paired_difference(mine, theirs, resamples=resamples)
        noise = ", noise" if found.is_noise else ""
        parts.append(f"{name} {found.value:+.2f} [{found.low:+.2f}, {found.high:+.2f}]{noise}")
    return "; ".join(parts)


class _Tee(io.StringIO):
    """Keeps what is printed, and prints it."""

    def __init__(self, shown: TextIO) -> None:
        super().__init__()
        self._shown = shown

    def write(self, text: str) -> int:
        self._shown.write(text)
        self._shown.flush()
        return super().write(text)


def chosen_entries(args: argparse.Namespace, found: Mapping[str, tuple[str, str]]) -> list[Entry]:
    """This tool for both targets, then the peers that the options leave."""
    entries = [entry for entry in choose(found, everything=not args.plain) if entry.side is not FLOOR]
    ours = [entry for entry in entries if not entry.is_peer]
    ours += [Entry(side=ASCEND, scheme=scheme, python=found[OURS.name][0]) for scheme in ASCEND.schemes]
    peers = [entry for entry in entries if entry.is_peer and (args.peers is None or entry.side.name in args.peers)]
    return [*ours, *(peer for peer in peers if not any(word in peer.scheme.name for word in args.without))]


def parse_arguments(words: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add(
        "--python", action="append", default=[], metavar="PATH", help="another interpreter, with peers; may be repeated"
    )
    add("--models", nargs="+", choices=TASKS, default=list(TASKS), help="which models (all)")
    add("--peers", nargs="*", choices=[side.name for side in PEERS], help="which peers (all that are installed)")
    add("--plain", action="store_true", help="the min-max settings of the peers only")
    add("--without", nargs="+", default=[], metavar="WORD", help="leave out settings of peers whose name contains it")
    add("--calibration", type=int, help="most calibration samples (160)")
    add("--test", type=int, help="most test items (all)")
    add("--quick", action="store_true", help="few samples: whether it works, not what it says")
    add("--timeout", type=float, default=1800, help="seconds that one process may take")
    add("--write", action="store_true", help=f"write {WRITTEN.name} in docs as printed")
    args = parser.parse_args(words)
    args.calibration = args.calibration or (4 if args.quick else 160)
    args.test = args.test or (6 if args.quick else None)
    args.resamples = 20 if args.quick else RESAMPLES
    args.plain = args.plain or args.quick
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
    print(EXPLANATION.format(resamples=args.resamples), end="")
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
    if args.write:
        WRITTEN.write_text(f"# Accuracy beside other tools\n\n```none\n{tee.getvalue()}```\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    os.environ.setdefault("AMCT_LOG_LEVEL", "ERROR")
    sys.exit(main())
