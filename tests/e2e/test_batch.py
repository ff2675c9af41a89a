"""`batch`: many jobs from one file, each as a call of `quantize` makes it; what is done is kept, what fails is told."""

from __future__ import annotations

import inspect
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import batch as batch_benchmark
import jsonschema
import numpy as np
import onnx
import pytest
from flow import build, images, normal, two_convs
from PIL import Image

import amct_onnx
from amct_onnx.cli.main import main
from amct_onnx.errors import AmctError, ArgumentTypeError, ConfigError, FileMissingError
from amct_onnx.tools.batch import made_from
from amct_onnx.tools.batch.option_values import OPTIONS
from amct_onnx.values.batch_result import BatchResult

SCHEMA = Path(amct_onnx.__file__).parent / "cli" / "schemas" / "batch.json"
TWO = ("onnxruntime", "ascend")
BASE: Mapping[str, Any] = {"model": "m.onnx", "data": "x.npy", "save_path": "out/{name}", "effort": "fast"}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two models, and data for both."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    onnx.save(two_convs(), "m.onnx")
    other = build(
        "g (float[N,3,6,6] x) => (float[N,4,4,4] y) { [only] a = Conv (x, w) y = Relu (a) }", w=normal(1, 4, 3, 3, 3)
    )
    onnx.save(other, "other.onnx")
    np.save("x.npy", images(0, 24))
    return tmp_path


def run(*jobs: Mapping[str, Any], again: bool = False, **defaults: Any) -> BatchResult:
    """A batch without reports unless they are asked for."""
    source = {"defaults": {**BASE, "report": False, **defaults}, "job": list(jobs)}
    return amct_onnx.batch(source, again=again, progress=False)


def states(result: BatchResult) -> list[str]:
    return [job.state for job in result.jobs]


def results(folder: str = "out") -> dict[str, bytes]:
    """The model files of a folder."""
    told = ("_job.json", "_run.json", ".html")
    return {path.name: path.read_bytes() for path in Path(folder).iterdir() if not path.name.endswith(told)}


# --- the same as separate calls


@pytest.mark.parametrize("options", [{"effort": "fast"}, {"effort": "default"}, {"effort": "fast", "min_sqnr": 20.0}])
def test_each_job_is_what_quantize_makes(options: dict[str, Any]) -> None:
    result = run({"target": ["onnxruntime", "openvino", "ascend"], **options})
    assert states(result) == ["done"] * 3
    for target in ("onnxruntime", "openvino", "ascend"):
        alone = amct_onnx.quantize("m.onnx", "x.npy", target=target, progress=False, **options)
        alone.save("alone/m", inspect=False)
        job = next(job for job in result.jobs if job.target == target)
        assert job.accuracy == alone.accuracy
        assert job.in_float == sum(not decision.quantized for decision in alone.decisions)
    assert results("out") == results("alone")


def test_one_calibration_serves_the_targets_where_no_recipe_fits_to_one(monkeypatch: pytest.MonkeyPatch) -> None:
    from amct_onnx.tools.batch import run_job

    called: list[str] = []

    def counted(*arguments: Any, **options: Any) -> Any:
        called.append(options["target"])
        return amct_onnx.quantize(*arguments, **options)

    monkeypatch.setattr(run_job, "quantize", counted)
    run({"target": TWO})
    assert called == ["onnxruntime"]
    called.clear()
    run({"target": TWO, "effort": "default"})
    assert called == list(TWO)


def test_warnings_are_those_of_each_job(here: Path) -> None:
    np.save("few.npy", images(0, 3))
    one, two = run({"data": "few.npy", "target": TWO}).jobs
    assert "Only 3 samples calibrate" in one.warnings[0]
    assert two.warnings == one.warnings


def test_options_of_python_can_be_said(here: Path) -> None:
    """All but those that a batch gives itself, and the evaluator, which is a script."""
    known = set(inspect.signature(amct_onnx.quantize).parameters) - {"model", "data", "progress"}
    assert known == set(OPTIONS)
    Path("script.py").write_text("def evaluate(session):\n    return 1.0\n")
    result = run({"evaluator": "script.py", "max_drop": 0.5, "skip_layers": ["conv1"], "limit": 16, "batch_size": 4})
    assert states(result) == ["done"]
    assert result.jobs[0].met is not None


