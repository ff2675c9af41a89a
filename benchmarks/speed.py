"""`make bench-flow`: what importing and calibrating cost, beside the float inference of the same images.

MobileNetV2 of the shared test data, IFMR on every layer, batches of 8. Every measurement is a process of its own; the
float inference and the calibration take turns, and what is compared is their ratio, since machines are shared and
noisy. Decoding images is not counted on either side. Everything between the call of create_quant_config and the return
of save_model is, the loading of libraries on first use included.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import cycle, islice
from typing import Any

import numpy as np
from processes import peak_mebibytes

MODEL, BATCH = "mobilenetv2", 8
STEPS = ("create_quant_config", "quantize_model", "open session", "run batches", "save_model")


class Clock:
    """Wall time of named steps."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = 0.0

    def start(self) -> None:
        self._last = time.perf_counter()

    def stop(self, step: str) -> None:
        self.seconds[step] = self.seconds.get(step, 0.0) + time.perf_counter() - self._last


def read_batches(count: int) -> Iterator[np.ndarray]:
    """`count` images in batches, those of the calibration part over and over; one batch in memory at a time."""
    from shared_data import MODELS, batches, read_labels

    model = MODELS[MODEL]
    images = list(islice(cycle(read_labels(model.calibration)), count))
    for data, _ in batches(images, BATCH, model.prepare):
        yield data


def measure_inference(count: int) -> dict[str, Any]:
    """Float inference and nothing else."""
    import onnxruntime as ort
    from shared_data import MODELS

    model, clock = MODELS[MODEL], Clock()
    session = ort.InferenceSession(str(model.path()), providers=["CPUExecutionProvider"])
    for data in read_batches(count):
        clock.start()
        session.run(None, {model.input: data})
        clock.stop("inference")
    return clock.seconds


def measure_calibration(count: int, *, counting: bool = True) -> dict[str, Any]:
    """The whole job; without `counting` the observers see their tensors and do nothing."""
    import onnxruntime as ort
    from shared_data import MODELS

    import amct_onnx as amct

    model, clock = MODELS[MODEL], Clock()
    os.environ["AMCT_LOG_LEVEL"] = "ERROR"
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        clock.start()
        amct.create_quant_config("config.json", str(model.path()), batch_num=-(-count // BATCH))
        clock.stop(STEPS[0])
        clock.start()
        amct.quantize_model("config.json", str(model.path()), "modified.onnx", "record.txt")
        clock.stop(STEPS[1])
        if not counting:
            from amct_onnx.observe import operators as observer_op

            observer_op.observe = lambda *_: None
        clock.start()
        session = ort.InferenceSession("modified.onnx", amct.AMCT_SO, providers=["CPUExecutionProvider"])
        clock.stop(STEPS[2])
        for data in read_batches(count):
            clock.start()
            session.run(None, {model.input: data})
            clock.stop(STEPS[3])
        if counting:
            clock.start()
            amct.save_model("modified.onnx", "record.txt", "model")
            clock.stop(STEPS[4])
        os.chdir("/")
    return clock.seconds


IMPORT = """
import sys, time
start = time.perf_counter()
import amct_onnx
seconds = time.perf_counter() - start
print(seconds, *(name for name in ("numpy", "onnx_ir", "onnxruntime", "google.protobuf") if name in sys.modules))
"""


def measure_import() -> tuple[float, list[str]]:
    """Seconds of `import amct_onnx` in a fresh interpreter, the least of five, and the heavy libraries it loads."""
    outputs = [
        subprocess.run([sys.executable, "-c", IMPORT], check=True, capture_output=True, text=True).stdout.split()
        for _ in range(5)
    ]
    return min(float(words[0]) for words in outputs), outputs[0][1:]


def measure_help() -> float:
    """Seconds of the command `amct_onnx calibration --help`, the start of the interpreter included, least of five."""
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        command = [sys.executable, "-m", "amct_onnx", "calibration", "--help"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def in_process(what: str, count: int) -> dict[str, Any]:
    """Run one measurement in a process of its own."""
    command = [sys.executable, __file__, "--measure", what, "--images", str(count)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    result: dict[str, Any] = json.loads(output.splitlines()[-1])
    return result


WORKERS = {
    "inference": measure_inference,
    "calibration": measure_calibration,
    "exposed": lambda count: measure_calibration(count, counting=False),
}


def report(images: int, repeats: int) -> None:
    """Print the figures."""
    seconds, loaded = measure_import()
    print(f"import amct_onnx: {seconds:.3f} s, loads {', '.join(loaded) or 'nothing heavy'}")
    print(f"amct_onnx calibration --help: {measure_help():.2f} s")

    kinds = ("inference", "calibration", "exposed")
    runs = [{what: in_process(what, images) for what in kinds} for _ in range(repeats)]
    ratios = [sum(run["calibration"][step] for step in STEPS) / run["inference"]["inference"] for run in runs]
    print(f"\nMobileNetV2, {images} images in batches of {BATCH}, IFMR on every layer, {repeats} runs")
    print(f"create_quant_config to save_model / float inference: {statistics.median(ratios):.2f} times", end="")
    print(f" (runs: {', '.join(f'{ratio:.2f}' for ratio in ratios)})")
    run = runs[ratios.index(statistics.median_low(ratios))]
    base = run["inference"]["inference"]
    print(f"\n{'where the time goes (median run)':<40}{'seconds':>9}{'x float':>9}")
    print(f"{'float inference':<40}{base:>9.2f}{1.0:>9.2f}")
    for step in STEPS:
        seconds = run["calibration"][step]
        print(f"{step:<40}{seconds:>9.2f}{seconds / base:>9.2f}")
        if step == "run batches":
            shown = run["exposed"][step]
            for name, part in (("inference", base), ("showing tensors", shown - base), ("counting", seconds - shown)):
                print(f"{'  of which ' + name:<40}{part:>9.2f}{part / base:>9.2f}")

    print(f"\n{'peak memory, MiB':<20}{'float inference':>16}{'calibration':>13}{'more':>7}")
    for count in (32, images, 640):
        small, large = (in_process(what, count)["peak"] for what in ("inference", "calibration"))
        if small is None:
            print("this system does not tell the peak memory of a process")
            break
        print(f"{f'{count} images':<20}{small:>16.0f}{large:>13.0f}{large - small:>7.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=160)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--measure", choices=WORKERS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure is None:
        report(args.images, args.repeats)
    else:
        print(json.dumps({**WORKERS[args.measure](args.images), "peak": peak_mebibytes()}))


if __name__ == "__main__":
    main()
