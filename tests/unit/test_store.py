"""A store's folder: what is in it is right and whole, or not there, and there is never more than there may be."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ionn.errors import InputError
from ionn.protocol.messages import PIECE_BYTES_MAX
from ionn.server.store import SHARED, Store, StoreSettings, owner_of, read_piece
from tests.support import store_storm
from tests.support.machine import small_disk
from tests.support.stored import piece

A, B = owner_of(b"a"), owner_of(b"b")
# What the smallest piece counts.
COST = 64 * 1024
# What a dead process has left in `unfinished`.
DEAD = "0123456789abcdef" * 2


def at(folder: Path, owner: str, digest: bytes) -> Path:
    """Where a piece lies."""
    return folder / owner / digest[:1].hex() / digest.hex()


def read(store: Store, owner: str, digest: bytes) -> memoryview | None:
    """The bytes of a stored piece; None if it is not there. Raises AssertionError where they are not right."""
    opened = store.open(owner, digest)
    if opened is None:
        return None
    descriptor, size = opened
    target = bytearray(size)
    try:
        assert read_piece(descriptor, digest, [memoryview(target)])
    finally:
        os.close(descriptor)
    return memoryview(target)


def stored(folder: Path) -> dict[str, dict[str, int]]:
    """When each piece in a folder was last used, by owner and name."""
    found: dict[str, dict[str, int]] = {}
    for path in folder.glob("*/??/*"):
        found.setdefault(path.parts[-3], {})[path.name] = path.lstat().st_mtime_ns
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def store(folder: Path) -> Iterator[Store]:
    store = Store(StoreSettings(folder, 10**9, 10**9))
    yield store
    store.close()


def test_what_is_stored_is_found_by_its_owner_and_by_nobody_else(store: Store, folder: Path) -> None:
    digest, data = piece(1)
    other, _ = piece(2)
    assert store.put(A, digest, data)
    assert store.has(A, [other, digest, other]) == b"\0\1\0"
    assert read(store, A, digest) == data
    for stranger in (B, SHARED):
        assert store.has(stranger, [digest]) == b"\0"
        assert store.open(stranger, digest) is None
    assert store.put(B, digest, data)
    assert at(folder, A, digest).stat().st_ino != at(folder, B, digest).stat().st_ino
    assert at(folder, A, digest).stat().st_nlink == 1


def test_only_its_user_may_look_into_it(store: Store, folder: Path) -> None:
    digest, data = piece(1)
    former = os.umask(0)
    try:
        store.put(A, digest, data)
    finally:
        os.umask(former)
    path = at(folder, A, digest)
    for each in (folder, folder / A, path.parent, folder / "unfinished"):
        assert stat.S_IMODE(each.stat().st_mode) == 0o700
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_file_that_is_open_can_only_be_read(store: Store) -> None:
    digest, data = piece(1)
    store.put(A, digest, data)
    opened = store.open(A, digest)
    assert opened is not None
    descriptor, size = opened
    assert size == len(data)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.write(descriptor, b"x")
    assert fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
    os.close(descriptor)


NAN = np.array([1, np.nan], np.float32).tobytes()
INFINITE = np.array([-np.inf, 1], np.float32).tobytes()


@pytest.mark.parametrize("data", [b"", b"abc", bytes(4) + b"x", bytes(PIECE_BYTES_MAX + 4), NAN, INFINITE])
def test_what_is_no_piece_is_not_stored(data: bytes, store: Store, folder: Path) -> None:
    assert not store.put(A, hashlib.sha256(data).digest(), memoryview(data))
    assert stored(folder) == {}


def test_the_largest_piece_is_stored(store: Store) -> None:
    data = memoryview(bytes(PIECE_BYTES_MAX))
    assert store.put(A, hashlib.sha256(data).digest(), data)
    assert read(store, A, hashlib.sha256(data).digest()) == data


def test_what_has_another_digest_is_not_stored(store: Store, folder: Path) -> None:
    digest, _ = piece(1)
    _, other = piece(2)
    assert not store.put(A, digest, other)
    assert stored(folder) == {}


# --- Folders that somebody has been at --------------------------------------------------------------------------------


def flip(path: Path, byte: int) -> None:
    content = bytearray(path.read_bytes())
    content[byte] ^= 0x10
    path.write_bytes(content)


def replace_by(make: Callable[[Path], object]) -> Callable[[Path], None]:
    def poison(path: Path) -> None:
        path.unlink()
        make(path)

    return poison


def link_elsewhere(path: Path) -> None:
    target = path.parent.parent.parent.parent / "target"
    path.rename(target)
    path.symlink_to(target)


def of_another(path: Path) -> None:
    """Another piece's file, whole, under this name."""
    others = [other for other in path.parent.parent.glob("??/*") if other != path]
    path.write_bytes(others[0].read_bytes())


