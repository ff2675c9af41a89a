"""Sessions of ONNX Runtime: opening one, running it, and what is said when it refuses."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from amct_onnx.errors import AmctError, DataError, ModelError, OutputError, one_line
from amct_onnx.files.onnx_file import model_bytes
from amct_onnx.graph.tensors import array_of
from amct_onnx.numerics.arrays import Array, Feed
from amct_onnx.run.memory import give_back
from amct_onnx.run.providers import CPU, providers_here
from amct_onnx.run.temporary_files import temporary_folder

# The runtime copies weights that are in a serialized model; a larger model goes through a file, which is mapped.
MAX_INLINE_BYTES = 1 << 27
_MOST_COMPUTED = 4  # times as many bytes of weights that are lent may be computed first
# Where in its sources ONNX Runtime has found the fault, and in which function.
_SOURCE = re.compile(r"/?\S*onnxruntime\S*:\d+ [^()]*\([^()]*\)( const)? ")
_LONGEST = 280  # characters of its reason
LEAST_LENT = 1 << 12  # bytes of an initializer
_LARGE = 1 << 24  # bytes of weights, of a model for which memory is given back first
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
    own_model: bool = False,
    path: Path | None = None,
) -> ort.InferenceSession:
    """A session that runs `model`: one in memory, the bytes of one, or a file. Without providers it is on those of the
    call that runs, or on the CPU.

    own_options, own_model: whether `options` and a model in memory are for this session alone, and may be changed.
    path: where a model in memory came from.

    A large model in memory goes through a temporary file as long as the session opens, in the folder of `path` if the
    system's has no room. Raises `error` with the text "ONNX Runtime cannot <cannot>: <its reason>", or OutputError if
    no disk has the room.
    """
    chosen = ort.SessionOptions() if options is None else options
    where = providers if providers is not None else providers_here() or CPU

    def session(source: str | bytes) -> ort.InferenceSession:
        try:
            return ort.InferenceSession(
                source,
                sess_options=chosen,
                providers=list(where),
                disabled_optimizers=list(disabled_optimizers),
                enable_fallback=False,  # it would go on elsewhere, and print that
            )
        except Exception as reason:  # ONNX Runtime has a class for each status code, and they share no base
            raise error(f"ONNX Runtime cannot {cannot}: {_one_line(reason)}") from reason

    if not isinstance(model, ir.Model):
        return session(model)
    if model_bytes(model) > _LARGE:
        give_back()
    lendable = _lendable(model) if own_options or options is None else {}
    if _fits(model, lendable):
        inline = model if own_model else model.clone()
        lent = _lend(inline, lendable)
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


def _lendable(model: ir.Model) -> dict[str, ir.TensorProtocol]:
    """The large initializers that the runtime takes from where they are."""
    found = {}
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if tensor is None or tensor.dtype not in _LENT_TYPES or tensor.nbytes < LEAST_LENT:
            continue
        if not value.uses() or any(use.node.graph is not model.graph for use in value.uses()):
            continue  # the runtime does not look for it in branches, and has forgotten what nobody reads
        found[name] = tensor
    return found


def _fits(model: ir.Model, lendable: Mapping[str, ir.TensorProtocol]) -> bool:
    """Whether what is not lent goes into a serialized model, and what is computed to be lent goes into memory."""
    sizes = {name: tensor.nbytes for name, tensor in lendable.items()}
    computed = sum(sizes[name] for name, tensor in lendable.items() if isinstance(tensor, ir.LazyTensor))
    rest = model_bytes(model) - sum(sizes.values())
    return rest <= MAX_INLINE_BYTES and computed <= _MOST_COMPUTED * MAX_INLINE_BYTES


def _lend(model: ir.Model, lendable: Mapping[str, ir.TensorProtocol]) -> dict[str, ort.OrtValue]:
    """Take these initializers out of `model`; their values: the runtime takes them from where they are, and not from a
    serialized model that would be written and parsed first."""
    lent: dict[str, ort.OrtValue] = {}
    for graph in model.graphs():
        for name, value in graph.initializers.items():
            tensor = value.const_value
            if graph is model.graph and name in lendable:
                array = np.require(array_of(lendable[name]), requirements=["C", "ALIGNED"])
                lent[name] = ort.OrtValue.ortvalue_from_numpy(array)
                place = ir.ExternalTensor(
                    "lent", 0, array.nbytes, lendable[name].dtype, shape=ir.Shape(array.shape), name=name
                )
                value.const_value = place
            elif isinstance(tensor, ir.ExternalTensor):
                value.const_value = ir.Tensor(array_of(tensor).copy(), tensor.dtype, name=tensor.name)
    return lent


def _one_line(reason: Exception) -> str:
    """The message of an error of ONNX Runtime, in one line and not too long."""
    return one_line(_SOURCE.sub("", " ".join(str(reason).split())), _LONGEST)
