"""The client's half of a session: connect, upload partitions, have stages run at the server, and stay connected.

One thread per client does all but the queries: it uploads, sends heartbeats, and when the server is lost it connects
again and continues. A query never waits for this thread: it fails at once while the server is known to be lost, and
after its time-out if the server is lost meanwhile.
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
from typing import Any, NamedTuple

import zmq

from ionn.address import format_address, parse_address
from ionn.client.connection import FRAME_BYTES_MAX, Connection, opening
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
    Error,
    Holds,
    Message,
    Ping,
    Pong,
    Result,
    Welcome,
)
from ionn.protocol.sender import Upload
from ionn.protocol.stored import Stored

# The errors by which a connection ends. None is the caller's fault, and a query can run at the client instead.
FAULTS = (ServerUnreachableError, ServerError, ProtocolError)
# After so many losses in a row the upload is given up: losses by the fault of the server or of the model (the server
# crashes, finds bytes damaged, or breaks the protocol) without another ready partition; and losses of any kind without
# another byte at the server.
_SETBACKS_MAX = 3
_LOSSES_MAX = 12
# How long a late answer is waited for: a blob of two megabytes takes half of that at 0.5 Mbps. Queries run here
# meanwhile.
_LATE_S = 60.0
# The slowest link for which time is allowed to ask a server what it has stored, and the most time. Nothing can be
# planned meanwhile.
_ASKING_MBPS, _ASKING_MAX_S = 0.01, 60.0
# How many times as long the upload connection may be silent while a Ping has to wait there behind other messages: at 17
# kbps a chunk takes a minute. The control connection's Pings find a dead server as soon as ever.
_WAITING_SILENCES = 12
# How often the thread looks for a late answer, and calls `look`.
_LATE_POLL_S, _LOOK_S = 0.01, 0.1
# How long sending a Bye may take: enough for a live server, and short if it is lost.
_GOODBYE_MS = 200

# How many other numerics of servers are remembered beside the first. Only a server that makes them up has more.
_NUMERICS_MAX = 4

# Makes the partitions for a server from its costs, as in its Welcome.
MakePartitions = Callable[[dict[str, Any]], Sequence[ExtractedPartition]]


@dataclass(frozen=True)
class Timeouts:
    """How long a client waits.

    A query at the server may take `query_s` and ten times the expected latency. A server that is silent for
    `heartbeat_s` is sent a Ping, and is lost if it does not answer within `silence_s`, or twelve times that where
    the Ping waits behind weights or other messages. It has `connect_s` to answer a Hello; the same, and the time
    to send the question, to say what it has stored. After a loss, the client connects again after `retry_s` at first,
    then less often, at last every `retry_max_s`.
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
    """Whether the other end of a connection is alive. `asked_s` is when the first Ping without an answer was sent."""

    timeouts: Timeouts
    heard_s: float = field(default_factory=time.monotonic)
    asked_s: float | None = None
    sent_s: float = 0.0

    def beat(self, connection: Connection, silence_s: float) -> bool:
        """Send a Ping if one is due; whether it was. Raises ServerUnreachableError if there was no answer for longer
        than `silence_s`."""
        now_s = time.monotonic()
        if self.asked_s is not None and now_s - self.asked_s > silence_s:
            raise connection.unreachable(f"the server gave no sign of life for {silence_s:g} s")
        due = now_s - max(self.heard_s, self.sent_s) >= self.timeouts.heartbeat_s
        if due:
            connection.send(Ping())
            self.sent_s = now_s
            self.asked_s = self.asked_s or now_s
        return due

    def heard(self) -> None:
        self.heard_s, self.asked_s = time.monotonic(), None


class _Ping(NamedTuple):
    """A Ping: when it was sent, the bytes of its payload, and whether it has to wait behind other messages."""

    sent_s: float
    size_bytes: int = 0
    waits: bool = False


@dataclass(frozen=True)
class _Late:
    """A query that is late: its answers are taken as they come, until `until_s` at most. `done` is called with the
    exchange when all have come, or with None if they never will."""

    exchange: Exchange
    done: Callable[[Exchange | None], None]
    until_s: float


@dataclass(frozen=True)
class _Connections:
    """The two connections of a client. `welcome` is the upload connection's."""

    control: Connection
    upload: Connection
    welcome: Welcome
    made_s: float = field(default_factory=time.monotonic)

    def close(self) -> None:
        self.control.close()
        self.upload.close()


