"""<prefix>_quant.json."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from amct_onnx.errors import OutputError
from amct_onnx.files.fusion_json import FusionOp, write_fusion


def test_fusion_information_has_the_layout_of_the_message(tmp_path: Path) -> None:
    ops = [
        FusionOp(name="relu", type="Relu"),
        FusionOp(name="conv1", type="Conv", original_names=("conv1", "bn1")),
        FusionOp(
            name="conv1.dequant",
            type="AscendDequant",
            original_names=("conv1",),
            output_of="bn1",
            data_type="DT_FLOAT16",
        ),
    ]
    write_fusion(tmp_path / "m_quant.json", "m", ops)
    document = json.loads((tmp_path / "m_quant.json").read_text())
    assert list(document) == ["name", "graph"]
    assert document["name"] == "m"
    relu, conv, dequant = document["graph"][0]["op"]
    assert relu == {"name": "relu", "type": "Relu"}
    assert conv["attr"] == [
        {"key": "_datadump_original_op_names", "value": {"list": {"s": ["conv1", "bn1"], "val_type": 1}}}
    ]
    assert "output_desc" not in conv
    assert dequant["output_desc"] == [
        {
            "attr": [
                {"key": "_datadump_origin_format", "value": {"s": "NCHW"}},
                {"key": "_datadump_data_type", "value": {"s": "DT_FLOAT16"}},
                {"key": "_datadump_origin_output_index", "value": {"i": "0"}},
                {"key": "_datadump_origin_name", "value": {"s": "bn1"}},
            ]
        }
    ]


def test_a_failing_write_is_ours(tmp_path: Path) -> None:
    with pytest.raises(OutputError):
        write_fusion(tmp_path, "m", [])
