"""AMCT's functions, with its signatures, defaults and spellings (spec section 1)."""

from __future__ import annotations

from amct_onnx._compat.arguments import checked
from amct_onnx.amct.balance_model import prepare_balancing
from amct_onnx.amct.calibration_model import write_calibration_model
from amct_onnx.amct.configuration import write_config
from amct_onnx.amct.convert_qat import convert_qdq
from amct_onnx.amct.save import read_calibrated
from amct_onnx.errors import ArgumentError, ArgumentTypeError
from amct_onnx.progress import show_on_terminal
from amct_onnx.targets.ascend_model import write_ascend_files

_FILES = ("config_file", "model_file", "modified_onnx_file", "record_file")


@checked(files=("config_file", "model_file", "config_defination", "updated_model"))
def create_quant_config(
    config_file: str,
    model_file: str,
    skip_layers: list[str] | None = None,
    batch_num: int = 1,
    activation_offset: bool = True,
    config_defination: str | None = None,
    updated_model: str | None = None,
) -> None:
    """Write `config_file`: one entry for each layer of `model_file` that can be quantized (spec sections 1.3, 2).

    skip_layers: names of layers that stay in float. batch_num: batches that calibration will see, > 0.
    activation_offset: asymmetric activations. config_defination: path of a simplified configuration (section 3); the
    three arguments before it are then ignored. updated_model: where to write the model with every node named.

    Raises TypeError or ValueError for wrong arguments, layers or model files, RuntimeError for a model that is
    quantized already, OSError when a result cannot be written.
    """
    if any(not isinstance(layer, str) for layer in skip_layers or ()):
        raise ArgumentTypeError("Func create_quant_config argument skip_layers must be a list of str")
    if batch_num < 1:
        raise ArgumentError(f"Argument batch_num must be greater than 0, got {batch_num}.")
    write_config(
        config_file,
        model_file,
        skip_layers=skip_layers or (),
        batch_num=batch_num,
        activation_offset=activation_offset,
        config_defination=config_defination,
        updated_model=updated_model,
    )


@checked(files=_FILES)
def quantize_model(config_file: str, model_file: str, modified_onnx_file: str, record_file: str) -> None:
    """Write the calibration model and a record with the factors of the weights (spec section 1.4).

    Run `modified_onnx_file` with `AMCT_SO` for batch_num batches next; each completes the statistics of its tensors,
    and the last one completes `record_file`. Existing files are overwritten; only if the configuration has
    `dmq_balancer_param`, the record must be that of quantize_preprocess, and its balance factors are kept.

    Raises TypeError or ValueError for wrong arguments or files, RuntimeError when nothing is left to quantize, a weight
    cannot be quantized or balance factors are missing, OSError when a result cannot be written.
    """
    write_calibration_model(config_file, model_file, modified_onnx_file, record_file)


@checked(files=_FILES)
def quantize_preprocess(config_file: str, record_file: str, model_file: str, modified_onnx_file: str) -> None:
    """Write the model that finds balance factors (DMQ), and an empty record for them (spec section 1.7).

    For a configuration with `dmq_balancer_param`. Run `modified_onnx_file` with `AMCT_SO` for at least one batch next:
    the factors are those of the largest magnitudes over all batches that run, and stand in `record_file` after the
    first. Then call quantize_model with the same record file. Mind the order of the arguments. Existing files are
    overwritten.

    Raises TypeError or ValueError for wrong arguments or files, RuntimeError when no layer is to be balanced, OSError
    when a result cannot be written.
    """
    prepare_balancing(config_file, record_file, model_file, modified_onnx_file)


@checked(files=_FILES, prefixes=("save_path",))
def save_model(modified_onnx_file: str, record_file: str, save_path: str) -> None:
    """Write `<save_path>_deploy_model.onnx`, `<save_path>_fake_quant_model.onnx` and `<save_path>_quant.json`.

    `save_path` is a folder and a prefix; without a prefix the files are named deploy_model.onnx and so on (spec
    section 1.6). It may run in another process than the calibration.

    Raises TypeError or ValueError for wrong arguments, files or factors, RuntimeError when calibration is not finished
    or the record does not belong to the model, OSError when a result cannot be written.
    """
    write_ascend_files(read_calibrated(modified_onnx_file, record_file, progress=show_on_terminal), save_path)


@checked(files=_FILES, prefixes=("save_path",))
def convert_qat_model(model_file: str, save_path: str, record_file: str | None = None) -> None:
    """Write the files of `save_model` for a model with QuantizeLinear and DequantizeLinear (spec sections 1.9, 10).

    A layer whose activation and weight are both quantized to int8 or uint8 keeps its integers and its scales. Other
    quantized tensors stay quantized; what has no int8 form stays as it is, and the log counts it by reason (at level
    DEBUG each node). `record_file`: where to write the factors, nowhere if None.

    Raises TypeError or ValueError for wrong arguments or files, RuntimeError for a model without such nodes or one that
    AMCT made, OSError when a result cannot be written.
    """
    convert_qdq(model_file, save_path, record_file)
