"""Which nodes a user means who names some, by names, patterns of names, or types: `skip_layers` of `quantize`."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping

from amct_onnx.errors import ArgumentError, ArgumentTypeError
from amct_onnx.words import named

_TYPE = "type:"
_NEAREST = 3


def matching_nodes(wanted: Collection[str], nodes: Mapping[str, str], option: str = "skip_layers") -> tuple[str, ...]:
    """The names of the nodes that `wanted` names, each once.

    wanted: names; patterns, in which * stands for any letters and ? for one; or "type:Softmax", the nodes of that
    operator type, which may be a pattern too. What is the name of a node as it stands is that name. nodes: the operator
    type of each node, by its name. option: what messages call `wanted`.

    Raises ArgumentTypeError for what is no list of texts, and ArgumentError for a text that names no node.
    """
    if (
        isinstance(wanted, str)
        or not isinstance(wanted, Collection)
        or not all(isinstance(word, str) for word in wanted)
    ):
        raise ArgumentTypeError(f"{named(option)} must be a list of names, got {_shown(wanted)}")
    found: dict[str, None] = {}
    for word in wanted:
        names = [word] if word in nodes else _matches(word, nodes)
        if not names:
            raise ArgumentError(f"{named(option)}: the model has no node {_hint(word, nodes)}")
        found.update(dict.fromkeys(names))
    return tuple(found)


def _matches(word: str, nodes: Mapping[str, str]) -> list[str]:
    pattern = _regex(word.removeprefix(_TYPE).strip() if word.startswith(_TYPE) else word)
    if word.startswith(_TYPE):
        return [name for name, op_type in nodes.items() if pattern.fullmatch(op_type)]
    return [name for name in nodes if pattern.fullmatch(name)] if set("*?") & set(word) else []


def _regex(pattern: str) -> re.Pattern[str]:
    """Brackets are no wildcards: exporters write them in names."""
    return re.compile(re.escape(pattern).replace(r"\*", ".*").replace(r"\?", "."), re.DOTALL)


def _hint(word: str, nodes: Mapping[str, str]) -> str:
    """The end of the message about a text that names no node: what it is, and the names that are most like it."""
    if word.startswith(_TYPE):
        kind, known, prefix = f"of the type {word.removeprefix(_TYPE).strip()!r}", set(nodes.values()), _TYPE
    else:
        kind, known, prefix = f"{'like ' if set('*?') & set(word) else ''}{word!r}", set(nodes), ""
    folded: dict[str, str] = {}
    for name in sorted(known):
        folded.setdefault(name.casefold(), name)
    asked = re.sub(r"[*?]", "", word.removeprefix(_TYPE)).strip().casefold()
    near = difflib.get_close_matches(asked, folded, n=_NEAREST)
    near = near or [name for name in folded if len(asked) > 2 and (asked in name or name in asked)][:_NEAREST]
    if near:
        return f"{kind}, did you mean {' or '.join(repr(prefix + folded[name]) for name in near)}?"
    return f"{kind}; it has {', '.join(map(repr, sorted(known)[:_NEAREST]))}{' ...' if len(known) > _NEAREST else ''}"


def _shown(wanted: object) -> str:
    return f"the text {wanted!r}" if isinstance(wanted, str) else repr(wanted)[:80]
