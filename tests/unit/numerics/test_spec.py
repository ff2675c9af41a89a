"""Integer grids."""

from __future__ import annotations

import dataclasses

import pytest

from amct_onnx.numerics.grid import QSpec


@pytest.mark.parametrize(("bits", "qmin", "qmax"), [(2, -2, 1), (4, -8, 7), (8, -128, 127), (16, -32768, 32767)])
def test_limits_are_those_of_twos_complement(bits: int, qmin: int, qmax: int) -> None:
    spec = QSpec(bits=bits)
    assert (spec.qmin, spec.qmax) == (qmin, qmax)
    assert spec.qmax - spec.qmin + 1 == 2**bits


@pytest.mark.parametrize("bits", [-8, 0, 1, 17, 32])
def test_bits_outside_2_to_16_are_refused(bits: int) -> None:
    with pytest.raises(ValueError, match=rf"\[2, 16\], got {bits}"):
        QSpec(bits=bits)


def test_defaults_are_int8_symmetric_per_tensor() -> None:
    assert QSpec() == QSpec(bits=8, symmetric=True, channel_axis=None)


def test_specs_are_values() -> None:
    assert hash(QSpec(channel_axis=1)) == hash(QSpec(channel_axis=1))
    assert QSpec(channel_axis=1) != QSpec(channel_axis=0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        QSpec().bits = 4  # type: ignore[misc]
