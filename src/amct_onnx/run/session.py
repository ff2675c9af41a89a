"""Sessions of ONNX Runtime: opening one, running it, and what is said when it refuses."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from amct_onnx.errors import AmctError, DataError, ModelError, OutputError, one_line
from amct_onnx.files.onnx_file import model_bytes
from amct_onnx.graph.passes.share_weights import copy_shared_weights
from amct_onnx.graph.tensors import shape_of
from amct_onnx.numerics.arrays import Array, Feed
from amct_onnx.run.temporary_files import temporary_folder

# The runtime copies weights that are in memory; a larger model goes through a file, which is mapped.
MAX_INLINE_BYTES = 1 << 27
# Where in its sources ONNX Runtime has found the fault, and in which function.
_SOURCE = re.compile(r"/?\S*onnxruntime\S*:\d+ [^()]*\([^()]*\)( const)? ")
_LONGEST = 280  # characters of its reason
LEAST_LENT = 1 << 12  # bytes of an initializer
_LENT_TYPES = frozenset({ir.DataType.FLOAT, ir.DataType.INT8, ir.DataType.UINT8})


def quiet(options: ort.SessionOptions | None = None, *, threads: int = 0) -> ort.SessionOptions:
    """Options for a session of our own, which prints nothing; `threads` run one node, 0 leaves it to ONNX Runtime.

    `options` are changed and returned, if there are some to begin with.
    """
    chosen = ort.SessionOptions() if options is None else options
    chosen.log_severity_level = 4  # fatal errors only: any other is raised as well
    chosen.intra_op_num_threads = threads
    return chosen


def open_session(
    model: ir.Model | bytes | str,
    options: ort.SessionOptions | None = None,
    *,
    cannot: str = "run the model",
    error: type[AmctError] = ModelError,
    providers: Sequence[Any] | None = None,
    disabled_optimizers: Sequence[str] = (),
    own_options: bool = True,
    path: Path | None = None,
) -> ort.InferenceSession:
    """A session that runs `model`: one in memory, the bytes of one, or a file. Without providers it is on the CPU.

    own_options: whether `options` are for this session alone, and may be changed. path: where a model in memory came
    from.

    A large model in memory goes through a temporary file as long as the session opens, in the folder of `path` if the
    system's has no room. Raises `error` with the text "ONNX Runtime cannot <cannot>: <its reason>", or OutputError if
    no disk has the room.
    """
    chosen = ort.SessionOptions() if options is None else options

    def session(source: str | bytes) -> ort.InferenceSession:
        try:
            return ort.InferenceSession(
                source,
                sess_options=chosen,
                providers=list(providers) if providers is not None else ["CPUExecutionProvider"],
                disabled_optimizers=list(disabled_optimizers),
            )
        except Exception as reason:  # ONNX Runtime has a class for each status code, and they share no base
            raise error(f"ONNX Runtime cannot {cannot}: {_one_line(reason)}") from reason

    if not isinstance(model, ir.Model):
        return session(model)
    if model_bytes(model) <= MAX_INLINE_BYTES:
        inline: ir.Model = ir.external_data.load_to_model(model)
        lent: dict[str, ort.OrtValue] = {}
        if own_options or options is None:
            inline, lent = _lend(inline)
        if lent:
            chosen.add_external_initializers(list(lent), list(lent.values()))
        opened = session(ir.to_proto(inline).SerializeToString())
        opened.lent = lent  # what the runtime does not copy must live as long
        return opened
    # ONNX Runtime maps the data file.
    with temporary_folder(model_bytes(model), path or Path("model")) as folder:
        file = Path(folder) / "model.onnx"
        try:
            ir.save(model, file, external_data="model.data")
        except OSError as reason:
            text = f"takes a temporary file {file}: {reason.strerror or reason}"
            raise OutputError(f"Running {path or 'the model'} {text}.") from reason
        return session(str(file))


def open_exact_session(model: ir.Model) -> ort.InferenceSession:
    """A session on the CPU whose sums of uint8 times int8 do not saturate, on CPUs where they otherwise do."""
    options = quiet()
    options.add_session_config_entry("session.x64quantprecision", "1")
    apart = model.clone()
    copy_shared_weights(apart)
    return open_session(apart, options)


def run_feed(
    session: ort.InferenceSession,
    feed: Feed,
    names: Sequence[str] | None = None,
    *,
    where: str = "",
    what: str = "the model with a sample",
) -> list[Array]:
    """The outputs of one run: those of `names`, or all. `feed` has an array for each input.

    Raises DataError with the text "<where>ONNX Runtime cannot run <what>: <its reason>".
    """
    try:
        outputs: list[Array] = session.run(names, dict(feed))
    except Exception as reason:  # ONNX Runtime has a class for each status code, and they share no base
        raise DataError(f"{where}ONNX Runtime cannot run {what}: {_one_line(reason)}") from reason
    return outputs


def _lend(model: ir.Model) -> tuple[ir.Model, dict[str, ort.OrtValue]]:
    """A copy of `model` without its large initializers, and those: the runtime takes them from where they are, and not
    from a serialized model that would be written and parsed first."""
    copy = model.clone()
    lent: dict[str, ort.OrtValue] = {}
    for name, value in copy.graph.initializers.items():
        tensor = value.const_value
        if tensor is None or tensor.dtype not in _LENT_TYPES or tensor.nbytes < LEAST_LENT:
            continue
        if not value.uses() or any(use.node.graph is not copy.graph for use in value.uses()):
            continue  # the runtime does not look for it in branches, and has forgotten what nobody reads
        lent[name] = ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(tensor.numpy()))
        shape = ir.Shape(shape_of(tensor))
        value.const_value = ir.ExternalTensor("lent", 0, tensor.nbytes, tensor.dtype, shape=shape, name=name)
    return copy, lent


def _one_line(reason: Exception) -> str:
    """The message of an error of ONNX Runtime, in one line and not too long."""
    return one_line(_SOURCE.sub("", " ".join(str(reason).split())), _LONGEST)
