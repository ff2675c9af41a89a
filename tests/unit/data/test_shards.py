"""Files of many samples each, tar and parquet, and data behind URLs: what is found in them, and what errors say."""

from __future__ import annotations

import io
import pickle
import sys
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from PIL import Image
from pyarrow.parquet import write_table

from amct_onnx.data.data_source import DataSource
from amct_onnx.data.fingerprint import data_fingerprint
from amct_onnx.data.open_data import open_data
from amct_onnx.data.options import DataOptions
from amct_onnx.data.places import expanded
from amct_onnx.errors import DataError
from amct_onnx.graph.inputs import ModelInput

X = ModelInput(name="x", dtype="float32", shape=(None, 3, 8, 8), optional=False)
Y = ModelInput(name="y", dtype="float32", shape=(None, 3, 8, 8), optional=False)
MASK = ModelInput(name="mask", dtype="float32", shape=(None, 4), optional=False)


def opened(data: object, *inputs: ModelInput, **options: Any) -> DataSource:
    return open_data(data, inputs or (X,), DataOptions(images=options.pop("images", "raw"), **options))


def image(shade: int, kind: str = "png") -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), (shade, shade, shade)).save(stream, kind)
    return stream.getvalue()


def array(*values: float) -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.array(values, np.float32))
    return stream.getvalue()


