"""A small network, data for it in several forms, and the files of a result: what tests of engines and state compare."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from PIL import Image

import amct_onnx

MODEL = """
<ir_version: 10, opset_import: ["" : 17]>
net (float[N, 3, 16, 16] x) => (float[N, 10] y) {
    c = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1], strides = [2, 2]> (x, w0, b0)
    r = Relu (c)
    d = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1], group = 8> (r, w1, b1)
    e = Clip (d, zero, six)
    p = Conv <kernel_shape = [1, 1]> (e, w2, b2)
    s = Add (p, r)
    g = GlobalAveragePool (s)
    f = Flatten (g)
    y = Gemm <transB = 1> (f, w3, b3)
}
"""


def network(folder: Path) -> Path:
    """A small network with what the recipe works on, in a file."""
    random = np.random.default_rng(0)
    graph = ir.from_onnx_text(MODEL)
    shapes = {"w0": (8, 3, 3, 3), "b0": (8,), "w1": (8, 1, 3, 3), "b1": (8,), "w2": (8, 8, 1, 1), "b2": (8,)}
    shapes |= {"w3": (10, 8), "b3": (10,)}
    arrays = {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    arrays["w0"] *= np.logspace(-2, 1, 8, dtype=np.float32).reshape(8, 1, 1, 1)  # equalization has something to do
    arrays |= {"zero": np.float32(0), "six": np.float32(6)}
    values = {value.name: value for node in graph.graph for value in node.inputs if value is not None}
    for name, array in arrays.items():
        values[name].const_value = ir.tensor(array, name=name)
        graph.graph.register_initializer(values[name])
    path = folder / "net.onnx"
    ir.save(graph, path)
    return path


def images(folder: Path, count: int) -> Path:
    random = np.random.default_rng(1)
    folder.mkdir()
    for number in range(count):
        pixels = random.integers(0, 255, (20, 24, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:04}.png")
    return folder


def samples(count: int) -> np.ndarray:
    return np.random.default_rng(2).standard_normal((count, 3, 16, 16)).astype(np.float32)


def a_folder_of_images(folder: Path) -> Any:
    return images(folder / "photos", 150)


def an_array_in_a_file(folder: Path) -> Any:
    np.save(folder / "x.npy", samples(150))
    return folder / "x.npy"


def files_of_batches(folder: Path) -> Any:
    (folder / "batches").mkdir()
    for number, batch in enumerate(np.array_split(samples(150), 13)):
        np.save(folder / "batches" / f"{number:02}.npy", batch)
    return folder / "batches"


def an_array_in_memory(folder: Path) -> Any:
    return samples(150)


def a_generator(folder: Path) -> Any:
    return (sample for sample in samples(150))


def files_of(result: amct_onnx.QuantizedModel, folder: Path) -> Mapping[str, bytes]:
    folder.mkdir()
    amct_onnx.save_statistics(result.statistics, folder / "statistics.npz")
    for target in ("onnxruntime", "ascend"):
        result.to(target).save(folder / "m", inspect=False)
    return {file.name: file.read_bytes() for file in folder.iterdir()}
