"""Constants of a model: the array behind a value, and giving a node a constant of its own.

A constant reaches a node in many ways: as an initializer, shared or not, of this graph or of one around it; as the
output of a `Constant`; through `Identity`, `Transpose` or `Cast`. Passes ask `constant_value` for the array and hand a
new one to `own_constant`; neither has to know how it got there. `constant_tensor` tells shape and dtype without reading
any data, and a tensor can be handed on as it is: see `tensors` for weights that are not in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial, reduce
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from amct_onnx.graph.access import graph_of, is_standard, label_of, name_of, values_read
from amct_onnx.graph.naming import numbered_name
from amct_onnx.graph.tensors import array_of, deferred, renamed, shape_of
from amct_onnx.numerics.arrays import Array

Data = npt.ArrayLike | ir.TensorProtocol

# The nodes that only pass on a constant.
_CHAIN = frozenset({"Constant", "Identity", "Transpose", "Cast"})
_RANDOM = ("Random", "Bernoulli", "Multinomial")
# To ask for the protocol instead takes long.
_TENSORS = (ir.Tensor, ir.LazyTensor, ir.ExternalTensor, ir.serde.TensorProtoTensor)
_FLOATS = frozenset({ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.FLOAT, ir.DataType.DOUBLE})


class ValueNames:
    """The names of all values and nodes of a model (or of one of its functions), so that a new one can be unique.

    A name in a subgraph hides the same name in the graphs around it, and a graph does not know what is around it: only
    the whole model can tell whether a name is free. The body of a function is a scope of its own, which a model's names
    leave out. A node may be called as a value is. Build one for each pass; it learns of names given through it.
    """

    def __init__(self, scope: ir.Model | ir.Function) -> None:
        self._taken: set[str] = set()
        self._nodes: set[str] = set()
        for graph in scope.graphs() if isinstance(scope, ir.Model) else (scope.graph, *scope.subgraphs()):
            self._taken.update(value.name for value in graph.inputs if value.name)
            self._taken.update(graph.initializers)
            self._taken.update(value.name for node in graph for value in node.outputs if value.name)
            self._nodes.update(node.name for node in graph if node.name)

    def new(self, base: str) -> str:
        """A name for a value: `base`, or `base` with the first numeric suffix that is free; taken from now on."""
        return _free(base, self._taken)

    def node(self, base: str) -> str:
        """The same for a node."""
        return _free(base, self._nodes)


def _free(base: str, taken: set[str]) -> str:
    name = numbered_name(base, 1, taken) if base in taken else base
    taken.add(name)
    return name


def constant_value(value: ir.Value | None) -> Array | None:
    """The array behind `value` (read-only), or None when it is not known before run time.

    Known are an initializer, the output of a `Constant`, and an `Identity`, `Transpose` or `Cast` (to a float type) of
    a known value. An initializer that is also a graph input is not: callers may override it at run time.
    """
    tensor = constant_tensor(value)
    return None if tensor is None else array_of(tensor)


def constant_tensor(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The tensor behind `value`, without a look at the data of a large one; None as for `constant_value`."""
    root, links = _origin(value)
    return _changed(_tensor_of(root), links)


def is_constant(value: ir.Value | None) -> bool:
    """Whether `constant_tensor` knows `value`; quick also behind thousands of nodes."""
    root, links = _origin(value)
    casts = (node.attributes.get_int("to", 0) for node in links if node.op_type == "Cast")
    return _tensor_of(root) is not None and all(target in _FLOATS for target in casts)


def is_overridable(value: ir.Value | None) -> bool:
    """Whether `value` is an initializer, perhaps passed on, that is an input of the model too."""
    root, _ = _origin(value)
    return root is not None and root.is_initializer() and root.is_graph_input()


def constant_readers(value: ir.Value | None) -> set[ir.Node]:
    """The nodes that compute with the constant that `value` is, also those behind other nodes that pass it on."""
    root, _ = _origin(value)
    waiting, found = [] if root is None else [root], set[ir.Node]()
    while waiting:
        for use in waiting.pop().uses():
            if _is_link(use.node):
                waiting += use.node.outputs
            else:
                found.add(use.node)
    return found


def why_variable(value: ir.Value | None) -> str:
    """What to say of a value that `constant_tensor` does not know, behind "its weight"."""
    root, _ = _origin(value)
    if root is None or not is_overridable(root):
        return "is computed at run time"
    return f"({root.name}) may be overridden: it is an input of the model too, remove it from the inputs of the graph"


