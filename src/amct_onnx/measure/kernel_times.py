"""How long each node of a model takes in ONNX Runtime on this machine, by its own profile."""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from amct_onnx.files.onnx_file import load_model
from amct_onnx.graph.source_nodes import SourceNodes
from amct_onnx.numerics.arrays import Feed
from amct_onnx.run.session import open_session, quiet, run_feed
from amct_onnx.run.temporary_files import temporary_folder

_ENDING = "_kernel_time"
_LEAST_RUNS, _MOST_RUNS = 3, 30


@dataclass(frozen=True, kw_only=True)
class KernelTime:
    """What one run spends for a node of the file: `seconds` in kernels of these types, the slowest first. What the
    runtime has merged into one kernel counts for the node that the kernel is named after."""

    seconds: float
    kernels: tuple[str, ...]


def kernel_times(
    model: str | os.PathLike[str] | ir.Model, feed: Feed, *, budget: float = 0.3
) -> Mapping[str, KernelTime]:
    """The medians over some runs of `feed` within about `budget` seconds, by the node's name in the file.

    Raises FileMissingError, ModelFileError, ModelError, DataError and OutputError as opening and running a model does.
    """
    opened = model if isinstance(model, ir.Model) else load_model(model)
    source = SourceNodes(opened)
    size = sum(value.const_value.nbytes for value in opened.graph.initializers.values() if value.const_value)
    with temporary_folder(2 * size + (1 << 20), Path("profile")) as folder:
        options = quiet()
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        options.optimized_model_filepath = str(Path(folder) / "optimised.onnx")
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "optimised.data")
        options.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "1024")
        session = open_session(
            opened if isinstance(model, ir.Model) else os.fspath(model), options, cannot="time the model"
        )
        start, runs = time.perf_counter(), 0
        while runs < _LEAST_RUNS or (runs < _MOST_RUNS and time.perf_counter() - start < budget):
            run_feed(session, feed)
            runs += 1
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        names = {
            node.name: source.name_of(node) for node in ir.load(Path(folder) / "optimised.onnx").graph if node.name
        }
    return _by_node(events, names, runs)


def _by_node(events: list[dict[str, object]], names: Mapping[str, str], runs: int) -> dict[str, KernelTime]:
    """Events of a profile, of which the first run warms up, as times of nodes."""
    spent: dict[str, dict[str, list[float]]] = {}
    for event in events:
        name, arguments = str(event.get("name", "")), event.get("args")
        if event.get("cat") == "Node" and name.endswith(_ENDING) and isinstance(arguments, dict):
            kernel = name.removesuffix(_ENDING)
            place = spent.setdefault(names.get(kernel, kernel), {})
            place.setdefault(f"{arguments.get('op_name', '')} {kernel}", []).append(
                float(str(event.get("dur", 0))) * 1e-6
            )
    found = {}
    for node, kernels in spent.items():
        medians = {kernel: statistics.median(times[len(times) // runs :] or times) for kernel, times in kernels.items()}
        order = sorted(medians, key=lambda kernel: -medians[kernel])
        types = tuple(dict.fromkeys(kernel.split(" ")[0] for kernel in order))
        found[node] = KernelTime(seconds=sum(medians.values()), kernels=types)
    return found
