"""Batches in folders: what is read, and every mistake at once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from flow import build
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from amct_onnx.data.input_texts import DATA_TYPES, InputFolder
from amct_onnx.data.raw_folders import check_signature, find_batches, read_array
from amct_onnx.errors import ModelError
from amct_onnx.files.whole_files import Mistakes
from amct_onnx.graph.inputs import ModelInput, model_inputs


def folder(path: Path, *arrays: np.ndarray) -> Path:
    path.mkdir(exist_ok=True)
    for index, array in enumerate(arrays):
        array.tofile(path / f"{index}.bin")
    return path


def entry(path: Path, *, shape: tuple[int, ...] = (2, 3), dtype: str = "float32", name: str = "x") -> InputFolder:
    return InputFolder(name=name, shape=shape, dtype=dtype, folder=str(path))


def lines(mistakes: Mistakes) -> list[str]:
    return [str(mistake) for mistake in mistakes]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(DATA_TYPES), st.lists(st.integers(1, 4), min_size=1, max_size=4), st.data(), st.integers(0, 2**32)
)
def test_reading_undoes_tofile(tmp_path: Path, dtype: str, shape: list[int], data: st.DataObject, seed: int) -> None:
    array = np.random.default_rng(seed).integers(0, 2, shape).astype(dtype)
    array.tofile(tmp_path / "a.bin")
    given_shape = list(shape)
    if data.draw(st.booleans()):
        given_shape[data.draw(st.integers(0, len(shape) - 1))] = -1
    got = read_array(tmp_path / "a.bin", dtype, given_shape)
    assert got.dtype == array.dtype
    np.testing.assert_array_equal(got, array)


def test_batches_are_the_files_by_name(tmp_path: Path) -> None:
    data = tmp_path / "d"
    data.mkdir()
    (data / "sub").mkdir()
    (data / ".hidden").write_bytes(b"x")
    for name, value in (("b", 2), ("a", 1), ("10", 0)):
        np.full((2, 3), value, np.float32).tofile(data / name)
    mistakes = Mistakes(None)
    batches = find_batches([entry(data)], 2, mistakes)
    assert not mistakes
    assert (len(batches.files), batches.available) == (2, 3)
    assert [batches.read(i)["x"][0, 0] for i in range(2)] == [0, 1]


def test_all_mistakes_of_folders_and_files_at_once(tmp_path: Path) -> None:
    good, short = np.zeros((2, 3), np.float32), np.zeros(5, np.float32)
    (tmp_path / "file").write_bytes(b"")
    few, wrong = folder(tmp_path / "few", good), folder(tmp_path / "wrong", good, short)
    mistakes = Mistakes(None)
    entries = [entry(tmp_path / name) for name in ("none", "file", "few", "wrong")]
    batches = find_batches([*entries, entry(wrong, shape=(-1, 2))], 2, mistakes)
    assert batches.files == ()
    assert lines(mistakes) == [
        f"{tmp_path / 'none'}: the data folder does not exist, check the path",
        f"{tmp_path / 'file'}: is a file, give the folder that holds the data files",
        f"{few}: The number of given data batches is not enough: it holds 1, 2 are needed; every file is one batch",
        f"{wrong / '1.bin'}: has 20 bytes, but float32 [2, 3] takes 24",
        f"{wrong / '1.bin'}: has 20 bytes, but float32 [-1, 2] takes a multiple of 8",
    ]


def test_files_of_a_wrong_size_are_counted(tmp_path: Path) -> None:
    data = folder(tmp_path / "d", *[np.zeros(1, np.float32)] * 8)
    mistakes = Mistakes(None)
    find_batches([entry(data)], 8, mistakes)
    assert len(lines(mistakes)) == 6
    assert lines(mistakes)[-1] == f"{data}: 3 more files have a wrong size"


def test_an_empty_file_is_no_batch_of_any_size(tmp_path: Path) -> None:
    mistakes = Mistakes(None)
    find_batches([entry(folder(tmp_path / "d", np.zeros(0, np.float32)), shape=(-1, 3))], 1, mistakes)
    assert "has 0 bytes" in lines(mistakes)[0]


def test_the_inputs_of_a_model() -> None:
    model = build(
        """g (float[N,3] x, int32[4] i, float16[?] h, float s, float[2] w) => (float[N,3] y) { y = Relu(x) }""",
        w=np.zeros(2, np.float32),
    )
    assert model_inputs(ir.serde.deserialize_model(model)) == (
        ModelInput(name="x", dtype="float32", shape=(None, 3), optional=False),
        ModelInput(name="i", dtype="int32", shape=(4,), optional=False),
        ModelInput(name="h", dtype="float16", shape=(None,), optional=False),
        ModelInput(name="s", dtype="float32", shape=(), optional=False),
        ModelInput(name="w", dtype="float32", shape=(2,), optional=True),
    )
    assert [value.batch_name for value in model_inputs(ir.serde.deserialize_model(model))] == ["N", "", "", "", ""]


def test_a_negative_size_of_an_input_is_an_open_one() -> None:
    model = build("g (float[N,3,H] x) => (float[N,3,H] y) { y = Relu(x) }")
    for axis in (0, 2):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_value = -1
    (found,) = model_inputs(ir.serde.deserialize_model(model))
    assert (found.shape, found.batch_name) == ((None, 3, None), "")


def test_inputs_for_which_no_data_can_be_given_are_refused() -> None:
    text = "g ({} x, float[N] z) => (float[N] y) {{ y = Relu(z) }}"
    for kind, what in (("seq(float[N])", "is a sequence"), ("optional(float[N])", "is optional")):
        model = build(text.format(kind))
        with pytest.raises(ModelError, match=f"Input 'x' of the model {what}, and calibration gives tensors only"):
            model_inputs(ir.serde.deserialize_model(model))
    model = build(text.format("float[N]"))
    model.graph.input[0].name = ""
    with pytest.raises(ModelError, match="An input of the model has no name"):
        model_inputs(ir.serde.deserialize_model(model))


WANTED = (
    ModelInput(name="image", dtype="float32", shape=(None, 3, 8), optional=False),
    ModelInput(name="index", dtype="int32", shape=(4,), optional=False),
    ModelInput(name="free", dtype="", shape=None, optional=True),
)


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ([("image", (2, 3, 8), "float32"), ("index", (4,), "int32")], []),
        ([("image", (-1, 3, 8), "float32"), ("index", (-1,), "int32"), ("free", (1, 1), "bool")], []),
        (
            [("imag", (2, 3, 8), "float32"), ("index", (4,), "int32")],
            [
                "input 'imag': the model has no such input, did you mean 'image'?",
                "input 'image': the model needs it, and no data are given for it",
            ],
        ),
        (
            [("image", (2, 3), "float64"), ("index", (5,), "int64"), ("zzz", (1,), "int8")],
            [
                "input 'image': the data are float64, the model takes float32",
                "input 'image': the data have 2 dimensions, the model takes 3: [?,3,8]",
                "input 'index': the data are int64, the model takes int32",
                "input 'index': the data have the shape [5], the model takes [4]",
                "input 'zzz': the model has no such input, it has 'image', 'index', 'free'",
            ],
        ),
        (
            [("image", (-1, 4, 8), "float32"), ("index", (4,), "int32")],
            ["input 'image': the data have the shape [-1, 4, 8], the model takes [?,3,8]"],
        ),
    ],
)
def test_data_are_held_against_the_model(entries: list[tuple[str, tuple[int, ...], str]], expected: list[str]) -> None:
    mistakes = Mistakes(None)
    folders = [InputFolder(name=name, shape=shape, dtype=dtype, folder="d") for name, shape, dtype in entries]
    check_signature(folders, WANTED, mistakes)
    assert lines(mistakes) == expected
