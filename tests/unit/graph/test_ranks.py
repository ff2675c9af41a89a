"""How many dimensions tensors have, told by the graph alone."""

from __future__ import annotations

import itertools

import onnx_ir as ir
import pytest

from amct_onnx.graph.constants import constant_tensor as tensor
from amct_onnx.graph.ranks import ranks


@pytest.mark.parametrize(
    ("declared", "body", "expected"),
    [
        ("N,L,8", "y = MatMul(x, m)", 3),
        ("N,8", "a = Relu(x) y = MatMul(a, m)", 2),
        ("8", "y = MatMul(x, m)", None),  # it drops a dimension where it is multiplied from the other side
        ("N,2,4", "a = Flatten(x) y = MatMul(a, m)", 2),
        ("N,2,4", "a = Reshape(x, sizes) y = MatMul(a, m)", 4),
        ("N,8", "s = Shape(x) a = Reshape(x, s) y = MatMul(a, m)", None),
        ("N,8", "y = Add(x, three)", 3),
        ("N,8", "i = Constant<value_ints = [1, 0]>() y = Gather(x, i)", 2),
        ("N,L,8", "a, b = Split<axis = 2>(x) y = Tanh(b)", 3),
        ("N,L,8", "a = ReduceMean(x) y = Tanh(a)", None),
    ],
)
def test_the_graph_tells_it(declared: str, body: str, expected: int | None) -> None:
    model = ir.from_onnx_text(
        f'<ir_version: 8, opset_import: ["": 17]> g (float[{declared}] x) => (float[] y) '
        "<float[8,1] m = {1, 2, 3, 4, 5, 6, 7, 8}, int64[4] sizes = {1, -1, 1, 8}, float[1,1,1] three = {1}> "
        f"{{ {body} }}"
    )
    model.graph.outputs[0].shape = None
    assert ranks(model.graph).get(model.graph.outputs[0]) == expected


def test_a_long_chain_of_constants_is_walked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[str | None] = []
    monkeypatch.setattr(
        "amct_onnx.graph.ranks.constant_tensor", lambda value: looked.append(value.name) or tensor(value)
    )
    names = ["m", *(f"i{number}" for number in range(300))]
    chain = " ".join(f"{second} = Identity({first})" for first, second in itertools.pairwise(names))
    model = ir.from_onnx_text(
        '<ir_version: 8, opset_import: ["": 17]> g (float[N,2] x) => (float[N,1] y) <float[2,1] m = {1, 2}> '
        f"{{ {chain} y = MatMul(x, {names[-1]}) }}"
    )
    found = {value.name: rank for value, rank in ranks(model.graph).items()}
    assert (found["i299"], found["y"]) == (2, 2)
    assert looked == ["m"]
