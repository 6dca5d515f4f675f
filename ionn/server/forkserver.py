"""The fork server: a process that has loaded Caffe, from which sessions' processes are forked in milliseconds.

The front never waits for it: requests and news are packets over a pair of sockets. The fork server ends with its front,
and sessions' processes end with their fork server, however these end.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import select
import signal
import socket
import sys
import traceback
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Any

from ionn.errors import MissingLibraryError
from ionn.server.limits import Limits
from ionn.server.orphans import end_with
from ionn.server.processes import PACKET_BYTES_MAX, TEXT_MAX, end_process, next_packet, start_process

# A session's pipe, its note and its inbox, and its two sockets to the store if there is one.
_DESCRIPTORS_MAX = 5


@dataclass(frozen=True)
class News:
    """News of the process that was asked for as `name`: its `pid`, and its exit code (negative: a signal) when it has
    ended, else None. If the system refused to make a process, there is no `pid`, and `failure` says why."""

    name: str
    pid: int | None
    code: int | None = None
    failure: str = ""


# The first news: Caffe is loaded, and sessions start at once from now on.
_LOADED = News("", None)


class ForkServer:
    """The front's end. Every session's process gets `costs` and `limits`, and is `sandboxed` or not; `stores` tells
    whether sessions may have a store.

    As far as `news` was called, `loaded` tells whether it can fork, and `missing` why it cannot load Caffe. `stderr` is
    a socket, which does not block, with the standard error of it and its processes. Once `news` has reported its death,
    `bury` it, and `start` it again when it is needed.
    """

    def __init__(self, costs: dict[str, Any], limits: Limits, sandboxed: bool, stores: bool) -> None:
        self._given = stores, costs, limits, sandboxed
        self.start()

    def start(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # Not a pipe: a session's process could open its other end by /proc, and read what others write.
        self.stderr, their_stderr = socket.socketpair()
        for end in (self._socket, self.stderr):
            end.setblocking(False)
        with theirs, their_stderr:
            self._process = start_process(__name__, theirs, self._given, their_stderr.fileno())
        self.alive = True
        self.loaded = False
        self.missing: MissingLibraryError | None = None

    def fileno(self) -> int:
        return self._socket.fileno()

    def fork(self, name: str, pipe: socket.socket, memory: Sequence[int], store: Sequence[socket.socket] = ()) -> None:
        """Ask for a process that serves a session over `pipe`, with the `memory` of its note and its inbox, and its
        sockets to the `store`; `news` will report on it. The descriptors may be closed afterwards. Raises OSError if
        the request cannot be sent now."""
        descriptors = [pipe.fileno(), *memory, *(each.fileno() for each in store)]
        socket.send_fds(self._socket, [name.encode()], descriptors)

    def news(self) -> News | None:
        """The next news; None if there is none. Raises EOFError when the fork server has died, and so its processes."""
        packet = next_packet(self._socket)
        if packet is None:
            return None
        told = json.loads(packet)
        if isinstance(told, str):
            self.missing = MissingLibraryError(told)
            return self.news()
        news = News(*told)
        if news == _LOADED:
            self.loaded = True
            return self.news()
        return news

    def bury(self) -> None:
        """Free what is left of a fork server that has died."""
        self.alive = False
        self._process.kill()
        self.close()

    def close(self) -> None:
        """End it. Its processes must have been ended before; any that are left end with it."""
        self._socket.close()
        end_process(self._process)
        self.stderr.close()


def main(descriptor: int) -> None:
    """Run the fork server's process. `descriptor` is its end of the pair of sockets."""
    parent, stores, *given = pickle.load(sys.stdin.buffer)
    end_with(parent)
    for number in (signal.SIGINT, signal.SIGTERM):  # they may be sent to the whole process group
        signal.signal(number, signal.SIG_IGN)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)

    from ionn.model import engine
    from ionn.server import store_access, worker  # the worker is loaded here once for all sessions

    assert worker
    front = socket.socket(fileno=descriptor)
    try:
        engine.load_caffe()
        engine.numerics()  # remembered for sessions' processes, which may open no files
    except MissingLibraryError as error:
        _tell(front, str(error))
        return
    given.append(store_access.measured_ms_per_mb() if stores else 0.0)
    wake_read, wake = socket.socketpair()
    for end in (wake_read, wake):
        end.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
    names: dict[int, str] = {}
    poll = select.poll()
    for end in (front, wake_read):
        poll.register(end, select.POLLIN)
    _tell(front, _LOADED)
    while True:
        ready = dict(poll.poll())
        if wake_read.fileno() in ready:
            wake_read.recv(4096)
            _reap(front, names)
        if descriptor in ready:
            try:
                packet, descriptors, _, _ = socket.recv_fds(front, PACKET_BYTES_MAX, _DESCRIPTORS_MAX)
            except ConnectionResetError:  # it was closed with news unread
                break
            if not packet:
                break
            _fork(front, packet.decode(), descriptors, names, given)
    while names:  # the front has ended them
        names.pop(os.waitpid(-1, 0)[0], None)


def _fork(front: socket.socket, name: str, descriptors: list[int], names: dict[int, str], given: list[Any]) -> None:
    parent = os.getpid()
    try:
        pid = os.fork()
    except OSError as error:
        news = News(name, None, failure=error.strerror or str(error))
    else:
        if pid == 0:
            _be_session(parent, name, descriptors, given)
        names[pid] = name
        news = News(name, pid)
    for each in descriptors:
        os.close(each)
    _tell(front, news)


def _reap(front: socket.socket, names: dict[int, str]) -> None:
    while names:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            return
        _tell(front, News(names.pop(pid), pid, os.waitstatus_to_exitcode(status)))


def _tell(front: socket.socket, told: News | str) -> None:
    """Send the front news, or the reason why no process can be forked."""
    with contextlib.suppress(OSError):  # the front has ended, which will be noticed soon
        front.send(json.dumps(told[:TEXT_MAX] if isinstance(told, str) else astuple(told)).encode())


def _be_session(parent: int, name: str, descriptors: list[int], given: list[Any]) -> None:
    """Run the process of one session, from its fork to its end."""
    code = 1
    try:
        end_with(parent)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        pipe, note, inbox, *store = descriptors
        for descriptor in map(int, os.listdir("/proc/self/fd")):
            if descriptor > 2 and descriptor not in descriptors:
                with contextlib.suppress(OSError):  # the one that lists them
                    os.close(descriptor)

        from ionn.server import ipc, shared_memory, store_access, worker

        costs, limits, sandboxed, store_ms_per_mb = given
        access = None
        if store:
            ask, keep = (socket.socket(fileno=each) for each in store)
            access = store_access.StoreAccess(ask, keep, store_ms_per_mb)
        stream = ipc.Pipe(socket.socket(fileno=pipe), shared_memory.open_inbox(inbox))
        worker.run(stream, name, costs, limits, sandboxed, shared_memory.Note(note), access)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)
