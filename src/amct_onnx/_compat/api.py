"""AMCT's functions as its users call them: each checks its arguments and begins the log, and works in `amct/`."""

from __future__ import annotations

from amct_onnx._compat.arguments import checked
from amct_onnx.amct import balance_model, calibration_model, configuration, convert_qat, save

_FILES = ("config_file", "model_file", "modified_onnx_file", "record_file")
_CALIBRATION = ("modified_onnx_file", "record_file")

create_quant_config = checked(
    files=("config_file", "model_file", "config_defination", "updated_model"), written=("config_file", "updated_model")
)(configuration.create_quant_config)
quantize_model = checked(files=_FILES, written=_CALIBRATION)(calibration_model.quantize_model)
quantize_preprocess = checked(files=_FILES, written=_CALIBRATION)(balance_model.quantize_preprocess)
save_model = checked(files=_FILES, prefixes=("save_path",))(save.save_model)
convert_qat_model = checked(files=_FILES, prefixes=("save_path",), written=("record_file",))(
    convert_qat.convert_qat_model
)
