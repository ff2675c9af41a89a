"""Decides whether the samples of data lie along axis 0, as the shapes of a model say, by a trial on the first of them.

Shapes do not tell: axis 0 may be the time of a sequence or the nodes of a graph, a cache may have its batch on axis 1,
a Reshape may hold the batch of the export. The network does: where axis 0 is the batch, it makes of two rows together
what it makes of each alone.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

import numpy as np

from amct_onnx.data.batches import BatchRule, check_rows
from amct_onnx.errors import AmctError
from amct_onnx.numerics.arrays import Array, Feed

_ROWS = 2  # that are run together and one by one
_BATCHES = (*range(3, 9), 16, 32)  # sizes that a network may hold inside; 1 and 2 are tried in any case
_LIKE = 1e-6  # noise over signal of float kernels for batches of another size, with room
_MOSTLY = 0.99  # of the integers of an output are the same then: a float kernel may turn the result of a comparison


NOT_ONE_BY_ONE = "the network does not take the rows of axis 0 one by one"


class Network(Protocol):
    """A float model that can be run."""

    def __call__(self, feed: Feed) -> Mapping[str, Array]:
        """The outputs by name. Raises AmctError where the network takes no such feed."""

    def is_rowwise(self, inputs: Collection[str]) -> bool:
        """Whether its operators show, without a trial, that axis 0 of these inputs is a batch."""

    def close(self) -> None:
        """Give memory back."""


def decide(rule: BatchRule, first: Feed, second: Feed | None, network: Network, where: str) -> BatchRule | None:
    """The rule of `network`, whose shapes say `rule`, after a trial with the first feed; None if it takes no such feed.

    second: another one, for a first one of a single row. where: what errors call the first. Raises DataError where its
    inputs are of different length, and the network does not take them so.
    """
    lengths = rule.lengths(first)
    if rule.fixed is not None or not lengths:
        return rule
    if len(set(lengths.values())) > 1:
        if not runs(network, first):
            check_rows(lengths, where)
        text = ", ".join(f"{name!r} has {lengths[name]}" for name in sorted(lengths))
        return BatchRule.of_whole_feeds(f"its inputs differ in the length of axis 0: {text}")
    rows = rule.rows(first)
    agreed = rule if rows == 1 else rule.settled(first)
    if len(lengths) == len(first) and network.is_rowwise(frozenset(lengths)):
        return agreed
    if rows == 1:
        other = first if second is None or not rule.joinable(first, second) else rule.cut(second, 0, 1)
        parts = [first, other]
    else:
        parts = [rule.cut(first, row, row + 1) for row in range(_ROWS)]
    alone, together = [_try(network, part) for part in parts], _try(network, rule.join(parts))
    if None not in alone and together is not None:
        strange = next((name for name in together if not _follows(name, together, alone, parts)), None)
        return agreed if strange is None else BatchRule.of_whole_feeds(f"output {strange!r} is not made row by row")
    if rows == 1:
        return None if None in alone else BatchRule.of_whole_feeds("the network does not take two rows together")
    if (rows == _ROWS and together is not None) or (rows > _ROWS and runs(network, first)):
        return BatchRule.of_whole_feeds(NOT_ONE_BY_ONE)
    return _with_batch_inside(rule, first, network, takes_one=None not in alone, takes_two=together is not None)


def _with_batch_inside(
    rule: BatchRule, first: Feed, network: Network, *, takes_one: bool, takes_two: bool
) -> BatchRule | None:
    """The rule of a network that takes only so many rows at a time; None if none of the usual numbers is right."""
    if takes_one or takes_two:
        return rule.fixed_at(1 if takes_one else _ROWS)
    sizes = (size for size in _BATCHES if size < rule.rows(first))
    found = next((size for size in sizes if runs(network, rule.cut(first, 0, size))), None)
    return None if found is None else rule.fixed_at(found)


def _try(network: Network, feed: Feed) -> Mapping[str, Array] | None:
    try:
        return network(feed)
    except AmctError:  # it takes no such feed; or it cannot be run, as a plugin of a target behind the layers
        return None


def runs(network: Network, feed: Feed) -> bool:
    """Whether the network takes a feed."""
    return _try(network, feed) is not None


def _follows(
    name: str, together: Mapping[str, Array], alone: Sequence[Mapping[str, Array] | None], parts: Sequence[Feed]
) -> bool:
    """Whether an output has the rows of the parts one after the other, or does not depend on the inputs at all."""
    whole, pieces = together[name], [outputs[name] for outputs in alone if outputs is not None]
    if all(piece.ndim == whole.ndim > 0 and piece.shape[1:] == whole.shape[1:] for piece in pieces):
        joined = np.concatenate(pieces)
        if joined.shape == whole.shape and _alike(joined, whole):
            return True
    is_constant = all(piece.shape == whole.shape and np.array_equal(piece, whole) for piece in pieces)
    return is_constant and any(not np.array_equal(parts[0][key], parts[1][key]) for key in parts[0])


def _alike(one: Array, two: Array) -> bool:
    if one.dtype.kind != "f":
        return not one.size or bool(np.mean(one == two) >= _MOSTLY)
    finite = np.isfinite(two)
    if not np.array_equal(one[~finite], two[~finite], equal_nan=True):
        return False
    exact = two[finite].astype(np.float64)
    noise = np.square(one[finite].astype(np.float64) - exact).sum()
    return bool(noise <= _LIKE * np.square(exact).sum())
