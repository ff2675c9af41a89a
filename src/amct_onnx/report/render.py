"""Makes one HTML file of the data of one or two runs: it needs no network and no other file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from amct_onnx.report.run_data import RunData, to_document

if TYPE_CHECKING:
    import jinja2

_FOLDER = Path(__file__).parent / "page"
_SCRIPTS = ("core.js", "charts.js", "layout.js", "map.js", "layer.js", "table.js", "page.js")
# What would end the element that holds the data, or break the line of a script.
_ESCAPED = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


def render(runs: Sequence[RunData], names: Sequence[str]) -> str:
    """The page of one run, or of two side by side. names: what the reader calls each of them."""
    from markupsafe import Markup  # of which jinja2 is made

    documents = [{"title": name, **to_document(run)} for run, name in zip(runs, names, strict=True)]
    text = json.dumps(documents, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    for letter, escape in _ESCAPED.items():
        text = text.replace(letter, escape)
    template = environment().from_string(page_file("page.html.j2"))
    title = " and ".join(names) if len(names) > 1 else names[0]
    return template.render(
        title=f"{title}, quantized",
        version=runs[0].version,
        style=Markup(page_file("style.css")),
        script=Markup("\n".join(map(page_file, _SCRIPTS))),
        data=Markup(text),
    )


def environment() -> jinja2.Environment:
    """What makes templates, in which every text is escaped."""
    import jinja2  # takes 50 ms to import

    return jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, keep_trailing_newline=True)


def page_file(name: str) -> str:
    """A template, the style or a script of the pages."""
    return (_FOLDER / name).read_text(encoding="utf-8")
