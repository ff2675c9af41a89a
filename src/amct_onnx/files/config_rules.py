"""The rules for the values of a configuration, as tables, and the functions that check values by them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from amct_onnx.errors import Nearest
from amct_onnx.files.whole_files import Mistakes
from amct_onnx.numerics.settings import (
    ACTIVATION_BITS,
    BINS,
    LARGEST_BETA,
    LARGEST_RATIO,
    LEAST_RATIO,
    MOST_BATCHES,
    MOST_ITERATIONS,
    ROUNDS,
    STEPS,
    STRENGTHS,
    WEIGHT_BITS,
    AdaRound,
    Arq,
    Nuq,
)

ACT_KEY, WTS_KEY = "activation_quant_params", "weight_quant_params"


@dataclass(frozen=True)
class Rule:
    """What one value must be."""

    kind: Literal["int", "float", "strict float", "bool", "str", "list", "object", "pair"]
    """A "strict float" must not be an integer. A "pair" is a list of two numbers."""
    allowed: Callable[[Any], bool] = lambda value: True
    words: str = ""
    """How a message says what is allowed."""


def _one_of(kind: Literal["int", "str"], *values: Any) -> Rule:
    return Rule(kind, lambda value: value in values, f"must be in {list(values)}")


_PERCENTILE = Rule("float", lambda v: 0.5 < v <= 1, "must be greater than 0.5 and less than or equal to 1.0")
_FRACTION = Rule("float", lambda v: 0 < v < 1, "must be less than 1 and larger than 0")

GLOBAL_RULES: Mapping[str, Rule] = {
    "version": Rule("int", lambda v: bool(v == 1), "must be 1."),
    "batch_num": Rule(
        "int", lambda v: bool(0 < v <= MOST_BATCHES), f"must be greater than zero and at most {MOST_BATCHES}"
    ),
    "activation_offset": Rule("bool"),
    "joint_quant": Rule("bool"),
    "do_fusion": Rule("bool"),
    "fakequant_precision_mode": _one_of("str", "DEFAULT", "FORCE_FP16_QUANT"),
    "skip_fusion_layers": Rule("list"),
    "tensor_quantize": Rule("list"),
}
LAYER_RULES: Mapping[str, Rule] = {
    "quant_enable": Rule("bool"),
    "dmq_balancer_param": Rule(
        "strict float", lambda v: STRENGTHS[0] <= v <= STRENGTHS[1], f"must be in range {list(STRENGTHS)}"
    ),
    ACT_KEY: Rule("object"),
    WTS_KEY: Rule("object"),
}
TENSOR_RULES: Mapping[str, Rule] = {"layer_name": Rule("str"), "input_index": Rule("int"), ACT_KEY: Rule("object")}
ACT_RULES: Mapping[str, Rule] = {
    "num_bits": _one_of("int", *ACTIVATION_BITS),
    "max_percentile": _PERCENTILE,
    "min_percentile": _PERCENTILE,
    "search_range": Rule(
        "pair",
        lambda v: LEAST_RATIO <= v[0] < v[1] <= LARGEST_RATIO,
        f"must be [start, end] with {LEAST_RATIO} <= start < end <= {LARGEST_RATIO}",
    ),
    "search_step": Rule(
        "float", lambda v: bool(v >= LEAST_RATIO), f"must be greater than zero and at least {LEAST_RATIO}"
    ),
    "act_algo": _one_of("str", "ifmr", "hfmg"),
    "asymmetric": Rule("bool"),
    "num_of_bins": _one_of("int", *BINS),
}
WTS_RULES: Mapping[str, Rule] = {
    "num_bits": _one_of("int", *WEIGHT_BITS),
    "num_iteration": Rule(
        "int", lambda v: bool(0 <= v <= MOST_ITERATIONS), f"must be larger or equal to 0 and at most {MOST_ITERATIONS}"
    ),
    "reg_param": _FRACTION,
    "beta_range": Rule(
        "pair",
        lambda v: LARGEST_BETA >= v[0] > v[1] > 0,
        f"must be [start, end] with start > end > 0 and start <= {LARGEST_BETA}",
    ),
    "warm_start": _FRACTION,
    "num_steps": _one_of("int", *STEPS),
    "num_of_iteration": _one_of("int", *ROUNDS),
    "channel_wise": Rule("bool"),
    "wts_algo": _one_of("str", "arq_quantize", "ada_quantize", "nuq_quantize"),
}
IFMR_KEYS = ("max_percentile", "min_percentile", "search_range", "search_step")
HFMG_KEYS = ("num_of_bins",)
# In the order in which config.json has them.
WTS_KEYS: Mapping[str, tuple[str, ...]] = {
    "arq_quantize": (),
    "ada_quantize": ("reg_param", "warm_start", "num_iteration", "beta_range"),
    "nuq_quantize": ("num_steps", "num_of_iteration"),
}
WTS_SOLVERS: Mapping[str, type[Arq] | type[AdaRound] | type[Nuq]] = {
    "arq_quantize": Arq,
    "ada_quantize": AdaRound,
    "nuq_quantize": Nuq,
}


def check_value(value: Any, rule: Rule, where: str, mistakes: Mistakes) -> Any:
    """The value if it follows the rule, else None and a mistake. An integer becomes a float if the rule wants one."""
    name = where.rpartition(".")[2]
    right_type = {
        "int": type(value) is int,
        "float": type(value) in (int, float),
        "strict float": type(value) is float,
        "bool": type(value) is bool,
        "str": type(value) is str,
        "list": isinstance(value, list),
        "pair": isinstance(value, list),
        "object": isinstance(value, dict),
    }[rule.kind]
    if rule.kind == "pair" and right_type:
        if len(value) != 2:
            mistakes.add(where, f"The {name} must have two floating-point number, got {_show(value)}")
            return None
        part = Rule("float", words=rule.words)
        pair = [check_value(v, part, f"{where}[{i}]", mistakes) for i, v in enumerate(value)]
        if None in pair:
            return None
        value = pair
    if not right_type:
        kind = {"strict float": "float (with a decimal point)", "pair": "list of two floats"}.get(rule.kind, rule.kind)
        mistakes.add(where, f"Type of {name} should be {kind}, but is {_show(value)}", is_type=True)
        return None
    if "float" in rule.kind:
        value = _to_float(value)
        if not math.isfinite(value):
            limits = f"; {name.partition('[')[0]} {rule.words}" if rule.words else ""
            mistakes.add(where, f"The {name} must be a finite number, got {value}{limits}")
            return None
    if not rule.allowed(value):
        mistakes.add(where, f"The {name} {rule.words} (got {_show(value)})")
        return None
    return value


def check_object(
    document: Mapping[str, Any], rules: Mapping[str, Rule], where: str, mistakes: Mistakes, *, owner: str
) -> dict[str, Any]:
    """The values of an object that follow the rules for their keys. Others, and unknown keys, are mistakes."""
    good: dict[str, Any] = {}
    nearest = Nearest(rules)
    for key, value in document.items():
        place = f"{where}.{key}" if where else key
        if key not in rules:
            mistakes.add(place, f"Unknown parameter {key} in {owner}.{nearest.to(key)}")
            continue
        checked = check_value(value, rules[key], place, mistakes)
        if checked is not None:
            good[key] = checked
    return good


def check_names(
    names: Iterable[Any], where: str, mistakes: Mistakes, *, problem: Callable[[str], str | None]
) -> tuple[str, ...]:
    """The names in a list. What is no string, occurs twice or has a `problem` is a mistake."""
    good: list[str] = []
    repeated: dict[int, str] = {}
    for index, name in enumerate(names):
        if check_value(name, Rule("str"), f"{where}[{index}]", mistakes) is None:
            continue
        if name in good:
            repeated[index] = name
            continue
        good.append(name)
        if (what := problem(name)) is not None:
            mistakes.add(f"{where}[{index}]", what)
    if repeated:
        what = f"Please delete repeated items in {where}, repeated items are {list(repeated.values())}"
        mistakes.add(f"{where}[{next(iter(repeated))}]", what)
    return tuple(good)


def _to_float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _show(value: Any) -> str:
    """The type of a value, and the value as the user wrote it, cut if it is long."""
    try:
        text = json.dumps(value)
    except (TypeError, ValueError):
        text = repr(type(value))
    kind = {dict: "object", type(None): "null"}.get(type(value), type(value).__name__)
    return f"{kind} {text if len(text) <= 60 else text[:57] + '...'}"
