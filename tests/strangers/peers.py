"""Peers of a server's port that are written by hand, byte for byte: what ZeroMQ sends, and what it never would."""

from __future__ import annotations

import os
import socket
import struct
from typing import Any, Self

from nacl import bindings as nacl

from ionn.address import parse_address
from ionn.model.partial_net import ExtractedPartition
from ionn.protocol.messages import PROTOCOL, Bye, Error, Hello, Message, Welcome, decode
from tests.support.raw import upload_messages
from tests.support.world import WAIT_S, Server

MORE, LONG, COMMAND = 1, 2, 4

HELLO = Hello(PROTOCOL, "control")
SIGNATURE = b"\xff" + bytes(8) + b"\x7f"


def greeting(mechanism: bytes = b"NULL", version: bytes = b"\x03\x00") -> bytes:
    return (SIGNATURE + version + mechanism).ljust(64, b"\0")


def frame(data: bytes, flags: int = 0) -> bytes:
    if len(data) > 255:
        return bytes([flags | LONG]) + len(data).to_bytes(8) + data
    return bytes([flags, len(data)]) + data


def prop(name: bytes, value: bytes) -> bytes:
    return bytes([len(name)]) + name + len(value).to_bytes(4) + value


DEALER = prop(b"Socket-Type", b"DEALER")
READY = b"\x05READY"


def ready(metadata: bytes = DEALER) -> bytes:
    return frame(READY + metadata, COMMAND)


def message(sent: Message | list[bytes]) -> bytes:
    frames = [bytes(each) for each in (sent.frames() if isinstance(sent, Message) else sent)]
    return b"".join(frame(each, MORE) for each in frames[:-1]) + frame(frames[-1])


class CurveClient:
    """The client's half of CURVE (RFC 26)."""

    def __init__(self, secret: bytes, server: bytes) -> None:
        self._secret, self._server = secret, server
        self._public = nacl.crypto_scalarmult_base(secret)
        self._short_public, self._short_secret = nacl.crypto_box_keypair()
        self._sent_nonce = 0
        self._shared = b""

    def _nonce(self) -> bytes:
        self._sent_nonce += 1
        return self._sent_nonce.to_bytes(8)

    def hello(self) -> bytes:
        nonce = self._nonce()
        box = nacl.crypto_box_easy(bytes(64), b"CurveZMQHELLO---" + nonce, self._server, self._short_secret)
        return frame(b"\x05HELLO\x01\x00" + bytes(72) + self._short_public + nonce + box, COMMAND)

    def initiate(self, welcome: bytes, metadata: bytes = DEALER, vouched: bytes | None = None) -> bytes:
        """`welcome` is the body of the server's command."""
        nonce, box = welcome[8:24], welcome[24:]
        opened = nacl.crypto_box_open_easy(box, b"WELCOME-" + nonce, self._server, self._short_secret)
        short_server, cookie = opened[:32], opened[32:]
        vouch_nonce = os.urandom(16)
        vouched = self._short_public + self._server if vouched is None else vouched
        vouch = nacl.crypto_box_easy(vouched, b"VOUCH---" + vouch_nonce, short_server, self._secret)
        self._shared = nacl.crypto_box_beforenm(short_server, self._short_secret)
        nonce = self._nonce()
        box = nacl.crypto_box_easy_afternm(
            self._public + vouch_nonce + vouch + metadata, b"CurveZMQINITIATE" + nonce, self._shared
        )
        return frame(b"\x08INITIATE" + cookie + nonce + box, COMMAND)

    def seal(self, data: bytes, flags: int = 0, nonce: bytes | None = None) -> bytes:
        nonce = self._nonce() if nonce is None else nonce
        box = nacl.crypto_box_easy_afternm(bytes([flags]) + data, b"CurveZMQMESSAGEC" + nonce, self._shared)
        return frame(b"\x07MESSAGE" + nonce + box)

    def open(self, body: bytes) -> tuple[int, bytes]:
        """The flags and the data of a sealed frame."""
        opened = nacl.crypto_box_open_easy_afternm(body[16:], b"CurveZMQMESSAGES" + body[8:16], self._shared)
        return opened[0], opened[1:]


class Stranger:
    """A TCP connection to a server, from an address of its own. Use it in a `with` statement."""

    def __init__(self, address: str, number: int = 2) -> None:
        self._source = f"127.0.0.{number}"
        self._address = parse_address(address)
        self._shaken = False

    def __enter__(self) -> Self:
        self.socket = socket.create_connection(self._address, WAIT_S, source_address=(self._source, 0))
        return self

    def __exit__(self, *exception: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> bool:
        """Whether it went; not if the server has closed the connection."""
        try:
            self.socket.sendall(data)
        except ConnectionError:
            return False
        return True

    def shake_hands(self, metadata: bytes = DEALER) -> None:
        """NULL, to its end: libzmq takes no message before that."""
        self.send(greeting() + ready(metadata))
        self._read_handshake()

    def _read_handshake(self) -> None:
        self.receive(64)
        flags, body = self.frame()
        assert flags & COMMAND
        assert body.startswith(READY)
        self._shaken = True

    def reset(self) -> None:
        """Close so that the other end gets a reset."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def receive(self, count: int) -> bytes:
        """So many bytes. Raises EOFError if the connection is closed before."""
        data = b""
        while len(data) < count:
            try:
                got = self.socket.recv(count - len(data))
            except ConnectionError:
                got = b""
            if not got:
                raise EOFError
            data += got
        return data

    def frame(self) -> tuple[int, bytes]:
        flags = self.receive(1)[0]
        size = int.from_bytes(self.receive(8 if flags & LONG else 1))
        return flags, self.receive(size)

    def answer(self) -> Message | None:
        """The next message, None if the connection is closed first. For NULL, after the handshake was sent."""
        try:
            if not self._shaken:
                self._read_handshake()
            frames = []
            while True:
                flags, body = self.frame()
                if flags & COMMAND:  # a heartbeat
                    continue
                frames.append(body)
                if not flags & MORE:
                    return decode(frames)
        except EOFError:
            return None

    def closed(self) -> bool:
        """Wait until the server closes the connection; whatever it says before is not looked at."""
        try:
            while self.socket.recv(65536):
                pass
        except ConnectionError:
            pass
        except TimeoutError:
            return False
        return True


def ask(peer: Stranger, sent: Message | list[bytes]) -> Any:
    peer.send(message(sent))
    return peer.answer()


def welcome(peer: Stranger, session: str = "", role: str = "control") -> str:
    """The token of a peer's session."""
    peer.shake_hands()
    answer = ask(peer, Hello(PROTOCOL, role, session))
    assert isinstance(answer, Welcome), answer
    return answer.session


def begin_session(server: Server, peer: Stranger) -> tuple[str, int]:
    """The token of a peer's new session, and the number of its process."""
    before = server.session_processes()
    token = welcome(peer)
    (process,) = server.session_processes() - before
    return token, process


def send_partition(peer: Stranger, partition: ExtractedPartition) -> None:
    header, chunks, end = upload_messages(partition)
    for each in (header, *chunks, end):
        answer = ask(peer, each)
        assert not isinstance(answer, Error), answer


def bye(address: str, token: str) -> None:
    with Stranger(address) as peer:
        welcome(peer, token)
        peer.send(message(Bye()))
        assert isinstance(peer.answer(), Error)
