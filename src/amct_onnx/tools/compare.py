"""`compare`: where a quantized model parts from the float model that it was made from, layer by layer."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir

from amct_onnx.data.data_source import announcer
from amct_onnx.data.image_options import ImageOptions
from amct_onnx.data.open_data import open_data
from amct_onnx.data.options import DataOptions, OnBadData
from amct_onnx.errors import ArgumentError, ArgumentTypeError, DataError, ModelError
from amct_onnx.files.onnx_file import load_model, take_model
from amct_onnx.graph.access import name_of
from amct_onnx.graph.constants import lift_ir3
from amct_onnx.graph.correspondence import Correspondence, match_models
from amct_onnx.graph.inputs import model_inputs
from amct_onnx.graph.naming import name_nodes, name_values
from amct_onnx.graph.outputs import purpose_of
from amct_onnx.graph.read.lift_deploy import lift_deploy
from amct_onnx.graph.read.read_qoperators import lift_qoperators
from amct_onnx.measure.tensor_errors import LayerErrors, TensorErrors
from amct_onnx.numerics.sample_noise import decibel
from amct_onnx.options import documented
from amct_onnx.progress import Progress, progress_of
from amct_onnx.ptq.options import QuantizeOptions
from amct_onnx.ptq.quantized_model import QuantizedModel
from amct_onnx.run.float_network import FloatNetwork
from amct_onnx.run.providers import Provider, checked_providers, on_providers
from amct_onnx.tools.causes import Causes
from amct_onnx.values.comparison import Comparison, LayerComparison
from amct_onnx.words import given

SAMPLES = 4
# A layer stands out that alone is noisier than this, and than most others by so much, in dB; or than the next one.
_NOISY, _BEYOND_MOST = 12.0, 10.0
_QUITE_NOISY, _BEYOND_NEXT = 25.0, 8.0
# Or that is noisier than most by so much, and whose grid reaches so many times less far than most do, or farther.
_BEYOND_USUAL, _OTHER_REACH, _FAR_REACH = 5.0, 1.7, 2.5
_CUT_NOISY = 30.0  # dB: a range of least squared error cuts off rare values, and costs less
_EXACT = 80.0  # dB; what is better computes in floats
_SHOWN = 10


@documented(QuantizeOptions, DataOptions)
def compare(
    float_model: Any,
    quantized_model: Any,
    data: Any,
    *,
    images: ImageOptions | str | None = None,
    batch_size: int | None = None,
    limit: int | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    dtypes: Mapping[str, str] | None = None,
    names: Mapping[str, str] | None = None,
    tokenizer: str | os.PathLike[str] | None = None,
    on_bad_data: OnBadData = "fail",
    samples: int = SAMPLES,
    progress: Progress | bool | None = None,
    providers: Sequence[Provider] | None = None,
) -> Comparison:
    """Where `quantized_model` parts from `float_model`: each tensor in all, and what each layer costs alone.

    float_model: a path, an onnx.ModelProto or an onnx_ir.Model.
    quantized_model: the same, or a `QuantizedModel`. Any tool may have made it: with QuantizeLinear and
        DequantizeLinear, with operators as QLinearConv or MatMulInteger, or a deploy model or a simulation of AMCT.
        Tensors are matched by the structure of both graphs and, where that has changed, by names.
    data: that of `quantize`.
    samples: how many are run, the first ones.
    progress: as for `quantize`.

    The layers of both models run as the file has them, in floats between their roundings: what kernels of integers do
    beside that, as sums that saturate, is not seen here.

    Raises ArgumentError, ModelError, ModelFileError, FileMissingError and DataError.
    """
    told, chosen = progress_of(progress), checked_providers(providers)
    if samples < 1:
        raise ArgumentError(f"{given('samples', samples)} is no number of samples, give 1 or more.")
    floats, quantized = _opened(float_model, "float_model"), _opened(quantized_model, "quantized_model")
    options = DataOptions(
        images=images,
        batch_size=batch_size,
        limit=limit,
        shapes=shapes,
        dtypes=dtypes,
        names=names,
        tokenizer=tokenizer,
        on_bad_data=on_bad_data,
    )
    lift_qoperators(quantized)
    lift_deploy(quantized)
    _prepare(quantized)
    found = match_models(floats, quantized)
    limited = replace(options, limit=min(options.limit or samples, samples))
    with on_providers(chosen):
        network = FloatNetwork(floats)
        source = open_data(data, model_inputs(floats), limited, network, purpose_of(floats), announcer(told))
        rule = source.rule
        kept = [rule.sample(feed, index) for feed in source.unchecked() for index in range(rule.count(feed))][:samples]
        if not kept:
            raise DataError("The data hold no sample: give one at least.")
        running = LayerErrors(floats, quantized, found, kept[0])
        measured = {errors.pair.tensor: errors for errors in running.measure(kept, told)}
    called = _called(float_model), _called(quantized_model)
    return _result(called, Causes(floats, quantized), (found, running.left_out), measured, _outputs(floats), len(kept))


def _result(
    called: tuple[str, str],
    causes: Causes,
    matched: tuple[Correspondence, Sequence[str]],
    measured: Mapping[str, TensorErrors],
    outputs: Sequence[str],
    samples: int,
) -> Comparison:
    alone = {name: decibel(one.alone.ratio) for name, one in measured.items()}
    level, usual = _level(list(alone.values())), _usual(list(alone.values()))
    reaches = {name: causes.reach(one) for name, one in measured.items()}
    reach = _middle([value for value in reaches.values() if not np.isnan(value)])
    layers = []
    for errors in measured.values():
        pair, own, why = errors.pair, alone[errors.pair.tensor], causes.element(errors)
        other = reaches[pair.tensor] / reach  # NaN where there is no grid
        cut, coarse = max(other, reaches[pair.tensor]), min(other, reaches[pair.tensor])
        is_cut = cut < 1 / _OTHER_REACH and own < _CUT_NOISY
        strange = own < usual - _BEYOND_USUAL and (is_cut or coarse > _FAR_REACH)
        parts = own < level or strange or bool(why)
        if parts and not why:
            why = causes.weight(errors) or causes.rounding(errors) or causes.bias(errors) or causes.unknown(errors)
        layers.append(
            LayerComparison(
                layer=pair.layer,
                op_type=pair.op_type,
                nodes=pair.nodes,
                tensor=pair.tensor,
                rival=(pair.rounded or (pair.exact,))[0],
                sqnr=decibel(errors.whole.ratio),
                cosine=errors.whole.cosine,
                max_error=errors.whole.largest,
                own_sqnr=own,
                parts=parts,
                why=why,
                scaled=errors.scaled,
            )
        )
    weakest = sorted((layer for layer in layers if layer.nodes), key=lambda layer: layer.own_sqnr)
    by_tensor = {layer.tensor: layer for layer in layers}
    return Comparison(
        float_model=called[0],
        quantized_model=called[1],
        layers=tuple(layers),
        first=next((layer for layer in layers if layer.parts), None),
        weakest=tuple(weakest[:_SHOWN]),
        outputs={name: by_tensor[name].sqnr for name in outputs if name in by_tensor},
        unmatched=tuple(dict.fromkeys([*matched[0].unmatched, *matched[1]])),
        samples=samples,
    )


def _outputs(model: ir.Model) -> list[str]:
    return [name_of(value) for value in model.graph.outputs]


def _middle(values: Sequence[float]) -> float:
    return float(np.median(values)) if len(values) else float("nan")


def _usual(own: Sequence[float]) -> float:
    """What a layer that is rounded usually costs alone, in dB."""
    return _middle([value for value in own if -np.inf < value < _EXACT])


def _level(own: Sequence[float]) -> float:
    """The dB below which a layer stands out, by those of all layers alone."""
    noisy = sorted(value for value in own if -np.inf < value < _EXACT)
    if not noisy:
        return _NOISY
    level = min(_NOISY, _usual(own) - _BEYOND_MOST)
    if len(noisy) > 1 and noisy[0] < _QUITE_NOISY and noisy[1] - noisy[0] > _BEYOND_NEXT:
        level = max(level, noisy[0] + _BEYOND_NEXT / 2)
    return level


def _opened(model: Any, argument: str) -> ir.Model:
    """A copy of a model whose nodes are named and sorted."""
    if isinstance(model, QuantizedModel):
        opened = model.model()
    elif isinstance(model, str | os.PathLike):
        opened = load_model(model)
    elif isinstance(model, ir.Model) or type(model).__name__ == "ModelProto":
        opened = take_model(model)
    else:
        kinds = "a path, an onnx.ModelProto or an onnx_ir.Model"
        raise ArgumentTypeError(f"{argument} must be {kinds}, got {type(model).__name__}")
    if not opened.graph.num_nodes():
        raise ModelError(f"{_called(model)} has no nodes: there is nothing to compare.")
    _prepare(opened)
    return opened


def _prepare(model: ir.Model) -> None:
    lift_ir3(model)
    name_nodes(model)
    name_values(model)
    model.graph.sort()


def _called(model: Any) -> str:
    return os.fspath(model) if isinstance(model, str | os.PathLike) else f"the {type(model).__name__} in memory"
