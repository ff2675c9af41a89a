"""`make large`: quantize a model of 3 GB, with the memory that each step takes, and its results checked.

The model is made here: convolutions, Gemm and MatMul with residual sums, seeded random weights in one external data
file, a tenth of them in one layer. First all steps run in one process, as a user's script does, then each in a process
of its own. Peak memory is what the system says of the process (resident, pages of mapped files included) against the
bytes of the model's weights; what of it is not files is sampled. The exit code is 1 when a check fails.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

TARGET = 1.6  # peak memory / size of the model
FILES = 4.6  # disk / size: model, calibration model, fake-quant model, deploy model, and one of them a second time
MINIMUM_SQNR_DB = 20.0  # fake-quant against float; about 90 layers of int8 in a row
GB = 10**9
STEPS = ("create_quant_config", "quantize_model", "open session", "run a batch", "save_model")


class Weights:
    """Random weights, one tensor in memory at a time: written to `file` as they are drawn."""

    def __init__(self, file: Path) -> None:
        self.bytes, self.tensors = 0, []
        self._file, self._location = file.open("wb"), file.name
        self._random = np.random.default_rng(0)

    def add(self, name: str, *shape: int, gain: float = 1.0, fan_in: int | None = None) -> str:
        from onnx import TensorProto

        array = self._random.standard_normal(shape, dtype=np.float32)
        array *= np.float32(gain / np.sqrt(fan_in or shape[0]))
        tensor = TensorProto(name=name, dims=shape, data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL)
        for key, value in (("location", self._location), ("offset", self.bytes), ("length", array.nbytes)):
            tensor.external_data.add(key=key, value=str(value))
        array.tofile(self._file)
        self.bytes += array.nbytes
        self.tensors.append(tensor)
        return name

    def close(self) -> None:
        self._file.close()


def make_model(path: Path, size: int) -> tuple[int, int]:
    """Write a model with about `size` bytes of weights; the exact number, and how many channels its input has."""
    import onnx
    from onnx import TensorProto, helper

    width = 2048 if size >= GB else 512
    channels = width // 4
    weights = Weights(path.with_name(f"{path.name}.data"))
    nodes: list[Any] = []

    def node(op_type: str, inputs: list[str], name: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(op_type, inputs, [f"{name}.y"], name=name, **attributes))
        return f"{name}.y"

    x, index, same = "x", 0, {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
    while weights.bytes < 0.15 * size:
        index += 1
        up = weights.add(f"conv{index}a.w", 2 * channels, channels, 3, 3, fan_in=9 * channels)
        down = weights.add(f"conv{index}b.w", channels, 2 * channels, 3, 3, fan_in=18 * channels, gain=0.5)
        y = node("Relu", [node("Conv", [x, up], f"conv{index}a", **same)], f"conv{index}r")
        x = node("Add", [x, node("Conv", [y, down], f"conv{index}b", **same)], f"conv{index}s")
    x = node("Flatten", [node("GlobalAveragePool", [x], "pool")], "flat")
    x = node("Gemm", [x, weights.add("widen.w", channels, width, gain=8.0)], "widen")
    large = max(8, int(0.1 * size) // (4 * width))
    y = node("Relu", [node("Gemm", [x, weights.add("large.w", width, large)], "large")], "large.r")
    turned = weights.add("back.w", width, large, gain=0.5, fan_in=large)
    x = node("Add", [x, node("Gemm", [y, turned], "back", transB=1)], "back.s")
    index = 0
    while weights.bytes < size:
        index += 1
        up, down = (
            weights.add(f"m{index}a.w", width, 2 * width),
            weights.add(f"m{index}b.w", 2 * width, width, gain=0.5),
        )
        y = node("Relu", [node("MatMul", [x, up], f"m{index}a")], f"m{index}r")
        x = node("Add", [x, node("MatMul", [y, down], f"m{index}b")], f"m{index}s")
    weights.close()
    graph = helper.make_graph(
        nodes,
        "large",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", channels, 8, 8])],
        [helper.make_tensor_value_info(x, TensorProto.FLOAT, ["N", width])],
        weights.tensors,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return weights.bytes, channels


def image(folder: Path, seed: int) -> dict[str, np.ndarray]:
    channels = json.loads((folder / "model.json").read_text())["channels"]
    return {"x": np.random.default_rng(seed).standard_normal((1, channels, 8, 8), dtype=np.float32)}


class Memory:
    """Peaks of this process in bytes: all that is resident as the system counts it, and sampled the parts of it."""

    def __init__(self) -> None:
        self.sampled = {"RssAnon": 0, "RssFile": 0}
        if Path("/proc/self/status").exists():
            threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            status = self._status()
            for key in self.sampled:
                self.sampled[key] = max(self.sampled[key], status.get(key, 0))
            time.sleep(0.01)

    @staticmethod
    def _status() -> dict[str, int]:
        lines = (line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
        return {key: int(text.split()[0]) << 10 for key, text in lines if key.startswith(("VmHWM", "Rss"))}

    def peaks(self) -> dict[str, int]:
        """total, anonymous and file; the last two are 0 where the system does not tell."""
        if Path("/proc/self/status").exists():
            total = self._status()["VmHWM"]
        else:
            import resource

            total = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << (0 if sys.platform == "darwin" else 10)
        return {"total": total, "anonymous": self.sampled["RssAnon"], "file": self.sampled["RssFile"]}


def run_steps(folder: Path, steps: tuple[str, ...]) -> dict[str, float]:
    """Seconds of each of `steps`, run in this process on the files in `folder`."""
    os.environ["AMCT_LOG_LEVEL"] = "ERROR"
    import onnxruntime as ort

    import amct_onnx as amct

    os.chdir(folder)
    sessions: list[Any] = []

    def open_session() -> None:
        sessions.append(ort.InferenceSession("modified.onnx", amct.AMCT_SO, providers=["CPUExecutionProvider"]))

    jobs: dict[str, Callable[[], Any]] = {
        "create_quant_config": lambda: amct.create_quant_config("config.json", "float.onnx"),
        "quantize_model": lambda: amct.quantize_model("config.json", "float.onnx", "modified.onnx", "record.txt"),
        "open session": open_session,
        "run a batch": lambda: sessions[0].run(None, image(folder, 1)),
        "save_model": lambda: amct.save_model("modified.onnx", "record.txt", "model"),
        "imports": lambda: amct.AMCT_SO,
    }
    seconds = {}
    for step in steps:
        start = time.perf_counter()
        jobs[step]()
        seconds[step] = time.perf_counter() - start
    return seconds


def read_weight(file: Path, layer: str) -> np.ndarray:
    """The weight of `layer` in a model with external data, as it multiplies the input; no other one is read."""
    import onnx
    from onnx import external_data_helper, numpy_helper

    graph = onnx.load(file, load_external_data=False).graph
    node = next(node for node in graph.node if node.name == layer)
    tensor = next(tensor for tensor in graph.initializer if tensor.name == node.input[1])
    external_data_helper.load_external_data_for_tensor(tensor, str(file.parent))
    array = numpy_helper.to_array(tensor)
    turned = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
    return array.T if turned else array


def check_weights(folder: Path) -> list[str]:
    """What is wrong with some weights, one of each kind of layer, by AMCT's formulas: the largest one is 127 steps."""
    wrong = []
    for layer in ("conv1b", "large", "back", "m1a"):
        source = read_weight(folder / "float.onnx", layer)
        axes = (1, 2, 3) if source.ndim == 4 else None  # a convolution has one scale for each output channel
        high, low = source.max(axes, keepdims=True), source.min(axes, keepdims=True)
        scale = np.where(high >= -low, high / np.float32(127), low / np.float32(-128))
        steps = np.clip(np.rint(source / scale.astype(np.float64)), -128, 127)
        for name, kind in (("deploy", np.int8), ("fake_quant", np.float32)):
            found = read_weight(folder / f"model_{name}_model.onnx", layer)
            if (found.dtype, found.shape) != (kind, source.shape):
                wrong.append(f"weight of {layer} in the {name} model is {found.dtype}{list(found.shape)}")
            elif not np.array_equal(found, steps):
                wrong.append(f"weight of {layer} in the {name} model is not the rounded one of the source")
    return wrong


