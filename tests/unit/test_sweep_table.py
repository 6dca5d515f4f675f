"""The table of a sweep: read back to the bit, whole after any end of its process, never in place of another file."""

from __future__ import annotations

import csv
import fcntl
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ionn.errors import InputError
from ionn.testbed import sweep_table
from ionn.testbed.sweep_table import COLUMNS, HEADER, Cell, SweepRow, csv_lines, open_table, read_table

NAN = math.nan


def row(seed: int = 0, mean_ms: float = 412.25, **values: Any) -> SweepRow:
    made = SweepRow(
        "alexnet", "original", 80.0, "odroid-xu4", "gtx1080ti", "none", "closed", seed, 3, 28.5, 47, mean_ms, 600.125,
        612.0, 34.0625, 1.75, 819.7222469449043, 34.0,
    )  # fmt: skip
    return made._replace(**values)


def write(path: Path, *rows: SweepRow) -> bytes:
    path.unlink(missing_ok=True)
    with open_table(path) as table:
        table.add(rows)
    return path.read_bytes()


def refusal(path: Path) -> str:
    before = path.read_bytes()
    with pytest.raises(InputError) as caught, open_table(path):
        pass
    assert path.read_bytes() == before  # never overwritten
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_any_program_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "new" / "sweep.csv"
    write(path, row(mean_ms=NAN))
    with path.open(newline="") as file:
        (read,) = csv.DictReader(file)
    assert tuple(read) == COLUMNS
    assert (read["mbps"], read["seed"], read["mean_ms"], read["local_ms"]) == ("80", "0", "", "819.7222469449043")


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n\0"), max_size=9)
times = st.floats(0, 1e12)
undefined = st.just(NAN) | times


@given(
    st.lists(
        st.builds(
            SweepRow, texts, texts, times, texts, texts, texts, texts, st.integers(0, 2**63), st.integers(0, 99), times,
            st.integers(0, 10**9), undefined, undefined, times, times, undefined, times, times,
        ),
        max_size=4,
    )
)  # fmt: skip
def test_rows_come_back_to_the_bit(tmp_path_factory: pytest.TempPathFactory, rows: list[SweepRow]) -> None:
    path = tmp_path_factory.mktemp("table") / "sweep.csv"
    write(path, *rows)
    assert list(map(repr, read_table(path))) == list(map(repr, rows))


def test_whatever_is_left_of_the_last_line_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "sweep.csv"
    rows = [row(seed, model="a,b") for seed in range(3)]
    whole = write(path, *rows)
    ends = [len(HEADER) + len(csv_lines(rows[:count])) for count in range(4)]
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        complete = sum(end <= cut for end in ends[1:])
        assert read_table(path) == rows[:complete]
        with open_table(path) as table:
            assert table.rows == rows[:complete]
            assert path.read_bytes() == whole[: ends[complete]]
            table.add(rows[complete:])
        assert path.read_bytes() == whole


def test_sorting_puts_rows_of_other_grids_first(tmp_path: Path) -> None:
    path = tmp_path / "sweep.csv"
    write(path, row(5), row(2), row(9), row(1))
    with open_table(path) as table:
        table.sort([row(seed).cell for seed in (1, 2, 3)])
        assert [each.seed for each in table.rows] == [5, 9, 1, 2]
    assert read_table(path) == table.rows
    assert row(5).cell == Cell("alexnet", "original", 80.0, "odroid-xu4", "gtx1080ti", "none", "closed", 5)


@pytest.mark.parametrize(
    "content",
    [
        b"time,mbps\n0,80\n",
        b"\x89PNG\r\n\x1a\n\0\xff",
        HEADER.encode().replace(b"seed", b"speed"),
        b"root:x:0:0\n",
        b"no line ends here",
        b"model\n",
    ],
)
def test_a_file_that_is_no_sweep_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "mine"
    path.write_bytes(content)
    assert refusal(path).startswith(f"{path}: not a table of ionn sweep")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("alexnet,original\n", ":3: not a row of ionn sweep: 2 values, not 18"),
        ("{}", ":3: seed is '-1', no number"),
        ("{mbps}", ":3: mbps is 'nan', no number"),
        ("{upload}", ":3: upload_s is '', no number"),
        ("\udcff\n", "not UTF-8"),
        ('"open\n', ":"),
    ],
)
def test_a_table_with_a_broken_row_is_refused(tmp_path: Path, line: str, reason: str) -> None:
    path = tmp_path / "sweep.csv"
    whole = write(path, row()).decode()
    good = whole.splitlines(keepends=True)[1]
    broken = line.replace("{}", good.replace(",closed,0", ",closed,-1")).replace(
        "{mbps}", good.replace(",80,", ",nan,")
    )
    broken = broken.replace("{upload}", good.replace(",28.5,", ",,"))
    path.write_bytes((whole + broken).encode(errors="surrogateescape") + good.encode())
    assert reason in refusal(path)


def test_a_folder_and_what_has_no_end_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path, Path("/dev/null"), tmp_path / "file" / "sweep.csv"):
        (tmp_path / "file").write_text("")
        with pytest.raises(InputError, match="cannot write there"), open_table(path):
            pass


def test_a_table_that_is_too_large_is_refused_and_loses_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "sweep.csv"
    content = write(path, *map(row, range(9)))
    monkeypatch.setattr(sweep_table, "_BYTES_MAX", len(content))
    assert len(read_table(path)) == 9
    monkeypatch.setattr(sweep_table, "_BYTES_MAX", 500)
    assert "cannot read the table: the file has more than 0.0005 MB" in refusal(path)
    with pytest.raises(InputError, match="has more than"):
        read_table(path)


def test_two_processes_do_not_write_into_one(tmp_path: Path) -> None:
    path = tmp_path / "sweep.csv"
    lines = "from pathlib import Path", "from ionn.testbed.sweep_table import open_table"
    other = "\n".join([*lines, f"with open_table(Path({str(path)!r})): pass"])
    with open_table(path) as table:
        table.add([row()])
        done = subprocess.run([sys.executable, "-c", other], capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert "another sweep writes into it" in done.stderr
    subprocess.run([sys.executable, "-c", other], check=True)
    assert read_table(path) == [row()]


def test_a_table_that_is_replaced_just_before_it_is_locked_loses_no_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "sweep.csv"
    write(path, row(1), row(2))
    flock = fcntl.flock
    replaced: list[Path] = []

    def other_ends_first(file: Any, operation: int) -> None:
        if not replaced:
            replaced.append(path)
            with open_table(path) as other:
                other.sort([row(2).cell, row(1).cell])
        flock(file, operation)

    monkeypatch.setattr(fcntl, "flock", other_ends_first)
    with open_table(path) as table:
        table.add([row(3)])
    assert [each.seed for each in read_table(path)] == [2, 1, 3]


def test_a_link_to_a_table_stays_one(tmp_path: Path) -> None:
    path, link = tmp_path / "sweep.csv", tmp_path / "link.csv"
    write(path, row(1), row(2))
    link.symlink_to(path)
    with open_table(link) as table:
        table.sort([row(2).cell, row(1).cell])
    assert link.is_symlink()
    assert [each.seed for each in read_table(path)] == [2, 1]
