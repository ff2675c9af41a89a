"""Says so where the outputs of a result have more noise than most tasks bear."""

from __future__ import annotations

import logging

from amct_onnx.values.accuracy import Accuracy
from amct_onnx.words import given

_log = logging.getLogger("amct_onnx.Quantize")
_NOISY = 12  # dB; classifiers lose points of top-1 below, detectors many


def warn_of_noise(accuracy: Accuracy | None) -> None:
    """Log it, and what to do."""
    if accuracy is not None and is_noisy(accuracy):
        _log.warning(noise_text(accuracy))


def is_noisy(accuracy: Accuracy) -> bool:
    """Whether most tasks suffer."""
    return accuracy.decibels < _NOISY


def noise_text(accuracy: Accuracy) -> str:
    """The warning of a noisy result."""
    where = "held out" if accuracy.held_out else "of the calibration"
    return (
        f"The outputs are only {accuracy.decibels:.1f} dB above the noise of int8 on samples {where}: "
        f"{given('min_sqnr', _NOISY)} leaves the layers that are to blame in float, `amct_onnx sensitivity` shows them."
    )
