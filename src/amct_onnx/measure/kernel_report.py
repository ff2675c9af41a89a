"""What ONNX Runtime really runs of a quantized model: its kernels, its size and its latency beside the float model."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir
import onnxruntime as ort

from amct_onnx.errors import listed
from amct_onnx.files.onnx_file import file_bytes, load_model
from amct_onnx.graph.kernels import FloatReason, Kernels, read_kernels
from amct_onnx.graph.source_nodes import SourceNodes
from amct_onnx.measure.latency import Latency, measure_latency
from amct_onnx.numerics.arrays import Feed
from amct_onnx.run.saturation import saturates
from amct_onnx.run.session import open_session, quiet
from amct_onnx.run.temporary_files import temporary_folder
from amct_onnx.words import given

Source = bytes | str | os.PathLike[str]

_EXTERNAL = "session.optimized_model_external_initializers_"
_SHOWN_NAMES = 3
_SHOWN_OPERATORS = 6
_SHOWN_REASONS = 4
_SHOWN_SLOW = 3
_SHOWN_LETTERS = 40
# Below this the fixed cost of a kernel, about a microsecond or two, weighs as much as what it computes.
_SMALL_MODEL = 1e-3
_SATURATION = (
    "This CPU adds pairs of products in 16 bits (no VNNI), and they may overflow: {} avoids it, or a CPU with VNNI."
)


@dataclass(frozen=True, kw_only=True)
class RuntimeReport:
    """What ONNX Runtime does with a quantized model on this machine.

    `kernels` describes the graph as the runtime optimises it. `bytes_before` and `bytes_after` are the sizes of the
    float and the quantized model, external data included. `latency` is None if there was nothing to feed.
    `saturates`: sums of products may overflow here, since the CPU has no VNNI and the weights are large enough.
    `slow_because`: if the quantized model is slower, the likely reasons, the likeliest first; else empty.
    """

    version: str
    kernels: Kernels
    bytes_before: int
    bytes_after: int
    latency: Latency | None
    saturates: bool
    slow_because: tuple[str, ...]

    @property
    def slower(self) -> bool:
        """Whether the quantized model was measured, and is slower than the float one by more than noise."""
        return self.latency is not None and self.latency.slower

    def lines(self) -> list[str]:
        """A text of at most 15 lines, whatever the size of the model."""
        kernels = self.kernels
        lines = [
            f"ONNX Runtime {self.version} runs {_counted(kernels.integer, 'integer kernel')}",
            f"and {_counted(kernels.floating, 'float kernel')}",
            *_reason_lines(kernels),
            f"Quantize and dequantize kernels left: {sum(kernels.conversions.values())}, "
            f"{kernels.inner_conversions} of them inside the model",
            size_text(self.bytes_before, self.bytes_after),
        ]
        if self.latency is not None:
            lines.append(_latency_line(self.latency))
        if self.slow_because:
            lines.append("The quantized model is slower than the float one on this machine. Likely reasons:")
            lines += [f"  {reason}" for reason in self.slow_because[:_SHOWN_SLOW]]
        if self.saturates:
            lines.append(_SATURATION.format(given("reduce_range", True)))
        return lines


def inspect_model(
    float_model: Source,
    quantized_model: str | os.PathLike[str],
    feed: Feed | None = None,
    *,
    threads: int = 0,
    budget: float = 0.4,
    opened: ir.Model | None = None,
) -> RuntimeReport:
    """Open both models in ONNX Runtime on the CPU, and report what it makes of the quantized one.

    The float model may also be given as bytes, without external data. With `feed`, an array for each input, latencies
    are measured within about `budget` seconds. `threads` is the number of threads in both sessions, 0 leaves it to the
    runtime. A copy of the quantized weights is in a temporary folder meanwhile. opened: the float model of the file
    `float_model`, where it is in memory already.

    Raises FileMissingError or ModelFileError for a file that cannot be read, ModelError for a model that ONNX Runtime
    cannot open, DataError if it cannot run one with `feed`, and OutputError if no disk has room.
    """
    if isinstance(float_model, bytes):
        before_bytes = len(float_model)
    else:
        before_bytes = file_bytes(load_model(float_model) if opened is None else opened, float_model)
    after_bytes, source = _size_and_nodes(quantized_model)
    with _optimised(quantized_model, after_bytes, threads) as (session, graph):
        kernels = read_kernels(graph, source)
    latency = None
    if feed is not None:
        before = _open(float_model if opened is None else opened, _options(threads), "float")
        latency = measure_latency(before, session, feed, budget=budget)
    return RuntimeReport(
        version=ort.__version__,
        kernels=kernels,
        bytes_before=before_bytes,
        bytes_after=after_bytes,
        latency=latency,
        saturates=kernels.saturable and saturates(),
        slow_because=() if latency is None or not latency.slower else _slow_because(kernels, latency),
    )


def _size_and_nodes(path: str | os.PathLike[str]) -> tuple[int, SourceNodes]:
    """Bytes of a model and its nodes; the weights are not kept in memory."""
    model = load_model(path)
    return file_bytes(model, path), SourceNodes(model)


def _options(threads: int) -> ort.SessionOptions:
    options = quiet(threads=threads)
    # Threads that wait busily for the next run of one session would slow down the other one.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


@contextmanager
def _optimised(
    path: str | os.PathLike[str], size: int, threads: int
) -> Iterator[tuple[ort.InferenceSession, ir.Model]]:
    """A session of the model, and its optimised graph, whose weights are on disk until the end of the block."""
    with temporary_folder(2 * size, Path(path)) as folder:
        file = Path(folder) / "optimised.onnx"
        options = _options(threads)
        options.optimized_model_filepath = str(file)
        options.add_session_config_entry(f"{_EXTERNAL}file_name", "optimised.data")
        options.add_session_config_entry(f"{_EXTERNAL}min_size_in_bytes", "4096")
        session = _open(path, options, "quantized")
        yield session, ir.load(file)


def _open(source: Source | ir.Model, options: ort.SessionOptions, which: str) -> ort.InferenceSession:
    if isinstance(source, bytes | ir.Model):
        return open_session(source, options, cannot=f"open the {which} model")
    path = os.fspath(source)
    return open_session(path, options, cannot=f"open the {which} model {path}")


# --- why it is slow


def _slow_because(kernels: Kernels, latency: Latency) -> tuple[str, ...]:
    floats, integers = sum(kernels.floating.values()), sum(kernels.integer.values())
    reasons = []
    if not integers:
        reasons.append("nothing is computed in integers")
    elif floats > integers / 4:
        reasons.append(f"{floats} of {floats + integers} kernels are still float kernels")
    if kernels.inner_conversions:
        reasons.append(f"{kernels.inner_conversions} kernels inside the model only convert between floats and integers")
    if kernels.slow:
        reasons.append(f"slower in integers than in floats here: {listed(kernels.slow, _SHOWN_OPERATORS)}")
    if latency.before < _SMALL_MODEL:
        reasons.append(
            f"the float model takes only {time_phrase(latency.before)}: calling the kernels costs most of it"
        )
    if saturates():
        reasons.append("this CPU has no VNNI, so integer products are hardly faster than float ones")
    return tuple(reasons) or ("the tensors are too small to gain from integers",)


# --- text


def _counted(counts: Mapping[str, int], what: str) -> str:
    total = sum(counts.values())
    kinds = listed([f"{count} {op_type}" for op_type, count in counts.items()], _SHOWN_OPERATORS)
    return f"{_plural(total, what)}: {kinds}" if total else f"no {what}"


def _plural(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _reason_lines(kernels: Kernels) -> list[str]:
    """The commonest reasons, each with the first nodes that it holds for."""
    groups: dict[FloatReason, list[str]] = {}
    for node in kernels.stayed_float:
        groups.setdefault(node.reason, []).append(f"{_tail(node.name)} ({node.op_type})")
    ordered = sorted(groups.items(), key=lambda group: -len(group[1]))
    lines = [f"  {reason.clause(len(names))}: {listed(names, _SHOWN_NAMES)}" for reason, names in ordered]
    rest = len(lines) - _SHOWN_REASONS
    return lines[:_SHOWN_REASONS] + ([f"  and {_plural(rest, 'other reason')}"] if rest > 0 else [])


def _tail(name: str) -> str:
    return name if len(name) <= _SHOWN_LETTERS else f"...{name[-_SHOWN_LETTERS:]}"


def _latency_line(latency: Latency) -> str:
    if latency.too_busy:
        return f"Latency: not measured, the machine is too busy ({latency.low:.2f} to {latency.high:.2f} times as fast)"
    spread = "" if latency.low is None else f", {latency.low:.2f} to {latency.high:.2f} in half of the turns"
    before, after = time_phrase(latency.before), time_phrase(latency.after)
    return (
        f"Latency: {before} before, {after} after ({latency.speedup:.2f} times as fast{spread}), "
        f"medians of {latency.runs} runs each in turns"
    )


def size_text(before: int, after: int) -> str:
    """A line about the bytes of a model, before and after."""
    return (
        f"Size: {size_phrase(before)} before, {size_phrase(after)} after ({before / max(after, 1):.2f} times smaller)"
    )


def size_phrase(count: int) -> str:
    return f"{count / 1e6:.2f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"


def time_phrase(seconds: float) -> str:
    return f"{seconds * 1e3:.2f} ms" if seconds >= 1e-4 else f"{seconds * 1e6:.0f} us"