def check_results(folder: Path) -> dict[str, Any]:
    """What is wrong with the files in `folder`, and the accuracy."""
    import onnx
    import onnxruntime as ort

    import amct_onnx as amct

    wrong = []
    names = ("modified.onnx", "model_deploy_model.onnx", "model_fake_quant_model.onnx")
    found = {path.name for path in folder.iterdir() if path.name.startswith(("mod", "."))}
    wanted = {*names, *(f"{name}.data" for name in names), "model_quant.json", "model.json"}
    if found != wanted:
        wrong.append(f"files: {sorted(found ^ wanted)}")
    for name in names:
        tensors = onnx.load(folder / name, load_external_data=False).graph.initializer
        places = {entry.value for tensor in tensors for entry in tensor.external_data if entry.key == "location"}
        if places != {f"{name}.data"}:
            wrong.append(f"{name} has its weights in {sorted(places)}")
    wrong += check_weights(folder)
    onnx.checker.check_model(str(folder / "model_fake_quant_model.onnx"))

    def run(session: ort.InferenceSession) -> np.ndarray:
        return session.run(None, image(folder, 1))[0]

    deploy = run(amct.deployed_session(folder / "model_deploy_model.onnx"))
    cpu = ["CPUExecutionProvider"]
    fake_quant = run(ort.InferenceSession(folder / "model_fake_quant_model.onnx", providers=cpu))
    reference = run(ort.InferenceSession(folder / "float.onnx", providers=cpu)).astype(np.float64)
    if not deploy.shape == fake_quant.shape == reference.shape:
        wrong.append(f"shapes: deploy {deploy.shape}, fake-quant {fake_quant.shape}, float {reference.shape}")
    if not np.array_equal(deploy, fake_quant):
        wrong.append(f"deploy and fake-quant model differ by up to {np.abs(deploy - fake_quant).max():g}")
    decibels = float(10 * np.log10((reference**2).sum() / ((reference - fake_quant) ** 2).sum()))
    if not decibels > MINIMUM_SQNR_DB:
        wrong.append(f"fake-quant against float {decibels:.1f} dB, less than {MINIMUM_SQNR_DB:g}")
    return {"wrong": wrong, "sqnr": decibels}


