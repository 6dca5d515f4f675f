"""The store process: it has the store's folder, for the sessions' processes, which have no files.

For each session the front makes two pairs of sockets, and gives one end of each to the session's process, and the other
to this one, with the name of the owner whose pieces they are for. So a session can ask for its owner's only, whatever
has got hold of it. A thread answers what it asks, another one takes what it gives (`store_access` has what they say):
so a question never waits for the disk to be written to.

All that a session's process may make this one do is bounded: the size and number of what it asks at once, the bytes
that it gives in all, of which each piece takes a least number, and what is wrong: false alarms, and bytes that do not
have the digest that they should. What does not keep to that loses its sockets.

The front never waits for this process. It ends with its front, and the front goes on without it.
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
from ionn.server.processes import end_process, next_packet, start_process
from ionn.server.store import Store, StoreCounts, StoreSettings
from ionn.server.store_access import HAS, HAS_MAX, OPEN, OPEN_MAX, PIECE, SIZE

_PACKET_BYTES_MAX = 4096
# Characters, of which JSON makes six bytes at most.
_WARNING_MAX = 600
_ASKED_BYTES_MAX = 1 + HAS_MAX * DIGEST_BYTES
# How often the front is told what was counted.
_COUNT_S = 0.5
# False alarms, and pieces that are not stored. Of a session that is right there are none while the disk works.
_WRONG_MAX = 100
# What a piece takes at least of the bytes that a session may give: its digest and its file cost as much.
_GIVEN_BYTES_MIN = 4096
# What is given is verified and written beside queries: it may take longer.
_NICER = 10


class StoreNews(NamedTuple):
    """What the store process tells: what an operator should know, or what it has counted."""

    warning: str
    counts: StoreCounts | None


class StoreProcess:
    """The front's end. `session_bytes` is the most that a session may give in all. Once `news` has told that it died,
    `bury` it. It is `ready` when it answers. Raises OSError where it cannot be started.
    """

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
        """A session's ends of `ask` and `keep`, for an owner's pieces. Raises OSError where there can be none now."""
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
        packet = next_packet(self._socket, _PACKET_BYTES_MAX)
        if packet is None:
            return None
        told = json.loads(packet)
        if isinstance(told, str):
            return StoreNews(told, None)
        self.ready = True
        return StoreNews("", StoreCounts(**told))

    def bury(self) -> None:
        self._process.kill()
        self.close()

    def close(self) -> None:
        """End it. A piece that is being stored then is not."""
        self._socket.close()
        end_process(self._process)


# --- The process ------------------------------------------------------------------------------------------------------


def main(descriptor: int) -> None:
    """The store process. `descriptor` is its end of the pair of sockets."""
    parent, settings, session_bytes = pickle.load(sys.stdin.buffer)
    end_with(parent)
    for number in (signal.SIGINT, signal.SIGTERM):  # they may reach the whole process group
        signal.signal(number, signal.SIG_IGN)
    front = socket.socket(fileno=descriptor)

    def tell(told: str | StoreCounts) -> None:
        with contextlib.suppress(OSError):  # the front is gone, or so busy that it need not know
            content = told[:_WARNING_MAX] if isinstance(told, str) else dataclasses.asdict(told)
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
            packet, descriptors, _, _ = socket.recv_fds(front, _PACKET_BYTES_MAX, 2)
        except ConnectionResetError:  # it was closed with news unread
            break
        if not packet:
            break
        ends = [socket.socket(fileno=each) for each in descriptors]
        if len(ends) == 2:  # else there is no room for them
            ask, keep = ends
            owner = packet.decode()
            _begin(_answer, store, owner, ask)
            _begin(_take, store, owner, keep, session_bytes)
        del ends
    os._exit(0)  # a thread may be waiting for the disk


def _count(store: Store, tell: Callable[[StoreCounts], None]) -> None:
    """Tell what was counted, at first and when it has changed."""
    before = None
    while True:
        counts = dataclasses.replace(store.counts())
        if counts != before:
            tell(counts)
            before = counts
        time.sleep(_COUNT_S)


def _begin(serve: Callable[..., None], store: Store, owner: str, end: socket.socket, *more: int) -> None:
    """Serve one end of a session in a thread, until it is closed at the other; there is nothing for it where there is
    no room for a thread."""

    def run() -> None:
        with end, contextlib.suppress(OSError):  # the session has ended
            serve(store, owner, end, *more)

    try:
        threading.Thread(target=run, daemon=True).start()
    except RuntimeError:
        end.close()


def _answer(store: Store, owner: str, ask: socket.socket) -> None:
    """Answer what a session asks, one question after the other."""
    while packet := ask.recv(_ASKED_BYTES_MAX + 1):
        kind, asked = packet[:1], packet[1:]
        # What is not read yet has descriptors in it, of which the system lets a user send only so many.
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
    """Store what a session gives, so many bytes in all, and look at what it says is damaged, until too much of that is
    wrong."""
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
    """Fill `target` with what comes; whether so much came."""
    while target:
        count = keep.recv_into(target)
        if not count:
            return False
        target = target[count:]
    return True
