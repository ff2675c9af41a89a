"""What holds for every network, whatever it looks like: `check` goes through one network and one way to quantize it.

A broken law is an AssertionError; anything but an AmctError that comes out of the package breaks one as well.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from flow import CPU, Flow
from graphs import graphs
from hypothesis import strategies as st
from networks import Network

import amct_onnx
from amct_onnx.errors import AmctError
from amct_onnx.run.saturation import open_exact_session
from amct_onnx.values.findings import Step

TARGETS = ("onnxruntime", "openvino", "tensorrt", "ascend", "amct")  # the last one is AMCT's functions
LEAST_DB = 20.0  # 8 bits and a few layers give 30 to 45
WORST_DB = 10.0  # of a single output: what is a small difference of large numbers has fewer
_SIZE = 0.2  # the least root mean square of outputs that noise is compared with: what a Relu leaves may be all but zero
ALIKE_DB = 25.0  # between a file as it is written and as ONNX Runtime optimises it: some roundings to other neighbours
SAME_DB = 100.0  # between kernels of float that add up in another order
LONGEST = 400  # characters of an error
# What may be refused: nothing in it can be quantized, or the target does not know the opset.
_REFUSALS = ("has no layer that can be quantized", "No layer support quantization in the graph")
_REFUSALS += ("No quant enable layer in quant config file", "leaves all in float", "up to opset")


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A way to quantize. again: what must give the same bytes: the same once more, the merged statistics of two halves,
    or those of the calibration for another target. file: whether the model comes as a file."""

    target: str
    effort: str = "fast"
    again: str = "rerun"
    file: bool = False


def trials() -> st.SearchStrategy[Trial]:
    """Every target; the effort is mostly fast, which takes a third of the time of default."""
    return st.builds(
        Trial,
        target=st.sampled_from(TARGETS),
        effort=st.sampled_from(["fast"] * 5 + ["default"]),
        again=st.sampled_from(["rerun", "halves", *TARGETS[:4]]),
        file=st.booleans(),
    )


def check(network: Network, trial: Trial, folder: Path) -> str:
    """What came of it, in a few words. Files go to `folder`, which is empty."""
    reference = _Reference(network)
    try:
        with _told() as told:
            if trial.target == "amct":
                made = _amct(network, folder)
            else:
                made, steps = _quantized(network, trial, folder)
                told += [str(step) for step in steps if step.before < LEAST_DB]
    except AmctError as error:
        return _refused(error)
    for file in made:
        written = onnx.load(file)
        _check_interface(network.model, written)
        if "deploy" not in file.name:
            _check_valid(network, written)
    floats = reference.outputs()
    if "deploy" in made[0].name and _has_integers(made[0]):
        plain = [_run(amct_onnx.deployed_session(made[0], _options(optimised=False)), network.feeds)]
        plain.append(_run(_open(made[1], optimised=False), network.feeds))
        _check_equal(*plain)
        optimised = _run(_open(made[1], optimised=True), network.feeds)
        deployed = _run(amct_onnx.deployed_session(made[0]), network.feeds)
        _check_alike(deployed, optimised, "the deploy model and the fake-quant model")
        plain = plain[:1]
    else:
        optimised = _run(_open(made[0], optimised=True), network.feeds)
        plain = [_run(_open(made[0], optimised=False), network.feeds)]
    _check_alike(plain[0], optimised, "the model with optimizations and without")
    _check_noise(floats, optimised, told)
    return "quantized" if _has_integers(made[0]) else "nothing quantized"


class _Reference:
    """What the float network computes."""

    def __init__(self, network: Network) -> None:
        self._session = ort.InferenceSession(network.plain.SerializeToString(), _options(optimised=True), providers=CPU)
        self._feeds = [network.plain_feed(feed) for feed in network.feeds]

    def outputs(self) -> list[list[np.ndarray]]:
        return _run(self._session, self._feeds)


def _quantized(network: Network, trial: Trial, folder: Path) -> tuple[list[Path], tuple[Step, ...]]:
    model: Any = network.model
    if trial.file:
        model = folder / "float model.onnx"
        onnx.save(network.model, model)

    def run(data: Any, name: str) -> tuple[Any, list[Path]]:
        result = amct_onnx.quantize(model, data, target=trial.target, effort=trial.effort)
        files = result.save(folder / name / "q", inspect=False).files
        return result, [Path(file) for file in files]

    before = network.model.SerializeToString(deterministic=True)
    feeds = list(network.feeds)
    result, files = run(feeds, "first")
    if trial.again == "rerun":
        _check_same_bytes(files, run(feeds, "second")[1])
    elif trial.effort == "fast" and trial.again in TARGETS:
        again = amct_onnx.quantize(model, feeds, target=trial.again, effort="fast").to(trial.target)
        _check_same_bytes(files, [Path(file) for file in again.save(folder / "again" / "q", inspect=False).files])
    elif trial.effort == "fast":
        parts = [amct_onnx.quantize(model, part, target=trial.target, effort="fast") for part in (feeds[2:], feeds[:2])]
        for number, part in enumerate(parts):
            amct_onnx.save_statistics(part.statistics, folder / f"{number}.npz")
        one, two = (amct_onnx.load_statistics(folder / f"{number}.npz") for number in range(2))
        merged = one.merge(two)
        assert merged == result.statistics, "merged statistics are not those of one run"
        _check_same_bytes(files, run(merged, "merged")[1])
    assert network.model.SerializeToString(deterministic=True) == before, "the model of the caller was changed"
    return [file for file in files if file.suffix == ".onnx"], result.steps


