"""Models with external data: from any number of files, to one file beside the model, whole pairs only."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from flow import build, everything_below, normal
from onnx import external_data_helper, numpy_helper

from amct_onnx.errors import AmctError, FileMissingError, ModelFileError, OutputError
from amct_onnx.files import onnx_file
from amct_onnx.files.onnx_file import load_model, save_model_file
from amct_onnx.graph.tensors import array_of

WEIGHTS = {"w1": normal(1, 256, 300), "w2": normal(2, 300, 8)}  # w1 is mapped, w2 is read at once


def model() -> onnx.ModelProto:
    return build("g (float[N,256] x) => (float[N,8] y) { a = MatMul (x, w1) y = MatMul (a, w2) }", **WEIGHTS)


def external(path: Path, *, files: int = 1) -> Path:
    """`model()` at `path`, its weights in one file `weights0.bin` or in one each."""
    proto = model()
    for index, tensor in enumerate(proto.graph.initializer):
        external_data_helper.set_external_data(tensor, f"weights{index % files}.bin")
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(proto, path)
    return path


def values(file: Path) -> dict[str, np.ndarray]:
    """The weights of a model as `onnx`, not this package, reads them."""
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(file).graph.initializer}


def check_weights(file: Path) -> None:
    found = values(file)
    assert found.keys() == WEIGHTS.keys()
    for name, array in WEIGHTS.items():
        np.testing.assert_array_equal(found[name], array)


def locations(file: Path) -> set[str]:
    tensors = onnx.load(file, load_external_data=False).graph.initializer
    return {entry.value for tensor in tensors for entry in tensor.external_data if entry.key == "location"}


# What is read


@pytest.mark.parametrize("files", [1, 2])
def test_weights_come_from_any_number_of_files(tmp_path: Path, files: int) -> None:
    loaded = load_model(external(tmp_path / "in" / "m.onnx", files=files))
    for name, array in WEIGHTS.items():
        tensor = loaded.graph.initializers[name].const_value
        assert tensor is not None
        assert isinstance(tensor, ir.ExternalTensor) == (name == "w1")
        np.testing.assert_array_equal(array_of(tensor), array)
    save_model_file(loaded, tmp_path / "out" / "m.onnx")
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"m.onnx", "m.onnx.data"}
    assert locations(tmp_path / "out" / "m.onnx") == {"m.onnx.data"}
    check_weights(tmp_path / "out" / "m.onnx")


def test_a_model_and_its_data_may_be_links_into_one_folder(tmp_path: Path) -> None:
    """As a cache of downloads holds them: the data lies outside the folder of the link, beside the model's own file."""
    source = external(tmp_path / "blobs" / "m.onnx")
    view = tmp_path / "snapshot"
    view.mkdir()
    for name in (source.name, "weights0.bin"):
        (view / name).symlink_to(source.parent / name)
    save_model_file(load_model(view / "m.onnx"), tmp_path / "copy.onnx")
    check_weights(tmp_path / "copy.onnx")


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-8])


def move_out(path: Path) -> None:
    shutil.move(path, path.parent.parent / path.name)
    path.symlink_to(path.parent.parent / path.name)


def make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("spoil", "error", "parts"),
    [
        (Path.unlink, FileMissingError, ["Tensor w2 of", r"m\.onnx", r"weights1\.bin", "missing: copy it there"]),
        (shorten, ModelFileError, [r"weights1\.bin of", r"m\.onnx", "tensor w2 ends at byte 9600, the file at 9592"]),
        (move_out, ModelFileError, [r"weights1\.bin of tensor w2", r"m\.onnx", "outside the folder of the model"]),
        (make_folder, ModelFileError, [r"weights1\.bin of tensor w2", r"m\.onnx", "no regular file"]),
    ],
)
def test_a_data_file_that_does_not_fit(
    tmp_path: Path, spoil: Callable[[Path], Any], error: type[AmctError], parts: list[str]
) -> None:
    source = external(tmp_path / "in" / "m.onnx", files=2)
    spoil(source.parent / "weights1.bin")
    with pytest.raises(error) as caught:
        load_model(source)
    assert re.search(".*".join(parts), str(caught.value))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "parts"),
    [
        ("length", "4", "Tensor w2 .* malformed .*length 4, and it takes 9600 bytes"),
        ("offset", "1000000000", "truncated: tensor w2 ends at byte 1000009600, the file at"),
        ("offset", "-4", "offset.*non-negative|-4"),
        ("length", "many", "many"),
    ],
)
def test_a_place_that_does_not_fit_the_tensor(tmp_path: Path, key: str, value: str, parts: str) -> None:
    source = external(tmp_path / "m.onnx")
    proto = onnx.load(source, load_external_data=False)
    tensor = proto.graph.initializer[1]
    kept = {entry.key: entry.value for entry in tensor.external_data} | {key: value}
    del tensor.external_data[:]
    for name, text in kept.items():
        tensor.external_data.add(key=name, value=text)
    source.write_bytes(proto.SerializeToString())
    with pytest.raises(ModelFileError, match=parts) as caught:
        load_model(source)
    assert "m.onnx" in str(caught.value)


def test_external_data_of_an_attribute(tmp_path: Path) -> None:
    proto = build("g (float[N,256] x) => (float[N,300] y) { w = Constant <value_float = 0.0> () y = MatMul (x, w) }")
    tensor = numpy_helper.from_array(WEIGHTS["w1"], "inside")
    (tmp_path / "inside.bin").write_bytes(tensor.raw_data)
    external_data_helper.set_external_data(tensor, "inside.bin")
    tensor.ClearField("raw_data")
    del proto.graph.node[0].attribute[:]
    proto.graph.node[0].attribute.append(onnx.helper.make_attribute("value", tensor))
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    save_model_file(load_model(tmp_path / "m.onnx"), tmp_path / "out" / "m.onnx")
    saved = onnx.load(tmp_path / "out" / "m.onnx")
    np.testing.assert_array_equal(numpy_helper.to_array(saved.graph.node[0].attribute[0].t), WEIGHTS["w1"])
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["m.onnx"]
    (tmp_path / "inside.bin").unlink()
    with pytest.raises(FileMissingError, match=r"Tensor inside of .*inside\.bin"):
        load_model(tmp_path / "m.onnx")