def test_what_cannot_be_read_is_counted(here: Path) -> None:
    Path("photos").mkdir()
    for number in range(12):
        pixels = np.random.default_rng(number).integers(0, 256, (6, 6, 3), np.uint8)
        Image.fromarray(pixels).save(f"photos/{number:02}.png")
    Path("photos/05.png").write_bytes(b"no image")
    job = {"data": "photos", "images": "unit", "target": list(TWO), "on_bad_data": "skip"}
    first, second = run(job), run(job)
    assert (states(first), states(second)) == (["done", "done"], ["kept", "kept"])
    for one in (*first.jobs, *second.jobs):
        assert one.data is not None
        assert (one.data.samples, one.data.skipped.samples) == (11, 1)
        assert any("05.png" in text for text in one.warnings)
    assert second.jobs[0].data == first.jobs[0].data
    assert "05.png" in run({**job, "on_bad_data": "fail"}).jobs[0].error


def test_models_by_pattern_and_list_multiply_with_targets(here: Path) -> None:
    result = run({"model": "*.onnx", "target": TWO, "save_path": "{model}"})
    assert [str(job) for job in result.jobs] == [f"{name} for {target}" for name in ("m", "other") for target in TWO]
    again = run({"model": "*.onnx", "target": TWO, "save_path": "{model}"})  # though results lie among the models now
    assert [str(job) for job in again.jobs] == [str(job) for job in result.jobs]
    assert states(again) == ["kept"] * 4
    fewer = run({"model": "*.onnx", "target": "ascend", "save_path": "{model}"})
    assert [str(job) for job in fewer.jobs] == ["m for ascend", "other for ascend"]
    named = run({"name": "both", "model": ["m.onnx", "other.onnx"], "save_path": "o/{name}/{model}"})
    assert [job.name for job in named.jobs] == ["both m", "both other"]
    assert Path("o/both/other_onnxruntime.onnx").exists()


