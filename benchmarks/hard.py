"""`make hard`: the small networks of `networks/`, of kinds that plain int8 does not suit, by this tool and by others.

Each is calibrated with samples of its train part, and judged with test samples that neither training nor calibration
has seen. Peers are found as by `make bench`: --python PATH, once for each interpreter, or AMCT_PEERS. With --samplings
the calibration samples are drawn several times, and each step that the recipe keeps is tested by itself.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from accuracy import chosen_entries, measured_rows
from accuracy_report import LIKENESS, Row, covers, difference, print_rows
from beside_peers import Bench, Entry, find_sides, print_table
from hard_steps import report_samplings
from hard_tasks import HARD
from measures import RESAMPLES, Figure
from peers import ASCEND, FLOOR, OURS, PEERS, RECIPE
from processes import machine
from tasks import JUDGE

from amct_onnx.values.findings import EFFORTS

EXPLANATION = """\
int8 models run with session.x64quantprecision=1: exact sums, where a CPU without VNNI would saturate.
judge, in dB against float: of a detector, noise over signal of boxes and of scores, each pooled, the mean of both; else
the mean over samples of their own dB in front of a final Softmax. dB: pooled, of all outputs together. kept:
detections that are in both. layers %: Conv, Gemm and MatMul that the file quantizes. int8 %: integer kernels among all
that compute. [low, high]: 95 % of {resamples} paired bootstrap resamples of the test samples; "noise": it holds zero.
like: it quantizes about as much or more (no less layers %, or int8 % at most {likeness} points below).
"""


@dataclass(frozen=True, kw_only=True)
class Behind:
    """A figure in which a default is behind another model, beyond the interval."""

    network: str
    default: str
    other: str
    figure: str
    text: str


def compare(network: str, reference: Mapping[str, Figure], rows: Sequence[Row], resamples: int) -> list[Behind]:
    """Print this tool's default beside each other model for its target; where it is behind one of like coverage."""
    found = []
    sound = [row for row in rows if row.problem is None]
    for base in sound:
        ascend = base.entry.side is ASCEND
        if base.entry.side not in (OURS, ASCEND) or base.entry.scheme.name != "default":
            continue
        others = [row for row in sound if row is not base and (row.entry.side is ASCEND) == ascend]
        names = [JUDGE, next(iter(reference)), *(name for name in ("agree", "kept") if name in reference)]
        lines: list[tuple[str, Sequence[str] | str]] = []
        for row in others:
            alike = ascend or row.entry.side in (OURS, RECIPE) or covers(row.coverage, base.coverage)
            cells = []
            for name in names:
                text, verdict = difference(base.figures[name], row.figures[name], resamples)
                cells += [text, verdict]
                better_effort = row.entry.scheme.name == "best" and row.entry.side is base.entry.side
                if verdict == "behind" and alike and not better_effort:
                    found.append(Behind(network=network, default=base.label, other=row.label, figure=name, text=text))
            lines.append((row.label, [*cells, "like" if alike else ""]))
        if lines:
            header = [cell for name in names for cell in (name, "")]
            print_table([f"{base.label}, minus", *header, ""], lines)
    return found


def entries_of(args: argparse.Namespace, found: Mapping[str, tuple[str, str]]) -> dict[Entry, str]:
    """This tool, AMCT's recipe and the peers; each with its version."""
    entries = chosen_entries(args, found)
    python, version = found[OURS.name]
    recipe = Entry(side=RECIPE, scheme=RECIPE.schemes[0], python=python)
    ours = [entry for entry in entries if not entry.is_peer]
    if not args.ascend:
        ours = [entry for entry in ours if entry.side is not ASCEND]
    peers = [entry for entry in entries if entry.is_peer]
    return {**{entry: entries[entry] for entry in ours}, recipe: version, **{entry: entries[entry] for entry in peers}}


def parse_arguments(words: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add(
        "--python", action="append", default=[], metavar="PATH", help="another interpreter, with peers; may be repeated"
    )
    add("--nets", nargs="+", choices=HARD, default=list(HARD), help="which networks (all)")
    add("--peers", nargs="*", choices=[side.name for side in PEERS], help="which peers (all that are installed)")
    add("--plain", action="store_true", help="the min-max settings of the peers only")
    add("--without", nargs="+", default=[], metavar="WORD", help="leave out settings of peers whose name contains it")
    add("--efforts", nargs="+", choices=EFFORTS, default=["fast", "default"], help="of this tool (fast and default)")
    add("--no-ascend", dest="ascend", action="store_false", help="target onnxruntime only")
    add("--samplings", type=int, metavar="N", help="test each step that is kept, for N draws of calibration samples")
    add("--calibration", type=int, help="calibration samples (160)")
    add("--test", type=int, help="most test samples (all)")
    add("--quick", action="store_true", help="few samples: whether it works, not what it says")
    add("--keep", type=Path, metavar="FOLDER", help="keep the models of peers, and take those that are there")
    add("--timeout", type=float, default=1800, help="seconds that one process may take")
    args = parser.parse_args(words)
    args.calibration = args.calibration or (8 if args.quick else 160)
    args.test = args.test or (6 if args.quick else None)
    args.resamples = 20 if args.quick else RESAMPLES
    args.plain = args.plain or args.quick
    args.keep = args.keep and args.keep.resolve()
    return args


def run_all(args: argparse.Namespace) -> list[Behind]:
    """Print the tables of each network."""
    others = [path for path in os.environ.get("AMCT_PEERS", "").split(os.pathsep) if path]
    found = find_sides([sys.executable, *args.python, *others])
    print("sides: " + ", ".join(f"{name} {version}" for name, (_, version) in found.items() if name != FLOOR.name))
    absent = [side.name for side in PEERS if side.name not in found]
    if absent:
        print(f"not installed: {', '.join(absent)}")
    print(EXPLANATION.format(resamples=args.resamples, likeness=LIKENESS), end="")
    entries, behind = entries_of(args, found), []
    with tempfile.TemporaryDirectory(prefix="hard_") as folder:
        for name in args.nets:
            place = Path(folder) / name
            place.mkdir()
            reference, rows = measured_rows(Bench(args, place), HARD[name], entries)
            print_rows(reference, rows, args.resamples)
            behind += compare(name, reference, rows, args.resamples)
            sys.stdout.flush()
    for one in behind:
        print(f"{one.network}: {one.default} is behind {one.other} in {one.figure}: {one.text}")
    if not behind:
        print("default is behind nothing of like coverage, beyond the interval")
    return behind


def main(words: Sequence[str] | None = None) -> int:
    """Print the tables; exit code 1 where default is behind, or where a step that was kept loses."""
    args = parse_arguments(words)
    print(machine())
    return 1 if (report_samplings(args) if args.samplings else run_all(args)) else 0


if __name__ == "__main__":
    os.environ.setdefault("AMCT_LOG_LEVEL", "ERROR")
    sys.exit(main())
