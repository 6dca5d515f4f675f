"""The edge server: one front process that every client talks to, and a worker process per session.

The front never looks into a session's messages, it only passes frames on, so the weights are not copied there. Workers
are forked from a process that has loaded Caffe already: a session starts in milliseconds.
"""

from __future__ import annotations

import logging
import multiprocessing
import multiprocessing.forkserver
import secrets
import signal
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import Any

import zmq

from ionn import worker
from ionn.errors import InputError, ProtocolError
from ionn.wire import (
    CHUNK_BYTES,
    ERROR_BUSY,
    ERROR_SESSION,
    ERROR_VERSION,
    PROTOCOL,
    Error,
    Hello,
    Message,
    Welcome,
    decode,
)

log = logging.getLogger(__name__)

# A frame carries at most a chunk, a control header or a feature map; the five models' largest feature map is 3 MB.
FRAME_BYTES_MAX = max(CHUNK_BYTES, 64 * 1024 * 1024)
# How often the front looks for sessions that went silent.
_HOUSEKEEPING_MS = 1000


@dataclass
class _Session:
    token: str
    name: bytes
    process: Any
    clients: set[bytes]
    up: bool
    heard: float


class Server:
    """`ionn serve`. Construct it, then `serve()` until SIGTERM or SIGINT.

    `bind` is tcp://HOST:PORT (port 0: any free one; `address` says which). `costs` is the server's cost model as JSON,
    sent to every client. Raises InputError if the address cannot be bound.
    """

    def __init__(
        self, bind: str, costs: dict[str, Any] | None = None, sessions_max: int = 16, idle_s: float = 60.0
    ) -> None:
        self._costs = costs or {}
        self._sessions_max = sessions_max
        self._idle_s = idle_s
        self._sessions: dict[str, _Session] = {}
        self._by_client: dict[bytes, _Session] = {}
        self._by_name: dict[bytes, _Session] = {}
        self._next_housekeeping = 0.0
        self._stopping = False
        self._context = zmq.Context()
        self._front = self._context.socket(zmq.ROUTER)
        self._front.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._front.setsockopt(zmq.MAXMSGSIZE, FRAME_BYTES_MAX)
        self._front.setsockopt(zmq.LINGER, 0)
        try:
            self._front.bind(bind)
        except zmq.ZMQError as error:
            self._context.destroy(linger=0)
            raise InputError(f"{bind}: cannot listen there: {error.strerror}; choose another address") from error
        self.address = self._front.getsockopt_string(zmq.LAST_ENDPOINT)
        self._folder = tempfile.TemporaryDirectory(prefix="ionn-")
        self._endpoint = f"ipc://{self._folder.name}/workers"
        self._back = self._context.socket(zmq.ROUTER)
        self._back.setsockopt(zmq.LINGER, 0)
        self._back.bind(self._endpoint)
        self._processes = multiprocessing.get_context("forkserver")
        self._processes.set_forkserver_preload(["ionn.preload"])

    def serve(self, ready: Callable[[str], None] = lambda address: None) -> None:
        """Serve until told to stop; `ready` is called with the address as soon as clients may connect."""
        for name in (signal.SIGTERM, signal.SIGINT):
            signal.signal(name, self._stop)
        # The fork server loads Caffe while the first client is still on its way.
        multiprocessing.forkserver.ensure_running()
        poller = zmq.Poller()
        poller.register(self._front, zmq.POLLIN)
        poller.register(self._back, zmq.POLLIN)
        ready(self.address)
        try:
            while not self._stopping:
                events = dict(poller.poll(_HOUSEKEEPING_MS))
                if self._front in events:
                    self._from_client()
                if self._back in events:
                    self._from_worker()
                self._housekeeping()
        finally:
            self._close()

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self._stopping = True

    def _close(self) -> None:
        for session in list(self._sessions.values()):
            self._end(session, "the server stops")
        self._context.destroy(linger=200)
        self._folder.cleanup()

    def _from_client(self) -> None:
        identity, *frames = self._front.recv_multipart(copy=False)
        client = identity.bytes
        session = self._by_client.get(client)
        if session is None:
            try:
                message = decode(frames)
            except ProtocolError as error:
                self._reply(client, Error(ERROR_SESSION, str(error)))
                return
            self._welcome(client, message)
            return
        session.heard = time.monotonic()
        self._back.send_multipart([session.name, identity, *frames], copy=False)

    def _welcome(self, client: bytes, message: Message) -> None:
        if not isinstance(message, Hello):
            self._reply(client, Error(ERROR_SESSION, "no session: say hello first"))
        elif message.protocol != PROTOCOL:
            versions = f"the server speaks protocol {PROTOCOL}, the client {message.protocol}"
            self._reply(client, Error(ERROR_VERSION, f"{versions}; install the same version of ionn on both"))
        elif message.role == "control":
            if len(self._sessions) >= self._sessions_max:
                self._reply(client, Error(ERROR_BUSY, f"the server has {self._sessions_max} sessions already"))
                return
            self._start(client)
        elif message.role == "upload" and message.session in self._sessions:
            session = self._sessions[message.session]
            session.clients.add(client)
            self._by_client[client] = session
            self._reply(client, Welcome(PROTOCOL, session.token))
        else:
            self._reply(client, Error(ERROR_SESSION, f"no session for a connection of role '{message.role:.20}'"))

    def _start(self, client: bytes) -> None:
        token = secrets.token_hex(16)
        name = token.encode()
        process = self._processes.Process(target=worker.run, args=(self._endpoint, name), daemon=True)
        process.start()
        session = _Session(token, name, process, {client}, False, time.monotonic())
        self._sessions[token] = self._by_client[client] = self._by_name[name] = session
        log.info("session %s started, process %d", token[:8], process.pid)

    def _from_worker(self) -> None:
        name, identity, *frames = self._back.recv_multipart(copy=False)
        session = self._by_name.get(name.bytes)
        if session is None:
            return
        if identity.bytes == worker.TO_FRONT:
            # Only now can the worker be reached, so only now may the client go on.
            session.up = True
            for client in session.clients:
                self._reply(client, Welcome(PROTOCOL, session.token, self._costs))
            return
        self._send(identity.bytes, [identity, *frames])

    def _reply(self, client: bytes, message: Message) -> None:
        self._send(client, [client, *message.frames()])

    def _send(self, client: bytes, frames: list[Any]) -> None:
        try:
            self._front.send_multipart(frames, zmq.NOBLOCK, copy=False)
        except zmq.ZMQError:
            # EHOSTUNREACH: the client is gone. EAGAIN: it does not read. Its session ends when it stays silent.
            log.warning("client %s cannot be reached", client.hex())

    def _housekeeping(self) -> None:
        now = time.monotonic()
        if now < self._next_housekeeping:
            return
        self._next_housekeeping = now + _HOUSEKEEPING_MS / 1e3
        for session in list(self._sessions.values()):
            if not session.process.is_alive():
                code = session.process.exitcode
                self._end(session, "" if code == 0 else f"the session's process ended with code {code}")
            elif now - session.heard > self._idle_s:
                self._end(session, f"nothing heard for {self._idle_s:.0f} s")

    def _end(self, session: _Session, reason: str) -> None:
        if reason:
            log.warning("session %s: %s", session.token[:8], reason)
            for client in session.clients:
                self._reply(client, Error(ERROR_SESSION, reason))
        for client in session.clients:
            del self._by_client[client]
        del self._sessions[session.token], self._by_name[session.name]
        session.process.kill()
        session.process.join()
