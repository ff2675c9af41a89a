"""The simplified configuration: golden cases, precedence, and every mistake with its path."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from examples import examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from amct_onnx.errors import ConfigError, FileMissingError
from amct_onnx.files.config_json import default_settings, format_config
from amct_onnx.files.config_message import read_batch_num
from amct_onnx.files.config_text import read_cfg
from amct_onnx.numerics.settings import (
    ActivationSettings,
    AdaRound,
    Arq,
    Hfmg,
    Ifmr,
    Nuq,
    Settings,
    TensorSettings,
    WeightSettings,
)
from amct_onnx.values.layers import GraphFacts

TestData = Callable[..., Path]
Read = Callable[[str], Settings]


@pytest.fixture
def read(tmp_path: Path, facts: GraphFacts) -> Read:
    def read_text(text: str) -> Settings:
        path = tmp_path / "quant.cfg"
        path.write_text(text)
        return read_cfg(path, facts)

    return read_text


def mistakes(read: Read, text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read(text)
    headline, *lines = str(caught.value).splitlines()
    if lines:
        assert f"quant.cfg: {len(lines)} mistakes" in headline
    return [re.sub(r"^.*quant\.cfg:(\d+:\d+: )?", "", line) for line in lines or [headline]]


@pytest.mark.parametrize("golden", ["hfmg", "overrides", "dmq"], indirect=True)
def test_golden_configurations_become_the_golden_configs(test_data: TestData, golden: tuple[str, GraphFacts]) -> None:
    case, facts = golden
    settings = read_cfg(test_data("golden", case, "quant.cfg"), facts)
    assert format_config(settings, facts) == test_data("golden", case, "config.json").read_text()


def test_an_empty_configuration_is_the_default(read: Read, facts: GraphFacts) -> None:
    assert read("# nothing\n") == default_settings(facts)


def test_globals(read: Read) -> None:
    settings = read(
        "batch_num : 3\nactivation_offset : false\njoint_quant : true\ndo_fusion : false\n"
        'skip_fusion_layers : "Conv_0"\nfakequant_precision_mode : FORCE_FP16_QUANT\n'
        'skip_layers : "Pool_3"\nskip_layer_types : "Gemm"\nskip_layer_types : "LSTM"'
    )
    assert (settings.batch_num, settings.activation_offset, settings.joint_quant) == (3, False, True)
    assert (settings.do_fusion, settings.skip_fusion_layers) == (False, ("Conv_0",))
    assert settings.fakequant_precision_mode == "FORCE_FP16_QUANT"
    assert [name for name, layer in settings.layers.items() if not layer.quant_enable] == ["Gemm_1", "Pool_3", "LSTM_7"]


def test_the_documented_example_is_read(read: Read) -> None:
    settings = read(
        """
        # global
        batch_num : 2
        activation_offset : true
        skip_layers : "Conv_1d"
        common_config : {
            arq_quantize : { channel_wise : true }
            ifmr_quantize : { search_range_start : 0.7 search_range_end : 1.3 search_step : 0.01
                              max_percentile : 0.99 min_percentile : 0.999999 asymmetric : true }
        }
        override_layer_types : {
            layer_type : "Gemm"
            calibration_config : {
                arq_quantize : { channel_wise : false }
                hfmg_quantize : { num_of_bins : 2048 asymmetric : false }
            }
        }
        override_layer_configs : {
            layer_name : "Conv_0"
            calibration_config : {
                ifmr_quantize : { search_range_start : 0.8 search_range_end : 1.2 search_step : 0.02 }
            }
        }
        tensor_quantize : { layer_name : "MaxPool_5" input_index : 0 ifmr_quantize : { search_step : 0.02 } }
        """
    )
    layers = settings.layers
    # The block of a layer replaces the common one whole: its percentiles are the defaults again.
    assert layers["Conv_0"].activation.solver == Ifmr(search_start=0.8, search_end=1.2, search_step=0.02)
    assert layers["Gemm_1"].activation == ActivationSettings(asymmetric=False, solver=Hfmg(num_of_bins=2048))
    assert layers["MatMul_2"].activation.solver == Ifmr(max_percentile=0.99)
    # Common settings take per-channel weights where there are channels.
    assert (layers["Conv_3d"].weight.channel_wise, layers["MatMul_2"].weight.channel_wise) == (True, False)
    assert settings.tensor_quantize == (
        TensorSettings(
            layer_name="MaxPool_5", input_index=0, activation=ActivationSettings(solver=Ifmr(search_step=0.02))
        ),
    )


def override(layer: str, block: str) -> str:
    return f'override_layer_configs {{ layer_name : "{layer}" calibration_config {{ {block} }} }}\n'


def override_type(kind: str, block: str) -> str:
    return f'override_layer_types {{ layer_type : "{kind}" calibration_config {{ {block} }} }}\n'


def test_layer_wins_over_type_over_common(read: Read) -> None:
    text = (
        "common_config { hfmg_quantize { num_of_bins : 1024 } }\n"
        + override_type("Conv", "hfmg_quantize { num_of_bins : 2048 }")
        + override("Conv_0", "hfmg_quantize { num_of_bins : 8192 }")
    )
    layers = read(text).layers
    bins = {name: layer.activation.solver for name, layer in layers.items()}
    assert bins["Conv_0"] == Hfmg(num_of_bins=8192)
    assert bins["Conv_1d"] == Hfmg(num_of_bins=2048)
    assert bins["Gemm_1"] == Hfmg(num_of_bins=1024)


@pytest.mark.parametrize(
    ("common", "own", "expected"),
    [
        ("ifmr_quantize { asymmetric : false }", "ifmr_quantize {}", False),
        ("ifmr_quantize { asymmetric : false }", "arq_quantize {}", False),
        ("ifmr_quantize { asymmetric : false }", "hfmg_quantize {}", True),
        ("ifmr_quantize { asymmetric : false }", "ifmr_quantize { asymmetric : true }", True),
        ("ifmr_quantize {}", "ifmr_quantize {}", True),
    ],
)
def test_asymmetric_is_inherited_within_one_algorithm_only(read: Read, common: str, own: str, expected: bool) -> None:
    tensor = 'tensor_quantize { layer_name : "Add_6" input_index : 0 ' + own.replace("arq_quantize {}", "") + " }"
    settings = read(f"activation_offset : true common_config {{ {common} }} {override('Conv_0', own)} {tensor}")
    assert settings.layers["Conv_0"].activation.asymmetric is expected
    assert settings.tensor_quantize[0].activation.asymmetric is expected


def test_activation_offset_is_the_last_resort(read: Read) -> None:
    settings = read("activation_offset : false common_config { ifmr_quantize { asymmetric : true } }")
    assert settings.layers["Conv_0"].activation.asymmetric
    assert not settings.layers["Conv_3d"].activation.asymmetric  # symmetric only
    assert not read("activation_offset : false").layers["Conv_0"].activation.asymmetric
    assert not read(override("Conv_3d", "ifmr_quantize { asymmetric : true }")).layers["Conv_3d"].activation.asymmetric


def test_what_contradicts_itself_is_refused_with_both_places(read: Read) -> None:
    text = "batch_num : 1\n  batch_num : 4\ncommon_config {\n  ifmr_quantize {}\n  hfmg_quantize {}\n}\n"
    with pytest.raises(ConfigError) as caught:
        read(text + "common_config { arq_quantize {} } common_config { nuq_quantize {} }")
    _, first, second, third = str(caught.value).splitlines()
    assert first.endswith("quant.cfg:2:3: batch_num: 4 contradicts 1 in line 1, column 1, delete one of them")
    assert "quant.cfg:5:3: common_config.hfmg_quantize: hfmg_quantize contradicts ifmr_quantize in line 4" in second
    assert "quant.cfg:7:51: common_config.nuq_quantize: nuq_quantize contradicts arq_quantize in line 7" in third


def test_a_value_given_twice_is_no_contradiction(read: Read) -> None:
    text = "batch_num : 3 batch_num : 0x3 do_fusion : true do_fusion : 1 common_config { hfmg_quantize {} }"
    settings = read(text + " common_config { hfmg_quantize { num_of_bins : 1024 } }")
    assert settings.batch_num == 3
    assert settings.layers["Conv_0"].activation.solver == Hfmg(num_of_bins=1024)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("\n batch_num : 0", "2:2: batch_num:"),
        ("skip_layers : [\n 'Pool_3',\n 'no'\n]", "3:2: skip_layers[1]:"),
        ("skip_layers : 'Pool_3' skip_layers : 'Pool_3'", "1:24: skip_layers[1]:"),
        (
            "common_config <\n  ifmr_quantize < search_range_start : 2 > >",
            "2:19: common_config.ifmr_quantize.search_range:",
        ),
        (
            "common_config { ifmr_quantize { max_percentile: nan } }",
            "1:33: common_config.ifmr_quantize.max_percentile:",
        ),
        ("override_layer_types {\n calibration_config {} }", "1:1: override_layer_types[0].layer_type:"),
        (
            "override_layer_types {\n layer_type : 'Foo'\n calibration_config {} }",
            "2:2: override_layer_types[0].layer_",
        ),
        (
            "override_layer_configs {\n layer_name : 'Conv_3d' calibration_config {\n"
            "  ifmr_quantize { dst_type : INT16 } } }",
            "3:19: override_layer_configs[0].calibration_config.ifmr_quantize.num_bits:",
        ),
        (
            "tensor_quantize { layer_name : 'Add_6' input_index : 1\n hfmg_quantize { dst_type : INT16 } }",
            "2:18: tensor_quantize[0].hfmg_quantize.num_bits:",
        ),
        (
            "\nskip_layer_types : ['Conv', 'Gemm', 'MatMul', 'AveragePool', 'LSTM', 'GRU']",
            "2:21: skip_layers: Except skip_layers or skip_types",
        ),
    ],
)
def test_a_mistake_has_its_line_and_column(read: Read, text: str, place: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(text)
    assert f"quant.cfg:{place}" in str(caught.value)


def test_mistakes_come_in_the_order_of_the_file(read: Read) -> None:
    with pytest.raises(ConfigError) as caught:
        read("skip_layers : 'no'\ncommon_config { hfmg_quantize { num_of_bins : 3 } }\nbatch_num : 0")
    assert re.findall(r"quant\.cfg:(\d+):", str(caught.value)) == ["1", "2", "3"]


def test_an_override_of_a_skipped_layer_is_warned_of_with_its_place(
    read: Read, caplog: pytest.LogCaptureFixture
) -> None:
    text = (
        "skip_layers : 'Conv_0'\n" + override("Conv_0", "hfmg_quantize {}") + override_type("Gemm", "hfmg_quantize {}")
    )
    with caplog.at_level(logging.WARNING, logger="amct_onnx"):
        settings = read(text)
    assert not settings.layers["Conv_0"].quant_enable
    assert settings.layers["Gemm_1"].activation.solver == Hfmg()
    (record,) = caplog.records
    assert "quant.cfg:2:1: layer Conv_0 is skipped" in record.getMessage()
    with caplog.at_level(logging.WARNING, logger="amct_onnx"):
        read("skip_layer_types : 'Gemm'\n" + override_type("Gemm", "hfmg_quantize {}"))
    assert "quant.cfg:2:1: all layers of type Gemm are skipped" in caplog.text


def test_batch_num_can_be_read_alone(tmp_path: Path) -> None:
    (tmp_path / "a.cfg").write_text("batch_num : 7 skip_layers : 'any'")
    (tmp_path / "b.cfg").write_text("# none")
    assert (read_batch_num(tmp_path / "a.cfg"), read_batch_num(tmp_path / "b.cfg")) == (7, None)


def test_floats_are_the_shortest_decimals_of_float32(read: Read) -> None:
    solver = read("common_config { ifmr_quantize { search_step : 0.0123456789 max_percentile : 0.999999 } }")
    assert solver.layers["Conv_0"].activation.solver == Ifmr(search_step=0.012345679)


def test_one_end_of_a_range_keeps_the_other_default(read: Read) -> None:
    solver = read("common_config { ifmr_quantize { search_range_end : 1.5 } }").layers["Conv_0"].activation.solver
    assert solver == Ifmr(search_end=1.5)


def test_bits(read: Read) -> None:
    settings = read("common_config { arq_quantize { quant_bits : 6 } ifmr_quantize { dst_type : INT16 } }")
    assert (settings.layers["Conv_0"].weight.num_bits, settings.layers["Gemm_1"].weight.num_bits) == (6, 8)
    assert settings.layers["Conv_0"].activation.num_bits == 16
    assert settings.layers["Conv_3d"].activation.num_bits == 8
    hfmg = read("common_config { hfmg_quantize { dst_type : INT8 } }")
    assert hfmg.layers["Conv_0"].activation.num_bits == 8


def test_weight_algorithms(read: Read) -> None:
    ada = "ada_quantize { num_iteration : 5 beta_range_start : 10 warm_start : 0.3 channel_wise : false }"
    layers = read(f"common_config {{ {ada} }}").layers
    assert layers["Conv_0"].weight.solver == AdaRound(num_iteration=5, beta_range=(10.0, 2.0), warm_start=0.3)
    assert layers["Conv_0"].weight.channel_wise is False
    assert layers["Pool_3"].weight.solver == Arq()
    nuq = read(override("Conv_0", "nuq_quantize { num_steps : 16 }")).layers["Conv_0"].weight.solver
    assert nuq == Nuq(num_steps=16)


def nuq_layers(settings: Settings) -> set[str]:
    return {name for name, layer in settings.layers.items() if isinstance(layer.weight.solver, Nuq)}


def test_nuq_without_a_mapping_file_is_for_all_convolutions_that_can_do_it(read: Read) -> None:
    settings = read("nuq_config { nuq_quantize { num_steps : 16 num_of_iteration : 3 } }")
    assert nuq_layers(settings) == {"Conv_0"}  # not 1-D, 3-D or dilated
    assert settings.layers["Conv_0"].weight.solver == Nuq(num_steps=16, num_of_iteration=3)
    assert read("nuq_config {}").layers["Conv_0"].weight.solver == Nuq(num_steps=32, num_of_iteration=1)
    assert nuq_layers(read("common_config { nuq_quantize {} }")) == {"Conv_0"}
    assert nuq_layers(read("nuq_config {} skip_layers : 'Conv_0'")) == set()


def test_nuq_for_a_layer_or_a_type_that_is_named(read: Read) -> None:
    assert nuq_layers(read(override("MatMul_2", "nuq_quantize {}"))) == {"MatMul_2"}
    assert nuq_layers(read(override_type("Gemm", "nuq_quantize {}"))) == {"Gemm_1"}


def mapping(folder: Path, *names: str) -> Path:
    """A mapping file in which one operator on the chip stands for the nodes `names`."""
    attribute = {"key": "_datadump_original_op_names", "value": {"list": {"s": list(names)}}}
    document = {"graph": [{"op": [{"name": "".join(names), "type": "Conv2D", "attr": [attribute]}]}]}
    (folder / "mapping.json").write_text(json.dumps(document))
    return folder / "mapping.json"


@pytest.fixture
def two(facts: GraphFacts, tmp_path: Path) -> Read:
    """`read` for a model with a second convolution."""
    again = replace(facts.layers["Conv_0"], name="Conv_7")
    more = replace(facts, layers={**facts.layers, "Conv_7": again}, nodes={**facts.nodes, "Conv_7": "Conv"})

    def read_text(text: str) -> Settings:
        (tmp_path / "quant.cfg").write_text(text)
        return read_cfg(tmp_path / "quant.cfg", more)

    return read_text


def test_a_mapping_file_limits_nuq_to_the_layers_that_it_names(two: Read, tmp_path: Path) -> None:
    mapping(tmp_path, "BatchNormalization_1", "Conv_7", "Conv_3d", "Gemm_1")
    assert nuq_layers(two("nuq_config { mapping_file : 'mapping.json' }")) == {"Conv_7"}
    assert nuq_layers(two("nuq_config {}")) == {"Conv_0", "Conv_7"}


def test_a_mapping_file_is_looked_for_in_the_working_folder_first(
    two: Read, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mapping(tmp_path, "Conv_7")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    assert nuq_layers(two("nuq_config { mapping_file : 'mapping.json' }")) == {"Conv_7"}  # beside the .cfg
    here = mapping(tmp_path / "work", "Conv_0")
    assert nuq_layers(two("nuq_config { mapping_file : 'mapping.json' }")) == {"Conv_0"}
    assert nuq_layers(two(f"nuq_config {{ mapping_file : '{here}' }}")) == {"Conv_0"}


def test_nuq_config_goes_before_a_common_block_and_keeps_the_rest_of_it(two: Read) -> None:
    text = "common_config { arq_quantize { channel_wise : false } hfmg_quantize { num_of_bins : 1024 } } nuq_config {}"
    layer = two(text).layers["Conv_0"]
    assert layer.weight == WeightSettings(channel_wise=False, solver=Nuq())
    assert layer.activation.solver == Hfmg(num_of_bins=1024)


def test_an_override_that_leaves_weights_open_does_not_stop_nuq(two: Read) -> None:
    layer = two(override("Conv_0", "hfmg_quantize {}") + "nuq_config {}").layers["Conv_0"]
    assert (layer.weight.solver, layer.activation.solver) == (Nuq(), Hfmg())


def test_an_override_is_an_exception_from_all_and_contradicts_a_mapping_file(two: Read, tmp_path: Path) -> None:
    mapping(tmp_path, "Conv_0")
    arq, mapped = override("Conv_0", "arq_quantize {}"), "nuq_config { mapping_file : 'mapping.json' }"
    assert nuq_layers(two(arq + "nuq_config {}")) == {"Conv_7"}
    other = override("Conv_0", "nuq_quantize { num_steps : 16 }")
    assert two(other + "nuq_config {}").layers["Conv_0"].weight.solver == Nuq(num_steps=16)
    for text in (arq, other):
        (line,) = mistakes(two, text + mapped)
        assert re.match(
            r"override_layer_configs\[0\]\.calibration_config\.\w+_quantize: contradicts nuq_config, whose mapping "
            "file names layer Conv_0; delete one of the two",
            line,
        )
    assert nuq_layers(two(override("Conv_0", "nuq_quantize {}") + mapped)) == {"Conv_0"}
    assert nuq_layers(two(override("Conv_7", "arq_quantize {}") + mapped)) == {"Conv_0"}


def test_a_mapping_file_of_another_model_is_a_mistake(two: Read, tmp_path: Path) -> None:
    mapping(tmp_path, "Conv_99", "Gemm_1")
    (line,) = mistakes(two, "nuq_config { mapping_file : 'mapping.json' }")
    assert line.startswith("nuq_config.mapping_file: mapping.json names no Conv layer of the model")


def test_dmq_is_dropped_where_a_common_block_does_not_fit(read: Read, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="amct_onnx"):
        layers = read("common_config { dmq_balancer {} }").layers
    assert layers["Conv_0"].dmq_strength == 0.5
    assert layers["Conv_1d"].dmq_strength is None
    assert "Layer Conv_1d does not support dmq_balancer" in caplog.text
    assert read("common_config { dmq_balancer { migration_strength : 0.2 } }").layers["Conv_0"].dmq_strength == 0.2


OLD = "conv_calibration_config { hfmg_quantize {} } fc_calibration_config { ifmr_quantize { search_step : 0.1 } }"


def test_deprecated_blocks_serve_channel_wise_types_and_the_others(
    read: Read, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="amct_onnx"):
        layers = read(OLD).layers
    assert layers["Conv_0"].activation.solver == Hfmg()
    assert layers["Pool_3"].activation.solver == layers["Gemm_1"].activation.solver == Ifmr(search_step=0.1)
    assert "conv_calibration_config is deprecated" in caplog.text


def test_deprecated_blocks_are_ignored_beside_new_ones(read: Read, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="amct_onnx"):
        layers = read(OLD + " common_config {}").layers
    assert layers["Conv_0"].activation.solver == Ifmr()
    assert "conv_calibration_config, fc_calibration_config ignored" in caplog.text


@pytest.mark.parametrize(
    ("text", "place", "what"),
    [
        ("batch_num : x", ":1:13: ", "parse integer: x"),
        ("batch_num : -1", ":1:13: ", "-1"),
        ("\n\nbatchnum : 1", ":3:1: ", "batchnum"),
        ("common_config {\n  ifmr_quantize {\n    step : 1\n", ":3:5: ", "step"),
        ("common_config { ifmr_quantize { dst_type : INT4 } }", ":1:", "INT4"),
        ("common_config {", ":", ""),
        ('skip_layers : "Conv', ":1:", ""),
        ('skip_layers : "\\xff"', "", ""),
        ("fakequant_precision_mode : FAST", ":1:", "FAST"),
        ('{"version": 1}', ":1:1: ", "it looks like a config.json"),
        ("\x00", ":1:1: ", ""),
    ],
)
def test_malformed_text_names_file_and_place(read: Read, text: str, place: str, what: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(text)
    assert f"quant.cfg{place}" in str(caught.value)
    assert what in str(caught.value)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("batch_num : 0", "batch_num: The batch_num must be greater than zero and at most"),
        ("nuq_config { mapping_file : 'a.json' }", "nuq_config.mapping_file: a.json: the mapping file does not exist"),
        (
            "nuq_config { nuq_quantize { num_steps : 8 } }",
            "nuq_config.nuq_quantize.num_steps: The num_steps must be in",
        ),
        (
            "nuq_config { nuq_quantize { num_of_iteration : 6 } }",
            "nuq_config.nuq_quantize.num_of_iteration: The num_of_iteration must be in",
        ),
        ("skip_layers : 'no'", "skip_layers[0]: Layer no does not exist in the graph."),
        ("skip_layers : 'conv_0'", "Layer conv_0 does not exist in the graph. Did you mean 'Conv_0'?"),
        ("skip_fusion_layers : 'Conv0'", "does not exist in the graph. Did you mean 'Conv_0'?"),
        ("skip_layer_types : 'Convolution'", "Layer type Convolution does not support quantize. Did you mean 'Conv'?"),
        (override("Gemm1", ""), "Layer Gemm1 does not exist in the graph. Did you mean 'Gemm_1'?"),
        (override_type("GEMM", ""), "Layer type GEMM does not support quantize. Did you mean 'Gemm'?"),
        ("tensor_quantize { layer_name : 'MaxPol_5' input_index : 0 }", "in the graph. Did you mean 'MaxPool_5'?"),
        (
            "skip_layers : 'Conv_0' skip_layers : 'Conv_0'",
            "skip_layers[1]: Please delete repeated items in skip_layers",
        ),
        ("skip_layer_types : 'Relu'", "skip_layer_types[0]: Layer type Relu does not support quantize."),
        ("skip_layer_types : 'Gemm' skip_layer_types : 'Gemm'", "skip_layer_types[1]: Please delete repeated items"),
        (
            "skip_layer_types : ['Conv', 'Gemm', 'MatMul', 'LSTM', 'GRU'] skip_layers : 'Pool_3'",
            "skip_layers: Except skip_layers or skip_types, no layer need to quantize.",
        ),
        ("skip_fusion_layers : 'Relu_4'", 'skip_fusion_layers[0]: Skip fusion layer "Relu_4"'),
        (override("no", ""), "override_layer_configs[0].layer_name: Layer no does not exist in the graph."),
        (override("Relu_4", ""), "override_layer_configs[0].layer_name: Layer Relu_4 does not support quantization."),
        (override("Gemm_bad", ""), "Layer Gemm_bad does not support quantization. (alpha is 2.0)"),
        (override("Conv_0", "") * 2, "override_layer_configs[1].layer_name: Please delete repeated items in override"),
        (override_type("Relu", ""), "override_layer_types[0].layer_type: Layer type Relu does not support quantize."),
        (
            override_type("Conv", "") * 2,
            "override_layer_types[1].layer_type: Please delete repeated items in override_",
        ),
        ("override_layer_types { calibration_config {} }", "override_layer_types[0].layer_type: is missing"),
        ("override_layer_configs { layer_name : 'Conv_0' }", "override_layer_configs[0].calibration_config: is missin"),
        ("common_config { ifmr_quantize { max_percentile : 0.4 } }", "common_config.ifmr_quantize.max_percentile: The"),
        ("common_config { ifmr_quantize { max_percentile : nan } }", "max_percentile must be a finite number"),
        ("common_config { ifmr_quantize { search_range_start : 2 } }", "common_config.ifmr_quantize.search_range: "),
        ("common_config { ifmr_quantize { search_step : 0.7 } }", "common_config.ifmr_quantize.search_step: "),
        ("common_config { hfmg_quantize { num_of_bins : 1 } }", "common_config.hfmg_quantize.num_of_bins: "),
        (
            "common_config { arq_quantize { quant_bits : 4 } }",
            "common_config.arq_quantize.quant_bits: The quant_bi",
        ),
        ("common_config { ada_quantize { reg_param : 1 } }", "common_config.ada_quantize.reg_param: "),
        ("common_config { nuq_quantize { num_steps : 1 } }", "common_config.nuq_quantize.num_steps: "),
        (
            "common_config { dmq_balancer { migration_strength : 0.9 } }",
            "common_config.dmq_balancer.migration_strength: The migration_strength must be in range [0.2, 0.8]",
        ),
        (
            override("Gemm_1", "arq_quantize { channel_wise : true }"),
            "override_layer_configs[0].calibration_config.arq_quantize.channel_wise: The channel_wise must be False",
        ),
        (
            override_type("Gemm", "arq_quantize { quant_bits : 7 }"),
            "override_layer_types[0].calibration_config.arq_quantize.quant_bits: layer Gemm_1 of type Gemm does not",
        ),
        (
            override("Conv_3d", "ifmr_quantize { dst_type : INT16 }"),
            "override_layer_configs[0].calibration_config.ifmr_quantize.num_bits: current layer Conv_3d does not",
        ),
        (
            override("Conv_1d", "dmq_balancer {}"),
            "override_layer_configs[0].calibration_config.dmq_balancer: Layer Conv_1d does not support dmq_balancer",
        ),
        (override("Pool_3", "ada_quantize {}"), "layer Pool_3 of type AveragePool does not support this algorithm"),
        ("tensor_quantize { input_index : 0 }", 'tensor_quantize[0].layer_name: To quantize tensor, must set "layer'),
        ("tensor_quantize { layer_name : 'Add_6' }", 'tensor_quantize[0].input_index: To quantize tensor, must set "i'),
        ("tensor_quantize { layer_name : 'Conv_0' input_index : 0 }", "tensor_quantize is for MaxPool and Add only"),
        ("tensor_quantize { layer_name : 'Add_6' input_index : 2 }", "must be in [0, 1] for layer type Add, got 2"),
        ("tensor_quantize { layer_name : 'Add_6' input_index : 1 }" * 2, "tensor_quantize[1]: Please delete repeated"),
        (
            "tensor_quantize { layer_name : 'Add_6' input_index : 1 hfmg_quantize { num_of_bins : 3 } }",
            "tensor_quantize[0].hfmg_quantize.num_of_bins: ",
        ),
    ],
)
def test_a_mistake(read: Read, text: str, line: str) -> None:
    (found,) = mistakes(read, text)
    assert line in found


def test_a_type_that_does_not_occur_may_be_overridden(read: Read) -> None:
    read(override_type("ConvTranspose", "hfmg_quantize {}"))


def test_an_override_does_not_bother_skipped_layers(read: Read) -> None:
    text = override_type("Conv", "arq_quantize { quant_bits : 6 }") + "skip_layers : 'Conv_1d' skip_layers : 'Conv_3d'"
    assert read(text).layers["Conv_0"].weight.num_bits == 6


def test_tensors_alone_are_enough(read: Read) -> None:
    text = "skip_layer_types : ['Conv', 'Gemm', 'MatMul', 'LSTM', 'GRU'] skip_layers : 'Pool_3' "
    assert read(text + "tensor_quantize { layer_name : 'Add_6' input_index : 1 }").tensor_quantize


def test_all_mistakes_are_reported_at_once(read: Read) -> None:
    text = (
        "batch_num : 0 skip_layers : 'no' nuq_config { mapping_file : 'no' } skip_fusion_layers : 'no'\n"
        "common_config { hfmg_quantize { num_of_bins : 5 } arq_quantize { quant_bits : 9 } }\n"
        + override("no", "")
        + override_type("no", "")
        + "tensor_quantize { layer_name : 'no' input_index : 0 }"
    )
    assert len(mistakes(read, text)) == 9


def test_bad_files_raise_our_errors(tmp_path: Path, facts: GraphFacts) -> None:
    with pytest.raises(FileMissingError):
        read_cfg(tmp_path / "none.cfg", facts)
    with pytest.raises(ConfigError, match="is a folder"):
        read_cfg(tmp_path, facts)
    (tmp_path / "binary").write_bytes(b"\x08\x96\xff")
    with pytest.raises(ConfigError, match="no UTF-8"):
        read_cfg(tmp_path / "binary", facts)


def test_a_model_without_layers_is_an_error(tmp_path: Path, facts: GraphFacts) -> None:
    (tmp_path / "a.cfg").write_text("")
    with pytest.raises(ConfigError, match="No layer support quantization in the graph"):
        read_cfg(tmp_path / "a.cfg", replace(facts, layers={}))


# Fields of newer releases, and names that do not exist

NEUTRAL = [
    *(f"version : {value}" for value in ("1", "2", "-3", "1.5", "'1.0'", '"v2"', "1,", "1;", "\n 1")),
    "version : 1 version : 2",
    "enable_auto_nuq : false",
    "fakequant_precision_mode : DEFAULT",
    "common_config { weight_compress_only : false }",
    "common_config { arq_quantize { asymmetric : false } }",
    override("Conv_0", "weight_compress_only : false arq_quantize { asymmetric : false }"),
    override_type("Conv", "weight_compress_only : false"),
]


@pytest.mark.parametrize("text", NEUTRAL)
def test_a_newer_field_that_changes_nothing_is_accepted(read: Read, text: str, facts: GraphFacts) -> None:
    assert read(f"batch_num : 1\n{text}\nactivation_offset : true") == default_settings(facts)


@pytest.mark.parametrize(
    ("text", "place", "advice"),
    [
        ("enable_auto_nuq : true", "enable_auto_nuq", "delete it, or name them in nuq_config"),
        *(
            (text, place, r"delete it, or call quantize\(model, None, weight_only=8\)")
            for text, place in (
                ("common_config { weight_compress_only : true }", "common_config.weight_compress_only"),
                (
                    override("Conv_0", "weight_compress_only : true"),
                    r"override_layer_configs\[0\].calibration_config.weight_compress_only",
                ),
                (
                    override_type("Conv", "arq_quantize {} weight_compress_only : true"),
                    r"override_layer_types\[0\].calibration_config.weight_compress_only",
                ),
            )
        ),
        ("common_config { arq_quantize { asymmetric : true } }", "common_config.arq_quantize.asymmetric", "delete it"),
    ],
)
def test_a_newer_field_that_would_change_something_is_refused(read: Read, text: str, place: str, advice: str) -> None:
    with pytest.raises(ConfigError, match=rf"quant\.cfg:\d+:\d+: {place}: .*{advice}"):
        read(text)


def ifmr(fields: str) -> str:
    return f"ifmr_quantize {{ {fields} }}"


def ada(fields: str) -> str:
    return f"ada_quantize {{ {fields} }}"


ABSURD = {
    "search_range": [ifmr(f"search_range_end : {v}") for v in ("1e23", "inf", "nan", "-1", "0", "100.5")]
    + [ifmr(f"search_range_start : {v}") for v in ("-0.7", "0", "1e-30", "nan", "-inf")],
    "search_step": [ifmr(f"search_step : {v}") for v in ("0", "-0.01", "1e-30", "1e-6", "0.00001", "nan", "1e23")],
    "max_percentile": [ifmr(f"max_percentile : {v}") for v in ("0.5", "-1", "1e23", "inf")],
    "min_percentile": [ifmr(f"min_percentile : {v}") for v in ("0.5", "-1", "1e23", "inf")],
    "num_of_bins": [f"hfmg_quantize {{ num_of_bins : {v} }}" for v in ("0", "4000000000")],
    "num_iteration": [ada("num_iteration : 4000000000")],
    "beta_range": [ada(f"beta_range_start : {v}") for v in ("1e23", "nan", "1")] + [ada("beta_range_end : 0")],
    "num_steps": ["nuq_quantize { num_steps : 4000000000 }"],
    "num_of_iteration": ["nuq_quantize { num_of_iteration : 4000000000 }"],
    "migration_strength": [f"dmq_balancer {{ migration_strength : {v} }}" for v in ("0", "1e23", "nan")],
}


@pytest.mark.parametrize(("field", "block"), [(field, block) for field, blocks in ABSURD.items() for block in blocks])
@pytest.mark.parametrize("where", ["common_config { BLOCK }", override("Conv_0", "BLOCK")])
def test_an_absurd_number_is_refused_with_its_place_and_the_limits(
    read: Read, where: str, field: str, block: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        read("\n" + where.replace("BLOCK", block))
    (line,) = str(caught.value).splitlines()
    assert re.search(rf"quant\.cfg:2:\d+: [\w.\[\]]*{field}(\[\d\])?: ", line), line
    assert re.search(r"must be (.*\d|larger|less than or equal to \(search_range)", line), line


def test_an_absurd_number_of_batches_is_refused(read: Read) -> None:
    with pytest.raises(ConfigError, match=r"quant\.cfg:1:1: batch_num: .* at most 2147483647 \(got int 4294967295\)"):
        read("batch_num : 4294967295")


def test_version_does_not_move_what_stands_behind_it(read: Read) -> None:
    with pytest.raises(ConfigError, match=r"quant\.cfg:2:11: batch_num"):
        read("version :\n   '1.0'; batch_num : 0")
    with pytest.raises(ConfigError, match=r'"CalibrationConfig" has no field named "version", it is one of AMCTConfig'):
        read("common_config { version : 1 }")


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("batch_number : 2", "did you mean 'batch_num'?"),
        ("\n Batch_Num : 2", "did you mean 'batch_num'?"),
        ("commonconfig { }", "did you mean 'common_config'?"),
        ("common_config { arq_quantise { } }", "did you mean 'arq_quantize'?"),
        ("common_config { ifmr_quantize { search_range_stop : 2 } }", "did you mean 'search_range_st"),
        ("common_config { hfmg_quantize { num_bins : 1024 } }", "did you mean 'num_of_bins'?"),
        ("common_config { search_step : 0.1 }", "it is one of FMRQuantize"),
        ("channel_wise : true", "it is one of ARQuantize and ADAquantize"),
        (override("Conv_0", "dmq_balancer { strength : 0.5 }"), "did you mean 'migration_strength'?"),
        ("override_layer_configs { name : 'Conv_0' }", "did you mean 'layer_name'?"),
        ("override_layer_configs { foo : 1 }", "use one of layer_name, calibration_config;"),
        ("tensor_quantize { input : 1 }", "did you mean 'input_index'?"),
        ("nuq_config { mapping : 'x' }", "did you mean 'mapping_file'?"),
        ("fakequant_precision_mode : FORCE_FP16", "did you mean 'FORCE_FP16_QUANT'?"),
        ("common_config { ifmr_quantize { dst_type : int8 } }", "did you mean 'INT8'?"),
        ("common_config { ifmr_quantize { dst_type : FLOAT } }", "use one of INT8, INT16"),
        ("zzz : 1", ""),
    ],
)
def test_an_unknown_name_gets_a_suggestion_and_the_path_of_the_proto(read: Read, text: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(text)
    (line,) = str(caught.value).splitlines()
    found = re.search(
        r"quant\.cfg:(\d+):\d+: .* has no (?:field|value) named .*; correct it; all fields are in (.*)$", line
    )
    assert found is not None, line
    assert hint in line
    assert int(found[1]) == 1 + text.count("\n", 0, len(text.rstrip("\n")))
    assert "message AMCTConfig" in Path(found[2]).read_text()


WORDS = [
    "common_config",
    "ifmr_quantize",
    "hfmg_quantize",
    "{",
    "}",
    ":",
    "1",
    "0.5",
    "-1",
    "nan",
    "'Conv_0'",
    "true",
    "INT16",
    "batch_num",
    "skip_layers",
    "tensor_quantize",
    "layer_name",
    "input_index",
    "search_step",
    "dmq_balancer",
    "migration_strength",
    "override_layer_types",
]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=examples(200))
@given(st.lists(st.sampled_from(WORDS)).map(" ".join) | st.text(st.characters(codec="utf-8")))
def test_any_text_is_read_or_refused(read: Read, text: str) -> None:
    try:
        read(text)
    except ConfigError:
        return
