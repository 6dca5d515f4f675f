"""The client's half of a session: connect, upload partitions, have stages run at the server, and stay connected.

One thread per client does all but the queries: it uploads, asks for signs of life, and when the server is lost it
connects again and goes on where it was. A query never waits for it: it fails at once while there is no server, and
after its time-out when there is none any more.
"""

from __future__ import annotations

import contextlib
import os
import random
import socket as sockets
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import zmq

from ionn.address import format_address, parse_address
from ionn.client.connection import FRAME_BYTES_MAX, Connection
from ionn.client.estimates import ANSWER_S
from ionn.client.measuring import Measuring
from ionn.client.query import Exchange
from ionn.errors import (
    IonnError,
    LateError,
    NotAcceptedError,
    OtherNumericsError,
    ProtocolError,
    ServerError,
    ServerUnreachableError,
    VersionError,
)
from ionn.model.caffemodel import Floats
from ionn.model.comparison import Numerics
from ionn.model.partial_net import ExtractedPartition
from ionn.protocol.curve import ClientKeys
from ionn.protocol.messages import (
    ERROR_CRASHED,
    ERROR_DAMAGED,
    ERROR_PARTITION,
    ERROR_QUERY,
    ERROR_SESSION,
    ERROR_TAKEN,
    PROBE_BYTES,
    Bye,
    Holds,
    Message,
    Ping,
    Pong,
    Result,
    Welcome,
)
from ionn.protocol.sender import Upload
from ionn.protocol.stored import Stored

# What may become of a connection; none of it is the caller's fault, and a query can run at the client instead.
FAULTS = (ServerUnreachableError, ServerError, ProtocolError)
# After so many losses in a row the upload is given up: where the server, or the model at it, is to blame (it crashes,
# takes the bytes for damaged, says what it must not), and no partition became ready meanwhile; and where it has no byte
# more than before.
_SETBACKS_MAX = 3
_LOSSES_MAX = 12
# How long a late answer may take: a blob of two megabytes takes half of that at 0.5 Mbps. Queries run here meanwhile.
_LATE_S = 60.0
# The slowest link on which a server is asked what it has stored, and how long the bytes of that question may take at
# most. Nothing can be planned meanwhile.
_ASKING_MBPS, _ASKING_MAX_S = 0.01, 60.0
# How often the thread looks for a late answer, and whether there is something else to upload by now.
_LATE_POLL_S, _LOOK_S = 0.01, 0.1
# How long a goodbye may take: enough for a live server, short where it is gone.
_GOODBYE_MS = 200

# Servers of other numerics that are remembered beside the first. More are never met, but for one that makes some up.
_NUMERICS_MAX = 4

# What the partitions for a server are made from: its costs, as in its Welcome.
MakePartitions = Callable[[dict[str, Any]], Sequence[ExtractedPartition]]


@dataclass(frozen=True)
class Timeouts:
    """How long a client waits for what.

    A query that runs at the server has `query_s` and ten times the latency that was expected. A server that is silent
    for `heartbeat_s` is asked for a sign of life, and lost if it gives none within `silence_s`. It has `connect_s` to
    answer a hello, and so much and the time that the bytes take to answer what it has stored. After a loss the client
    connects again, after `retry_s` at first and `retry_max_s` at most.
    """

    query_s: float = 5.0
    heartbeat_s: float = 1.0
    silence_s: float = 5.0
    connect_s: float = ANSWER_S
    retry_s: float = 0.25
    retry_max_s: float = 5.0

    def deadline_s(self, expected_ms: float) -> float:
        return self.query_s + 10 * expected_ms / 1e3


@dataclass
class _Heartbeat:
    """Whether the other end of a connection lives. `asked_s` is when it was first asked in vain."""

    timeouts: Timeouts
    heard_s: float = field(default_factory=time.monotonic)
    asked_s: float | None = None
    sent_s: float = 0.0

    def beat(self, connection: Connection) -> bool:
        """Ask for a sign of life if one is due; whether it was. Raises ServerUnreachableError if there was none for
        too long."""
        now_s = time.monotonic()
        if self.asked_s is not None and now_s - self.asked_s > self.timeouts.silence_s:
            raise connection.unreachable(f"the server gave no sign of life for {self.timeouts.silence_s:g} s")
        due = now_s - max(self.heard_s, self.sent_s) >= self.timeouts.heartbeat_s
        if due:
            connection.send(Ping())
            self.sent_s = now_s
            self.asked_s = self.asked_s or now_s
        return due

    def heard(self) -> None:
        self.heard_s, self.asked_s = time.monotonic(), None


