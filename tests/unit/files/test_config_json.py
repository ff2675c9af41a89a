"""config.json: the layout that AMCT writes, every rule of reading, and all mistakes at once."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from amct_onnx.errors import ConfigError, ConfigTypeError, FileMissingError
from amct_onnx.files.config_json import default_settings, format_config, read_config
from amct_onnx.numerics.settings import (
    ActivationSettings,
    AdaRound,
    Arq,
    Hfmg,
    Ifmr,
    LayerSettings,
    Nuq,
    Settings,
    TensorSettings,
    WeightSettings,
)
from amct_onnx.values.layers import GraphFacts, LayerTraits

TestData = Callable[..., Path]
Read = Callable[[Any], Settings]
ACT, WTS = "activation_quant_params", "weight_quant_params"


@pytest.fixture
def read(tmp_path: Path, facts: GraphFacts) -> Read:
    def read_document(document: Any) -> Settings:
        path = tmp_path / "config.json"
        path.write_text(document if isinstance(document, str) else json.dumps(document))
        return read_config(path, facts)

    return read_document


def mistakes(read: Read, document: Any, kind: type[ConfigError] = ConfigError) -> list[str]:
    """The lines of the error, without the file."""
    with pytest.raises(ConfigError) as caught:
        read(document)
    assert type(caught.value) is kind
    headline, *lines = str(caught.value).splitlines()
    assert "config.json: " in headline
    return [line.strip() for line in lines] or [headline.partition("config.json: ")[2]]


ON = {"quant_enable": True}


def act(**values: Any) -> dict[str, Any]:
    return {"quant_enable": True, ACT: values}


def wts(**values: Any) -> dict[str, Any]:
    return {"quant_enable": True, WTS: values}


# golden files and layout


def test_golden_configs_are_rewritten_byte_for_byte(
    test_data: TestData, golden: tuple[str, GraphFacts], tmp_path: Path
) -> None:
    case, facts = golden
    path = test_data("golden", case, "config.json")
    (tmp_path / "config.json").write_bytes(format_config(read_config(path, facts), facts).encode())
    assert (tmp_path / "config.json").read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("golden", "batch_num", "offset"),
    [
        ("ifmr_asymmetric", 2, True),
        ("ifmr_symmetric", 2, False),
        ("inverted", 4, True),
        ("mlp", 3, True),
        ("vol", 2, False),
    ],
    indirect=["golden"],
)
def test_defaults_are_those_of_the_golden_configs(
    test_data: TestData, golden: tuple[str, GraphFacts], batch_num: int, offset: bool
) -> None:
    case, facts = golden
    settings = default_settings(facts, batch_num=batch_num, activation_offset=offset)
    assert format_config(settings, facts) == test_data("golden", case, "config.json").read_text()


def test_optional_globals_appear_only_when_set_and_in_order(facts: GraphFacts) -> None:
    tensor = TensorSettings(layer_name="Add_6", input_index=1)
    full = replace(
        default_settings(facts),
        joint_quant=True,
        fakequant_precision_mode="FORCE_FP16_QUANT",
        tensor_quantize=(tensor,),
    )
    keys = list(json.loads(format_config(full, facts)))
    assert keys[:8] == [
        "version",
        "batch_num",
        "activation_offset",
        "joint_quant",
        "do_fusion",
        "fakequant_precision_mode",
        "skip_fusion_layers",
        "tensor_quantize",
    ]
    assert keys[8:] == sorted(facts.supported)


def test_layers_without_settings_are_written_as_off(facts: GraphFacts) -> None:
    document = json.loads(format_config(Settings(), facts))
    assert {document[name]["quant_enable"] for name in facts.supported} == {False}
    assert document["Conv_0"][WTS]["channel_wise"] is True


# what is read


def test_the_documented_example_is_read(read: Read) -> None:
    settings = read(
        {
            "version": 1,
            "batch_num": 2,
            "activation_offset": True,
            "joint_quant": False,
            "do_fusion": True,
            "skip_fusion_layers": ["Conv_0"],
            "tensor_quantize": [],
            "Conv_0": {
                "quant_enable": True,
                ACT: {
                    "num_bits": 8,
                    "max_percentile": 0.999,
                    "min_percentile": 1,
                    "search_range": [0.7, 1.3],
                    "search_step": 0.01,
                    "act_algo": "ifmr",
                    "asymmetric": False,
                },
                WTS: {"num_bits": 8, "wts_algo": "arq_quantize", "channel_wise": True},
            },
        }
    )
    assert (settings.batch_num, settings.skip_fusion_layers) == (2, ("Conv_0",))
    solver = Ifmr(max_percentile=0.999, min_percentile=1.0)
    assert settings.layers["Conv_0"] == LayerSettings(
        activation=ActivationSettings(asymmetric=False, solver=solver), weight=WeightSettings(channel_wise=True)
    )


def test_layers_that_are_not_named_are_off_with_defaults(read: Read, facts: GraphFacts) -> None:
    settings = read({"activation_offset": False, "Conv_0": {"quant_enable": True}})
    assert [name for name, layer in settings.layers.items() if layer.quant_enable] == ["Conv_0"]
    assert list(settings.layers) == list(facts.supported)
    off = settings.layers["Conv_1d"]
    assert (off.activation.asymmetric, off.weight.channel_wise) == (False, True)
    assert settings.layers["Gemm_1"].weight.channel_wise is False


def test_an_empty_object_is_a_config_that_enables_nothing(read: Read) -> None:
    assert not any(layer.quant_enable for layer in read({}).layers.values())


def test_an_entry_without_quant_enable_is_off_with_a_warning(read: Read, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="amct_onnx"):
        settings = read({"Conv_0": {ACT: {"num_bits": 8}}})
    assert settings.layers["Conv_0"].quant_enable is False
    assert "layer Conv_0 has no quant_enable" in caplog.text


@pytest.mark.parametrize(
    ("values", "solver"),
    [
        ({}, Ifmr()),
        ({"num_of_bins": 2048}, Hfmg(num_of_bins=2048)),
        ({"act_algo": "hfmg"}, Hfmg()),
        ({"act_algo": "ifmr", "search_range": [1, 2]}, Ifmr(search_start=1.0, search_end=2.0)),
        # 1.3 - 0.7 < 0.6 in binary
        ({"search_step": 0.6}, Ifmr(search_step=0.6)),
    ],
)
def test_activation_algorithms(read: Read, values: dict[str, Any], solver: Ifmr | Hfmg) -> None:
    assert read({"Conv_0": act(**values)}).layers["Conv_0"].activation.solver == solver


@pytest.mark.parametrize(
    ("values", "solver"),
    [
        ({"wts_algo": "arq_quantize"}, Arq()),
        ({"wts_algo": "ada_quantize"}, AdaRound()),
        (
            {
                "wts_algo": "ada_quantize",
                "num_iteration": 0,
                "reg_param": 0.5,
                "beta_range": [10, 1],
                "warm_start": 0.3,
            },
            AdaRound(num_iteration=0, reg_param=0.5, beta_range=(10.0, 1.0), warm_start=0.3),
        ),
        ({"wts_algo": "nuq_quantize", "num_steps": 16, "num_of_iteration": 0}, Nuq(num_steps=16, num_of_iteration=0)),
    ],
)
def test_weight_algorithms(read: Read, values: dict[str, Any], solver: Arq | AdaRound | Nuq) -> None:
    assert read({"Conv_0": wts(**values)}).layers["Conv_0"].weight.solver == solver


@pytest.mark.parametrize("name", ["Relu_4", "MaxPool_5", "Gemm_bad"])
@pytest.mark.parametrize("entry", [{}, {"quant_enable": False}, {"quant_enable": False, ACT: {"num_bits": 8}, WTS: {}}])
def test_an_entry_may_leave_in_float_what_cannot_be_quantized(read: Read, name: str, entry: dict[str, Any]) -> None:
    assert read({name: entry, "Conv_0": ON}) == read({"Conv_0": ON})


def test_four_bits_are_not_for_recurrent_layers_that_are_on(read: Read) -> None:
    off = read({"LSTM_7": {"quant_enable": False, WTS: {"num_bits": 4}}}).layers["LSTM_7"]
    assert (off.quant_enable, off.weight.num_bits) == (False, 8)
    assert read({"Gemm_1": wts(num_bits=4)}).layers["Gemm_1"].weight.num_bits == 4


LIMITS = {
    "search_range": ([0.7, 1e23], [-1.0, 1.3], [0, 1.3], [1e-30, 1.3], [0.7, 100.001]),
    "search_step": (0, -0.01, 1e-30, 1e-6, 0.00001),
    "max_percentile": (0.5, -1, 1.0001, 1e23),
    "min_percentile": (0.5, -1, 1.0001, 1e23),
    "num_of_bins": (0, -1024, 1000, 10**23),
}
WTS_LIMITS = {
    "num_iteration": (-1, 10**6 + 1, 10**23),
    "reg_param": (0, 1, -0.1, 1e23),
    "warm_start": (0, 1, -0.1, 1e23),
    "beta_range": ([1e23, 2.0], [20.0, 0.0], [20.0, -1.0], [2.0, 20.0], [1000.1, 2.0]),
}
NUQ_LIMITS = {"num_steps": (0, 10**23), "num_of_iteration": (-1, 10**23)}
ABSURD = [
    *(({"batch_num": value}, "batch_num") for value in (0, -1, 2**31, 10**23)),
    *(({"Conv_0": act(**{key: value})}, key) for key, values in LIMITS.items() for value in values),
    *(
        ({"Conv_0": wts(wts_algo="ada_quantize", **{key: value})}, key)
        for key, values in WTS_LIMITS.items()
        for value in values
    ),
    *(
        ({"Conv_0": wts(wts_algo="nuq_quantize", **{key: value})}, key)
        for key, values in NUQ_LIMITS.items()
        for value in values
    ),
    *(({"Conv_0": act(search_range=[0.1, 90.0], search_step=0.001)}, "search_step"),),
    *(({"tensor_quantize": [{"layer_name": "Add_6", "input_index": 0, ACT: {"search_step": 1e-9}}]}, "search_step"),),
]


@pytest.mark.parametrize(("document", "field"), ABSURD)
def test_an_absurd_number_is_refused_with_its_place_and_the_limits(read: Read, document: Any, field: str) -> None:
    (found,) = mistakes(read, document)
    place, _, what = found.partition(": ")
    assert place.endswith(field)
    assert field in what
    assert re.search(r"must be (?:.*\d|less than or equal to \(search_range|larger, at most 10000)", what)


@pytest.mark.parametrize(("range_", "step"), [([0.7, 1.3], 0.0001), ([0.01, 100.0], 0.01), ([1.0, 1.00001], 0.00001)])
def test_a_search_that_ends_is_accepted(read: Read, range_: list[float], step: float) -> None:
    solver = read({"Conv_0": act(search_range=range_, search_step=step)}).layers["Conv_0"].activation.solver
    assert solver == Ifmr(search_start=range_[0], search_end=range_[1], search_step=step)


def test_six_and_seven_bits_are_for_2d_convolution(read: Read) -> None:
    settings = read({name: wts(num_bits=6) for name in ("Conv_0", "Conv_1d", "Gemm_1")})
    bits = {name: settings.layers[name].weight.num_bits for name in ("Conv_0", "Conv_1d", "Gemm_1")}
    assert bits == {"Conv_0": 6, "Conv_1d": 8, "Gemm_1": 8}


def test_symmetric_only_layers_are_symmetric_by_default(read: Read) -> None:
    settings = read({"Conv_3d": {"quant_enable": True}, "MatMul_vv": {"quant_enable": True}})
    assert not settings.layers["Conv_3d"].activation.asymmetric
    assert not settings.layers["MatMul_vv"].activation.asymmetric
    assert not read({"Conv_3d": {ACT: {"asymmetric": True}}}).layers["Conv_3d"].activation.asymmetric


def test_precision_mode_default_is_no_mode(read: Read) -> None:
    assert read({"fakequant_precision_mode": "DEFAULT"}).fakequant_precision_mode is None
    assert read({"fakequant_precision_mode": "FORCE_FP16_QUANT"}).fakequant_precision_mode == "FORCE_FP16_QUANT"


def test_tensor_entries_inherit_the_global_switch(read: Read) -> None:
    settings = read(
        {
            "activation_offset": False,
            "tensor_quantize": [
                {"layer_name": "MaxPool_5", "input_index": 0},
                {"layer_name": "Add_6", "input_index": 1, ACT: {"num_of_bins": 1024, "asymmetric": True}},
            ],
        }
    )
    assert settings.tensor_quantize == (
        TensorSettings(layer_name="MaxPool_5", input_index=0, activation=ActivationSettings(asymmetric=False)),
        TensorSettings(layer_name="Add_6", input_index=1, activation=ActivationSettings(solver=Hfmg(num_of_bins=1024))),
    )


def test_dmq_strength_bounds_are_included(read: Read) -> None:
    for strength in (0.2, 0.8):
        settings = read({"Conv_0": {"quant_enable": True, "dmq_balancer_param": strength}})
        assert settings.layers["Conv_0"].dmq_strength == strength


# mistakes, one by one


@pytest.mark.parametrize(
    ("document", "line"),
    [
        ({"version": 2}, "version: The version must be 1. (got int 2)"),
        ({"batch_num": 0}, "batch_num: The batch_num must be greater than zero and at most 2147483647 (got int 0)"),
        ({"fakequant_precision_mode": "FAST"}, "fakequant_precision_mode: The fakequant_precision_mode must be in"),
        ({"Conv_O": {}}, "Conv_O: Conv_O is an invalid layer name or parameter. Did you mean 'Conv_0'?"),
        ({"zzz": {}}, "zzz: zzz is an invalid layer name or parameter."),
        (
            {"Relu_4": ON},
            "Relu_4: layer Relu_4 does not support quant. (type Relu) Set quant_enable to false or delete",
        ),
        ({"Gemm_bad": ON}, "Gemm_bad: layer Gemm_bad does not support quant. (alpha is 2.0)"),
        ({"bach_num": 2}, "bach_num is an invalid layer name or parameter. Did you mean 'batch_num'?"),
        ({"GEMM_1": {}}, "GEMM_1 is an invalid layer name or parameter. Did you mean 'Gemm_1'?"),
        ({"Conv_0": {"bits": 8}}, "Conv_0.bits: Unknown parameter bits in layer Conv_0."),
        (
            {"Conv_0": {"quant_enabled": True}},
            "Unknown parameter quant_enabled in layer Conv_0. Did you mean 'quant_en",
        ),
        ({"Conv_0": act(num_bins=1024)}, "Unknown parameter num_bins in layer Conv_0. Did you mean 'num_bits'?"),
        (
            {"Conv_0": wts(channelwise=True)},
            "Unknown parameter channelwise in layer Conv_0. Did you mean 'channel_wise",
        ),
        ({"Conv_0": act(bits=8)}, f"Conv_0.{ACT}.bits: Unknown parameter bits in layer Conv_0"),
        ({"Conv_0": wts(bits=8)}, f"Conv_0.{WTS}.bits: Unknown parameter bits in layer Conv_0"),
        ({"Conv_0": act(num_bits=9)}, f"Conv_0.{ACT}.num_bits: The num_bits must be in [4, 8, 16] (got int 9)"),
        ({"Conv_3d": act(num_bits=16)}, f"Conv_3d.{ACT}.num_bits: current layer Conv_3d does not support int16 quant."),
        ({"Conv_0": act(max_percentile=0.5)}, f"Conv_0.{ACT}.max_percentile: The max_percentile must be greater than"),
        ({"Conv_0": act(min_percentile=1.01)}, f"Conv_0.{ACT}.min_percentile: "),
        ({"Conv_0": act(search_range=[0, 1.3])}, f"Conv_0.{ACT}.search_range: The search_range must be [start, end]"),
        ({"Conv_0": act(search_range=[1.3, 1.3])}, f"Conv_0.{ACT}.search_range: "),
        ({"Conv_0": act(search_range=[0.7])}, f"Conv_0.{ACT}.search_range: The search_range must have two"),
        ({"Conv_0": act(search_step=0)}, f"Conv_0.{ACT}.search_step: The search_step must be greater than zero"),
        (
            {"Conv_0": act(search_step=0.61)},
            f"Conv_0.{ACT}.search_step: The search_step must be less than or equal to (search_range[1]",
        ),
        ({"Conv_0": act(act_algo="minmax")}, f"Conv_0.{ACT}.act_algo: The act_algo must be in ['ifmr', 'hfmg']"),
        ({"Conv_0": act(num_of_bins=100)}, f"Conv_0.{ACT}.num_of_bins: The num_of_bins must be in [1024"),
        (
            {"Conv_0": act(num_of_bins=1024, search_step=0.1)},
            f"Conv_0.{ACT}: ['search_step'] and ['num_of_bins'] can not appear at same time",
        ),
        ({"Conv_0": act(act_algo="ifmr", num_of_bins=1024)}, "can not appear at same time"),
        ({"Conv_0": act(act_algo="hfmg", max_percentile=0.9)}, "can not appear at same time"),
        (
            {"Conv_3d": act(asymmetric=True)},
            f"Conv_3d.{ACT}.asymmetric: current layer Conv_3d only support act symmetric quant.",
        ),
        ({"Conv_0": wts(num_bits=5)}, f"Conv_0.{WTS}.num_bits: The num_bits must be in [4, 6, 7, 8]"),
        (
            {"Gemm_1": wts(channel_wise=True)},
            f"Gemm_1.{WTS}.channel_wise: The channel_wise must be False for layer type Gemm",
        ),
        ({"Conv_0": wts(wts_algo="gptq")}, f"Conv_0.{WTS}.wts_algo: The wts_algo must be in"),
        ({"Conv_0": wts(reg_param=0.5)}, "reg_param is not valid param of quantize arq_quantize"),
        ({"Conv_0": wts(wts_algo="ada_quantize", reg_param=1.0)}, "reg_param must be less than 1 and larger than 0"),
        ({"Conv_0": wts(wts_algo="ada_quantize", beta_range=[2, 20])}, "beta_range must be [start, end] with start >"),
        ({"Conv_0": wts(wts_algo="ada_quantize", num_iteration=-1)}, "num_iteration must be larger or equal to 0"),
        ({"Conv_0": wts(wts_algo="ada_quantize", warm_start=0)}, "warm_start must be less than 1"),
        ({"Pool_3": wts(wts_algo="ada_quantize")}, "layer Pool_3 of type AveragePool does not support this algorithm"),
        ({"Conv_3d": wts(wts_algo="nuq_quantize")}, "layer Conv_3d of type Conv does not support this algorithm"),
        ({"Conv_dilated": wts(wts_algo="nuq_quantize")}, "layer Conv_dilated of type Conv with dilations does not"),
        ({"Conv_0": wts(wts_algo="nuq_quantize", num_bits=6)}, "nuq_quantize makes levels of 8 bits, got 6 for layer"),
        ({"Conv_0": wts(wts_algo="nuq_quantize", num_steps=8)}, "num_steps must be in [16, 32]"),
        ({"Conv_0": wts(wts_algo="nuq_quantize", num_of_iteration=6)}, "num_of_iteration must be in [0, 1"),
        (
            {"Conv_0": {"dmq_balancer_param": 0.1}},
            "Conv_0.dmq_balancer_param: The dmq_balancer_param must be in range [0.2, 0.8]",
        ),
        ({"Conv_1d": {"dmq_balancer_param": 0.5}}, "Layer Conv_1d does not support dmq_balancer"),
        ({"skip_fusion_layers": ["no"]}, 'skip_fusion_layers[0]: Layer "no" in skip_fusion_layers does not exist'),
        ({"skip_fusion_layers": ["Relu_4"]}, 'skip_fusion_layers[0]: Skip fusion layer "Relu_4"'),
        (
            {"skip_fusion_layers": ["Conv_0", "Conv_0"]},
            "skip_fusion_layers[1]: Please delete repeated items in skip_fusion_layers, repeated items are ['Conv_0']",
        ),
        ({"tensor_quantize": [{"input_index": 0}]}, 'tensor_quantize[0].layer_name: To quantize tensor, must set "lay'),
        ({"tensor_quantize": [{"layer_name": "Add_6"}]}, "tensor_quantize[0].input_index: To quantize tensor, must se"),
        ({"tensor_quantize": [{"layer_name": "no", "input_index": 0}]}, "Layer no does not exist in the graph."),
        ({"tensor_quantize": [{"layer_name": "Add6", "input_index": 0}]}, "in the graph. Did you mean 'Add_6'?"),
        (
            {"tensor_quantize": [{"layer_name": "Add_6", "input_index": 0, "index": 1}]},
            "Unknown parameter index in tensor_quantize[0]. Did you mean 'input_index'?",
        ),
        ({"skip_fusion_layers": ["Conv_1D"]}, "does not exist in the graph. Did you mean 'Conv_1d'?"),
        (
            {"LSTM_7": wts(num_bits=4)},
            f"LSTM_7.{WTS}.num_bits: layer LSTM_7 of type LSTM does not support 4 bits, use 8",
        ),
        ({"GRU_8": wts(num_bits=4)}, f"GRU_8.{WTS}.num_bits: layer GRU_8 of type GRU does not support 4 bits, use 8"),
        ({"tensor_quantize": [{"layer_name": "Conv_0", "input_index": 0}]}, "is for MaxPool and Add only"),
        ({"tensor_quantize": [{"layer_name": "MaxPool_5", "input_index": 1}]}, "must be in [0, 0] for layer type Max"),
        ({"tensor_quantize": [{"layer_name": "Add_6", "input_index": 1}] * 2}, "tensor_quantize[1]: Please delete re"),
        ({"tensor_quantize": [{"layer_name": "Add_6", "input_index": 1, "x": 1}]}, "tensor_quantize[0].x: Unknown"),
        (
            {"tensor_quantize": [{"layer_name": "Add_6", "input_index": 0, ACT: {"num_bits": 3}}]},
            f"tensor_quantize[0].{ACT}.num_bits: ",
        ),
        ('{"batch_num": 1, "batch_num": 2}', "batch_num: Please delete repeated items in the config file"),
        ('{"Conv_0": {"quant_enable": true, "quant_enable": true}}', "Conv_0.quant_enable: Please delete repeated"),
        ('{"Conv_0": {"activation_quant_params": {"max_percentile": NaN}}}', "max_percentile must be a finite number"),
        (
            '{"Conv_0": {"activation_quant_params": {"search_range": [1, 1e999]}}}',
            "search_range[1] must be a finite number, got inf; search_range must be [start, end] with",
        ),
        (
            f'{{"Conv_0": {{"activation_quant_params": {{"search_step": 1{"0" * 400}}}}}}}',
            "search_step must be a finite number, got inf; search_step must be greater than zero and at least",
        ),
    ],
)
def test_a_mistake_of_value(read: Read, document: Any, line: str) -> None:
    (found,) = mistakes(read, document)
    assert line in found


@pytest.mark.parametrize(
    ("document", "line"),
    [
        ({"batch_num": True}, "batch_num: Type of batch_num should be int, but is bool true"),
        ({"batch_num": 1.0}, "batch_num: Type of batch_num should be int, but is float 1.0"),
        ({"version": "1"}, 'version: Type of version should be int, but is str "1"'),
        ({"activation_offset": 1}, "activation_offset: Type of activation_offset should be bool, but is int 1"),
        ({"joint_quant": None}, "joint_quant: Type of joint_quant should be bool, but is null null"),
        ({"do_fusion": "yes"}, "do_fusion: "),
        ({"skip_fusion_layers": "Conv_0"}, "skip_fusion_layers: Type of skip_fusion_layers should be list"),
        ({"skip_fusion_layers": [1]}, "skip_fusion_layers[0]: "),
        ({"tensor_quantize": {}}, "tensor_quantize: "),
        ({"tensor_quantize": [1]}, "tensor_quantize[0]: "),
        ({"tensor_quantize": [{"layer_name": "Add_6", "input_index": "0"}]}, "tensor_quantize[0].input_index: "),
        ({"Conv_0": True}, "Conv_0: Type of Conv_0 should be object, but is bool true"),
        ({"Conv_0": {"quant_enable": 1}}, "Conv_0.quant_enable: "),
        ({"Conv_0": {"dmq_balancer_param": 1}}, "should be float (with a decimal point), but is int 1"),
        ({"Conv_0": {ACT: []}}, f"Conv_0.{ACT}: "),
        ({"Conv_0": act(num_bits=8.0)}, f"Conv_0.{ACT}.num_bits: "),
        ({"Conv_0": act(max_percentile=True)}, f"Conv_0.{ACT}.max_percentile: "),
        ({"Conv_0": act(search_range=[0.7, "1"])}, f"Conv_0.{ACT}.search_range[1]: "),
        ({"Conv_0": act(search_range=1.0)}, f"Conv_0.{ACT}.search_range: Type of search_range should be list of two"),
        ({"Conv_0": act(asymmetric=None)}, f"Conv_0.{ACT}.asymmetric: "),
        ({"Conv_0": wts(channel_wise="true")}, f"Conv_0.{WTS}.channel_wise: "),
    ],
)
def test_a_mistake_of_type_is_a_type_error(read: Read, document: Any, line: str) -> None:
    (found,) = mistakes(read, document, ConfigTypeError)
    assert line in found


def test_all_mistakes_are_reported_at_once(read: Read) -> None:
    document = {
        "batch_num": "2",
        "version": 3,
        "nonsense": 1,
        "Conv_0": {"quant_enable": "yes", ACT: {"num_bits": 5, "search_step": 2}, WTS: {"channel_wise": 1}},
        "Gemm_1": wts(channel_wise=True),
        "tensor_quantize": [{"layer_name": "Relu_4", "input_index": 0}],
    }
    places = [line.partition(":")[0] for line in mistakes(read, document)]
    assert sorted(places) == sorted(
        [
            "batch_num",
            "version",
            "nonsense",
            "Conv_0.quant_enable",
            f"Conv_0.{ACT}.num_bits",
            f"Conv_0.{ACT}.search_step",
            f"Conv_0.{WTS}.channel_wise",
            f"Gemm_1.{WTS}.channel_wise",
            "tensor_quantize[0].layer_name",
        ]
    )


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("", ":1:1: no JSON"),
        ("{", ":1:2: no JSON"),
        ('{\n    "version":1\n    "batch_num":1\n}', ":3:5: no JSON"),
        ("common_config : {}", ":1:1: no JSON"),
        ("[1]", ": must be one JSON object, but is list"),
        ("1" * 5000, ": no JSON that can be read"),
        ("[" * 100000, ": no JSON that can be read"),
    ],
)
def test_what_is_no_json_object_names_the_place(read: Read, text: str, place: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(text)
    assert f"config.json{place}" in str(caught.value)


def test_bad_files_raise_our_errors(tmp_path: Path, facts: GraphFacts) -> None:
    with pytest.raises(FileMissingError):
        read_config(tmp_path / "none.json", facts)
    with pytest.raises(ConfigError, match="is a folder"):
        read_config(tmp_path, facts)
    (tmp_path / "binary").write_bytes(b"\x89PNG\xff")
    with pytest.raises(ConfigError, match="no UTF-8"):
        read_config(tmp_path / "binary", facts)


def test_every_truncation_of_a_config_is_refused(read: Read, facts: GraphFacts) -> None:
    text = format_config(default_settings(facts), facts)
    for length in range(0, len(text), 7):
        with pytest.raises(ConfigError):
            read(text[:length])


KEYS = ["Conv_0", "Gemm_1", "version", "batch_num", "tensor_quantize", "skip_fusion_layers", ACT, WTS]
KEYS += ["num_bits", "search_range", "search_step", "beta_range", "act_algo", "wts_algo", "layer_name", "x"]
KEYS += ["input_index", "num_of_bins", "channel_wise", "quant_enable", "dmq_balancer_param"]
words = st.sampled_from(["ifmr", "hfmg", "ada_quantize", "Add_6"])
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(json_values)
def test_any_document_is_read_or_refused(read: Read, document: Any) -> None:
    try:
        read(document)
    except ConfigError:
        return


# default_settings


def test_skip_layers_are_off_and_none_is_no_list(facts: GraphFacts) -> None:
    layers = default_settings(facts, skip_layers=["Conv_0", "Gemm_bad"]).layers
    assert [name for name, layer in layers.items() if not layer.quant_enable] == ["Conv_0"]


def test_mistakes_in_arguments_are_reported_at_once(facts: GraphFacts) -> None:
    with pytest.raises(ConfigError) as caught:
        default_settings(facts, skip_layers=["no", "Relu_4", "Conv_0", "Conv_0"], batch_num=0)
    message = str(caught.value)
    assert message.startswith("4 mistakes")
    assert "Layer no does not exist in the graph." in message
    assert "Layer Relu_4 does not support quantization. (its type is Relu)" in message
    assert "Please delete repeated items in skip_layers, repeated items are ['Conv_0']" in message
    assert "The batch_num must be greater than zero and at most" in message


def test_a_skip_layer_gets_a_suggestion(facts: GraphFacts) -> None:
    with pytest.raises(ConfigError, match=r"Layer conv_0 does not exist in the graph\. Did you mean 'Conv_0'\?"):
        default_settings(facts, skip_layers=["conv_0"])


def test_skipping_everything_is_an_error(facts: GraphFacts) -> None:
    with pytest.raises(ConfigError, match="Except skip_layers, no layer needs to quantize"):
        default_settings(facts, skip_layers=list(facts.supported))


def test_a_model_without_a_supported_layer_is_an_error_with_reasons() -> None:
    bad = LayerTraits(name="Gemm_0", op_type="Gemm", reason="transA is set")
    facts = GraphFacts(nodes={"Gemm_0": "Gemm"}, layers={"Gemm_0": bad}, fusable=frozenset())
    with pytest.raises(ConfigError, match=r"No layer support quantization in the graph. \(Gemm_0: transA is set\)"):
        default_settings(facts)
    with pytest.raises(ConfigError, match="No layer support quantization in the graph"):
        default_settings(GraphFacts(nodes={}, layers={}, fusable=frozenset()))


def test_a_layer_named_like_a_global_key_is_an_error(facts: GraphFacts, tmp_path: Path) -> None:
    named = replace(facts.layers["Gemm_1"], name="version")
    clash = replace(facts, nodes={**facts.nodes, "version": "Gemm"}, layers={**facts.layers, "version": named})
    with pytest.raises(ConfigError, match="version is a global parameter, can not be a layer name"):
        default_settings(clash)
    (tmp_path / "c.json").write_text('{"version": 1}')
    with pytest.raises(ConfigError, match="version is a global parameter"):
        read_config(tmp_path / "c.json", clash)


# laws

percentiles = st.floats(0.5, 1, exclude_min=True)
solvers = st.one_of(
    st.builds(
        lambda high, low, start, width, share: Ifmr(
            max_percentile=high,
            min_percentile=low,
            search_start=start / 100,
            search_end=(start + width) / 100,
            search_step=max(1, int(width * share)) / 100,
        ),
        percentiles,
        percentiles,
        st.integers(1, 500),
        st.integers(1, 500),
        st.floats(0, 1),
    ),
    st.builds(Hfmg, num_of_bins=st.sampled_from([1024, 2048, 4096, 8192])),
)
activations = st.builds(ActivationSettings, num_bits=st.sampled_from([4, 8]), asymmetric=st.booleans(), solver=solvers)
fraction = st.floats(0, 1, exclude_min=True, exclude_max=True)
weights = st.builds(
    WeightSettings,
    num_bits=st.sampled_from([4, 6, 7, 8]),
    channel_wise=st.booleans(),
    solver=st.one_of(
        st.just(Arq()),
        st.builds(
            AdaRound,
            num_iteration=st.integers(0, 10**6),
            reg_param=fraction,
            warm_start=fraction,
            beta_range=st.sampled_from([(20.0, 2.0), (1.5, 0.25)]),
        ),
        st.builds(Nuq, num_steps=st.sampled_from([16, 32]), num_of_iteration=st.integers(0, 5)),
    ),
).filter(lambda weight: weight.num_bits == 8 or not isinstance(weight.solver, Nuq))
layers = st.builds(
    LayerSettings,
    quant_enable=st.booleans(),
    activation=activations,
    weight=weights,
    dmq_strength=st.none() | st.floats(0.2, 0.8),
)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    layer=layers,
    tensor=st.builds(
        TensorSettings, layer_name=st.just("Add_6"), input_index=st.integers(0, 1), activation=activations
    ),
    batch_num=st.integers(1, 10**9),
    switches=st.tuples(st.booleans(), st.booleans(), st.booleans()),
)
def test_reading_is_the_inverse_of_writing(
    tmp_path: Path,
    facts: GraphFacts,
    layer: LayerSettings,
    tensor: TensorSettings,
    batch_num: int,
    switches: tuple[bool, bool, bool],
) -> None:
    defaults = default_settings(facts, batch_num=batch_num, activation_offset=switches[0])
    written = replace(
        defaults,
        joint_quant=switches[1],
        do_fusion=switches[2],
        fakequant_precision_mode="FORCE_FP16_QUANT" if switches[1] else None,
        skip_fusion_layers=("Conv_0",) if switches[2] else (),
        tensor_quantize=(tensor,),
        layers=MappingProxyType({**defaults.layers, "Conv_0": layer}),
    )
    (tmp_path / "config.json").write_bytes(format_config(written, facts).encode())
    assert read_config(tmp_path / "config.json", facts) == written
