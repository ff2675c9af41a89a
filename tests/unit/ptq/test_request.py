"""Settings that are given as objects: names and widths are checked against the model before anything runs."""

from __future__ import annotations

import pytest

from amct_onnx.errors import ArgumentError
from amct_onnx.numerics.settings import ActivationSettings, LayerSettings, Settings, WeightSettings
from amct_onnx.ptq.request import make_request
from amct_onnx.values.layers import GraphFacts, LayerTraits

FACTS = GraphFacts(
    nodes={"Conv_0": "Conv", "lstm": "LSTM", "relu": "Relu"},
    layers={
        "Conv_0": LayerTraits(name="Conv_0", op_type="Conv", weight_rank=4, channel_wise=True),
        "lstm": LayerTraits(name="lstm", op_type="LSTM", weight_rank=3, channel_wise=True),
    },
    fusable=frozenset(),
)


def request(**layers: LayerSettings) -> Settings | None:
    return make_request(FACTS, Settings(layers=layers), None, (), False).settings


def weight(num_bits: int, *, on: bool = True) -> LayerSettings:
    return LayerSettings(quant_enable=on, weight=WeightSettings(num_bits=num_bits))


def test_settings_that_fit_are_taken_as_they_are() -> None:
    layers = {"Conv_0": weight(6), "lstm": weight(4, on=False), "relu": LayerSettings()}
    assert request(**layers) == Settings(layers=layers)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ({"conv_0": LayerSettings()}, r"settings.layers: the model has no node 'conv_0', did you mean 'Conv_0'\?"),
        ({"zzz": LayerSettings()}, "has no node 'zzz', its layers are Conv_0, lstm"),
        ({"lstm": weight(4)}, r"settings.layers\['lstm'\].weight.num_bits: LSTM takes weights of 8 bits, got 4"),
        ({"lstm": weight(6)}, r"settings.layers\['lstm'\].weight.num_bits: .* got 6"),
        ({"Conv_0": weight(5)}, r"weight.num_bits: Conv takes weights of 4, 6, 7, 8 bits, got 5"),
        (
            {"Conv_0": LayerSettings(activation=ActivationSettings(num_bits=5))},
            r"settings.layers\['Conv_0'\].activation.num_bits must be one of 4, 8, 16, got 5",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused(layers: dict[str, LayerSettings], message: str) -> None:
    with pytest.raises(ArgumentError, match=f"^.*{message}"):
        request(**layers)
