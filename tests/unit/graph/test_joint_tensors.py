"""Sets of tensors that meet in Adds."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx import numpy_helper, parser

from amct_onnx.graph.joint_tensors import joined_tensors


def _sets(body: str, outputs: str = "float[2] y") -> set[frozenset[str]]:
    proto = parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 17]> g (float[2] x, float[2] z) => ({outputs}) {{ {body} }}'
    )
    proto.graph.initializer.append(numpy_helper.from_array(np.ones(2, np.float32), "k"))
    sets: dict[ir.Value, set[str]] = {}
    for value, root in joined_tensors(ir.from_proto(proto)).items():
        sets.setdefault(root, set()).add(value.name or "")
    return {frozenset(names) for names in sets.values()}


@pytest.mark.parametrize(
    ("body", "sets"),
    [
        ("y = Add (x, z)", ["xz"]),
        ("a = Neg (x) b = Neg (z) y = Add (a, b)", ["ab"]),
        ("a = Neg (x) b = Relu (a) y = Add (b, z)", ["abz"]),
        ("a = Identity (x) b = Relu (a) y = Add (z, b)", ["abxz"]),
        ("a = Sigmoid (x) y = Add (a, z)", ["az"]),
        ("y = Add (x, k)", []),
        ("y = Sub (x, z)", []),
        ("y = Mul (x, z)", []),
        ("y = Add (x, x)", ["x"]),
        ("a = Neg (x) b = Add (a, x) c = Neg (b) y = Add (c, b)", ["ax", "bc"]),
        ("a = Neg (x) b = Neg (z) c = Add (a, x) d = Add (x, b) y = Mul (c, d)", ["abx"]),
    ],
)
def test_operands_and_what_they_are_made_of_are_joined(body: str, sets: list[str]) -> None:
    assert _sets(body) == {frozenset(names) for names in sets}


def test_the_indices_of_a_pool_are_not_on_its_grid() -> None:
    body = "a, i = MaxPool <kernel_shape=[1]> (x) f = Cast <to=1> (i) y = Add (f, z)"
    assert _sets(body) == {frozenset("fz")}
