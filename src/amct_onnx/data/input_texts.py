"""How a command line writes the shapes, types and names of a model's inputs
(amct_formats.md: Data handlers, Command line).

Nothing heavy is imported here, so that a wrong command line is refused at once.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from amct_onnx.errors import ArgumentError, ArgumentTypeError

# numpy's names of the types that a data file may hold
DATA_TYPES = (
    *("float64", "float32", "float16"),
    *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool"),
)
_EXAMPLE = "E.g.: input_name1:n1,c1,h1,w1;input_name2:n2,c2"


@dataclass(frozen=True, kw_only=True)
class InputFolder:
    """One input and the folder of its batches. Each file is an array of `dtype` and `shape` without a header.

    One dimension of `shape` may be -1. Then the size of each file decides it.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    folder: str


def parse_shapes(text: str) -> dict[str, list[int]]:
    """The dimensions of each input of `"name1:1,3,224,224;name2:0:8,16"`, in order.

    A dimension of -1 is left to the data. A name may hold colons: the dimensions stand behind the last one. Raises
    ArgumentError.
    """
    shapes: dict[str, list[int]] = {}
    for part in split_list(text):
        name, colon, dims = part.rpartition(":")
        if not colon or not name.strip() or not dims.strip():
            what = "input name and shape of each input should be split by ':'"
            raise ArgumentError(f"Invalid input_shape. In {part!r} the {what}. {_EXAMPLE}")
        name = name.strip()
        if name in shapes:
            raise ArgumentError(f"Invalid input_shape. The input {name!r} is given twice. {_EXAMPLE}")
        shapes[name] = [_dimension(dim, part) for dim in dims.split(",")]
        if shapes[name].count(-1) > 1:
            raise ArgumentError(f"Invalid input_shape. In {part!r} only one dimension can be -1.")
    return shapes


def split_list(text: str) -> list[str]:
    """The parts of a list with semicolons. A semicolon at the end, as in "dir1/;dir2/;", begins no further part."""
    parts = text.split(";")
    return parts[:-1] if len(parts) > 1 and not parts[-1].strip() else parts


def split_names(text: str) -> tuple[str, ...]:
    """The names in a list with semicolons: "Conv_0; Gemm_8"."""
    return tuple(part.strip() for part in split_list(text) if part.strip())


def split_pairs(text: str, separator: str = "=") -> dict[str, str]:
    """The values of `"name1=value1;name2=value2"` by name. A name may hold the separator. Raises ArgumentError."""
    pairs = {}
    for part in split_list(text):
        name, _, value = (word.strip() for word in part.rpartition(separator))
        if not name or not value:
            raise ArgumentError(f"{part!r} is not NAME{separator}VALUE")
        pairs[name] = value
    return pairs


def parse_types(text: str) -> dict[str, str]:
    """The type of each input of `"name1:float32;name2:int64"`. Raises ArgumentError or ArgumentTypeError."""
    types = split_pairs(text, ":")
    for name in types.values():
        check_data_type(name)
    return types


def parse_numbers(text: str) -> tuple[float, ...]:
    """The numbers in a list with commas: "0.485,0.456,0.406". Raises ArgumentError."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ArgumentError(f"{text!r} is no list of numbers with commas") from None


def parse_size(text: str) -> int | tuple[int, int]:
    """A size in pixels, "224" or "320,416" for height and width. Raises ArgumentError."""
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) == 2:
        return numbers[0], numbers[1]
    if len(numbers) != 1:
        raise ArgumentError(f"{text!r} is no size in pixels: give N, or HEIGHT,WIDTH")
    return numbers[0]


def check_data_type(name: str) -> None:
    """Raise ArgumentTypeError unless `name` is one of DATA_TYPES."""
    if name not in DATA_TYPES:
        close = difflib.get_close_matches(name, DATA_TYPES, n=1)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise ArgumentTypeError(f"Unsupported data type[{name}]! Use one of {', '.join(DATA_TYPES)}.{hint}")


def _dimension(text: str, part: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1 and value != -1:
        raise ArgumentError(
            f"Invalid input_shape. In {part!r} the dimension {text!r} must be a positive integer or -1."
        )
    return value
