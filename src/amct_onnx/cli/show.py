"""Says on stdout what a result holds: its sentences and tables for people, or its document."""

from __future__ import annotations

from collections.abc import Sequence

import amct_onnx
from amct_onnx.cli.output import Output
from amct_onnx.values.shown import Shown, Table


def show_result(
    output: Output, command: str, result: Shown, tables: Sequence[Table] | None = None, notes: Sequence[str] = ()
) -> None:
    """Answer the command. tables: those for people, all where None is given. notes: what stands below them."""
    if output.json:
        output.document({"command": command, "version": amct_onnx.__version__, **result.to_dict()})
        return
    if not output.is_text:
        return
    for line in result.lines():
        output.say(line)
    for table in result.tables() if tables is None else tables:
        if table.rows:
            output.say()
            _show_table(output, table)
    for note in notes:
        output.say(note)


def _show_table(output: Output, table: Table) -> None:
    from rich.table import Table as RichTable
    from rich.text import Text

    drawn = RichTable(title=table.title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for name, numeric in zip(table.columns, table.numeric(), strict=True):
        drawn.add_column(Text(name), justify="right" if numeric else "left", no_wrap=numeric, overflow="fold")
    for cells in table.texts():
        drawn.add_row(*map(Text, cells))
    output.show(drawn)