def make_socket(path: Path) -> None:
    os.mknod(path, stat.S_IFSOCK | 0o600)


POISONS: dict[str, Callable[[Path], object]] = {
    "its first bit": lambda path: flip(path, 0),
    "a bit in the middle": lambda path: flip(path, 200),
    "the last bit of its floats": lambda path: flip(path, -17),
    "a bit of its checksum": lambda path: flip(path, -1),
    "cut by a float": lambda path: os.truncate(path, path.stat().st_size - 4),
    "cut by a byte": lambda path: os.truncate(path, path.stat().st_size - 1),
    "empty": lambda path: os.truncate(path, 0),
    "only a checksum": lambda path: os.truncate(path, 16),
    "longer": lambda path: os.truncate(path, path.stat().st_size + 4),
    "huge": lambda path: os.truncate(path, 10**10),
    "of another piece": of_another,
    "a link to itself elsewhere": link_elsewhere,
    "a link to nothing": replace_by(lambda path: path.symlink_to("/nowhere")),
    "a folder": replace_by(lambda path: path.mkdir()),
    "a pipe": replace_by(lambda path: os.mkfifo(path)),
    "a socket": replace_by(make_socket),
    "unreadable zeros": replace_by(lambda path: path.write_bytes(bytes(416))),
}


@pytest.mark.parametrize("poison", POISONS)
def test_what_is_damaged_is_noticed_and_replaced(poison: str, store: Store, folder: Path) -> None:
    """Never is anything but the piece read under its name, nobody waits, and nothing outside is touched."""
    digest, data = piece(1)
    other, others_data = piece(2)
    for each, content in ((digest, data), (other, others_data)):
        assert store.put(A, each, content)
    POISONS[poison](at(folder, A, digest))
    opened = store.open(A, digest)
    if opened is not None:
        descriptor, size = opened
        right = read_piece(descriptor, digest, [memoryview(bytearray(size))])
        os.close(descriptor)
        assert not right or size != len(data)
    assert store.remove_damaged(A, digest)
    assert not os.path.lexists(at(folder, A, digest))
    assert not store.remove_damaged(A, digest)
    POISONS_AGAIN = at(folder, A, digest)
    assert store.put(A, digest, data)
    POISONS[poison](POISONS_AGAIN)
    # Who stores it again need not have been told.
    assert store.put(A, digest, data)
    assert read(store, A, digest) == data
    assert read(store, A, other) == others_data
    if "elsewhere" in poison:
        assert (folder.parent / "target").exists()


def test_what_is_right_is_not_removed(store: Store) -> None:
    digest, data = piece(1)
    store.put(A, digest, data)
    assert not store.remove_damaged(A, digest)
    assert not store.remove_damaged(B, digest)
    assert read(store, A, digest) == data


@pytest.mark.parametrize("level", ["owner", "prefix", "unfinished"])
def test_no_link_is_followed_on_the_way(level: str, store: Store, folder: Path, tmp_path: Path) -> None:
    digest, data = piece(1)
    store.put(A, digest, data)
    path = {"owner": folder / A, "prefix": folder / A / digest[:1].hex(), "unfinished": folder / "unfinished"}[level]
    elsewhere = tmp_path / "elsewhere"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)
    before = sorted(elsewhere.rglob("*"))
    if level != "unfinished":
        assert store.has(A, [digest]) == b"\0"
        assert store.open(A, digest) is None
    assert store.put(A, digest, data)
    assert read(store, A, digest) == data
    assert sorted(elsewhere.rglob("*")) == before


