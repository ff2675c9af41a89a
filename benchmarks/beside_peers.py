"""`make bench`: this tool beside the other quantizers that are installed, on the same models and images.

1. Speed: wall time of whole processes, from the start of the interpreter to its exit, and their peak memory. The floor
   is a process that only runs the float inference, one image at a time. Sides take turns; a figure is the median over
   the rounds of the ratio to the floor of the same round. Preparing images and converting a model to an opset that a
   peer wants happen before, and do not count.
2. Memory, as the number of images grows.
3. Latency: the models that the sides wrote take turns in one ONNX Runtime process on the CPU, at batch 1.

Peers need packages that conflict, so each may live in a virtual environment of its own: --python PATH, once for each
interpreter, or AMCT_PEERS with the paths (separated as in PATH). A peer that is in none of them is named as such.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count as counted
from pathlib import Path
from statistics import median
from typing import Any

from peers import FLOOR, OURS, PEERS, SIDES, Scheme, Side
from prepared import CONVERSION_ERRORS, Case, MissingDataError
from processes import cpu_count, machine, run_process

HERE = Path(__file__).resolve().parent
SPEED_MODEL = "mobilenetv2"
LATENCY_MODELS = ("mobilenetv2", "squeezenet", "resnet20", "resnet56", "mobilenetv1")
MEMORY_COUNTS = (32, 160, 640, 1280)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One scheme of an installed side, and the interpreter that has it."""

    side: Side
    scheme: Scheme
    python: str

    @property
    def label(self) -> str:
        return f"{self.side.name}, {self.scheme.name}"

    @property
    def is_peer(self) -> bool:
        return self.side in PEERS


@dataclass(frozen=True, kw_only=True)
class Run:
    """Seconds, those of all processors together, and MiB of one process, the model that it wrote, or why there is none;
    `kept`: of an earlier run."""

    seconds: float = math.nan
    processor: float = math.nan
    peak: float | None = None
    model: Path | None = None
    problem: str | None = None
    kept: bool = False


