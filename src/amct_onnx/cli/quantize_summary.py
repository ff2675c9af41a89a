"""What `amct_onnx quantize` says in the end: a table for people, and the document of `--json`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import amct_onnx
from amct_onnx.cli.output import Output
from amct_onnx.cli.quantize_options import QuantizeCommand
from amct_onnx.errors import AmctError, listed
from amct_onnx.measure.kernel_report import size_phrase, time_phrase
from amct_onnx.measure.latency import Latency
from amct_onnx.ptq.quantized_model import QuantizedModel
from amct_onnx.ptq.saved_report import SavedReport, in_float
from amct_onnx.values.accuracy import Accuracy

_REASONS, _NAMES = 3, 3  # that are shown: reasons to stay in float, and nodes for each


@dataclass(frozen=True, kw_only=True)
class Saved:
    """The result for one target, its files, and the report on them; None where none was asked for. run: the path of the
    run file, None where there is none."""

    model: QuantizedModel
    files: tuple[str, ...]
    report: SavedReport | None
    run: str | None = None


def show(
    output: Output, command: QuantizeCommand, result: QuantizedModel, saved: Sequence[Saved], warnings: Sequence[str]
) -> None:
    """Say on stdout what came of the command."""
    if not output.is_text or not saved:
        return
    from rich.table import Table

    table = Table(show_header=len(saved) > 1, box=None, pad_edge=False, show_edge=False)
    table.add_column("target", no_wrap=True, style="bold")
    for one in saved:
        table.add_column(one.model.target, overflow="fold")
    rows = [_rows(one) for one in saved]
    for name in rows[0]:
        table.add_row(name, *(row.get(name, "") for row in rows))
    output.say()
    output.show(table)
    for one in saved:
        for reason, names in list(in_float(one.model.decisions).items())[:_REASONS]:
            where = f" ({one.model.target})" if len(saved) > 1 else ""
            output.say(f"In float{where}, since {reason}: {listed(names, _NAMES)}")
    if result.precision is not None:
        output.say(str(result.precision))
    for text in () if _on_one_terminal() else warnings:
        output.say(f"Warning: {text}")


def _on_one_terminal() -> bool:
    """Whether the log has shown its warnings where the summary stands."""
    return all(stream is not None and stream.isatty() for stream in (sys.stdout, sys.stderr))


def _rows(one: Saved) -> dict[str, str]:
    from rich.markup import escape

    decisions, report = one.model.decisions, one.report
    quantized = sum(decision.quantized for decision in decisions)
    share = f" ({quantized / len(decisions):.0%})" if decisions else ""
    rows = {
        "accuracy": _accuracy(one.model.accuracy if report is None else report.accuracy),
        "int8": f"{quantized} of {len(decisions)} nodes{share}",
    }
    if report is not None:
        smaller = report.bytes_before / max(report.bytes_after, 1)
        before, after = size_phrase(report.bytes_before), size_phrase(report.bytes_after)
        rows["size"] = f"{before} -> {after} ({smaller:.2f} times smaller)"
        rows["latency"] = _latency(report)
    rows["files"] = "\n".join(map(escape, one.files))
    if one.run is not None:
        rows["report"] = f"amct_onnx report {escape(one.run)}"
    return rows


def _accuracy(accuracy: Accuracy | None) -> str:
    return "not measured: there were no samples for it" if accuracy is None else str(accuracy)


def _latency(report: SavedReport) -> str:
    latency = report.latency
    if latency is None:
        here = report.runtime is not None
        return f"not measured: {'there was no sample to run' if here else 'it runs elsewhere'}"
    if latency.too_busy:
        spread = f"{latency.low:.2f} to {latency.high:.2f} times as fast"
        return f"not measured: the machine is too busy ({spread})"
    before, after = time_phrase(latency.before), time_phrase(latency.after)
    return f"{before} -> {after}, {latency.speedup:.2f} times as fast{_spread(latency)}"


def _spread(latency: Latency) -> str:
    return "" if latency.low is None else f" ({latency.low:.2f} to {latency.high:.2f})"


def document(
    command: QuantizeCommand,
    result: QuantizedModel,
    saved: Sequence[Saved],
    warnings: Sequence[str],
    failed: Sequence[AmctError],
) -> dict[str, Any]:
    """The document of `--json`; `schemas/quantize.json` describes it."""
    return {
        "command": "quantize",
        "version": amct_onnx.__version__,
        "model": command.model,
        "data": None
        if result.data is None
        else {
            "samples": result.data.samples,
            "feeds": result.data.feeds,
            "skipped": result.data.skipped.to_dict(),
        },
        "assumptions": list(result.assumptions),
        "steps": [
            {
                "name": step.name,
                "kept": step.kept,
                "before_db": step.before,
                "after_db": step.after,
                "reason": step.reason,
            }
            for step in result.steps
        ],
        "precision": None if result.precision is None else str(result.precision),
        "results": [_result(one) for one in saved],
        "warnings": list(warnings),
        "errors": [str(error) for error in failed],
    }


def _result(one: Saved) -> dict[str, Any]:
    report, decisions = one.report, one.model.decisions
    accuracy = one.model.accuracy if report is None else report.accuracy
    latency = None if report is None else report.latency
    kernels = None if report is None else report.kernels
    return {
        "target": one.model.target,
        "files": list(one.files),
        "run": one.run,
        "accuracy": None
        if accuracy is None
        else {
            "sqnr_db": accuracy.decibels,
            "same_top1": accuracy.same_top1,
            "samples": accuracy.samples,
            "held_out": accuracy.held_out,
        },
        "quantized": sum(decision.quantized for decision in decisions),
        "candidates": len(decisions),
        "in_float": [{"reason": reason, "nodes": names} for reason, names in in_float(decisions).items()],
        "size": None if report is None else {"before_bytes": report.bytes_before, "after_bytes": report.bytes_after},
        "latency": None
        if latency is None
        else {
            "before_ms": latency.before * 1e3,
            "after_ms": latency.after * 1e3,
            "speedup": latency.speedup,
            "low": latency.low,
            "high": latency.high,
            "runs": latency.runs,
            "too_busy": latency.too_busy,
        },
        "kernels": None
        if kernels is None
        else {
            "integer": sum(kernels.integer.values()),
            "float": sum(kernels.floating.values()),
            "conversions": sum(kernels.conversions.values()),
        },
    }
