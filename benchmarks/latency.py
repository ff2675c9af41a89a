"""How fast ONNX Runtime runs several models with the same inputs, taking turns in one process, and what it runs."""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnxruntime as ort
from agreement import Power

from amct_onnx.measure.kernel_report import inspect_model
from amct_onnx.run.saturation import saturates

FLOAT = "float"


def open_session(path: str, threads: int) -> ort.InferenceSession:
    """A session on the CPU."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    # Threads that wait busily for the next run of one model would slow down the one whose turn it is.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def measure(files: dict[str, str], images: Path, rounds: int, threads: int) -> dict[str, dict[str, Any]]:
    """Of each model, by label (`FLOAT` is among them), what was measured, or the problem.

    A turn runs a model twice and times the second run, when its weights are in the caches. The order is drawn anew in
    each round, the same in every measurement, so that no model always follows the same other one.
    """
    data = np.load(images, mmap_mode="r")
    sessions: dict[str, ort.InferenceSession] = {}
    results: dict[str, dict[str, Any]] = {}
    for label, path in files.items():
        try:
            sessions[label] = open_session(path, threads)
            sessions[label].run(None, {sessions[label].get_inputs()[0].name: np.array(data[:1])})
        except Exception as reason:  # ONNX Runtime has a class for each status code, and they share no base
            sessions.pop(label, None)
            if label == FLOAT:
                raise
            results[label] = {"problem": "does not run: " + " ".join(str(reason).split())[:200]}
    seconds: dict[str, list[float]] = {label: [] for label in sessions}
    power = {label: Power() for label in sessions}
    order, chance = list(sessions), random.Random(0)
    for turn in range(rounds):
        image = np.array(data[turn % len(data)][None])
        outputs = {}
        chance.shuffle(order)
        for label in order:
            session = sessions[label]
            feed = {session.get_inputs()[0].name: image}
            session.run(None, feed)
            start = time.perf_counter()
            outputs[label] = session.run(None, feed)[0]
            seconds[label].append(time.perf_counter() - start)
        for label, output in outputs.items():
            power[label].add(outputs[FLOAT], output)
    for label in sessions:
        kernels = inspect_model(files[FLOAT], files[label], threads=threads).kernels
        results[label] = {
            "milliseconds": 1000 * median(seconds[label]),
            "ratio": median(mine / base for mine, base in zip(seconds[label], seconds[FLOAT], strict=True)),
            "decibel": power[label].decibel,
            "integer": sum(kernels.integer.values()),
            "float": sum(kernels.floating.values()),
            "conversions": sum(kernels.conversions.values()),
        }
    return results


def main() -> int:
    """Run the measurement that beside_peers.py asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=Path, required=True, help="JSON: {label: model file}")
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--result", type=Path, required=True)
    args = parser.parse_args()
    files = json.loads(args.files.read_text(encoding="utf-8"))
    found = {"models": measure(files, args.images, args.rounds, args.threads), "saturates": saturates()}
    args.result.write_text(json.dumps(found), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
