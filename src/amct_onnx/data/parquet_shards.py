"""Images in the rows of parquet files, as Hugging Face has them. Only this module imports pyarrow, an extra."""

from __future__ import annotations

import itertools
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amct_onnx.data.blobs import Blob, Blobs
from amct_onnx.data.places import is_local
from amct_onnx.errors import DataError, one_line
from amct_onnx.values.skipped_data import SkippedData, Unreadable
from amct_onnx.words import given_for

PARQUET_SUFFIX = ".parquet"
_ROWS = 16  # that are taken out of a file at a time
_BYTES = 1 << 20  # of a file that are read at a time
_FIELD = "bytes"  # of a column that has a struct for each image
_CLASS = "label"


@dataclass(frozen=True, kw_only=True)
class ParquetBlobs(Blobs):
    """The encoded images in a column of parquet files.

    groups: the file and the number in it of each group of rows. ends: how many rows there are up to the end of each.
    column: its name, and that of the field in it, if it has fields.
    """

    files: tuple[Path, ...]
    groups: tuple[tuple[int, int], ...]
    ends: tuple[int, ...]
    column: tuple[str, ...]

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def name(self, number: int) -> str:
        group = bisect_right(self.ends, number)
        file = self.groups[group][0]
        first = bisect_left(self.groups, (file, 0))
        return f"{self.files[file]}: row {number - (self.ends[first - 1] if first else 0)}"

    def read(self, first: int, last: int) -> Iterator[Blob]:
        while first < last:
            group = bisect_right(self.ends, first)
            start, end = self.ends[group - 1] if group else 0, min(last, self.ends[group])
            yield from self._of_group(group, first - start, end - start, first)
            first = end

    def classes(self) -> Sequence[str] | None:
        """The values of the column `label`, which Hugging Face calls so. Raises DataError."""
        found: list[str] = []
        for group, (file, index) in enumerate(self.groups):
            with _opened(self.files[file]) as table:
                if _CLASS not in table.schema_arrow.names:
                    return None
                values = table.read_row_group(index, columns=[_CLASS]).column(0).to_pylist()
            start = self.ends[group - 1] if group else 0
            found += map(str, values[: self.ends[group] - start])
        return found

    def _nothing(self, number: int) -> DataError:
        return DataError(f"{self.name(number)}: holds no bytes of an image")

    def _of_group(self, group: int, first: int, last: int, number: int) -> Iterator[Blob]:
        """The rows `first` to `last` - 1 of a group, the first of which has this number among all."""
        file, index = self.groups[group]
        done = first
        try:
            with _opened(self.files[file]) as table:
                row = 0
                for batch in table.iter_batches(_ROWS, row_groups=[index], columns=[".".join(self.column)]):
                    values, begin = batch.column(0), max(first - row, 0)
                    for part in self.column[1:]:
                        values = values.field(part)
                    for value in values[begin : max(last - row, 0)]:
                        content = value.as_py()
                        yield self._nothing(number + done - first) if content is None else content
                        done += 1
                    row += len(batch)
                    if done >= last:
                        break
        except Exception as reason:  # pyarrow raises OSError and its own, and a cloud's client others
            unreadable = DataError(f"{self.files[file]}: cannot be read ({one_line(reason)})")
            yield from itertools.repeat(unreadable, last - done)


def open_parquet(
    files: Sequence[Path], name: str, key: str | None, limit: int | None, lost: Callable[[SkippedData], None] | None
) -> ParquetBlobs:
    """The images of input `name` in parquet files, in the column `key`, or in the only one that holds bytes for None.

    limit: so many rows are enough. lost: is told of files that cannot be read; None raises that. Raises DataError.
    """
    _library(files[0])
    column: tuple[str, ...] = ()
    groups: list[tuple[int, int]] = []
    ends: list[int] = []
    count = 0
    for number, file in enumerate(files):
        try:
            with _opened(file) as table:
                rows = [table.metadata.row_group(index).num_rows for index in range(table.num_row_groups)]
                schema = table.schema_arrow
        except DataError as reason:
            if lost is None:
                raise
            lost(SkippedData(files=1, first=(Unreadable(number=count, why=str(reason)),)))
            continue
        found = _column(file, schema, name, key)
        if column and found != column:
            raise DataError(f"{file}: has the images in column {found[0]!r}, the files before it in {column[0]!r}")
        column = found
        for index, size in enumerate(rows):
            if size and (limit is None or count < limit):
                count += size if limit is None else min(size, limit - count)
                groups.append((number, index))
                ends.append(count)
        if count == limit:
            break
    return ParquetBlobs(files=tuple(files), groups=tuple(groups), ends=tuple(ends), column=column)


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    """A parquet file. Raises DataError for one that cannot be opened."""
    parquet, stream = _library(file), None
    try:
        stream = None if is_local(file) else file.open("rb")
        source = str(file) if stream is None else stream
        table = parquet.ParquetFile(source, buffer_size=_BYTES, pre_buffer=False)
    except Exception as reason:  # pyarrow raises OSError and its own, and a cloud's client others
        raise DataError(f"{file}: is no readable parquet file ({one_line(reason)})") from None
    try:
        yield table
    finally:
        table.close(force=True)
        if stream is not None:
            stream.close()


def _library(file: Path) -> Any:
    """pyarrow.parquet. Raises DataError where it is not installed."""
    try:
        import pyarrow.parquet
    except ImportError:
        raise DataError(f'{file}: parquet needs the package pyarrow: pip install "amct-onnx[parquet]"') from None
    return pyarrow.parquet


def _column(file: Path, schema: Any, name: str, key: str | None) -> tuple[str, ...]:
    """The column of the images, and the field of it. Raises DataError where it is not clear which one it is."""
    import pyarrow

    def is_bytes(kind: Any) -> bool:
        return bool(pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind))

    columns: dict[str, tuple[str, ...]] = {}
    for field in schema:
        if is_bytes(field.type):
            columns[field.name] = (field.name,)
        elif pyarrow.types.is_struct(field.type):
            inner = [field.type.field(index) for index in range(field.type.num_fields)]
            if any(part.name == _FIELD and is_bytes(part.type) for part in inner):
                columns[field.name] = (field.name, _FIELD)
    if key in columns:
        return columns[key]
    if key is None and len(columns) == 1:
        return next(iter(columns.values()))
    text = ", ".join(map(repr, columns or schema.names)) or "none"
    what = "columns with bytes" if columns else "no column with bytes, and those"
    raise DataError(f"{file}: has {what} {text}; say in {given_for('names', name)} which one is input {name!r}")
