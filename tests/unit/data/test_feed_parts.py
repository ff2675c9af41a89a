"""Feeds by number, in any process: the same as iterating gives, in whatever parts they are read."""

from __future__ import annotations

import io
import itertools
import pickle
import subprocess
import sys
import tarfile
import uuid
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from amct_onnx.data.data_source import DataSource
from amct_onnx.data.feed_parts import FeedParts
from amct_onnx.data.open_data import open_data
from amct_onnx.data.options import DataOptions
from amct_onnx.errors import DataError
from amct_onnx.graph.inputs import ModelInput

Feed = dict[str, np.ndarray]
FREE, ONE, TWO = (None, 3, 8, 8), (1, 3, 8, 8), (2, 3, 8, 8)


def model(*shape: int | None, name: str = "x", dtype: str = "float32") -> ModelInput:
    return ModelInput(name=name, dtype=dtype, shape=shape, optional=False)


def opened(data: object, *inputs: ModelInput, **options: Any) -> DataSource:
    return open_data(data, inputs, DataOptions(**options))


def parts_of(source: DataSource) -> FeedParts:
    assert source.parts is not None
    return source.parts


def sent(parts: FeedParts) -> FeedParts:
    """As a worker gets them."""
    copy: FeedParts = pickle.loads(pickle.dumps(parts))
    return copy


def assert_equal(found: Sequence[Feed], wanted: Sequence[Feed]) -> None:
    assert len(found) == len(wanted)
    for one, two in zip(found, wanted, strict=True):
        assert one.keys() == two.keys()
        for name, array in one.items():
            assert (array.dtype, array.shape) == (two[name].dtype, two[name].shape)
            assert array.tobytes() == two[name].tobytes()


def samples(count: int, *, seed: int = 0, dtype: str = "float32") -> np.ndarray:
    return np.random.default_rng(seed).integers(-100, 100, (count, 3, 8, 8)).astype(dtype)


def images(folder: Path, count: int) -> Path:
    folder.mkdir(exist_ok=True, parents=True)
    pixels = np.random.default_rng(1).integers(0, 256, (count, 9, 11, 3)).astype(np.uint8)
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(folder / f"{number:03}.png")
    return folder


def files(folder: Path, arrays: Sequence[np.ndarray], kind: str = "npy") -> Path:
    folder.mkdir(exist_ok=True)
    for number, array in enumerate(arrays):
        path = folder / f"{number:03}.{kind}"
        if kind == "npy":
            np.save(path, array)
        elif kind == "npz":
            np.savez_compressed(path, x=array)
        else:
            array.tofile(path)
    return folder


def saved(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(exist_ok=True)
    np.save(path, array)
    return path


def archive(path: Path, **arrays: np.ndarray) -> Path:
    path.parent.mkdir(exist_ok=True)
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]
    return path


def uneven(array: np.ndarray) -> list[np.ndarray]:
    """Parts of 1, 2, 3, ... samples."""
    ends = np.cumsum(np.arange(1, 20))
    return list(np.split(array, ends[ends < len(array)]))


