"""What a server's front knows of its clients' sessions."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ionn.protocol.zmtp import Bounds
from ionn.server.door import Connection
from ionn.server.ipc import FrontPipe
from ionn.server.limits import Limits
from ionn.server.status import Note

ROLES = ("control", "upload")


def bounds(role: str, limits: Limits) -> Bounds:
    """Return what a message of a session's connection may have. What is under way in this role, all its connections'
    together, may cost as much as the largest message."""
    payload_bytes = limits.blob_mb * 1e6 if role == "control" else limits.window_kb * 1e3
    header_bytes = int(limits.header_kb * 1e3)
    return Bounds(int(limits.frames), header_bytes, int(payload_bytes) + header_bytes)


class Sent(NamedTuple):
    """A message that the session's process has not answered: whose it is, and what it costs."""

    connection: Connection
    role: str
    cost: int


@dataclass(eq=False)
class Session:
    """`key` is its client's public key, empty without keys. `pid` is None until its process runs.

    `sent` are the messages without an answer, in order; `under_way` is what they cost by role. `moved` is when the
    process last did something, or had nothing to do, and `heard` when its client last sent something.
    """

    token: str
    key: bytes
    pipe: FrontPipe
    note: Note
    heard: float
    moved: float
    pid: int | None = None
    sent: deque[Sent] = field(default_factory=deque)
    under_way: dict[str, int] = field(default_factory=lambda: dict.fromkeys(ROLES, 0))
    connections: dict[str, Connection] = field(default_factory=dict)  # by role
    held: dict[str, tuple[list[Any], int]] = field(default_factory=dict)  # by role: a hello without room, and its cost
    finished_at: float | None = None  # when its pipe was closed at the other end

    @property
    def reader(self) -> Connection | None:
        """Whose answer is next; None if nobody is there for it."""
        if not self.sent:
            return None
        connection, role, _ = self.sent[0]
        return connection if self.connections.get(role) is connection else None

    @property
    def last_heard(self) -> float:
        """Return when its client last sent anything, be it part of a message."""
        return max(self.heard, *(connection.heard for connection in self.connections.values()), 0.0)

    def doing(self) -> str:
        """Return what the session's process was doing when it ended, as the end of a sentence."""
        doing = self.note.read()
        return f" while {doing}" if doing else ""