@dataclass(frozen=True)
class _Late:
    """A query whose answers nobody waits for: they are taken as they come, `until_s` at most. `done` is told the
    exchange when all have come, None if they never will."""

    exchange: Exchange
    done: Callable[[Exchange | None], None]
    until_s: float


@dataclass(frozen=True)
class _Connections:
    """`welcome` is the upload connection's."""

    control: Connection
    upload: Connection
    welcome: Welcome
    made_s: float = field(default_factory=time.monotonic)

    def close(self) -> None:
        self.control.close()
        self.upload.close()


class Client:
    """A session at a server.

    Raises InputError for a malformed address, NotAcceptedError for a wrong key or a server of another protocol version
    or one that `check` raises it for, ServerUnreachableError where no server answers, ServerError where it refuses,
    ProtocolError where it is none of ionn's; the last three not if it `may_be_lost` from the beginning: it is looked
    for again then, as after any loss. Close it when done.

    With `measuring`, the client observes its link: a probe at the start, and all that it sends later. An answer that is
    late does not lose the server, then (`query`).

    An upload that `yields` holds weights back while a query is at the server (`ionn.protocol.yielding`).

    `digests` are the SHA-256 of the client's weight pieces, in hexadecimal. A server that keeps weights is asked which
    of them it has: at the beginning of each session, before anything is planned or uploaded, and later again.

    `check` is called with the numerics of each server that is connected to, before it is used. It raises
    OtherNumericsError for one that shall not be.

    `costs` is the server's cost model as JSON, `welcome` all that it said when it was connected to last, `timeouts` as
    given. `numerics` are those of all servers so far, without repetitions and in order: the server may have started
    again as another, or may have moved. `fault` tells why the server is not available, None while it is; `lost_s` is
    since when (time.monotonic()). `upload` is what `start_upload` began, if it did.
    """

    def __init__(
        self,
        address: str,
        keys: ClientKeys | None = None,
        timeouts: Timeouts | None = None,
        may_be_lost: bool = False,
        yields: bool = False,
        measuring: Measuring | None = None,
        digests: Sequence[str] = (),
        check: Callable[[Numerics | None], None] = lambda numerics: None,
    ) -> None:
        host, port = parse_address(address)
        self.address = f"tcp://{format_address((host, port))}"
        self._keys = keys
        self._yields = yields
        self._measuring = measuring
        self._store = Stored(digests)
        self._probe_due = False
        # On the upload connection: when those that are not answered yet were sent, and how many bytes they have.
        self._pings: deque[tuple[float, int]] = deque()
        self._late: _Late | None = None
        # Called by the thread now and then, where the client measures.
        self.look: Callable[[], None] = lambda: None
        self.timeouts = timeouts or Timeouts()
        self.costs: dict[str, Any] = {}
        self.welcome: Welcome | None = None
        self.numerics: tuple[Numerics | None, ...] = ()
        self._check = check
        self.fault: Exception | None = None
        self.lost_s = 0.0
        self.upload: Upload | None = None
        self._session = ""
        self._queries = 0
        # Losses in a row: of all kinds and of connections, since the server had more bytes than ever before; and by its
        # fault, since it had more partitions.
        self._losses = self._breaks = self._setbacks = 0
        self._most_ready = self._most_bytes = 0
        self._make: tuple[MakePartitions, Callable[[], float]] | None = None
        self._context: zmq.Context[Any] = zmq.Context()
        self._stopped = threading.Event()
        self._left = False
        self._wake = os.eventfd(0, os.EFD_NONBLOCK)
        self._querying = threading.Lock()  # whoever holds it may use the control connection
        self._closing = threading.Lock()
        self._connections: _Connections | None = None
        try:
            self._connections = self._first_connections((host, port))
        except BaseException as error:
            if not (may_be_lost and isinstance(error, FAULTS)) or isinstance(error, NotAcceptedError):
                self._context.destroy(linger=0)
                os.close(self._wake)
                raise
            self.fault, self.lost_s = error, time.monotonic()
        self._keeper = threading.Thread(target=self._keep, name="ionn client", daemon=True)
        self._keeper.start()

    def start_upload(self, partitions: Sequence[ExtractedPartition], now_s: Callable[[], float]) -> Upload:
        """Upload the partitions in order, in the background; `now_s` is the clock of the records. Once per client."""
        if self.upload is not None or self._make is not None:
            raise ValueError("this client uploads already")
        self.upload = upload = Upload(partitions, now_s, self._yields, self._store)
        os.eventfd_write(self._wake, 1)
        return upload

    def start_upload_when_known(self, make: MakePartitions, now_s: Callable[[], float]) -> None:
        """Do as `start_upload` with the partitions that `make` makes when the server's costs are known.

        The client's thread calls it once; where it raises an IonnError, that is the server's fault, and it is asked
        again at the next connection.
        """
        if self.upload is not None or self._make is not None:
            raise ValueError("this client uploads already")
        self._make = make, now_s
        os.eventfd_write(self._wake, 1)

    @property
    def stored_pieces(self) -> frozenset[str]:
        """The digests of the weight pieces that the server's store has, as it said last; those are not sent to it."""
        return self._store.pieces

    def wait_stored(self, timeout_s: float) -> bool:
        """Wait until the server's store has what was uploaded, or will not have more of it; whether it has all."""
        deadline = time.monotonic() + timeout_s
        while (upload := self.upload) is not None and not upload.is_stored:
            if self._store.is_quiet or self.fault is not None or time.monotonic() > deadline:
                return False
            time.sleep(_LATE_POLL_S)
        return True

    def run(self, first: int, last: int, data: Floats, timeout_s: float | None = None) -> tuple[list[Floats], Result]:
        """Have the server run stages `first`..`last` on `data`: the outputs, and what the server said about them.

        Raises as `query` does.
        """
        with self.query(timeout_s) as exchange:
            return exchange.result(exchange.run(first, last, data))

    @contextlib.contextmanager
    def query(
        self,
        timeout_s: float | None = None,
        results_bytes: int = FRAME_BYTES_MAX,
        late_s: float | None = None,
        when_done: Callable[[Exchange | None], None] = lambda exchange: None,
    ) -> Iterator[Exchange]:
        """The messages of one query; its answers are waited for `timeout_s` in all, and have `results_bytes` at most.

        Beyond `late_s` (time.monotonic()), if it is given, LateError is raised. The server is not lost by that, but
        there is no other query before all answers have come: `when_done` is told that then, or, with None, that they
        never will.

        Raises ServerUnreachableError, ServerError or ProtocolError. Unless the server just could not run this query
        (ServerError with the code `query`), it is lost then, and is being connected to again.
        """
        with self._querying:
            connections = None if self._stopped.is_set() else self._connections
            if connections is None:
                raise ServerUnreachableError(
                    f"{self.address}: the server is lost ({self.fault or 'the client was closed'})"
                )
            if not self._drain(connections):
                when_done(None)
                raise LateError(f"{self.address}: the server still works on an earlier query")
            self._queries += 1
            self._query_begins_or_ends()
            wait_s = self.timeouts.query_s if timeout_s is None else timeout_s
            connections.control.expect(results_bytes)
            try:
                codecs = connections.welcome.codecs
                with Exchange(connections.control, self._queries, wait_s, codecs, late_s) as exchange:
                    yield exchange
            except LateError:
                self._late = _Late(exchange, when_done, time.monotonic() + _LATE_S)
                raise
            except FAULTS as error:
                if not (isinstance(error, ServerError) and error.code == ERROR_QUERY):
                    self._lose(connections, error)
                raise
            except BaseException:  # the caller broke off, and the answers that are still to come are nobody's
                self._lose(connections, connections.control.unreachable("a query was broken off"))
                raise
            finally:
                if self._late is None:
                    connections.control.expect(0)
        self._query_begins_or_ends()
        if self.upload is None or self.upload.ended:  # else what arrives says so
            self._breaks = self._setbacks = 0

    @property
    def is_late(self) -> bool:
        """Tell whether the server still works on a query that it was late with."""
        return self._late is not None

    def probe(self) -> None:
        """Have the link measured, unless weights are under way, which tell as much."""
        self._probe_due = True
        self.wake()

    def wake(self) -> None:
        """Have the thread look what there is to do now."""
        if self._wake >= 0:
            os.eventfd_write(self._wake, 1)

    def _drain(self, connections: _Connections) -> bool:
        """Take what has come of a late answer; whether none is late any more. Called with the lock."""
        late = self._late
        if late is None:
            return True
        try:
            if not late.exchange.drain():
                if time.monotonic() > late.until_s:
                    raise connections.control.unreachable("the server has not answered a query in time")
                return False
        except FAULTS as error:
            self._lose(connections, error)
            raise
        self._late = None
        connections.control.expect(0)
        late.done(None if late.exchange.failed else late.exchange)
        return True

    def _query_begins_or_ends(self) -> None:
        """Have the thread look whether it may send more now, or less."""
        if self._yields:
            self.wake()

    def leave(self, error: Exception) -> None:
        """Have nothing more to do with the server, because of `error`: `fault` stays that."""
        self._stopped.set()
        with self._querying:
            self._lose(self._connections, error)
            self._left = True
            if self.upload is not None:
                self.upload.stop(error)

    def close(self) -> None:
        """End the session; the server frees it. Another thread's query ends first, and its next one finds no server. A
        client that is closed already stays so."""
        self._stopped.set()
        with self._closing:
            if self._context.closed:
                return
            os.eventfd_write(self._wake, 1)
            self._keeper.join()
            if self.upload is not None:
                self.upload.stop(self.upload.error)
            with self._querying:
                connections, self._connections = self._connections, None
                if connections is not None:
                    with contextlib.suppress(*FAULTS):
                        connections.control.send(Bye())
                    connections.upload.close()
                    connections.control.close(linger_ms=_GOODBYE_MS)
                self._context.destroy(linger=_GOODBYE_MS)
                os.close(self._wake)
                self._wake = -1

    def _lose(self, connections: _Connections | None, error: Exception) -> None:
        """A connection is of no more use, and the thread shall make another. Called with the lock."""
        if self._left or self._connections is not connections:  # the other connection said so already
            return
        if self._late is not None:
            late, self._late = self._late, None
            late.done(None)
        if isinstance(error, ServerError) and error.code in (ERROR_SESSION, ERROR_CRASHED, ERROR_TAKEN):
            self._session = ""
        if connections is not None:
            self._breaks += 1
            # What is lost at once each time is not made at once each time.
            if time.monotonic() - connections.made_s > self.timeouts.retry_max_s:
                self._losses = 0
        by_server = isinstance(error, ServerError) and error.code in (ERROR_CRASHED, ERROR_DAMAGED)
        if by_server or isinstance(error, ProtocolError):
            self._setbacks += 1
        if self.upload is not None:
            self.upload.pause()
            if not self.upload.ended and (self._setbacks >= _SETBACKS_MAX or self._breaks >= _LOSSES_MAX):
                self.upload.stop(error)
        if self.fault is None:
            self.lost_s = time.monotonic()
        self.fault = error
        self._connections = None
        if self._wake >= 0:  # the client was not closed meanwhile
            os.eventfd_write(self._wake, 1)

    # --- What the thread does -----------------------------------------------------------------------------------------

    def _keep(self) -> None:
        """Stay connected until told to stop."""
        try:
            while not self._stopped.is_set():
                self._keep_once()
        except BaseException as error:  # a mistake of ours: say so, and let queries run without
            with self._querying:
                self._lose(self._connections, error if isinstance(error, Exception) else RuntimeError(repr(error)))
                if self.upload is not None:
                    self.upload.stop(self.fault)
            raise

    def _keep_once(self) -> None:
        """Make a connection if there is none, and tend it until it is lost."""
        connections = self._connections
        if connections is None:
            # Not all clients of a server that comes back shall meet it at once.
            wait_s = min(self.timeouts.retry_s * 2 ** min(self._losses, 16), self.timeouts.retry_max_s)
            self._losses += 1
            if self._stopped.wait(wait_s * random.uniform(0.5, 1.0)):
                return
        try:
            if connections is None:
                connections = self._connect()
                with self._querying:
                    if not self._left:
                        self._connections, self.fault = connections, None
            self._tend(connections)
        except FAULTS as error:
            if not self._stopped.is_set():  # else that is all that is wrong
                with self._querying:
                    self._lose(connections, error)
        if connections is not None and self._connections is not connections:
            connections.close()

    def _first_connections(self, address: tuple[str, int]) -> _Connections:
        try:
            # ZeroMQ does not say why it cannot connect.
            sockets.create_connection(address, timeout=self.timeouts.connect_s).close()
        except (OSError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ServerUnreachableError(f"{self.address}: no server there ({reason})") from error
        try:
            return self._connect()
        except (VersionError, OtherNumericsError):
            raise
        except NotAcceptedError:
            # A wrong key shows as a handshake that breaks off, which may be the network's fault: it does not twice.
            return self._connect()

    def _connect(self) -> _Connections:
        """Both connections, in the session so far if there is one and the server still has it."""
        self._pings.clear()
        with contextlib.ExitStack() as opened:
            control = Connection(self._context, self.address, self._keys)
            opened.callback(control.close)
            try:
                welcome = self._hello(control, "control")
            except ServerError as error:
                if error.code != ERROR_SESSION or not self._session:
                    raise
                self._session = ""
                welcome = self._hello(control, "control")
            except ServerUnreachableError:
                if control.greeted:  # the server lives, so it is the session's process that does not answer
                    self._session = ""
                raise
            self._session, self.costs = welcome.session, welcome.costs or self.costs
            self._check(welcome.numerics)
            upload = Connection(self._context, self.address, self._keys)
            opened.callback(upload.close)
            upload.wake_by(self._wake)
            welcome = self._hello(upload, "upload")
            self._check(welcome.numerics)
            if (question := self._store.begin(welcome)) is not None:
                holds = upload.ask(question, self.timeouts.connect_s + _sending_s(question), self._stopped)
                assert isinstance(holds, Holds)
                with self._named():
                    self._store.take(holds, time.monotonic())
            if self._measuring is not None:
                self._measure(self._measuring, upload, welcome)
            opened.pop_all()
        self.welcome = welcome
        if welcome.numerics not in self.numerics and len(self.numerics) <= _NUMERICS_MAX:
            self.numerics = (*self.numerics, welcome.numerics)
        return _Connections(control, upload, welcome)

    def _measure(self, measuring: Measuring, upload: Connection, welcome: Welcome) -> None:
        """Measure the round trip and, by a probe, the rate of the link. An answer that takes too long is taken when it
        comes."""
        for size_bytes in (0, _probe_bytes(welcome)):
            began_s = time.monotonic()
            upload.send(Ping((bytes(size_bytes),) if size_bytes else ()))
            while upload.receive(_LATE_POLL_S) is None:
                if time.monotonic() - began_s > self.timeouts.connect_s or self._stopped.is_set():
                    self._pings.append((began_s, size_bytes))
                    return
            if size_bytes:
                measuring.probed(size_bytes, time.monotonic() - began_s)
            else:
                measuring.round_trip(time.monotonic() - began_s)

    def _observe(self, measuring: Measuring, connections: _Connections, upload: Upload | None) -> None:
        """See whether weights are under way; if nothing is, send a probe if one is due."""
        if upload is None or not upload.weights_under_way:
            measuring.idle()
        if self._probe_due and not self._pings and (upload is None or not upload.under_way):
            size_bytes = _probe_bytes(connections.welcome)
            connections.upload.send(Ping((bytes(size_bytes),)))
            self._pings.append((time.monotonic(), size_bytes))
        self._probe_due = False

    def _ponged(self, upload: Upload | None) -> None:
        sent_s, size_bytes = self._pings.popleft()
        if self._measuring is None or self.is_late or (upload is not None and upload.under_way):
            return  # it waited for its turn
        took_s = time.monotonic() - sent_s
        if size_bytes:
            self._measuring.probed(size_bytes, took_s)
        else:
            self._measuring.round_trip(took_s)

    def _hello(self, connection: Connection, role: str) -> Welcome:
        return connection.hello(role, self._session, self.timeouts.connect_s, self._stopped)

    def _tend(self, connections: _Connections) -> None:
        """Upload, and see that both connections live; until told to stop or the connection is lost."""
        control, connection = _Heartbeat(self.timeouts), _Heartbeat(self.timeouts)
        upload: Upload | None = None
        looked_s, queries = 0.0, self._queries
        while self._connections is connections and not self._stopped.is_set():
            if upload is None:
                upload = self._begin_upload(connections)
            # If it is locked, there is a query: this thread itself has it for moments below only.
            query = self._queries if self._querying.locked() else None
            outgoing = upload.next_message(query) if upload else None
            if outgoing is not None:
                connections.upload.send(outgoing)
            if upload is not None and not (upload.ended and upload.is_stored):
                question = self._store.ask_again(time.monotonic(), upload.wire_bytes, upload.ended)
                if question is not None:
                    connections.upload.send(question)
            wait_s = _LATE_POLL_S if self.is_late else self.timeouts.heartbeat_s / 4
            incoming = self._receive(connections, upload, 0.0 if outgoing else wait_s)
            if incoming is not None:
                connection.heard()
            if isinstance(incoming, Pong):
                self._ponged(upload)
            if self._measuring is not None:
                self._observe(self._measuring, connections, upload)
                if upload is not None and time.monotonic() - looked_s > _LOOK_S:
                    looked_s = time.monotonic()
                    self.look()
            if self._querying.acquire(blocking=False):
                try:
                    if not self._drain(connections):  # the server works
                        control.heard()
                        connection.heard()
                        continue
                    if queries != self._queries:  # it was answered, and may have taken a sign of life with its results
                        queries = self._queries
                        control.heard()
                    # There are no more than were asked for.
                    while connections.control.receive(0) is not None:
                        control.heard()
                    control.beat(connections.control)
                finally:
                    self._querying.release()
                if connection.beat(connections.upload):
                    self._pings.append((connection.sent_s, 0))
            else:  # the server works on a query, which has a deadline
                control.heard()
                connection.heard()

    def _begin_upload(self, connections: _Connections) -> Upload | None:
        """Return what is to be uploaded by this connection, if that is known by now."""
        if self.upload is None and self._make is not None:
            make, now_s = self._make
            try:
                partitions = make(self.costs)
            except IonnError as error:
                raise ProtocolError(str(error)) from error
            self.upload, self._make = Upload(partitions, now_s, self._yields, self._store), None
        if self.upload is not None:
            with self._named():
                self.upload.begin(connections.welcome)
        return self.upload

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        """Name the server in what an upload has against it."""
        try:
            yield
        except ProtocolError as error:
            raise ProtocolError(f"{self.address}: {error}") from error

    def _receive(self, connections: _Connections, upload: Upload | None, timeout_s: float) -> Message | None:
        """Take the next answer on the upload connection, if one comes in time."""
        try:
            message = connections.upload.receive(timeout_s)
        except ServerError as error:
            if upload is None or error.code not in (ERROR_PARTITION, ERROR_DAMAGED):
                raise
            if upload.go_raw():
                advice = "weights go raw from now on, and 'ionn models' tells whether the coded ones are right"
                print(f"ionn: {error}; {advice}", file=sys.stderr)
                raise
            if error.code == ERROR_DAMAGED and upload.error is None:
                raise
            # The server will not have this partition; what was sent of it meanwhile is refused too.
            upload.stop(upload.error or error)
            return None
        if message is None:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._wake)
            return None
        if isinstance(message, Holds):
            with self._named():
                self._store.take(message, time.monotonic())
        elif upload is not None:
            with self._named():
                acknowledged_bytes = upload.take(message)
            if acknowledged_bytes and self._measuring is not None:
                self._measuring.acknowledged(acknowledged_bytes)
            if upload.ready > self._most_ready:
                self._most_ready, self._setbacks = upload.ready, 0
            if upload.sent_bytes > self._most_bytes:
                self._most_bytes = upload.sent_bytes
                self._losses = self._breaks = 0
        return message


def _sending_s(message: Message) -> float:
    """How long a message may take on the link, before it is the server that is slow."""
    size_bytes = sum(memoryview(frame).nbytes for frame in message.frames())
    return min(size_bytes * 8 / (_ASKING_MBPS * 1e6), _ASKING_MAX_S)


def _probe_bytes(welcome: Welcome) -> int:
    """How large a probe the server takes."""
    return min(PROBE_BYTES, welcome.chunk_bytes, welcome.window_bytes)
