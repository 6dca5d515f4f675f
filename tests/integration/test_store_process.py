"""The store process and a session's way to it, without a server: real sockets, a real process, a real folder."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from ionn.protocol.messages import PIECE_BYTES_MAX
from ionn.protocol.receiver import TargetRange
from ionn.server import store_access
from ionn.server.store import Store, StoreSettings, owner_of
from ionn.server.store_access import HAS, HAS_MAX, OPEN, OPEN_MAX, PIECE, StoreAccess, measured_ms_per_mb
from ionn.server.store_process import StoreProcess
from tests.support.stored import piece
from tests.support.world import WAIT_S, freeze, wait_for

A, B = owner_of(b"a"), owner_of(b"b")
SESSION_BYTES = 50_000_000
# What a piece counts at least, of those.
GIVEN_BYTES_MIN = 4096


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def process(folder: Path) -> Iterator[StoreProcess]:
    process = StoreProcess(StoreSettings(folder, 10**9, 10**9), SESSION_BYTES)
    wait_for(lambda: process.news() is not None, "the process to be ready")
    assert process.ready
    yield process
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid_of(process), signal.SIGCONT)
    process.close()


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine, a store that answers late is none that does not answer."""
    monkeypatch.setattr(store_access, "_ANSWER_S", WAIT_S)


def pid_of(process: StoreProcess) -> int:
    return process._process.pid


@pytest.fixture
def access(process: StoreProcess) -> StoreAccess:
    return StoreAccess(*process.session(A))


def keep(access: StoreAccess, *pieces: tuple[bytes, memoryview]) -> None:
    """Give pieces, each as two ranges of a blob."""
    for digest, data in pieces:
        half = len(data) // 8 * 4
        access.keep(digest, [data], (TargetRange(0, 0, half), TargetRange(0, half, len(data))))
    finish(access)


def finish(access: StoreAccess) -> None:
    """Give all that is pending, also on a busy machine."""
    while access.pending:
        access.finish(60.0)


def stored(access: StoreAccess, *digests: bytes) -> bool:
    return access.has(digests) == b"\1" * len(digests)


def read(access: StoreAccess, *pieces: tuple[bytes, memoryview]) -> list[int]:
    """Read pieces, each into two views; the numbers of the missing. All others must be right."""
    targets = [memoryview(bytearray(len(data))) for _, data in pieces]
    missing = access.read([(digest, [to[:8], to[8:]]) for (digest, _), to in zip(pieces, targets, strict=True)])
    for number, ((_, data), target) in enumerate(zip(pieces, targets, strict=True)):
        assert number in missing or target == data
    return missing


def check(process: StoreProcess, number: int = 77) -> None:
    """A session of another owner can have something stored, and read it."""
    with_store = StoreAccess(*process.session(B))
    some = [piece(number + each) for each in range(3)]
    keep(with_store, *some)
    wait_for(lambda: stored(with_store, *(digest for digest, _ in some)), "the pieces to be stored")
    assert read(with_store, *some) == []


