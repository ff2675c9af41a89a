"""`make adaround`: learned rounding beside rounding to nearest, on images that calibration did not see.

A model is calibrated three times on the same images: with arq_quantize, with ada_quantize that learns nothing
(num_iteration 0: rounding to nearest with its scales) and with ada_quantize. First the layers by themselves: each gets
its input of the float model, and the squared error of its output is summed over the test images. Then the networks:
top-1 of the fake-quant models, and the signal to noise ratio of their outputs to the float ones.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import onnx
import onnxruntime as ort
from agreement import Power
from onnx import helper, numpy_helper
from shared_data import DATA, MODELS, FloatArray, SharedModel, batches, read_labels, spread

import amct_onnx as amct
from amct_onnx.files.record import read_record

METHODS = {
    "arq, nearest": "arq_quantize {}",
    "ada, nearest": "ada_quantize { num_iteration : 0 }",
    "ada, learned": "ada_quantize { num_iteration : %d }",
}
CPU = ["CPUExecutionProvider"]


def quantize(model: SharedModel, method: str, args: argparse.Namespace, folder: Path) -> None:
    """Calibrate with the weight algorithm of `method` and save both models in `folder`."""
    folder.mkdir()
    config, modified, record, cfg = (str(folder / name) for name in ("c.json", "modified.onnx", "record.txt", "q.cfg"))
    images = spread(read_labels(model.calibration, args.data), args.calibration)
    algorithm = METHODS[method] % args.iterations if "%" in METHODS[method] else METHODS[method]
    count = -(-len(images) // args.batch_size)
    Path(cfg).write_text(f"batch_num : {count} common_config {{ {algorithm} }}", encoding="utf-8")
    amct.create_quant_config(config, str(model.path(args.data)), config_defination=cfg)
    amct.quantize_model(config, str(model.path(args.data)), modified, record)
    session = ort.InferenceSession(modified, amct.AMCT_SO)
    for data, _ in batches(images, args.batch_size, model.prepare):
        session.run(None, {model.input: data})
    amct.save_model(modified, record, str(folder / "model"))


def learned_weights(folder: Path) -> dict[str, FloatArray]:
    """The float32 weights that the integers of the deploy model stand for, by layer."""
    graph = onnx.load(folder / "model_deploy_model.onnx").graph
    integers = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    found = {}
    for layer, record in read_record(folder / "record.txt").items():
        weight = next(integers[node.input[1]] for node in graph.node if node.name == layer and node.input[1:])
        scale = np.asarray(record.scale_w, np.float32)
        found[layer] = weight * (scale.reshape(-1, *[1] * (weight.ndim - 1)) if scale.size > 1 else scale)
    return found


def layer_probe(folder: Path) -> tuple[onnx.ModelProto, list[str]]:
    """The float model (fused) with the squared output errors of each layer as outputs, and the names of the layers.

    The outputs "<layer>.nearest" and "<layer>.learned" are the errors of the layer alone, with its float input.
    """
    model = onnx.load(folder / "modified.onnx")  # it holds the weights rounded to nearest, and the float ones
    learned = learned_weights(folder)
    graph = model.graph
    floats = {
        tensor.name.removesuffix(".float_weight") for tensor in graph.initializer if "float_weight" in tensor.name
    }
    kept = [node for node in graph.node if node.domain == "" and "float_weight" not in node.name]
    del graph.node[:]
    for node in kept:
        graph.node.append(node)
        if node.name not in floats:
            continue
        nearest = node.input[1]
        node.input[1] = f"{node.name}.float_weight"
        graph.node[-1].CopyFrom(node)
        initializer = numpy_helper.from_array(learned[node.name], f"{node.name}.learned_weight")
        graph.initializer.append(initializer)
        for kind, weight in (("nearest", nearest), ("learned", initializer.name)):
            twin, error = onnx.NodeProto(), f"{node.name}.{kind}"
            twin.CopyFrom(node)
            twin.name, twin.input[1], twin.output[0] = error, weight, f"{error}.output"
            graph.node.append(twin)
            graph.node.append(helper.make_node("Sub", [f"{error}.output", node.output[0]], [f"{error}.difference"]))
            graph.node.append(helper.make_node("ReduceSumSquare", [f"{error}.difference"], [error], keepdims=0))
            graph.output.append(helper.make_tensor_value_info(error, onnx.TensorProto.FLOAT, []))
    return model, sorted(floats)


def layer_errors(model: SharedModel, folder: Path, args: argparse.Namespace) -> dict[str, tuple[float, float]]:
    """Of each layer, the squared output errors by rounding to nearest and learned, over some test images."""
    probe, layers = layer_probe(folder)
    wanted = [f"{layer}.{kind}" for layer in layers for kind in ("nearest", "learned")]
    session = ort.InferenceSession(probe.SerializeToString(), providers=CPU)
    total = np.zeros(len(wanted))
    for data, _ in batches(spread(read_labels(model.test, args.data), args.probe), args.batch_size, model.prepare):
        total += np.array(session.run(wanted, {model.input: data}), np.float64)
    return {layer: (float(total[2 * k]), float(total[2 * k + 1])) for k, layer in enumerate(layers)}


def report_layers(errors: dict[str, tuple[float, float]]) -> bool:
    """Print what learning takes off the layers' errors; False where it does not do so for the median layer."""
    # A classifier whose weights are on their grid in the file has nothing to round, and so no error to lower.
    largest = max(nearest for nearest, _ in errors.values())
    lowered = {layer: 100 * (1 - b / a) for layer, (a, b) in errors.items() if a > 1e-9 * largest}
    worst, best = min(lowered, key=lambda name: lowered[name]), max(lowered, key=lambda name: lowered[name])
    print(
        f"output error of {len(lowered)} layers against rounding to nearest: {median(lowered.values()):.1f} % less "
        f"(median; least {lowered[worst]:.1f} %: {worst}, most {lowered[best]:.1f} %: {best})"
    )
    return median(lowered.values()) > 0


