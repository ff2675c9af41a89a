"""What a network is taken for, and the preset that follows: the outputs of classifiers, YOLOs and others."""

from __future__ import annotations

import onnx
import onnx_ir as ir
import pytest
from flow import build, normal

from amct_onnx.graph.outputs import class_output, purpose_of


def network(outputs: str, size: int = 64, **metadata: str) -> ir.Model:
    """A network of a picture; only the declared outputs count."""
    proto = build(
        f"g (float[N,3,{size},{size}] images) => ({outputs}) {{ c = Conv (images, w) }}", w=normal(1, 4, 3, 3, 3)
    )
    onnx.helper.set_model_props(proto, metadata)
    return ir.from_proto(proto)


CELLS = 64 + 16 + 4  # of 64 x 64 pixels


@pytest.mark.parametrize(
    ("outputs", "kind", "preset"),
    [
        ("float[N,10] y", "classes", "torch"),
        ("float[N,10,1,1] y", "classes", "torch"),
        ("float[N,10] y, int64[N] label", "classes", "torch"),
        (f"float[N,84,{CELLS}] y", "detector", "ultralytics"),
        (f"float[N,{3 * CELLS},85] y", "detector", "ultralytics"),
        (f"float[N,{CELLS},85] y", "detector", "yolox"),
        ("float[N,100,6] y", "detector", ""),
        ("float[N,A,6] y", "detector", ""),
        ("float[N,100,4] boxes, float[N,100] scores", "detector", ""),
        ("float[N,100,4] a, float[N,100,80] b", "detector", ""),
        ("float[N,3,128,128] y", "other", ""),
        ("float[N,1] y", "other", ""),
        ("float[N,10] y, float[N,3] z", "other", ""),
    ],
)
def test_by_outputs(outputs: str, kind: str, preset: str) -> None:
    found = purpose_of(network(outputs))
    assert (found.kind, found.preset) == (kind, preset)
    assert (class_output(network(outputs)) is not None) == (kind == "classes")


def test_by_the_metadata_of_ultralytics() -> None:
    assert purpose_of(network("float[N,300,6] y", author="Ultralytics", task="detect")).preset == "ultralytics"
    assert purpose_of(network("float[N,1000] y", author="Ultralytics", task="classify")).preset == "unit"
    assert purpose_of(network("float[N,300,6] y", author="somebody")).preset == ""
