"""The edge server: a front process that every client talks to, and a worker process for each session.

The front does not decode the messages of sessions, it only passes frames on, so weights are not copied here. It
receives a query's data in memory that the worker can read (`shared_memory`). Workers are forked from a process that has
loaded Caffe already, so a session starts in milliseconds.

A message that computes waits for a turn: the front hands it over when a place is free and no waiting client has used
less processor time (`shares`). The front recognises them without decoding them. On `control` all messages compute,
except a Hello and those that are too small to be a query. On `upload` none do: chunks are cheap and should not wait,
and queries are refused. But a client is charged all that its processes use, and if it is far ahead of the others, its
uploads wait for turns too. New stages are tried, each in a turn of its own, while a session has no messages.

A session outlives its connections: a client that comes back with the session's token within `idle_s` continues it.

The front never blocks. What a client sends beyond its session's credit stays in the client, what it does not read stays
in its session's process, and the front does not wait for processes to start or end.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import resource
import secrets
import signal
import socket
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

from ionn.address import is_loopback
from ionn.errors import InputError, IonnError, ProtocolError
from ionn.protocol.buffers import give_back, untouched
from ionn.protocol.curve import ServerKeys
from ionn.protocol.messages import (
    ERROR_BUSY,
    ERROR_CRASHED,
    ERROR_PROTOCOL,
    ERROR_SESSION,
    ERROR_STOPPING,
    ERROR_TAKEN,
    ERROR_VERSION,
    PROTOCOL,
    Error,
    Hello,
    Ping,
    Pong,
    decode,
)
from ionn.protocol.zmtp import TooLargeError
from ionn.server import sandbox
from ionn.server.door import Connection, Door
from ionn.server.forkserver import ForkServer, News
from ionn.server.ipc import MORE, TRIAL, FrontPipe
from ionn.server.limits import Limits, option
from ionn.server.logs import Quoted
from ionn.server.loop import GONE, IN, OUT, Loop
from ionn.server.metrics import Counts
from ionn.server.roster import ROLES, Client, Session, Taken, bounds, client_credit
from ionn.server.shared_memory import Inbox, Note
from ionn.server.shares import Shares
from ionn.server.store import SHARED, Store, StoreSettings, owner_of
from ionn.server.store_process import StoreProcess

log = logging.getLogger(__name__)

# How often the front looks for sessions that are silent or stuck, and for connections whose time is over.
_TICK_S = 0.25
# Lines that sessions' processes write to standard error and that are logged, at once and in the long run: a traceback,
# or what Caffe writes when it aborts, has fewer.
_STDERR_LINES_MAX = 100
_STDERR_LINES_PER_S = 1.0
_STDERR_BYTES_AT_ONCE = 65536
# Pieces of a session's answers in one turn of the loop, so that other sessions have their turn.
_PIECES_AT_ONCE = 16
# How long after a process has closed its pipe the fork server may take to report its end. It may be frozen.
_NEWS_S = 1.0
# How long a session may take to start: a fork server that was started again first loads Caffe, which takes a slow board
# some seconds.
_START_S = 60.0
# A message of one frame that is no larger computes nothing: a heartbeat is smaller, the smallest query larger.
_LIGHT_BYTES = 30
# How many messages that compute a session's process has at once: one, and a second one if nobody waits for its place,
# so that it does not wait for the front between the two.
_AT_ONCE = 2
# The share of its turn for which a process is charged even if it sleeps. It is small, because a process that has its
# turn may have to wait for a processor that others use.
_ASLEEP = 0.25
# Uploads wait for turns too if their client has used so much of a turn more than the clients that have a turn.
_TURNS_AHEAD = 0.25
# How much is added to the niceness of a process that has computed for longer than a turn, for the rest of its life: it
# then gets a third of another process's processor time, so it does not starve.
_NICER = 5
# The signals that tell the server to stop.
_STOPPING = (signal.SIGTERM, signal.SIGINT)
# A store process that dies so soon after its start is not started again at once. And so long a server that starts waits
# for its store process.
_STORE_LIVES_S = 1.0
_STORE_STARTS_S = 10.0
# When the server stops, its clients have this long to read that and close their connections.
_FAREWELL_S = 0.5
# Descriptors of a session: two connections, its pipe, note and inbox, and these three once more while it starts.
_DESCRIPTORS_PER_SESSION = 8
# What else the front has open: standard streams, libraries, the loop, the fork server, the metrics and its scrapers,
# the store process, and two pairs of sockets to the store process while a session starts.
_DESCRIPTORS = 64


class _Refusal(Exception):
    """A client's message that is not accepted. The client is told why."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.error = Error(code, message)


