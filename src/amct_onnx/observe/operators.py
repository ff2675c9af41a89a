"""The calibration operators that ONNX Runtime runs (IFMR, HFMG, ...), and the session options that know them: AMCT_SO.

Two implementations of the same operators: `_operators.c`, a small optional C extension that shows a tensor to Python
where it lies, and Python operators of onnxruntime-extensions, which copy it first. Both end in `observe`, which never
raises: an exception inside an operator would end the process.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from functools import cache, partial
from importlib import import_module
from typing import Any, TypeVar

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from amct_onnx.engine.processors import processors
from amct_onnx.errors import CalibrationError
from amct_onnx.graph.instrument.observers import TASK_OPERATORS
from amct_onnx.graph.instrument.shown_tensors import SHOW, show_tensors
from amct_onnx.graph.layers import OBSERVER_DOMAIN
from amct_onnx.numerics.arrays import Floats
from amct_onnx.numerics.statistics.accumulator import compiled_functions
from amct_onnx.observe import shown_tensors
from amct_onnx.observe.calibration import observe
from amct_onnx.run.session import open_session, quiet
from amct_onnx.run.threads import run_side_by_side

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")

# Batches that run side by side at most: the activations of each are in memory.
MOST_WORKERS = 4

# The C module; None where there is none, and Python does its work.
compiled: Any
try:
    compiled = import_module("amct_onnx.custom_op.libamct_onnx_ops")
except ImportError:  # built without a compiler
    compiled = None


def session_options() -> ort.SessionOptions:
    """New session options on which the calibration operators are registered.

    Memory patterns are off: with them the runtime holds a second copy of all activations to save allocations that
    calibration does not notice.
    """
    options = ort.SessionOptions()
    options.enable_mem_pattern = False
    options.register_custom_ops_library(_compiled_library() if compiled is not None else _python_library())
    return options


@contextmanager
def showing_session(
    model: ir.Model, readers: Mapping[str, shown_tensors.Reader], workers: int, *, keep_outputs: bool = False
) -> Iterator[ort.InferenceSession]:
    """A session that shows each tensor named in `readers` to its reader, and computes nothing else.

    It must not run after the block. workers: so many runs at a time share the processors. keep_outputs: it gives the
    outputs of the model as well. `model` stays as it is. Raises ModelError as `show_tensors` does, and CalibrationError
    if ONNX Runtime cannot run the model.
    """
    options, cannot = quiet(session_options(), threads=max(1, processors() // workers)), "run the model for calibration"
    with shown_tensors.showing(readers) as numbers:
        shown = show_tensors(model, numbers, keep_outputs=keep_outputs)
        yield open_session(shown, options, cannot=cannot, error=CalibrationError, own_model=True)


def run_showing(
    model: ir.Model,
    readers: Mapping[str, shown_tensors.Reader],
    run: Callable[[ort.InferenceSession, Item], Outcome],
    items: Iterable[Item],
    workers: int,
) -> Generator[tuple[Item, Outcome], None, None]:
    """Each of `items` and what `run` gives for it, in their order; `workers` run at a time.

    The session that `run` gets is a `showing_session`. Raises what that raises, and whatever `run` raises.
    """
    with (
        showing_session(model, readers, workers) as session,
        closing(run_side_by_side(partial(run, session), items, workers)) as runs,
    ):
        for item, running in runs:
            yield item, running.result()


@cache
def _compiled_library() -> str:
    connect(compiled.set_callback, compiled.set_accumulators)
    return str(compiled.__file__)


def connect(set_callback: Callable[..., None], set_accumulators: Callable[..., None]) -> None:
    """Give a library made of `_operators.c` what its operators call, by the two functions of it that take that.

    The library itself calls this where a script registers it by its path.
    """

    def body(op_type: str, view: memoryview, shape: tuple[int, ...], attributes: dict[str, Any]) -> None:
        size = math.prod(shape)  # a tensor without elements comes with a view of nothing
        if observe(op_type, np.frombuffer(view, np.float32, size).reshape(shape), attributes):
            raise KeyboardInterrupt  # _operators.c hands it to the code around the session

    set_callback(body)
    set_accumulators(shown_tensors.addresses, *compiled_functions())


@cache
def _python_library() -> str:
    from onnxruntime_extensions import PyCustomOpDef, get_library_path, onnx_op

    integer, real, text = PyCustomOpDef.dt_int64, PyCustomOpDef.dt_float, PyCustomOpDef.dt_string
    common = dict.fromkeys(("batch_num", "observers", "input_index", "joint_members"), integer)
    common |= dict.fromkeys(("input_stamp", "record_file_path", "object_layers", "calibration"), text)
    common |= dict.fromkeys(("fakequant_precision_mode", "joint_group", "op_data_type"), text)
    activation = dict.fromkeys(("num_bits", "with_offset"), integer)
    ifmr = dict.fromkeys(("start_ratio", "end_ratio", "step", "max_percentile", "min_percentile"), real)
    nothing = np.zeros(1, np.float32)

    def declare(op_type: str, own: dict[str, Any]) -> None:
        def body(x: Floats, **attributes: Any) -> Floats:
            observe(op_type, x, attributes)
            return nothing

        onnx_op(
            op_type=f"{OBSERVER_DOMAIN}::{op_type}",
            inputs=[PyCustomOpDef.dt_float],
            outputs=[PyCustomOpDef.dt_float],
            attrs=own,
        )(body)

    declare("IFMR", common | activation | ifmr)
    declare("HFMG", common | activation | {"nbins": integer})
    for op_type in TASK_OPERATORS:
        declare(op_type, common | {"settings": text})
    declare(SHOW, {"input_index": integer})
    return str(get_library_path())
