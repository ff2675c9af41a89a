"""Each field of a protobuf text is located where it was written, however the text is laid out."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from amct_onnx.errors import ConfigError
from amct_onnx.files.schema import message_class, parse_text
from amct_onnx.files.text_positions import locate_fields, position_of
from amct_onnx.files.whole_files import Position

PROTO = """\
enum Kind { FIRST = 1; SECOND = 2; }
message Root {
  optional uint32 number = 1;
  optional float real = 2;
  optional Kind kind = 3;
  repeated string names = 4;
  repeated Inner blocks = 5;
  optional Inner block = 6;
}
message Inner {
  optional bool flag = 1;
  repeated uint32 numbers = 2;
  repeated Inner blocks = 3;
  oneof choice {
    optional string left = 4;
    optional Inner right = 5;
  }
}
"""
SCALARS = {
    "number": ["1", "0x1F", "017"],
    "numbers": ["1", "0x1F", "017"],
    "real": ["-1", ".5", "1e-3", "-inf", "nan", "2.f"],
    "kind": ["FIRST", "2"],
    "flag": ["true", "f", "0"],
    "names": ['"a"', "'{ # \" '", r'"\" { \n \x41 # "', "'a' # apart\n \"b\"", "''"],
    "left": ['"a"', r"'\' names : '"],
}
BLOCKS = ("blocks", "block", "right")
FIELDS = {
    "Root": ("number", "real", "kind", "names", "blocks", "block"),
    "Inner": ("flag", "numbers", "blocks", "left", "right"),
}
REPEATED = ("names", "numbers", "blocks")
SPACE = st.sampled_from(["", " ", "\n", "\t \n", " # a { b : \"c' \n", "\n\n  ", "\u00a0\v"])


@dataclass
class Writer:
    """Writes a text and notes where each field begins."""

    draw: st.DrawFn
    text: str = ""

    def __post_init__(self) -> None:
        self.places: list[tuple[str, Position]] = []
        self.counts: dict[str, int] = {}

    @property
    def here(self) -> Position:
        return Position(line=self.text.count("\n") + 1, column=len(self.text) - self.text.rfind("\n"))

    def space(self) -> None:
        self.text += self.draw(SPACE)

    def block(self, message: str, path: str, depth: int) -> None:
        names = [name for name in FIELDS[message] if depth or name not in BLOCKS]
        for name in self.draw(st.lists(st.sampled_from(names), max_size=4)):
            self.space()
            self.field(name, f"{path}.{name}" if path else name, depth)
            self.text += self.draw(st.sampled_from([" ", "\n", ",", " ;"]))

    def field(self, name: str, path: str, depth: int) -> None:
        position = self.here
        self.text += name
        self.space()
        if name not in BLOCKS or self.draw(st.booleans()):
            self.text += ":"
            self.space()
        if name in REPEATED and self.draw(st.booleans()):
            self.text += "["
            for index in range(self.draw(st.integers(0, 3))):
                self.text += "," if index else ""
                self.space()
                self.value(name, path, self.here, depth)
                self.space()
            self.text += "]"
        else:
            self.value(name, path, position, depth)

    def value(self, name: str, path: str, position: Position, depth: int) -> None:
        if name in REPEATED:
            index = self.counts[path] = self.counts.get(path, -1) + 1
            path = f"{path}[{index}]"
        self.places.append((path, position))
        if name not in BLOCKS:
            self.text += self.draw(st.sampled_from(SCALARS[name]))
            return
        start, end = self.draw(st.sampled_from(["{}", "<>"]))
        self.text += start
        self.space()
        self.block("Inner", path, depth - 1)
        self.space()
        self.text += end


@st.composite
def documents(draw: st.DrawFn) -> Writer:
    writer = Writer(draw)
    writer.block("Root", "", 3)
    writer.space()
    return writer


@given(documents())
def test_each_field_is_where_it_was_written(written: Writer) -> None:
    parse_text(written.text, message_class(PROTO, "Root")(), path="a.cfg", error=ConfigError, advice="")
    found = locate_fields(written.text, PROTO, "Root")
    assert [(entry.path, entry.position) for entry in found] == written.places


@given(documents())
def test_what_is_missing_is_in_its_block(written: Writer) -> None:
    found = locate_fields(written.text, PROTO, "Root")
    positions = {entry.path: entry.position for entry in reversed(found)}
    for entry in found:
        if entry.value is None:
            assert position_of(f"{entry.path}.absent.more", positions) == positions[entry.path]
    assert position_of("absent", positions) is None
