"""`make digests`: one line for each file that quantizing the shared models writes, with the digest of its bytes.

Two versions of the project that print the same lines write the same files: `diff` tells what a change has moved. Every
model goes through `quantize`, for all targets with effort "fast" and for two of them with "default", and through AMCT's
functions, with the settings of AMCT and with the learned and balanced ones where a model is small. The reference cases
go through AMCT's functions with their own data. What `sensitivity` prints and a search for mixed precision chooses are
lines as well.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from shared_data import DATA
from tasks import TASKS

import amct_onnx as amct

SAMPLES, BATCH = 32, 8
TARGETS = ("onnxruntime", "openvino", "tensorrt", "ascend")
THOROUGH = ("onnxruntime", "ascend")
SMALL = ("resnet20", "kws")
CFG = {
    "ada": "batch_num : 4 common_config { ada_quantize { num_iteration : 200 } }",
    "int16": "batch_num : 4 common_config { ifmr_quantize { dst_type : INT16 } }",
    "hfmg": "batch_num : 4 activation_offset : false common_config { hfmg_quantize { num_of_bins : 4096 } }",
}
GOLDEN = ("dmq", "hfmg", "ifmr_asymmetric", "ifmr_symmetric", "inverted", "mlp", "overrides", "vol")
CPU = ["CPUExecutionProvider"]


def show(label: str, data: bytes) -> None:
    """Print one line."""
    print(f"{hashlib.sha256(data).hexdigest()[:24]}  {label}", flush=True)


def show_folder(label: str, folder: Path) -> None:
    """Print a line for each file of a folder, and empty it."""
    for path in sorted(folder.iterdir()):
        if path.is_file():
            show(f"{label}/{path.name}", path.read_bytes())
            path.unlink()


def feeds_of(data: Path) -> list[dict[str, Any]]:
    """The batches of a file of samples, by input; one array has the name ""."""
    with np.load(data) if data.suffix == ".npz" else open(os.devnull) as stored:
        arrays = dict(stored) if data.suffix == ".npz" else {"": np.load(data)}
    count = len(next(iter(arrays.values())))
    return [{name: array[k : k + BATCH] for name, array in arrays.items()} for k in range(0, count, BATCH)]


def amct_flow(model: Path, feeds: list[dict[str, Any]], folder: Path, label: str, **options: Any) -> None:
    """AMCT's functions, with the first four batches."""
    config, modified, record = (str(folder / name) for name in ("config.json", "modified.onnx", "record.txt"))
    amct.create_quant_config(config, str(model), **options)
    needed = json.loads(Path(config).read_text(encoding="utf-8"))["batch_num"]
    balanced = "dmq_balancer_param" in Path(config).read_text(encoding="utf-8")
    for prepare in (amct.quantize_preprocess, amct.quantize_model) if balanced else (amct.quantize_model,):
        if prepare is amct.quantize_model:
            prepare(config, str(model), modified, record)
        else:
            prepare(config, record, str(model), modified)
        session = ort.InferenceSession(modified, amct.AMCT_SO, providers=CPU)
        inputs = [(value.name, value.shape) for value in session.get_inputs()]
        for number in range(needed):
            feed = {name or inputs[0][0]: array for name, array in feeds[number % len(feeds)].items()}
            rows = 1 if isinstance(inputs[0][1][0], int) else len(next(iter(feed.values())))
            session.run(None, {name: array[:rows] for name, array in feed.items()})
    amct.save_model(modified, record, str(folder / "model"))
    show_folder(label, folder)


def digests(folder: Path, names: list[str]) -> Iterator[str]:
    """Print all lines; yields after each model."""
    for name in names:
        task = TASKS[name]
        data = folder.parent / f"{name}{task.suffix}"
        task.write_calibration(data, SAMPLES)
        model, feeds = task.case.model, feeds_of(data)
        for target in TARGETS:
            for effort in ("fast", "default") if target in THOROUGH else ("fast",):
                result = amct.quantize(str(model), str(data), target=target, effort=effort)
                result.save(folder / "q", **({"inspect": False} if target != "ascend" else {}))
                show_folder(f"{name}/{target}/{effort}", folder)
                if effort == "default":
                    show(f"{name}/{target}/steps", "\n".join(map(str, result.steps)).encode())
                else:
                    effects = amct.sensitivity(result, str(data), samples=2)
                    rows = [(effect.layer, f"{effect.effect:.9g}") for effect in effects.layers]
                    show(f"{name}/{target}/sensitivity", repr(rows).encode())
        amct_flow(model, feeds, folder, f"{name}/amct", batch_num=4)
        if name in SMALL:
            small(name, str(model), str(data), feeds, folder)
        yield name
    for case in GOLDEN if names == list(TASKS) else ():
        source = DATA / "golden" / case
        batches = np.load(source / "calibration.npy")
        cfg = source / "quant.cfg"
        settings = json.loads((source / "config.json").read_text(encoding="utf-8"))
        plain = {key: settings[key] for key in ("batch_num", "activation_offset")}
        options = {"config_defination": str(cfg)} if cfg.exists() else plain
        amct_flow(source / "model.onnx", [{"": batch} for batch in batches], folder, f"golden/{case}", **options)
        yield case


def small(name: str, model: str, data: str, feeds: list[dict[str, Any]], folder: Path) -> None:
    """What would take minutes with a large model."""
    for kind, text in CFG.items():
        cfg = folder.parent / f"{kind}.cfg"
        cfg.write_text(text, encoding="utf-8")
        amct_flow(Path(model), feeds, folder, f"{name}/amct-{kind}", config_defination=str(cfg))
    for target in THOROUGH:
        mixed = amct.quantize(model, data, target=target, effort="fast", min_sqnr=25)
        show(f"{name}/{target}/mixed", repr(mixed.precision).encode())
        best = amct.quantize(model, data, target=target, effort="best")
        show(f"{name}/{target}/best", "\n".join(map(str, best.steps)).encode())
        best.save(folder / "q", **({"inspect": False} if target != "ascend" else {}))
        show_folder(f"{name}/{target}/best", folder)
    reduced = amct.quantize(model, data, reduce_range=True)
    reduced.save(folder / "q", inspect=False)
    show_folder(f"{name}/onnxruntime/reduce_range", folder)


def main() -> None:
    """Print the lines of all models, or of some."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", default=list(TASKS), choices=list(TASKS), metavar="NAME")
    # The path is part of what the calibration models say, so it is the same in each run.
    folder = Path(tempfile.gettempdir(), "amct_digests")
    parser.add_argument("--folder", type=Path, default=folder, help="a folder that is emptied first")
    args = parser.parse_args()
    shutil.rmtree(args.folder, ignore_errors=True)
    (args.folder / "out").mkdir(parents=True)
    os.chdir(args.folder)
    for done in digests(args.folder / "out", args.models):
        print(f"{done} is done", file=sys.stderr)


if __name__ == "__main__":
    main()