def tar(path: Path, members: Mapping[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def shades(source: DataSource, name: str = "x") -> list[int]:
    return [round(float(row.flat[0])) for feed in source.unchecked() for row in feed[name]]


def table(path: Path, **columns: Sequence[object]) -> Path:
    write_table(pyarrow.table(dict(columns)), path, row_group_size=2)
    return path


def test_files_of_a_sample_share_their_name_up_to_the_first_dot(tmp_path: Path) -> None:
    members = {
        "__index__.json": b"[]",
        "./a/0001.cls": b"1",
        "./a/0001.PNG": image(10),
        "./a/0002.jpg": image(20, "jpeg"),
        "./a/0002.cls": b"2",
        "./b/._0003.png": b"what a Mac leaves behind",
        "./b/0003.webp": image(30, "webp"),
    }
    path = tar(tmp_path / "a.tar", members)
    assert shades(opened(path)) == [10, 20, 30]
    assert shades(opened(path, limit=2)) == [10, 20]


@pytest.mark.parametrize("inputs", [(X, Y, MASK), tuple(replace(v, shape=(1, *v.shape[1:])) for v in (X, Y, MASK))])
def test_inputs_are_fields_of_a_sample(inputs: Sequence[ModelInput], tmp_path: Path) -> None:
    members = {}
    for number in range(3):
        members |= {f"{number}.y.png": image(number), f"{number}.x.png": image(100 + number)}
        members |= {f"{number}.mask.npy": array(number, 0, 0, 0)}
    source = opened(tar(tmp_path / "a.tar", members), *inputs)
    feeds = list(source.unchecked())
    for name, wanted in (("x", [100, 101, 102]), ("y", [0, 1, 2]), ("mask", [0, 1, 2])):
        assert [round(float(row.flat[0])) for feed in feeds for row in feed[name]] == wanted
    assert source.parts is not None


def test_names_choose_a_field(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", {"0.left.png": image(1), "0.right.png": image(2)})
    assert shades(opened(path, names={"x": "right"})) == [2]
    assert shades(opened({"left": path}, names={"x": "left"})) == [1]
    with pytest.raises(DataError, match=r"have 'left\.png', 'right\.png', and none is clearly input 'x'; say which in"):
        opened(path)
    with pytest.raises(DataError, match="under the name 'middle'"):
        opened(path, names={"x": "middle"})


def test_shards_come_in_the_order_of_their_names_and_limit_takes_the_first(tmp_path: Path) -> None:
    for number in (1, 0, 2):
        tar(tmp_path / f"s-{number:02}.tar", {f"{index}.png": image(10 * number + index) for index in range(3)})
    (tmp_path / "README.md").write_text("not data")
    assert shades(opened(tmp_path)) == [0, 1, 2, 10, 11, 12, 20, 21, 22]
    assert shades(opened(f"{tmp_path}/s-{{01..02}}.tar")) == [10, 11, 12, 20, 21, 22]
    assert shades(opened([tmp_path / "s-02.tar", tmp_path / "s-00.tar"])) == [20, 21, 22, 0, 1, 2]
    (tmp_path / "s-02.tar").write_bytes(b"it is not reached")
    assert shades(opened(tmp_path, limit=4)) == [0, 1, 2, 10]


def test_patterns() -> None:
    assert expanded("a-{08..11}.tar") == ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]
    assert expanded("s3://b/{0..1}/{3..3}.tar") == ["s3://b/0/3.tar", "s3://b/1/3.tar"]
    assert expanded("plain {name}.tar") == ["plain {name}.tar"]
    for text in ("{5..3}.tar", "{0..2000000}.tar", "{0..9999}{0..9999}.tar"):
        with pytest.raises(DataError, match="this pattern is of"):
            expanded(text)


def test_a_shard_of_a_pattern_that_is_missing_is_named(tmp_path: Path) -> None:
    tar(tmp_path / "0.tar", {"0.png": image(0)})
    with pytest.raises(DataError, match=r"1\.tar: the data do not exist"):
        opened(f"{tmp_path}/{{0..1}}.tar")


def test_what_is_no_tar_file(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"no tar file at all" * 100)
    with pytest.raises(DataError, match=r"a\.tar: is no readable tar file"):
        opened(tmp_path)
    tar(tmp_path / "a.tar", {"readme.txt": b"nothing to see"})
    with pytest.raises(DataError, match=r"a\.tar: the tar files hold no image and no \.npy file"):
        opened(tmp_path)
    with tarfile.open(tmp_path / "b.tar.gz", "w:gz"):
        pass
    with pytest.raises(DataError, match=r"b\.tar\.gz: is compressed"):
        opened(tmp_path / "b.tar.gz")
    np.save(tmp_path / "c.npy", np.zeros(3))
    with pytest.raises(DataError, match=r"the folder mixes \.npy, \.tar files"):
        opened(tmp_path)


@pytest.mark.parametrize("what", ["broken image", "cut off", "no tar", "no image"])
def test_bad_parts_of_tar_files(what: str, tmp_path: Path) -> None:
    for shard in range(3):
        members = {f"{index}.png": image(10 * shard + index) for index in range(4)}
        if shard == 1 and what == "broken image":
            members["2.png"] = members["2.png"][:50]
        path = tar(tmp_path / f"{shard}.tar", members)
        if shard == 1 and what == "cut off":
            path.write_bytes(path.read_bytes()[: 512 * 5 + 40])
        if shard == 1 and what == "no tar":
            path.write_bytes(b"?" * 3000)
        if shard == 1 and what == "no image":
            tar(path, {**{k: v for k, v in members.items() if k != "2.png"}, "2.cls": b"1"})
    kept = {"broken image": [10, 11, 13], "cut off": [10, 11], "no tar": [], "no image": [10, 11, 13]}[what]
    source = opened(tmp_path, on_bad_data="skip", batch_size=4)
    assert shades(source) == [0, 1, 2, 3, *kept, 20, 21, 22, 23]
    if what == "no image":  # other files of a tar file are no samples
        assert not source.skipped
        return
    assert source.skipped
    assert ("1.tar: 2.png" if what == "broken image" else "1.tar") in source.skipped.first[0].why
    assert (source.skipped.files > 0) == (what in ("cut off", "no tar"))
    with pytest.raises(DataError, match=r"1\.tar"):
        list(opened(tmp_path, batch_size=4))


def test_a_sample_without_one_of_its_inputs(tmp_path: Path) -> None:
    members = {"0.x.png": image(1), "0.y.png": image(2), "1.x.png": image(3), "2.x.png": image(5), "2.y.png": image(6)}
    path = tar(tmp_path / "a.tar", members)
    with pytest.raises(DataError, match=r"a\.tar: sample 1: has no 'y', which others have"):
        list(opened(path, X, Y, batch_size=1))
    source = opened(path, X, Y, batch_size=1, on_bad_data="skip")
    assert shades(source) == [1, 5]
    assert source.skipped.samples == 1


def test_columns_of_parquet(tmp_path: Path) -> None:
    shades_ = [image(number) for number in range(5)]
    other = [image(100 + number) for number in range(5)]
    path = table(tmp_path / "a.parquet", label=[1] * 5, picture=shades_, text=["a"] * 5)
    assert shades(opened(path)) == [0, 1, 2, 3, 4]
    assert shades(opened(path, limit=3)) == [0, 1, 2]
    path = table(tmp_path / "b.parquet", left=shades_, right=[{"bytes": one, "path": None} for one in other])
    assert shades(opened(path, names={"x": "right"})) == [100, 101, 102, 103, 104]
    assert shades(opened(path, X, Y, names={"x": "left", "y": "right"}), "y") == [100, 101, 102, 103, 104]
    with pytest.raises(DataError, match=r"has columns with bytes 'left', 'right'; say in names=\{'x': \.\.\.\}"):
        opened(path)
    with pytest.raises(DataError, match="has no column with bytes, and those 'label'"):
        opened(table(tmp_path / "c.parquet", label=[1]))
    with pytest.raises(DataError, match="has the images in column 'left', the files before it in 'picture'"):
        opened([tmp_path / "a.parquet", table(tmp_path / "d.parquet", left=shades_)])


def test_shards_that_are_all_bad(tmp_path: Path) -> None:
    for number in range(2):
        (tmp_path / f"{number}.tar").write_bytes(b"?" * 2000)
        (tmp_path / f"{number}.parquet").write_bytes(b"?" * 2000)
    with pytest.raises(DataError, match=r"hold no image .* as far as they can be read: .*0\.tar"):
        opened(f"{tmp_path}/{{0..1}}.tar", on_bad_data="skip")
    with pytest.raises(DataError, match=r"none of the data can be read.*: 2 files.*0\.parquet"):
        opened(f"{tmp_path}/{{0..1}}.parquet", on_bad_data="skip")


def test_bad_parts_of_parquet_files(tmp_path: Path) -> None:
    rows: list[bytes | None] = [image(0), image(1)[:50], None, image(3)]
    table(tmp_path / "a.parquet", image=rows)
    (tmp_path / "b.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(DataError, match=r"b\.parquet: is no readable parquet file"):
        opened(tmp_path)
    source = opened(tmp_path, on_bad_data="skip")
    assert shades(source) == [0, 3]
    assert (source.skipped.samples, source.skipped.files) == (2, 1)
    assert any("a.parquet: row 2: holds no bytes of an image" in one.why for one in source.skipped.first)


def test_without_an_extra_the_message_names_the_pip_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = table(tmp_path / "a.parquet", image=[image(0)])
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    monkeypatch.setitem(sys.modules, "upath", None)
    with pytest.raises(DataError, match=r'pyarrow: pip install "amct-onnx\[parquet\]"'):
        opened(path)
    with pytest.raises(DataError, match=r'pip install "amct-onnx\[remote\]"'):
        opened("s3://bucket/folder")
    with pytest.raises(DataError, match=r'pip install "amct-onnx\[parquet\]"'):
        opened(path, on_bad_data="skip")


def test_urls_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"memory://nothing/here: the data do not exist"):
        opened("memory://nothing/here")
    with pytest.raises(DataError, match="nope://bucket: cannot be opened"):
        opened("nope://bucket")


def test_a_file_url_is_a_path(tmp_path: Path) -> None:
    path = tar(tmp_path / "a b.tar", {"0.png": image(7)})
    assert shades(opened(path.as_uri())) == [7]


def test_a_part_opens_only_its_shard(tmp_path: Path) -> None:
    for number in range(3):
        tar(tmp_path / f"{number}.tar", {f"{index}.png": image(10 * number + index) for index in range(2)})
        table(tmp_path / f"{number}.parquet", image=[image(10 * number + index) for index in range(2)])
    for kind in ("tar", "parquet"):
        source = opened([tmp_path / f"{number}.{kind}" for number in range(3)], batch_size=2)
        parts = pickle.loads(pickle.dumps(source.parts))
        (tmp_path / f"0.{kind}").unlink()
        (tmp_path / f"2.{kind}").unlink()
        assert [feed["x"][0, 0, 0, 0] for feed in parts.read(1, 2)] == [10]
        with pytest.raises(DataError, match=rf"2\.{kind}: cannot be read|2\.{kind}: is no readable"):
            list(parts.read(1, 3))


def test_the_fingerprint_tells_other_shards(tmp_path: Path) -> None:
    from upath import UPath

    url = UPath("memory://fingerprint")
    url.mkdir(exist_ok=True)
    for number in range(2):
        tar(tmp_path / f"{number}.tar", {"0.png": image(number)})
        (url / f"{number}.tar").write_bytes((tmp_path / f"{number}.tar").read_bytes())
    pattern = f"{tmp_path}/{{0..1}}.tar"
    before = [data_fingerprint(data) for data in (pattern, str(url))]
    assert before == [data_fingerprint(data) for data in (pattern, str(url))]
    more = tar(tmp_path / "1.tar", {"0.png": image(1), "1.png": image(2)})
    (url / "1.tar").write_bytes(more.read_bytes())
    assert not set(before) & {data_fingerprint(data) for data in (pattern, str(url))}