@pytest.mark.parametrize("level", ["owner", "prefix", "unfinished"])
@pytest.mark.parametrize(
    "make", [Path.touch, lambda path: path.symlink_to("/nowhere"), os.mkfifo, make_socket], ids=lambda make: ""
)
def test_what_is_in_the_way_of_a_folder_is_removed(
    make: Callable[[Path], object], level: str, store: Store, folder: Path
) -> None:
    digest, data = piece(1)
    path = {"owner": folder / A, "prefix": folder / A / digest[:1].hex(), "unfinished": folder / "unfinished"}[level]
    path.parent.mkdir(mode=0o700, exist_ok=True)
    make(path)
    assert store.has(A, [digest]) == b"\0"
    assert store.put(A, digest, data)
    assert read(store, A, digest) == data


def give_away(path: Path) -> None:
    os.chown(path, 12345, -1)


@pytest.mark.parametrize("level", ["owner", "prefix", "unfinished", "file"])
@pytest.mark.parametrize(
    "change",
    [
        lambda path: path.chmod(path.stat().st_mode | stat.S_IWGRP),
        lambda path: path.chmod(path.stat().st_mode | stat.S_IWOTH),
        pytest.param(give_away, marks=pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")),
    ],
    ids=["group", "others", "owner"],
)
def test_what_others_may_write_to_is_not_used(change: Callable[[Path], None], level: str, folder: Path) -> None:
    """They can change weights, with a right checksum. A file is replaced; a folder the operator must look at."""
    said: list[str] = []
    store = Store(StoreSettings(folder, 10**9, 10**9), said.append)
    digest, data = piece(1)
    assert store.put(A, digest, data)
    path = at(folder, A, digest)
    changed = {"owner": folder / A, "prefix": path.parent, "unfinished": folder / "unfinished", "file": path}[level]
    change(changed)
    if level != "unfinished":
        assert store.has(A, [digest]) == b"\0"
        assert store.open(A, digest) is None
    if level == "file":
        assert store.put(A, digest, data)
        assert said == []
    else:
        other = piece(next(number for number in range(2, 9999) if piece(number)[0][0] == digest[0]))
        for _ in range(2):
            assert not store.put(A, *other)
        (line,) = said
        assert f"'{changed.name}' is another user's, or others may write to it; remove that" in line
        shutil.rmtree(changed)
        assert store.put(A, digest, data)
    assert read(store, A, digest) == data
    store.close()


def test_a_folder_with_something_in_it_is_left(folder: Path) -> None:
    said: list[str] = []
    store = Store(StoreSettings(folder, 10**9, 10**9), said.append)
    digest, data = piece(1)
    path = at(folder, A, digest)
    for each in (folder / A, path.parent, path):
        each.mkdir(mode=0o700)
    (path / "kept").write_text("kept")
    for _ in range(2):
        assert store.has(A, [digest]) == b"\0"
        assert not store.put(A, digest, data)
        store.remove_damaged(A, digest)
    assert (path / "kept").read_text() == "kept"
    assert len(said) == 1  # once
    assert store.put(A, *piece(2))
    store.close()


# --- How much there may be --------------------------------------------------------------------------------------------

Step = tuple[str, int, int]
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["put", "put", "put", "open", "restart", "poison", "remove", "litter"]),
        st.integers(0, 1),
        st.integers(0, 11),
    ),
    max_size=40,
)
TOTAL, EACH = 6, 4


def wait_for_another_time(file: Path) -> None:
    """The system notes when files are used in steps of some milliseconds. These times are not changed here: a store's
    list has those of its own pieces as they were written."""
    file.touch()
    began = file.stat().st_mtime_ns
    while file.stat().st_mtime_ns == began:
        file.touch()


