"""`make beside-float`: how long int8 models take beside float in ONNX Runtime, and how much of them is int8.

One thread and one sample; models take turns, and the ratio is that of the fastest runs. `full` is `full_int8=True` with
effort fast. Sizes are those of the files.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from hard_tasks import HARD
from mobile_networks import MOBILE, pictures
from patterns import open_session, ratio
from processes import machine
from tasks import TASKS

import amct_onnx

SETTINGS: dict[str, dict[str, Any]] = {
    "fast": {"effort": "fast"},
    "default": {"effort": "default"},
    "full": {"effort": "fast", "full_int8": True},
}
KINDS = frozenset({"Conv", "Gemm", "MatMul"})


@dataclass(frozen=True, kw_only=True)
class Network:
    """A float model, calibration data as `quantize` takes them, and one sample to run."""

    model: Path
    data: Any
    feed: dict[str, np.ndarray]


def networks(names: list[str], folder: Path, samples: int) -> Iterator[tuple[str, Network]]:
    """The networks of these names; what is made for them is in `folder`."""
    for name in names:
        if name in MOBILE:
            model, data = folder / f"{name}.onnx", pictures(samples)
            MOBILE[name](model)
            yield name, Network(model=model, data=data, feed={"x": data[:1]})
            continue
        task = TASKS[name] if name in TASKS else HARD[name]
        path = folder / f"{name}{task.suffix}"
        task.write_calibration(path, samples)
        stored = np.load(path)
        inputs = [value.name for value in onnx.load(task.case.model).graph.input]
        feed = {inputs[0]: stored[:1]} if isinstance(stored, np.ndarray) else {key: stored[key][:1] for key in inputs}
        yield name, Network(model=task.case.model, data=str(path), feed=feed)


def measure(network: Network, folder: Path, seconds: float) -> Iterator[str]:
    """A cell for each of SETTINGS."""
    kinds = {node.name: node.op_type for node in onnx.load(network.model).graph.node}
    before = open_session(str(network.model))
    for options in SETTINGS.values():
        result = amct_onnx.quantize(str(network.model), network.data, **options)
        file = Path(result.save(folder / "int8", inspect=False).files[0])
        layers = [one.quantized for one in result.decisions if kinds.get(one.layer) in KINDS]
        found = ratio(before, open_session(str(file)), network.feed, seconds)
        size = file.stat().st_size / network.model.stat().st_size
        yield f"{found:.2f} {f'{sum(layers)}/{len(layers)}':>7} {size:.2f}"


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    every = [*TASKS, *MOBILE, *HARD]
    parser.add_argument("--models", nargs="+", choices=every, default=every, help="which networks (all)")
    parser.add_argument("--samples", type=int, default=48, help="calibration samples (48)")
    parser.add_argument("--seconds", type=float, default=2.0, help="of turns for each pair of models (2)")
    args = parser.parse_args()
    print(machine())
    print("int8 / float: time, layers in int8, size")
    print(f"{'':<20}" + "".join(f"{name:>20}" for name in SETTINGS))
    with tempfile.TemporaryDirectory(prefix="beside_float_") as name:
        for network, case in networks(args.models, Path(name), args.samples):
            print(f"{network:<20}", end="", flush=True)
            for cell in measure(case, Path(name), args.seconds):
                print(f"{cell:>20}", end="", flush=True)
            print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