def measure(what: str, folder: Path) -> dict[str, Any]:
    """One measurement, in this process."""
    memory = Memory()
    if what == "make":
        size, channels = make_model(folder / "float.onnx", int(float(os.environ["AMCT_LARGE_BYTES"])))
        (folder / "model.json").write_text(json.dumps({"channels": channels}))
        result: dict[str, Any] = {"bytes": size}
    elif what == "check":
        result = check_results(folder)
    else:
        groups = {"flow": STEPS, "calibration": STEPS[2:4]}
        result = {"seconds": run_steps(folder, groups.get(what, (what,)))}
    return result | memory.peaks()


def in_process(what: str, folder: Path) -> dict[str, Any]:
    """Run one measurement in a process of its own."""
    command = [sys.executable, __file__, "--measure", what, "--folder", str(folder)]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    result: dict[str, Any] = json.loads(output.splitlines()[-1])
    return result


def digests(folder: Path) -> dict[str, str]:
    names = ("record.txt", "model_deploy_model.onnx", "model_deploy_model.onnx.data", "model_quant.json")
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}


def report(size: int, folder: Path) -> int:
    """Print the figures; the number of failed checks."""
    os.environ["AMCT_LARGE_BYTES"] = str(size)
    model = in_process("make", folder)["bytes"]
    idle = in_process("imports", folder)["total"]
    print(f"model: {model / GB:.2f} GB of float32 weights in one external data file")
    print(f"\npeak memory / size{'all':>22}{'not files':>11}{'files':>8}{'seconds':>9}")
    wrong, first = [], {}
    for what in ("flow", "create_quant_config", "quantize_model", "calibration", "save_model"):
        found = in_process(what, folder)
        parts = [found[key] / model for key in ("total", "anonymous", "file")]
        title = {"flow": "all steps in one process", "calibration": "open session, run"}.get(what, what)
        print(f"{title:<32}{parts[0]:>8.2f}{parts[1]:>11.2f}{parts[2]:>8.2f}{sum(found['seconds'].values()):>9.1f}")
        if what == "flow":
            first = digests(folder)
            for step, seconds in found["seconds"].items():
                print(f"  {step:<57}{seconds:>9.1f}")
        # Of a small model the libraries alone are more.
        peak = found["total"] - (idle if size < GB else 0)
        if peak / model > TARGET:
            wrong.append(f"{title} takes {peak / model:.2f} times the model, more than {TARGET}")
    print(f"{'libraries alone':<32}{idle / model:>8.2f}      target: {TARGET}")
    print("\nfiles, GB")
    for path in sorted(folder.iterdir()):
        if path.stat().st_size > 0.01 * size:
            print(f"  {path.name:<45}{path.stat().st_size / GB:>9.2f}")
    if digests(folder) != first:
        wrong.append("one process and several do not write the same bytes")
    found = in_process("check", folder)
    wrong += found["wrong"]
    print(f"\nfake-quant against float: {found['sqnr']:.1f} dB")
    for problem in wrong:
        print(f"FAILED: {problem}")
    passed = "all checks pass: memory, files, weights of four layers, deploy model equal to fake-quant model, accuracy"
    print(passed if not wrong else f"{len(wrong)} checks failed")
    return len(wrong)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=float, default=3.0, help="GB of weights (default 3)")
    parser.add_argument("--folder", help="where to make a temporary folder (default: the system's)")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure is not None:
        print(json.dumps(measure(args.measure, Path(args.folder))))
        return 0
    size, place = int(args.size * GB), args.folder or tempfile.gettempdir()
    needed, free = FILES * size, shutil.disk_usage(place).free
    if free < needed:
        print(f"{place} has {free / GB:.1f} GB left, and {needed / GB:.1f} are needed: give another --folder")
        return 1
    with tempfile.TemporaryDirectory(prefix="amct_large_", dir=place) as folder:
        return min(1, report(size, Path(folder).resolve()))


if __name__ == "__main__":
    sys.exit(main())
