"""`make transformers`: a sentence encoder in int8, and with weights of 4 bits: accuracy, size and latency beside float.

Prints for each form Spearman's correlation on the test pairs, its difference to float with a paired bootstrap interval,
the SQNR of the embeddings, the size of the file and the latency as a share of float's: medians of sessions that take
turns within this process. Everything is calibrated with the calibration part alone.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from measures import Array, Interval, paired_difference
from shared_data import DATA
from tasks import Feed, Sentences, Similarities

import amct_onnx
from amct_onnx import AdaRound
from amct_onnx.measure.kernel_report import inspect_model
from amct_onnx.plan.float_model import FloatModel
from amct_onnx.ptq.weight_only import quantize_weights
from amct_onnx.targets.table import TARGETS
from amct_onnx.values.request import Request

TASK = Sentences(name="minilm", file="minilm_l6.onnx", tally=Similarities, suffix=".npz")
MODEL = DATA / "models" / TASK.file
_BATCH = 8
_TURN = 0.25  # seconds that one session is measured for at a time


def calibration(count: int | None = None, *, padded: bool = False) -> list[Feed]:
    """Batches of calibration sentences that do not occur in the test, each of like length, so that little is padding.

    Batches come in random order: the first samples serve to judge steps, and should be like the others.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "calibration.npz"
        TASK.write_calibration(path, 10**6 if count is None else count)
        with np.load(path) as stored:
            data = {name: stored[name] for name in stored.files}
    lengths = data["attention_mask"].sum(axis=1)
    order = np.arange(len(lengths)) if padded else np.argsort(lengths, kind="stable")
    feeds = []
    starts = np.arange(0, len(order), _BATCH)
    for start in starts if padded else np.random.default_rng(0).permutation(starts):
        chosen = order[start : start + _BATCH]
        longest = data["input_ids"].shape[1] if padded else int(lengths[chosen].max())
        feeds.append({name: array[chosen, :longest] for name, array in data.items()})
    return feeds


