"""Quantize a calibrated model again with fewer layers, from the factors of its one calibration.

Each model is prepared from the float model by the function that `quantize_model` uses, and assembled by the one that
`save_model` uses. So a layer that is rolled back has its float weight again, and what is around it is what the two
would make of a configuration without that layer. Only the factors come from the calibration of all layers: those of an
activation were observed while the weights of all layers in front of it were rounded.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import onnx_ir as ir

from amct_onnx.amct.calibration_model import make_calibration_model
from amct_onnx.amct.save import assemble, read_calibrated
from amct_onnx.files.config_json import read_config
from amct_onnx.files.record import read_calibration, read_record, write_record
from amct_onnx.frozen import FrozenDict
from amct_onnx.graph.instrument.observers import remove_observers
from amct_onnx.numerics.settings import Settings
from amct_onnx.plan.ascend_layers import decide_layers
from amct_onnx.plan.float_model import FloatModel
from amct_onnx.progress import Progress, silent
from amct_onnx.targets.ascend_model import AscendModel
from amct_onnx.values.layers import LayerRecord


@dataclass(frozen=True, kw_only=True, eq=False)
class ConfiguredModel:
    """A float model and its configuration, before anything is done to it."""

    source: FloatModel
    settings: Settings
    layers: tuple[str, ...]
    """The layers that the configuration quantizes, in graph order."""

    @classmethod
    def read(cls, model_file: str, config_file: str) -> ConfiguredModel:
        """Raises the errors of `quantize_model` for the two files."""
        source = FloatModel.open(model_file)
        settings = read_config(config_file, source.facts)
        layers = tuple(decision.layer for decision in decide_layers(source.facts, settings) if decision.quantized)
        return cls(source=source, settings=settings, layers=layers)

    def settings_without(self, layers: Collection[str]) -> Settings:
        """The configuration with `layers` switched off."""
        changed = {
            name: replace(entry, quant_enable=False) if name in layers else entry
            for name, entry in self.settings.layers.items()
        }
        return replace(self.settings, layers=FrozenDict(changed))


@dataclass(frozen=True, kw_only=True)
class CalibratedModel:
    """A calibration that is complete: `quantized` has all layers, `records` their factors as in `record_file`."""

    configured: ConfiguredModel
    quantized: AscendModel
    records: Mapping[str, LayerRecord]
    record_file: str

    @classmethod
    def read(
        cls, configured: ConfiguredModel, modified_onnx_file: str, record_file: str, *, progress: Progress = silent
    ) -> CalibratedModel:
        """The result of `quantize_model` and the batches that ran since. Raises like `read_calibrated`."""
        quantized = read_calibrated(modified_onnx_file, record_file, progress=progress)
        return cls(
            configured=configured, quantized=quantized, records=read_record(record_file), record_file=record_file
        )

    def prepared(self, layers: Collection[str] = ()) -> ir.Model:
        """A new calibration model in which `layers` stay in float."""
        settings = self.configured.settings_without(layers)
        return make_calibration_model(self.configured.source, settings, self.record_file).model

    def records_without(self, layers: Collection[str]) -> dict[str, LayerRecord]:
        """The factors of all but `layers`, of which balance factors stay, as `quantize_model` keeps them."""
        kept = {name: record for name, record in self.records.items() if name not in layers}
        factors = {name: self.records[name].tensor_balance_factor for name in layers}
        return kept | {name: LayerRecord(tensor_balance_factor=values) for name, values in factors.items() if values}

    def write_record(self, path: str, layers: Collection[str]) -> None:
        """Write `records_without`, with the id of the calibration."""
        write_record(path, self.records_without(layers), calibration=read_calibration(self.record_file))

    def without(self, layers: Collection[str]) -> AscendModel:
        """The quantized model in which `layers` stay in float; at least one other layer must be left."""
        return self.assemble(self.prepared(layers), layers) if layers else self.quantized

    def assemble(self, prepared: ir.Model, layers: Collection[str] = ()) -> AscendModel:
        """What `save_model` makes of a model of `prepared`, which is used up."""
        observers = remove_observers(prepared)
        records = self.records_without(layers)
        return assemble(prepared, observers, records, self.record_file, rounding=self.quantized.rounding)
