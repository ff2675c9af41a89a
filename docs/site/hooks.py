"""What mkdocs does besides Markdown: generated tables are filled in, formulas written, links to the source checked."""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

import latex2mathml.converter
import messages_page
import options_page
from mkdocs.exceptions import PluginError

ROOT = Path(__file__).resolve().parents[2]
# `<!-- made: options quantize -->` on a line of its own is replaced by a table that is made from the code.
MADE = re.compile(r"^<!-- made: (\w+)(?: ([\w ]+))? -->$", re.MULTILINE)
LINK = re.compile(r"\[([^\]]+)\]\(((?:\.\./)+[^)#]+)(?:#[^)]*)?\)")
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)
MAKERS = {
    "command": options_page.command,
    "arguments": options_page.arguments,
    "messages": messages_page.tables,
}


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """The text of a page with its generated tables; a link to a file outside of docs/ becomes the name of that file."""
    language = page.file.locale or "en"
    markdown = MADE.sub(lambda found: MAKERS[found[1]](*(found[2] or "").split(), language=language), markdown)

    def outside(found: re.Match[str]) -> str:
        place = (Path(page.file.abs_src_path).parent / found[2]).resolve()
        if place.is_relative_to(ROOT / "docs"):
            return found[0]
        if not place.exists():
            raise PluginError(f"{page.file.src_uri} links to {found[2]}, which is not there")
        return f"`{place.relative_to(ROOT).as_posix()}`"

    return LINK.sub(outside, markdown)


def on_page_content(content: str, **_: Any) -> str:
    """The page with its formulas as MathML, which browsers show without any script."""

    def formula(found: re.Match[str]) -> str:
        display = "block" if found[2] == "[" else "inline"
        return str(latex2mathml.converter.convert(html.unescape(found[3]), display=display))

    return FORMULA.sub(formula, content)
