"""What a user asks of `quantize` and `sensitivity`, beside the options of the data: `QuantizeOptions`.

Nothing heavy is imported here, since the options of the command come from these fields and `--help` shows them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from amct_onnx.data.input_texts import split_names
from amct_onnx.options import Flag, option, positive_number

if TYPE_CHECKING:
    import os

    from amct_onnx.engine.engine import Engine
    from amct_onnx.numerics.settings import ActivationSolver, Settings
    from amct_onnx.values.findings import Effort

# Called with an onnxruntime.InferenceSession; gives a number, higher is better.
Evaluator = Callable[[Any], float]
# Tests hold these names to the tables that have them, which are too heavy to be imported for `--help`.
TARGET_NAMES = ("onnxruntime", "tensorrt", "openvino", "ascend")
ALGORITHM_NAMES = ("mse", "min_max", "percentile", "entropy", "ifmr", "hfmg")
EFFORT_NAMES = ("fast", "default", "best")


def split_providers(text: str) -> tuple[str, ...]:
    """The names of a list with commas."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


@dataclass(frozen=True, kw_only=True)
class QuantizeOptions:
    """The arguments of `quantize` that say what the result is to be, as the user gave them."""

    target: str = option(
        "onnxruntime",
        f"where the model will run: {', '.join(TARGET_NAMES)}",
        flag=Flag(metavar="NAME", choices=TARGET_NAMES),
    )
    settings: Settings | str | os.PathLike[str] | None = option(
        None,
        "settings of layers: a config.json or a .cfg file",
        "`Settings` do as well as the path of a file. With settings, what they say is done, and no recipe is tried.",
        flag=Flag(help="settings of layers: a config.json or a .cfg file", metavar="FILE"),
    )
    algorithm: str | ActivationSolver | None = option(
        None,
        f"how the ranges of all activations are found: {', '.join(ALGORITHM_NAMES)}",
        "A solver's settings, as `Percentile(percentile=0.999)`, do as well as a name. None takes what `settings` say, "
        "and mse without settings.",
        flag=Flag(help="mse, min_max, percentile, entropy, ifmr or hfmg", metavar="NAME", choices=ALGORITHM_NAMES),
    )
    skip_layers: Collection[str] = option(
        (),
        "nodes left in float",
        'They are named by names, patterns and types: in "Conv_*", * stands for any letters; "type:Softmax" names the '
        "nodes of an operator type. What names no node is an error.",
        flag=Flag(metavar="NAMES", example='"Conv_*;type:Softmax"', read=split_names),
    )
    reduce_range: bool = option(
        False,
        "weights that are exact on x86 CPUs without VNNI too, whose int8 kernels saturate otherwise",
        flag=Flag(help="weights that are exact on x86 without VNNI", switch=True),
    )
    effort: Effort = option(
        "default",
        "what is spent on accuracy: fast (one look at the data), default (some seconds more) or best (minutes)",
        "fast finds ranges and scales by least squares. default tries a short recipe: equalization of channels, "
        "SmoothQuant, GPTQ and corrections of biases. It takes some seconds, however much data there is. best tries "
        "more. A step is kept if it helps on samples that it has not seen. `steps` of the result tell what was tried "
        "and what it brought.",
        flag=Flag(help="fast, default (some seconds more) or best (minutes)", metavar="NAME", choices=EFFORT_NAMES),
    )
    full_int8: bool = option(
        False,
        "leave no layer in float for accuracy or time; else what float computes faster stays there, and first layers",
        "For target onnxruntime, whose kernels were timed. Whatever the effort, a node is in float where the table of "
        "prices says that it is faster there, with all that is rounded around it: a depthwise convolution of few "
        "channels, or all of a small network. default and best leave some of the first layers in float as well, which "
        "make much of the noise, where samples that they have not seen show a gain, and the model takes no longer than "
        "all in int8.",
        flag=Flag(help="leave no layer in float for accuracy or time", switch=True),
    )
    weight_only: int | None = option(
        None,
        "4 or 8 bits for the weights of matrix products, activations in float; rounded to nearest without data",
        "The products are MatMul and Gemm, and the target is onnxruntime, which may multiply in int8 nevertheless. "
        "Weights are rounded to nearest if effort is fast or data is None. Else GPTQ, and AdaRound if it is best, are "
        "tried on three samples of four, and kept where they are better on the others. Padding counts as data: give "
        "batches of samples of equal length.",
        flag=Flag(help="4 or 8: bits of weights alone, activations in float", metavar="BITS", choices=(4, 8), read=int),
    )
    block_size: int = option(
        32,
        "weights that share a scale with weight_only: a power of two from 16 on, 32 if not given",
        flag=Flag(help="weights that share a scale (32), with --weight_only", metavar="N", read=positive_number),
    )
    dynamic: bool = option(
        False,
        "no data: weights become int8, and activations are quantized as they come, for each run anew",
        "`data` is None then, the target is onnxruntime, and `effort` has nothing to do. MatMul, Gemm and LSTM are "
        "quantized where that is faster than float, or however small they are with `full_int8`, and tables of "
        "embeddings are stored in int8; `decisions` tell what is not, and why.",
        flag=Flag(help="no data: quantize activations as they come", switch=True),
    )
    evaluator: Evaluator | None = option(
        None,
        "a function evaluate(session) that returns a number, higher is better",
        "The session is an onnxruntime.InferenceSession with default options, as yours will have, so that the int8 "
        "kernels of this CPU are judged as well. For target ascend it comes from `deployed_session`. The float model "
        "is evaluated first. Let the number be finer than `max_drop`: top-1 of 250 images has steps of 0.4 points, and "
        "proves little about other images. An array of one number for each sample tells best how far their mean may be "
        "off. What the function raises passes through.",
        flag=Flag(metavar="FILE", help="Python script: evaluate(session) gives a number"),
    )
    max_drop: float | None = option(
        None,
        "what may be lost of the value that the evaluator gives the float model",
        flag=Flag(help="may be lost of the value for the float model", metavar="X", read=float),
    )
    target_accuracy: float | None = option(
        None,
        "the least value that the evaluator may give, in place of max_drop",
        flag=Flag(help="the least value, in place of --max_drop", metavar="X", read=float),
    )
    max_slowdown: float | None = option(
        None,
        "how many times as long as the int8 model it may take, as 1.05; nodes that make most of the noise go to float",
        "The times are those of a table, measured once for each type of layer of target onnxruntime. For other targets "
        "they are multiplications: one in float counts as four of int8, and one with int16 activations as two. "
        "Up to 64 samples, at most a quarter of all, are held out of the calibration to judge it.",
        flag=Flag(help="times as long as int8, for nodes in float (1.05)", metavar="X", read=float),
    )
    min_sqnr: float | None = option(
        None,
        "the least signal-to-noise ratio of the outputs in dB, on samples held out",
        "It needs no evaluator. Up to 64 samples, at most a quarter of all, are held out of the calibration for it.",
        flag=Flag(help="least signal-to-noise ratio of the outputs in dB", metavar="DB", read=float),
    )
    providers: Sequence[str | tuple[str, Mapping[str, Any]]] | None = option(
        None,
        "execution providers of ONNX Runtime for all sessions of this call, the preferred one first",
        'They are names, as ["CUDAExecutionProvider", "CPUExecutionProvider"], or pairs of a name and a dict of its '
        "options. None takes the CPU. One that this ONNX Runtime does not have, or that does not start, is an error at "
        "once. The workers of an engine use the same.",
        flag=Flag(help="execution providers, as CUDAExecutionProvider", metavar="NAMES", read=split_providers),
    )
    engine: str | Engine = option(
        "local",
        "who does the work: local (this process), processes[:N] (several here) or ray[://HOST:PORT] (a cluster)",
        "`ray` starts a cluster on this machine, `ray://HOST:PORT` joins one; it takes the package ray, an extra. Any "
        "engine gives the same bytes. Data in files are opened by the worker that needs them; data that only this "
        "process can read, as an iterable, are sent. A worker that is lost is replaced, and its part is done again.",
        flag=Flag(help="local, processes, processes:N, ray or ray://HOST:PORT", metavar="NAME"),
    )
    state: str | os.PathLike[str] | None = option(
        None,
        "a folder that keeps what is done, so that the same call goes on there after it was stopped",
        "It keeps what each batch of the calibration has shown, and what trials are worth, as they come. A folder with "
        "the state of another model, of other data or options is refused. Delete it when the result is there.",
        flag=Flag(help="folder that keeps what is done, to go on there later", metavar="FOLDER"),
    )
