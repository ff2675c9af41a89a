"""What a bad record or output folder gets: one line that says what, where and what to do, nothing half-written."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import pytest
from flow import Flow, build, everything_below, images, normal, two_convs
from refusal import refused

import amct_onnx as amct
from amct_onnx.errors import (
    AmctError,
    FileMissingError,
    ModelError,
    OutputError,
    RecordError,
    RecordValueError,
)


@pytest.fixture
def flow(tmp_path: Path) -> Flow:
    """A finished run of two layers: each file can be spoilt and used again."""
    return Flow.of(two_convs(), tmp_path).run({"x": images(0)})


# Records


def edit_record(flow: Flow, pattern: str, replacement: str) -> None:
    text = Path(flow.record).read_text()
    changed = re.sub(pattern, replacement, text, count=1)
    assert changed != text
    Path(flow.record).write_text(changed)


CONV1_SCALE_D = r"scale_d: [0-9.e+-]+"


@pytest.mark.parametrize(
    ("pattern", "replacement", "error", "parts"),
    [
        (CONV1_SCALE_D, "scale_d: 0", RecordValueError, [r"conv1\.scale_d: must be in \(0, \+inf\), got 0"]),
        (CONV1_SCALE_D, "scale_d: nan", RecordValueError, [r"conv1\.scale_d: must be in", "got nan"]),
        (CONV1_SCALE_D, "scale_d: inf", RecordValueError, [r"conv1\.scale_d: must be in", "got inf"]),
        (CONV1_SCALE_D, "scale_d: -0.5", RecordValueError, [r"conv1\.scale_d: must be in", "got -0.5"]),
        (r"offset_d: -?\d+", "offset_d: 300", RecordValueError, [r"conv1\.offset_d", r"\[-128, 127\], got 300"]),
        (r"offset_w: 0", "offset_w: 1", RecordValueError, [r"conv1\.offset_w", "offset_w's value should be 0"]),
        (r"scale_w: [0-9.e+-]+", "scale_w: 0", RecordValueError, [r"conv1\.scale_w", r"must be in \(0, \+inf\)"]),
        (r"    scale_w: [0-9.e+-]+\n", "", RecordError, ["record.txt: conv1", "1 or 4 elements|same length"]),
        (r"scale_w: [0-9.e+-]+", "scale_w: 0.5", RecordError, ["scale_w of layer conv1 does not fit", "quantize"]),
        (CONV1_SCALE_D, "scale_d: many", RecordError, [r"record\.txt:\d+:\d+: ", "correct the record file"]),
        (r"record \{", "rekord {", RecordError, [r"record\.txt:2:", "rekord"]),
        (r'key: "conv1"', 'key: "Conv1"', RecordError, ["find Conv1 failure in the model", "mean 'conv1'"]),
        (r'key: "conv1"', 'key: "sterm"', RecordError, ["find sterm failure", "Its layers are conv1, conv2"]),
        (r'key: "conv1"', 'key: "conv7:0"', RecordError, ["find conv7:0 failure in the model", "mean 'conv"]),
        (CONV1_SCALE_D, r"\g<0>\n    shift_bit: 2", RecordError, ["shift_bit is not support, please delete"]),
        (r"scale_d:", "scale_x:", RecordError, ["scale_x", "did you mean", "all fields"]),
        (r'key: "conv1"', 'key: "relu"', RecordError, ["conv1|relu"]),
        (r'key: "conv1"', 'key: "conv2"', RecordError, ["conv2", "occurs twice"]),
        (rf"    {CONV1_SCALE_D}\n", "", RecordError, ["cannot find scale_d of layer conv1", "check data calibration"]),
        (r"    scale_w(.|\n)*?wts_type", "    wts_type", RecordError, ["conv1", "scale_w"]),
    ],
)  # fmt: skip
def test_a_record_that_was_edited_into_nonsense(
    flow: Flow, pattern: str, replacement: str, error: type[AmctError], parts: list[str]
) -> None:
    edit_record(flow, pattern, replacement)
    before = everything_below(flow.folder)
    with pytest.raises(error) as caught:
        flow.save()
    message = str(caught.value)
    assert type(caught.value) is error, message
    assert re.search(".*".join(parts), message, re.DOTALL), message
    assert "\n" not in message or re.fullmatch(r".*: \d+ mistakes(\n  [^\n]+)+", message), message
    assert everything_below(flow.folder) == before


@pytest.mark.parametrize("content", ["", "\n", "# nothing here\n"])
def test_an_empty_record(flow: Flow, content: str) -> None:
    Path(flow.record).write_text(content)
    with refused(
        flow.folder, RecordError, "record_file is empty, no layers to be quantized", "calibration is finished"
    ):
        flow.save()


def test_a_record_without_one_of_the_layers(flow: Flow) -> None:
    text = Path(flow.record).read_text()
    Path(flow.record).write_text(text[: text.rindex("record {")])
    with refused(flow.folder, RecordError, "cannot find scale_d of layer conv2", "waiting for 1 more: conv2"):
        flow.save()


def test_an_unknown_key_is_named_before_batches_are_missed(tmp_path: Path) -> None:
    flow = Flow.of(two_convs(), tmp_path).configure(batch_num=2).quantize().calibrate([{"x": images(0)}])
    edit_record(flow, r'key: "conv1"', 'key: "convl"')
    with pytest.raises(RecordError, match=r"record\.txt: convl: find convl failure in the model.* mean 'conv\d'\?$"):
        flow.save()


def test_several_unknown_keys_are_named_together(flow: Flow) -> None:
    edit_record(flow, r'key: "conv1"', 'key: "first"')
    edit_record(flow, r'key: "conv2"', 'key: "second"')
    with refused(flow.folder, RecordError, "2 mistakes", "find first failure", "find second failure", mistakes=2):
        flow.save()


def test_a_record_that_does_not_exist(flow: Flow) -> None:
    Path(flow.record).unlink()
    with refused(flow.folder, FileMissingError, r"record\.txt: the record file does not exist, check the path"):
        flow.save()


def test_a_record_that_is_no_text(flow: Flow) -> None:
    Path(flow.record).write_bytes(b"\xff\xfe\x00\x80")
    with refused(flow.folder, RecordError, r"record\.txt:1: the record file is no UTF-8 text"):
        flow.save()


def forget_calibration(flow: Flow) -> None:
    """Make the record look like one of AMCT, which does not say which quantize_model call began it."""
    edit_record(flow, r"\A# amct_onnx calibration: [0-9a-f]{16}\n", "")


def test_a_record_of_another_model_with_the_same_names(flow: Flow, tmp_path: Path) -> None:
    model = two_convs()
    for tensor in model.graph.initializer:
        tensor.CopyFrom(onnx.numpy_helper.from_array(1.37 * onnx.numpy_helper.to_array(tensor) ** 3, tensor.name))
    other = Flow.of(model, tmp_path / "other").run({"x": images(0)})
    with refused(tmp_path, RecordError, "belongs to another quantize_model call", "pass the two files of one call"):
        amct.save_model(flow.modified, other.record, str(tmp_path / "new"))
    forget_calibration(other)
    with refused(
        tmp_path, RecordError, r"record\.txt: scale_w of layer conv1 does not fit", "belongs to another model"
    ):
        amct.save_model(flow.modified, other.record, str(tmp_path / "new"))


def test_a_record_of_another_model_with_other_names(flow: Flow, tmp_path: Path) -> None:
    model = build("g (float[N,3,H,W] x) => (float[N,3,H,W] y) { [other] y = Conv (x, w) }", w=normal(1, 3, 3, 1, 1))
    other = Flow.of(model, tmp_path / "other").run({"x": images(0)})
    forget_calibration(other)
    with refused(tmp_path, RecordError, "conv1"):
        amct.save_model(flow.modified, other.record, str(tmp_path / "new"))


@pytest.mark.parametrize("kind", ["model", "deploy", "fake_quant"])
def test_save_model_needs_the_model_of_quantize_model(flow: Flow, kind: str) -> None:
    model = getattr(flow, kind)
    with refused(
        flow.folder, ModelError, re.escape(model), "not written by quantize_model", "pass its modified_onnx_file"
    ):
        amct.save_model(model, flow.record, str(flow.folder / "new"))


# Output folders


def each_output(flow: Flow, place: Path) -> list[Callable[[], None]]:
    """Each function, writing one of its files to `place`."""
    elsewhere = flow.folder / "elsewhere"
    elsewhere.mkdir()
    return [
        lambda: amct.create_quant_config(str(place / "f"), flow.model),
        lambda: amct.create_quant_config(str(elsewhere / "c"), flow.model, updated_model=str(place / "f")),
        lambda: amct.quantize_model(flow.config, flow.model, str(place / "f"), str(elsewhere / "r")),
        lambda: amct.quantize_model(flow.config, flow.model, str(elsewhere / "m"), str(place / "f")),
        lambda: amct.save_model(flow.modified, flow.record, str(place / "f")),
    ]


def test_a_folder_that_cannot_be_made(flow: Flow) -> None:
    """Root may write anywhere, so the folder is one that nobody can make: its parent is a file."""
    (flow.folder / "file").write_text("x")
    for call in each_output(flow, flow.folder / "file" / "sub"):
        with refused(
            flow.folder,
            OutputError,
            r"(?=.*file/sub)(?=.*annot (be )?writ).*([Cc](heck|hoose).* writable|is a file and no folder)",
        ):
            call()


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder(flow: Flow) -> None:
    sealed = flow.folder / "sealed"
    sealed.mkdir(mode=0o550)
    for call in each_output(flow, sealed):
        with refused(flow.folder, OutputError, "sealed", "Permission denied", "writable"):
            call()


def test_a_folder_in_place_of_the_file(flow: Flow) -> None:
    (flow.folder / "place" / "f").mkdir(parents=True)
    for call in each_output(flow, flow.folder / "place")[:4]:
        with refused(flow.folder, OutputError, r"(?=.*place/f)(?=.*annot (be )?writ)"):
            call()


@pytest.mark.parametrize("where", ["os.replace", "ir.save"])
def test_a_full_disk(flow: Flow, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """A disk cannot be filled here; the two calls that write are made to fail as it would."""
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def fail(*_: Any, **__: Any) -> None:
        raise full

    if where == "os.replace":
        monkeypatch.setattr(os, "replace", fail)
    else:
        monkeypatch.setattr(ir, "save", fail)
    calls = each_output(flow, flow.folder / "new")
    for call in calls if where == "os.replace" else calls[1:]:
        before = {path: content for path, content in everything_below(flow.folder).items() if content is not None}
        with pytest.raises(OutputError, match=r"No space left on device.*(not full|has room)"):
            call()
        after = {path: content for path, content in everything_below(flow.folder).items() if content is not None}
        assert after == before