@given(steps=STEPS)
@example(
    steps=[("put", which, number) for which, number in [(0, 3), (1, 0), (1, 2), (1, 6), (0, 3), (1, 1), (1, 4), (1, 5)]]
)
def test_any_sequence(steps: list[Step]) -> None:
    """Two processes, one owner of each kind: what is read is right, nothing is beyond the bounds, and what goes was
    used less recently than all that stays."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "store"
        settings = StoreSettings(folder, TOTAL * COST, EACH * COST)
        stores = [Store(settings), Store(settings)]
        poisoned = set()
        for step, which, number in steps:
            store, owner = stores[which], (A, B)[number % 2]
            digest, data = piece(number, 100 + number)
            path = at(folder, owner, digest)
            before = stored(folder)
            if step == "put":
                assert store.put(owner, digest, data)
                poisoned.discard(path)
                check_evicted(before, stored(folder), owner, digest.hex())
            elif step == "open" and path not in poisoned:
                there = read(store, owner, digest)
                assert there is None or there == data
                assert (there is not None) == (digest.hex() in before.get(owner, {}))
            elif step == "restart":
                stores[which] = Store(settings)
                stores[which].refresh()
                store.close()
                assert list((folder / "unfinished").glob("*")) == []
            elif step == "poison" and path.exists():
                flip(path, number)
                poisoned.add(path)
            elif step == "remove":
                damaged = path in poisoned and path.exists()
                assert store.remove_damaged(owner, digest) == damaged
                poisoned.discard(path)
            elif step == "litter":
                (folder / "unfinished").mkdir(exist_ok=True)
                (folder / "unfinished" / f"{number:032x}").write_bytes(b"of the dead")
            wait_for_another_time(Path(name) / "time")
            now = stored(folder)
            assert sum(map(len, now.values())) <= TOTAL
            assert all(len(pieces) <= EACH for pieces in now.values())
            poisoned = {path for path in poisoned if path.exists()}
        for store in stores:
            store.close()


def check_evicted(before: dict[str, dict[str, int]], after: dict[str, dict[str, int]], owner: str, name: str) -> None:
    """What has gone for a new piece is what was used least recently: of its owner, or of all."""
    left = {other: {each: used for each, used in pieces.items() if each != name} for other, pieces in after.items()}
    gone = {
        other: [used for each, used in pieces.items() if each not in after.get(other, {})]
        for other, pieces in before.items()
    }
    count = sum(map(len, gone.values()))
    if not count:
        return
    assert count == 1  # all count the same
    of_owner = len(before.get(owner, {})) == EACH
    assert of_owner or sum(map(len, before.values())) == TOTAL
    (used,) = (used for pieces in gone.values() for used in pieces)
    compared = [left.get(owner, {})] if of_owner else list(left.values())
    assert all(used <= other for pieces in compared for other in pieces.values())


def test_a_large_piece_makes_others_go_and_one_that_never_fits_makes_none(folder: Path) -> None:
    store = Store(StoreSettings(folder, 10 * COST, 10 * COST))
    for number in range(10):
        assert store.put(A, *piece(number))
    assert not store.put(A, *piece(99, 10 * COST // 4))  # with its checksum it is larger than the store
    assert len(stored(folder)[A]) == 10
    assert store.put(A, *piece(100, 4 * COST // 4 - 4))
    assert len(stored(folder)[A]) == 7
    assert store.counts().evicted == 4
    assert store.counts().pieces == 7
    assert store.counts().bytes == 10 * COST
    store.close()


def test_what_somebody_else_removed_is_not_evicted(folder: Path) -> None:
    """It makes room all the same."""
    store = Store(StoreSettings(folder, 2 * COST, 2 * COST))
    for number in range(2):
        assert store.put(A, *piece(number))
        wait_for_another_time(folder.parent / "time")
    at(folder, A, piece(0)[0]).unlink()
    assert store.put(A, *piece(2))
    assert stored(folder)[A].keys() == {piece(number)[0].hex() for number in (1, 2)}
    assert store.counts().evicted == 0
    assert store.counts().pieces == 2
    store.close()


def test_a_smaller_bound_holds_from_the_start(folder: Path) -> None:
    store = Store(StoreSettings(folder, 10 * COST, 10 * COST))
    for number in range(10):
        assert store.put(A, *piece(number))
        os.utime(at(folder, A, piece(number)[0]), ns=(number, number))
    store.close()
    store = Store(StoreSettings(folder, 10 * COST, 3 * COST))
    store.refresh()
    assert set(stored(folder)[A]) == {piece(number)[0].hex() for number in (7, 8, 9)}
    store.close()


def test_files_of_any_size_under_a_pieces_name_count(folder: Path) -> None:
    """Somebody has put them there; the store is not larger for it."""
    store = Store(StoreSettings(folder, 10 * COST, 10 * COST))
    digest, _ = piece(1)
    path = at(folder, A, digest)
    path.parent.mkdir(parents=True)
    path.write_bytes(bytes(100 * COST))
    assert store.put(A, *piece(2))
    assert not path.exists()
    store.close()


def test_what_another_process_changed_is_seen(folder: Path) -> None:
    settings = StoreSettings(folder, 4 * COST, 4 * COST)
    one, other = Store(settings), Store(settings)
    for number in range(20):
        assert (one, other)[number % 2].put(A, *piece(number))
        assert len(stored(folder)[A]) == min(number + 1, 4)
    one.close()
    other.close()


def fill(folder: Path, pieces: int, used_ns: int) -> StoreSettings:
    """A store of so many pieces, which has no room for more; all were used at that time."""
    settings = StoreSettings(folder, pieces * COST, pieces * COST)
    store = Store(settings)
    for number in range(pieces):
        assert store.put(A, *piece(number))
        os.utime(at(folder, A, piece(number)[0]), ns=(used_ns, used_ns))
    store.close()
    return settings


@pytest.mark.parametrize("ahead_s", [3600, 365 * 86_400])
def test_dates_to_come_keep_nothing_out(ahead_s: int, folder: Path) -> None:
    """The clock was ahead when it was filled, or it was copied from such a server."""
    store = Store(fill(folder, 6, time.time_ns() + ahead_s * 10**9))
    opened = store.open(A, piece(3)[0])
    assert opened is not None
    os.close(opened[0])
    new = [piece(100 + number) for number in range(5)]
    for each in new:
        assert store.put(A, *each)
    # What was used a moment ago is there, and the five others were not used.
    assert store.has(A, [piece(3)[0], *(digest for digest, _ in new)]) == b"\1" * 6
    store.close()


def test_a_clock_that_is_set_back_while_a_server_runs_keeps_nothing_out(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ahead = time.time_ns() + 3600 * 10**9
    store = Store(fill(folder, 6, ahead))
    with monkeypatch.context() as patch:
        patch.setattr(time, "time_ns", lambda: ahead + 1)
        store.refresh()
    new = [piece(100 + number) for number in range(6)]
    for each in new:
        assert store.put(A, *each)
    assert store.has(A, [digest for digest, _ in new]) == b"\1" * 6
    store.close()


def replace_lock(folder: Path) -> None:
    (folder / "new").touch()
    (folder / "new").rename(folder / "lock")


@pytest.mark.parametrize("change", [lambda folder: (folder / "lock").unlink(), replace_lock])
def test_a_lock_that_is_removed_or_replaced_is_taken_anew(change: Callable[[Path], None], folder: Path) -> None:
    """Two processes that have different locks would each have the whole store."""
    settings = StoreSettings(folder, 6 * COST, 6 * COST)
    one, other = Store(settings), Store(settings)
    assert one.put(A, *piece(0))
    assert other.put(A, *piece(1))
    change(folder)
    third = Store(settings) if (folder / "lock").exists() else other
    stores = (one, other, third)
    for number in range(2, 40):
        assert stores[number % 3].put(A, *piece(number))
        assert len(stored(folder)[A]) == min(number + 1, 6)
        if not number % 10:
            change(folder)
    assert (folder / "lock").is_file()
    for store in {one, other, third}:
        store.close()


def test_a_folder_that_is_removed_is_made_again(folder: Path) -> None:
    said: list[str] = []
    settings = StoreSettings(folder, 6 * COST, 6 * COST)
    one, other = Store(settings, said.append), Store(settings, said.append)
    for round_ in range(3):
        numbers = range(round_ * 10, round_ * 10 + 8)
        for number in numbers:
            assert (one, other)[number % 2].put(A, *piece(number))
            wait_for_another_time(folder.parent / "time")
        for store in (one, other):
            assert store.has(A, [piece(number)[0] for number in numbers]) == b"\0\0" + b"\1" * 6
        assert len(stored(folder)[A]) == 6
        shutil.rmtree(folder)
        one.refresh()
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert said == []
    for store in (one, other):
        store.close()


def test_a_folder_of_somebody_else_in_the_place_of_one_that_was_removed_is_left(folder: Path) -> None:
    said: list[str] = []
    store = Store(StoreSettings(folder, 10**9, 10**9), said.append)
    shutil.rmtree(folder)
    folder.mkdir(mode=0o700)
    (folder / "essay.txt").write_text("years of work")
    for _ in range(2):
        assert not store.put(A, *piece(1))
    assert [path.name for path in folder.iterdir()] == ["essay.txt"]
    (line,) = said
    assert "it has files, and no 'lock'" in line
    (folder / "essay.txt").unlink()
    assert store.put(A, *piece(1))
    store.close()


def test_what_a_living_process_writes_is_not_removed(
    store: Store, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process starts while a piece is being written, and removes what the dead have left, only."""
    digest, data = piece(1)
    flush = os.fdatasync

    def meanwhile(descriptor: int) -> None:
        (folder / "unfinished" / DEAD).write_bytes(b"x")
        another = Store(StoreSettings(folder, 10**9, 10**9))
        another.refresh()
        another.close()
        assert len(list((folder / "unfinished").iterdir())) == 1
        flush(descriptor)

    monkeypatch.setattr(os, "fdatasync", meanwhile)
    assert store.put(A, digest, data)
    assert read(store, A, digest) == data
    assert list((folder / "unfinished").iterdir()) == []


