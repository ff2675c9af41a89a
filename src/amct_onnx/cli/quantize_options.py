"""The options of `amct_onnx quantize`. Like `options`, it imports only what is light."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from amct_onnx.data.input_texts import check_data_type, parse_shapes, split_list
from amct_onnx.errors import AmctError

# The names behind these options; tests hold them to those of the layers that know them, which are heavy.
TARGETS = ("onnxruntime", "tensorrt", "openvino", "ascend")
ALGORITHMS = ("mse", "min_max", "percentile", "entropy", "ifmr", "hfmg")
_LEAST_BLOCK = 16
EFFORTS = ("fast", "default", "best")
PRESETS = ("torch", "tf", "caffe", "unit", "raw", "yolox", "luminance")


@dataclass(frozen=True, kw_only=True)
class QuantizeOptions:
    """`data`: a path, or one for each input. `statistics`: a file that takes the place of data. `evaluator`: a script.
    `arguments`: what is handed on to `quantize` as it is.
    """

    model: str
    save_path: str
    data: str | Mapping[str, str] | None
    statistics: str | None
    save_statistics: str | None
    targets: tuple[str, ...]
    report: bool
    evaluator: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class SensitivityOptions:
    """`data`: a path, or one for each input. `arguments`: what is handed on to `sensitivity` as it is."""

    model: str
    data: str | Mapping[str, str]
    arguments: Mapping[str, Any] = field(default_factory=dict)


def add_sensitivity_options(command: argparse.ArgumentParser, positive: Callable[[str], int]) -> None:
    """Declare the options of the command `sensitivity`."""
    _add_model(command)
    command.add_argument(
        "--target", default="onnxruntime", choices=TARGETS, metavar="NAME", help=f"one of {', '.join(TARGETS)}"
    )
    command.add_argument("--samples", type=positive, metavar="N", help="samples that effects are measured with (4)")
    _add_choices(command)
    _add_data(command.add_argument_group("data"), positive)


def add_quantize_options(command: argparse.ArgumentParser, positive: Callable[[str], int]) -> None:
    """Declare the options of the command `quantize`."""
    _add_model(command)
    command.add_argument(
        "--save_path", required=True, metavar="PREFIX", help="folder and prefix of the results: ./results/resnet101"
    )
    command.add_argument(
        "--target",
        default="onnxruntime",
        metavar="NAMES",
        help=f"where the model will run: {', '.join(TARGETS)}; several with commas, from one calibration",
    )
    _add_choices(command)
    command.add_argument(
        "--effort",
        choices=EFFORTS,
        default="default",
        help="spent on accuracy: fast (one look at the data), default (some seconds more) or best (minutes)",
    )
    command.add_argument(
        "--weight_only",
        type=int,
        choices=(4, 8),
        metavar="BITS",
        help="4 or 8 bits for the weights of matrix products, activations in float; rounded to nearest without --data",
    )
    command.add_argument(
        "--block_size", type=positive, metavar="N", help="weights that share a scale: a power of two from 16 on, or 32"
    )
    command.add_argument("--no_report", action="store_true", help="do not look at what ONNX Runtime makes of it")
    mixed = command.add_argument_group("mixed precision", "layers stay in float as far as a target of accuracy takes")
    mixed.add_argument(
        "--min_sqnr", type=float, metavar="DB", help="least signal-to-noise ratio of the outputs, on samples held out"
    )
    mixed.add_argument("--max_drop", type=float, metavar="X", help="what may be lost of what --evaluator says of float")
    mixed.add_argument("--target_accuracy", type=float, metavar="X", help="the least that --evaluator may say")
    mixed.add_argument(
        "--evaluator", metavar="FILE", help="a Python script with evaluate(session), a number; higher is better"
    )
    data = command.add_argument_group("data", "--data, or --statistics of an earlier calibration")
    _add_data(data, positive)
    data.add_argument("--statistics", metavar="FILE", help="statistics that --save_statistics wrote; no data is run")
    data.add_argument("--save_statistics", metavar="FILE", help="write the statistics of the calibration, as .npz")


def _add_model(command: argparse.ArgumentParser) -> None:
    command.add_argument("model", metavar="MODEL", nargs="?", help="the float model, an .onnx file")
    command.add_argument("--model", dest="model_option", metavar="FILE", help=argparse.SUPPRESS)


def _add_choices(command: argparse.ArgumentParser) -> None:
    command.add_argument("--settings", metavar="FILE", help="settings of layers: a config.json or a .cfg file")
    command.add_argument(
        "--algorithm", choices=ALGORITHMS, metavar="NAME", help=f"of activations: {', '.join(ALGORITHMS)}"
    )
    command.add_argument("--skip_layers", metavar="NAMES", help='nodes that stay in float: "Conv_0;Gemm_8"')
    command.add_argument(
        "--reduce_range",
        action="store_true",
        help="weights that are exact on x86 CPUs without VNNI too, whose int8 kernels saturate otherwise",
    )


def _add_data(data: argparse._ArgumentGroup, positive: Callable[[str], int]) -> None:
    data.add_argument(
        "--data",
        metavar="PATH",
        action="append",
        help="a folder of images, .npy or .bin files, a .npy or a .npz file; NAME=PATH, repeated, for several inputs",
    )
    data.add_argument(
        "--images", choices=PRESETS, metavar="PRESET", help=f"how images are prepared: {', '.join(PRESETS)}"
    )
    data.add_argument("--batch_size", type=positive, metavar="N", help="samples at once")
    data.add_argument("--limit", type=positive, metavar="N", help="samples in all")
    data.add_argument(
        "--input_shape", metavar="SHAPES", help='"name1:n1,c1,h1,w1;name2:..."; for .bin files and open sizes'
    )
    data.add_argument("--data_types", metavar="TYPES", help='types of .bin files: "name1:float32;name2:int64"')
    data.add_argument(
        "--names", metavar="NAMES", help='names of inputs in the data: "input_ids=ids_a;attention_mask=mask_a"'
    )


def read_quantize_options(namespace: argparse.Namespace, command: argparse.ArgumentParser) -> QuantizeOptions:
    """The options of a parsed command line; a wrong one ends in `command.error`."""
    model = _model(namespace, command)
    _check_weight_only(namespace, command)
    without_data = namespace.weight_only is not None and namespace.data is None
    if not without_data and (namespace.data is None) == (namespace.statistics is None):
        command.error("give either --data or --statistics")
    if namespace.statistics is not None and namespace.save_statistics is not None:
        command.error("--save_statistics would copy --statistics: delete one of them")
    targets = tuple(dict.fromkeys(part.strip() for part in namespace.target.split(",")))
    for target in targets:
        if target not in TARGETS:
            command.error(f"--target: {target!r} is unknown, use {', '.join(TARGETS)}")
    goals = [name for name in ("min_sqnr", "max_drop", "target_accuracy") if getattr(namespace, name) is not None]
    if len(goals) > 1:
        command.error(f"{' and '.join(f'--{name}' for name in goals)} are different targets, give one of them")
    if (goals in (["max_drop"], ["target_accuracy"])) != (namespace.evaluator is not None):
        command.error("--max_drop and --target_accuracy go with --evaluator; --min_sqnr needs none")
    if goals and len(targets) > 1:
        command.error(f"--{goals[0]} searches for one target, give one")
    if goals and namespace.statistics is not None:
        command.error(f"--{goals[0]} runs samples, give --data in the place of --statistics")
    return QuantizeOptions(
        model=model,
        save_path=namespace.save_path,
        data=None if namespace.data is None else _data(namespace.data, command),
        statistics=namespace.statistics,
        save_statistics=namespace.save_statistics,
        targets=targets,
        report=not namespace.no_report,
        evaluator=namespace.evaluator,
        arguments=_arguments(namespace, command)
        | {"effort": namespace.effort}
        | _weights_alone(namespace)
        | {name: getattr(namespace, name) for name in goals},
    )


def _check_weight_only(namespace: argparse.Namespace, command: argparse.ArgumentParser) -> None:
    if namespace.weight_only is None:
        if namespace.block_size is not None:
            command.error("--block_size belongs to --weight_only: give that too")
        return
    if namespace.statistics is not None or namespace.save_statistics is not None:
        command.error("--weight_only has no statistics of activations: delete --statistics and --save_statistics")
    if namespace.target != TARGETS[0]:
        command.error(f"--weight_only needs --target {TARGETS[0]}")
    if any(getattr(namespace, name) is not None for name in ("min_sqnr", "max_drop", "target_accuracy")):
        command.error("--weight_only does not search for mixed precision: delete the target of accuracy")
    size = namespace.block_size
    if size is not None and (size < _LEAST_BLOCK or size & (size - 1)):
        command.error(f"--block_size {size} is no power of two from {_LEAST_BLOCK} on")


def _weights_alone(namespace: argparse.Namespace) -> dict[str, Any]:
    if namespace.weight_only is None:
        return {}
    size = {} if namespace.block_size is None else {"block_size": namespace.block_size}
    return {"weight_only": namespace.weight_only, **size}


def read_sensitivity_options(namespace: argparse.Namespace, command: argparse.ArgumentParser) -> SensitivityOptions:
    """The options of a parsed command line; a wrong one ends in `command.error`."""
    model = _model(namespace, command)
    if namespace.data is None:
        command.error("give --data, to calibrate and to measure with")
    samples = {} if namespace.samples is None else {"samples": namespace.samples}
    return SensitivityOptions(
        model=model,
        data=_data(namespace.data, command),
        arguments=_arguments(namespace, command) | {"target": namespace.target} | samples,
    )


def _model(namespace: argparse.Namespace, command: argparse.ArgumentParser) -> str:
    if (namespace.model is None) == (namespace.model_option is None):
        command.error(f"give one model: {command.prog} model.onnx ...")
    return str(namespace.model or namespace.model_option)


def _arguments(namespace: argparse.Namespace, command: argparse.ArgumentParser) -> dict[str, Any]:
    """What `quantize` and `sensitivity` are both told."""
    try:
        shapes = parse_shapes(namespace.input_shape) if namespace.input_shape is not None else None
    except AmctError as reason:
        command.error(f"--input_shape: {reason}")
    dtypes = _pairs(namespace.data_types, ":", "--data_types", command)
    for dtype in (dtypes or {}).values():
        try:
            check_data_type(dtype)
        except AmctError as reason:
            command.error(f"--data_types: {reason}")
    return {
        "settings": namespace.settings,
        "algorithm": namespace.algorithm,
        "skip_layers": tuple(part.strip() for part in split_list(namespace.skip_layers or "") if part.strip()),
        "reduce_range": namespace.reduce_range,
        "images": namespace.images,
        "batch_size": namespace.batch_size,
        "limit": namespace.limit,
        "shapes": shapes,
        "dtypes": dtypes,
        "names": _pairs(namespace.names, "=", "--names", command),
    }


def _data(words: list[str], command: argparse.ArgumentParser) -> str | dict[str, str]:
    if len(words) == 1 and "=" not in words[0]:
        return words[0]
    paths = {}
    for word in words:
        name, equals, path = word.partition("=")
        if not equals or not name or not path:
            command.error(f"--data {word!r}: several inputs are given as NAME=PATH, each with a --data of its own")
        if name in paths:
            command.error(f"--data: the input {name!r} is given twice")
        paths[name] = path
    return paths


def _pairs(text: str | None, separator: str, option: str, command: argparse.ArgumentParser) -> dict[str, str] | None:
    if text is None:
        return None
    pairs = {}
    for part in split_list(text):
        name, found, value = (word.strip() for word in part.rpartition(separator))
        if not found or not name or not value:
            command.error(f"{option}: {part!r} is not NAME{separator}VALUE")
        pairs[name] = value
    return pairs
