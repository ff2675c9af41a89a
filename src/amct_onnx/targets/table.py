"""The one table of all targets, by the names that users call them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from amct_onnx.errors import ArgumentError, did_you_mean
from amct_onnx.graph.access import name_of
from amct_onnx.graph.bodies import all_values
from amct_onnx.graph.constants import constant_tensor
from amct_onnx.plan.float_model import FusedModel
from amct_onnx.targets.ascend_target import AscendTarget
from amct_onnx.targets.calibration import source_of
from amct_onnx.targets.qdq_target import QdqFamily
from amct_onnx.targets.target import Target
from amct_onnx.values.qdq_tables import QDQ_TARGETS
from amct_onnx.words import named

_ALL: tuple[Target, ...] = (*(QdqFamily(table) for table in QDQ_TARGETS.values()), AscendTarget())
TARGETS: Mapping[str, Target] = MappingProxyType({target.name: target for target in _ALL})


def target_of(name: Any) -> Target:
    """The target of that name. Raises ArgumentError."""
    if name not in TARGETS:
        known = f"use one of {', '.join(TARGETS)}."
        raise ArgumentError(f"{named('target')} {name!r} is unknown: {did_you_mean(str(name), TARGETS, known)}")
    return TARGETS[name]


def observed_tensors(source: FusedModel) -> tuple[str, ...]:
    """The tensors whose statistics serve every target: each is the source of what a target quantizes."""
    values = all_values(source.model)
    wanted = dict.fromkeys(name for target in TARGETS.values() for name in target.observed(source))
    sources = (source_of(values[name]) for name in wanted if name in values)
    return tuple(dict.fromkeys(name_of(value) for value in sources if constant_tensor(value) is None))
