"""The import paths of AMCT's classes (amct_formats.md: Import paths), and what subclasses of them rely on."""

from __future__ import annotations

from importlib import import_module

import pytest

from amct_onnx.common import auto_calibration

MODULES = {
    "accuracy_based_auto_calibration_base": "AccuracyBasedAutoCalibrationBase",
    "auto_calibration_evaluator_base": "AutoCalibrationEvaluatorBase",
    "auto_calibration_strategy_base": "AutoCalibrationStrategyBase",
    "binary_search_strategy": "BinarySearchStrategy",
    "cosine_similarity_sensitivity": "CosineSimilaritySensitivity",
    "sensitivity_base": "SensitivityBase",
}


@pytest.mark.parametrize(("module", "name"), MODULES.items())
def test_a_class_is_the_same_at_both_paths(module: str, name: str) -> None:
    found = getattr(import_module(f"amct_onnx.common.auto_calibration.{module}"), name)
    assert found is getattr(auto_calibration, name)


def test_the_base_classes_are_abstract_in_amcts_way() -> None:
    evaluator = auto_calibration.AutoCalibrationEvaluatorBase()
    strategy = auto_calibration.AutoCalibrationStrategyBase()
    assert (strategy.result, strategy.set_flag, strategy.last_acc_result) == ({}, True, {})  # subclasses use them
    for call in (
        lambda: evaluator.calibration("m"),
        lambda: evaluator.evaluate("m"),
        lambda: evaluator.metric_eval(1, 2),
        lambda: strategy.initialize({}),
        lambda: strategy.update_quant_config((True, 0.0)),
        lambda: auto_calibration.SensitivityBase().compare(None, None),  # type: ignore[arg-type]
    ):
        with pytest.raises(NotImplementedError):
            call()


def test_the_helper_that_scripts_patch_can_be_patched(monkeypatch: pytest.MonkeyPatch) -> None:
    helper = import_module("amct_onnx.utils.auto_calibration_helper").AutoCalibrationHelper
    monkeypatch.setattr(helper, "find_fm_file_path", lambda self, layer_name: [f"{layer_name}_0.bin"])
    assert helper().find_fm_file_path("conv") == ["conv_0.bin"]