def tars(folder: Path, samples: Sequence[dict[str, bytes]], *, each: int = 4) -> str:
    """Tar files of some samples each, as WebDataset has them; their pattern."""
    folder.mkdir(exist_ok=True)
    shards = [samples[start : start + each] for start in range(0, len(samples), each)]
    for number, shard in enumerate(shards):
        with tarfile.open(folder / f"shard-{number:03}.tar", "w") as archive:
            for index, sample in enumerate(shard):
                for ending, content in sample.items():
                    member = tarfile.TarInfo(f"train/{number}_{index:04}.{ending}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
    return f"{folder}/shard-{{000..{len(shards) - 1:03}}}.tar"


def encoded(folder: Path, count: int) -> list[bytes]:
    return [file.read_bytes() for file in sorted(images(folder, count).iterdir())]


def image_tars(folder: Path, count: int) -> str:
    found = encoded(folder / "png", count)
    return tars(folder / "tars", [{"txt": b"a text", "png": image, "cls": b"3"} for image in found])


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def parquet(folder: Path, count: int, *, plain: bool = False) -> Path:
    """Parquet files as Hugging Face writes them, in groups of three rows; or with a plain column of bytes."""
    import pyarrow
    from pyarrow.parquet import write_table

    found, files = encoded(folder / "png", count), folder / "parquet"
    files.mkdir()
    for number, start in enumerate(range(0, count, 4)):
        part = found[start : start + 4]
        column = part if plain else [{"bytes": image, "path": "a.png"} for image in part]
        table = pyarrow.table({"label": list(range(len(part))), "image": column})
        write_table(table, files / f"train-{number:05}.parquet", row_group_size=3)
    return files


def in_memory(folder: Path) -> str:
    """The files of a folder behind a URL that fsspec opens."""
    from upath import UPath

    url = UPath(f"memory://{uuid.uuid4().hex}")
    url.mkdir(parents=True)
    for file in folder.iterdir():
        (url / file.name).write_bytes(file.read_bytes())
    return str(url)


FORMS: dict[str, Callable[[Path, int], object]] = {
    "npy": lambda p, n: saved(p / "x.npy", samples(n)),
    "npy of integers": lambda p, n: saved(p / "x.npy", samples(n, dtype="int8")),
    "npy in Fortran order": lambda p, n: saved(p / "x.npy", np.asfortranarray(samples(n))),
    "npz": lambda p, n: archive(p / "x.npz", x=samples(n), labels=np.arange(n)),
    "npz in Fortran order": lambda p, n: archive(p / "x.npz", x=np.asfortranarray(samples(n))),
    "dict of paths": lambda p, n: {"x": saved(p / "x.npy", samples(n))},
    "folder of images": lambda p, n: images(p / "images", n),
    "list of images": lambda p, n: sorted(images(p / "images", n).iterdir(), reverse=True),
    "folder of npy batches": lambda p, n: files(p / "f", uneven(samples(n))),
    "folder of npy samples": lambda p, n: files(p / "f", list(samples(n))),
    "folder of npy, some empty": lambda p, n: files(p / "f", [samples(2), samples(0), samples(n), samples(0)]),
    "folder of npz batches": lambda p, n: files(p / "f", uneven(samples(n)), "npz"),
    "folder of npz samples": lambda p, n: files(p / "f", list(samples(n)), "npz"),
    "folder of bin batches": lambda p, n: files(p / "f", uneven(samples(n)), "bin"),
    "runs in one npy": lambda p, n: saved(p / "x.npy", samples(2 * n).reshape(n, 2, 3, 8, 8)),
    "tars of images": image_tars,
    "folder of tars of images": lambda p, n: Path(image_tars(p, n)).parent,
    "tars of npy samples": lambda p, n: tars(p / "t", [{"npy": npy(x)} for x in samples(n)]),
    "tars of npy batches": lambda p, n: tars(p / "t", [{"npy": npy(x)} for x in uneven(samples(n))], each=1),
    "parquet of images": parquet,
    "parquet of images as bytes": lambda p, n: sorted(parquet(p, n, plain=True).iterdir()),
    "images behind a URL": lambda p, n: in_memory(images(p / "images", n)),
    "tars of images behind a URL": lambda p, n: in_memory(Path(image_tars(p, n)).parent),
    "parquet of images behind a URL": lambda p, n: in_memory(parquet(p, n)),
    "npy behind a URL": lambda p, n: in_memory(saved(p / "f" / "x.npy", samples(n)).parent) + "/x.npy",
    "npz behind a URL": lambda p, n: in_memory(archive(p / "f" / "x.npz", x=samples(n)).parent) + "/x.npz",
    "folder of npy behind a URL": lambda p, n: in_memory(files(p / "f", uneven(samples(n)))),
    "folder of npz behind a URL": lambda p, n: in_memory(files(p / "f", uneven(samples(n)), "npz")),
    "runs in one npz": lambda p, n: archive(p / "x.npz", x=samples(2 * n).reshape(n, 2, 3, 8, 8)),
}


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    count=st.integers(2, 9),
    shape=st.sampled_from([FREE, ONE, TWO]),
    batch_size=st.sampled_from([None, 1, 2, 3]),
    limit=st.sampled_from([None, None, 2, 5]),
    cuts=st.lists(st.integers(0, 20), max_size=4),
)
def test_any_partition_gives_what_iterating_gives(
    form: str,
    count: int,
    shape: tuple[int | None, ...],
    batch_size: int | None,
    limit: int | None,
    cuts: list[int],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    data = FORMS[form](tmp_path_factory.mktemp("data"), count)
    options = {"images": "unit"} if "images" in form else {}
    source = opened(data, model(*shape), batch_size=batch_size, limit=limit, **options)
    wanted = list(source.unchecked())
    parts = sent(parts_of(source))
    assert parts.total == len(wanted)
    borders = [0, *sorted(cut % (parts.total + 1) for cut in cuts), parts.total]
    for first, last in itertools.pairwise(borders):
        assert_equal(list(parts.read(first, last)), wanted[first:last])
    counts = np.cumsum([0, *map(source.rule.count, wanted)])
    assert [parts.place(feed) for feed in range(parts.total + 1)] == counts.tolist()


def test_parts_of_several_inputs(tmp_path: Path) -> None:
    inputs = (model(None, 3, 8, 8), model(None, 4, name="y"), model(4, name="constant"))
    data = {
        "x": images(tmp_path / "images", 7),
        "y": saved(tmp_path / "y.npy", np.arange(28.0).reshape(7, 4)),
        "constant": np.arange(4),
    }
    source = opened(data, *inputs, images="unit", batch_size=2)
    wanted, parts = list(source.unchecked()), sent(parts_of(source))
    assert_equal([feed for number in (0, 1, 2, 3) for feed in parts.read(number, number + 1)], wanted)


def test_a_feed_is_read_without_the_files_in_front_and_behind(tmp_path: Path) -> None:
    folder = images(tmp_path / "images", 10)
    source = opened(folder, model(*FREE), images="unit", batch_size=2)
    parts, wanted = parts_of(source), list(source.unchecked())
    for number in (0, 3, 6, 9):
        (folder / f"{number:03}.png").unlink()
    assert_equal(list(parts.read(2, 3)), wanted[2:3])
    with pytest.raises(DataError, match=r"006\.png"):
        list(parts.read(2, 4))


def test_a_worker_of_its_own_reads_the_same(tmp_path: Path) -> None:
    source = opened(images(tmp_path / "images", 5), model(*FREE), images="torch", batch_size=2)
    (tmp_path / "parts").write_bytes(pickle.dumps(parts_of(source)))
    code = (
        "import pickle, sys\n"
        "parts = pickle.load(open('parts', 'rb'))\n"
        "feeds = list(parts.read(1, 3))\n"
        "pickle.dump(feeds, open('feeds', 'wb'))\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    assert_equal(pickle.loads((tmp_path / "feeds").read_bytes()), list(source.unchecked())[1:])


@pytest.mark.parametrize("what", ["missing", "cut off"])
@pytest.mark.parametrize("form", ["npy", "npz", "folder of npz batches", "folder of bin batches", "runs in one npz"])
def test_a_file_that_broke_since_is_named(form: str, what: str, tmp_path: Path) -> None:
    source = opened(FORMS[form](tmp_path, 12), model(*FREE))
    parts = parts_of(source)
    for file in [file for file in tmp_path.rglob("*") if file.is_file()]:
        if what == "missing":
            file.unlink()
        else:
            file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(DataError, match=str(tmp_path)):
        list(parts.read(0, parts.total))


@pytest.mark.parametrize(
    "data",
    [
        samples(4),
        [samples(2), samples(2)],
        (samples(1) for _ in range(3)),
        {"x": samples(4)},
        [(samples(2),), (samples(2),)],
        samples(4)[:, None],
    ],
    ids=["array", "list", "generator", "dict", "tuples", "runs"],
)
def test_what_only_this_process_can_read_has_no_parts(data: object) -> None:
    assert opened(data, model(*FREE)).parts is None


def test_files_of_different_shapes_that_are_joined_have_no_parts(tmp_path: Path) -> None:
    folder = files(tmp_path / "f", [np.ones((1, size), "float32") for size in (3, 3, 4)])
    assert opened(folder, model(None, None), batch_size=2).parts is None
    assert parts_of(opened(folder, model(None, None))).total == 3


def test_the_sample_that_is_nan_has_the_same_number_in_any_part(tmp_path: Path) -> None:
    data = samples(6)
    data[4, 0, 0, 0] = np.nan
    source = opened(saved(tmp_path / "x.npy", data), model(*FREE), batch_size=2)
    with pytest.raises(DataError, match="sample 4 of all"):
        list(parts_of(source).read(2, 3))


class Coupled:
    """A network that mixes the rows of axis 0, so that each feed is one sample."""

    def __call__(self, feed: Feed) -> dict[str, np.ndarray]:
        return {"y": feed["x"] - feed["x"].mean(axis=0)}

    def is_rowwise(self, inputs: Collection[str]) -> bool:
        return False

    def close(self) -> None:
        pass


@pytest.mark.parametrize(
    ("form", "batch_size", "total"), [("npy", 3, 4), ("folder of images", 4, 3), ("folder of npy batches", None, 4)]
)
def test_feeds_that_are_one_sample_each(form: str, batch_size: int | None, total: int, tmp_path: Path) -> None:
    options = DataOptions(batch_size=batch_size, images="unit" if "images" in form else None)
    source = open_data(FORMS[form](tmp_path, 10), [model(*FREE)], options, Coupled())
    assert source.rule.whole
    wanted, parts = list(source.unchecked()), sent(parts_of(source))
    assert parts.total == len(wanted) == total
    assert_equal([feed for number in range(total) for feed in parts.read(number, number + 1)], wanted)
    assert [parts.place(feed) for feed in range(total + 1)] == list(range(total + 1))
