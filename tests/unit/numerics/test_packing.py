"""The uint64 dequant parameter: bit layout and round trip."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from amct_onnx.numerics.packing import pack_dequant, unpack_dequant

WORDS = hnp.arrays(np.uint64, st.integers(1, 8), elements=st.integers(0, 2**48 - 1))


@given(
    st.lists(
        st.tuples(st.floats(width=32, allow_nan=False), st.integers(0, 255), st.integers(-128, 127)),
        min_size=1,
        max_size=8,
    )
)
def test_unpack_inverts_pack(rows: list[tuple[float, int, int]]) -> None:
    scale = np.array([row[0] for row in rows], np.float32)
    shift = np.array([row[1] for row in rows])
    offset = np.array([row[2] for row in rows])
    got = unpack_dequant(pack_dequant(scale, shift, offset))
    np.testing.assert_array_equal(got.scale.view(np.uint32), scale.view(np.uint32))
    np.testing.assert_array_equal(got.shift, shift)
    np.testing.assert_array_equal(got.offset_w, offset)


@given(WORDS)
def test_pack_inverts_unpack_for_every_word_of_48_bits(words: np.ndarray) -> None:
    parts = unpack_dequant(words)
    again = pack_dequant(parts.scale, parts.shift, parts.offset_w)
    # A NaN may lose its payload on the way through a float register; nothing else may change.
    numbers = ~np.isnan(parts.scale)
    np.testing.assert_array_equal(again[numbers], words[numbers])
    np.testing.assert_array_equal(again >> np.uint64(32), words >> np.uint64(32))


def test_layout_by_hand() -> None:
    assert int(pack_dequant(1.0)[0]) == 0x3F80_0000
    assert int(pack_dequant(1.0, 3)[0]) == 0x0000_0003_3F80_0000
    assert int(pack_dequant(1.0, 3, -1)[0]) == 0x0000_FF03_3F80_0000
    assert int(pack_dequant(1.0, 0, -128)[0]) == 0x0000_8000_3F80_0000


def test_a_scalar_shift_broadcasts_and_the_result_is_read_only() -> None:
    parts = unpack_dequant(pack_dequant(np.float32([0.5, 0.25]), 7))
    assert parts.shift.tolist() == [7, 7]
    assert parts.scale.dtype == np.float32
    with pytest.raises(ValueError, match="read-only"):
        parts.scale[0] = 1


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ((1.0, 256), "shift"),
        ((1.0, -1), "shift"),
        ((1.0, 0, 128), "offset_w"),
        ((1.0, 0.5), "integers"),
        ((np.ones((2, 2)),), "shape"),
    ],
)
def test_values_that_do_not_fit_are_refused(args: tuple, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        pack_dequant(*args)


@pytest.mark.parametrize("param", [np.int64([1]), np.ones((2, 2), np.uint64)])
def test_what_is_not_a_parameter_is_refused(param: np.ndarray) -> None:
    with pytest.raises(ValueError, match="uint64"):
        unpack_dequant(param)
