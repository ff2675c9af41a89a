"""Accuracy-based calibration on every awkward model: each layer is compared with itself, and can be rolled back."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import onnx
import onnx_ir as ir
import pytest
from flow import operators
from searching import AGREEMENT_DB, ErrorEvaluator, Fixed, Search, agreement

from amct_onnx.errors import ConfigError
from amct_onnx.graph.naming import name_nodes
from amct_onnx.plan.ascend_layers import graph_facts

if TYPE_CHECKING:
    from conftest import Awkward

# Of a layer alone, on noise: int8 gives a cosine of 0.9999 and more, so 0.99995 of (1 + cos) / 2.
LEAST_SIMILARITY = 0.999
# Percent of the output; models with BatchNormalization of noise amplify.
MOST_ERROR = 10.0


def layers_of(model: onnx.ModelProto) -> list[str]:
    graph = ir.from_proto(model)
    name_nodes(graph)
    return list(graph_facts(graph).supported)


def test_each_layer_is_compared_with_itself_and_can_be_rolled_back(awkward: Awkward, tmp_path: Path) -> None:
    layers = layers_of(awkward.model)
    judge = ErrorEvaluator(awkward.feeds, -1.0)
    judge.metric_eval = lambda original, new: (new == original, new)  # type: ignore[method-assign]
    named = str(tmp_path / "named.onnx")  # ONNX Runtime, which the evaluator uses, takes no name twice
    arguments = {"batch_num": len(awkward.feeds), "updated_model": named}
    if not layers:
        with pytest.raises(ConfigError, match="No layer support quantization"):
            Search(tmp_path, awkward.model, **arguments)
        return
    search = Search(tmp_path, awkward.model, **arguments).run(judge, strategy=Fixed(layers[0]), model_file=named)
    assert sorted(name for name, _ in search.ranking) == sorted(layers)
    assert all(LEAST_SIMILARITY < value < 1 for _, value in search.ranking), search.ranking
    if len(layers) == 1:  # the one that is rolled back
        assert not search.results.joinpath("model_deploy_model.onnx").exists()
        return
    assert search.quantized == layers[1:]
    assert operators(search.deploy).count("AscendDequant") == len(layers) - 1
    assert judge.evaluate(search.fake_quant) < MOST_ERROR
    assert min(agreement(search, feeds) for feeds in awkward.feeds) > AGREEMENT_DB