def test_paths_are_those_of_the_file(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("jobs.toml").write_text('[[job]]\nmodel = "m.onnx"\ndata = "x.npy"\nsave_path = "out/m"\neffort = "fast"\n')
    (here / "elsewhere").mkdir()
    monkeypatch.chdir(here / "elsewhere")
    result = amct_onnx.batch("../jobs.toml", progress=False)
    assert states(result) == ["done"]
    assert list(Path().iterdir()) == []
    assert {path.name for path in (here / "out").iterdir()} == {
        *("m_onnxruntime.onnx", "m_onnxruntime_job.json", "m_onnxruntime_run.json", "m_onnxruntime_report.html")
    }
    assert (here / "jobs.html").exists()
    assert not (here / "jobs_state").exists()


# --- what is done is kept


def test_a_second_call_does_only_what_is_left() -> None:
    first = run({"target": TWO})
    before = {path: path.stat().st_mtime_ns for path in Path("out").iterdir()}
    second = run({"target": [*TWO, "openvino"]})
    assert states(second) == ["kept", "kept", "done"]
    assert {path: path.stat().st_mtime_ns for path in before} == before
    for one, two in zip(first.jobs, second.jobs, strict=False):
        assert (two.files, two.quantized, two.candidates) == (one.files, one.quantized, one.candidates)
        assert two.accuracy is not None
        assert one.accuracy is not None
        assert two.accuracy.decibels == pytest.approx(one.accuracy.decibels, rel=1e-4)
    assert states(run({"target": TWO}, again=True)) == ["done", "done"]


def _other_model() -> None:
    shutil.copy("other.onnx", "m.onnx")


def _other_data() -> None:
    np.save("x.npy", images(1, 25))


def _gone() -> None:
    Path("out/m_onnxruntime.onnx").unlink()


def _overwritten() -> None:
    Path("out/m_onnxruntime.onnx").write_bytes(b"another")


def _damaged() -> None:
    Path("out/m_onnxruntime_job.json").write_text("{")


def _other_script() -> None:
    Path("script.py").write_text("def evaluate(session):\n    return 2.0\n")


@pytest.mark.parametrize(
    ("change", "options", "because"),
    [
        (_other_model, {}, "the model is another file now"),
        (_other_data, {}, "the data are others now"),
        (_gone, {}, "out/m_onnxruntime.onnx is gone"),
        (_overwritten, {}, "out/m_onnxruntime.onnx is another file now"),
        (_damaged, {}, "its record cannot be read"),
        (_other_script, {}, "the file of evaluator is another one now"),
        (lambda: None, {"algorithm": "min_max"}, "algorithm was not given and is 'min_max'"),
        (lambda: None, {"effort": ""}, "effort was 'fast' and is not given"),
        (lambda: None, {"report": True}, "report was False and is True"),
    ],
)
def test_what_has_changed_is_done_again(change: Callable[[], None], options: dict[str, Any], because: str) -> None:
    Path("script.py").write_text("def evaluate(session):\n    return 1.0\n")
    job = {"evaluator": "script.py", "max_drop": 1.0}
    assert states(run(job)) == ["done"]
    change()
    result = run({**job, **options})
    assert states(result) == ["done"]
    assert result.jobs[0].because == because
    assert f"Again, since {because}: m for onnxruntime." in result.lines()
    assert result.jobs[0].warnings == ()
    assert states(run({**job, **options})) == ["kept"]


def test_who_does_the_work_changes_nothing() -> None:
    run({"target": list(TWO)}, {"model": "other.onnx"}, engine="processes:2")
    first = results()
    result = run({"target": list(TWO)}, {"model": "other.onnx"})
    assert states(result) == ["kept"] * 3
    run({"target": list(TWO)}, {"model": "other.onnx"}, again=True)
    assert results() == first


def test_no_report_of_an_older_result_stays() -> None:
    assert Path(run({}, report=True).jobs[0].report).exists()
    assert run({"limit": 12}).jobs[0].report == ""
    assert {path.name for path in Path("out").iterdir()} == {"m_onnxruntime.onnx", "m_onnxruntime_job.json"}


def test_another_version_does_all_again(monkeypatch: pytest.MonkeyPatch) -> None:
    run({})
    monkeypatch.setattr(made_from, "VERSION", "9.9")
    assert "and is 9.9" in run({}).jobs[0].because


def test_results_may_be_moved() -> None:
    run({"save_path": "out/m"})
    shutil.move("out", "moved")
    assert states(run({"save_path": "moved/m"})) == ["kept"]


def test_a_failed_job_stops_no_other_and_is_tried_again() -> None:
    Path("broken.onnx").write_bytes(Path("m.onnx").read_bytes()[:300])
    jobs = [{"model": "broken.onnx"}, {"skip_layers": ["none*"]}, {"model": "other.onnx"}]
    result = run(*jobs)
    assert states(result) == ["failed", "failed", "done"]
    assert "is not an ONNX model, or it is truncated" in result.jobs[0].error
    assert "none*" in result.jobs[1].error
    assert result.lines()[0] == "3 jobs: 1 done, 2 failed."
    assert not Path("batch_state").exists()
    shutil.copy("other.onnx", "broken.onnx")
    assert states(run(*jobs)) == ["done", "failed", "kept"]


def test_what_does_not_go_with_the_model_is_told_before_a_job_runs(caplog: pytest.LogCaptureFixture) -> None:
    Path("settings.json").write_text("{")
    wrong = {"skip_layers": ["none*"], "names": {"z": "a"}, "settings": "settings.json", "shapes": {"z": [1, 2]}}
    jobs = [{"name": key, key: value} for key, value in wrong.items()]
    result = run(*jobs, {"model": "other.onnx"})
    assert states(result) == ["failed"] * 4 + ["done"]
    first = next(k for k, record in enumerate(caplog.records) if record.getMessage().startswith("Job 1/1"))
    errors = [record.getMessage() for record in caplog.records[:first] if record.levelname == "ERROR"]
    assert len(errors) == 4
    assert "none*" in errors[0]


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="there is no such signal")
def test_after_a_kill_the_next_call_goes_on(here: Path) -> None:
    targets = ", ".join(f'"{target}"' for target in ("onnxruntime", "openvino", "tensorrt", "ascend"))
    Path("jobs.toml").write_text(
        f'[defaults]\ntarget = [{targets}]\ndata = "x.npy"\nreport = false\n'
        '[[job]]\nmodel = "m.onnx"\nsave_path = "out/m"\n[[job]]\nmodel = "other.onnx"\nsave_path = "out/other"\n'
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "amct_onnx", "batch", "jobs.toml"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    while not list(Path("out").glob("*_job.json")):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    done = {path.name for path in Path("out").glob("*_job.json")}
    assert 1 <= len(done) < 8
    result = amct_onnx.batch("jobs.toml", progress=False)
    kept = {f"{job.name}_{job.target}_job.json" for job in result.in_state("kept")}
    assert kept == done
    assert len(result.in_state("done")) == 8 - len(done)
    after = results()
    amct_onnx.batch("jobs.toml", again=True, progress=False)
    assert results() == after


def test_what_ran_when_a_call_was_killed_comes_last(monkeypatch: pytest.MonkeyPatch) -> None:
    from amct_onnx.tools.batch import batch as module

    order: list[str] = []

    def killed(job: Any, *_: Any) -> Any:
        order.append(job.name)
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "run_job", killed)
    jobs = [{"name": "dangerous"}, {"name": "harmless"}]
    for expected in (["dangerous"], ["dangerous", "harmless"], ["dangerous", "harmless", "dangerous"]):
        with pytest.raises(KeyboardInterrupt):
            run(*jobs)
        assert order == expected


