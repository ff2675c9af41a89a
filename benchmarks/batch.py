"""`make batch`: all shared models and two targets from one file of jobs, killed in the middle and called again.

One job is made to fail. It ends with an error unless every other job is done, what was done before the kill is kept,
and all files are those of a batch that nobody killed. `amct_onnx batch` is a process of its own each time.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tasks import TASKS

TARGETS = ("onnxruntime", "ascend")
BROKEN = "broken"
_TOLD = ("_job.json", "_run.json", ".html")  # files that hold times


def write_jobs(folder: Path, names: list[str], *, limit: int, effort: str, report: bool) -> tuple[Path, int]:
    """The file of jobs in a folder with the data of each model, and how many jobs it asks for."""
    lines = [
        "[defaults]",
        f"target = {list(TARGETS)}",
        f'effort = "{effort}"',
        f"limit = {limit}",
        f"report = {'true' if report else 'false'}",
        'save_path = "out/{name}"',
    ]
    for name in names:
        task = TASKS[name]
        data = f"{name}{task.suffix}"
        task.write_calibration(folder / data, limit)
        lines += ["[[job]]", f'name = "{name}"', f"model = '{task.case.model}'", f"data = '{data}'"]
        if name == names[0]:  # the truncated one stands among the others
            whole = Path(task.case.model).read_bytes()
            (folder / f"{BROKEN}.onnx").write_bytes(whole[: len(whole) // 2])
            lines += ["[[job]]", f"model = '{BROKEN}.onnx'", f"data = '{data}'", 'target = "openvino"']
    (folder / "jobs.toml").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / "jobs.toml", len(names) * len(TARGETS) + 1


def started(jobs: Path, *words: str) -> subprocess.Popen[str]:
    """`amct_onnx batch`, at work."""
    command = [sys.executable, "-m", "amct_onnx", "batch", jobs.name, *words]
    return subprocess.Popen(command, cwd=jobs.parent, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def killed(jobs: Path, after: int) -> set[str]:
    """Kill a batch in the job behind so many; the records of those that are done then."""
    process = started(jobs)
    while len(list((jobs.parent / "out").glob("*_job.json"))) < after:
        if process.poll() is not None:
            raise SystemExit(f"the batch ended with {process.returncode} before it could be killed")
        time.sleep(0.01)
    time.sleep(0.1)  # in the middle of the next job
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return {path.name for path in (jobs.parent / "out").glob("*_job.json")}


def document(jobs: Path, *words: str) -> dict[str, Any]:
    """What a batch answers; it ends with exit code 1, since a job fails."""
    process = started(jobs, "--json", *words)
    answer: dict[str, Any] = json.loads(process.communicate()[0])
    if process.returncode != 1:
        raise SystemExit(f"the exit code is {process.returncode}, though a job fails")
    return answer


def results(folder: Path) -> dict[str, bytes]:
    """The model files of a batch."""
    return {path.name: path.read_bytes() for path in (folder / "out").iterdir() if not path.name.endswith(_TOLD)}


def check(folder: Path, names: list[str], *, limit: int, effort: str, report: bool) -> dict[str, Any]:
    """Kill a batch in the middle, call it again, and hold it to one that nobody killed; the answer of the second call.

    Raises SystemExit with what is wrong.
    """
    jobs, count = write_jobs(folder, names, limit=limit, effort=effort, report=report)
    before = killed(jobs, max(1, count // 3))
    answer = document(jobs)
    states = {f"{job['name']}_{job['target']}_job.json": job["state"] for job in answer["jobs"]}
    if len(states) != count:
        raise SystemExit(f"{len(states)} jobs are listed in the place of {count}")
    if {name for name, state in states.items() if state == "kept"} != before:
        raise SystemExit(f"kept: {states}, done before the kill: {before}")
    failed = [name for name, state in states.items() if state == "failed"]
    if failed != [f"{BROKEN}_openvino_job.json"] or "waiting" in states.values():
        raise SystemExit(f"another job should have failed: {answer['jobs']}")
    resumed = results(folder)
    document(jobs, "--again")
    if results(folder) != resumed:
        raise SystemExit("the files differ from those of a batch that nobody killed")
    return answer


def main() -> None:
    """Print the table of a batch that was killed and called again."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", default=list(TASKS), choices=list(TASKS), metavar="NAME")
    parser.add_argument("--limit", type=int, default=16, help="samples of each model")
    parser.add_argument("--effort", default="fast")
    parser.add_argument("--report", action="store_true", help="measure, and make the reports")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="amct_batch_") as name:
        answer = check(Path(name), args.models, limit=args.limit, effort=args.effort, report=args.report)
        kept = sum(job["state"] == "kept" for job in answer["jobs"])
        print(f"Killed after {kept} of {len(answer['jobs'])} jobs, called again, and the same files as without a kill.")
        process = started(Path(name, "jobs.toml"))
        print(process.communicate()[0])


if __name__ == "__main__":
    main()