def report_networks(model: SharedModel, folder: Path, args: argparse.Namespace) -> None:
    """Print top-1 and signal to noise ratio of the float model and of each method."""
    files = {method: folder / method / "model_fake_quant_model.onnx" for method in METHODS}
    sessions = {name: ort.InferenceSession(str(path), providers=CPU) for name, path in files.items()}
    reference = ort.InferenceSession(str(model.path(args.data)), providers=CPU)
    images = spread(read_labels(model.test, args.data), args.limit)
    power = {method: Power() for method in METHODS}
    hits = dict.fromkeys(("float", *METHODS), 0)
    for data, labels in batches(images, args.batch_size, model.prepare):
        scores: dict[str, FloatArray] = {"float": reference.run(None, {model.input: data})[0]}
        scores |= {method: session.run(None, {model.input: data})[0] for method, session in sessions.items()}
        for name, array in scores.items():
            hits[name] += int((array.reshape(len(labels), -1).argmax(axis=1) == np.asarray(labels)).sum())
        for method in METHODS:
            power[method].add(scores["float"], scores[method])
    print(f"{'':<14}{'top1':>7}{'fq/float dB':>13}")
    for name, count in hits.items():
        decibel = f"{power[name].decibel:>13.1f}" if name in power else ""
        print(f"{name:<14}{100 * count / len(images):>7.2f}{decibel}")


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="mobilenetv2", help="which model")
    parser.add_argument("--calibration", type=int, default=64, help="number of calibration images")
    parser.add_argument("--limit", type=int, default=250, help="number of test images for top-1 and dB")
    parser.add_argument("--probe", type=int, default=32, help="number of test images for the errors of layers")
    parser.add_argument("--iterations", type=int, default=10000, help="num_iteration of ada_quantize")
    parser.add_argument("--batch_size", type=int, default=16, help="images per batch")
    parser.add_argument("--data", type=Path, default=DATA, help="folder with models/ and images/ ($AMCT_TEST_DATA)")
    return parser.parse_args()


def main() -> int:
    """Print the comparison; the exit code is 1 where learned rounding does not lower the error of the layers."""
    args = parse_arguments()
    model = MODELS[args.model]
    if not model.path(args.data).is_file():
        print(f"[ERROR] no such model: {model.path(args.data)}; pass --data or set AMCT_TEST_DATA", file=sys.stderr)
        return 1
    os.environ.setdefault("AMCT_LOG_LEVEL", "ERROR")
    print(
        f"{args.model}, calibrated on {args.calibration} images; layers on {args.probe} test images, networks on "
        f"{args.limit}",
        flush=True,
    )
    with tempfile.TemporaryDirectory() as folder:
        seconds = {}
        for method in METHODS:
            start = time.perf_counter()
            quantize(model, method, args, Path(folder) / method)
            seconds[method] = time.perf_counter() - start
        better = report_layers(layer_errors(model, Path(folder) / "ada, learned", args))
        report_networks(model, Path(folder), args)
        print("create_quant_config to save_model: " + ", ".join(f"{m}: {s:.0f} s" for m, s in seconds.items()))
    return 0 if better else 1


if __name__ == "__main__":
    sys.exit(main())