# What is written


def test_a_model_below_the_limit_is_one_file_and_above_it_a_pair(tmp_path: Path) -> None:
    onnx.save(model(), tmp_path / "m.onnx")
    size = sum(array.nbytes for array in WEIGHTS.values())
    for limit, wanted in ((size + 1, {"m.onnx"}), (size, {"m.onnx", "m.onnx.data"})):
        folder = tmp_path / str(limit)
        save_model_file(load_model(tmp_path / "m.onnx"), folder / "m.onnx", embedded_limit=limit)
        assert {file.name for file in folder.iterdir()} == wanted
        assert {file.stat().st_mode & 0o777 for file in folder.iterdir()} == {0o640}
        check_weights(folder / "m.onnx")


def test_a_model_may_replace_itself(tmp_path: Path) -> None:
    source = external(tmp_path / "m.onnx")
    for _ in range(2):  # the second time its data file is replaced too
        save_model_file(load_model(source), source)
        assert locations(source) == {"m.onnx.data"}
        check_weights(source)


def test_the_weights_of_another_model_are_not_overwritten(tmp_path: Path) -> None:
    source = external(tmp_path / "m.onnx")
    os.rename(source, tmp_path / "other.onnx")
    os.rename(tmp_path / "weights0.bin", tmp_path / "m.onnx.data")
    proto = onnx.load(tmp_path / "other.onnx", load_external_data=False)
    for tensor in proto.graph.initializer:
        next(entry for entry in tensor.external_data if entry.key == "location").value = "m.onnx.data"
    (tmp_path / "other.onnx").write_bytes(proto.SerializeToString())
    before = everything_below(tmp_path)
    with pytest.raises(OutputError, match=r"m\.onnx\.data, which holds those of .*other\.onnx.*another name"):
        save_model_file(load_model(tmp_path / "other.onnx"), tmp_path / "m.onnx")
    assert everything_below(tmp_path) == before


def test_a_data_file_that_is_not_used_any_more_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    target = tmp_path / "out" / "m.onnx"
    save_model_file(load_model(external(tmp_path / "m.onnx")), target)
    onnx.save(model(), tmp_path / "small.onnx")
    save_model_file(load_model(tmp_path / "small.onnx"), target)
    check_weights(target)
    assert "m.onnx.data is not used any more" in caplog.text


# What goes wrong while it is written: the old pair or nothing, never a half


@pytest.fixture(params=[False, True], ids=["new", "old pair"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A path to write to, with or without a pair that is there already, of other weights."""
    path = tmp_path / "out" / "m.onnx"
    path.parent.mkdir()
    if request.param:
        proto = model()
        proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(-WEIGHTS["w1"], "w1"))
        onnx.save(proto, path, save_as_external_data=True, location="m.onnx.data", size_threshold=0)
    return path


def check_nothing_written(tmp_path: Path, target: Path, *parts: str) -> None:
    loaded, before = load_model(external(tmp_path / "in" / "m.onnx")), everything_below(target.parent)
    with pytest.raises(OutputError) as caught:
        save_model_file(loaded, target)
    assert re.search(".*".join((r"Cannot write .*m\.onnx: ", *parts)), str(caught.value))
    assert everything_below(target.parent) == before


def test_too_little_room_is_seen_before_anything_is_written(
    tmp_path: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(onnx_file.shutil, "disk_usage", lambda _: usage)
    check_nothing_written(tmp_path, target, r"needs 0\.00 GB, and .* has 0\.00 GB left", "Make room")


def test_a_disk_that_is_full_half_way(tmp_path: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tobytes = ir.Tensor.tofile

    def tofile(self: Any, file: Any) -> None:
        if self.name == "w2":
            raise OSError(28, "No space left on device")
        tobytes(self, file)

    monkeypatch.setattr(ir.Tensor, "tofile", tofile)
    check_nothing_written(tmp_path, target, "No space left on device", "has room")


@pytest.mark.parametrize("fails", ["m.onnx", "m.onnx.data"])
def test_a_move_that_fails(tmp_path: Path, target: Path, fails: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Say because another process has the file open, on Windows."""
    replace = os.replace

    def move(old: Any, new: Any) -> None:
        if Path(new) == target.parent / fails and not Path(old).name.startswith("old_"):
            raise PermissionError(13, "Permission denied")
        replace(old, new)

    monkeypatch.setattr(onnx_file.os, "replace", move)
    check_nothing_written(tmp_path, target, "Permission denied")


def test_a_model_never_stands_beside_the_data_of_another(
    tmp_path: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whenever the process is killed: at no moment do model and data exist that do not belong together."""
    loaded, replace, seen = load_model(external(tmp_path / "in" / "m.onnx")), os.replace, []

    def look() -> None:
        data = target.with_name("m.onnx.data")
        if target.exists():
            seen.append((target.read_bytes(), data.read_bytes()))

    def move(old: Any, new: Any) -> None:
        look()
        replace(old, new)
        look()

    look()
    old = seen[:]
    monkeypatch.setattr(onnx_file.os, "replace", move)
    save_model_file(loaded, target)
    new = seen[-1]
    check_weights(target)
    assert set(seen) == {*old, new}
    assert not old or (old[0][0] != new[0] and old[0][1] != new[1])
