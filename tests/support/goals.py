"""How a goal of a search judges the model of a session, as the search has it do that."""

from __future__ import annotations

from typing import Any

from amct_onnx.ptq.mixed.goals import Goal, Judgement


def judged(goal: Goal, session: Any = None) -> Judgement:
    return goal.judge(goal.measuring()(session))