def open_session(model: str | os.PathLike[str] | bytes, threads: int = 0) -> ort.InferenceSession:
    """A session on the CPU whose threads do not spin between the turns of others."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return ort.InferenceSession(
        model if isinstance(model, bytes) else os.fspath(model), options, providers=["CPUExecutionProvider"]
    )


def embeddings(session: ort.InferenceSession, items: list[tuple[Feed, float]], size: int = 32) -> Array:
    """float32 [pairs, 2, d]; pairs run in batches of `size`, without the padding that a whole batch has."""
    order = sorted(range(len(items)), key=lambda k: int(items[k][0]["attention_mask"].sum(axis=1).max()))
    found: list[Any] = [None] * len(items)
    for start in range(0, len(order), size):
        chosen = order[start : start + size]
        feed = {name: np.concatenate([items[k][0][name] for k in chosen]) for name in items[0][0]}
        longest = int(feed["attention_mask"].sum(axis=1).max())
        output = session.run(None, {name: array[:, :longest] for name, array in feed.items()})[0]
        for place, k in enumerate(chosen):
            found[k] = output[2 * place : 2 * place + 2]
    return np.stack(found)


def tally(reference: Array, got: Array, items: list[tuple[Feed, float]]) -> Similarities:
    """What the pairs add up to."""
    similarities = Similarities()
    for exact, output, (_, score) in zip(reference, got, items, strict=True):
        similarities.add(exact, output, score)
    return similarities


def forms(feeds: list[Feed], iterations: int) -> Iterator[tuple[str, amct_onnx.QuantizedModel, float]]:
    """The quantized forms of the model, and how many seconds each took."""

    def timed(name: str, make: Any) -> tuple[str, amct_onnx.QuantizedModel, float]:
        start = time.perf_counter()
        return name, make(), time.perf_counter() - start

    int8 = timed("int8", lambda: amct_onnx.quantize(MODEL, feeds))
    yield int8
    yield timed("int8, reduce_range", lambda: int8[1].to(reduce_range=True))
    yield timed("int8, fast", lambda: amct_onnx.quantize(MODEL, feeds, effort="fast"))
    source = FloatModel.open(str(MODEL)).prepared()
    learned = AdaRound(num_iteration=iterations)
    yield timed("int4, nearest", lambda: amct_onnx.quantize(MODEL, None, weight_only=4))
    yield timed("int4, GPTQ", lambda: amct_onnx.quantize(MODEL, feeds, weight_only=4))
    yield timed(
        "int4, AdaRound",
        lambda: quantize_weights(
            source, feeds, request=Request(), target=TARGETS["onnxruntime"], methods=("adaround",), settings=learned
        ),
    )


def latencies(sessions: Mapping[str, ort.InferenceSession], feed: Feed, rounds: int) -> dict[str, float]:
    """Median seconds of a run of each session; in each round their order is drawn anew."""
    random = np.random.default_rng(0)
    times: dict[str, list[float]] = {name: [] for name in sessions}
    names = list(sessions)
    for _ in range(rounds):
        for which in random.permutation(len(names)):
            session = sessions[names[which]]
            session.run(None, feed)
            end = time.perf_counter() + _TURN
            while True:
                begin = time.perf_counter()
                session.run(None, feed)
                now = time.perf_counter()
                times[names[which]].append(now - begin)
                if now > end:
                    break
    return {name: statistics.median(values) for name, values in times.items()}


def latency_feeds(items: list[tuple[Feed, float]]) -> dict[str, Feed]:
    """One sentence of 64 tokens, one of usual length that is padded to 64, and one of them without padding."""
    pair = sorted(items, key=lambda item: int(item[0]["attention_mask"].sum()))[len(items) // 2][0]
    padded = {name: array[:1] for name, array in pair.items()}
    full = padded | {"attention_mask": np.ones_like(padded["attention_mask"])}
    length = int(padded["attention_mask"].sum())
    return {"64": full, "64 padded": padded, f"{length}": {name: array[:, :length] for name, array in padded.items()}}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, help="calibration sentences, all by default")
    parser.add_argument("--pairs", type=int, help="test pairs, all by default")
    parser.add_argument("--iterations", type=int, default=2000, help="of AdaRound")
    parser.add_argument("--rounds", type=int, default=20, help="in which latencies are measured")
    parser.add_argument("--kernels", action="store_true", help="print what ONNX Runtime makes of int8")
    arguments = parser.parse_args()
    items = list(TASK.test(arguments.pairs))
    feeds = calibration(arguments.samples)
    sessions = {"float": open_session(MODEL)}
    exact = embeddings(sessions["float"], items)
    reference = tally(exact, exact, items).figures()["Spearman"]
    rows = {"float": [f"{reference.value:.2f}", "", "", f"{MODEL.stat().st_size / 1e6:.1f}", ""]}
    with tempfile.TemporaryDirectory() as folder:
        for name, model, seconds in forms(feeds, arguments.iterations):
            file = model.save(Path(folder) / f"{len(rows)}", inspect=False).files[0]
            sessions[name] = open_session(file)
            figures = tally(exact, embeddings(sessions[name], items), items).figures()
            difference = paired_difference(figures["Spearman"], reference)
            size = f"{Path(file).stat().st_size / 1e6:.1f}"
            rows[name] = [f"{figures['Spearman'].value:.2f}", _interval(difference), f"{figures['dB'].value:.1f}", size]
            rows[name].append(f"{seconds:.0f}")
            if arguments.kernels and name == "int8":
                print("\n".join(inspect_model(os.fspath(MODEL), file).lines()))
        headings = ["", "Spearman", "minus float", "dB", "MB", "s"]
        for heading, feed in latency_feeds(items).items():
            found = latencies(sessions, feed, arguments.rounds)
            headings.append(f"{heading} tokens")
            for name, row in rows.items():
                row.append(f"{found[name] / found['float']:.2f}")
    print(f"{len(items)} test pairs, {sum(len(feed['input_ids']) for feed in feeds)} calibration sentences; latencies")
    print("are shares of float's, batch 1.")
    print("| " + " | ".join(headings) + " |")
    print("| --- " * len(headings) + "|")
    for name, row in rows.items():
        print(f"| {name} | " + " | ".join(row) + " |")


def _interval(difference: Interval) -> str:
    return f"{difference.value:+.2f} [{difference.low:+.2f}, {difference.high:+.2f}]"


if __name__ == "__main__":
    main()