def test_what_is_given_is_stored_and_read_again(process: StoreProcess, access: StoreAccess) -> None:
    pieces = [piece(number, 1 + number * 5000) for number in range(3 * OPEN_MAX)]
    digests = [digest for digest, _ in pieces]
    assert access.has(digests) == bytes(len(pieces))
    assert read(access, *pieces) == list(range(len(pieces)))
    keep(access, *pieces[::2])
    wait_for(lambda: stored(access, *digests[::2]), "the pieces to be stored")
    assert access.has(digests) == b"\1\0" * (len(pieces) // 2)
    assert read(access, *pieces) == list(range(1, len(pieces), 2))
    again = StoreAccess(*process.session(A))
    before = psutil.Process().num_fds()
    assert read(again, *pieces[::2]) == []
    assert psutil.Process().num_fds() <= before  # all are closed, perhaps also some that an earlier test left


def test_many_are_asked_for_in_several_packets(access: StoreAccess) -> None:
    some = [piece(number) for number in range(3)]
    keep(access, *some)
    wait_for(lambda: stored(access, *(digest for digest, _ in some)), "the pieces to be stored")
    unknown = [bytes([number % 256]) * 32 for number in range(2 * HAS_MAX)]
    asked = [some[0][0], *unknown[:HAS_MAX], some[1][0], *unknown[HAS_MAX:], some[2][0]]
    found = access.has(asked)
    assert [at for at, each in enumerate(found) if each] == [0, HAS_MAX + 1, 2 * HAS_MAX + 2]
    assert access.has([]) == b""


def test_a_session_has_its_owners_pieces_only(process: StoreProcess, access: StoreAccess, folder: Path) -> None:
    mine = piece(1)
    keep(access, mine)
    wait_for(lambda: stored(access, mine[0]), "the piece to be stored")
    other = StoreAccess(*process.session(B))
    assert not stored(other, mine[0])
    assert read(other, mine) == [0]
    other._damaged.append(mine[0])
    finish(other)
    keep(other, piece(2))
    wait_for(lambda: stored(other, piece(2)[0]), "the other's piece to be stored")
    assert stored(access, mine[0])
    assert {path.name for path in folder.iterdir()} == {A, B, "lock", "unfinished"}


def test_what_is_damaged_is_not_said_to_be_stored_before_it_is_right(access: StoreAccess, folder: Path) -> None:
    """Whether the store has heard of it by then or not."""
    good, bad = piece(1, 5000), piece(2, 5000)
    keep(access, good, bad)
    wait_for(lambda: stored(access, good[0], bad[0]), "the pieces to be stored")
    (file,) = folder.rglob(bad[0].hex())
    file.write_bytes(bytes([file.read_bytes()[0] ^ 1]) + file.read_bytes()[1:])
    assert read(access, good, bad) == [1]
    assert access.has([good[0], bad[0]]) == b"\1\0"
    assert file.exists()  # nothing has been told yet
    keep(access, bad)
    wait_for(lambda: stored(access, good[0], bad[0]), "the right one to be stored")
    assert read(access, good, bad) == []


def test_what_is_damaged_is_told_and_removed(access: StoreAccess, folder: Path) -> None:
    good, bad, cut = (piece(number) for number in range(3))
    keep(access, good, bad, cut)
    wait_for(lambda: stored(access, good[0], bad[0], cut[0]), "the pieces to be stored")
    for digest, _ in (bad, cut):
        path = folder / A / digest[:1].hex() / digest.hex()
        content = path.read_bytes()
        path.write_bytes(content[:4] + b"xxxx" + content[8:] if digest == bad[0] else content[:-8])
    assert read(access, good, bad, cut) == [1, 2]
    assert access.pending
    finish(access)
    wait_for(lambda: access.has([good[0], bad[0], cut[0]]) == b"\1\0\0", "the damaged pieces to be removed")
    keep(access, bad)
    wait_for(lambda: stored(access, bad[0]), "the piece to be stored again")
    assert read(access, good, bad) == []


def test_a_piece_of_another_size_is_not_read(access: StoreAccess) -> None:
    """Its name is right, and the partition's are not: nothing is written beyond the views."""
    digest, data = piece(1)
    keep(access, (digest, data))
    wait_for(lambda: stored(access, digest), "the piece to be stored")
    for size in (len(data) - 4, len(data) + 4):
        assert access.read([(digest, [memoryview(bytearray(size))])]) == [0]
    finish(access)
    assert read(access, (digest, data)) == []  # it was a false alarm


def test_giving_stops_when_there_is_something_to_do(process: StoreProcess, access: StoreAccess) -> None:
    """A store that takes nothing does not keep a session from its messages; what is left is given later."""
    freeze(pid_of(process))
    some = [piece(number, 500_000) for number in range(4)]
    for digest, data in some:
        access.keep(digest, [data], (TargetRange(0, 0, len(data)),))
    ours, theirs = socket.socketpair()
    threading.Timer(0.3, ours.send, [b"x"]).start()
    access.give(theirs.fileno())
    assert access.pending
    assert theirs.recv(1) == b"x"
    os.kill(pid_of(process), signal.SIGCONT)
    finish(access)
    wait_for(lambda: stored(access, *(digest for digest, _ in some)), "the pieces to be stored")
    for end in (ours, theirs):
        end.close()


@pytest.mark.parametrize("how", ["release", "forget"])
def test_memory_that_is_let_go_while_it_is_given(how: str, process: StoreProcess, access: StoreAccess) -> None:
    """What has begun goes on as it was, whatever becomes of the memory; what has not is kept, or forgotten."""
    begun, waiting = piece(1, 900_000), piece(2)
    blobs = [memoryview(bytearray(begun[1])), memoryview(bytearray(waiting[1]))]
    freeze(pid_of(process))
    access.keep(begun[0], blobs, (TargetRange(0, 0, 400_000), TargetRange(0, 400_000, 3_600_000)))
    access.keep(waiting[0], blobs, (TargetRange(1, 0, 4000),))
    access.finish(0.5)
    assert access.pending
    getattr(access, how)(blobs)
    blobs[0][:] = bytes(3_600_000)
    os.kill(pid_of(process), signal.SIGCONT)
    keep(access, piece(3))
    wait_for(lambda: stored(access, begun[0], piece(3)[0]), "the pieces to be stored")
    assert stored(access, waiting[0]) == (how == "release")


def test_a_store_that_does_not_answer_is_gone(
    process: StoreProcess, access: StoreAccess, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = piece(1)
    keep(access, some)
    wait_for(lambda: stored(access, some[0]), "the piece to be stored")
    monkeypatch.setattr(store_access, "_ANSWER_S", 0.5)
    freeze(pid_of(process))
    assert access.has([some[0]]) == b"\0"
    assert not access.alive
    os.kill(pid_of(process), signal.SIGCONT)
    assert access.has([some[0]]) == b"\0"
    assert read(access, some) == [0]
    access.keep(*some[:1], [some[1]], (TargetRange(0, 0, 4),))
    assert not access.pending
    check(process)


@pytest.mark.parametrize("first", ["has", "read", "keep"])
def test_a_store_that_has_died(first: str, process: StoreProcess, access: StoreAccess) -> None:
    some = [piece(number, 300_000) for number in range(3)]
    keep(access, some[0])
    wait_for(lambda: stored(access, some[0][0]), "the piece to be stored")
    os.kill(pid_of(process), signal.SIGKILL)
    process._process.wait()
    if first == "has":
        assert access.has([some[0][0]]) == b"\0"
    elif first == "read":
        assert read(access, *some) == [0, 1, 2]
    else:
        keep(access, *some)
    assert access.has([some[0][0]] * 3) == bytes(3)
    assert read(access, *some) == [0, 1, 2]
    keep(access, *some)
    with pytest.raises(EOFError):
        [process.news() for _ in range(1000)]  # after what it had told before


# --- Sessions that do not keep to it ----------------------------------------------------------------------------------


def ask_raw(ask: socket.socket, packet: bytes) -> bytes:
    """The answer, empty where the socket was closed."""
    with contextlib.suppress(ConnectionError, BrokenPipeError):
        ask.send(packet)
        return ask.recv(100_000)
    return b""


ASKED: dict[str, bytes] = {
    "nothing": b"",
    "an unknown question": b"x" + bytes(32),
    "no digest": HAS,
    "half a digest": HAS + bytes(16),
    "a digest and a half": OPEN + bytes(48),
    "too many at once": HAS + bytes(32 * (HAS_MAX + 1)),
    "a hundred kilobytes": HAS + bytes(32 * 3200),
    "too many files at once": OPEN + bytes(32 * (OPEN_MAX + 1)),
    "a name": HAS + b"../../../../../etc/passwd".ljust(31),
}


@pytest.mark.parametrize("what", ASKED)
def test_a_question_that_is_none_costs_the_session_its_store(what: str, process: StoreProcess) -> None:
    ask, kept = process.session(A)
    assert ask_raw(ask, ASKED[what]) == b""
    for end in (ask, kept):
        end.close()
    check(process)


def test_a_digest_may_be_any_bytes(process: StoreProcess, folder: Path) -> None:
    ask, _ = process.session(A)
    (folder.parent / "passwd").write_text("secret")
    for digest in (b"../../../passwd".ljust(32, b"\0"), b"/" * 32, b"\0" * 32, b"." * 32, b"\n" * 32):
        assert ask_raw(ask, HAS + digest) == b"\0"
        assert ask_raw(ask, OPEN + digest) == bytes(4)


def test_files_are_not_sent_to_who_does_not_take_them(process: StoreProcess) -> None:
    """What is under way is bounded in the system for all processes of a user."""
    first = StoreAccess(*process.session(A))
    some = [piece(number) for number in range(OPEN_MAX)]
    keep(first, *some)
    wait_for(lambda: stored(first, *(digest for digest, _ in some)), "the pieces to be stored")
    server = psutil.Process(pid_of(process))
    before = server.num_fds()
    ask, kept = process.session(A)
    with contextlib.suppress(ConnectionError, BrokenPipeError):
        for _ in range(1000):
            ask.send(OPEN + b"".join(digest for digest, _ in some))
    packets = 0
    with contextlib.suppress(ConnectionError):
        while socket.recv_fds(ask, 1000, OPEN_MAX)[0]:
            packets += 1
    assert packets <= 2
    for end in (ask, kept):
        end.close()
    wait_for(lambda: server.num_fds() <= before, "the session's descriptors to be closed")
    check(process)


def closed(end: socket.socket) -> bool:
    """Wait until the store process closes its end."""
    end.settimeout(60.0)
    with contextlib.suppress(ConnectionError):
        return not end.recv(1)
    return True


def give_raw(kept: socket.socket, *parts: bytes) -> None:
    with contextlib.suppress(ConnectionError):
        for part in parts:
            kept.sendall(part)


def as_given(digest: bytes, data: bytes | memoryview) -> bytes:
    return PIECE.pack(digest, len(data)) + bytes(data)


def test_a_piece_that_is_too_large_is_not_taken(process: StoreProcess) -> None:
    for size in (PIECE_BYTES_MAX + 1, 2**32 - 1):
        ask, kept = process.session(A)
        give_raw(kept, PIECE.pack(bytes(32), size), bytes(1000))
        assert closed(kept)
        assert ask_raw(ask, HAS + bytes(32)) == b"\0"
    check(process)


def test_a_session_gives_no_more_than_it_may_have(process: StoreProcess, folder: Path) -> None:
    """Whatever it is, and also if it is not stored."""
    ask, kept = process.session(A)
    largest = bytes(PIECE_BYTES_MAX)
    count = SESSION_BYTES // PIECE_BYTES_MAX
    left = SESSION_BYTES - count * PIECE_BYTES_MAX - GIVEN_BYTES_MIN
    give_raw(kept, *[as_given(bytes(32), largest)] * count, as_given(bytes(32), bytes(left)), as_given(*piece(1, 1)))
    wait_for(lambda: ask_raw(ask, HAS + piece(1, 1)[0]) == b"\1", "the last piece to be stored")
    give_raw(kept, as_given(*piece(2, 1)))
    assert closed(kept)
    assert ask_raw(ask, HAS + piece(2, 1)[0]) == b"\0"
    assert len(list(folder.glob("*/??/*"))) == 1
    check(process)


def test_a_tiny_piece_counts_as_much_as_it_costs(folder: Path) -> None:
    """Of a float each, a session could give a quarter of a billion of them."""
    process = StoreProcess(StoreSettings(folder, 10**9, 10**9), 20 * GIVEN_BYTES_MIN)
    wait_for(lambda: process.news() is not None, "the process to be ready")
    ask, kept = process.session(A)
    tiny = [piece(number, 1) for number in range(21)]
    give_raw(kept, *(as_given(*each) for each in tiny))
    assert closed(kept)
    assert ask_raw(ask, HAS + b"".join(digest for digest, _ in tiny)) == b"\1" * 20 + b"\0"
    check(process)
    process.close()


def test_pieces_with_wrong_digests_end(process: StoreProcess) -> None:
    ask, kept = process.session(A)
    give_raw(kept, as_given(bytes(32), bytes(4)) * 100, as_given(*piece(2)))
    wait_for(lambda: ask_raw(ask, HAS + piece(2)[0]) == b"\1", "the piece after a hundred wrong ones")
    give_raw(kept, as_given(bytes(32), bytes(4)))
    assert closed(kept)
    check(process)


def test_sixty_sessions_that_give_tiny_pieces_without_end_keep_nobody_waiting(process: StoreProcess) -> None:
    """Each has a thread of the store process's, and an honest session has an answer all the same."""
    some = [piece(number, 250_000) for number in range(8)]
    digests = [digest for digest, _ in some]
    first = StoreAccess(*process.session(A))
    keep(first, *some)
    wait_for(lambda: stored(first, *digests), "the pieces to be stored")
    floods = [process.session(B) for _ in range(60)]
    flood = as_given(bytes(32), bytes(4)) * 2000

    def give_without_end(kept: socket.socket) -> None:
        with contextlib.suppress(ConnectionError):
            while True:
                kept.sendall(flood)

    threads = [threading.Thread(target=give_without_end, args=(kept,)) for _, kept in floods]
    for thread in threads:
        thread.start()
    try:
        for _ in range(5):
            access = StoreAccess(*process.session(A))
            assert stored(access, *digests)
            assert access.alive
    finally:
        for _, kept in floods:
            with contextlib.suppress(OSError):
                kept.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join()


def test_false_alarms_end(process: StoreProcess) -> None:
    ask, kept = process.session(A)
    digest, data = piece(1)
    give_raw(kept, as_given(digest, data), PIECE.pack(digest, 0) * 100, as_given(*piece(2)))
    wait_for(lambda: ask_raw(ask, HAS + piece(2)[0]) == b"\1", "the piece after a hundred false alarms")
    give_raw(kept, PIECE.pack(digest, 0))
    assert closed(kept)
    assert ask_raw(ask, HAS + digest) == b"\1"
    check(process)


def test_what_is_given_is_verified(process: StoreProcess, access: StoreAccess) -> None:
    """A session cannot have other bytes stored under a name, not even its own client's."""
    digest, data = piece(1)
    nan = np.array([np.nan], np.float32).tobytes()
    _, kept = process.session(A)
    wrong = [as_given(digest, bytes(len(data))), as_given(hashlib.sha256(nan).digest(), nan), as_given(digest, b"abc")]
    right = piece(2)
    give_raw(kept, *wrong, as_given(*right))
    wait_for(lambda: stored(access, right[0]), "the right piece to be stored")
    assert access.has([digest, hashlib.sha256(nan).digest()]) == b"\0\0"


@pytest.mark.parametrize("cut", [0, 1, 35, 36, 37, 3000])
def test_a_session_that_ends_while_it_gives(cut: int, process: StoreProcess, folder: Path) -> None:
    digest, data = piece(1)
    ask, kept = process.session(A)
    give_raw(kept, as_given(digest, data)[:cut])
    for end in (ask, kept):
        end.close()
    check(process)
    assert not (folder / A).exists()


def test_many_sessions_that_hold_half_a_piece(process: StoreProcess) -> None:
    """Only what has come occupies memory."""
    server = psutil.Process(pid_of(process))
    check(process, 500)
    before = server.memory_info().rss
    sessions = [process.session(A) for _ in range(100)]
    for _, kept in sessions:
        kept.sendall(PIECE.pack(bytes(32), PIECE_BYTES_MAX) + bytes(1000))
    check(process)
    assert server.memory_info().rss - before < 50_000_000
    for ends in sessions:
        for end in ends:
            end.close()
    wait_for(lambda: server.num_threads() < 20, "the threads of the sessions to end")


def test_the_process_ends_with_its_front(process: StoreProcess) -> None:
    process._socket.close()
    assert process._process.wait(60) == 0


@pytest.mark.parametrize("name", ["store", "/".join(["\U0001f600" * 60] * 12)], ids=["short", "long"])
def test_a_folder_that_is_none_any_more_is_said(name: str, tmp_path: Path) -> None:
    folder = tmp_path / name
    Store(StoreSettings(folder, 10**9, 10**9)).close()
    folder.chmod(0o777)
    process = StoreProcess(StoreSettings(folder, 10**9, 10**9), SESSION_BYTES)
    process._process.wait()
    news = process.news()
    assert news is not None
    assert (
        news.warning == f"{folder}: cannot be the store: others may write to it, and so change weights; chmod go-w it"
    )
    with pytest.raises(EOFError):
        process.news()
    process.bury()


def test_the_front_is_told_what_is_counted(process: StoreProcess, access: StoreAccess) -> None:
    some = [piece(number) for number in range(3)]
    keep(access, *some)
    wait_for(lambda: stored(access, *(digest for digest, _ in some)), "the pieces to be stored")
    assert read(access, *some[:2]) == []
    told: list[tuple[int, int, int]] = []

    def counted() -> bool:
        while (news := process.news()) is not None:
            assert news.counts is not None
            told.append((news.counts.pieces, news.counts.stored, news.counts.opened))
        return bool(told) and told[-1] == (3, 3, 2)

    wait_for(counted, "what was counted to be told")


def test_the_time_to_read_is_measured() -> None:
    assert 0 < measured_ms_per_mb() < 100
