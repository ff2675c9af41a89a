"""Shows `name: what it is` lines of docstrings as a list, each under the name of its argument or field."""

from __future__ import annotations

import re
from typing import Any

import griffe


class ListedArguments(griffe.Extension):
    """An extension of the reader of docstrings."""

    def on_function_instance(self, *, func: griffe.Function, **_: Any) -> None:
        """Make a list of what a docstring says of arguments."""
        _list(func, [parameter.name for parameter in func.parameters])

    def on_class_members(self, *, cls: griffe.Class, **_: Any) -> None:
        """Make a list of what a docstring says of fields."""
        _list(cls, [name for name, member in cls.members.items() if member.is_attribute])


def _list(shown: griffe.Object, names: list[str]) -> None:
    if shown.docstring is not None and names:
        line = re.compile(rf"^((?:(?:{'|'.join(names)})(?:, )?)+): ", re.MULTILINE)
        shown.docstring.value = re.sub(r"\n(- \*\*)", r"\n\n\1", line.sub(r"- **\1**: ", shown.docstring.value))
