"""A graph in the making: its nodes, its constants, and the tensors that further nodes may read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

N = "N"  # the batch, where the network leaves it open
Dim = int | str
FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16
_TYPES = {FLOAT: np.float32, HALF: np.float16}


@dataclass(frozen=True, eq=False)
class Tensor:
    """A tensor of a graph; its dimensions are numbers, or N."""

    name: str
    shape: tuple[Dim, ...]
    kind: int = FLOAT

    @property
    def rank(self) -> int:
        return len(self.shape)

    def fixed(self, *, but: Sequence[int] = (0,)) -> bool:
        """Whether all dimensions are numbers, `but` those of some axes."""
        return all(isinstance(dim, int) for axis, dim in enumerate(self.shape) if axis not in but)

    def free_axes(self, least: int = 1) -> list[int]:
        """The axes of a known length of at least `least` elements; the last first, since the first may be a batch."""
        found = [axis for axis, dim in enumerate(self.shape) if isinstance(dim, int) and dim >= least]
        return found[::-1]


class Draws:
    """Choices of hypothesis; the first option is the simplest."""

    def __init__(self, draw: Callable[[st.SearchStrategy[Any]], Any]) -> None:
        self._draw = draw

    def flag(self) -> bool:
        return bool(self._draw(st.booleans()))

    def rarely(self) -> bool:
        """True in one of eight."""
        return bool(self._draw(st.integers(0, 7)) == 7)

    def pick(self, *options: Any) -> Any:
        return options[0] if len(options) == 1 else options[self._draw(st.integers(0, len(options) - 1))]

    def number(self, low: int, high: int) -> int:
        return low if low == high else int(self._draw(st.integers(low, high)))

    def shuffled(self, items: Sequence[Any]) -> list[Any]:
        return list(self._draw(st.permutations(items)))


@dataclass
class Shared:
    """What all graphs of a network have in common. `overridable`: constants may be inputs of the network, too."""

    opset: int
    draws: Draws
    overridable: bool = False
    names: dict[str, int] = field(default_factory=dict)
    weights: dict[tuple[Any, ...], Tensor] = field(default_factory=dict)
    inputs: list[tuple[Tensor, str]] = field(default_factory=list)
    optional: list[str] = field(default_factory=list)
    depth: int = 0


class Scope:
    """A graph under construction; one with a `parent` is the body of a node of that graph, and may read its tensors.

    tensors: those of floating point, which further nodes may read.
    """

    def __init__(self, shared: Shared, parent: Scope | None = None) -> None:
        self.shared, self.parent = shared, parent
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.tensors: list[Tensor] = []

    @property
    def opset(self) -> int:
        return self.shared.opset

    @property
    def draws(self) -> Draws:
        return self.shared.draws

    def readable(self) -> Iterator[Tensor]:
        """The tensors of this graph, the newest first, and then those of the graphs around it."""
        yield from reversed(self.tensors)
        if self.parent is not None:
            yield from self.parent.readable()

    def like(self, tensor: Tensor) -> list[Tensor]:
        """Other tensors of the same shape and type, the oldest first."""
        same = [t for t in self.readable() if (t.shape, t.kind) == (tensor.shape, tensor.kind) and t is not tensor]
        return same[::-1]

    def name(self, hint: str) -> str:
        number = self.shared.names[hint] = self.shared.names.get(hint, 0) + 1
        return f"{hint}{number}"

    def add(
        self,
        op_type: str,
        inputs: Sequence[Tensor | str],
        shape: Sequence[Dim],
        *,
        kind: int | None = None,
        **more: Any,
    ) -> Tensor:
        """The one result of a new node, of the type of its first input if `kind` does not say another."""
        first = inputs[0] if inputs else None
        made = kind if kind is not None else first.kind if isinstance(first, Tensor) else FLOAT
        result = Tensor(self.name("t"), tuple(shape), made)
        self.node(op_type, inputs, [result.name], **more)
        if made in _TYPES:
            self.tensors.append(result)
        return result

    def node(self, op_type: str, inputs: Sequence[Tensor | str], outputs: Sequence[str], **more: Any) -> None:
        names = [value.name if isinstance(value, Tensor) else value for value in inputs]
        self.nodes.append(helper.make_node(op_type, names, list(outputs), name=self.name(op_type.lower()), **more))

    def weight(self, *shape: int, kind: int = FLOAT, gain: float = 1.0, share: bool = True) -> str:
        """A constant of random numbers whose products with `shape[1:]` numbers keep their scale; perhaps one that
        another node has."""
        known = self.shared.weights.get((shape, kind, gain)) if share else None
        if known is not None and self.draws.flag():
            return known.name
        rng = np.random.default_rng([len(self.shared.weights), *shape])
        fan = max(1, int(np.prod(shape[1:], dtype=np.int64)))
        array = (rng.normal(size=shape) * gain / np.sqrt(fan)).astype(_TYPES[kind])
        name = self.constant(array, "w")
        if self.parent is None:  # what a body holds, nobody else can read
            self.shared.weights[shape, kind, gain] = Tensor(name, shape, kind)
        return name

    def vector(self, *shape: int, kind: int = FLOAT, low: float = -1.0, high: float = 1.0) -> str:
        """A constant of uniform numbers."""
        rng = np.random.default_rng([self.shared.names.get("c", 0), *shape])
        return self.constant(rng.uniform(low, high, shape).astype(_TYPES[kind]), "c")

    def scalar(self, value: float, kind: int = FLOAT) -> str:
        return self.constant(np.array(value, _TYPES[kind]), "c")

    def ints(self, *values: int) -> str:
        """A constant of int64, as shapes and axes are."""
        return self.constant(np.array(values, np.int64), "i", plain=True)

    def constant(self, array: np.ndarray, hint: str, *, plain: bool = False) -> str:
        """A constant, in one of the forms in which a graph may have it. `plain`: an initializer or a Constant."""
        name, styles = self.name(hint), ["initializer", "node", "initializer", "node"]
        if not plain and array.dtype == np.float32:
            styles.append("behind")
            if self.shared.overridable:
                styles.append("input")
        style = self.draws.pick(*styles)
        if style == "node":
            self.node("Constant", [], [name], value=numpy_helper.from_array(array))
        elif style == "behind":
            self.initializers.append(numpy_helper.from_array(array.T.copy(), f"{name}_stored"))
            self.node("Transpose", [f"{name}_stored"], [name])
        else:
            home = self.outermost() if style == "input" else self
            home.initializers.append(numpy_helper.from_array(array, name))
            if style == "input":
                self.shared.optional.append(name)
        return name

    def outermost(self) -> Scope:
        return self if self.parent is None else self.parent.outermost()

    def graph(self, name: str, inputs: Sequence[onnx.ValueInfoProto], outputs: Sequence[Tensor]) -> onnx.GraphProto:
        results = [helper.make_tensor_value_info(t.name, t.kind, list(t.shape)) for t in outputs]
        return helper.make_graph(self.nodes, name, list(inputs), results, self.initializers)