def _amct(network: Network, folder: Path) -> list[Path]:
    flows = [Flow.of(network.model, folder / name).run(*network.feeds) for name in ("first", "second")]
    first, second = ([Path(flow.deploy), Path(flow.fake_quant)] for flow in flows)
    _check_same_bytes(first, second)
    return first


def _refused(error: AmctError) -> str:
    text = str(error)
    assert "\n" not in text, f"an error of several lines: {text}"
    assert len(text) < LONGEST, f"an error of {len(text)} characters: {text}"
    known = [words for words in _REFUSALS if words in text]
    assert known, f"refused: {type(error).__name__}: {text}"
    return f"refused: {known[0]}"


def _check_interface(before: onnx.ModelProto, after: onnx.ModelProto) -> None:
    for old, new in ((before.graph.input, after.graph.input), (before.graph.output, after.graph.output)):
        was, now = ([_described(value) for value in values] for values in (old, new))
        assert was == now, f"the interface is another one: {now} in place of {was}"


def _described(value: onnx.ValueInfoProto) -> tuple[Any, ...]:
    """Name, type and dimensions; one of -1 is open."""
    kind = value.type.tensor_type
    dims = [dim.dim_param or (dim.dim_value if dim.dim_value > 0 else "?") for dim in kind.shape.dim]
    return value.name, kind.elem_type, dims if kind.HasField("shape") else None


def _check_valid(network: Network, written: onnx.ModelProto) -> None:
    """What the checker takes of the float model it takes of what comes of it."""
    for full in (False, True):
        try:
            onnx.checker.check_model(network.model, full_check=full)
        except Exception:  # an output without a shape, for one
            return
        onnx.checker.check_model(written, full_check=full)


def _check_same_bytes(one: Sequence[Path], two: Sequence[Path]) -> None:
    for first, second in zip(one, two, strict=True):
        assert first.read_bytes() == second.read_bytes(), f"{first.name} has other bytes the second time"


def _check_equal(one: list[list[np.ndarray]], two: list[list[np.ndarray]]) -> None:
    for outputs, others in zip(one, two, strict=True):
        for output, other in zip(outputs, others, strict=True):
            assert output.shape == other.shape, "the deploy model gives other shapes than the fake-quant model"
            noise = _decibel([[output]], [[other]])
            assert noise > SAME_DB, f"the deploy model is not the fake-quant model: {noise:.1f} dB"


def _check_alike(one: list[list[np.ndarray]], two: list[list[np.ndarray]], which: str) -> None:
    found = _decibel(one, two, least=_SIZE)
    assert found > ALIKE_DB, f"{which} do not agree: {found:.1f} dB"


def _check_noise(exact: list[list[np.ndarray]], got: list[list[np.ndarray]], told: Sequence[str]) -> None:
    """All outputs together are near, and none is something else altogether."""
    found = _decibel(exact, got, least=_SIZE)
    assert found > LEAST_DB or told, f"the outputs are {found:.1f} dB from float, in silence"
    for place, (one, two) in enumerate(zip(zip(*exact, strict=True), zip(*got, strict=True), strict=True)):
        found = _decibel([list(one)], [list(two)], least=_SIZE)
        assert found > WORST_DB or told, f"an output, number {place}, is {found:.1f} dB from float, in silence"


def _decibel(exact: list[list[np.ndarray]], got: list[list[np.ndarray]], *, least: float = 0.0) -> float:
    """Signal over noise of all outputs together; the root mean square of the signal is taken to be `least` or more."""
    one = [np.ravel(array).astype(np.float64) for outputs in exact for array in outputs]
    two = [np.ravel(array).astype(np.float64) for outputs in got for array in outputs]
    assert [array.shape for array in one] == [array.shape for array in two], "outputs of other shapes"
    signal, other = np.concatenate(one), np.concatenate(two)
    noise = float(np.square(signal - other).sum())
    power = max(float(np.square(signal).sum()), least**2 * signal.size, 1e-30)
    return float("inf") if noise == 0 else float(10 * np.log10(power / noise))


def _has_integers(file: Path) -> bool:
    types = {node.op_type for graph in graphs(onnx.load(file).graph) for node in graph.node}
    return not types.isdisjoint({"QuantizeLinear", "AscendQuant"})


def _options(*, optimised: bool) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    if not optimised:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.x64quantprecision", "1")  # sums of products that do not saturate
    return options


def _open(file: Path, *, optimised: bool) -> ort.InferenceSession:
    if optimised and file.stem.endswith("_tensorrt"):  # its layers share weights, which the option does not take
        return open_exact_session(ir.load(file))
    return ort.InferenceSession(str(file), _options(optimised=optimised), providers=CPU)


def _run(session: ort.InferenceSession, feeds: Sequence[Mapping[str, np.ndarray]]) -> list[list[np.ndarray]]:
    return [session.run(None, dict(feed)) for feed in feeds]


@contextmanager
def _told() -> Iterator[list[str]]:
    """What the package says meanwhile of results that are poor."""
    found: list[str] = []
    handler = logging.Handler(logging.WARNING)

    def emit(record: logging.LogRecord) -> None:
        if " dB " in record.getMessage():
            found.append(record.getMessage())

    handler.emit = emit  # type: ignore[method-assign]
    logger = logging.getLogger("amct_onnx")
    logger.addHandler(handler)
    try:
        yield found
    finally:
        logger.removeHandler(handler)


def kind_of(error: BaseException) -> str:
    """What an error has in common with others of its kind: its class and its words, without names and numbers."""
    words = [word for word in str(error).split("\n", 1)[0].split() if re.fullmatch(r"[A-Za-z-]+[:,.]?", word)]
    return f"{type(error).__name__}: {' '.join(words[:14])}"
