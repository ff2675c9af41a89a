"""Balance factors between quantize_preprocess, which has them collected, and quantize_model, which uses them.

The record names the quantize_preprocess call that began it by an id. It is a digest of what the factors depend on
besides the data: the balanced layers, their weights and their migration strengths. quantize_model makes the same digest
and so knows factors of other weights or strengths. It appends the id to its own, and can then run again on its record.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir

from amct_onnx.errors import AmctError, ModelError, RecordError, listed
from amct_onnx.files.record import check_keys, check_record, read_calibration, read_notes, read_record
from amct_onnx.graph.index import index_graph
from amct_onnx.graph.layers import is_half
from amct_onnx.graph.passes.balance import balance_factors, channel_axis, weight_maxima
from amct_onnx.numerics.arrays import Floats
from amct_onnx.numerics.settings import LayerSettings, Settings
from amct_onnx.observe.calibration import finish
from amct_onnx.values.layers import CalibrationNote, GraphFacts, LayerRecord
from amct_onnx.values.observer_tasks import Balance

# A user may shorten the decimals of a factor; more is another factor than the one in the model.
_FACTOR_TOLERANCE = 1e-5
# A float16 model holds 1/f: two steps of its 11 bits, and its smallest number.
_HALF_TOLERANCE, _HALF_SMALLEST = 1e-3, 2.0**-24
_AGAIN = "run quantize_preprocess and the model that it writes again, with the same record file"


def balanced_layers(layers: Iterable[str], settings: Settings) -> tuple[str, ...]:
    """Those of `layers`, quantized layers in graph order, that the configuration wants balanced."""
    return tuple(layer for layer in layers if settings.layers[layer].dmq_strength is not None)


def balance_tasks(model: ir.Model, layers: Iterable[str], settings: Settings) -> dict[str, Balance]:
    """What is to be observed for each of `layers`, of a fused model.

    Raises ModelError for a weight that holds NaN or Inf.
    """
    nodes = index_graph(model).nodes
    tasks: dict[str, Balance] = {}
    for layer in layers:
        maxima = weight_maxima(nodes[layer])
        if not np.isfinite(maxima).all():
            text = "the weight holds NaN or Inf. Correct the model or add the layer to skip_layers."
            raise ModelError(f'Layer "{layer}": {text}')
        tasks[layer] = Balance(
            axis=channel_axis(nodes[layer]),
            strength=settings.layers.get(layer, LayerSettings()).dmq_strength or 0.0,
            weight_maxima=tuple(float(value) for value in maxima),
        )
    return tasks


def balancing_id(tasks: Mapping[str, Balance]) -> str:
    """16 hex digits for the layers, weights and strengths that factors are made for."""
    return hashlib.blake2b(repr(sorted(tasks.items())).encode(), digest_size=8).hexdigest()


@dataclass(frozen=True, kw_only=True)
class BalanceFactors:
    """The balance factors of a record: of quantized layers that the configuration wants balanced, and of others.

    `calibration` is the id of the quantize_preprocess call that the record began with, "" if there is none. `notes`:
    what a user should know, as sentences.
    """

    used: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    unused: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    calibration: str = ""
    notes: tuple[str, ...] = ()

    def arrays(self) -> dict[str, Floats]:
        """The factors in use, float32[C] each."""
        return {layer: np.array(factors, np.float32) for layer, factors in self.used.items()}

    def extend_id(self, calibration: str) -> str:
        """The id for a record that goes on from these factors."""
        return f"{calibration}.{self.calibration}" if self.calibration else calibration

    def keep(self, records: Mapping[str, LayerRecord]) -> dict[str, LayerRecord]:
        """`records` with the factors in use; and, behind them, the factors of layers that are not quantized now."""
        kept = {n: replace(r, tensor_balance_factor=self.used.get(n, ())) for n, r in records.items()}
        return kept | {n: LayerRecord(tensor_balance_factor=f) for n, f in self.unused.items() if n not in kept}


def read_balancing(
    record_file: str, model: ir.Model, facts: GraphFacts, layers: Sequence[str], settings: Settings
) -> BalanceFactors:
    """The balance factors that the configuration asks for; no record is needed where it asks for none.

    layers: the quantized layers of `model`, which is fused. Raises RecordError when keys are unknown, or factors
    missing, out of range or made for other weights or strengths, each time with what to do.
    """
    wanted = balanced_layers(layers, settings)
    if not wanted:
        return BalanceFactors(notes=_dropped_factors(record_file))
    if not os.path.exists(record_file):
        text = f"config_file indicates dmq_balancer, but record_file {record_file} does not exist"
        raise RecordError(f"{text}: {_AGAIN}.")
    if "." not in read_calibration(record_file):  # otherwise quantize_model wrote it, and what runs since calibrates
        finish(os.path.realpath(record_file))
        refuse_failed(read_notes(record_file), "Balancing", f" Then {_AGAIN}.")
    found = read_record(record_file)
    check_keys(found, facts.nodes, path=record_file, layers=wanted)
    records = {name: record for name, record in found.items() if record.tensor_balance_factor}
    missing = [layer for layer in wanted if layer not in records]
    if len(missing) == len(wanted):
        raise RecordError(
            f"config_file indicates dmq_balancer, but record_file is empty: {record_file} holds no "
            f"tensor_balance_factor. Run the model that quantize_preprocess wrote for at least one batch, or {_AGAIN}."
        )
    if missing:
        raise RecordError(
            f"config_file indicates dmq_balancer, but {record_file} holds no tensor_balance_factor of layer "
            f"{listed(missing, 5)}: {_AGAIN}."
        )
    check_record(records, facts, path=record_file, calibrated=False)
    noted = read_calibration(record_file).rpartition(".")[2]
    if noted and noted != balancing_id(balance_tasks(model, records, settings)):
        raise RecordError(
            f"{record_file}: its balance factors were made for other layers, other weights or another "
            f"dmq_balancer_param: {_AGAIN}."
        )
    factors = {name: record.tensor_balance_factor for name, record in records.items()}
    return BalanceFactors(
        used={layer: factors[layer] for layer in wanted},
        unused={layer: values for layer, values in factors.items() if layer not in wanted},
        calibration=noted,
    )


def refuse_failed(notes: Sequence[CalibrationNote], what: str, advice: str = "") -> None:
    """Raise RecordError with the first note of a layer that failed. `what` failed, and `advice` is what to do then."""
    failed = [note for note in notes if note.error]
    if failed:
        more = f" (and {len(failed) - 1} more layers)" if len(failed) > 1 else ""
        raise RecordError(f'{what} of layer "{failed[0].layer}"{more} failed: {failed[0].error}.{advice}')


def _dropped_factors(record_file: str) -> tuple[str, ...]:
    """What to tell where a record that is about to be overwritten holds factors that somebody waited for."""
    try:
        balanced = any(record.tensor_balance_factor for record in read_record(record_file).values())
    except AmctError:
        return ()
    text = f"{record_file} holds balance factors, which are dropped: no enabled layer has dmq_balancer_param."
    return (text,) if balanced else ()


def check_balanced(model: ir.Model, layers: Iterable[str], records: Mapping[str, LayerRecord], path: str) -> None:
    """Raise RecordError when a record's balance factors are not those that are in the calibration model."""
    nodes = index_graph(model).nodes
    for layer in layers:
        used, noted = balance_factors(nodes[layer]), np.array(records[layer].tensor_balance_factor, np.float32)
        used = np.zeros(0, np.float32) if used is None else used
        if used.shape != noted.shape or not _are_alike(used, noted, half=is_half(nodes[layer])):
            raise RecordError(
                f"{path}: tensor_balance_factor of layer {layer} does not fit the model. The record belongs to another "
                "model or was edited: run quantize_model and the calibration again."
            )


def _are_alike(used: Floats, noted: Floats, *, half: bool) -> bool:
    """Whether the factors in the model are those of the record, as far as the model's type can tell."""
    if half:
        return bool((np.abs(1 / used - 1 / noted) <= _HALF_TOLERANCE / used + _HALF_SMALLEST).all())
    return bool((np.abs(used - noted) <= _FACTOR_TOLERANCE * used).all())
