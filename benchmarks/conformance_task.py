"""A task of `make conformance` in the process that does it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import onnxruntime as ort
from conformance_forms import NotApplicableError, make_case
from conformance_models import items
from conformance_outcomes import Reference, judge

_open = ort.InferenceSession.__init__


def _open_on_one_thread(self: Any, model: Any, sess_options: Any = None, *args: Any, **kwargs: Any) -> None:
    """The models are small, and the workers take all processors already."""
    given = ort.SessionOptions() if sess_options is None else sess_options
    given.intra_op_num_threads = given.intra_op_num_threads or 1
    _open(self, model, given, *args, **kwargs)


def answers_to(form: str, source: str, name: str, routes: Sequence[str]) -> Iterator[dict[str, Any]]:
    """What came of each route, and before each that it begins; of the route "form" if the model cannot be made."""
    ort.InferenceSession.__init__ = _open_on_one_thread
    start = time.perf_counter()
    yield {"begins": "form"}
    try:
        reference = Reference.of(make_case(items(source)[name], form))
    except NotApplicableError as error:
        yield {"route": "form", "words": "no such form", "details": str(error), "seconds": 0.0}
        return
    for route in routes:
        yield {"begins": route}
        outcome = judge(reference, route, "default" if form == "default" else "fast")
        seconds, start = time.perf_counter() - start, time.perf_counter()
        yield {"route": route, "words": outcome.words, "details": outcome.details, "seconds": round(seconds, 3)}