def test_whatever_is_left_unfinished_goes_and_nothing_else(store: Store, folder: Path) -> None:
    unfinished = folder / "unfinished"
    unfinished.mkdir(mode=0o700)
    (unfinished / ("a" * 32)).write_bytes(b"x")
    (unfinished / ("b" * 32)).symlink_to(folder / "lock")
    (unfinished / ("c" * 32)).mkdir()
    os.mkfifo(unfinished / ("d" * 32))
    others = {"essay.txt", "a" * 31, "a" * 33, "A" * 32, "g" * 32}
    for name in others:
        (unfinished / name).write_text("years of work")
    store.refresh()
    assert {path.name for path in unfinished.iterdir()} == others
    assert (folder / "lock").exists()


# --- Disks that take no more, and processes that are killed -----------------------------------------------------------


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO])
@pytest.mark.parametrize("call", ["writev", "fdatasync", "rename", "open"])
def test_a_disk_that_fails(number: int, call: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line, nothing more is stored, and what is there is still used."""
    said: list[str] = []
    store = Store(StoreSettings(folder, 10**9, 10**9), said.append)
    assert store.put(A, *piece(1))

    def fail(*arguments: object, **more: object) -> object:
        if call != "open" or arguments[1] & os.O_CREAT:  # type: ignore[operator]
            raise OSError(number, os.strerror(number))
        return original(*arguments, **more)

    original = getattr(os, call)
    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        assert not store.put(A, *piece(2))
    assert said == [f"{folder}: nothing more is stored: {os.strerror(number)}; what is there is used"]
    assert not store.put(A, *piece(3))
    assert len(said) == 1
    assert read(store, A, piece(1)[0]) == piece(1)[1]
    assert list((folder / "unfinished").glob("*")) == []
    store.close()
    again = Store(StoreSettings(folder, 10**9, 10**9))
    assert again.put(A, *piece(2))
    again.close()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own."""
    with small_disk(tmp_path / "disk", "4m") as path:
        yield path


def test_a_disk_that_can_only_be_read(disk: Path) -> None:
    """What is there is used, also by a server that starts, and with smaller bounds; nothing is stored or removed."""
    store = Store(StoreSettings(disk / "store", 10**9, 10**9))
    digest, data = piece(1)
    damaged = piece(2)[0]
    for number in range(4):
        assert store.put(A, *piece(number))
    flip(at(disk / "store", A, damaged), 7)
    (disk / "store" / "unfinished" / DEAD).touch()
    store.close()
    (disk / "empty").mkdir()
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    said: list[str] = []
    store = Store(StoreSettings(disk / "store", 2 * COST, 2 * COST), said.append)
    store.refresh()
    assert store.counts().pieces == 4
    assert store.has(A, [digest]) == b"\1"
    assert read(store, A, digest) == data
    assert not store.put(A, *piece(9))
    assert not store.remove_damaged(A, damaged)
    strerror = os.strerror(errno.EROFS)
    assert said == [f"{disk / 'store'}: nothing more is stored: {strerror}; what is there is used"]
    store.close()
    for name in ("none", "none/below", "empty"):
        with pytest.raises(InputError, match=f"{name}: cannot be the store: {strerror}$"):
            Store(StoreSettings(disk / name, 1, 1))


def storm(folder: Path, total_bytes: int, processes: int, seed: int) -> set[int]:
    """What was said to be stored, of processes of which 60 were killed."""
    command = [sys.executable, "-m", "tests.support.store_storm", str(folder)]
    numbers = map(str, (total_bytes, processes, 60, seed))
    done = subprocess.run([*command, *numbers], capture_output=True, text=True, check=True, timeout=240)
    assert done.stderr == ""
    told = json.loads(done.stdout)
    assert told["wrong"] == []
    return set(told["stored"])


@pytest.mark.parametrize("processes", [1, 4])
def test_kills_lose_nothing_that_was_stored(processes: int, folder: Path) -> None:
    told = storm(folder, 10**9, processes, processes)
    assert len(told) > 20
    store = Store(StoreSettings(folder, 10**9, 10**9))
    found = {number: store_storm.is_right(store, number) for number in range(store_storm.PIECES)}
    assert all(found[number] for number in told)
    assert False not in found.values()
    store.refresh()
    assert list((folder / "unfinished").iterdir()) == []
    store.close()


def test_kills_of_processes_that_evict_leave_no_more_than_there_may_be(folder: Path) -> None:
    total = 12 * COST
    told = storm(folder, total, 4, 7)
    assert len(told) > 20
    store = Store(StoreSettings(folder, total, total))
    store.refresh()
    assert sum(max(path.stat().st_size, COST) for path in folder.glob("*/??/*")) <= total
    assert False not in [store_storm.is_right(store, number) for number in range(store_storm.PIECES)]
    # All are usable as before.
    for number in range(30):
        assert store.put(A, *piece(number))
    assert read(store, A, piece(29)[0]) == piece(29)[1]
    store.close()


# --- Folders that are none --------------------------------------------------------------------------------------------


def test_a_folder_of_others_is_refused(tmp_path: Path) -> None:
    for mode in (0o720, 0o702, 0o777):
        (tmp_path / "open").mkdir(exist_ok=True)
        (tmp_path / "open").chmod(mode)
        with pytest.raises(InputError, match=r"open: cannot be the store: others may write to it, .*; chmod go-w it$"):
            Store(StoreSettings(tmp_path / "open", 1, 1))
    (tmp_path / "open").chmod(0o755)
    Store(StoreSettings(tmp_path / "open", 1, 1)).close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_another_user_is_refused(tmp_path: Path) -> None:
    os.chown(tmp_path, 12345, -1)
    with pytest.raises(InputError, match=r"cannot be the store: it is another user's; choose a folder of this user's$"):
        Store(StoreSettings(tmp_path, 1, 1))


def test_what_is_no_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("file", "file/below", "link"):
        with pytest.raises(InputError, match=f"{name}: cannot be the store: (File exists|Not a directory)$"):
            Store(StoreSettings(tmp_path / name, 1, 1))


@pytest.mark.parametrize("name", ["unfinished", "essay.txt", A, ".hidden", "lock2"])
def test_a_folder_with_files_that_is_no_store_is_refused(name: str, tmp_path: Path) -> None:
    """Somebody has mistyped its name; nothing in it changes."""
    (tmp_path / name).mkdir()
    essay = tmp_path / name / "essay.txt"
    essay.write_text("years of work")
    with pytest.raises(
        InputError, match=r"cannot be the store: it has files, and no 'lock', .*; choose an empty folder"
    ):
        Store(StoreSettings(tmp_path, 1, 1))
    assert essay.read_text() == "years of work"
    assert list(tmp_path.iterdir()) == [essay.parent]


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: os.symlink("/dev/null", path), os.mkdir, make_socket])
def test_a_lock_that_is_no_file_is_refused(make: Callable[[Path], object], tmp_path: Path) -> None:
    make(tmp_path / "lock")
    with pytest.raises(InputError, match=r"cannot be the store: 'lock' in it is not a regular file; remove that"):
        Store(StoreSettings(tmp_path, 1, 1))


@pytest.mark.parametrize("content", [b"", b"x", bytes(8), b"\xff" * 8, bytes(100)])
def test_any_number_in_the_lock_will_do(content: bytes, folder: Path) -> None:
    folder.mkdir(mode=0o700)
    (folder / "lock").write_bytes(content)
    one, other = (Store(StoreSettings(folder, 3 * COST, 3 * COST)) for _ in range(2))
    for number in range(9):
        assert (one, other)[number % 2].put(A, *piece(number))
    assert len(stored(folder)[A]) == 3
    for store in (one, other):
        store.close()


def test_a_disk_that_stops_answering_while_a_piece_is_read(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    digest, data = piece(1)
    store.put(A, digest, data)
    opened = store.open(A, digest)
    assert opened is not None

    def fail(*arguments: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "readv", fail)
    assert not read_piece(opened[0], digest, [memoryview(bytearray(opened[1]))])
    os.close(opened[0])
