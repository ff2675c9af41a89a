"""The command `amct_onnx` as a process of its own: what it writes, its exit codes, and what it says on stderr.

Each option is held against AMCT's functions called with the same settings and data: the result files must be the same,
byte for byte, and must not be the ones of a run without the option.
"""

from __future__ import annotations

import os
import re
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

import numpy as np
import onnx
import pytest
from flow import Feeds, Flow, build, images, normal, two_convs

import amct_onnx
from amct_onnx.cli.main import main

RESULTS = ("deploy_model.onnx", "fake_quant_model.onnx", "quant.json")
SHAPE = "x:2,3,6,6"


@dataclass
class Command:
    """`amct_onnx` in a folder, with a temporary folder of its own beside it."""

    folder: Path

    @property
    def temporary(self) -> Path:
        return self.folder.parent / "temporary"

    def left(self) -> list[Path]:
        """What a run left in the temporary folder; ONNX Runtime itself may leave something else."""
        return list(self.temporary.glob("*amct*"))

    def start(self, *words: str, **environment: str) -> subprocess.Popen[str]:
        self.temporary.mkdir(exist_ok=True)
        return subprocess.Popen(
            [sys.executable, "-m", "amct_onnx", *words],
            cwd=self.folder,
            env={**os.environ, "TMPDIR": str(self.temporary), **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        process = self.start(*words, **environment)
        out, err = process.communicate(timeout=120)
        assert "Traceback" not in err or environment.get("AMCT_LOG_LEVEL") == "DEBUG", err
        assert not self.left()
        return subprocess.CompletedProcess(words, process.returncode, out, err)

    def calibrate(self, *words: str, model: str = "float.onnx", prefix: str = "out/m") -> dict[str, bytes]:
        """A run that succeeds; its results by name."""
        result = self.run("calibration", "--model", model, "--save_path", prefix, *words)
        assert result.returncode == 0, result.stderr
        assert result.stdout == ""
        assert result.stderr.splitlines()[-2:] == [
            f"INFO - [AMCT]:[Utils]: The model file is saved in {prefix}_{kind}_model.onnx"
            for kind in ("deploy", "fake_quant")
        ]
        return {name: (self.folder / f"{prefix}_{name}").read_bytes() for name in RESULTS}

    def fail(self, *words: str, **environment: str) -> str:
        """A run that ends with code 1; its one ERROR, which may have a line for each mistake."""
        before = set(self.folder.rglob("*"))
        result = self.run("calibration", "--model", "float.onnx", "--save_path", "out/m", *words, **environment)
        assert result.returncode == 1, result.stderr
        head, mark, error = result.stderr.partition("ERROR - [AMCT]:[Command]: ")
        assert mark
        assert "ERROR" not in head + error
        new = {path.name for path in set(self.folder.rglob("*")) - before}
        assert new <= {"amct_log", "amct_onnx.log"}
        return error.rstrip("\n")


@pytest.fixture
def command(tmp_path: Path) -> Command:
    """`two_convs` in float.onnx and three batches in data/."""
    folder = tmp_path / "work"
    folder.mkdir()
    onnx.save(two_convs(), folder / "float.onnx")
    write(folder / "data", *(images(seed) for seed in (0, 1, 2)))
    return Command(folder)


def write(folder: Path, *batches: np.ndarray) -> None:
    folder.mkdir(exist_ok=True)
    for index, batch in enumerate(batches):
        batch.tofile(folder / f"{index:03d}.bin")


def data(folder: str = "data", shape: str = SHAPE, dtype: str = "float32") -> list[str]:
    return ["--input_shape", shape, "--data_dir", folder, "--data_types", dtype]


def expected(
    command: Command, *batches: Feeds, model: onnx.ModelProto | None = None, prefix: str = "m", **arguments: object
) -> dict[str, bytes]:
    """The results of AMCT's functions."""
    names = len(list(command.folder.parent.glob("flow*")))
    flow = Flow.of(model or two_convs(), command.folder.parent / f"flow{names}", prefix=prefix)
    flow.configure(**arguments).quantize().calibrate(batches).save()
    return {name: (flow.folder / f"{prefix}_{name}").read_bytes() for name in RESULTS}


def x(seed: int) -> dict[str, np.ndarray]:
    return {"x": images(seed)}


def test_it_writes_what_amcts_functions_write(command: Command) -> None:
    results = command.calibrate(*data())
    assert results == expected(command, x(0))
    assert stat.S_IMODE((command.folder / "out" / "m_quant.json").stat().st_mode) == 0o640
    written = {path.name for path in command.folder.rglob("*") if path.is_file()}
    assert written == {"float.onnx", "000.bin", "001.bin", "002.bin", "amct_onnx.log", *(f"m_{r}" for r in RESULTS)}


def test_option_model(command: Command) -> None:
    other = two_convs()
    other.graph.node[0].name = "renamed"
    (command.folder / "models").mkdir()
    onnx.save(other, command.folder / "models" / "other.onnx")
    assert command.calibrate(*data(), model="models/other.onnx") == expected(command, x(0), model=other)


@pytest.mark.parametrize("prefix", ["a/b/name", "plain"])
def test_option_save_path(command: Command, prefix: str) -> None:
    assert command.calibrate(*data(), prefix=prefix) == expected(command, x(0), prefix=Path(prefix).name)


def test_option_save_path_without_a_prefix(command: Command) -> None:
    result = command.run("calibration", "--model=float.onnx", "--save_path=results/", *data())
    assert result.returncode == 0
    assert {path.name for path in (command.folder / "results").iterdir()} == set(RESULTS)


def test_option_batch_num(command: Command) -> None:
    three = command.calibrate(*data(), "--batch_num", "3")
    assert three == expected(command, x(0), x(1), x(2), batch_num=3)
    assert three != command.calibrate(*data(), "--batch_num=1", prefix="one/m")


def test_option_data_dir(command: Command) -> None:
    write(command.folder / "other", images(7))
    other = command.calibrate(*data("other/"))
    assert other == expected(command, x(7))
    assert other != command.calibrate(*data(), prefix="first/m")


@pytest.mark.parametrize("shape", ["x:1,3,12,6", "x:-1,3,4,9", "x:2,3,-1,3"])
def test_option_input_shape(command: Command, shape: str) -> None:
    dims = [int(dim) for dim in shape[2:].split(",")]
    results = command.calibrate(*data(shape=shape))
    assert results == expected(command, {"x": images(0).reshape(dims)})
    assert results != expected(command, x(0))


def test_option_data_types_and_several_inputs(command: Command) -> None:
    """The same bytes as int32 and as float32 are other numbers; int32 inputs stay int32."""
    model = build(
        """g (float[N,4] a:0, int32[N,4] b) => (float[N,2] y) {
            f = Cast <to = 1> (b)
            s = Add (a_, f)
            [gemm] y = Gemm (s, w)
        }""".replace("a:0", "a_"),
        w=normal(3, 4, 2),
    )
    model.graph.input[0].name = model.graph.node[1].input[0] = "a:0"
    onnx.save(model, command.folder / "two.onnx")
    a, b = normal(1, 3, 4), np.arange(12, dtype=np.int32).reshape(3, 4) - 5
    write(command.folder / "a", a)
    write(command.folder / "b", b)
    words = ["--input_shape", "a:0:3,4;b:-1,4", "--data_dir", "a/;b/", "--data_type", "float32;int32"]
    results = command.calibrate(*words, model="two.onnx")
    assert results == expected(command, {"a:0": a, "b": b}, model=model)
    words[-1] = "float32;float32"
    refused = command.run("calibration", "--model", "two.onnx", "--save_path", "out/n", *words)
    assert refused.returncode == 1
    assert "ERROR - [AMCT]:[Command]: input 'b': the data are float32, the model takes int32" in refused.stderr


CFG = "common_config { hfmg_quantize { num_of_bins : 1024 asymmetric : false } }\n"


def test_option_calibration_config(command: Command) -> None:
    (command.folder / "quant.cfg").write_text("batch_num : 2\n" + CFG)
    results = command.calibrate(*data(), "--calibration_config", "quant.cfg")
    path = str(command.folder / "quant.cfg")
    assert results == expected(command, x(0), x(1), config_defination=path)
    assert results != expected(command, x(0), x(1), batch_num=2)


def test_batch_num_decides_where_the_cfg_says_nothing(command: Command) -> None:
    (command.folder / "quant.cfg").write_text(CFG)
    results = command.calibrate(*data(), "--calibration_config", "quant.cfg", "--batch_num", "2")
    (command.folder / "same.cfg").write_text("batch_num : 2\n" + CFG)
    assert results == expected(command, x(0), x(1), config_defination=str(command.folder / "same.cfg"))


def test_batch_num_of_the_cfg_wins_with_one_warning(command: Command) -> None:
    (command.folder / "quant.cfg").write_text("batch_num : 3\n" + CFG)
    words = ["--calibration_config", "quant.cfg", "--batch_num"]
    run = command.run("calibration", "--model", "float.onnx", "--save_path", "o/m", *data(), *words, "1")
    assert run.returncode == 0
    warnings = [line for line in run.stderr.splitlines() if "WARNING" in line]
    assert warnings == [
        "WARNING - [AMCT]:[Command]: --batch_num 1 is ignored: quant.cfg says batch_num : 3, and calibration runs that "
        "many batches."
    ]
    results = {name: (command.folder / "o" / f"m_{name}").read_bytes() for name in RESULTS}
    assert results == expected(command, x(0), x(1), x(2), config_defination=str(command.folder / "quant.cfg"))
    same = command.run("calibration", "--model", "float.onnx", "--save_path", "p/m", *data(), *words, "3")
    assert "WARNING" not in same.stderr


def test_a_shortened_calibration_is_mentioned(command: Command) -> None:
    run = command.run("calibration", "--model", "float.onnx", "--save_path", "o/m", *data())
    assert "Calibration runs 1 of the 3 batches in data; --batch_num says how many." in run.stderr
    run = command.run("calibration", "--model", "float.onnx", "--save_path", "o/m", *data(), "--batch_num=3")
    assert "Calibration runs" not in run.stderr


EVALUATOR = """
import numpy as np
import onnxruntime as ort
import amct_onnx as amct
from amct_onnx.common.cmd_line_utils import data_handler

class Evaluator:
    def calibration(self, modified_model):
        session = ort.InferenceSession(modified_model, amct.AMCT_SO)
        for batch in data_handler.load_data({'x': [2, 3, 6, 6]}, ['data/'], ['float32'], 2):
            session.run(None, batch)

customize_evaluator = Evaluator()
"""


def test_option_evaluator(command: Command) -> None:
    (command.folder / "src").mkdir()
    (command.folder / "src" / "evaluator.py").write_text(EVALUATOR)
    results = command.calibrate("--evaluator", "src/evaluator.py", "--batch_num", "2")
    assert results == expected(command, x(0), x(1), batch_num=2)
    assert [path.name for path in (command.folder / "src").iterdir()] == ["evaluator.py"]


def test_an_evaluator_with_too_few_batches_is_told_how_many_are_missing(command: Command) -> None:
    (command.folder / "e.py").write_text(EVALUATOR)
    error = command.fail("--evaluator", "e.py", "--batch_num", "5")
    assert re.search(r"conv1.*2 of 5|conv1.*3 more", error), error
    assert str(command.temporary) not in error


@pytest.mark.parametrize(
    ("script", "place"),
    [
        ("import nothing_like_this\n", "e.py:1: the script cannot be imported: ModuleNotFoundError"),
        (
            "class E:\n    def calibration(self, m):\n        1 / 0\n",
            "e.py:3: the script failed in calibration(): ZeroDiv",
        ),
        (
            "class E:\n    def calibration(self, m):\n        exit(0)\n",
            "e.py:3: the script failed in calibration(): it calls",
        ),
        ("class E:\n    def evaluate(self, m): ...\n", "e.py: no evaluator"),
    ],
)
def test_a_failing_evaluator_is_one_line_with_its_place(command: Command, script: str, place: str) -> None:
    (command.folder / "e.py").write_text(script)
    error = command.fail("--evaluator", "e.py")
    assert error.startswith(place), error
    assert "\n" not in error


def spoil_size(folder: Path) -> list[str]:
    (folder / "data" / "001.bin").write_bytes(b"123")
    return [*data(), "--batch_num", "2"]


def spoil_model(folder: Path) -> list[str]:
    (folder / "float.onnx").write_bytes(b"no model")
    return data()


def remove_model(folder: Path) -> list[str]:
    (folder / "float.onnx").unlink()
    return data()


def block_results(folder: Path) -> list[str]:
    (folder / "out").write_text("")
    return data()


def spoil_cfg(folder: Path) -> list[str]:
    (folder / "quant.cfg").write_text("batch_num : 1\nskip_layers : 'no'\n")
    return [*data(), "--calibration_config", "quant.cfg"]


def spoil_values(folder: Path) -> list[str]:
    np.full((2, 3, 6, 6), np.nan, np.float32).tofile(folder / "data" / "000.bin")
    return data()


@pytest.mark.parametrize(
    ("spoil", "parts"),
    [
        (lambda _: data("nowhere/"), ["nowhere/: the data folder does not exist"]),
        (lambda _: data("float.onnx"), ["float.onnx: is a file, give the folder"]),
        (lambda _: data(shape="X:2,3,6,6"), ["2 mistakes", "input 'X': the model has no such input", "input 'x'"]),
        (lambda _: data(shape="x:2,3,6"), ["the data have 3 dimensions, the model takes 4: [?,3,?,?]", "000.bin"]),
        (lambda _: data(shape="x:2,4,6,6"), ["the model takes [?,3,?,?]", "000.bin: has 864 bytes"]),
        (lambda _: data(dtype="float64"), ["the data are float64, the model takes float32", "takes 1728"]),
        (lambda _: [*data(), "--batch_num", "9"], ["The number of given data batches is not enough: it holds 3, 9"]),
        (lambda _: data(shape="x:108,3,1,2")[:-4] + data()[2:], ["000.bin: has 864 bytes, but float32 [108, 3, 1, 2]"]),
        (spoil_size, ["001.bin: has 3 bytes, but float32 [2, 3, 6, 6] takes 864"]),
        (spoil_model, ["float.onnx is not an ONNX model"]),
        (remove_model, ["The model file float.onnx does not exist"]),
        (block_results, ["out"]),
        (spoil_cfg, ["quant.cfg:2:1: skip_layers[0]: Layer no does not exist in the graph."]),
        (spoil_values, ["conv1", "NaN"]),
        (
            lambda _: [*data(), "--calibration_config", "no.cfg"],
            ["no.cfg: the simplified configuration does not exist"],
        ),
        (lambda _: ["--evaluator", "no.py"], ["no.py: the evaluator script does not exist"]),
        (lambda _: ["--evaluator", "."], ["is a folder, give the path of a Python script"]),
    ],
)
def test_a_mistake_is_one_error_and_code_1(
    command: Command, spoil: Callable[[Path], list[str]], parts: Sequence[str]
) -> None:
    error = command.fail(*spoil(command.folder))
    assert all(part in error for part in parts), error
    assert str(command.temporary) not in error
    assert "Unexpected" not in error


def test_a_batch_that_the_runtime_refuses_is_named(command: Command) -> None:
    model = build(
        """g (float[N,4] a, float[M,4] b) => (float[N,4] y) { s = Add (a, b) [gemm] y = Gemm (s, w) }""",
        w=normal(1, 4, 4),
    )
    onnx.save(model, command.folder / "float.onnx")
    write(command.folder / "a", normal(1, 3, 4), normal(2, 3, 4))
    write(command.folder / "b", normal(1, 3, 4), normal(2, 2, 4))
    words = ["--input_shape", "a:3,4;b:-1,4", "--data_dir", "a;b", "--data_types", "float32;float32"]
    error = command.fail(*words, "--batch_num", "2")
    assert error.startswith("a/001.bin, b/001.bin: ONNX Runtime cannot run the model with this batch: ")
    assert "\n" not in error.replace("\n", "", 1) or len(error) > 500


def test_a_wrong_command_line_is_code_2_and_touches_nothing(command: Command) -> None:
    before = set(command.folder.rglob("*"))
    result = command.run("calibration", "--modle", "float.onnx")
    assert result.returncode == 2
    assert "unknown option --modle, did you mean --model?" in result.stderr
    assert set(command.folder.rglob("*")) == before


def test_a_wrong_log_level_is_one_line(command: Command) -> None:
    result = command.run("calibration", "--model", "m", "--save_path", "s", *data(), AMCT_LOG_LEVEL="loud")
    assert result.returncode == 1
    assert result.stderr.startswith("ERROR - [AMCT]:[Command]: AMCT_LOG_LEVEL{'loud'} is invalid")
    assert len(result.stderr.splitlines()) == 1


def test_the_traceback_is_there_for_those_who_ask(command: Command) -> None:
    words = ["calibration", "--model", "float.onnx", "--save_path", "out/m", *data("nowhere")]
    assert "Traceback" in command.run(*words, AMCT_LOG_LEVEL="DEBUG").stderr
    assert "Traceback" not in (command.folder / "amct_log" / "amct_onnx.log").read_text()
    command.run(*words, AMCT_LOG_FILE_LEVEL="DEBUG")
    assert "Traceback" in (command.folder / "amct_log" / "amct_onnx.log").read_text()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no signals to send")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_tidies_up(command: Command, number: signal.Signals, code: int) -> None:
    script = (
        "import time\nclass E:\n    def calibration(self, m):\n        open('ready', 'w')\n        time.sleep(100)\n"
    )
    (command.folder / "e.py").write_text(script)
    process = command.start("calibration", "--model=float.onnx", "--save_path=out/m", "--evaluator=e.py")
    while not (command.folder / "ready").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    assert command.left()
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert "Traceback" not in err
    assert [line for line in err.splitlines() if line.startswith("ERROR")] == err.splitlines()[-1:]
    assert not command.left()
    assert not (command.folder / "out").exists()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no signals to send")
def test_ctrl_c_while_batches_run(command: Command) -> None:
    """Python handles a signal wherever its code runs next, which may be inside an operator."""
    write(command.folder / "many", images(0, 2, 300))
    for index in range(1, 200):
        (command.folder / "many" / f"{index:03d}.bin").symlink_to("000.bin")
    words = [*data("many", "x:2,3,300,300"), "--batch_num", "200"]
    process = command.start("calibration", "--model=float.onnx", "--save_path=out/m", *words)
    while not list(command.temporary.glob("*/modified_model.onnx")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    time.sleep(0.15)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert err.splitlines()[-1] == "ERROR - [AMCT]:[Command]: Interrupted."
    assert not command.left()


def test_help_into_a_pipe_that_nobody_reads(command: Command) -> None:
    process = command.start("calibration", "--help")
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == ""
    assert process.wait(60) == 0


def test_convert_calls_convert_qat_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls: list[tuple[str, ...]] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(amct_onnx, "convert_qat_model", lambda *arguments: calls.append(arguments), raising=False)
    assert main(["convert", "--model", "q.onnx", "--save_path=out/q"]) == 0
    assert main(["convert", "--mod=r.onnx", "--save", "r"]) == 0
    assert calls == [("q.onnx", "out/q"), ("r.onnx", "r")]


def quantized_layer(seed: int) -> onnx.ModelProto:
    """A Gemm between the nodes that a QAT exporter writes."""
    return build(
        """g (float[N,4] x) => (float[N,2] y) {
            q = QuantizeLinear (x, sx, z)
            d = DequantizeLinear (q, sx, z)
            e = DequantizeLinear (w, sw, z)
            [gemm] y = Gemm (d, e)
        }""",
        w=np.random.default_rng(seed).integers(-127, 128, (4, 2), np.int8),
        sx=np.float32(2**-5),
        sw=np.float32(2**-7),
        z=np.int8(0),
    )


def test_convert_writes_what_convert_qat_model_writes(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []
    for seed, words in enumerate((["--model=q0.onnx", "--save_path=out/a"], ["--mod", "q1.onnx", "--save", "b/"])):
        onnx.save(quantized_layer(seed), command.folder / f"q{seed}.onnx")
        result = command.run("convert", *words)
        assert result.returncode == 0, result.stderr
        assert result.stdout == ""
        folder, prefix = (command.folder / "out", "a_") if seed == 0 else (command.folder / "b", "")
        names = [f"{prefix}{name}" for name in RESULTS]
        assert {path.name for path in folder.iterdir()} == set(names)
        written.append([(folder / name).read_bytes() for name in names])
        monkeypatch.chdir(command.folder)
        amct_onnx.convert_qat_model(f"q{seed}.onnx", f"again{seed}/{prefix.rstrip('_')}")
        assert written[-1] == [(command.folder / f"again{seed}" / name).read_bytes() for name in names]
    assert written[0] != written[1]


@pytest.mark.parametrize("name", ["float.onnx", "no.onnx", "data/000.bin"])
def test_a_model_that_cannot_be_converted_is_one_error_and_code_1(command: Command, name: str) -> None:
    result = command.run("convert", "--model", name, "--save_path", "out/m")
    assert result.returncode == 1
    head, mark, error = result.stderr.partition("ERROR - [AMCT]:[Command]: ")
    assert mark
    assert "ERROR" not in head + error
    assert "Unexpected" not in error
    assert name in error
    assert not (command.folder / "out").exists()


def test_the_console_script_is_declared(tmp_path: Path) -> None:
    text = dedent(
        """
        from importlib.metadata import entry_points
        (script,) = entry_points(group="console_scripts", name="amct_onnx")
        from amct_onnx.cli.main import main
        assert script.load() is main
        """
    )
    subprocess.run([sys.executable, "-c", text], check=True, cwd=tmp_path, timeout=60)