class Server:
    """The server that `ionn serve` runs. Construct it, then `serve()` until SIGTERM or Ctrl-C.

    `bind` is tcp://HOST:PORT (port 0: any free one; `address` says which). `costs` is the server's cost model as JSON,
    sent to every client. Sessions' processes are `sandboxed` as far as this machine can. With a `store`, clients'
    weights outlive their sessions.

    Raises InputError if the address cannot be bound; for a public address without `keys`, unless it is to be
    `insecure`; for a store whose folder cannot be one, or that has no keys and is not shared; and if the system does
    not allow as many open files as the limits need.
    """

    def __init__(
        self,
        bind: str,
        costs: dict[str, Any] | None = None,
        limits: Limits | None = None,
        keys: ServerKeys | None = None,
        insecure: bool = False,
        sandboxed: bool = True,
        store: StoreSettings | None = None,
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
        if store is not None:
            _check_store(store, keys)
        self._store_settings = store
        self._store: StoreProcess | None = None
        self._store_started = 0.0
        self._sandboxed = sandboxed
        self._lacks = sandbox.lacking() if sandboxed else "--no-sandbox"
        if self._lacks:
            log.warning("sessions are not sandboxed as they could be: %s", self._lacks)
        _reserve_descriptors(self._limits)
        self._stderr = Quoted(log, _STDERR_LINES_MAX, _STDERR_LINES_PER_S)
        self.counts = Counts()
        self._bounds = {role: bounds(role, self._limits) for role in ROLES}
        self._credits = {role: client_credit(role, self._limits) for role in ROLES}
        self._sessions: dict[str, Session] = {}
        self._clients: dict[bytes | str, Client] = {}
        self._shares: Shares[Session] = Shares(int(self._limits.computing), self._limits.turn_s)
        self._stop_at: float | None = None
        self._next_tick = 0.0
        self._loop = Loop(self.counts)
        self._door = Door(bind, self._limits, keys, self.counts, self._loop, self)
        self.address = self._door.address

    def close(self) -> None:
        """Stop listening. `serve` does so too when it ends; this is for a server that never serves."""
        self._door.shut()
        self._loop.close()

    def serve(self, ready: Callable[[str], None] = lambda address: None) -> None:
        """Serve until told to stop; `ready` is called with the address as soon as clients may connect.

        Raises KeyboardInterrupt when it has stopped because of Ctrl-C, and IonnError if no session can be started
        because Caffe cannot be loaded: MissingLibraryError if the reason is known.
        """
        wake = os.eventfd(0, os.EFD_NONBLOCK)
        # A shell has its background jobs ignore Ctrl-C.
        heard = [number for number in _STOPPING if signal.getsignal(number) is not signal.SIG_IGN]
        interrupted = False

        def stop(number: int, frame: FrameType | None) -> None:
            nonlocal interrupted
            _hear_no_more()  # handlers would interrupt each other for ever if the signals came over and over
            now = time.monotonic()
            interrupted |= number == signal.SIGINT
            self._stop_at = now + self._limits.stop_s if self._stop_at is None else now
            os.eventfd_write(wake, 1)

        def listen() -> None:
            for number in heard:
                signal.signal(number, stop)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, heard)

        listen()
        self._forks = ForkServer(self._costs, self._limits, self._sandboxed, self._store_settings is not None)
        self._watch_forks()
        self._start_store()
        self._loop.watch(wake, IN, lambda mask: _drain(wake), lambda: None, outer=False)
        try:
            while not (self._forks.loaded and self._store_settled()) and self._stop_at is None:
                self._loop.turn(_TICK_S)
                if not self._forks.alive:
                    said = "the process that loads Caffe for all sessions ended; it has said why"
                    raise self._forks.missing or IonnError(said)
            if self._stop_at is None:
                self._door.open()
                ready(self.address)
                log.info("ready", extra={"fields": {"address": self.address}})
            while self._stop_at is None:
                self._loop.turn(_TICK_S)
                self._tick()
            listen()  # a second signal means to stop at once
            while not self._stopped():
                self._loop.turn(_TICK_S)
                self._tick()
            self._say_farewell()
        finally:
            # It is stopping: another signal changes nothing, and must not find `wake` closed.
            _hear_no_more()
            for session in list(self._sessions.values()):
                self._end(session, ERROR_STOPPING, "the server stops")
            self.close()
            self._forks.close()
            if self._store is not None:
                self._store.close()
            os.close(wake)
        log.info("stopped")
        if interrupted:
            raise KeyboardInterrupt

    def _stopped(self) -> bool:
        """Tell whether it was told to stop, and running messages have finished or their time is over."""
        if self._stop_at is None:
            return False
        return time.monotonic() >= self._stop_at or not any(
            not session.idle or any(connection.outgoing.size for connection in session.connections.values())
            for session in self._sessions.values()
        )

    def _say_farewell(self) -> None:
        for session in list(self._sessions.values()):
            self._end(session, ERROR_STOPPING, "the server stops")
        deadline = time.monotonic() + _FAREWELL_S
        while self._door.leaving and (left_s := deadline - time.monotonic()) > 0:
            self._loop.turn(left_s)

    # --- Messages of clients ------------------------------------------------------------------------------------------

    def room(self, connection: Connection) -> int:
        session = connection.session
        if session is None:
            return connection.zmtp.bounds.cost
        return self._room(session, connection.role)

    def _room(self, session: Session, role: str) -> int:
        own = self._bounds[role].cost - session.under_way[role]
        return session.client.room(session, role, own, self._credits[role])

    def received(self, connection: Connection, frames: list[Any], cost: int) -> None:
        session = connection.session
        try:
            if session is None:
                self._greet(connection, frames, cost)
            elif self._stop_at is not None:
                raise _Refusal(ERROR_STOPPING, "the server stops")
            else:
                self._take(session, connection, frames, cost)
        except _Refusal as refusal:
            self.counts.refused[refusal.error.code] += 1
            self._door.say(connection, refusal.error)

    def too_large(self, connection: Connection, error: TooLargeError) -> None:
        session = connection.session
        if session is None:
            answer = Error(ERROR_SESSION, "no session: say hello first")
        else:
            answer = Error(ERROR_PROTOCOL, self._too_large(connection.role, error))
            self._forget(session, connection)
        self.counts.refused[answer.code] += 1
        self._door.dismiss(connection, answer)

    def _too_large(self, role: str, error: TooLargeError) -> str:
        limits = self._limits
        match error.bound:
            case "frames":
                return f"more frames than the server's {option('frames')} {limits.frames}"
            case "first_frame_bytes":
                return f"a header of {error.found} bytes; the server's {option('header_kb')} is {limits.header_kb:g}"
        name = "blob_mb" if role == "control" else "window_kb"
        return f"a message of {error.found} bytes or more; the server's {option(name)} is {getattr(limits, name):g}"

    def _greet(self, connection: Connection, frames: list[Any], cost: int) -> None:
        """Answer a message of a stranger; for a Hello, have its session answer it."""
        try:
            message = decode(frames)
        except ProtocolError as error:
            raise _Refusal(ERROR_PROTOCOL, str(error)) from None
        if isinstance(message, Ping):
            room = self._full(connection.key or connection.address) is None and self._stop_at is None
            self._door.say(connection, Pong(len(self._sessions), room, not self._lacks))
            return
        if not isinstance(message, Hello):
            raise _Refusal(ERROR_SESSION, "no session: say hello first")
        if message.protocol != PROTOCOL:
            versions = f"the server speaks protocol {PROTOCOL}, the client {message.protocol}"
            raise _Refusal(ERROR_VERSION, f"{versions}; install the same version of ionn on both")
        if message.role not in ROLES:
            raise _Refusal(ERROR_PROTOCOL, f"no connection has the role {message.role[:20]!r}")
        if self._stop_at is not None:
            raise _Refusal(ERROR_STOPPING, "the server stops")
        if message.session:
            session = self._sessions.get(message.session)
            if session is None or session.key != connection.key:
                raise _Refusal(ERROR_SESSION, "no such session, or it has ended")
        elif message.role != "control":
            raise _Refusal(ERROR_SESSION, "a session begins with the connection of role 'control'")
        else:
            session = self._start(connection)
        self._connect(connection, session, message.role)
        self._take(session, connection, frames, cost, hello=True)

    def _connect(self, connection: Connection, session: Session, role: str) -> None:
        """Make a connection the session's only one of its role."""
        former = session.connections.get(role)
        if former is not None:
            self._forget(session, former)
        for taken in session.waiting[role]:  # nobody waits for their answers, and the Hello need not wait for them
            session.under_way[role] -= taken.cost
        session.waiting[role].clear()
        self._resume_short(session.client)
        allocate = session.pipe.inbox.take if role == "control" else untouched
        self._door.attach(connection, session, role, self._bounds[role], allocate)
        session.connections[role] = connection
        if former is not None:  # only now that the new one is no stranger, who might have to make room for it
            self._door.dismiss(former, Error(ERROR_TAKEN, "the session went on over another connection"))

    def _take(
        self, session: Session, connection: Connection, frames: list[Any], cost: int, hello: bool = False
    ) -> None:
        """Take a message for a session's process, which gets it now, in its turn, or when there is room for it."""
        session.heard = time.monotonic()
        self.counts.messages += 1
        self.counts.message_bytes += sum(map(len, frames))
        if not hello or cost <= self._bounds[connection.role].cost - session.under_way[connection.role]:
            self._keep(session, connection, frames, cost, hello)
        else:  # what the client sends after it waits until it is taken
            session.held[connection.role] = frames, cost
            connection.paused = True

    def _keep(self, session: Session, connection: Connection, frames: list[Any], cost: int, hello: bool) -> None:
        light = hello or (len(frames) == 1 and len(frames[0]) <= _LIGHT_BYTES)
        session.under_way[connection.role] += cost
        taken = Taken(connection, connection.role, cost, light, time.monotonic(), frames)
        session.waiting[connection.role].append(taken)
        self._go_on(session)

    # --- Turns --------------------------------------------------------------------------------------------------------

    def _go_on(self, session: Session) -> None:
        """Give a session's process what it may get now, and have the session wait for a turn if there is more."""
        share = session.client.share
        for role in ROLES:
            queue = session.waiting[role]
            while queue and self._is_light(session, queue[0]):
                self._hand_over(session, role, light=True)
        if any(session.waiting.values()) and session.able:
            if not session.computing:
                self._shares.wait(share, session)
            elif session.turn_at is not None and session.computing < _AT_ONCE and self._shares.again(share):
                self._hand_over(session, session.longest_waiting, light=False)
        elif session.wants_trial and self._stop_at is None:
            self._shares.wait(share, session)
        self._give_turns()

    def _is_light(self, session: Session, taken: Taken) -> bool:
        if taken.light:
            return True
        ahead_s = self._shares.ahead_s(session.client.share)
        return taken.role == "upload" and ahead_s <= _TURNS_AHEAD * self._limits.turn_s

    def _give_turns(self) -> None:
        while (session := self._shares.next()) is not None:
            if any(session.waiting.values()) and session.able:
                session.turn_at = time.monotonic()
                self._hand_over(session, session.longest_waiting, light=False)
            elif session.wants_trial and self._stop_at is None:
                session.turn_at = time.monotonic()
                self._give(session, Taken(None, TRIAL, 0, light=False, at=session.turn_at))
            else:  # its client has come back and its messages were dropped, or it no longer reads its answers
                self._end_turn(session)

    def _hand_over(self, session: Session, role: str, light: bool) -> None:
        taken = session.waiting[role].popleft()
        # It may be a partition's header or end, whose stages have not run yet. (A chunk has two frames.)
        session.untried |= len(taken.frames) == 1 and not taken.light
        self._give(session, taken._replace(light=light))

    def _give(self, session: Session, taken: Taken) -> None:
        if not session.sent:
            session.moved = time.monotonic()
        session.sent.append(taken)
        session.computing += not taken.light
        with contextlib.suppress(OSError):  # the process has ended, which its pipe tells
            session.pipe.send(taken.role, taken.frames)
        self._settle(session)

    def _charge(self, session: Session) -> None:
        """Charge a session's client for the processor time of its process since the last call, or for a part of its
        turn if it has slept in it, which kept others from computing."""
        if session.pid is None:
            return
        with contextlib.suppress(OSError):  # the process has ended
            used_s, now = time.clock_gettime(_processor_clock(session.pid)), time.monotonic()
            held_s = 0.0 if session.turn_at is None else now - max(session.turn_at, session.charged_at)
            self._shares.charge(session.client.share, max(used_s - session.used_s, _ASLEEP * held_s))
            session.used_s, session.charged_at = used_s, now

    def _end_turn(self, session: Session) -> None:
        session.turn_at = None
        self._shares.done(session.client.share, session)

    def drained(self, connection: Connection) -> None:
        session = connection.session
        if connection is session.reader:
            session.moved = time.monotonic()  # its process may have waited for this
        if connection.closed:
            self._forget(session, connection)
        self._loop.later(session.pipe.fileno())

    def _forget(self, session: Session, connection: Connection) -> None:
        """Forget a session's connection that is closed, or will be. Answers for it are dropped."""
        if session.connections.get(connection.role) is connection:
            del session.connections[connection.role]
            session.held.pop(connection.role, None)
            self._resume_short(session.client)
            self._loop.later(session.pipe.fileno())

    # --- Sessions' processes ------------------------------------------------------------------------------------------

    def _full(self, name: bytes | str) -> str | None:
        """Return why there is no place for another session of a client; None if there is one."""
        limits, client = self._limits, self._clients.get(name)
        if len(self._sessions) >= limits.sessions:
            return f"the server has {limits.sessions} sessions already"
        if client is not None and len(client.sessions) >= limits.sessions_per_client:
            most = f"the server's {option('sessions_per_client')} is {limits.sessions_per_client}"
            return f"this client has {len(client.sessions)} sessions already; {most}"
        return None

    def _start(self, connection: Connection) -> Session:
        """Begin a session. Its process starts meanwhile."""
        name = connection.key or connection.address
        if (full := self._full(name)) is not None:
            raise _Refusal(ERROR_BUSY, full)
        token = secrets.token_hex(16)
        with contextlib.ExitStack() as passed:
            try:
                ours, theirs = socket.socketpair()
                passed.enter_context(theirs)
                inbox = Inbox()
                passed.callback(os.close, inbox.descriptor)
                pipe = FrontPipe(ours, inbox, self._frame_bytes_max())
                memory = Note.allocate()
                passed.callback(os.close, memory)
                note = Note(memory)
                if not self._forks.alive:
                    self._forks.start()
                    self._watch_forks()
                store = [passed.enter_context(end) for end in self._store_ends(connection.key)]
                self._forks.fork(token, theirs, [memory, inbox.descriptor], store)
            except OSError as error:
                raise _Refusal(ERROR_BUSY, f"the server cannot start a session: {error.strerror or error}") from error
        now = time.monotonic()
        client = self._clients.setdefault(name, Client(name, self._shares.join(name)))
        session = Session(token, client, connection.key, pipe, note, heard=now, moved=now, charged_at=now)
        self._sessions[token] = session
        client.sessions[session] = None

        def failed() -> None:
            if token in self._sessions:
                self._end(session, ERROR_CRASHED, "the session's process could not be understood")

        self._loop.watch(pipe.fileno(), IN, lambda mask: self._from_worker(session, mask), failed, outer=False)
        self.counts.sessions = len(self._sessions)
        self.counts.started += 1
        log.info("session started", extra={"fields": {"session": token[:8]}})
        return session

    def _frame_bytes_max(self) -> int:
        """The most bytes of an answer's frame: of an output, or of the header of a Welcome with the server's costs."""
        return max(int(self._limits.blob_mb * 1e6), 1_000_000)

    def _from_worker(self, session: Session, mask: int) -> None:
        finished = False
        with contextlib.suppress(OSError):  # the process has ended, which shows when all its answers are read
            if mask & OUT:
                session.pipe.flush()
        try:
            if self._pass_back(session, _PIECES_AT_ONCE):
                self._loop.later(session.pipe.fileno())
            self._go_on(session)
        except EOFError:
            finished = True
        reader = session.reader
        if finished or (mask & GONE and reader is not None and reader.full):
            # The fork server's news will say how it ended.
            session.finished_at = time.monotonic()
            self._loop.unwatch(session.pipe.fileno())
        self._settle(session)

    def _pass_back(self, session: Session, pieces: int) -> bool:
        """Pass on answers of the process, at most so many pieces and while they are read; whether there may be more.
        Raises EOFError if the process has closed its pipe."""
        try:
            for _ in range(pieces):
                reader = session.reader
                if reader is not None and reader.full:
                    self._door.flush(reader)
                    if reader.full:
                        self._end_turn(session)  # it waits for its client
                        return False
                    continue  # the reader may have been closed
                piece = session.pipe.receive(whole=reader is not None and reader.zmtp.seals)
                if piece is None:
                    return False
                if not session.sent:
                    raise ValueError("an answer that nobody asked for")
                if reader is not None:
                    session.moved = time.monotonic()
                    self._door.answer(reader, *piece)
                elif session.sent[0].connection is None:
                    session.untried = bytes(piece.data) == MORE
                if piece.ends and not piece.more:
                    if reader is not None and not session.sent[0].light:  # its client waits for the result
                        self._door.flush(reader)
                    self._answered(session)
            return True
        finally:
            for connection in list(session.connections.values()):
                self._door.flush(connection)

    def _answered(self, session: Session) -> None:
        """Note that the first of the messages under way has been answered."""
        taken = session.sent.popleft()
        role = taken.role
        session.moved = time.monotonic()
        self._charge(session)
        if not taken.light:
            session.computing -= 1
            if not session.computing:
                self._end_turn(session)
            elif session.turn_at is not None:
                session.turn_at = session.moved
        if taken.connection is None:
            return
        session.under_way[role] -= taken.cost
        self._resume_short(session.client)
        session.heard = session.moved  # a client that waited for an answer was not silent
        connection = session.connections.get(role)
        if connection is None:
            return
        if role in session.held:
            self._keep(session, connection, *session.held.pop(role), hello=True)
        if role not in session.held:
            self._door.resume(connection)

    def _resume_short(self, client: Client) -> None:
        """Take more of what waits for the client's credit: there may be room now."""
        short, client.short = client.short, {}
        for session in short:
            for connection in session.connections.values():
                self._door.resume_if_waiting(connection)

    def _settle(self, session: Session) -> None:
        """Watch a session's pipe for what it waits for now."""
        reader = session.reader
        mask = OUT if session.pipe.pending else 0
        if reader is None or not reader.full:
            mask |= IN
        self._loop.change(session.pipe.fileno(), mask)

    def _watch_forks(self) -> None:
        self._loop.watch(self._forks.fileno(), IN, lambda mask: self._from_forks(), lambda: None, outer=False)
        self._loop.watch(self._forks.stderr.fileno(), IN, lambda mask: self._log_stderr(), lambda: None, outer=False)

    # --- The store ----------------------------------------------------------------------------------------------------

    def _start_store(self) -> None:
        """Start the store process, if there is to be one and it was not started just before."""
        now = time.monotonic()
        if self._store_settings is None or now - self._store_started < _STORE_LIVES_S:
            return
        self._store_started = now
        try:
            self._store = StoreProcess(self._store_settings, int(self._limits.weights_mb * 1e6))
        except OSError as error:
            log.warning("there is no store for now: %s", error.strerror)
            return
        self._loop.watch(self._store.fileno(), IN, lambda mask: self._from_store(), lambda: None, outer=False)

    def _store_settled(self) -> bool:
        """Tell whether the store process answers, or the server waits for it no longer."""
        late = time.monotonic() - self._store_started > _STORE_STARTS_S
        return self._store is None or self._store.ready or late

    def _store_ends(self, key: bytes) -> tuple[socket.socket, ...]:
        """The sockets to the store for a session of the client with this key; none if no store process answers."""
        if self._store is None:
            self._start_store()
        if self._store is None or self._store_settings is None or not self._store.ready:
            return ()
        try:
            return self._store.session(SHARED if self._store_settings.shared else owner_of(key))
        except OSError:  # the store process cannot take them now
            return ()

    def _from_store(self) -> None:
        assert self._store is not None
        try:
            while (news := self._store.news()) is not None:
                if news.warning:
                    log.warning("%s", news.warning)
                if news.counts is not None:
                    self.counts.store = news.counts
        except EOFError:
            log.warning("the store process has died; sessions go on without it, and new ones have another")
            self._loop.unwatch(self._store.fileno())
            self._store.bury()
            self._store = None
            self._start_store()

    def _log_stderr(self) -> None:
        with contextlib.suppress(BlockingIOError):
            if said := self._forks.stderr.recv(_STDERR_BYTES_AT_ONCE):
                self._stderr.take(said)
            else:
                self._loop.unwatch(self._forks.stderr.fileno())

    def _from_forks(self) -> None:
        descriptor = self._forks.fileno()
        try:
            while (news := self._forks.news()) is not None:
                self._take_news(news)
        except EOFError:
            self._log_stderr()
            self._loop.unwatch(descriptor)
            self._loop.unwatch(self._forks.stderr.fileno())
            self._forks.bury()
            for session in list(self._sessions.values()):
                if session.pid is None:
                    self._end(session, ERROR_BUSY, "the server cannot start a session: the fork server has died")
                else:
                    reason = f"the session's process ended with the fork server{session.doing()}"
                    self._end(session, ERROR_CRASHED, reason)

    def _take_news(self, news: News) -> None:
        session = self._sessions.get(news.name)
        if news.pid is None:
            if session is not None:
                self._end(session, ERROR_BUSY, f"the server cannot start a session: {news.failure}")
            return
        if session is None:
            if news.code is None:  # the session ended before its process began
                _kill(news.pid)
            return
        if news.code is None:
            session.pid, session.moved = news.pid, time.monotonic()
            self._go_on(session)
            return
        # Its last answers are in its pipe. They are dropped if they are not read now.
        with contextlib.suppress(EOFError, ValueError):
            self._pass_back(session, sys.maxsize)
        code = news.code
        if code and session.turn_at is not None:  # the clock of its processor time is gone
            self._shares.charge(session.client.share, time.monotonic() - session.charged_at)
        session.pid = None
        if code == 0:
            self._end(session, ERROR_SESSION, "the client said goodbye")
        else:
            how = f"was ended by signal {-code} ({signal.strsignal(-code)})" if code < 0 else f"ended with code {code}"
            self._end(session, ERROR_CRASHED, f"the session's process {how}{session.doing()}")

    def _tick(self) -> None:
        now = time.monotonic()
        if now < self._next_tick:
            return
        self._next_tick = now + _TICK_S
        self._loop.guard(lambda: self._door.tick(now))
        for session in list(self._sessions.values()):
            self._loop.guard(functools.partial(self._look_after, session, now))

    def _look_after(self, session: Session, now: float) -> None:
        """End a session whose client is silent, or whose process is stuck or has ended; end a turn that is too long."""
        limits, reader, used_s = self._limits, session.reader, session.used_s
        self._charge(session)
        if session.turn_at is not None and now - session.turn_at > limits.turn_s and session.pid is not None:
            session.turn_at = None
            self._shares.pass_on(session)
            _make_nice(session.pid)
            self._give_turns()
        if session.finished_at is not None and now - session.finished_at > _NEWS_S:
            self._end(session, ERROR_CRASHED, f"the session's process has ended{session.doing()}")
        elif not session.sent:  # a session that waits for a turn is neither stuck nor silent
            if session.idle and now - session.last_heard > limits.idle_s:
                self._end(session, ERROR_SESSION, f"nothing was heard of the client for {limits.idle_s:g} s")
        elif session.pid is None:
            if now - session.moved > _START_S:
                self._end(session, ERROR_BUSY, "the server cannot start a session: the fork server does not answer")
        elif reader is not None and reader.full and session.used_s == used_s:  # it waits for its client
            session.moved = now
        elif now - session.moved > limits.stall_s:
            reason = f"the session's process was stuck for {limits.stall_s:g} s"
            self._end(session, ERROR_CRASHED, reason + session.doing())

    def _end(self, session: Session, code: str, reason: str) -> None:
        log.info("session ended", extra={"fields": {"session": session.token[:8], "code": code, "reason": reason}})
        del self._sessions[session.token]
        self.counts.sessions = len(self._sessions)
        self.counts.ended[code] += 1
        self._loop.unwatch(session.pipe.fileno())
        session.pipe.close()
        self._charge(session)
        if session.pid is not None:
            _kill(session.pid)
        session.note.close()
        client = session.client
        self._shares.leave(client.share, session)
        del client.sessions[session]
        client.short.pop(session, None)
        if not client.sessions:
            del self._clients[client.name]
        for queue in session.waiting.values():
            queue.clear()
        session.sent.clear()  # ends cycles of references, so that memory is freed at once
        connections, session.connections = session.connections, {}
        for connection in connections.values():
            self._door.dismiss(connection, Error(code, reason))
        self._resume_short(client)
        self._give_turns()
        give_back()


