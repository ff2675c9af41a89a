"""Binary search for the fewest layers to roll back, the most sensitive ones first (amct_formats.md: Binary search)."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from amct_onnx.amct.interfaces import AutoCalibrationStrategyBase


class BinarySearchStrategy(AutoCalibrationStrategyBase):
    """Rolls back the k most sensitive layers, and halves the range of k after each trial.

    That finds the smallest k if each layer more makes the accuracy better. Where it does not, the answer is the last
    configuration that was good enough; so it never gives one that has not been tried, except that of all layers.
    """

    def __init__(self) -> None:
        super().__init__()
        self._order: list[str] = []
        self._left = self._right = self._rolled_back = 0
        self._best: int | None = None

    def initialize(self, ranking_info: dict[str, float]) -> None:
        self._order = sorted(ranking_info, key=lambda layer: ranking_info[layer])
        # Between _left and _right layers are to be rolled back; _rolled_back of them are in the last trial.
        self._left, self._right, self._rolled_back = 1, len(self._order), 0
        self._best = None

    def update_quant_config(self, metric_eval: tuple[bool, float]) -> dict[str, Any]:
        satisfied, _ = metric_eval
        if satisfied:
            self._best = self._rolled_back
            self._right = self._rolled_back - 1
        elif self._rolled_back:
            self._left = self._rolled_back + 1
        stop = self._left > self._right
        if stop:
            self._rolled_back = len(self._order) if self._best is None else self._best
        else:
            self._rolled_back = (self._left + self._right) // 2
        config = OrderedDict((layer, index >= self._rolled_back) for index, layer in enumerate(self._order))
        return {"stop_flag": stop, "roll_back_config": config}
