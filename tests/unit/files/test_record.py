"""record.txt: reading, writing, notes and the check against a model."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from amct_onnx.errors import FileMissingError, RecordError, RecordValueError
from amct_onnx.files.record import check_record, format_record, read_notes, read_record, write_record
from amct_onnx.values.layers import CalibrationNote, GraphFacts, LayerRecord

TestData = Callable[..., Path]

CONV = LayerRecord(
    scale_d=0.5, offset_d=-3, scale_w=(0.5, 0.25, 0.125, 1.0), offset_w=(0,) * 4, act_type="INT8", wts_type="INT8"
)
GEMM = LayerRecord(scale_d=0.5, offset_d=0, scale_w=(0.5,), offset_w=(0,))


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str | bytes], Path]:
    def write_text(text: str | bytes) -> Path:
        path = tmp_path / "record.txt"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    return write_text


Write = Callable[[str | bytes], Path]


def entry(body: str, key: str = "Conv_0") -> str:
    return f'record {{\n  key: "{key}"\n  value {{\n{body}  }}\n}}\n'


# reading and writing


def test_golden_records_are_rewritten_byte_for_byte(test_data: TestData, golden: tuple[str, GraphFacts]) -> None:
    path = test_data("golden", golden[0], "record.txt")
    assert format_record(read_record(path)) == path.read_text()


def test_golden_records_pass_the_check(test_data: TestData, golden: tuple[str, GraphFacts]) -> None:
    path = test_data("golden", golden[0], "record.txt")
    check_record(read_record(path), golden[1], path=path)


@pytest.mark.parametrize("name", ["caffe_resnet50_record.txt", "tensorflow_mobilenet_v2_record.txt"])
def test_records_of_other_front_ends_are_accepted(test_data: TestData, tmp_path: Path, name: str) -> None:
    records = read_record(test_data("golden", "amct_records", name))
    assert len(records) == 54
    assert all(r.scale_d and len(r.scale_w) == len(r.offset_w) for r in records.values())
    assert [name for name, r in records.items() if not r.scale_w and "AvgPool" not in name] == []
    write_record(tmp_path / name, records)
    assert read_record(tmp_path / name) == records
    assert list(read_record(tmp_path / name)) == list(records)


def test_the_published_example_is_read(write: Write) -> None:
    body = (
        "    scale_d: 0.01424839813\n    offset_d: -22\n    act_type: \"INT8\"\n    op_data_type: 'FLOAT32'\n"
        "    scale_w: 0.00297622895\n    scale_w: 0.00106807391\n    offset_w: 0\n    offset_w: 0\n"
        '    skip_fusion: true\n    wts_type: "INT8"\n'
    )
    record = read_record(write(entry(body)))["Conv_0"]
    assert record.scale_d == pytest.approx(0.01424839813, rel=1e-7)
    assert (record.offset_d, record.op_data_type, record.skip_fusion) == (-22, "FLOAT32", True)
    assert record.offset_w == (0, 0)


@pytest.mark.parametrize("text", ["", "\n", "# only a comment\n", "\ufeff"])
def test_an_empty_file_has_no_records(write: Write, text: str) -> None:
    assert read_record(write(text)) == {}


def test_of_a_scalar_given_twice_the_last_wins_in_every_layout(write: Write) -> None:
    usual = entry("    scale_d: 1.0\n    scale_d: 2.0\n")
    assert read_record(write(usual))["Conv_0"].scale_d == 2.0
    assert read_record(write(usual.replace("\n", " ")))["Conv_0"].scale_d == 2.0


def test_kernel_output_with_padded_numbers_is_read(write: Write) -> None:
    text = entry("    tensor_balance_factor:      1.500000000\n")
    assert read_record(write(text))["Conv_0"].tensor_balance_factor == (1.5,)


def test_dst_type_stands_for_both_types(write: Write) -> None:
    record = read_record(write(entry('    scale_d: 1.0\n    dst_type: "INT4"\n')))["Conv_0"]
    assert (record.act_type, record.wts_type) == ("INT4", "INT4")


def test_nothing_is_written_for_absent_fields() -> None:
    assert format_record({}) == ""
    assert format_record({"a": LayerRecord()}) == 'record {\n  key: "a"\n  value {\n  }\n}\n'


def test_duplicate_and_missing_keys_are_reported_together(write: Write) -> None:
    with pytest.raises(RecordError) as caught:
        read_record(write(entry("") + entry("", "b") + entry("") + "record {\n}\n" + entry("", "b")))
    assert str(caught.value).splitlines()[0].endswith("record.txt: 3 mistakes")
    assert 'record[3] "Conv_0": the key occurs twice' in str(caught.value)
    assert "record[4]: has no key" in str(caught.value)
    assert 'record[5] "b"' in str(caught.value)


@pytest.mark.parametrize(
    ("text", "place", "what"),
    [
        ('record {\n  key: "a"\n  value {\n    scale: 1\n  }\n}\n', ":4:5: ", "scale"),
        ('record {\n  key: "a"\n  value {\n    scale_d: x\n  }\n}\n', ":4:", "x"),
        ('record {\n  key: "a"\n  value {\n    offset_d: 1.5\n  }\n}\n', ":4:", "1.5"),
        ('record {\n  key: "a"\n  value {\n    offset_d: 3000000000\n  }\n}\n', ":4:", "3000000000"),
        ('record {\n  key: "a"\n  value {\n', ":", ""),
        ('record {\n  key: "\\xff"\n  value {\n  }\n}\n', "", ""),
        ('{"version": 1}', ":1:", ""),
        ("\0\1\2", ":1:", ""),
    ],
)
def test_malformed_text_names_file_place_and_remedy(write: Write, text: str, place: str, what: str) -> None:
    path = write(text)
    with pytest.raises(RecordError) as caught:
        read_record(path)
    message = str(caught.value)
    assert message.startswith(f"{path}{place}")
    assert what in message
    advice = "correct the record file or run the calibration again; all fields are in "
    assert "message SingleLayerRecord" in Path(message.rpartition(advice)[2]).read_text()


def test_every_truncation_of_a_record_is_read_or_refused(write: Write) -> None:
    text = format_record({"Conv_0": CONV, "Gemm_1": GEMM})
    for length in range(len(text)):
        path = write(text[:length])
        try:
            read_record(path)
        except RecordError:
            continue


def test_bad_files_raise_our_errors(write: Write, tmp_path: Path) -> None:
    with pytest.raises(FileMissingError, match="the record file does not exist"):
        read_record(tmp_path / "none.txt")
    with pytest.raises(RecordError, match="is a folder"):
        read_record(tmp_path)
    with pytest.raises(RecordError, match="no UTF-8 text"):
        read_record(write(b"\xff\xfe\x00"))


# notes


NOTES = [CalibrationNote(layer="Conv_0", seen=2, needed=4), CalibrationNote(layer='a"\n', seen=0, needed=1, error="é")]


def test_notes_come_back_and_do_not_disturb_the_records(tmp_path: Path) -> None:
    path = tmp_path / "record.txt"
    write_record(path, {"Conv_0": CONV}, notes=NOTES)
    assert path.read_text().startswith('# amct_onnx: {"layer": "Conv_0", "seen": 2, "needed": 4}\n')
    assert read_notes(path) == NOTES
    assert read_record(path) == {"Conv_0": CONV}


def test_a_file_without_notes_has_none(write: Write) -> None:
    assert read_notes(write("# comment\n" + entry("    scale_d: 1.0\n"))) == []


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"layer": 1, "seen": 1, "needed": 1}', '{"layer": "a", "seen": true, "needed": 1}']
)
def test_a_note_of_unknown_form_is_an_error_with_its_line(write: Write, text: str) -> None:
    with pytest.raises(RecordError, match="line 2: is no note of amct_onnx"):
        read_notes(write(f"#\n# amct_onnx: {text}\n"))


# the check


def check(records: dict[str, LayerRecord], facts: GraphFacts) -> None:
    check_record(records, facts, path="r.txt")


def test_a_record_without_factors_is_refused(facts: GraphFacts) -> None:
    for records in ({}, {"Conv_0": LayerRecord(tensor_balance_factor=(1.0, 1.0, 1.0))}):
        with pytest.raises(RecordError, match=r"record_file is empty, no layers to be quantized\. Please ensure"):
            check(records, facts)


def test_balance_factors_alone_are_fine_before_calibration(facts: GraphFacts) -> None:
    balanced = LayerRecord(tensor_balance_factor=(1.0, 1.0, 1.0))
    check_record({"Conv_0": balanced}, facts, path="r.txt", calibrated=False)
    check_record({"Conv_0": replace(CONV, scale_d=None)}, facts, path="r.txt", calibrated=False)
    check({"Conv_0": CONV, "Conv_1d": LayerRecord()}, facts)


def test_missing_factors_name_the_layer(facts: GraphFacts) -> None:
    with pytest.raises(RecordError) as caught:
        check(
            {
                "Conv_0": replace(CONV, scale_d=None),
                "Gemm_1": LayerRecord(scale_d=1.0),
                "MatMul_vv": LayerRecord(scale_d=1.0),
                "Pool_3": LayerRecord(scale_d=1.0),
            },
            facts,
        )
    lines = str(caught.value).splitlines()
    assert lines[0] == "r.txt: 3 mistakes"
    text = "in record_file, please check data calibration process!"
    assert lines[1] == f"  Conv_0: cannot find scale_d of layer Conv_0 {text}"
    assert lines[2] == f"  Gemm_1: cannot find scale_w of layer Gemm_1 {text}"
    assert lines[3] == f"  MatMul_vv: cannot find scale_w of layer MatMul_vv {text}"


def test_keys_must_be_quantizable_layers(facts: GraphFacts) -> None:
    with pytest.raises(RecordError) as caught:
        check({"Conv_0": CONV, "Nope": GEMM, "Relu_4": GEMM, "Gemm_bad": GEMM, "Relu_4:0": GEMM}, facts)
    message = str(caught.value)
    assert "Nope: find Nope failure in the model. Please match record_file and model" in message
    assert "layer Relu_4 of type Relu does not support quantization" in message
    assert "layer Gemm_bad does not support quantization (alpha is 2.0)" in message
    assert "find Relu_4:0 failure" in message
    assert not isinstance(caught.value, ValueError)


def test_tensor_keys_are_node_and_input_index(facts: GraphFacts) -> None:
    tensor = LayerRecord(scale_d=1.0, offset_d=-5, is_tensor_quantize=True)
    check({"MaxPool_5:0": tensor, "Add_6:1": replace(tensor, is_tensor_quantize=None)}, facts)
    with pytest.raises(RecordError, match="Add_6:1: a tensor_quantize entry has no weight"):
        check({"Add_6:1": GEMM}, facts)


def test_a_layer_whose_name_looks_like_a_tensor_key_is_a_layer(facts: GraphFacts) -> None:
    named = replace(facts.layers["Conv_0"], name="Add_6:1")
    both = replace(facts, nodes={**facts.nodes, "Add_6:1": "Conv"}, layers={**facts.layers, "Add_6:1": named})
    check({"Add_6:1": CONV}, both)
    check({"Add_6:1": LayerRecord(scale_d=1.0, is_tensor_quantize=True)}, both)


@pytest.mark.parametrize(
    ("key", "record", "what"),
    [
        ("Conv_0", replace(CONV, scale_w=(0.5,) * 3, offset_w=(0,) * 3), "Conv_0.scale_w: must have 1 or 4 elements"),
        ("Conv_0", replace(CONV, offset_w=(0,)), "scale_w and offset_w must have the same length, they have 4 and 1"),
        ("Gemm_1", replace(GEMM, scale_w=(0.5,) * 4, offset_w=(0,) * 4), "Gemm_1.scale_w: must have 1 elements"),
        ("Conv_0", replace(CONV, shift_bit=(1, 2)), "Conv_0.shift_bit: must have 1 or 4 elements"),
        ("Conv_0", replace(CONV, tensor_balance_factor=(1.0,)), "must have 3 elements, one for each input channel"),
        ("Pool_3", LayerRecord(scale_d=1.0, tensor_balance_factor=(1.0,)), "AveragePool does not support dmq_balancer"),
        ("Conv_0", replace(CONV, cluster=(1, 2)), "cluster: must have 16 or 32 elements, it has 2"),
        ("Conv_0", replace(CONV, scale_r=(1.0,)), "scale_r and offset_r must have the same length"),
    ],
)
def test_wrong_lengths(facts: GraphFacts, key: str, record: LayerRecord, what: str) -> None:
    with pytest.raises(RecordError) as caught:
        check({key: record}, facts)
    assert what in str(caught.value)
    assert not isinstance(caught.value, RecordValueError)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"scale_d": 0.0}, "scale_d: must be in (0, +inf), got 0.0"),
        ({"scale_d": -1.0}, "scale_d"),
        ({"scale_d": math.inf}, "scale_d"),
        ({"scale_d": math.nan}, "scale_d: must be in (0, +inf), got nan"),
        ({"offset_d": 128}, "offset_d: must be in [-128, 127], got 128"),
        ({"offset_d": -40000, "act_type": "INT16"}, "offset_d: must be in [-32768, 32767]"),
        ({"scale_w": (1.0, 1.0, math.nan, 0.0)}, "scale_w[2]: must be in (0, +inf), got nan"),
        ({"offset_w": (0, 1, 0, 0)}, "offset_w[1]: must be 0 (offset_w's value should be 0), got 1"),
        ({"tensor_balance_factor": (1.0, 0.0, 1.0)}, "tensor_balance_factor[1]: must be in [1.1920929e-07, 8388608]"),
        ({"tensor_balance_factor": (1.0, math.nan, 1.0)}, "tensor_balance_factor[1]"),
        ({"act_type": "INT7"}, "act_type: must be one of INT4, INT8, INT16, got INT7"),
        ({"wts_type": "INT16"}, "wts_type"),
        ({"op_data_type": "BF16"}, "op_data_type"),
        ({"fakequant_precision_mode": "FAST"}, "fakequant_precision_mode"),
        ({"cluster": (200,) * 16}, "cluster[0]: must be in [-128, 127]"),
        ({"scale_h": 0.0}, "scale_h"),
    ],
)
def test_values_out_of_range(facts: GraphFacts, change: dict[str, object], what: str) -> None:
    with pytest.raises(RecordValueError) as caught:
        check({"Conv_0": replace(CONV, **change)}, facts)  # type: ignore[arg-type]
    assert f"Conv_0.{what}" in str(caught.value)
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, RuntimeError)


def test_bounds_are_included(facts: GraphFacts) -> None:
    check({"Conv_0": replace(CONV, offset_d=-128, shift_bit=(0, 0, 0, 0))}, facts)
    factors = (2.0**-23, 2.0**23, 1.0)
    check({"Conv_0": replace(CONV, offset_d=127, tensor_balance_factor=factors)}, facts)
    check({"Conv_0": replace(CONV, offset_d=32767, act_type="INT16", scale_w=(1.0,), offset_w=(0,))}, facts)


def test_a_shift_that_would_be_ignored_is_refused(facts: GraphFacts) -> None:
    check({"Conv_0": replace(CONV, shift_bit=(0, 0, 0, 0))}, facts)
    with pytest.raises(RecordError, match="shift_bit is not support, please delete shift_bit of layer Conv_0"):
        check({"Conv_0": replace(CONV, shift_bit=(1, 1, 1, 1))}, facts)


def test_mistakes_of_all_kinds_are_reported_at_once(facts: GraphFacts) -> None:
    records = {"Conv_0": replace(CONV, scale_d=0.0), "Nope": GEMM, "Gemm_1": replace(GEMM, scale_d=None)}
    with pytest.raises(RecordValueError, match=r"r\.txt: 3 mistakes"):
        check(records, facts)
