"""`make conformance`: every model of ONNX's backend suite through all targets and AMCT's flow, and what comes of it.

Each model is quantized as it is and between two products, one of each operator with the recipe and in every opset too
(`conformance_forms`). The table counts what came of it (`conformance_outcomes`). Whatever must not be is listed, and
makes the exit code 1. Outcomes that are not those of the golden table are listed as well; `--write` makes them so.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from conformance_forms import NEWEST, OLDEST, fits_sandwich
from conformance_golden import GOLDEN, Outcomes, changes, read_golden, write_golden
from conformance_models import FOLDERS, Item, items, sources
from conformance_outcomes import ROUTES, TARGETS
from conformance_workers import Answer, Task, run_tasks

FORMS = ("frozen", "sandwich", "default", "opsets")
_EVERY = 8  # which of the models of a folder stands for it
_LETTERS = {"agrees": "a", "poor": "p", "refused": "r", "float": "f", "WRONG": "W"}


def tasks_of(found: Sequence[Item], form: str) -> list[Task]:
    """What there is to do of a form, in a fixed order."""
    if form in ("frozen", "sandwich"):
        return [Task(form=form, source=item.source, name=item.name, routes=ROUTES) for item in found]
    chosen = representatives(found)
    if form == "default":
        return [Task(form=form, source=item.source, name=item.name, routes=TARGETS) for item in chosen]
    return [
        Task(form=f"opset{opset}", source=item.source, name=item.name, routes=ROUTES)
        for item in chosen
        for opset in range(OLDEST, NEWEST + 1)
    ]


def representatives(found: Iterable[Item]) -> list[Item]:
    """Of the models that fit into a sandwich the one of the shortest name for each operator, and some in folders."""
    chosen: dict[str, Item] = {}
    stored: list[Item] = []
    for item in filter(fits_sandwich, found):
        if item.source in FOLDERS:
            stored.append(item)
        elif item.operator not in chosen or len(item.name) < len(chosen[item.operator].name):
            chosen[item.operator] = item
    return [*chosen.values(), *stored[::_EVERY]]


def totals(answers: Sequence[Answer]) -> str:
    """Models by form and outcome, a column for each route."""
    counts = Counter((_form(answer), answer.words, answer.route) for answer in answers)
    lines = [f"{'':38}" + "".join(f"{route:>13}" for route in ROUTES)]
    forms = [form for form in FORMS if any(key[0] == form for key in counts)]
    for form in forms:
        lines.append(f"{form}")
        for words in sorted({key[1] for key in counts if key[0] == form}):
            all_routes = counts[form, words, "form"]
            cells = [counts[form, words, route] + all_routes for route in ROUTES]
            lines.append(f"  {words:36}" + "".join(f"{cell or '.':>13}" for cell in cells))
    return "\n".join(lines)


def by_operator(answers: Sequence[Answer]) -> str:
    """Outcomes of all forms by operator, a cell for each route."""
    cells: dict[str, dict[str, Counter[str]]] = defaultdict(lambda: defaultdict(Counter))
    for answer in answers:
        operator = items(answer.task.source)[answer.task.name].operator
        letter = _LETTERS.get(re.split(r"\W", answer.words, maxsplit=1)[0])
        if letter:
            cells[operator][answer.route][letter] += 1
    lines = [
        "by operator, all forms: a agrees, p poor, r refused, f the float model does not run here, W wrong",
        f"{'':30}" + "".join(f"{route:22}" for route in ROUTES),
    ]
    for operator in sorted(cells, key=lambda name: (name in FOLDERS, name.lower())):
        texts = [
            " ".join(
                f"{letter}{cells[operator][route][letter]}"
                for letter in _LETTERS.values()
                if cells[operator][route][letter]
            )
            for route in ROUTES
        ]
        lines.append(f"{operator:30}" + "".join(f"{text:22}" for text in texts))
    return "\n".join(lines)


def kinds_of(wrong: Iterable[Answer]) -> Iterator[str]:
    """A line for each kind of what must not be: how often, where first, and what was seen there."""
    kinds: dict[tuple[str, str], list[Answer]] = defaultdict(list)
    for answer in wrong:
        kinds[answer.words, re.sub(r"\d+", "#", answer.details)].append(answer)
    for (words, _), found in kinds.items():
        first = found[0]
        yield f"{words}, {len(found)} times: {first.task.form} {first.task.name}, {first.route}: {first.details}"


def outcomes_of(answers: Iterable[Answer]) -> Outcomes:
    """The outcomes of each model by form and name, in the order of routes; one where the form cannot be made."""
    found: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    for answer in answers:
        found[answer.task.form, answer.task.name][answer.route] = answer.words
    return {
        key: (said["form"],) if "form" in said else tuple(said[route] for route in ROUTES if route in said)
        for key, said in found.items()
    }


def _form(answer: Answer) -> str:
    return "opsets" if answer.task.form.startswith("opset") else answer.task.form


def _shown(answers: Iterable[Answer], tasks: Sequence[Task]) -> Iterator[Answer]:
    """The same answers, with a line that grows on a terminal."""
    done: set[Task] = set()
    for answer in answers:
        done.add(answer.task)
        if sys.stderr.isatty():
            print(f"\r{len(done)} of {len(tasks)} models", end="", file=sys.stderr, flush=True)
        yield answer
    if sys.stderr.isatty():
        print(file=sys.stderr)


def parse_arguments(words: Sequence[str] | None) -> argparse.Namespace:
    """Arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--only", metavar="PATTERN", default="", help="models whose name or operator has this pattern")
    parser.add_argument("--form", choices=FORMS, nargs="+", default=FORMS, help="the forms to try")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", metavar="FILE", type=Path, help="write each outcome with its details")
    parser.add_argument("--write", action="store_true", help=f"write the outcomes to {GOLDEN.name}")
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    arguments = parse_arguments(words)
    start = time.perf_counter()
    pattern = re.compile(arguments.only)
    every = [item for source in sources() for item in items(source).values()]
    tasks = [
        task
        for form in arguments.form
        for task in tasks_of(every, form)
        if pattern.search(task.name) or pattern.search(items(task.source)[task.name].operator)
    ]
    answers = sorted(_shown(run_tasks(tasks, arguments.workers), tasks), key=lambda found: (found.task, found.route))
    if arguments.json:
        rows = [
            {
                "form": answer.task.form,
                "source": answer.task.source,
                "operator": items(answer.task.source)[answer.task.name].operator,
                "name": answer.task.name,
                "route": answer.route,
                "outcome": answer.words,
                "details": answer.details,
                "seconds": answer.seconds,
            }
            for answer in answers
        ]
        arguments.json.write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    print(by_operator(answers), totals(answers), sep="\n\n")
    wrong = [answer for answer in answers if answer.words.startswith("WRONG")]
    print(*kinds_of(wrong), sep="\n")
    found = outcomes_of(answers)
    for line in changes(read_golden(), found):
        print(line)
    if arguments.write:
        write_golden({**read_golden(), **found})
    print(f"{len(tasks)} models in {time.perf_counter() - start:.0f} s, {len(wrong)} outcomes are wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
