"""The tables of `make accuracy`, and what they say: this tool beside float, beside the peers, beside AMCT's recipe."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from beside_peers import Entry, print_table
from coverage import Coverage
from measures import Figure, paired_difference
from peers import ASCEND, OURS
from tasks import RELATIVE, SQNR

FLOAT = "float"
# Intervals against float are shown for these; all figures have them beside the peers.
DROPS = ("top-1", "Spearman")
ALLOWED = 0.3  # points of top-1 that a default may lose beyond the interval
LIKENESS = 10  # points of int8 %: of networks that are quantized alike, ONNX Runtime fuses a few nodes more or less
_LONGEST = 110


@dataclass(frozen=True, kw_only=True, eq=False)
class Row:
    """What was measured of one quantized model; `figures` is empty where there is a problem."""

    entry: Entry
    label: str
    seconds: float
    kept: bool
    coverage: Coverage
    figures: Mapping[str, Figure]
    problem: str | None = None


def print_rows(reference: Mapping[str, Figure], rows: Sequence[Row], resamples: int) -> None:
    """Print the figures of all models."""
    names = list(reference)
    shown = [name for name in names[:1] if name in DROPS and resamples]
    header = [cell for name in names for cell in ((name, "drop") if name in shown else (name,))]
    first = [cell for name in names for cell in (_of_float(name, reference), *([""] if name in shown else []))]
    lines: list[tuple[str, Sequence[str] | str]] = [(FLOAT, [*first, "", "", ""])]
    for row in rows:
        if row.problem is not None:
            lines.append((row.label, row.problem[:_LONGEST]))
            continue
        cells = []
        for name in names:
            cells.append(f"{row.figures[name].value:.2f}")
            if name in shown:
                cells.append(difference(reference[name], row.figures[name], resamples)[0])
        shares = ("" if share is None else f"{share:.0f}" for share in (row.coverage.layers, row.coverage.kernels))
        lines.append((row.label, [*cells, *shares, f"{row.seconds:.1f}{'*' if row.kept else ' '}"]))
    print_table(["", *header, "layers %", "int8 %", "s "], lines)


def report(reference: Mapping[str, Figure], rows: Sequence[Row], resamples: int) -> None:
    """Print the figures of all models, then what they say."""
    print_rows(reference, rows, resamples)
    sound = [row for row in rows if row.problem is None]
    for row in sound:
        if row.entry.side is OURS:
            for line in beside_peers(row, [peer for peer in sound if peer.entry.is_peer], reference, resamples):
                print(line)
    *ascend, recipe = [row for row in rows if row.entry.side is ASCEND]
    for row in ascend:
        if row.problem is None and recipe.problem is None:
            text, verdict = difference(row.figures[SQNR], recipe.figures[SQNR], resamples)
            print(f"{row.label} - {recipe.entry.scheme.name}: {SQNR} {text} {verdict}")


def _of_float(name: str, reference: Mapping[str, Figure]) -> str:
    return "" if name in RELATIVE else f"{reference[name].value:.2f}"


def beside_peers(row: Row, peers: Sequence[Row], reference: Mapping[str, Figure], resamples: int) -> Iterator[str]:
    """Whether top-1 drops by more than is allowed; then this tool beside the best peers, in the figures that tell most.

    A best peer is chosen among those that quantize about as much or more; and among all, where it is another.
    """
    if "top-1" in reference and resamples:
        drop = paired_difference(reference["top-1"], row.figures["top-1"], resamples=resamples)
        yes = "no" if drop.low <= ALLOWED else "YES"
        yield f"{row.label}: top-1 drops by more than {ALLOWED} beyond the interval: {yes}"
    alike = [peer for peer in peers if covers(peer.coverage, row.coverage)]
    main = "agree" if "agree" in reference else next(iter(reference))
    for name in (SQNR, main):
        told = None
        for group, rivals in (("best peer of like coverage", alike), ("best peer", peers)):
            if rivals:
                best = max(rivals, key=lambda peer: peer.figures[name].value)
                if best is not told:
                    text, verdict = difference(row.figures[name], best.figures[name], resamples)
                    yield f"{row.label} - {group}, {best.label}: {name} {text} {verdict}"
                told = best


def covers(theirs: Coverage, own: Coverage) -> bool:
    """Whether a peer quantizes about as much or more, in its file or in what ONNX Runtime makes of it."""
    kernels = (theirs.kernels or 0) >= (own.kernels or 0) - LIKENESS
    return kernels or (theirs.layers or 0) >= (own.layers or 0) > 0


def difference(first: Figure, second: Figure, resamples: int) -> tuple[str, str]:
    """`first - second` with its interval, where it has one, and what to make of it."""
    if not (first.resampled and second.resampled and resamples):
        return f"{first.value - second.value:+.2f}", "(no interval)"
    found = paired_difference(first, second, resamples=resamples)
    verdict = "noise" if found.is_noise else "ahead" if found.value > 0 else "behind"
    return f"{found.value:+.2f} [{found.low:+.2f}, {found.high:+.2f}]", verdict
