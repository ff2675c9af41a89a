"""Sessions of models in memory: weights go to ONNX Runtime from where they are, and the result is the same."""

from __future__ import annotations

from functools import partial

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from flow import CPU, normal, two_convs

from amct_onnx.run import session as opening
from amct_onnx.run.session import open_session


@pytest.fixture(autouse=True)
def lend_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "LEAST_LENT", 1)


def test_lent_weights_compute_what_those_of_a_file_do() -> None:
    proto, feed = two_convs(), {"x": normal(0, 2, 3, 5, 5)}
    session = open_session(ir.from_proto(proto))
    assert session.lent
    expected = ort.InferenceSession(proto.SerializeToString(), providers=CPU).run(None, feed)
    for got, wanted in zip(session.run(None, feed), expected, strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_the_model_keeps_its_weights() -> None:
    model = ir.from_proto(two_convs())
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    open_session(model)
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


def test_weights_may_go_when_the_session_is_there() -> None:
    model, feed = ir.from_proto(two_convs()), {"x": normal(0, 2, 3, 5, 5)}
    for value in model.graph.initializers.values():
        array = value.const_value.numpy()
        value.const_value = ir.LazyTensor(
            partial(ir.tensor, array.copy()),
            dtype=value.const_value.dtype,
            shape=value.const_value.shape,
            name=value.name,
        )
    session = open_session(model)
    expected = session.run(None, feed)
    del model
    ballast = [np.full(1 << 12, np.nan, np.float32) for _ in range(1000)]  # where memory was given back, this is now
    for got, wanted in zip(session.run(None, feed), expected, strict=True):
        np.testing.assert_array_equal(got, wanted)
    assert len(ballast) == 1000


def test_options_of_others_stay_theirs() -> None:
    options = ort.SessionOptions()
    feed = {"x": normal(0, 2, 3, 5, 5)}
    for _ in range(2):
        session = open_session(ir.from_proto(two_convs()), options, own_options=False)
        assert not session.lent
        session.run(None, feed)
    ort.InferenceSession(two_convs().SerializeToString(), options, providers=CPU).run(None, feed)


def test_a_large_model_whose_weights_are_lent_takes_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "MAX_INLINE_BYTES", 0)
    monkeypatch.setattr(opening, "temporary_folder", None)
    feed = {"x": normal(0, 2, 3, 5, 5)}
    session = open_session(ir.from_proto(two_convs()))
    expected = ort.InferenceSession(two_convs().SerializeToString(), providers=CPU).run(None, feed)
    for got, wanted in zip(session.run(None, feed), expected, strict=True):
        np.testing.assert_array_equal(got, wanted)