def _check_store(settings: StoreSettings, keys: ServerKeys | None) -> None:
    """Raise InputError for a store that this server cannot have."""
    if keys is None and not settings.shared:
        raise InputError(
            "--store: without keys anybody would learn what others have uploaded: give --key and --allow, or "
            "--store-shared where all clients may know that of each other"
        )
    Store(settings).close()


def _hear_no_more() -> None:
    """Ignore the signals that tell the server to stop. They are blocked first, because Python reports a signal that
    arrives just when it is set to be ignored."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING)
    for number in _STOPPING:
        signal.signal(number, signal.SIG_IGN)


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _make_nice(pid: int) -> None:
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, pid, os.getpriority(os.PRIO_PROCESS, 0) + _NICER)  # 19 at most


def _processor_clock(pid: int) -> int:
    """Return the id of the clock that counts another process's processor time, as clock_getcpuclockid(3) does."""
    return ~pid << 3 | 2


def _drain(wake: int) -> None:
    with contextlib.suppress(BlockingIOError):
        os.eventfd_read(wake)


def _reserve_descriptors(limits: Limits) -> None:
    """Have the system allow as many open files as the limits need. Raises InputError if it does not."""
    needed = int(limits.pending + _DESCRIPTORS_PER_SESSION * limits.sessions) + _DESCRIPTORS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if resource.RLIM_INFINITY != hard < needed:
        raise InputError(
            f"{option('pending')} {limits.pending:g} and {option('sessions')} {limits.sessions:g} need {needed} open "
            f"files, and the system allows {hard}; lower them, or raise that (ulimit -Hn)"
        )
    if soft != resource.RLIM_INFINITY and soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
