"""Every option changes something: each key of config.json and each field of the .cfg, one test for each.

The tables below are held against the readers' own tables, so an option without a test fails here. An option counts as
carried out when another value of it gives another result of the whole flow (record and deploy model), or, for a field
of the .cfg, another config.json.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from flow import Flow, build, normal

import amct_onnx as amct
from amct_onnx.errors import AmctError
from amct_onnx.files.config_rules import (
    ACT_KEY,
    ACT_RULES,
    GLOBAL_RULES,
    LAYER_RULES,
    TENSOR_RULES,
    WTS_KEY,
    WTS_RULES,
)
from amct_onnx.files.schema import read_proto

Document = dict[str, Any]

TEXT = """g (float[N,4,6,6] x) => (float[N,3] y) {
    [c1] a = Conv <kernel_shape=[3,3], pads=[1,1,1,1]> (x, w1, b1)
    [bn] n = BatchNormalization (a, gamma, beta, mean, var)
    [relu] r = Relu (n)
    [c2] b = Conv <kernel_shape=[1,1]> (r, w2, b2)
    [c3] c = Conv <kernel_shape=[1,1]> (b, w3)
    [add] s = Add (r, b)
    [sum] t = Add (s, c)
    [pool] p = MaxPool <kernel_shape=[2,2], strides=[2,2]> (t)
    [flat] f = Flatten (p)
    [fc] y = Gemm (f, w4, b4)
}"""


def model() -> onnx.ModelProto:
    """Batch normalization, tensors that meet in an Add, a MaxPool, and a layer that is not channel-wise."""
    return build(
        TEXT,
        w1=normal(1, 6, 4, 3, 3, scale=0.3) * np.float32([1, 2, 3, 4, 5, 6]).reshape(-1, 1, 1, 1),
        b1=normal(2, 6),
        gamma=np.float32([1, 0.5, 2, 1, 3, 1]),
        beta=normal(3, 6),
        mean=normal(4, 6),
        var=np.float32([1, 2, 0.5, 1, 4, 1]),
        w2=normal(5, 6, 6, 1, 1, scale=0.5),
        b2=normal(6, 6),
        w3=normal(7, 6, 6, 1, 1, scale=0.5),
        w4=normal(8, 54, 3, scale=0.2),
        b4=normal(9, 3),
    )


BATCH = normal(10, 8, 4, 6, 6) ** 3  # heavy tails, so that percentiles and search ranges decide something


def run_flow(folder: Path, document: Document) -> str:
    """Record and deploy model of a configuration after one batch, or why there are none."""
    flow = Flow.of(model(), folder)
    Path(flow.config).write_text(json.dumps(document))
    try:
        if any("dmq_balancer_param" in entry for entry in document.values() if isinstance(entry, dict)):
            amct.quantize_preprocess(flow.config, flow.record, flow.model, flow.modified)
            flow.calibrate([{"x": BATCH}])
        flow.quantize().calibrate([{"x": BATCH}]).save()
    except AmctError as error:
        return f"refused: {error}"
    record = re.sub(r"^#.*\n", "", Path(flow.record).read_text(), flags=re.MULTILINE)
    deploy = onnx.load(flow.deploy)
    return record + deploy.SerializeToString(deterministic=True).hex()


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Document:
    """The default configuration, but for a search range that leaves a choice."""
    flow = Flow.of(model(), tmp_path_factory.mktemp("plain")).configure()
    document: Document = json.loads(Path(flow.config).read_text())
    return document


def changed(document: Document, path: str, value: Any) -> Document:
    """A deep copy with one value set; `path` has dots. None removes the key."""
    copy: Document = json.loads(json.dumps(document))
    *parents, last = path.split(".")
    place = copy
    for key in parents:
        place = place[key]
    if value is None:
        place.pop(last, None)
    else:
        place[last] = value
    return copy


def without_asymmetric(document: Document) -> Document:
    """Layers that leave the choice to the global switch."""
    for entry in (e for e in document.values() if isinstance(e, dict)):
        entry[ACT_KEY].pop("asymmetric")
    return document


def with_hfmg(document: Document) -> Document:
    for key in ("max_percentile", "min_percentile", "search_range", "search_step"):
        document["c1"][ACT_KEY].pop(key)
    document["c1"][ACT_KEY] |= {"act_algo": "hfmg", "num_of_bins": 1024}
    return document


def with_plain_activation(document: Document) -> Document:
    return changed(document, f"c1.{ACT_KEY}", {})


def with_ada(document: Document) -> Document:
    document["c1"][WTS_KEY] |= {"wts_algo": "ada_quantize", "num_iteration": 100}
    return document


def with_nuq(document: Document) -> Document:
    document["c1"][WTS_KEY] |= {"wts_algo": "nuq_quantize"}
    return document


def with_tensor(document: Document) -> Document:
    document["tensor_quantize"] = [{"layer_name": "add", "input_index": 0}]
    return document


def with_wide_search(document: Document) -> Document:
    document["c1"][ACT_KEY]["search_range"] = [0.2, 1.3]  # the best bound of heavy tails lies within
    return document


Base = Callable[[Document], Document]


def same(document: Document) -> Document:
    return document


# key of the readers' table: base, path and two values that must not give the same
GLOBAL_CASES: dict[str, tuple[Base, str, Any, Any]] = {
    "version": (same, "version", 1, 2),
    "batch_num": (same, "batch_num", 1, 2),
    "activation_offset": (without_asymmetric, "activation_offset", True, False),
    "joint_quant": (same, "joint_quant", False, True),
    "do_fusion": (same, "do_fusion", True, False),
    "fakequant_precision_mode": (same, "fakequant_precision_mode", "DEFAULT", "FORCE_FP16_QUANT"),
    "skip_fusion_layers": (same, "skip_fusion_layers", [], ["c1"]),
    "tensor_quantize": (same, "tensor_quantize", [], [{"layer_name": "pool", "input_index": 0}]),
}
LAYER_CASES: dict[str, tuple[Base, str, Any, Any]] = {
    "quant_enable": (same, "c1.quant_enable", True, False),
    "dmq_balancer_param": (same, "c1.dmq_balancer_param", 0.2, 0.8),
    ACT_KEY: (same, f"c1.{ACT_KEY}", {}, {"asymmetric": False}),
    WTS_KEY: (same, f"c1.{WTS_KEY}", {}, {"channel_wise": False}),
}
ACT_CASES: dict[str, tuple[Base, str, Any, Any]] = {
    "num_bits": (same, f"c1.{ACT_KEY}.num_bits", 8, 16),
    "max_percentile": (same, f"c1.{ACT_KEY}.max_percentile", 0.999999, 0.9),
    "min_percentile": (same, f"c1.{ACT_KEY}.min_percentile", 0.999999, 0.9),
    "search_range": (same, f"c1.{ACT_KEY}.search_range", [0.7, 1.3], [0.2, 0.6]),
    "search_step": (with_wide_search, f"c1.{ACT_KEY}.search_step", 0.01, 0.35),
    "act_algo": (with_plain_activation, f"c1.{ACT_KEY}.act_algo", "ifmr", "hfmg"),
    "asymmetric": (same, f"c1.{ACT_KEY}.asymmetric", True, False),
    "num_of_bins": (with_hfmg, f"c1.{ACT_KEY}.num_of_bins", 1024, 8192),
}
WTS_CASES: dict[str, tuple[Base, str, Any, Any]] = {
    "num_bits": (same, f"c1.{WTS_KEY}.num_bits", 8, 6),
    "channel_wise": (same, f"c1.{WTS_KEY}.channel_wise", True, False),
    "wts_algo": (same, f"fc.{WTS_KEY}.wts_algo", "arq_quantize", "ada_quantize"),
    "num_iteration": (with_ada, f"c1.{WTS_KEY}.num_iteration", 0, 500),
    "num_steps": (with_nuq, f"c1.{WTS_KEY}.num_steps", 16, 32),
    "num_of_iteration": (with_nuq, f"c1.{WTS_KEY}.num_of_iteration", 0, 5),
}
TENSOR_CASES: dict[str, tuple[Base, str, Any, Any]] = {
    "layer_name": (same, "tensor_quantize", *([{"layer_name": n, "input_index": 0}] for n in ("add", "pool"))),
    "input_index": (same, "tensor_quantize", *([{"layer_name": "sum", "input_index": i}] for i in (0, 1))),
    ACT_KEY: (
        same,
        "tensor_quantize",
        *([{"layer_name": "pool", "input_index": 0, ACT_KEY: {"asymmetric": a}}] for a in (True, False)),
    ),
}
RULES = {"global": GLOBAL_RULES, "layer": LAYER_RULES, "act": ACT_RULES, "wts": WTS_RULES, "tensor": TENSOR_RULES}
CASES = {
    "global": GLOBAL_CASES,
    "layer": LAYER_CASES,
    "act": ACT_CASES,
    "wts": WTS_CASES,
    "tensor": TENSOR_CASES,
}


# On a layer as small as those here every path of learning ends in the same rounding: see tests/e2e/test_rounding.py
ELSEWHERE = {"wts": {"reg_param", "beta_range", "warm_start"}}


@pytest.mark.parametrize("table", CASES)
def test_every_key_of_config_json_is_tested(table: str) -> None:
    assert set(CASES[table]) | ELSEWHERE.get(table, set()) == set(RULES[table])


@pytest.mark.parametrize(
    ("base", "path", "first", "second"),
    [pytest.param(*case, id=f"{table}-{key}") for table, cases in CASES.items() for key, case in cases.items()],
)
def test_a_key_of_config_json_is_not_ignored(
    plain: Document, tmp_path: Path, base: Base, path: str, first: Any, second: Any
) -> None:
    document = base(json.loads(json.dumps(plain)))
    results = [
        run_flow(tmp_path / name, changed(document, path, value)) for name, value in (("a", first), ("b", second))
    ]
    assert not results[0].startswith("refused"), results[0]
    assert results[1].startswith("refused") == (path in ("version", "batch_num")), results[1]
    assert results[0] != results[1]


# The simplified configuration: what it says must arrive in config.json


def configure(folder: Path, text: str) -> str:
    flow = Flow.of(model(), folder)
    (folder / "quant.cfg").write_text(text)
    try:
        flow.configure(config_defination=str(folder / "quant.cfg"))
    except AmctError as error:
        return f"{type(error).__name__}: {error}"
    return Path(flow.config).read_text()


def common(block: str) -> str:
    return f"common_config : {{ {block} }}"


def tensor(block: str = "", *, name: str = "add", index: int = 0) -> str:
    return f'tensor_quantize : {{ layer_name : "{name}" input_index : {index} {block} }}'


def of_type(name: str, block: str = "hfmg_quantize : { }") -> str:
    return f'override_layer_types : {{ layer_type : "{name}" calibration_config : {{ {block} }} }}'


def of_layer(name: str, block: str = "hfmg_quantize : { }") -> str:
    return f'override_layer_configs : {{ layer_name : "{name}" calibration_config : {{ {block} }} }}'


# "message.field": two texts that must not give the same config.json; the first one must be accepted
FIELD_CASES: dict[str, tuple[str, str]] = {
    "AMCTConfig.batch_num": ("", "batch_num : 2"),
    "AMCTConfig.activation_offset": ("", "activation_offset : false"),
    "AMCTConfig.skip_layers": ("", 'skip_layers : "c1"'),
    "AMCTConfig.skip_layer_types": ("", 'skip_layer_types : "Gemm"'),
    "AMCTConfig.fakequant_precision_mode": ("", "fakequant_precision_mode : FORCE_FP16_QUANT"),
    "AMCTConfig.common_config": ("", common("hfmg_quantize : { }")),
    "AMCTConfig.override_layer_types": ("", of_type("Gemm")),
    "AMCTConfig.override_layer_configs": ("", of_layer("c1")),
    "AMCTConfig.do_fusion": ("", "do_fusion : false"),
    "AMCTConfig.skip_fusion_layers": ("", 'skip_fusion_layers : "c1"'),
    "AMCTConfig.joint_quant": ("", "joint_quant : true"),
    "AMCTConfig.tensor_quantize": ("", tensor()),
    "AMCTConfig.conv_calibration_config": ("", "conv_calibration_config : { hfmg_quantize : { } }"),
    "AMCTConfig.fc_calibration_config": ("", "fc_calibration_config : { hfmg_quantize : { } }"),
    "OverrideLayerType.layer_type": (of_type("Gemm"), of_type("Conv")),
    "OverrideLayerType.calibration_config": (of_type("Gemm"), of_type("Gemm", "ifmr_quantize : { }")),
    "OverrideLayer.layer_name": (of_layer("c1"), of_layer("c2")),
    "OverrideLayer.calibration_config": (of_layer("c1"), of_layer("c1", "ifmr_quantize : { }")),
    "CalibrationConfig.arq_quantize": ("", common("arq_quantize : { channel_wise : false }")),
    "CalibrationConfig.ada_quantize": ("", common("ada_quantize : { }")),
    "CalibrationConfig.nuq_quantize": ("", common("nuq_quantize : { }")),
    "CalibrationConfig.ifmr_quantize": ("", common("ifmr_quantize : { asymmetric : false }")),
    "CalibrationConfig.hfmg_quantize": ("", common("hfmg_quantize : { }")),
    "CalibrationConfig.dmq_balancer": ("", common("dmq_balancer : { }")),
    "ARQuantize.channel_wise": ("", common("arq_quantize : { channel_wise : false }")),
    "ARQuantize.quant_bits": ("", common("arq_quantize : { quant_bits : 6 }")),
    "NUQuantize.num_steps": (common("nuq_quantize : { }"), common("nuq_quantize : { num_steps : 16 }")),
    "NUQuantize.num_of_iteration": (common("nuq_quantize : { }"), common("nuq_quantize : { num_of_iteration : 3 }")),
    "DMQBalancer.migration_strength": (
        common("dmq_balancer : { }"),
        common("dmq_balancer : { migration_strength : 0.3 }"),
    ),
    "TensorQuantize.layer_name": (tensor(), tensor(name="sum")),
    "TensorQuantize.input_index": (tensor(), tensor(index=1)),
    "TensorQuantize.ifmr_quantize": (tensor(), tensor("ifmr_quantize : { asymmetric : false }")),
    "TensorQuantize.hfmg_quantize": (tensor(), tensor("hfmg_quantize : { }")),
}
_OWN = {
    "ADAquantize": {
        "num_iteration": "5",
        "reg_param": "0.5",
        "beta_range_start": "30",
        "beta_range_end": "3",
        "warm_start": "0.5",
        "channel_wise": "false",
    },
    "FMRQuantize": {
        "search_range_start": "0.8",
        "search_range_end": "1.2",
        "search_step": "0.02",
        "max_percentile": "0.9",
        "min_percentile": "0.9",
        "asymmetric": "false",
        "dst_type": "INT16",
    },
    "HFMGQuantize": {"num_of_bins": "1024", "asymmetric": "false", "dst_type": "INT16"},
}
_BLOCKS = {"ADAquantize": "ada_quantize", "FMRQuantize": "ifmr_quantize", "HFMGQuantize": "hfmg_quantize"}
FIELD_CASES |= {
    f"{message}.{field}": (common(f"{block} : {{ }}"), common(f"{block} : {{ {field} : {value} }}"))
    for message, block in _BLOCKS.items()
    for field, value in _OWN[message].items()
}
# Fields whose value is the path of a file: see the tests of nuq_config in tests/unit/files/test_config_text.py
FILE_FIELDS = {"AMCTConfig.nuq_config", "NuqConfig.mapping_file", "NuqConfig.nuq_quantize"}
# Fields of newer releases, of which only values are accepted that change nothing: see the same file
NEUTRAL_FIELDS = {
    *("AMCTConfig.version", "AMCTConfig.enable_auto_nuq", "CalibrationConfig.weight_compress_only"),
    "ARQuantize.asymmetric",
}


def fields_of_the_proto() -> set[str]:
    found: set[str] = set()
    proto = read_proto("calibration_config_onnx.proto")
    for message, body in re.findall(r"^message (\w+) \{\n(.*?)^\}", proto, re.MULTILINE | re.DOTALL):
        found |= {f"{message}.{field}" for field in re.findall(r"\w+ (\w+) = \d+;", body)}
    return found


def test_every_field_of_the_cfg_is_tested() -> None:
    assert set(FIELD_CASES) | FILE_FIELDS | NEUTRAL_FIELDS == fields_of_the_proto()


@pytest.mark.parametrize(("first", "second"), FIELD_CASES.values(), ids=FIELD_CASES)
def test_a_field_of_the_cfg_is_not_ignored(tmp_path: Path, first: str, second: str) -> None:
    results = [configure(tmp_path / name, text) for name, text in (("a", first), ("b", second))]
    assert results[0].startswith("{"), results[0]
    assert results[1].startswith("{"), results[1]
    assert results[0] != results[1]
