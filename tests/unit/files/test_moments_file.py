"""The file of moments: there and back, whole or not at all, and one user error for whatever is wrong with it."""

from __future__ import annotations

import stat
import threading
from pathlib import Path

import numpy as np
import pytest

from amct_onnx.errors import OutputError, RecordError
from amct_onnx.files.moments_file import moments_path, open_moments, write_moments
from amct_onnx.numerics.statistics.moments import SecondMoments

AGAIN = "run all batches of the calibration model again"


def moments(seed: int, units: int = 2, block: int = 3) -> SecondMoments:
    rng = np.random.default_rng(seed)
    gram = rng.normal(size=(units, block, block)).astype(np.float32).astype(np.float64)  # as exact as the file
    return SecondMoments(columns=seed + 5, mean=rng.normal(size=(units, block)), gram=gram)


@pytest.fixture
def path(tmp_path: Path) -> str:
    """A file of two layers."""
    path = moments_path(tmp_path / "record.txt")
    write_moments(path, "id", {"卷积/1": moments(0), "second": moments(1, 1, 4)})
    return path


def test_there_and_back(path: str) -> None:
    assert path.endswith("record.txt.moments.npz")
    assert stat.S_IMODE(Path(path).stat().st_mode) == 0o640
    with open_moments(path) as file:
        assert file.calibration == "id"
        for layer, shape, wanted in (("second", (1, 4), moments(1, 1, 4)), ("卷积/1", (2, 3), moments(0))):
            found = file.read(layer, *shape)
            assert found.columns == wanted.columns
            np.testing.assert_array_equal(found.mean, wanted.mean)
            np.testing.assert_array_equal(found.gram, wanted.gram)


def test_the_same_moments_are_the_same_bytes(path: str, tmp_path: Path) -> None:
    write_moments(str(tmp_path / "again"), "id", {"卷积/1": moments(0), "second": moments(1, 1, 4)})
    assert (tmp_path / "again").read_bytes() == Path(path).read_bytes()


def test_threads_read_at_the_same_time(path: str) -> None:
    found: list[float] = []
    with open_moments(path) as file:
        threads = [
            threading.Thread(target=lambda: found.extend(file.read("second", 1, 4).mean[0, 0] for _ in range(50)))
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == [moments(1, 1, 4).mean[0, 0]] * 200


def test_missing_file_layer_or_shape(path: str, tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=f"absent: the file is missing, and layers with ada_quantize .*{AGAIN}"):
        open_moments(str(tmp_path / "absent")).__enter__()
    with open_moments(path) as file:
        with pytest.raises(RecordError, match=f"layer third is missing; {AGAIN}"):
            file.read("third", 1, 1)
        with pytest.raises(RecordError, match=f"moments of layer second do not fit the layer; {AGAIN}"):
            file.read("second", 2, 4)


def test_every_cut_and_every_damaged_byte_is_a_user_error_or_harmless(path: str) -> None:
    data = Path(path).read_bytes()

    def read() -> None:
        with open_moments(path) as file:
            file.read("second", 1, 4)
            file.read("卷积/1", 2, 3)

    messages = []
    spoilt = [data[:size] for size in range(0, len(data), 37)]
    spoilt += [data[:k] + bytes([data[k] ^ 0x5A]) + data[k + 1 :] for k in range(0, len(data), 11)]
    for content in spoilt:
        Path(path).write_bytes(content)
        try:
            read()
        except RecordError as error:
            messages.append(str(error))
    assert all(path in message and AGAIN in message and "\n" not in message for message in messages)
    assert len(messages) > 0.5 * len(spoilt)  # some bytes are dates and attributes of the archive


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04", "array"], ids=["empty", "text", "zip", "array"])
def test_another_file_is_refused(path: str, content: bytes | str) -> None:
    if isinstance(content, str):
        with Path(path).open("wb") as file:
            np.save(file, np.zeros(3))
    else:
        Path(path).write_bytes(content)
    with pytest.raises(RecordError, match=AGAIN):
        open_moments(path).__enter__()


def test_a_folder_in_its_place_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "r.moments.npz").mkdir()
    with pytest.raises(OutputError, match="it is a folder"):
        write_moments(str(tmp_path / "r.moments.npz"), "id", {"second": moments(1)})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["r.moments.npz"]
