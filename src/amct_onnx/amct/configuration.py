"""create_quant_config: the configuration of a model, with an entry for each layer that can be quantized."""

from __future__ import annotations

import logging

from amct_onnx.errors import ArgumentError, ArgumentTypeError
from amct_onnx.files.config_json import default_settings, format_config
from amct_onnx.files.config_text import read_cfg
from amct_onnx.files.onnx_file import save_model_file
from amct_onnx.files.whole_files import atomic_path
from amct_onnx.numerics.settings import Settings
from amct_onnx.plan.ascend_layers import check_tensors
from amct_onnx.plan.float_model import FloatModel
from amct_onnx.values.layers import GraphFacts

_SHOWN_LAYERS = 5
_log = logging.getLogger("amct_onnx.Config")


def create_quant_config(
    config_file: str,
    model_file: str,
    skip_layers: list[str] | None = None,
    batch_num: int = 1,
    activation_offset: bool = True,
    config_defination: str | None = None,
    updated_model: str | None = None,
) -> None:
    """Write `config_file`: one entry for each layer of `model_file` that can be quantized
    (amct_formats.md: create_quant_config, config.json).

    skip_layers: names of layers that stay in float. batch_num: batches that calibration will see, > 0.
    activation_offset: asymmetric activations. config_defination: path of a simplified configuration; the
    three arguments before it are then ignored. updated_model: where to write the model with every node named.

    Raises TypeError or ValueError for wrong arguments, layers or model files, RuntimeError for a model that is
    quantized already, OSError when a result cannot be written.
    """
    if any(not isinstance(layer, str) for layer in skip_layers or ()):
        raise ArgumentTypeError("Func create_quant_config argument skip_layers must be a list of str")
    if batch_num < 1:
        raise ArgumentError(f"Argument batch_num must be greater than 0, got {batch_num}.")
    source = FloatModel.open(model_file)
    facts = source.facts
    if config_defination is not None:
        if skip_layers:
            _log.warning("skip_layers is ignored, since config_defination is given.")
        settings = read_cfg(config_defination, facts)
    else:
        settings = default_settings(
            facts,
            skip_layers=skip_layers or (),
            batch_num=batch_num,
            activation_offset=activation_offset,
        )
    check_tensors(source.model, facts, settings)
    _report_products(facts, settings)
    _report_float(facts)
    with atomic_path(config_file) as file:  # moved into place when the model is written too
        file.write_bytes(format_config(settings, facts).encode())
        if updated_model is not None:
            save_model_file(source.model, updated_model)
    _log.info("Generate config file:%s success!", config_file)


def _report_products(facts: GraphFacts, settings: Settings) -> None:
    """config.json has no comments: the log says why these layers are off."""
    products = [name for name, traits in facts.supported.items() if traits.two_operands]
    off = [name for name in products if not settings.layers[name].quant_enable]
    if off:
        _log.info(
            "%d MatMul layers multiply two activations (first: %s) and stay in float: quantizing them costs accuracy "
            "and pays on few chips. Set quant_enable to true in the config file for those to be quantized.",
            len(off),
            off[0],
        )


def _report_float(facts: GraphFacts) -> None:
    """config.json does not name these layers: the log says why."""
    left = {name: traits.reason for name, traits in facts.layers.items() if traits.reason is not None}
    if left:
        shown = "; ".join(f"{name}: {reason}" for name, reason in list(left.items())[:_SHOWN_LAYERS])
        more = f"; and {len(left) - _SHOWN_LAYERS} more" if len(left) > _SHOWN_LAYERS else ""
        text = "%d of %d layers cannot be quantized, and stay in float: %s%s."
        _log.info(text, len(left), len(facts.layers), shown, more)
