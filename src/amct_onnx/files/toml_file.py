"""Reads TOML files."""

from __future__ import annotations

import os
import sys
from typing import Any

from amct_onnx.errors import ConfigError
from amct_onnx.files.whole_files import read_text


def read_toml(path: str | os.PathLike[str], *, what: str) -> dict[str, Any]:
    """The document in a TOML file. what: the kind of file, for messages.

    Raises FileMissingError, and ConfigError, with line and column, for what is no TOML.
    """
    name, text = os.fspath(path), read_text(path, what=what)
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        document: dict[str, Any] = tomllib.loads(text)
    except tomllib.TOMLDecodeError as reason:
        raise ConfigError(f"{name}: no TOML: {reason}") from None
    return document
