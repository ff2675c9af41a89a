"""Laws of the record file: writing and reading are inverse, and the fast reader is protobuf's reader."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from amct_onnx.errors import RecordError
from amct_onnx.files import record as subject
from amct_onnx.files.schema import message_class, shortest_float32, to_float32
from amct_onnx.values.layers import CalibrationNote, LayerRecord

floats = st.floats(width=32)
finite = st.floats(width=32, allow_nan=False)
int32 = st.integers(-(2**31), 2**31 - 1)
names = st.text(st.characters(codec="utf-8"), min_size=1)


def tuples(elements: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.lists(elements, max_size=5).map(tuple)


optional_text = st.none() | st.text(st.characters(codec="utf-8"))
records = st.builds(
    LayerRecord,
    scale_d=st.none() | finite,
    offset_d=st.none() | int32,
    scale_w=tuples(finite),
    offset_w=tuples(int32),
    shift_bit=tuples(st.integers(0, 2**32 - 1)),
    skip_fusion=st.none() | st.booleans(),
    is_tensor_quantize=st.none() | st.booleans(),
    tensor_balance_factor=tuples(finite),
    op_data_type=optional_text,
    act_type=optional_text,
    wts_type=optional_text,
    scale_h=st.none() | finite,
    offset_h=st.none() | int32,
    scale_r=tuples(finite),
    offset_r=tuples(int32),
    cluster=tuples(int32),
    fakequant_precision_mode=optional_text,
)
notes = st.builds(
    CalibrationNote,
    layer=st.text(),
    seen=st.integers(),
    needed=st.integers(),
    error=st.none() | st.text(),
)


@settings(deadline=None)
@given(st.dictionaries(names, records, max_size=4), st.lists(notes.filter(lambda n: n.layer.isprintable()), max_size=2))
def test_reading_is_the_inverse_of_writing(given_records: dict[str, LayerRecord], given_notes: list[Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "record.txt"
        subject.write_record(path, given_records, notes=given_notes)
        assert list(subject.read_record(path).items()) == list(given_records.items())
        assert subject.read_notes(path) == given_notes


@settings(deadline=None)
@given(st.dictionaries(names, records, max_size=4))
def test_the_writer_is_protobufs_printer(given_records: dict[str, LayerRecord]) -> None:
    from google.protobuf import text_format

    text = subject.format_record(given_records)
    message = message_class(subject.SCHEMA, "ScaleOffsetRecord")()
    text_format.Merge(text, message)
    assert text_format.MessageToString(message, as_utf8=True) == text


VALUES = ["1", "-0", "007", "0.5", ".5", "1e3", "1E3", "1e99", "1e-99", "nan", "inf", "0x10", "2147483648", "-1"]
VALUES += ["4294967296", "true", "false", "t", "1f", "1."]
VALUES += ['"INT8"', "'INT8'", '"a b"', '"\\101"', '""', "1 # c"]
lines = st.one_of(
    st.builds(
        "    {}: {}\n".format,
        st.sampled_from(["scale_d", "offset_d", "scale_w", "shift_bit", "skip_fusion", "act_type", "width", "scale"]),
        st.sampled_from(VALUES),
    ),
    st.sampled_from(["\n", "    # comment\n", "  }\n}\n", "    scale_d:  2.5\n", "\tscale_d: 1\n"]),
)
blocks = st.builds(
    'record {{\n  key: "{}"\n  value {{\n{}  }}\n}}\n'.format,
    st.sampled_from(["a", "é", "", "a b", "\\101", "'", "\t", "\u2028"]),
    st.lists(lines, max_size=4).map("".join),
)


def read_or_refuse(path: Path, text: str) -> str | None:
    """What is read of `text`, floats to the bit; None where it is refused."""
    path.write_text(text, encoding="utf-8")
    try:
        return repr(subject.read_record(path))
    except RecordError:
        return None


@settings(max_examples=examples(600))
@given(
    st.lists(
        blocks | st.sampled_from(["# c\n", "\n", "record {}\n"]), max_size=3, unique_by=lambda text: text.split("\n")[1]
    ).map("".join)
)
def test_the_usual_layout_is_read_as_protobuf_reads_any_other(text: str) -> None:
    """A space at the end means nothing, but the text then has not the usual layout, and protobuf reads it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "record.txt"
        assert read_or_refuse(path, text) == read_or_refuse(path, f"{text} ")


@settings(deadline=None)
@given(st.text() | st.binary())
def test_any_bytes_are_read_or_refused(content: str | bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "record.txt"
        path.write_bytes(content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content)
        for read in (subject.read_record, subject.read_notes):
            try:
                read(path)
            except RecordError:
                continue


@settings(deadline=None)
@given(floats)
def test_shortest_floats_are_the_same_float32_and_protobufs_choice(value: float) -> None:
    from google.protobuf.internal import type_checkers

    short = shortest_float32(value)
    assert repr(to_float32(short)) == repr(value)
    if not math.isnan(value) and abs(value) != float("inf"):
        assert repr(short) == repr(type_checkers.ToShortestFloat(value))