class Bench:
    """What all measurements share: the options, a folder for files, and progress on stderr."""

    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        self.args, self.folder = args, folder
        self._names = counted()
        self._images: dict[tuple[str, int, bool], Path] = {}

    def new_folder(self) -> Path:
        folder = self.folder / str(next(self._names))
        folder.mkdir()
        return folder

    def images(self, case: Case, count: int, *, test: bool = False) -> Path:
        """The .npy file of `count` images, written once."""
        key = (case.name, count, test)
        if key not in self._images:
            path = self.folder / f"{case.name}_{count}{'_test' if test else ''}.npy"
            case.write_images(path, count, test=test)
            self._images[key] = path
        return self._images[key]

    def drop_images(self, case: Case, count: int) -> None:
        """Delete that file."""
        self._images.pop((case.name, count, False)).unlink()

    def run(self, entry: Entry, case: Case, images: Path, most: int | None = None) -> Run:
        """One scheme in a process of its own, with at most `most` of the images."""
        self.say(f"{case.name}: {entry.label}")
        folder, result = self.new_folder(), self.folder / f"{next(self._names)}.json"
        try:
            model = case.at_opset(entry.scheme.opset, self.folder)
        except CONVERSION_ERRORS as reason:
            return Run(problem=f"needs opset {entry.scheme.opset}, and onnx cannot convert: {str(reason)[:200]}")
        command = [entry.python, str(HERE / "peers.py"), "--side", entry.side.name, "--scheme", entry.scheme.name]
        command += ["--model", str(model), "--images", str(images), "--folder", str(folder), "--result", str(result)]
        most = entry.scheme.most if most is None else most
        command += [] if most is None else ["--most", str(most)]
        outcome = run_process(command, timeout=self.args.timeout)
        if outcome.problem is not None:
            return Run(seconds=outcome.seconds, problem=outcome.problem)
        found = sorted(folder.glob("*.onnx"))
        if entry.side is not FLOOR and len(found) != 1:
            return Run(problem=f"wrote {len(found)} models")
        told = json.loads(result.read_text(encoding="utf-8"))
        model = found[0] if found else None
        return Run(seconds=outcome.seconds, processor=told["processor"], peak=told["peak"], model=model)

    def say(self, text: str) -> None:
        """A line of progress, where somebody may see it."""
        if sys.stderr.isatty():
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)

    def hush(self) -> None:
        """Take that line away."""
        if sys.stderr.isatty():
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def find_sides(pythons: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Of each installed side: the first interpreter that has it, and its version."""
    found: dict[str, tuple[str, str]] = {}
    for python in pythons:
        outcome = run_process([python, str(HERE / "peers.py"), "--installed"], timeout=120)
        if outcome.problem is not None:
            print(f"[WARNING] {python} is left out: {outcome.problem}", file=sys.stderr)
            continue
        for name, version in json.loads(outcome.stdout.splitlines()[-1]).items():
            found.setdefault(name, (python, version))
    return found


def choose(found: Mapping[str, tuple[str, str]], *, everything: bool) -> list[Entry]:
    """What is measured: the floor first, then this tool, then the peers."""
    return [
        Entry(side=side, scheme=scheme, python=found[side.name][0])
        for side in SIDES.values()
        if side.name in found
        for scheme in side.schemes
        if scheme.plain or everything
    ]


# --- the three measurements


def report_speed(bench: Bench, case: Case, entries: Sequence[Entry]) -> None:
    """Print wall time and peak memory of each side beside the floor."""
    args = bench.args
    images = bench.images(case, args.count)
    order = list(entries)
    rounds: list[dict[str, Run]] = []
    failed: dict[str, str] = {}
    for _ in range(args.rounds):
        runs = {entry.label: bench.run(entry, case, images) for entry in order if entry.label not in failed}
        failed |= {label: run.problem for label, run in runs.items() if run.problem is not None}
        rounds.append(runs)
        order = order[1:] + order[:1]
    bench.hush()
    floor, kept = entries[0].label, [entry for entry in entries if entry.label not in failed]
    if floor in failed:
        raise MissingDataError(f"float inference of {case.model} fails: {failed[floor]}")
    ratios = {e.label: [runs[e.label].seconds / runs[floor].seconds for runs in rounds] for e in kept}
    peaks = {e.label: [run.peak for runs in rounds if (run := runs[e.label]).peak is not None] for e in kept}
    rows: list[tuple[str, Sequence[str] | str]] = []
    for entry in entries:
        if entry.label in failed:
            rows.append((entry.label, failed[entry.label]))
            continue
        mine = ratios[entry.label]
        cells = [f"{median(mine):.2f}", f"{min(mine):.2f}-{max(mine):.2f}"]
        if peaks[entry.label]:
            cells += [f"{max(peaks[entry.label]):.0f}", f"{max(peaks[entry.label]) - max(peaks[floor]):+.0f}"]
        rows.append((entry.label, cells))
    print(f"\n{case.name}, {args.count} images: whole processes, rounds: {args.rounds}")
    print(f"float inference takes {median(runs[floor].seconds for runs in rounds):.2f} s")
    print_table(["", "x float inference", "rounds", "peak MiB", "more than float"], rows)
    ours = [entry.label for entry in kept if entry.side is OURS and entry.scheme.plain]
    rivals = {e.label: median(ratios[e.label]) for e in kept if e.is_peer and e.scheme.plain}
    if ours and rivals:
        best = min(rivals, key=rivals.__getitem__)
        for label in ours:
            print(f"{label} takes {median(ratios[label]) / rivals[best]:.2f} times as long as {best}")


def report_memory(bench: Bench, case: Case, entries: Sequence[Entry]) -> None:
    """Print the peak memory of the floor and of this tool for growing numbers of images."""
    rows: dict[str, list[str] | str] = {entry.label: [] for entry in entries if not entry.is_peer}
    for count in bench.args.memory:
        images = bench.images(case, count)
        for entry in entries:
            cells = rows.get(entry.label)
            if isinstance(cells, list):
                run = bench.run(entry, case, images)
                cells.append("?" if run.peak is None else f"{run.peak:.0f}")
                rows[entry.label] = cells if run.problem is None else run.problem
        bench.drop_images(case, count)
    bench.hush()
    print(f"\n{case.name}: peak memory in MiB as the number of images grows")
    print_table(["", *(f"{count} images" for count in bench.args.memory)], rows.items())


def report_latency(bench: Bench, case: Case, entries: Sequence[Entry]) -> None:
    """Print how fast ONNX Runtime runs the models that the sides write."""
    args = bench.args
    images = bench.images(case, args.calibration)
    writers = [entry for entry in entries if entry.side is not FLOOR]
    runs = {entry.label: bench.run(entry, case, images) for entry in writers}
    results: dict[str, dict[str, Any]] = {label: {"problem": run.problem} for label, run in runs.items() if run.problem}
    folder = bench.new_folder()
    files, result = folder / "files.json", folder / "result.json"
    models = {"float": case.model} | {label: run.model for label, run in runs.items() if run.model is not None}
    files.write_text(json.dumps({label: str(path) for label, path in models.items()}), encoding="utf-8")
    command = [sys.executable, str(HERE / "latency.py"), "--files", str(files), "--result", str(result)]
    command += ["--images", str(bench.images(case, args.test_images, test=True))]
    command += ["--rounds", str(args.latency_rounds), "--threads", str(args.threads)]
    bench.say(f"{case.name}: latency")
    outcome = run_process(command, timeout=args.timeout)
    bench.hush()
    if outcome.problem is not None:
        print(f"\n{case.name}: latency was not measured: {outcome.problem}")
        return
    measured = json.loads(result.read_text(encoding="utf-8"))
    results |= measured["models"]
    sound = {label: found for label, found in results.items() if "problem" not in found}
    peers = {entry.label for entry in writers if entry.is_peer} & sound.keys()
    best = min((sound[label]["ratio"] for label in peers), default=math.nan)
    print(
        f"\n{case.name}: latency in ONNX Runtime at batch 1, {args.threads} threads, {args.latency_rounds} rounds; "
        f"calibrated on {args.calibration} images; float takes {sound['float']['milliseconds']:.2f} ms"
    )
    rows: list[tuple[str, Sequence[str] | str]] = []
    for label in ("float", *(entry.label for entry in writers)):
        found = results[label]
        if label not in sound:
            rows.append((label, found["problem"]))
            continue
        against = "" if math.isnan(best) else f"{found['ratio'] / best:.2f}"
        kernels = [str(found[kind]) for kind in ("integer", "float", "conversions")]
        decibel = "" if label == "float" else f"{found['decibel']:.1f}"
        rows.append((label, [f"{found['ratio']:.2f}", f"{1 / found['ratio']:.2f}", against, *kernels, decibel]))
    header = [
        "",
        "x float time",
        "speed-up",
        "x best peer",
        "int kernels",
        "float kernels",
        "conversions",
        "dB to float",
    ]
    print_table(header, rows)
    if measured["saturates"]:
        print("dB are those of this CPU, whose uint8 by int8 products may saturate; elsewhere they may be higher")


def print_table(header: Sequence[str], rows: Iterable[tuple[str, Sequence[str] | str]]) -> None:
    """A label to the left and its cells to the right of each line; a text takes the place of all cells."""
    rows = list(rows)
    lines = [header[1:], *(cells for _, cells in rows if not isinstance(cells, str))]
    widths = [max(len(line[k]) for line in lines if k < len(line)) for k in range(len(header) - 1)]
    left = max(len(label) for label in (header[0], *(label for label, _ in rows)))
    for label, cells in ((header[0], header[1:]), *rows):
        shown = [cells] if isinstance(cells, str) else [f"{c:>{w}}" for c, w in zip(cells, widths, strict=False)]
        print("  ".join([f"{label:<{left}}", *shown]).rstrip())


# --- command line


def parse_arguments(words: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add(
        "--python", action="append", default=[], metavar="PATH", help="another interpreter, with peers; may be repeated"
    )
    add("--all", action="store_true", help="the other settings of the peers too; some take minutes and gigabytes")
    add("--quick", action="store_true", help="few images and rounds: whether it works, not what it says")
    add("--model", help="one model instead of all: a shared one, or a file with one input (needs --images)")
    add("--images", type=Path, metavar="FILE.npy", help="float32 [N, ...], prepared for --model")
    add("--only", nargs="+", choices=("speed", "memory", "latency"), default=["speed", "memory", "latency"])
    add("--count", type=int, help="images for speed (160)")
    add("--rounds", type=int, help="rounds for speed (5)")
    add("--calibration", type=int, help="images that the models for latency are calibrated on (32)")
    add("--latency-rounds", type=int, help="rounds for latency (100)")
    add("--threads", type=int, default=cpu_count(), help="threads of ONNX Runtime for latency")
    add("--timeout", type=float, default=1800, help="seconds that one process may take")
    args = parser.parse_args(words)
    quick = args.quick
    args.count = args.count or (4 if quick else 160)
    args.rounds = args.rounds or (1 if quick else 5)
    args.calibration = args.calibration or (4 if quick else 32)
    args.latency_rounds = args.latency_rounds or (3 if quick else 100)
    args.test_images = 3 if quick else 50
    args.memory = (2, 4) if quick else MEMORY_COUNTS
    return args


def main(words: Sequence[str] | None = None) -> int:
    """Print the tables; exit code 1 where there is nothing to measure."""
    args = parse_arguments(words)
    others = [path for path in os.environ.get("AMCT_PEERS", "").split(os.pathsep) if path]
    found = find_sides([sys.executable, *args.python, *others])
    entries = choose(found, everything=args.all)
    print(machine())
    print("sides: " + ", ".join(f"{name} {version}" for name, (_, version) in found.items() if name != FLOOR.name))
    absent = [name for name in SIDES if name not in found]
    if absent:
        print(f"not installed: {', '.join(absent)}")
    try:
        speed_case = Case.of(args.model or SPEED_MODEL, args.images)
        latency_cases = [Case.of(name, args.images) for name in ([args.model] if args.model else LATENCY_MODELS)]
        with tempfile.TemporaryDirectory(prefix="bench_") as folder:
            bench = Bench(args, Path(folder))
            if "speed" in args.only:
                report_speed(bench, speed_case, entries)
            if "memory" in args.only:
                report_memory(bench, speed_case, entries)
            if "latency" in args.only:
                for case in latency_cases:
                    report_latency(bench, case, entries)
    except MissingDataError as reason:
        print(f"[ERROR] {reason}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
