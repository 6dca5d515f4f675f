"""The table of a sweep: a CSV file with one row per run, which grows as runs end.

Any program can read the file at any time. It is locked while a sweep adds to it. A sweep that is killed leaves all rows
that it had added; a half-written last row is dropped. When the sweep ends, its rows are in the order of its grid.
Numbers are written with all their digits, and undefined values are empty.
"""

from __future__ import annotations

import csv
import fcntl
import io
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from ionn.arguments import decimal_of, path_of
from ionn.errors import InputError
from ionn.files import check_writable, read_bytes, write_file


class Cell(NamedTuple):
    """One combination of a sweep. A user's own `model` or `algorithm` has a digest behind its name; `client` and
    `server` are names that `ionn.costs.loading.costs_label` made, and `arrivals` is the name of `Arrivals`."""

    model: str
    algorithm: str
    mbps: float
    client: str
    server: str
    coding: str
    arrivals: str
    seed: int


class SweepRow(NamedTuple):
    """One run of a sweep: its combination (see `Cell`) and its results. Undefined values are NaN.

    - `partitions`: how many the plan has. `upload_s`: how long the upload took.
    - `queries`: how many ended before the upload did.
    - `mean_ms`, `energy_j`: the mean latency, and the client's mean energy per query in joules, of the queries that
      started before the upload ended.
    - `p90_ms`: the 90th percentile of the response times of all queries.
    - `first_ms`, `last_ms`: the latencies of the first and the last query.
    - `local_ms`, `best_ms`: the latency with nothing and with everything at the server, as planned.
    """

    model: str
    algorithm: str
    mbps: float
    client: str
    server: str
    coding: str
    arrivals: str
    seed: int
    partitions: int
    upload_s: float
    queries: int
    mean_ms: float
    p90_ms: float
    first_ms: float
    last_ms: float
    energy_j: float
    local_ms: float
    best_ms: float

    @property
    def cell(self) -> Cell:
        """The combination of this run."""
        return Cell._make(self[: len(Cell._fields)])


COLUMNS = SweepRow._fields
# The columns of whole and of real numbers; all others are texts.
_WHOLE = {"seed", "partitions", "queries"}
_REAL = {"mbps", "upload_s", "mean_ms", "p90_ms", "first_ms", "last_ms", "energy_j", "local_ms", "best_ms"}
# Columns that may be empty.
_UNDEFINED = {"mean_ms", "p90_ms", "energy_j"}
# A table of a million rows is smaller than this.
_BYTES_MAX = 1_000_000_000


def csv_lines(rows: Iterable[Sequence[object]]) -> str:
    """The rows as lines of CSV."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([list(map(_text, row)) for row in rows])
    return text.getvalue()


def _text(value: object) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else repr(value).removesuffix(".0")
    return str(value)


HEADER = csv_lines([COLUMNS])


def read_table(table: str | Path) -> list[SweepRow]:
    """Read the rows of a sweep's table, as `sweep` returned them. While the sweep runs, these are the rows so far.

    Raises InputError if there is no such file, or if it is not the table of a sweep, or too large for one.
    """
    path = path_of(table, "table")
    return _rows(_read(path), path)


class Table:
    """A table that is open for adding rows. `rows` are all rows of the file, including the added ones."""

    def __init__(self, path: Path, file: io.FileIO, rows: Sequence[SweepRow]) -> None:
        self.path = path
        self.rows = list(rows)
        self._file = file

    def add(self, rows: Sequence[SweepRow]) -> None:
        """Add rows to the file. Raises InputError if they cannot be written, for example because the disk is full."""
        left = csv_lines(rows).encode()
        try:
            while left:
                left = left[self._file.write(left) :]
        except OSError as error:
            raise InputError(f"{self.path}: cannot write: {error.strerror}; free space and go on") from error
        self.rows += rows

    def sort(self, cells: Sequence[Cell]) -> None:
        """Put the rows of these cells behind all others, in the order of the cells."""
        order = {cell: number for number, cell in enumerate(cells)}
        ordered = sorted(self.rows, key=lambda row: order.get(row.cell, -1))
        if ordered != self.rows:
            self.rows = ordered
            write_file(self.path, (HEADER + csv_lines(ordered)).encode())


@contextmanager
def open_table(path: Path) -> Iterator[Table]:
    """Open the table in a file for this process alone. The file is created if there is none.

    Raises InputError if the file cannot be written, is not the table of a sweep, is too large for one, or is in use by
    another process.
    """
    check_writable(path)
    path = Path(os.path.realpath(path))  # a symbolic link must stay one when the file behind it is replaced
    with _open_locked(path) as file:
        content = _read(path)
        rows = _rows(content, path)
        complete = content[: content.rfind(b"\n") + 1]
        file.truncate(len(complete))
        if not complete:
            file.write(HEADER.encode())
        yield Table(path, file, rows)


def _open_locked(path: Path) -> io.FileIO:
    """Open the file for appending, and lock it. Raises InputError as `open_table` does."""
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Unbuffered: rows that were added are in the file even if this process is killed.
            file = open(path, "ab", buffering=0)  # noqa: SIM115
        except OSError as error:
            raise InputError(f"{path}: cannot write there: {error.strerror}; choose another file") from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.close()
            raise InputError(f"{path}: another sweep writes into it; wait, or choose another file") from error
        # Another sweep may have ended since the file was opened, and replaced the file by one with the rows in order.
        if path.exists() and os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
            return file
        file.close()


def _read(path: Path) -> bytes:
    return read_bytes(path, "the table", _BYTES_MAX)


def _rows(content: bytes, path: Path) -> list[SweepRow]:
    """The rows in the content of a file whose last line may be half-written."""
    header = HEADER.encode()
    if not content.startswith(header):
        if header.startswith(content):  # the header itself is half-written
            return []
        raise InputError(f"{path}: not a table of ionn sweep: its first line differs; choose another file")
    try:
        text = content[: content.rfind(b"\n") + 1].decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a table of ionn sweep: it is not UTF-8; choose another file") from error
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows = []
    try:
        next(reader)
        rows = [_row(values, f"{path}:{reader.line_num}") for values in reader]
    except csv.Error as error:
        raise InputError(f"{path}:{reader.line_num}: not a row of ionn sweep: {error}; choose another file") from error
    return rows


def _row(values: Sequence[str], place: str) -> SweepRow:
    if len(values) != len(COLUMNS):
        raise InputError(
            f"{place}: not a row of ionn sweep: {len(values)} values, not {len(COLUMNS)}; choose another file"
        )
    read: list[object] = []
    for column, value in zip(COLUMNS, values, strict=True):
        if column in _WHOLE and value.isascii() and value.isdigit() and len(value) < 20:
            read.append(int(value))
        elif column in _REAL and (math.isfinite(decimal_of(value)) or (not value and column in _UNDEFINED)):
            read.append(decimal_of(value))
        elif column not in _WHOLE | _REAL:
            read.append(value)
        else:
            raise InputError(f"{place}: {column} is {value[:40]!r}, no number; choose another file")
    return SweepRow(*read)  # type: ignore[arg-type]
