"""`make laws N=5000`: so many networks of `tests/support/networks`, each quantized in a drawn way and held to the laws.

Two processes share them. Examples come in chunks, each with its own seed, so that the same networks come in every run.
At the end the first counterexample of each kind is made as small as it gets, and printed with what brings it back.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
os.environ["AMCT_LOG_LEVEL"] = os.environ["AMCT_LOG_FILE_LEVEL"] = "ERROR"

import onnxruntime as ort
from hypothesis import HealthCheck, Phase, given, reproduce_failure, seed, settings
from network_laws import Trial, check, kind_of, trials
from networks import Network, networks

CHUNK = 50  # examples of one seed
WORKERS = 2
DIED = "a process died"
_CURRENT = "current.txt"  # in the folder of a process: the example that it is at
Failure = tuple[int, str]  # the chunk, and what the error says


@contextmanager
def _own_folder() -> Iterator[Path]:
    """An empty folder, which is the current one, too: the log of the package goes there."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as folder:
        yield Path(folder)


def _run(chunk: int, count: int, phases: tuple[Phase, ...], test: Callable[[Network, Trial], None]) -> None:
    """`count` examples of the seed `chunk`. Raises what the test raises."""
    chosen = settings(
        max_examples=count,
        phases=phases,
        database=None,
        deadline=None,
        print_blob=True,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    seed(chunk)(chosen(given(networks(), trials())(test)))()


def _examples(chunk: int, count: int) -> tuple[Counter[str], dict[str, Failure]]:
    """What came of the examples of a chunk, and the first failure of each kind."""
    found: Counter[str] = Counter()
    failures: dict[str, Failure] = {}

    def test(network: Network, trial: Trial) -> None:
        Path(_CURRENT).write_text(f"{trial}\n{network}", encoding="utf-8")
        Path("current.onnx").write_bytes(network.model.SerializeToString())
        with _own_folder() as folder:
            try:
                found[f"{trial.target:12} {check(network, trial, folder)}"] += 1
            except Exception as error:  # any is a counterexample
                found[f"{trial.target:12} COUNTEREXAMPLE"] += 1
                where = "".join(traceback.format_exception(error)[-5:])
                failures.setdefault(kind_of(error), (chunk, where))

    _run(chunk, count, (Phase.generate,), test)
    return found, failures


def _shrink(kind: str, chunk: int, count: int) -> str:
    """The smallest counterexample of this kind that hypothesis finds in the chunk, as text."""

    def test(network: Network, trial: Trial) -> None:
        with _own_folder() as folder:
            try:
                check(network, trial, folder)
            except Exception as error:
                if kind_of(error) == kind:
                    raise

    try:
        _run(chunk, count, (Phase.generate, Phase.shrink), test)
    except Exception as error:
        return "\n".join([str(error), *getattr(error, "__notes__", ())])
    return "it did not come again"


def _again(blob: str) -> None:
    """One example, from what was printed of it."""
    import hypothesis

    def test(network: Network, trial: Trial) -> None:
        print(trial, network, sep="\n")
        with _own_folder() as folder:
            print(check(network, trial, folder))

    made = settings(database=None, deadline=None)(given(networks(), trials())(test))
    reproduce_failure(hypothesis.__version__, blob.encode())(made)()


def _quiet(folder: str) -> None:
    """No messages; the log of the package goes to a folder."""
    os.chdir(folder)
    ort.set_default_logger_severity(4)
    logging.getLogger("amct_onnx").addHandler(logging.NullHandler())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("count", type=int, nargs="?", default=1000, help="networks")
    parser.add_argument("--first", type=int, default=0, metavar="CHUNK", help="the first seed")
    parser.add_argument("--again", metavar="BLOB", help="one counterexample, from what was printed of it")
    parser.add_argument("--no-shrink", action="store_true", help="print kinds of counterexamples only")
    options = parser.parse_args()
    if options.again:
        _quiet(tempfile.mkdtemp())
        _again(options.again)
        return 0
    chunks = [
        (options.first + place, min(CHUNK, options.count - start))
        for place, start in enumerate(range(0, options.count, CHUNK))
    ]
    found: Counter[str] = Counter()
    failures: dict[str, Failure] = {}
    began = time.monotonic()
    with ThreadPool(WORKERS, _Process.open) as threads:
        for done, (some, wrong) in enumerate(threads.imap(_examples_elsewhere, chunks), 1):
            found += some
            for kind, (chunk, text) in wrong.items():
                if kind not in failures:
                    failures[kind] = chunk, text
                    print(f"\n=== {kind}\n(chunk {chunk}) {text}", flush=True)
            if done % 5 == 0 or done == len(chunks):
                seconds = time.monotonic() - began
                counted = f"{sum(found.values())} networks, {seconds:.0f} s"
                print(f"{counted}, kinds of counterexamples: {len(failures)}", flush=True)
        for what, number in sorted(found.items()):
            print(f"{number:7} {what}")
        if not options.no_shrink:
            sizes = dict(chunks)
            tasks = [(kind, chunk, sizes[chunk]) for kind, (chunk, _) in failures.items() if kind != DIED]
            for (kind, *_), text in zip(tasks, threads.imap(_shrink_elsewhere, tasks), strict=True):
                print(f"\n=== {kind}\n{text}", flush=True)
    return 1 if failures else 0


class _Process:
    """A process that works for one thread, and its folder; another one takes its place if it dies."""

    own = threading.local()

    @classmethod
    def open(cls) -> None:
        cls.own.folder = tempfile.mkdtemp()
        cls.own.pool = ProcessPoolExecutor(1, get_context("spawn"), _quiet, (cls.own.folder,))

    @classmethod
    def call(cls, function: Callable[..., Any], *arguments: Any) -> Any:
        """Raises BrokenProcessPool."""
        try:
            return cls.own.pool.submit(function, *arguments).result()
        except BrokenProcessPool:
            cls.open()
            raise


def _examples_elsewhere(task: tuple[int, int]) -> tuple[Counter[str], dict[str, Failure]]:
    folder = Path(_Process.own.folder)
    try:
        return _Process.call(_examples, *task)
    except BrokenProcessPool:
        text = (folder / _CURRENT).read_text(encoding="utf-8")
        return Counter({DIED: 1}), {DIED: (task[0], f"{folder}\n{text}")}


def _shrink_elsewhere(task: tuple[str, int, int]) -> str:
    try:
        return str(_Process.call(_shrink, *task))
    except BrokenProcessPool:
        return "a process died meanwhile"


if __name__ == "__main__":
    sys.exit(main())
