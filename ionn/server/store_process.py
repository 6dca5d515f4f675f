"""The store process: it uses the store's folder for sessions' processes, which may open no files.

For each session the front makes two pairs of sockets. It gives one end of each to the session's process, and the other
to this one, with the name of the owner whose pieces they are for. So a session can ask only for its owner's pieces,
whoever controls its process. One thread answers what the session asks, and another one takes what it gives
(`store_access` has their messages), so an answer never waits until the disk is written to.

All that a session's process may have this one do is bounded: the size and number of its questions, the bytes that it
gives in all, and how often it is wrong, by reporting undamaged pieces as damaged or giving bytes with another digest. A
session that exceeds these bounds loses its sockets.

The front never waits for this process, and continues without it. This process ends with its front.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import pickle
import signal
import socket
import sys
import termios
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

from ionn.errors import InputError
from ionn.protocol.buffers import untouched
from ionn.protocol.messages import DIGEST_BYTES, PIECE_BYTES_MAX
from ionn.server.orphans import end_with
from ionn.server.processes import PACKET_BYTES_MAX, TEXT_MAX, end_process, next_packet, start_process
from ionn.server.store import Store, StoreCounts, StoreSettings
from ionn.server.store_access import HAS, HAS_MAX, OPEN, OPEN_MAX, PIECE, SIZE

_ASKED_BYTES_MAX = 1 + HAS_MAX * DIGEST_BYTES
# How often the front is told the counts.
_COUNT_S = 0.5
# How often a session may report a piece wrongly as damaged, or give one that cannot be stored. A session that works
# right never does while the disk works.
_WRONG_MAX = 100
# How much a piece counts at least of the bytes that a session may give: its digest and its file cost as much.
_GIVEN_BYTES_MIN = 4096
# The niceness of threads that verify and write pieces, beside queries.
_NICER = 10


class StoreNews(NamedTuple):
    """What the store process tells the front: what an operator should know, or its counts."""

    warning: str
    counts: StoreCounts | None


class StoreProcess:
    """The front's end. `session_bytes` is the most that a session may give in all. The process is `ready` once `news`
    has had its counts. When `news` has reported its death, `bury` it. Raises OSError if it cannot be started."""

    def __init__(self, settings: StoreSettings, session_bytes: int) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.setblocking(False)
        with theirs:
            try:
                self._process = start_process(__name__, theirs, (settings, session_bytes))
            except OSError:
                self._socket.close()
                raise
        self.ready = False

    def fileno(self) -> int:
        return self._socket.fileno()

    def session(self, owner: str) -> tuple[socket.socket, socket.socket]:
        """A session's ends of `ask` and `keep`, for an owner's pieces. Raises OSError if none can be made now."""
        with contextlib.ExitStack() as made:
            ask, their_ask = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            made.callback(ask.close)
            with their_ask:
                keep, their_keep = socket.socketpair()
                made.callback(keep.close)
                with their_keep:
                    descriptors = [their_ask.fileno(), their_keep.fileno()]
                    socket.send_fds(self._socket, [owner.encode()], descriptors)
            made.pop_all()
        return ask, keep

    def news(self) -> StoreNews | None:
        """The next news; None if there is none. Raises EOFError when the process has died."""
        packet = next_packet(self._socket)
        if packet is None:
            return None
        told = json.loads(packet)
        if isinstance(told, str):
            return StoreNews(told, None)
        self.ready = True
        return StoreNews("", StoreCounts(**told))

    def bury(self) -> None:
        """Free what is left of a process that has died."""
        self._process.kill()
        self.close()

    def close(self) -> None:
        """End the process. A piece that is being stored may not be."""
        self._socket.close()
        end_process(self._process)


# --- The process ------------------------------------------------------------------------------------------------------


def main(descriptor: int) -> None:
    """Run the store process. `descriptor` is its end of the pair of sockets."""
    parent, settings, session_bytes = pickle.load(sys.stdin.buffer)
    end_with(parent)
    for number in (signal.SIGINT, signal.SIGTERM):  # they may be sent to the whole process group
        signal.signal(number, signal.SIG_IGN)
    front = socket.socket(fileno=descriptor)

    def tell(told: str | StoreCounts) -> None:
        with contextlib.suppress(OSError):  # the front has ended, or is too busy for this
            content = told[:TEXT_MAX] if isinstance(told, str) else dataclasses.asdict(told)
            front.send(json.dumps(content).encode(), socket.MSG_DONTWAIT)

    try:
        store = Store(settings, tell)
    except InputError as error:
        tell(str(error))
        return
    threading.Thread(target=store.refresh, daemon=True).start()
    threading.Thread(target=_count, args=(store, tell), daemon=True).start()
    while True:
        try:
            packet, descriptors, _, _ = socket.recv_fds(front, PACKET_BYTES_MAX, 2)
        except ConnectionResetError:  # it was closed with news unread
            break
        if not packet:
            break
        ends = [socket.socket(fileno=each) for each in descriptors]
        if len(ends) == 2:  # else this process has no descriptors left for them
            ask, keep = ends
            owner = packet.decode()
            _begin(_answer, store, owner, ask)
            _begin(_take, store, owner, keep, session_bytes)
        del ends
    os._exit(0)  # a thread may be waiting for the disk


def _count(store: Store, tell: Callable[[StoreCounts], None]) -> None:
    """Send the counts to the front, at first and when they have changed."""
    before = None
    while True:
        counts = dataclasses.replace(store.counts())
        if counts != before:
            tell(counts)
            before = counts
        time.sleep(_COUNT_S)


def _begin(serve: Callable[..., None], store: Store, owner: str, end: socket.socket, *more: int) -> None:
    """Serve one of a session's sockets in a thread, until its other end is closed. If no thread can be started, close
    it."""

    def run() -> None:
        with end, contextlib.suppress(OSError):  # the session has ended
            serve(store, owner, end, *more)

    try:
        threading.Thread(target=run, daemon=True).start()
    except RuntimeError:
        end.close()


def _answer(store: Store, owner: str, ask: socket.socket) -> None:
    """Answer what a session asks, one question after the other, until it breaks the rules."""
    while packet := ask.recv(_ASKED_BYTES_MAX + 1):
        kind, asked = packet[:1], packet[1:]
        # Answers that are not read yet may have descriptors, of which a user may have only so many under way.
        unread = int.from_bytes(fcntl.ioctl(ask, termios.TIOCOUTQ, bytes(4)), sys.byteorder)
        if unread or len(packet) > _ASKED_BYTES_MAX or not asked or len(asked) % DIGEST_BYTES:
            return
        digests = [asked[at : at + DIGEST_BYTES] for at in range(0, len(asked), DIGEST_BYTES)]
        if kind == HAS:
            ask.send(store.has(owner, digests))
        elif kind == OPEN and len(digests) <= OPEN_MAX:
            _send_files(store, owner, ask, digests)
        else:
            return


def _send_files(store: Store, owner: str, ask: socket.socket, digests: list[bytes]) -> None:
    sizes, descriptors = b"", []
    try:
        for digest in digests:
            opened = store.open(owner, digest)
            sizes += SIZE.pack(0 if opened is None else opened[1])
            if opened is not None:
                descriptors.append(opened[0])
        socket.send_fds(ask, [sizes], descriptors)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _take(store: Store, owner: str, keep: socket.socket, left_bytes: int) -> None:
    """Store the pieces that a session gives, `left_bytes` in all at most, and check those that it reports as damaged,
    until it has been wrong too often."""
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICER)
    head = memoryview(bytearray(PIECE.size))
    wrong = 0
    while not store.off and wrong <= _WRONG_MAX and _receive(keep, head):
        digest, size = PIECE.unpack(head)
        if not size:
            wrong += not store.remove_damaged(owner, digest)
            continue
        left_bytes -= max(size, _GIVEN_BYTES_MIN)
        if size > PIECE_BYTES_MAX or left_bytes < 0:
            return
        piece = untouched(size)
        if not _receive(keep, piece):
            return
        wrong += not store.put(owner, digest, piece)
        del piece


def _receive(keep: socket.socket, target: memoryview) -> bool:
    """Fill `target` with what arrives; whether it was filled before the other end was closed."""
    while target:
        count = keep.recv_into(target)
        if not count:
            return False
        target = target[count:]
    return True