def _quantize_that_dies(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """`quantize` keeps something and dies, the first time; the states that it gets."""
    from amct_onnx.tools.batch import run_job

    given: list[Any] = []

    def quantize(*arguments: Any, **options: Any) -> Any:
        given.append(options.get("state"))
        if len(given) == 1 and options.get("state"):
            Path(options["state"], "other.txt").write_text("what no state holds")
            raise KeyboardInterrupt
        return amct_onnx.quantize(*arguments, **options)

    monkeypatch.setattr(run_job, "quantize", quantize)
    return given


def test_each_job_has_a_state_until_it_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    given = _quantize_that_dies(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        run({})
    assert Path(given[0]).parent == Path("batch_state")
    assert Path(given[0]).exists()
    assert states(run({})) == ["done"]  # though the state cannot be used
    assert set(given) == {given[0]}
    assert not Path("batch_state").exists()


def test_the_state_of_a_job_that_has_changed_is_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    given = _quantize_that_dies(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        run({})
    run({"limit": 16})
    assert given[1] != given[0]
    assert not Path("batch_state").exists()


@pytest.mark.parametrize("job", [{"state": False}, {"data": "", "effort": "", "weight_only": 8}])
def test_no_state_is_kept_where_none_is_wanted(job: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    given = _quantize_that_dies(monkeypatch)
    onnx.save(build("g (float[N,64] x) => (float[N,32] y) { y = MatMul (x, w) }", w=normal(1, 64, 32)), "m.onnx")
    np.save("x.npy", normal(2, 24, 64))
    assert states(run(job)) == ["done"]
    assert given == [None]


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="there is no such signal")
def test_real_models_are_killed_and_go_on(tmp_path: Path) -> None:
    answer = batch_benchmark.check(tmp_path, ["resnet20", "kws"], limit=4, effort="fast", report=False)
    assert [job["state"] for job in answer["jobs"]].count("failed") == 1
    assert all(job["accuracy"]["decibels"] > 20 for job in answer["jobs"] if job["state"] != "failed")


# --- what is wrong with a file


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('[[job]]\nname = "r"\nefort = "best"', "jobs.toml: job 1 \"r\": efort is unknown: did you mean 'effort'?"),
        ('[[job]]\npreset = "torch"', "job 1: preset is unknown: it is called 'images' here"),
        ('[[job]]\neffort = "bst"', "job 1: effort 'bst' is unknown: did you mean 'best'?"),
        ('[[job]]\ntarget = ["onnxruntime", "ascent"]', "job 1: target 'ascent' is unknown: did you mean 'ascend'?"),
        ("[[job]]\ntarget = 3", "job 1: target takes a name or a list of names, got 3"),
        ("[[job]]\nlimit = 2.5", "job 1: limit takes a whole number, got 2.5"),
        ("[[job]]\nlimit = 0", "limit=0 is no number of samples"),
        ('[[job]]\non_bad_data = "skp"', "job 1: on_bad_data takes 'fail' or 'skip', got 'skp'"),
        ('[[job]]\nengine = "procesess:2"', "engine='procesess:2' is unknown: did you mean 'processes'?"),
        ("[[job]]\nfull_int8 = 1", "job 1: full_int8 takes true or false, got 1"),
        ('[[job]]\nskip_layers = "a"', "job 1: skip_layers takes a list of texts, got 'a'"),
        ("[[job]]\nshapes = {x = [1, 2.5]}", "job 1: shapes takes a table"),
        ("[[job]]\nweight_only = 5", "job 1: weight_only 5 is unknown: use one of 4, 8"),
        ('[[job]]\nimages = "tortch"', "job 1: images: images='tortch' is no preset, did you mean 'torch'?"),
        ('[[job]]\nimages = {preset = "torch", crp = 3}', "job 1: images: 'crp' is no field, did you mean 'crop'?"),
        ('[[job]]\nsettings = "none.json"', "job 1: settings: none.json does not exist"),
        ('[[job]]\nmodel = "nothing.onnx"', "job 1: model: nothing.onnx does not exist"),
        ('[[job]]\nmodel = "n*.onnx"', "job 1: model: no file is like n*.onnx"),
        ('[[job]]\ndata = "nothing"', "job 1: data: nothing does not exist"),
        ('[[job]]\ndata = {x = ["x.npy", "y.npy"]}', "job 1: data: y.npy does not exist"),
        ('[[job]]\ndata = ""', "job 1: data are missing: give data, or say dynamic = true"),
        ("[[job]]\ndynamic = true", "job 1: dynamic quantizes activations as they come"),
        ('[[job]]\nweight_only = 4\ntarget = "ascend"', "weight_only needs target onnxruntime"),
        ("[[job]]\nmin_sqnr = 20\nmax_slowdown = 1.5", "min_sqnr and max_slowdown are different targets"),
        ("[[job]]\nmax_drop = 0.5", "max_drop needs an evaluator"),
        ('[[job]]\nevaluator = "none.py"\nmax_drop = 0.5', "none.py: the evaluator script does not exist"),
        ('[[job]]\nevaluator = "bad.py"\nmax_drop = 0.5', "bad.py:1: the script cannot be imported"),
        ('[[job]]\nsave_path = "out/{modl}"', "job 1: save_path: {modl} is unknown: use {name}, {model}, {target}"),
        ('[[job]]\nsave_path = ""', "job 1: save_path is missing"),
        ('[[job]]\n[[job]]\nname = "m"', 'job 2 "m": job 1 writes out/m_onnxruntime.onnx as well'),
        ('[[job]]\nmodel = ["m.onnx", "other.onnx"]\nsave_path = "out/x"', "it writes out/x_onnxruntime.onnx twice"),
        ('[[job]]\nsave_path = "m.onnx"', "m.onnx: is the float model itself"),
        ("[[jobs]]\nlimit = 3", "'jobs' is unknown: did you mean 'job'?"),
        ("[job]\nlimit = 3", "job: is no list of tables: write [[job]] above each"),
        ("", "jobs.toml: has no job"),
        ("[[job]\n", "jobs.toml: no TOML"),
    ],
)
def test_mistakes_are_told_before_a_job_runs(text: str, told: str) -> None:
    Path("bad.py").write_text("def evaluate(session) return 1\n")
    defaults = '[defaults]\nmodel = "m.onnx"\ndata = "x.npy"\nsave_path = "out/{name}"\n'
    Path("jobs.toml").write_text(f"{defaults}{text}\n")
    with pytest.raises(AmctError) as caught:
        amct_onnx.batch("jobs.toml", progress=False)
    assert told in str(caught.value)
    assert str(caught.value).startswith("jobs.toml:")
    assert not Path("out").exists()
    assert not Path("jobs.html").exists()


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        run({"efort": "best"}, {"model": "none.onnx"}, {"limit": "many"}, name="all")
    lines = str(caught.value).splitlines()
    assert lines[0] == "jobs: 4 mistakes"
    assert [line.split(":")[0].strip() for line in lines[1:]] == ["defaults", "job 1", "job 2", "job 3"]


def test_what_is_no_file_of_jobs() -> None:
    with pytest.raises(ArgumentTypeError, match="jobs must be the path of a TOML file or a mapping, got int"):
        amct_onnx.batch(3)  # type: ignore[arg-type]
    with pytest.raises(FileMissingError, match=r"nothing\.toml: the file of jobs does not exist"):
        amct_onnx.batch("nothing.toml")


# --- the command


def command(*words: str, code: int = 0) -> None:
    assert main(["batch", "jobs.toml", *words]) == code


@pytest.fixture
def jobs(here: Path) -> Path:
    """A file of three jobs, of which one will fail."""
    Path("broken.onnx").write_bytes(b"no model")
    text = """
        [defaults]
        data = "x.npy"
        effort = "fast"
        report = false
        save_path = "out/{name}"

        [[job]]
        model = "m.onnx"
        target = ["onnxruntime", "ascend"]

        [[job]]
        name = "a_name_that_is_so_long_that_it_has_to_be_folded"
        model = "broken.onnx"
    """
    Path("jobs.toml").write_text(inspect.cleandoc(text))
    return here


def test_the_table_and_the_exit_code(jobs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command(code=1)
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert "\x1b" not in out
    rows = [line.split() for line in out.splitlines()]
    assert ["m", "onnxruntime"] in [row[:2] for row in rows]
    assert next(row for row in rows if row[:2] == ["m", "ascend"])[-1] == "done"
    assert "3 jobs: 2 done, 1 failed." in out
    assert "Failed: a_name" in out
    assert "is not an ONNX model" in " ".join(out.split())
    command(code=1)
    assert "3 jobs: 2 kept from before, 1 failed." in capsys.readouterr().out
    shutil.copy("other.onnx", "broken.onnx")
    command("--page", "all.html")
    assert "3 jobs: 1 done, 2 kept from before." in capsys.readouterr().out
    assert Path("all.html").exists()
    command("--again", "--quiet")
    assert capsys.readouterr().out == ""


def test_the_document_keeps_to_its_schema(jobs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    schema = json.loads(SCHEMA.read_text())
    command("--json", code=1)
    document = json.loads(capsys.readouterr().out)
    jsonschema.validate(document, schema)
    assert [job["state"] for job in document["jobs"]] == ["done", "done", "failed"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**document, "surprise": 1}, schema)
    Path("jobs.toml").write_text("[[job]]\nefort = 3\n")
    command("--json", code=1)
    failed = json.loads(capsys.readouterr().out)
    jsonschema.validate(failed, schema)
    assert "efort is unknown" in failed["error"]


def test_messages_speak_of_arguments_and_not_of_options(jobs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("jobs.toml").write_text('[[job]]\nmodel = "m.onnx"\nsave_path = "out/m"\ndata = "x.npy"\nnames = {z = "a"}\n')
    command("--quiet", code=1)
    err = capsys.readouterr().err
    assert "names: the model has no input 'z'" in err
    assert "--names" not in err


def test_progress_names_the_job() -> None:
    told: list[str] = []
    source = {"job": [{**BASE, "report": False, "target": list(TWO)}]}
    amct_onnx.batch(source, progress=lambda what, share: told.append(what))
    assert "1/2 m for onnxruntime: calibration" in told
    assert told[-1].startswith("2/2 m for ascend: ")
