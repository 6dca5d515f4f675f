"""The edge server: one front process that every client talks to, and a worker process per session.

The front never looks into a session's messages, it only counts and passes frames on, so the weights are not copied
there. Workers are forked from a process that has loaded Caffe already: a session starts in milliseconds.

A session outlives its connections: a client that comes back with the session's token within `idle_s` goes on with it.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import multiprocessing.forkserver
import os
import secrets
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any

import zmq

from ionn import worker
from ionn.errors import InputError, ProtocolError
from ionn.folder import run_folder
from ionn.keys import Doorkeeper, ServerKeys, is_loopback, user_of
from ionn.limits import Limits, option
from ionn.metrics import Counts
from ionn.pipe import Pipe
from ionn.roster import NOTE_BYTES, Connection, Session
from ionn.unended import UnendedMessages
from ionn.wire import (
    ERROR_BUSY,
    ERROR_CRASHED,
    ERROR_CREDIT,
    ERROR_PROTOCOL,
    ERROR_SESSION,
    ERROR_STOPPING,
    ERROR_TAKEN,
    ERROR_VERSION,
    PROTOCOL,
    Error,
    Hello,
    Message,
    Ping,
    Pong,
    decode,
)

log = logging.getLogger(__name__)

# How often the front looks for sessions that are silent or stuck.
_TICK_MS = 250
# The largest message without a session: a hello is a tenth of it.
_HELLO_BYTES_MAX = 1024
# How often connections are tried, so that those that died without a word are closed.
_HEARTBEAT_MS = 5000
# ZeroMQ begins the routing ids that it gives with this, and gives none twice. One that a client chose could be that of
# another client, which has just been cut off.
_GIVEN = b"\0"
# A client that does not read has this many messages waiting; 32 chunks fit the window.
_UNREAD_MAX = 128
# A session's process has no more messages than this to answer, however small they are; 32 chunks fit the window.
_WAITING_MAX = 1000
# What a process seems to end with when the fork server, which would know, was killed. It may live on.
_FORK_SERVER_DIED = 255


class _Refusal(Exception):
    """A client's message is not accepted; the client is told why."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.error = Error(code, message)


