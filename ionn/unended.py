"""Messages that their senders never end.

ZeroMQ limits a frame, but not how many frames a message has, and it holds a message back until the last one has come.
So whoever can connect could have a server hold any number of bytes. The system knows how many bytes came by a
connection, and ZeroMQ by which one a message came: where many bytes came, but no message, the connection is cut. Linux
only.
"""

from __future__ import annotations

import os
import resource
import socket
import struct
from pathlib import Path
from typing import Any

import zmq

# Where Linux's struct tcp_info has tcpi_bytes_received, a 64-bit number.
_BYTES_RECEIVED_AT = 128
_TCP_INFO_BYTES = 136


class UnendedMessages:
    """Call `ended` with a frame of every message that a server received, and `cut` several times a second.

    A connection is cut by which more than `bytes_max` came without the end of a message.
    """

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._memory_bytes = _memory_bytes()
        self._ended: set[int] = set()  # by descriptor, since the last look
        self._received: dict[int, int] = {}  # what had come when a message had just ended

    def ended(self, frame: zmq.Frame) -> None:
        self._ended.add(int(frame.get(zmq.SRCFD)))

    def cut(self) -> int:
        """Cut the connections that are to be cut; how many."""
        # Nothing is looked at while nothing can be held.
        if _memory_bytes() - self._memory_bytes < self._bytes_max:
            return 0
        before, self._received = self._received, {}
        count = 0
        for name in os.listdir("/proc/self/fd"):
            descriptor = int(name)
            connection = _socket(descriptor)
            if connection is None:
                continue
            try:
                received = _bytes_received(connection)
                start = received if descriptor in self._ended else before.get(descriptor, 0)
                # Fewer than before: the descriptor is another connection's now.
                self._received[descriptor] = start = start if start <= received else 0
                if received - start > self._bytes_max:
                    connection.shutdown(socket.SHUT_RDWR)
                    count += 1
            except OSError:  # no connection over TCP, or closed meanwhile
                pass
            finally:
                connection.detach()
        self._ended.clear()
        return count


def _memory_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def _socket(descriptor: int) -> Any:
    try:
        return socket.socket(fileno=descriptor)
    except OSError:
        return None


def _bytes_received(connection: Any) -> int:
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
    (received,) = struct.unpack_from("=Q", info, _BYTES_RECEIVED_AT)
    return int(received)
