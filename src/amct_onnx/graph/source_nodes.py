"""Which node of a model file a node is that ONNX Runtime shows in its optimised graph.

ONNX Runtime keeps the names of most nodes, but not of all of them, and which ones depends on the CPU. Where it blocks
channels (NCHWc, by 8 with AVX2 and by 16 with AVX-512) a node is named after the tensor that it wrote, and its output
has a new name. A fused node has the name of one of the nodes that were fused, or a name of its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

import onnx_ir as ir

# What ONNX Runtime appends to a name: it blocks channels, and it makes the name unique.
_APPENDED = re.compile(r"(_nchwc)?(_token_\d+)?$")
# They block channels and undo it.
_REORDERS = frozenset({"ReorderInput", "ReorderOutput"})
# A fused node of an operator may end with so many other nodes: a normalization, a sum and an activation.
_MOST_FUSED = 3


class _SourceNode(NamedTuple):
    """What is kept of a node, so that the model with its weights need not stay in memory."""

    name: str  # the first output where the node has no name
    op_type: str
    first_input: str
    outputs: tuple[str, ...]


class SourceNodes:
    """The nodes of a model as its file has them, subgraphs included."""

    def __init__(self, model: ir.Model) -> None:
        self._names: set[str] = set()
        self._writers: dict[str, _SourceNode] = {}
        self._readers: dict[str, list[_SourceNode]] = {}
        for node in model.graph.all_nodes():
            outputs = tuple(value.name for value in node.outputs if value.name)
            first = node.inputs[0].name if node.inputs and node.inputs[0] is not None else None
            known = _SourceNode(node.name or next(iter(outputs), ""), node.op_type, first or "", outputs)
            self._names.add(known.name)
            self._writers.update(dict.fromkeys(outputs, known))
            for value in {value.name for value in node.inputs if value is not None and value.name}:
                self._readers.setdefault(value, []).append(known)

    def name_of(self, node: ir.Node) -> str:
        """The name in the file of what `node` of the optimised graph computes.

        A node of the file without a name goes by its first output. The name in the optimised graph is returned for a
        node that was not in the file, for example one of a function that has been inlined.
        """
        if node.name and node.name in self._names:
            return node.name
        source = self._writer_behind(node) or self._reader_in_front(node)
        if source is not None:
            return source.name
        return _APPENDED.sub("", node.name or "") or next((value.name for value in node.outputs if value.name), "")

    def _writer_behind(self, node: ir.Node) -> _SourceNode | None:
        """The node of the file that wrote what `node` writes, or the one of the same operator that is fused with it."""
        last = next((self._writers[name] for name in _written(node) if name in self._writers), None)
        source = last
        for _ in range(_MOST_FUSED):
            if source is None or source.op_type == _operator(node):
                break
            source = self._writers.get(source.first_input)
        return source if source is not None and source.op_type == _operator(node) else last

    def _reader_in_front(self, node: ir.Node) -> _SourceNode | None:
        """The only node of the file of the same operator that reads what `node` reads, or what is fused behind that."""
        value = node.inputs[0] if node.inputs else None
        while value is not None and (writer := value.producer()) is not None and writer.op_type in _REORDERS:
            value = writer.inputs[0]
        if value is None:
            return None
        writer = value.producer()
        names = [value.name or ""] if writer is None else list(_written(writer))
        for _ in range(_MOST_FUSED):
            readers = [reader for name in names for reader in self._readers.get(name, ())]
            same = [reader for reader in readers if reader.op_type == _operator(node)]
            if same:
                return same[0] if len(same) == 1 else None
            names = [name for reader in readers for name in reader.outputs]
        return None


def _operator(node: ir.Node) -> str:
    return node.op_type.removeprefix("Fused")


def _written(node: ir.Node) -> Iterator[str]:
    """Names that the outputs of `node` may have in the file."""
    for value in node.outputs:
        yield value.name or ""
        for reader in value.consumers():
            if reader.op_type in _REORDERS:
                yield reader.outputs[0].name or ""
    yield _APPENDED.sub("", node.name or "")