def _origin(value: ir.Value | None) -> tuple[ir.Value | None, list[ir.Node]]:
    """What stands in front of a chain of nodes that pass on a constant, and those that change it, the last one first.

    A loop and no recursion: a file may have thousands of them.
    """
    links: list[ir.Node] = []
    while value is not None and (node := value.producer()) is not None and _is_link(node) and node.inputs:
        if node.op_type != "Identity":
            links.append(node)
        value = node.inputs[0]
    return value, links


def _tensor_of(root: ir.Value | None) -> ir.TensorProtocol | None:
    """The tensor of an initializer that nobody may override, or of a Constant; None for anything else."""
    if root is None or root.is_initializer():
        return None if root is None or root.is_graph_input() else _numeric(root.const_value)
    node = root.producer()
    return _constant_node(node) if node is not None and node.op_type == "Constant" and _is_link(node) else None


def _is_link(node: ir.Node) -> bool:
    return node.op_type in _CHAIN and is_standard(node)


def _numeric(tensor: ir.TensorProtocol | None) -> ir.TensorProtocol | None:
    return None if tensor is None or tensor.dtype == ir.DataType.STRING else tensor


def _constant_node(node: ir.Node) -> ir.TensorProtocol | None:
    for name, attribute in node.attributes.items():
        if attribute.is_ref():
            return None
        if name == "value":
            is_tensor = attribute.type == ir.AttributeType.TENSOR  # `as_tensor` looks at a protocol, which takes long
            return _numeric(attribute.value if is_tensor else attribute.as_tensor())
        if name in ("value_float", "value_floats"):
            return ir.Tensor(np.array(attribute.value, np.float32))
        if name in ("value_int", "value_ints"):
            return ir.Tensor(np.array(attribute.value, np.int64))
    return None


def _changed(source: ir.TensorProtocol | None, links: Sequence[ir.Node]) -> ir.TensorProtocol | None:
    """`source` after the Transposes and Casts of `links`, the last of which comes first; None if they hide it."""
    if source is None or not links:
        return source
    shape, dtype, changes = shape_of(source), source.dtype, list[Callable[[Array], Array]]()
    for node in reversed(links):
        if node.op_type == "Transpose":
            perm = node.attributes.get_ints("perm")
            axes = tuple(reversed(range(len(shape)))) if perm is None else tuple(perm)
            if sorted(axes) != list(range(len(shape))):
                return None
            shape = tuple(shape[k] for k in axes)
            changes.append(partial(np.transpose, axes=axes))
            continue
        # Casts to integers are left out: out of range they differ from runtime to runtime.
        target = node.attributes.get_int("to", 0)
        if target not in _FLOATS or not (dtype.numpy().kind in "biuf" or dtype in _FLOATS):
            return None
        dtype = ir.DataType(target)
        changes.append(partial(_cast, dtype=dtype.numpy()))

    def compute() -> Array:
        return reduce(lambda array, change: change(array), changes, array_of(source))

    return deferred(compute, dtype.numpy(), shape)


def _cast(array: Array, dtype: np.dtype[Any]) -> Array:
    with np.errstate(over="ignore"):
        return array.astype(dtype)


def constant_branches(model: ir.Model) -> frozenset[ir.Value]:
    """The values of the main graph that nodes make of constants alone, whatever the nodes are.

    A table of positions behind layers of its own is one. Any runtime may compute it once. Its array is not known here,
    so `constant_value` gives none for it, but for the operators that only pass on a constant.
    """
    found: set[ir.Value] = set()
    for node in model.graph:
        if is_standard(node) and not node.op_type.startswith(_RANDOM):
            sources = values_read(node)
            if all(value in found or is_constant(value) for value in sources):
                found.update(node.outputs)
    return frozenset(found)


def add_initializer(graph: ir.Graph, name: str, array: Data, *, names: ValueNames) -> ir.Value:
    """Add a new initializer to `graph`, named `name` or, if that is taken, with a numeric suffix."""
    return _register(graph, names.new(name), array)


def _register(graph: ir.Graph, name: str, array: Data) -> ir.Value:
    value = ir.Value(name=name)
    _assign(value, array)
    graph.register_initializer(value)
    return value


