"""`make dynamic`: `quantize(..., None, dynamic=True)` beside ONNX Runtime's `quantize_dynamic`.

The models are a trained sentence encoder with its task (Spearman's correlation on test pairs), and two with seeded
random weights: an encoder with embeddings of 30,000 x 384 and six layers of MatMul and Add, and an LSTM of two layers.
Both tools quantize in this process. Latencies are shares of float's, one thread, medians of sessions that take turns.

With --kernels, nodes alone in place of models: from which size on the integer kernel is faster than the float one.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from measures import paired_difference
from onnx import numpy_helper
from onnxruntime.quantization import quantize_dynamic
from transformer_models import MODEL, TASK, embeddings, latencies, latency_feeds, open_session, tally

import amct_onnx

Feed = Mapping[str, Any]


def _ours(model: Path, file: Path, **options: Any) -> Path:
    return Path(amct_onnx.quantize(model, None, dynamic=True, **options).save(file, inspect=False).files[0])


def _theirs(model: Path, file: Path, **options: Any) -> Path:
    quantize_dynamic(model, file.with_suffix(".onnx"), **options)
    return file.with_suffix(".onnx")


FORMS: Mapping[str, Callable[[Path, Path], Path]] = {
    "this tool": _ours,
    "this tool, reduce_range": lambda model, file: _ours(model, file, reduce_range=True),
    "quantize_dynamic": _theirs,
    "quantize_dynamic, per_channel": lambda model, file: _theirs(model, file, per_channel=True),
    "quantize_dynamic, per_channel, reduce_range": lambda model, file: _theirs(
        model, file, per_channel=True, reduce_range=True
    ),
}


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model, feeds for latencies by what they are called, and how sessions of it are scored, as cells of a row."""

    model: Path
    latency: Mapping[str, Feed]
    score: Callable[[ort.InferenceSession, ort.InferenceSession], list[str]]
    headings: tuple[str, ...]


class Weights:
    """Seeded random weights, and the text of a graph that reads them."""

    def __init__(self, seed: int) -> None:
        self._random, self.arrays = np.random.default_rng(seed), dict[str, np.ndarray]()

    def add(self, *shape: int, gain: float = 1.0) -> str:
        """The name of a new one, of variance gain / inputs."""
        name = f"w{len(self.arrays)}"
        array = self._random.standard_normal(shape, np.float32) * np.float32((gain / shape[-2]) ** 0.5)
        self.arrays[name] = array
        return name

    def vector(self, size: int, value: float, spread: float) -> str:
        """The name of a new one-dimensional one."""
        name = f"w{len(self.arrays)}"
        self.arrays[name] = (value + spread * self._random.standard_normal(size)).astype(np.float32)
        return name

    def save(self, text: str, file: Path) -> Path:
        """Write the model."""
        model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> {text}')
        model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in self.arrays.items())
        onnx.save(model, file)
        return file


