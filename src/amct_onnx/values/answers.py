"""What code of the user's answers, as Python values: a truth or a number, be it Python's, numpy's or a tensor's."""

from __future__ import annotations

import math
from numbers import Complex, Real
from typing import Any


def to_number(value: Any, giver: str = "it") -> float:
    """The number that `value` is, or that an array or a tensor of one element holds.

    giver: who returned it, for the message. Raises TypeError for what is no number, a truth among it, and ValueError
    for NaN.
    """
    single = _single(value)
    no_number = isinstance(single, bool | str | bytes) or (isinstance(single, Complex) and not isinstance(single, Real))
    if no_number or not hasattr(type(single), "__float__"):
        raise TypeError(f"{giver} must return a number, got {shown(value)}")
    try:
        number = float(single)
    except Exception as error:  # whatever a tensor's own code raises
        raise TypeError(f"{giver} must return a number, got {shown(value)}") from error
    if math.isnan(number):
        raise ValueError(f"{giver} returned NaN")
    return number


def to_scores(value: Any) -> tuple[float, ...]:
    """The numbers of an array, tensor, list or tuple of several, one for each sample; of anything else `to_number`.

    Raises what `to_number` raises.
    """
    several = value.tolist() if len(getattr(value, "shape", ())) == 1 else value
    if isinstance(several, list | tuple) and len(several) > 1:
        return tuple(to_number(one) for one in several)
    return (to_number(value),)


def to_truth(value: Any) -> bool:
    """Whether `value` is true: a bool, a number, or an array or a tensor that holds one of these.

    Raises TypeError for anything else (texts, None, containers), and ValueError for NaN.
    """
    single = _single(value)
    return single if isinstance(single, bool) else bool(to_number(single))


def shown(value: Any) -> str:
    """The type of a value, and its shape if it has one, for a message."""
    shape = getattr(value, "shape", None)
    name = type(value).__name__
    return name if shape is None or len(shape) == 0 else f"{name} of shape {tuple(shape)}"


def _single(value: Any) -> Any:
    """The element of an array or tensor of one element; anything else as it is."""
    item = getattr(value, "item", None)
    if isinstance(value, type) or not callable(item):
        return value
    try:
        return item()
    except Exception:  # several elements: numpy raises ValueError, torch RuntimeError
        return value
