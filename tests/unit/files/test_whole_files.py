"""Files are written whole or not at all, and every failure is one of our errors."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from amct_onnx.errors import ConfigError, FileMissingError, OutputError, RecordError
from amct_onnx.files.whole_files import Mistakes, atomic_path, read_text, write_atomic


def everything_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_written_text_and_bytes_come_back(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a.txt", "Größe\n")
    write_atomic(tmp_path / "b.bin", b"\x00\xff")
    assert read_text(tmp_path / "a.txt") == "Größe\n"
    assert (tmp_path / "b.bin").read_bytes() == b"\x00\xff"


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
def test_files_have_mode_0640_and_new_folders_0750(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        write_atomic(tmp_path / "x" / "y" / "a.txt", "a")
    finally:
        os.umask(before)
    modes = {name: stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("x", "x/y", "x/y/a.txt")}
    assert modes == {"x": 0o750, "x/y": 0o750, "x/y/a.txt": 0o640}


def test_an_existing_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old and long")
    write_atomic(path, "new")
    assert path.read_text() == "new"
    assert everything_below(tmp_path) == ["a.txt"]


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real.txt").write_text("old")
    (tmp_path / "link.txt").symlink_to("real.txt")
    write_atomic(tmp_path / "link.txt", "new")
    assert (tmp_path / "link.txt").is_symlink()
    assert (tmp_path / "real.txt").read_text() == "new"


def test_a_folder_in_place_of_the_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    with pytest.raises(OutputError, match="results: cannot be written, it is a folder; give another path"):
        write_atomic(tmp_path / "results", "text")
    assert everything_below(tmp_path) == ["results"]


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="check that the folder is writable"):
        write_atomic(tmp_path / "file" / "sub" / "a.txt", "text")
    assert everything_below(tmp_path) == ["file"]


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_stays_as_it_was(tmp_path: Path) -> None:
    folder = tmp_path / "sealed"
    folder.mkdir(mode=0o550)
    with pytest.raises(OutputError, match="Permission denied"):
        write_atomic(folder / "a.txt", "text")
    assert everything_below(tmp_path) == ["sealed"]


@pytest.mark.skipif(not os.path.exists("/dev/null"), reason="needs a device")
def test_a_device_is_not_replaced() -> None:
    with pytest.raises(OutputError, match="not a regular file"):
        write_atomic("/dev/null", "text")


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), RuntimeError("library"), KeyboardInterrupt()]
)
def test_a_failing_writer_leaves_the_old_file_and_nothing_else(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "model.onnx"
    path.write_text("old")
    expected = OutputError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected), atomic_path(path) as temporary:  # noqa: PT012 - the error rises inside
        temporary.write_text("half")
        raise error
    assert path.read_text() == "old"
    assert everything_below(tmp_path) == ["model.onnx"]


def test_the_temporary_path_is_a_sibling_with_the_same_suffix(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "model.onnx") as temporary:
        assert (temporary.parent, temporary.suffix) == (tmp_path, ".onnx")
        temporary.write_bytes(b"x")


def test_a_missing_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(FileMissingError, match=r"a\.json: the config file does not exist"):
        read_text(tmp_path / "a.json", what="config file")
    (tmp_path / "file").write_text("")
    with pytest.raises(FileMissingError):
        read_text(tmp_path / "file" / "a.json")


def test_what_is_no_text_file_raises_the_error_of_the_caller(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"ok\n\xff\xfe")
    with pytest.raises(RecordError, match=r"binary:2: .*no UTF-8 text"):
        read_text(tmp_path / "binary", error=RecordError)
    with pytest.raises(ConfigError, match="is a folder"):
        read_text(tmp_path)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_text("a\0b")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_text(tmp_path / ("x" * 5000))


def test_byte_order_mark_and_windows_line_ends_are_dropped(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"\xef\xbb\xbfa\r\nb\n")
    assert read_text(tmp_path / "a") == "a\nb\n"


def test_mistakes_read_as_a_line_or_a_list() -> None:
    mistakes = Mistakes("a.json")
    assert not mistakes
    mistakes.add("Conv_0.x", "is bad")
    assert str(mistakes) == "a.json: Conv_0.x: is bad"
    mistakes.add("Conv_0.x", "is bad")
    mistakes.add("", "is short")
    assert str(mistakes) == "a.json: 2 mistakes\n  Conv_0.x: is bad\n  is short"