def encoder(file: Path, *, words: int = 30_000, width: int = 384, heads: int = 12, layers: int = 6) -> Path:
    """An encoder of post-normalized layers with attention, the biases of products in an Add of their own."""
    weights, lines = Weights(0), []
    weights.arrays["split"] = np.array([0, 0, heads, width // heads])
    weights.arrays["merge"] = np.array([0, 0, width])
    weights.arrays["root"] = np.float32((width // heads) ** -0.5)
    weights.arrays["half"], weights.arrays["one"] = np.float32(0.5), np.float32(1)
    weights.arrays["rsqrt2"] = np.float32(0.5**0.5)

    def product(x: str, y: str, inputs: int, outputs: int, gain: float = 1.0) -> None:
        bias = weights.vector(outputs, 0, 0.05)
        lines.append(f"{y}m = MatMul({x}, {weights.add(inputs, outputs, gain=gain)}) {y} = Add({y}m, {bias})")

    def normalized(x: str, y: str) -> None:
        gain, shift = weights.vector(width, 1, 0.3), weights.vector(width, 0, 0.1)
        lines.append(f"{y} = LayerNormalization<axis=-1>({x}, {gain}, {shift})")

    table = weights.add(words, width, gain=words)
    lines.append(f"e = Gather({table}, ids)")
    normalized("e", "x0")
    for k in range(layers):
        for part, perm in (("q", "0,2,1,3"), ("k", "0,2,3,1"), ("v", "0,2,1,3")):
            product(f"x{k}", f"{part}{k}", width, width, gain=2.0)
            lines.append(f"{part}{k}r = Reshape({part}{k}, split) {part}{k}t = Transpose<perm=[{perm}]>({part}{k}r)")
        lines.append(f"s{k} = MatMul(q{k}t, k{k}t) d{k} = Mul(s{k}, root) p{k} = Softmax<axis=-1>(d{k})")
        lines.append(
            f"c{k} = MatMul(p{k}, v{k}t) ct{k} = Transpose<perm=[0,2,1,3]>(c{k}) cm{k} = Reshape(ct{k}, merge)"
        )
        product(f"cm{k}", f"o{k}", width, width)
        lines.append(f"a{k} = Add(o{k}, x{k})")
        normalized(f"a{k}", f"n{k}")
        product(f"n{k}", f"u{k}", width, 4 * width)
        lines.append(f"h{k} = Mul(u{k}, rsqrt2) f{k} = Erf(h{k}) g{k} = Add(f{k}, one)")
        lines.append(f"i{k} = Mul(u{k}, g{k}) j{k} = Mul(i{k}, half)")
        product(f"j{k}", f"w{k}_", 4 * width, width, gain=2.0)
        lines.append(f"b{k} = Add(w{k}_, n{k})")
        normalized(f"b{k}", f"x{k + 1}")
    lines.append(f"y = Identity(x{layers})")
    return weights.save(f"g (int64[B,L] ids) => (float[B,L,{width}] y) {{ {' '.join(lines)} }}", file)


def recurrent(file: Path, *, words: int = 10_000, width: int = 256) -> Path:
    """Embeddings, two layers of LSTM, the first of them in both directions, and a product for each step."""
    weights = Weights(1)
    parts = []
    for ways, inputs in ((2, width), (1, 2 * width)):
        w, r = weights.add(ways, 4 * width, inputs), weights.add(ways, 4 * width, width)
        for name, size in ((w, inputs), (r, width)):
            weights.arrays[name] *= np.float32((4 * width / size) ** 0.5)
        parts.append(f"{w}, {r}")
    weights.arrays["joined"] = np.array([0, 0, 2 * width])
    weights.arrays["flat"] = np.array([0, 0, width])
    table, head = weights.add(words, width, gain=words), weights.add(width, 1000)
    text = f"""g (int64[T,B] ids) => (float[T,B,1000] y) {{
        e = Gather({table}, ids)
        a = LSTM<hidden_size={width}, direction="bidirectional">(e, {parts[0]})
        at = Transpose<perm=[0,2,1,3]>(a) aj = Reshape(at, joined)
        b = LSTM<hidden_size={width}>(aj, {parts[1]})
        bt = Transpose<perm=[0,2,1,3]>(b) bj = Reshape(bt, flat)
        y = MatMul(bj, {head}) }}"""
    return weights.save(text, file)


def noise_of(feeds: Sequence[Feed]) -> Callable[[ort.InferenceSession, ort.InferenceSession], list[str]]:
    """Scores a session by the SQNR of its output, the mean over feeds in dB."""

    def score(exact: ort.InferenceSession, session: ort.InferenceSession) -> list[str]:
        found = []
        for feed in feeds:
            (one,), (two,) = exact.run(None, feed), session.run(None, feed)
            found.append(10 * np.log10(np.square(one).sum() / max(float(np.square(one - two).sum()), 1e-12)))
        return [f"{np.mean(found):.1f}" if exact is not session else ""]

    return score


def subjects(folder: Path, pairs: int | None) -> dict[str, Subject]:
    """The models by name."""
    items, random = list(TASK.test(pairs)), np.random.default_rng(2)
    outputs: dict[int, Any] = {}

    def spearman(exact: ort.InferenceSession, session: ort.InferenceSession) -> list[str]:
        for one in (exact, session):
            if id(one) not in outputs:
                outputs[id(one)] = embeddings(one, items)
        reference, got = outputs[id(exact)], outputs[id(session)]
        figures = tally(reference, got, items).figures()
        value = f"{figures['Spearman'].value:.2f}"
        if exact is session:
            return [value, "", ""]
        lost = paired_difference(figures["Spearman"], tally(reference, reference, items).figures()["Spearman"])
        return [value, f"{lost.value:+.2f} [{lost.low:+.2f}, {lost.high:+.2f}]", f"{figures['dB'].value:.1f}"]

    def ids(words: int, *shape: int) -> Feed:
        return {"ids": random.integers(0, words, shape)}

    return {
        "sentence encoder": Subject(
            model=MODEL,
            latency={f"{name} tokens": feed for name, feed in latency_feeds(items).items()},
            score=spearman,
            headings=("Spearman", "minus float", "dB"),
        ),
        "encoder of 30,000 x 384": Subject(
            model=encoder(folder / "encoder.onnx"),
            latency={"16 tokens": ids(30_000, 1, 16), "128 tokens": ids(30_000, 1, 128)},
            score=noise_of([ids(30_000, 1, 64) for _ in range(8)]),
            headings=("dB",),
        ),
        "LSTM": Subject(
            model=recurrent(folder / "lstm.onnx"),
            latency={"32 steps": ids(10_000, 32, 1), "32 steps of 8": ids(10_000, 32, 8)},
            score=noise_of([ids(10_000, 32, 1) for _ in range(8)]),
            headings=("dB",),
        ),
    }


def report(name: str, subject: Subject, folder: Path, rounds: int) -> None:
    """Print the table of one model."""
    sessions = {"float": open_session(subject.model, 1)}
    rows: dict[str, list[str]] = {}
    size = subject.model.stat().st_size
    for form, make in {"float": lambda model, _: model, **FORMS}.items():
        begin = time.perf_counter()
        file = make(subject.model, folder / f"{name.split(maxsplit=1)[0]}{len(rows)}")
        seconds = time.perf_counter() - begin
        session = sessions.setdefault(form, open_session(file, 1))
        rows[form] = [*subject.score(sessions["float"], session), f"{file.stat().st_size / size:.3f}"]
        rows[form].append("" if form == "float" else f"{seconds:.0f}")
    for feed in subject.latency.values():
        found = latencies(sessions, dict(feed), rounds)
        for form, row in rows.items():
            row.append(f"{found[form] / found['float']:.2f}")
    headings = ["", *subject.headings, "size", "s", *subject.latency]
    print(f"\n{name}: {size / 1e6:.1f} MB\n\n| {' | '.join(headings)} |\n{'| --- ' * len(headings)}|")
    for form, row in rows.items():
        print(f"| {form} | {' | '.join(row)} |")


def node_models(folder: Path) -> Iterator[tuple[str, Path, list[tuple[int, ...]]]]:
    """Models of one node: what it is, its file, and the shapes of inputs that it is timed with."""
    for inputs, outputs in [(64, 64), (128, 128), (384, 384), (384, 1536), (1024, 16), (2048, 10), (512, 32)]:
        weights = Weights(0)
        text = f"g (float[M,{inputs}] x) => (float[M,{outputs}] y) {{ y = MatMul(x, {weights.add(inputs, outputs)}) }}"
        yield (
            f"MatMul {inputs} x {outputs}",
            weights.save(text, folder / "n.onnx"),
            [(m, inputs) for m in (1, 8, 64, 256)],
        )
    for units in (64, 128, 192, 256):
        weights = Weights(0)
        names = ", ".join(weights.add(1, 4 * units, units) for _ in range(2))
        text = f"g (float[T,B,{units}] x) => (float[T,D,B,{units}] y) {{ y = LSTM<hidden_size={units}>(x, {names}) }}"
        yield f"LSTM {units}", weights.save(text, folder / "n.onnx"), [(20, b, units) for b in (1, 8)]
    for channels, size, side in [(16, 3, 32), (64, 3, 28), (64, 1, 28), (256, 1, 14)]:
        weights = Weights(0)
        pads, name = f"pads=[{', '.join(4 * [str(size // 2)])}]", weights.add(channels, channels, size, size)
        text = f"g (float[N,{channels},H,W] x) => (float[N,{channels},H,W] y) {{ y = Conv<{pads}>(x, {name}) }}"
        kind = f"Conv {channels} x {size} x {size}"
        yield kind, weights.save(text, folder / "n.onnx"), [(1, channels, side, side)]


def report_kernels(folder: Path, rounds: int) -> None:
    """Print how long nodes alone take, as shares of float's."""
    print("| | share of float's time |\n| --- | --- |")
    for what, file, shapes in node_models(folder):
        quantize_dynamic(file, folder / "d.onnx", per_channel="Conv" not in what)
        model = onnx.load(folder / "d.onnx")
        for initializer in model.graph.initializer:  # ConvInteger takes no int8 weight
            if "Conv" in what and initializer.data_type == onnx.TensorProto.INT8:
                array = numpy_helper.to_array(initializer).view(np.uint8)
                initializer.CopyFrom(numpy_helper.from_array(array, initializer.name))
        sessions = {"float": open_session(file, 1), "integers": open_session(model.SerializeToString(), 1)}
        cells = []
        for shape in shapes:
            found = latencies(sessions, {"x": np.random.default_rng(0).standard_normal(shape, np.float32)}, rounds)
            cells.append(f"{' x '.join(map(str, shape))}: {found['integers'] / found['float']:.2f}")
        print(f"| {what} | {', '.join(cells)} |", flush=True)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, help="test pairs, all by default")
    parser.add_argument("--rounds", type=int, default=10, help="in which latencies are measured")
    parser.add_argument("--only", help="the model whose name has this in it")
    parser.add_argument("--kernels", action="store_true", help="time nodes alone")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)  # quantize_dynamic recommends its preprocessing
    with tempfile.TemporaryDirectory() as folder:
        if arguments.kernels:
            report_kernels(Path(folder), arguments.rounds)
            return
        for name, subject in subjects(Path(folder), arguments.pairs).items():
            if arguments.only is None or arguments.only in name:
                report(name, subject, Path(folder), arguments.rounds)


if __name__ == "__main__":
    main()