class Client:
    """A session at a server.

    Raises InputError for a malformed address; NotAcceptedError for a wrong key, another version of the protocol, or a
    server that `check` rejects; ServerUnreachableError if no server answers; ServerError if it refuses; and
    ProtocolError if it is no server of ionn. If it `may_be_lost` from the beginning, the last three are not raised, and
    the client looks for the server again, as after any loss. Close it when done.

    With `measuring`, the client observes its link: by a probe at the start, and by all that it sends later. A late
    answer then does not mean that the server is lost (`query`).

    An upload that `yields` holds weights back while a query is at the server (`ionn.protocol.yielding`).

    `digests` are the SHA-256 of the client's weight pieces, in hexadecimal. A server with a store is asked which of
    them it has: at the beginning of each session, before anything is planned or uploaded, and again later.

    `check` is called with the numerics of each server on connecting, before it is used. It raises OtherNumericsError
    for a server that must not be used.

    `costs` is the server's cost model as JSON, `welcome` its latest Welcome, and `timeouts` as given. `numerics` are
    those of all servers so far, in order and without repetitions: the server may have been replaced by another. `fault`
    is why the server is lost, None while it is not, and `lost_s` since when (time.monotonic()). `upload` is what
    `start_upload` began, if it was called.
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
        self._pings: deque[_Ping] = deque()  # those on the upload connection without an answer yet
        self._late: _Late | None = None
        # Called by the thread from time to time if the client measures.
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
        # Attempts to connect, and lost connections, since the server last had more bytes than ever before; and losses
        # by the server's fault since it last had more ready partitions.
        self._losses = self._breaks = self._setbacks = 0
        self._most_ready = self._most_bytes = 0
        self._make: tuple[MakePartitions, Callable[[], float]] | None = None
        with opening(self.address):
            self._context: zmq.Context[Any] = zmq.Context()
            self._wake = os.eventfd(0, os.EFD_NONBLOCK)
        self._stopped = threading.Event()
        self._left = False
        self._waking = threading.Lock()
        self._querying = threading.Lock()  # whoever holds it may use the control connection
        self._closing = threading.Lock()
        # Those that are used, and those that are to be closed: by the thread after a loss, or at last by `close`.
        self._connections: _Connections | None = None
        self._open: _Connections | None = None
        try:
            self._connections = self._open = self._first_connections((host, port))
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
        self.wake()
        return upload

    def start_upload_when_known(self, make: MakePartitions, now_s: Callable[[], float]) -> None:
        """Do as `start_upload`, with the partitions that `make` makes when the server's costs are known.

        The client's thread calls `make`. If it raises an IonnError, this counts as the server's fault, and `make` is
        called again for the next connection.
        """
        if self.upload is not None or self._make is not None:
            raise ValueError("this client uploads already")
        self._make = make, now_s
        self.wake()

    @property
    def stored_pieces(self) -> frozenset[str]:
        """Return the digests of the weight pieces that the server's store has, as it said last. They are not sent."""
        return self._store.pieces

    def wait_stored(self, timeout_s: float) -> bool:
        """Wait until the server's store has all that was uploaded, or seems not to get more; whether it has all."""
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
        """The messages of one query. Its answers may take `timeout_s` in all, and have `results_bytes` at most.

        After `late_s` (time.monotonic()), if it is given, LateError is raised. The server is not lost then, but other
        queries raise LateError too until all answers have come. `when_done` is then called with the exchange, or with
        None if they never will come.

        Raises ServerUnreachableError, ServerError or ProtocolError. The server is then lost, and the client connects
        again, unless the server only could not run this query (ServerError with the code `query`).
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
            except BaseException:  # the caller broke off, and nobody will take the answers that are still due
                self._lose(connections, connections.control.unreachable("a query was broken off"))
                raise
            finally:
                if self._late is None:
                    connections.control.expect(0)
        self._query_begins_or_ends()
        if self.upload is None or self.upload.ended:  # else only what arrives of the upload resets these
            self._breaks = self._setbacks = 0

    @property
    def is_late(self) -> bool:
        """Tell whether the server still works on a late query."""
        return self._late is not None

    def probe(self) -> None:
        """Have the link probed, unless weights are under way, which tell its rate too, or other messages."""
        self._probe_due = True
        self.wake()

    def wake(self) -> None:
        """Have the thread look at once whether there is something to do."""
        with self._waking:
            if self._wake >= 0:  # the client was not closed meanwhile
                os.eventfd_write(self._wake, 1)

    def _drain(self, connections: _Connections) -> bool:
        """Take what has come of a late answer; whether no query is late any more. Called with the lock."""
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
        """Have the thread of an upload that yields look whether it may send more or less now."""
        if self._yields:
            self.wake()

    def leave(self, error: Exception) -> None:
        """Never use the server again, because of `error`, which `fault` is from now on."""
        self._stopped.set()
        with self._querying:
            self._lose(self._connections, error)
            self._left = True
            if self.upload is not None:
                self.upload.stop(error)

    def close(self) -> None:
        """End the session, which the server then frees. A query of another thread ends first, and its next one finds no
        server. Closing again does nothing."""
        self._stopped.set()
        with self._closing:
            if self._context.closed:
                return
            self.wake()
            self._keeper.join()
            if self.upload is not None:
                self.upload.stop(self.upload.error)
            with self._querying:
                self._connections = None
                if self._open is not None:
                    with contextlib.suppress(*FAULTS):
                        self._open.control.send(Bye())
                    self._open.upload.close()
                    self._open.control.close(linger_ms=_GOODBYE_MS)
                self._context.destroy(linger=_GOODBYE_MS)
                with self._waking:
                    wake, self._wake = self._wake, -1
                os.close(wake)

    def _lose(self, connections: _Connections | None, error: Exception) -> None:
        """Give up connections because of an error, and have the thread make others. Called with the lock."""
        if self._left or self._connections is not connections:  # they were given up already
            return
        if self._late is not None:
            late, self._late = self._late, None
            late.done(None)
        if isinstance(error, ServerError) and error.code in (ERROR_SESSION, ERROR_CRASHED, ERROR_TAKEN):
            self._session = ""
        if connections is not None:
            self._breaks += 1
            # The wait before the next connection grows while connections are lost soon after they were made.
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
        self.wake()

    # --- What the thread does -----------------------------------------------------------------------------------------

    def _keep(self) -> None:
        """Stay connected until told to stop."""
        try:
            while not self._stopped.is_set():
                self._keep_once()
        except BaseException as error:  # a bug: report it, and let queries run at the client
            with self._querying:
                self._lose(self._connections, error if isinstance(error, Exception) else RuntimeError(repr(error)))
                if self.upload is not None:
                    self.upload.stop(self.fault)
            raise

    def _keep_once(self) -> None:
        """Connect if there is no connection, and serve the connections until they are lost."""
        connections, upload = self._open, None
        if connections is None:
            # A random part, so that not all clients of a server that was lost connect to it at the same time.
            wait_s = min(self.timeouts.retry_s * 2 ** min(self._losses, 16), self.timeouts.retry_max_s)
            self._losses += 1
            if self._stopped.wait(wait_s * random.uniform(0.5, 1.0)):
                return
        try:
            if connections is None:
                connections = self._open = self._connect()
                with self._querying:
                    if not self._left:
                        self._connections = connections
                        upload = self._begin_upload(connections)
                        self.fault = None  # not earlier: until then nothing is ready, because the server was lost
            self._tend(connections, upload)
        except FAULTS as error:
            if not self._stopped.is_set():  # else the client ended the connections itself
                with self._querying:
                    self._lose(connections, error)
        if connections is not None and self._connections is not connections:
            connections.close()
            self._open = None

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
            # With a wrong key the handshake breaks off, but that may be the network's fault once.
            return self._connect()

    def _connect(self) -> _Connections:
        """Make both connections, in the present session if the server still has it, else in a new one."""
        self._pings.clear()
        if self._measuring is not None:
            self._measuring.under_way(False)
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
                if control.greeted:  # the server is alive, so it is the session's process that does not answer
                    self._session = ""
                raise
            self._session, self.costs = welcome.session, welcome.costs or self.costs
            self._check(welcome.numerics)
            upload = Connection(self._context, self.address, self._keys)
            opened.callback(upload.close)
            welcome = self._hello(upload, "upload")
            self._check(welcome.numerics)
            if (question := self._store.begin(welcome)) is not None:
                holds = upload.ask(question, self.timeouts.connect_s + _sending_s(question), self._stopped)
                assert isinstance(holds, Holds)
                with self._named():
                    self._store.take(holds, time.monotonic())
            if self._measuring is not None:
                self._measure(self._measuring, upload, welcome)
            # Not earlier: only `_tend` takes the wake-ups, so until then waiting would end at once.
            upload.wake_by(self._wake)
            opened.pop_all()
        self.welcome = welcome
        if welcome.numerics not in self.numerics and len(self.numerics) <= _NUMERICS_MAX:
            self.numerics = (*self.numerics, welcome.numerics)
        return _Connections(control, upload, welcome)

    def _measure(self, measuring: Measuring, upload: Connection, welcome: Welcome) -> None:
        """Measure the round trip and, by a probe, the rate of the link. If an answer takes too long, it is taken later,
        when it comes."""
        for size_bytes in (0, _probe_bytes(welcome)):
            began_s = time.monotonic()
            upload.send(Ping((bytes(size_bytes),) if size_bytes else ()))
            while upload.receive(_LATE_POLL_S) is None:
                if time.monotonic() - began_s > self.timeouts.connect_s or self._stopped.is_set():
                    self._pings.append(_Ping(began_s, size_bytes))
                    return
            if size_bytes:
                measuring.probed(size_bytes, time.monotonic() - began_s)
            else:
                measuring.round_trip(time.monotonic() - began_s)

    def _observe(self, measuring: Measuring, connections: _Connections, upload: Upload | None) -> None:
        """Tell `measuring` whether weights are under way; send a probe if one is due and has the link for itself."""
        measuring.under_way(upload is not None and upload.weights_under_way)
        if self._probe_due and not self._pings and not self._must_wait(upload):
            size_bytes = _probe_bytes(connections.welcome)
            connections.upload.send(Ping((bytes(size_bytes),)))
            self._pings.append(_Ping(time.monotonic(), size_bytes))
        self._probe_due = False

    def _must_wait(self, upload: Upload | None) -> bool:
        """Tell whether a message on the upload connection has to wait behind others: all but Pings without payload."""
        asking = self._store.is_asking or any(ping.size_bytes for ping in self._pings)
        return asking or (upload is not None and upload.under_way)

    def _ponged(self, upload: Upload | None) -> None:
        sent_s, size_bytes, waited = self._pings.popleft()
        if self._measuring is None or waited or self.is_late or (upload is not None and upload.under_way):
            return
        took_s = time.monotonic() - sent_s
        if size_bytes:
            self._measuring.probed(size_bytes, took_s)
        else:
            self._measuring.round_trip(took_s)

    def _hello(self, connection: Connection, role: str) -> Welcome:
        return connection.hello(role, self._session, self.timeouts.connect_s, self._stopped)

    def _tend(self, connections: _Connections, upload: Upload | None) -> None:
        """Upload, and send heartbeats on both connections, until told to stop or a connection is lost. The `upload` has
        begun on these connections, if it is given."""
        control, connection = _Heartbeat(self.timeouts), _Heartbeat(self.timeouts)
        looked_s, queries = 0.0, self._queries
        while self._connections is connections and not self._stopped.is_set():
            if upload is None:
                self._make_upload()
                upload = self._begin_upload(connections)
            # If the lock is held, there is a query: this thread itself holds it only below.
            query = self._queries if self._querying.locked() else None
            outgoing = upload.next_message(query) if upload else None
            if outgoing is not None:
                if self._measuring is not None and upload is not None and upload.weights_under_way:
                    self._measuring.under_way(True)  # before features can cross beside them
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
                    if not self._drain(connections):  # the server works on a late query
                        control.heard()
                        connection.heard()
                        continue
                    if queries != self._queries:  # a query was answered, and may have taken a Pong with its results
                        queries = self._queries
                        control.heard()
                    # Pongs: there are no more than Pings were sent.
                    while connections.control.receive(0) is not None:
                        control.heard()
                    control.beat(connections.control, self.timeouts.silence_s)
                finally:
                    self._querying.release()
                waits = self._must_wait(upload)
                silences = _WAITING_SILENCES if waits else 1
                if connection.beat(connections.upload, silences * self.timeouts.silence_s):
                    self._pings.append(_Ping(connection.sent_s, waits=waits))
            else:  # the server works on a query, which has a deadline
                control.heard()
                connection.heard()

    def _make_upload(self) -> None:
        """Make the upload, if its partitions have become known."""
        if self.upload is None and self._make is not None:
            make, now_s = self._make
            try:
                partitions = make(self.costs)
            except IonnError as error:
                raise ProtocolError(str(error)) from error
            self.upload, self._make = Upload(partitions, now_s, self._yields, self._store), None

    def _begin_upload(self, connections: _Connections) -> Upload | None:
        """Return the upload, begun on these connections, if there is one by now."""
        upload = self.upload  # the user's thread may start one meanwhile
        if upload is not None:
            with self._named():
                upload.begin(connections.welcome)
        return upload

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        """Name the server in the messages of ProtocolErrors."""
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
            # The server refuses this partition, and then what was sent of it meanwhile.
            upload.stop(upload.error or error)
            refusal = Error(error.code, str(error))
            upload.take(refusal)
            return refusal
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
    """How long sending a message may take on the slowest link; after that, the server is slow."""
    size_bytes = sum(memoryview(frame).nbytes for frame in message.frames())
    return min(size_bytes * 8 / (_ASKING_MBPS * 1e6), _ASKING_MAX_S)


def _probe_bytes(welcome: Welcome) -> int:
    """How many bytes the payload of a probe to this server has."""
    return min(PROBE_BYTES, welcome.chunk_bytes, welcome.window_bytes)
