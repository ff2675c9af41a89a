"""What comes of one model of `make conformance`: it is quantized in each way, and whatever is written is looked at.

An outcome is a few words. `agrees` and `poor` are of models that were quantized, `refused: ...` of those where the user
gets an error that is meant for users, and `WRONG: ...` of whatever must not be.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from conformance_forms import Case

import amct_onnx as amct
from amct_onnx.errors import AmctError

TARGETS = ("onnxruntime", "openvino", "tensorrt", "ascend")
ROUTES = (*TARGETS, "amct")
NO_FLOAT = "float model does not run here"
AGREES, POOR = "agrees", "poor"
LEAST_DB = 20.0
LEVELS = (ort.GraphOptimizationLevel.ORT_ENABLE_ALL, ort.GraphOptimizationLevel.ORT_DISABLE_ALL)
_TINY = 1e-30  # in place of the power of an output that is zero
_LIKE_DB = 60.0  # of float kernels that compute the same in another order
_LONGEST = 400  # characters of a message
_REASONS = {  # of a refusal, by words of its message; these hold whether or not the float model runs
    "no layer that can be quantized": "no layer",
    "No layer support quantization": "no layer",
    "No quant enable layer": "no layer",
    "the oldest supported is": "old opset",
    " up to opset ": "new opset",
    "gives tensors only": "no tensors",
    "leaves all in float": "all in float",
    "quant layers are in the model": "quantized already",
}
_OF_DATA = {
    "holds NaN": "not finite",
    "empty": "empty",
    "has no inputs": "no inputs",
}
_CPU = ["CPUExecutionProvider"]
Outputs = list[Any]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A few words that a table counts, and the details for whoever looks into it."""

    words: str
    details: str = ""


class WrongError(Exception):
    """Something that must not be: its kind in a few words, and what was seen."""

    def __init__(self, kind: str, details: str) -> None:
        super().__init__(details)
        self.kind = kind


@dataclass(frozen=True, kw_only=True, eq=False)
class Reference:
    """The float model as it is known to ONNX and ONNX Runtime.

    outputs: None where it does not run. repeatable: whether it gives the same with optimisations and without; what is
    random or has no definite result does not. valid: the strictest check of onnx that it passes: None, "model" or
    "shapes". problem: why it does not run.
    """

    case: Case
    outputs: Outputs | None
    repeatable: bool
    valid: str | None
    problem: str = ""

    @classmethod
    def of(cls, case: Case) -> Reference:
        """Check and run a model."""
        valid = next((kind for kind in ("shapes", "model") if not _problem(case.model, kind)), None)
        try:
            outputs, again = (
                open_model(case.model.SerializeToString(), level).run(None, dict(case.feed)) for level in LEVELS
            )
        except Exception as error:  # ONNX Runtime has a class for each status code
            return cls(case=case, outputs=None, repeatable=False, valid=valid, problem=_line(error))
        like = all(_decibels(*pair) >= _LIKE_DB for pair in zip(outputs, again, strict=True))
        return cls(case=case, outputs=outputs, repeatable=like, valid=valid)


def judge(reference: Reference, route: str, effort: str) -> Outcome:
    """Quantize a model for a target, or by AMCT's functions, and say what came of it."""
    heard: list[str] = []
    with _folder() as folder, _listening(heard):
        path = folder / "float.onnx"
        path.write_bytes(reference.case.model.SerializeToString())
        try:
            worst = _amct(reference, path) if route == "amct" else _quantize(reference, path, route, effort)
        except AmctError as error:
            return _refused(error, reference)
        except WrongError as error:
            return Outcome(words=f"WRONG: {error.kind}", details=str(error))
        except Exception as error:
            if reference.outputs is None and isinstance(error, _UserError):
                return Outcome(words=NO_FLOAT, details=reference.problem)
            return Outcome(words="WRONG: exception", details=f"{type(error).__name__}: {_line(error)}")
    if reference.outputs is None:
        return Outcome(words=NO_FLOAT, details=reference.problem)
    said = "" if not any(" dB" in text for text in heard) else ", said so"
    return Outcome(words=AGREES if worst >= LEAST_DB else POOR + said, details=f"{worst:.1f} dB")


class _UserError(Exception):
    """An error of a session that the user runs, and not of the package."""


def _refused(error: AmctError, reference: Reference) -> Outcome:
    text = str(error)
    if len(text) > _LONGEST or "\n" in text:
        return Outcome(words="WRONG: message", details=f"{type(error).__name__}, {len(text)} characters: {text}")
    told = f"{type(error).__name__}: {text}"
    reason = next((short for words, short in _REASONS.items() if words in text), None)
    if reason is None and reference.outputs is None:
        return Outcome(words=NO_FLOAT, details=f"{reference.problem}; {told}")
    reason = reason or next((short for words, short in _OF_DATA.items() if words in text), type(error).__name__)
    return Outcome(words=f"refused: {reason}", details=told)


def _quantize(reference: Reference, path: Path, target: str, effort: str) -> float:
    feed = dict(reference.case.feed)
    result = amct.quantize(str(path), [feed] * (1 if effort == "fast" else 8), target=target, effort=effort)
    files = result.save(path.parent / "quantized", inspect=False).files
    return _look_at([Path(file) for file in files if file.endswith(".onnx")], reference)


