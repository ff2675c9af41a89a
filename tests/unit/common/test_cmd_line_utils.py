"""AMCT's historical modules, imported and used as AMCT's sample does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from amct_onnx.common.cmd_line_utils import data_handler
from amct_onnx.common.cmd_line_utils.arguments_handler import process_data_shape, process_multi_data_path
from amct_onnx.common.cmd_line_utils.data_handler import load_bin_data, load_data
from amct_onnx.errors import AmctError


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for name, dtype, count in (("a", np.float32, 3), ("b", np.int64, 2)):
        (tmp_path / name).mkdir()
        for index in range(count):
            np.full((2, 2), index, dtype).tofile(tmp_path / name / f"{index}.bin")
    return tmp_path


def test_load_data_yields_a_dictionary_for_each_batch(data: Path) -> None:
    batches = list(
        data_handler.load_data({"x": [2, 2], "y": [4]}, [str(data / "a"), f"{data / 'b'}/"], ["float32", "int64"], 2)
    )
    assert [list(batch) for batch in batches] == [["x", "y"], ["x", "y"]]
    assert [(batch["x"].shape, batch["y"].shape) for batch in batches] == [((2, 2), (4,))] * 2
    assert [(batch["x"].dtype, batch["y"].dtype) for batch in batches] == [(np.float32, np.int64)] * 2
    assert [(batch["x"][0, 0], batch["y"][0]) for batch in batches] == [(0, 0), (1, 1)]


def test_without_a_number_it_yields_what_the_first_folder_has(data: Path) -> None:
    assert len(list(load_data({"x": [2, 2]}, [str(data / "a")], ["float32"]))) == 3
    both = load_data({"y": [4], "x": [4]}, [str(data / "b"), str(data / "a")], ["int64", "float32"])
    assert len(list(both)) == 2


def test_too_few_files_are_a_runtime_error_before_the_first_batch(data: Path) -> None:
    folders, types = [str(data / "a"), str(data / "b")], ["float32", "int64"]
    for number in (None, 3):
        with pytest.raises(RuntimeError, match="The number of given data batches is not enough") as caught:
            next(load_data({"x": [2, 2], "y": [4]}, folders, types, number))
        assert isinstance(caught.value, AmctError)


def test_other_mistakes_have_amcts_types(data: Path) -> None:
    with pytest.raises(TypeError, match=r"Unsupported data type\[float31\]! .* Did you mean float32"):
        next(load_data({"x": [2, 2]}, [str(data / "a")], ["float31"]))
    with pytest.raises(ValueError, match=r"0\.bin: has 16 bytes, but float32 \[3, 2\] takes 24"):
        next(load_data({"x": [3, 2]}, [str(data / "a")], ["float32"]))
    with pytest.raises(ValueError, match="2 inputs need as many folders and types, got 1 and 1"):
        next(load_data({"x": [3], "y": [3]}, [str(data / "a")], ["float32"]))
    with pytest.raises(RuntimeError, match="does not exist"):
        next(load_data({"x": [2, 2]}, [str(data / "none")], ["float32"]))


def test_load_bin_data(data: Path) -> None:
    array = load_bin_data(str(data / "a" / "2.bin"), "float32", [-1, 4])
    np.testing.assert_array_equal(array, np.full((1, 4), 2, np.float32))
    with pytest.raises(TypeError, match="Unsupported data type"):
        load_bin_data(str(data / "a" / "2.bin"), "complex64", [4])
    with pytest.raises(ValueError, match="cannot be read"):
        load_bin_data(str(data / "no.bin"), "float32", [4])
    with pytest.raises(ValueError, match="has 16 bytes"):
        load_bin_data(str(data / "a" / "2.bin"), "float32", [5])
    with pytest.raises(ValueError, match="is no shape"):
        load_bin_data(str(data / "a" / "2.bin"), "float32", [-1, -1])


def test_shapes_stand_behind_the_last_colon() -> None:
    assert process_data_shape("a:1,3,8,8;b:0:-1,4") == {"a": [1, 3, 8, 8], "b:0": [-1, 4]}
    for wrong in ("", "a", "1,2", ":1,2", "a:", "a:x", "a:1;a:2", "a:1;;b:2"):
        with pytest.raises(ValueError, match=r"Invalid input_shape\."):
            process_data_shape(wrong)


def test_folders_become_absolute(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(data)
    assert process_multi_data_path("a/;b") == [str(data.resolve() / "a"), str(data.resolve() / "b")]
