"""The magnitudes of channels: the tensors that ONNX Runtime itself gives are the oracle."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from flow import CPU, normal, two_convs

from amct_onnx.errors import DataError, ModelError
from amct_onnx.observe import channel_maxima as channels
from amct_onnx.observe.channel_maxima import channel_maxima


def outputs(names: list[str], feeds: list[dict[str, np.ndarray]]) -> dict[str, list[np.ndarray]]:
    model = ir.from_proto(two_convs())
    values = {value.name: value for node in model.graph for value in node.outputs}
    model.graph.outputs[:] = [values[name] for name in names]
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), providers=CPU)
    return dict(zip(names, zip(*(session.run(names, feed) for feed in feeds), strict=True), strict=True))


def tensors() -> list[str]:
    return [value.name or "" for node in ir.from_proto(two_convs()).graph for value in node.outputs]


@pytest.mark.parametrize("axis", [1, -1])
@pytest.mark.parametrize("processors", [1, 3])
def test_the_largest_magnitude_of_every_channel(axis: int, processors: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channels, "processors", lambda: processors)
    feeds = [{"x": normal(seed, 2, 3, 5, 5)} for seed in range(7)]
    found = channel_maxima(ir.from_proto(two_convs()), tensors(), feeds, axis=axis)
    for name, arrays in outputs(tensors(), feeds).items():
        expected = [np.abs(np.moveaxis(array, axis, 0)).reshape(array.shape[axis], -1).max(axis=1) for array in arrays]
        np.testing.assert_allclose(found[name], np.max(expected, axis=0), rtol=1e-6)


def test_what_holds_nan_or_has_no_fixed_channels_is_left_out() -> None:
    feeds = [{"x": normal(0, 1, 3, 5, 5)}, {"x": np.full((1, 3, 5, 5), np.nan, np.float32)}]
    assert channel_maxima(ir.from_proto(two_convs()), tensors(), feeds[:1]).keys() == set(tensors())
    assert channel_maxima(ir.from_proto(two_convs()), tensors(), feeds) == {}
    sizes = [{"x": normal(0, 1, 3, 5, 5)}, {"x": normal(0, 1, 3, 5, 7)}, {"x": normal(0, 1, 3, 5, 7)}]
    assert channel_maxima(ir.from_proto(two_convs()), tensors(), sizes, axis=-1) == {}


def test_what_cannot_be_run_is_an_error() -> None:
    with pytest.raises(DataError, match="cannot run the model with a sample"):
        channel_maxima(ir.from_proto(two_convs()), tensors(), [{"x": normal(0, 1, 4, 5, 5)}])
    with pytest.raises(ModelError, match="no tensor gone"):
        channel_maxima(ir.from_proto(two_convs()), ["gone"], [])
