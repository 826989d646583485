"""JSONL, JSON, CSV, TSV, Parquet and text files to named columns; the extension decides, nothing is interpreted.

CSV follows RFC 4180 (quotes). TSV has no quoting, as GLUE's own files need: a stray quote is a character. A text file (.txt) has a
text a line, and no name for it: it is the column that the task asks for.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from axformer_onnx.errors import DataError

EXTENSIONS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".txt")


@dataclasses.dataclass(frozen=True)
class Table:
    """The wanted columns of one file.

    columns   values by column name, each as long as the table; a value that a row lacks is None
    found     names of all columns that the file has
    origin    the file, for messages
    numbers   number of each row in the file, counted in `unit` ('line' or 'row') from 1
    unnamed   a text file, which has one column whatever it is called
    """

    columns: dict[str, list[Any]]
    found: tuple[str, ...]
    origin: str
    unit: str
    numbers: Sequence[int]
    unnamed: bool = False

    def where(self, index: int) -> str:
        """'file, line 7' for the row at `index`."""
        return f"{self.origin}, {self.unit} {self.numbers[index]}"


def read_table(path: Path, wanted: Sequence[str]) -> Table:
    """Read the columns `wanted` as far as the file has them; CSV and TSV values are strings.

    Raises: DataError for a missing or empty file, an unknown extension, bytes that are not UTF-8 (with the
    line), broken JSON (with the line), and what pyarrow finds wrong with CSV, TSV and Parquet.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    extension = path.suffix.lower()
    if extension not in EXTENSIONS:
        raise DataError(f"{path}: the extension is {extension or 'missing'!r}, expected {', '.join(EXTENSIONS)}")
    if extension == ".parquet":
        return _parquet(path, wanted)
    data = _bytes(path)
    text = _utf8(data, path)
    if not text.strip():
        raise DataError(f"{path}: the file is empty")
    if extension == ".txt":
        return _text_lines(path, text, wanted)
    if extension in (".csv", ".tsv"):
        return _delimited(path, text, wanted, tab=extension == ".tsv")
    if extension == ".json" and text.lstrip().startswith("["):
        return _json_array(path, text, wanted)
    return _json_lines(path, text, wanted)


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None


def _utf8(data: bytes, path: Path) -> str:
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(f"{path}: the file is UTF-16, expected UTF-8; save it again as UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}, line {line}: byte 0x{data[error.start]:02x} is not UTF-8 (mixed encodings?); "
            "save the file again as UTF-8"
        ) from None


def _text_lines(path: Path, text: str, wanted: Sequence[str]) -> Table:
    """A text a line; empty lines are none. Called "text" where that is wanted, else as the first that is."""
    lines = [(number, line.removesuffix("\r")) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    name = "text" if "text" in wanted else wanted[0]
    return Table({name: [line for _, line in lines]}, (name,), str(path), "line", [n for n, _ in lines], unnamed=True)


def _json_lines(path: Path, text: str, wanted: Sequence[str]) -> Table:
    records, numbers = [], []
    for number, line in enumerate(text.split("\n"), 1):  # not splitlines: U+2028 may stand inside a string
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}, line {number}: not JSON: {error}") from None
        if not isinstance(record, dict):
            raise DataError(f"{path}, line {number}: expected an object {{...}}, found {type(record).__name__}")
        records.append(record)
        numbers.append(number)
    return _from_records(path, records, wanted, "line", numbers)


def _json_array(path: Path, text: str, wanted: Sequence[str]) -> Table:
    try:
        records = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON: {error}") from None
    for number, record in enumerate(records, 1):
        if not isinstance(record, dict):
            raise DataError(f"{path}, row {number}: expected an object {{...}}, found {type(record).__name__}")
    return _from_records(path, records, wanted, "row", range(1, len(records) + 1))


def _from_records(
    path: Path, records: list[dict[str, Any]], wanted: Sequence[str], unit: str, numbers: Sequence[int]
) -> Table:
    found = tuple(dict.fromkeys(key for record in records for key in record))
    columns = {name: [record.get(name) for record in records] for name in wanted if name in found}
    return Table(columns, found, str(path), unit, numbers)


def _delimited(path: Path, text: str, wanted: Sequence[str], *, tab: bool) -> Table:
    import pyarrow as pa
    from pyarrow import csv

    data = text.encode()
    parse = csv.ParseOptions(
        delimiter="\t" if tab else ",", quote_char=False if tab else '"', newlines_in_values=not tab
    )
    convert = csv.ConvertOptions(column_types={name: pa.string() for name in wanted}, null_values=[])
    read = csv.ReadOptions(use_threads=False, block_size=max(len(data) + 1, 1 << 20))
    try:
        table = csv.read_csv(pa.BufferReader(data), read, parse, convert)
    except pa.ArrowException as error:
        raise DataError(f"{path}: {_line(error)}") from None
    return _from_arrow(path, table, wanted)


def _parquet(path: Path, wanted: Sequence[str]) -> Table:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(path)
        found = tuple(file.schema_arrow.names)
        table = file.read(columns=[name for name in wanted if name in found])
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a Parquet file that can be read: {_line(error)}") from None
    return dataclasses.replace(_from_arrow(path, table, wanted), found=found)


def _from_arrow(path: Path, table: Any, wanted: Sequence[str]) -> Table:
    found = tuple(table.column_names)
    columns = {}
    for name in wanted:
        if found.count(name) > 1:
            raise DataError(f"{path}: {found.count(name)} columns are called {name!r}, expected one")
        if name in found:
            columns[name] = table.column(name).to_pylist()
    return Table(columns, found, str(path), "row", range(1, table.num_rows + 1))


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
