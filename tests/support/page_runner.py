"""Runs the code of a page as a reader would: `python page_runner.py PAGE FOLDER`, one block after the other in FOLDER.

Blocks of Python share their names, as in one session; a block of a shell is a script of bash that stops at an error.
What a test cannot do in earnest is done for show: `make TARGET` has to exist, and `pip install` has to name something
that can be installed from this folder or extras that it has.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

ROOT = Path(__file__).resolve().parents[2]
FENCE = re.compile(
    r"^(?P<indent> *)```(?P<tag>[\w-]*)[^\n]*\n(?P<code>.*?)^(?P=indent)``` *$", re.MULTILINE | re.DOTALL
)
SHELLS = ("bash", "shell", "sh", "console")
PYTHON = ("python", "py")
SHOWN = ("none", "json", "toml", "text", "yaml")  # what a reader looks at, and does not run
_MAKE = """#!/bin/sh
exec /usr/bin/env -u MAKEFLAGS {make} --dry-run --directory {root} "$@" > /dev/null
"""
_PIP = """#!{python}
import re, sys
from pathlib import Path

words = [word for word in sys.argv[2:] if not word.startswith("-")]
text = (Path({root!r}) / "pyproject.toml").read_text("utf-8")
for word in words if sys.argv[1] == "install" else ["nothing to install"]:
    extras = re.fullmatch(r"\\.(?:\\[([\\w,]+)\\])?", word)
    if extras is None or any(f"\\n{{extra}} = [" not in text for extra in (extras[1] or "").split(",") if extra):
        sys.exit(f"pip install {{word}}: not of this project")
"""


@dataclass(frozen=True, kw_only=True)
class Block:
    """A fenced block of a page: its tag, its code without indentation, and the line of the page where that begins."""

    tag: str
    code: str
    line: int


def blocks(page: Path) -> list[Block]:
    """All fenced blocks of a page."""
    text = page.read_text("utf-8")
    return [
        Block(tag=found["tag"], code=dedent(found["code"]), line=text.count("\n", 0, found.start("code")) + 1)
        for found in FENCE.finditer(text)
    ]


def run_page(page: Path, folder: Path) -> None:
    """Run all blocks of a page in a folder. Raises what a block of Python raises, or CalledProcessError."""
    os.chdir(folder)
    tools = folder / ".tools"
    tools.mkdir()
    make = next(str(path) for part in os.environ["PATH"].split(os.pathsep) if (path := Path(part) / "make").exists())
    for name, script in (("make", _MAKE), ("pip", _PIP)):
        (tools / name).write_text(script.format(make=make, python=sys.executable, root=str(ROOT)))
        (tools / name).chmod(0o755)
    path = os.pathsep.join((str(tools), str(Path(sys.executable).parent), os.environ["PATH"]))
    names: dict[str, object] = {"__name__": "__main__"}
    for block in blocks(page):
        where = f"{page}:{block.line}"
        if block.tag in PYTHON:
            exec(compile("\n" * (block.line - 1) + block.code, str(page), "exec"), names)
        elif block.tag in SHELLS:
            print(f"--- {where}", flush=True)
            subprocess.run(["bash", "-euo", "pipefail", "-c", block.code], env={**os.environ, "PATH": path}, check=True)


if __name__ == "__main__":
    run_page(Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve())