def _assign(value: ir.Value, array: Data) -> None:
    tensor: ir.TensorProtocol
    if isinstance(array, _TENSORS) or (not isinstance(array, np.ndarray) and isinstance(array, ir.TensorProtocol)):
        tensor = renamed(array, value.name)
    else:
        tensor = ir.Tensor(np.array(array, order="C"), name=value.name)  # a copy: nobody else can change it later
    value.const_value = tensor
    value.type = ir.TensorType(tensor.dtype)  # new objects: type and shape may be shared between values
    value.shape = ir.Shape(shape_of(tensor))


def own_constant(node: ir.Node, index: int, array: Data, name_hint: str, *, names: ValueNames) -> ir.Value:
    """Make input `index` of `node` an initializer that holds `array` and is read by nothing else.

    An array is copied; a tensor is taken as it is, and its data is not read.

    What other nodes and graph outputs see stays the same; what nobody reads after the change is removed. In order:

    * an initializer, directly or behind a chain, that only serves this input: it is reused, with its name;
    * another constant that only serves this input (say a `Constant`): replaced by an initializer of its name;
    * anything else: a new initializer `<old name>.<node name>`;
    * no input at all (missing or empty): a new initializer `name_hint`, with empty inputs in between if needed.

    Calling it again for the same input changes the array only. The node must be in the main graph or in a subgraph:
    the bodies of model functions cannot hold initializers.
    """
    graph = graph_of(node)
    if index >= len(node.inputs):
        node.resize_inputs(index + 1)
    old = node.inputs[index]
    if old is None:
        owned = add_initializer(graph, name_hint, array, names=names)
        node.replace_input_with(index, owned)
        return owned
    root = _private_root(old)
    if root is not None and root.is_initializer():
        _assign(root, array)
        node.replace_input_with(index, root)
        if old is not root:
            remove_unused((old,))
        return root
    node.replace_input_with(index, None)
    gone = remove_unused((old,))
    if gone and old.name:
        owned = _register(graph, old.name, array)
    else:
        owned = add_initializer(graph, f"{old.name}.{label_of(node)}", array, names=names)
    node.replace_input_with(index, owned)
    return owned


def _private_root(value: ir.Value) -> ir.Value | None:
    """The value at the start of a chain of constants in which every value is read once, None when one is shared."""
    while len(value.uses()) == 1 and not value.is_graph_output() and not value.is_graph_input():
        producer = value.producer()
        if producer is None or not _is_link(producer) or producer.op_type == "Constant":
            return value
        source = producer.inputs[0]
        if source is None:
            return None
        value = source
    return None


def remove_unused(values: Iterable[ir.Value | None], removable: Callable[[ir.Node], bool] = _is_link) -> bool:
    """Remove those of `values` that nobody reads, with the constants that only fed them; True if the first one went.

    Meant for values that the caller has just taken a use from: a model's other unused parts are not ours to remove.
    Graph inputs, graph outputs and values of nodes that are not `removable` always stay. By default these are the nodes
    that may do more than pass on a constant.
    """
    gone = [_remove_if_unused(value, removable) for value in values]
    return bool(gone and gone[0])


def _remove_if_unused(value: ir.Value | None, removable: Callable[[ir.Node], bool]) -> bool:
    """Remove `value`, and then what only fed it; True if it went."""
    first, waiting, gone = value, [value], set[ir.Value | None]()
    while waiting:
        value = waiting.pop()
        graph = None if value is None else value.graph
        if value is None or graph is None or value.uses() or value.is_graph_output() or value.is_graph_input():
            continue
        producer = value.producer()
        if value.is_initializer():
            del graph.initializers[name_of(value)]
        elif producer is None or not removable(producer) or any(output.uses() for output in producer.outputs):
            continue
        else:
            waiting += producer.inputs
            graph.remove(producer, safe=True)
        gone.add(value)
    return first in gone


def lift_ir3(model: ir.Model) -> bool:
    """Turn a model of IR version 3 or below into version 4; True if it was one.

    before: IR 3, inputs (x, w), initializers (w)      after: IR 4, inputs (x), initializers (w)

    Up to version 3 each initializer had to be listed as a graph input too, and runtimes treat it as a constant all the
    same. From version 4 on that listing means "may be overridden", which is how the rest of this package reads it.
    """
    if model.ir_version is not None and model.ir_version >= 4:
        return False
    model.ir_version = 4
    model.graph.inputs[:] = [value for value in model.graph.inputs if not value.is_initializer()]
    return True