def _amct(reference: Reference, path: Path) -> float:
    folder = path.parent
    config, modified, record = (str(folder / name) for name in ("config.json", "modified.onnx", "record.txt"))
    amct.create_quant_config(config, str(path), batch_num=1)
    amct.quantize_model(config, str(path), modified, record)
    try:
        options = amct.AMCT_SO
        options.log_severity_level, options.intra_op_num_threads = 4, 1
        ort.InferenceSession(modified, options, providers=_CPU).run(None, dict(reference.case.feed))
    except Exception as error:  # ONNX Runtime has a class for each status code
        if reference.outputs is None:
            raise _UserError(str(error)) from error
        raise WrongError("calibration model", _line(error)) from error
    amct.save_model(modified, record, str(folder / "saved"))
    return _look_at([folder / "saved_deploy_model.onnx", folder / "saved_fake_quant_model.onnx"], reference)


def _look_at(files: Sequence[Path], reference: Reference) -> float:
    """The least SQNR in dB of the models in `files`. Raises WrongError for what is not right about them."""
    found: dict[str, list[Outputs]] = {}
    for file in files:
        model = onnx.load(file)
        _check_interface(model, reference.case.model)
        deploy = file.name.endswith("_deploy_model.onnx")
        if not deploy and reference.valid and (problem := _problem(model, reference.valid)):
            raise WrongError("invalid", f"{file.name}: {problem}")
        found[file.name] = _run_both(file, reference, deploy=deploy)
    if reference.outputs is None or not reference.repeatable:
        return math.inf
    if len(files) == 2:  # optimisations of float nodes differ between the two
        for one, two in zip(*(outputs[-1] for outputs in found.values()), strict=True):
            if not _same(one, two):
                raise WrongError("deploy is not fake-quant", f"{_decibels(two, one):.1f} dB apart")
    worst = math.inf
    for name, runs in found.items():
        for outputs in runs:
            for place, (exact, got) in enumerate(zip(reference.outputs, outputs, strict=True)):
                worst = min(worst, _decibels(exact, got, f"{name}, output {place}: "))
    return worst


def _run_both(file: Path, reference: Reference, *, deploy: bool) -> list[Outputs]:
    """The outputs with optimisations and without, nothing where the float model has none."""
    runs = []
    for level in LEVELS:
        try:
            session = amct.deployed_session(str(file), _options(level)) if deploy else open_model(str(file), level)
            if reference.outputs is not None:
                runs.append(session.run(None, dict(reference.case.feed)))
        except Exception as error:  # ONNX Runtime has a class for each status code
            if reference.outputs is not None:
                raise WrongError("does not run", f"{file.name}, {level.name}: {_line(error)}") from error
    return runs


def _check_interface(model: onnx.ModelProto, source: onnx.ModelProto) -> None:
    for kind in ("input", "output"):
        had, has = (_interface(graph, kind) for graph in (source.graph, model.graph))
        if had != has:
            raise WrongError("interface", f"{kind}s were {had} and are {has}")


def _interface(graph: onnx.GraphProto, kind: str) -> list[tuple[str, str]]:
    weights = {tensor.name for tensor in graph.initializer} if kind == "input" else set()
    return [
        (value.name, " ".join(str(value.type).split())) for value in getattr(graph, kind) if value.name not in weights
    ]


def _problem(model: onnx.ModelProto, kind: str) -> str:
    """What the check of onnx says, with the inference of shapes or without; nothing for a valid model."""
    try:
        onnx.checker.check_model(model, full_check=kind == "shapes")
    except Exception as error:  # of shape inference it has several
        return _line(error)
    return ""


def _decibels(exact: Any, got: Any, where: str = "") -> float:
    """Signal over noise of an output, infinite for one that is not of floats, or whose shape depends on the values.

    Raises WrongError for another dtype.
    """
    if isinstance(exact, list) and isinstance(got, list):
        return min((_decibels(one, two, where) for one, two in zip(exact, got, strict=False)), default=math.inf)
    if not isinstance(exact, np.ndarray):
        return math.inf
    if exact.dtype != got.dtype:
        raise WrongError("dtype", f"{where}{exact.dtype} became {got.dtype}")
    return sqnr(exact, got) if exact.dtype.kind == "f" and exact.shape == got.shape else math.inf


def sqnr(exact: np.ndarray, got: np.ndarray) -> float:
    """Signal over noise in dB, of the values that are finite in the exact array; infinite where there is no noise."""
    finite = np.isfinite(exact)
    noise = float(np.sum((got[finite].astype(np.float64) - exact[finite]) ** 2))
    if noise == 0:
        return math.inf
    signal = float(np.sum(exact[finite].astype(np.float64) ** 2))
    return 10 * math.log10(max(signal, _TINY) / noise) if math.isfinite(noise) else -math.inf


def _same(one: Any, two: Any) -> bool:
    if isinstance(one, list):
        return len(one) == len(two) and all(map(_same, one, two))
    if not isinstance(one, np.ndarray):
        return bool(one == two)
    return one.dtype == two.dtype and np.array_equal(one, two, equal_nan=one.dtype.kind == "f")


def open_model(model: str | bytes, level: Any = None) -> ort.InferenceSession:
    """A quiet session on one thread."""
    return ort.InferenceSession(model, _options(level), providers=_CPU)


def _options(level: Any) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    if level is not None:
        options.graph_optimization_level = level
    return options


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    """A new folder that is the current one, since AMCT's functions write their log there."""
    before = os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            yield Path(folder)
        finally:
            os.chdir(before)


@contextlib.contextmanager
def _listening(heard: list[str]) -> Iterator[None]:
    """What the package warns of."""

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            heard.append(record.getMessage())

    logger, handler = logging.getLogger("amct_onnx"), Handler(logging.WARNING)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
