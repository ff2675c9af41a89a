"""Ranges of channels: a monoid, as every statistic is."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from amct_onnx.core.stats.channels import ChannelRange

values = st.floats(-(2.0**100), 2.0**100, width=32)
tensors = st.tuples(st.integers(1, 4), st.integers(1, 5)).flatmap(
    lambda shape: st.lists(arrays(np.float32, shape, elements=values), min_size=3, max_size=3)
)


@given(tensors)
def test_any_order_and_any_cut_give_the_same(parts: list[np.ndarray]) -> None:
    first, second, third = (ChannelRange.of(part) for part in parts)
    whole = ChannelRange.of(np.concatenate(parts))
    assert first.merge(second).merge(third) == whole == third.merge(first.merge(second))
    assert ChannelRange.empty().merge(first) == first == first.merge(ChannelRange.empty())
    assert ChannelRange.from_arrays(whole.to_arrays()) == whole


def test_channels_are_along_the_last_axis() -> None:
    x = np.arange(24, dtype=np.float32).reshape(2, 3, 4) - 20
    found = ChannelRange.of(x)
    assert found.lowest.tolist() == [-20, -19, -18, -17]
    assert found.highest.tolist() == [0, 1, 2, 3]
    assert found.magnitude.tolist() == [20, 19, 18, 17]


def test_other_channels_do_not_merge() -> None:
    with pytest.raises(ValueError, match="2 channels and 3"):
        ChannelRange.of(np.ones((1, 2), np.float32)).merge(ChannelRange.of(np.ones((1, 3), np.float32)))
