"""AMCT's AutoCalibrationHelper, which scripts patch to mend its search for files (amct_formats.md: Import paths)."""

from __future__ import annotations


class AutoCalibrationHelper:
    """Nothing here uses it: no layer input is dumped to files. A script may patch its methods as before."""

    def find_fm_file_path(self, layer_name: str) -> list[str]:
        """The dump files of a layer: none."""
        return []

    def generate_single_model(self, layer_name: str, input_file_list: list[str]) -> None:
        """AMCT builds a model of one layer here; nothing is done."""