class Server:
    """`ionn serve`. Construct it, then `serve()` until SIGTERM or SIGINT.

    `bind` is tcp://HOST:PORT (port 0: any free one; `address` says which). `costs` is the server's cost model as JSON,
    sent to every client. Raises InputError if the address cannot be bound, and for a public one where there are no
    `keys`, unless that is wanted (`insecure`).
    """

    def __init__(
        self,
        bind: str,
        costs: dict[str, Any] | None = None,
        limits: Limits | None = None,
        keys: ServerKeys | None = None,
        insecure: bool = False,
    ) -> None:
        self._costs = costs or {}
        self._limits = limits or Limits()
        if keys is None and not is_loopback(bind):
            if not insecure:
                raise InputError(
                    f"{bind}: a public address needs keys: give --key and --allow (ionn keygen makes keys), "
                    "or --insecure to serve anybody"
                )
            log.warning("%s: anybody may connect, and everything is sent in the clear", bind)
        self.counts = Counts()
        # Twice what a client may have under way.
        self._unended = UnendedMessages(2 * (self._frame_bytes_max() + int(self._limits.header_kb * 1e3)))
        self._sessions: dict[str, Session] = {}
        self._connections: dict[bytes, Connection] = {}
        self._stop_at: float | None = None
        self._next_tick = 0.0
        self._context = zmq.Context()
        self._front = self._context.socket(zmq.ROUTER)
        self._front.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._front.setsockopt(zmq.MAXMSGSIZE, self._frame_bytes_max())
        self._front.setsockopt(zmq.SNDHWM, _UNREAD_MAX)
        self._front.setsockopt(zmq.RCVHWM, _UNREAD_MAX)
        self._front.setsockopt(zmq.HEARTBEAT_IVL, _HEARTBEAT_MS)
        self._front.setsockopt(zmq.HEARTBEAT_TIMEOUT, int(self._limits.idle_s * 1e3))
        self._front.setsockopt(zmq.LINGER, 0)
        self._front.setsockopt(zmq.IPV6, "[" in bind)
        self._doorkeeper: Doorkeeper | None = None
        if keys is not None:
            self._doorkeeper = Doorkeeper(self._context, keys, self._turned_away)
            keys.apply(self._front)
        try:
            self._front.bind(bind)
        except zmq.ZMQError as error:
            self._context.destroy(linger=0)
            raise InputError(f"{bind}: cannot listen there: {error.strerror}; choose another address") from error
        self.address = self._front.getsockopt_string(zmq.LAST_ENDPOINT)
        self._processes = multiprocessing.get_context("forkserver")
        self._processes.set_forkserver_preload(["ionn.preload"])
        # What may become readable, a socket or a file descriptor, and what to do then.
        self._handlers: dict[Any, Callable[[], object]] = {}
        self._poller = zmq.Poller()

    def _frame_bytes_max(self) -> int:
        limits = self._limits
        return int(max(limits.blob_mb * 1e6, limits.chunk_kb * 1e3, limits.header_kb * 1e3))

    def serve(self, ready: Callable[[str], None] = lambda address: None) -> None:
        """Serve until told to stop; `ready` is called with the address as soon as clients may connect."""
        wake = os.eventfd(0, os.EFD_NONBLOCK)

        def stop(number: int, frame: FrameType | None) -> None:
            now = time.monotonic()
            self._stop_at = now + self._limits.stop_s if self._stop_at is None else now
            os.eventfd_write(wake, 1)

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, stop)
        self._folder = run_folder()
        # The fork server loads Caffe while the first client is still on its way.
        multiprocessing.forkserver.ensure_running()
        self._watch(wake, lambda: os.eventfd_read(wake))
        self._watch(self._front, self._from_client)
        if self._doorkeeper is not None:
            self._watch(self._doorkeeper.socket, self._doorkeeper.answer)
        ready(self.address)
        log.info("ready", extra={"fields": {"address": self.address}})
        try:
            while not self._stopped():
                for source, _ in self._poller.poll(_TICK_MS):
                    if source in self._handlers:
                        self._handlers[source]()
                self._tick()
        finally:
            for session in list(self._sessions.values()):
                self._end(session, ERROR_STOPPING, "the server stops")
            self._context.destroy(linger=200)
            os.close(wake)
        log.info("stopped")

    def _watch(self, source: Any, handler: Callable[[], object]) -> None:
        self._handlers[source] = handler
        self._poller.register(source, zmq.POLLIN)

    def _unwatch(self, source: Any) -> None:
        if self._handlers.pop(source, None) is not None:
            self._poller.unregister(source)

    def _stopped(self) -> bool:
        """Whether it was told to stop, and what ran then has finished or had its time."""
        if self._stop_at is None:
            return False
        return time.monotonic() >= self._stop_at or not any(s.waiting for s in self._sessions.values())

    def _from_client(self) -> None:
        identity, *frames = self._front.recv_multipart(copy=False)
        self._unended.ended(identity)
        client = identity.bytes
        connection = self._connections.get(client)
        if connection is not None and connection.session.user != user_of(identity):
            connection = None
        try:
            if not client.startswith(_GIVEN):
                raise _Refusal(ERROR_PROTOCOL, "a connection must not choose its own routing id")
            if connection is None:
                connection = self._greet(client, frames)
        except _Refusal as refusal:
            self._refuse(client, refusal.error)
            return
        if connection is not None:
            self._pass_on(connection, identity, frames)

    def _turned_away(self, who: str) -> None:
        self.counts.refused["key"] += 1
        log.warning("a key is not allowed", extra={"fields": {"client": who}})

    def _refuse(self, client: bytes, error: Error) -> None:
        self.counts.refused[error.code] += 1
        self._reply(client, error)

    def _greet(self, client: bytes, frames: Sequence[Any]) -> Connection | None:
        """Answer a message without a session, unless it is a hello: then its connection, whose session answers it."""
        try:
            message = decode(frames) if sum(map(len, frames)) <= _HELLO_BYTES_MAX else None
        except ProtocolError as error:
            raise _Refusal(ERROR_PROTOCOL, str(error)) from None
        if isinstance(message, Ping):
            room = len(self._sessions) < self._limits.sessions and self._stop_at is None
            self._reply(client, Pong(len(self._sessions), room))
            return None
        if not isinstance(message, Hello):
            raise _Refusal(ERROR_SESSION, "no session: say hello first")
        if message.protocol != PROTOCOL:
            versions = f"the server speaks protocol {PROTOCOL}, the client {message.protocol}"
            raise _Refusal(ERROR_VERSION, f"{versions}; install the same version of ionn on both")
        if message.role not in ("control", "upload"):
            raise _Refusal(ERROR_PROTOCOL, f"no connection has the role {message.role[:20]!r}")
        if self._stop_at is not None:
            raise _Refusal(ERROR_STOPPING, "the server stops")
        if message.session:
            session = self._sessions.get(message.session)
            if session is None or session.user != user_of(frames[0]):
                raise _Refusal(ERROR_SESSION, "no such session, or it has ended")
            return self._connect(client, session, message.role)
        if message.role != "control":
            raise _Refusal(ERROR_SESSION, "a session begins with the connection of role 'control'")
        return self._connect(client, self._start(user_of(frames[0])), message.role)

    def _start(self, user: str) -> Session:
        """A session with a process of its own."""
        if len(self._sessions) >= self._limits.sessions:
            raise _Refusal(ERROR_BUSY, f"the server has {self._limits.sessions} sessions already")
        token = secrets.token_hex(16)
        note = self._processes.RawArray("c", NOTE_BYTES)
        try:
            ours, theirs = socket.socketpair()
        except OSError as error:
            raise _Refusal(ERROR_BUSY, f"the server cannot start a session: {error}") from error
        pipe = Pipe(ours, front=True, bytes_max=int(self._limits.memory_mb * 1e6))
        arguments = (self._folder, theirs, token, self._costs, self._limits, note)
        process = self._processes.Process(target=worker.run, args=arguments, daemon=True)
        try:
            with theirs:
                process.start()
        except (OSError, EOFError) as error:  # EOFError: the fork server has died meanwhile; the next start replaces it
            pipe.close()
            raise _Refusal(ERROR_BUSY, f"the server cannot start a session: {error or 'no process'}") from error
        now = time.monotonic()
        session = self._sessions[token] = Session(token, user, process, pipe, note, heard=now, moved=now)
        self._watch(process.sentinel, lambda: self._process_ended(session))
        self._watch(pipe.fileno(), lambda: self._from_worker(session))
        self.counts.sessions = len(self._sessions)
        self.counts.started += 1
        log.info("session started", extra={"fields": {"session": token[:8], "pid": process.pid}})
        return session

    def _connect(self, client: bytes, session: Session, role: str) -> Connection:
        """Make a connection the session's only one of its role."""
        former = session.connections.get(role)
        if former is not None:
            del self._connections[former.identity]
            self._reply(former.identity, Error(ERROR_TAKEN, "the session went on over another connection"))
        payload_bytes = self._limits.blob_mb * 1e6 if role == "control" else self._limits.window_kb * 1e3
        connection = Connection(client, session, int(payload_bytes + self._limits.header_kb * 1e3))
        self._connections[client] = session.connections[role] = connection
        return connection

    def _pass_on(self, connection: Connection, identity: Any, frames: Sequence[Any]) -> None:
        """Hand a client's message to its session's process, or tell the client why not."""
        session = connection.session
        session.heard = now = time.monotonic()
        size = sum(map(len, frames))
        self.counts.messages += 1
        self.counts.message_bytes += size
        error = self._objection(connection, frames, size)
        if error is not None:
            self._refuse(connection.identity, error)
            return
        with self._speaking(session):
            session.pipe.send([identity, *frames])
        connection.under_way += size
        if not session.waiting:
            session.moved = now
        session.waiting += 1

    def _objection(self, connection: Connection, frames: Sequence[Any], size: int) -> Error | None:
        limits = self._limits
        if self._stop_at is not None:
            return Error(ERROR_STOPPING, "the server stops")
        if connection.session.waiting >= _WAITING_MAX:
            return Error(ERROR_CREDIT, f"more than {_WAITING_MAX} messages are under way")
        if len(frames) > limits.frames:
            return Error(ERROR_PROTOCOL, f"{len(frames)} frames; the server's {option('frames')} is {limits.frames}")
        if len(frames[0]) > limits.header_kb * 1e3:
            most = f"the server's {option('header_kb')} is {limits.header_kb:g}"
            return Error(ERROR_PROTOCOL, f"a header of {len(frames[0])} bytes; {most}")
        if connection.under_way + size > connection.allowance:
            return Error(ERROR_CREDIT, f"more than {connection.allowance} bytes are under way")
        return None

    @contextlib.contextmanager
    def _speaking(self, session: Session) -> Iterator[None]:
        """Use a session's pipe, and watch for what it waits for then."""
        try:
            yield
        except (EOFError, OSError, ValueError) as error:  # the process ends, which its sentinel tells
            self._unwatch(session.pipe.fileno())
            if isinstance(error, ValueError):  # no worker of ours says that
                session.process.kill()
            return
        self._poller.modify(session.pipe.fileno(), zmq.POLLIN | (zmq.POLLOUT if session.pipe.pending else 0))

    def _from_worker(self, session: Session) -> None:
        frames = None
        with self._speaking(session):
            session.pipe.flush()
            frames = session.pipe.receive()
        if frames is None:
            return
        identity, size, *reply = frames
        session.waiting -= 1
        session.moved = time.monotonic()
        connection = self._connections.get(bytes(identity))
        if connection is not None:
            connection.under_way -= int.from_bytes(size)
            self._send(connection.identity, [connection.identity, *reply])

    def _reply(self, client: bytes, message: Message) -> None:
        self._send(client, [client, *message.frames()])

    def _send(self, client: bytes, frames: list[Any]) -> None:
        try:
            self._front.send_multipart(frames, zmq.NOBLOCK, copy=False)
        except zmq.ZMQError as error:
            # EHOSTUNREACH: the client is gone. EAGAIN: it does not read. Its session ends when it stays silent.
            log.debug("client cannot be reached", extra={"fields": {"client": client.hex(), "error": error.strerror}})

    def _tick(self) -> None:
        now = time.monotonic()
        if now < self._next_tick:
            return
        self._next_tick = now + _TICK_MS / 1e3
        if cut := self._unended.cut():
            self.counts.refused["unended"] += cut
            log.warning("a message did not end", extra={"fields": {"connections": cut}})
        for session in list(self._sessions.values()):
            if now - session.heard > self._limits.idle_s:
                self._end(session, ERROR_SESSION, f"nothing was heard of the client for {self._limits.idle_s:g} s")
            elif session.waiting and now - session.moved > self._limits.stall_s:
                reason = f"the session's process was stuck for {self._limits.stall_s:g} s"
                self._end(session, ERROR_CRASHED, reason + session.doing())

    def _process_ended(self, session: Session) -> None:
        if session.process.is_alive():  # the event was for a descriptor that had this number before
            return
        code = session.process.exitcode
        if code == 0:
            self._end(session, ERROR_SESSION, "the client said goodbye")
        else:
            if code == _FORK_SERVER_DIED:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(session.process.pid, signal.SIGKILL)
            how = f"was ended by signal {-code} ({signal.strsignal(-code)})" if code < 0 else f"ended with code {code}"
            self._end(session, ERROR_CRASHED, f"the session's process {how}{session.doing()}")

    def _end(self, session: Session, code: str, reason: str) -> None:
        log.info("session ended", extra={"fields": {"session": session.token[:8], "code": code, "reason": reason}})
        for connection in session.connections.values():
            self._reply(connection.identity, Error(code, reason))
            del self._connections[connection.identity]
        session.connections.clear()  # they refer to the session: its memory is free at once, not some time later
        del self._sessions[session.token]
        self.counts.sessions = len(self._sessions)
        self.counts.ended[code] += 1
        self._unwatch(session.process.sentinel)
        self._unwatch(session.pipe.fileno())
        session.pipe.close()
        session.process.kill()
        session.process.join()
        session.process.close()
