"""What a server's front knows about its clients and their sessions."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ionn.protocol.zmtp import Bounds
from ionn.server.door import Connection
from ionn.server.ipc import FrontPipe
from ionn.server.limits import Limits
from ionn.server.shared_memory import Note
from ionn.server.shares import Share

ROLES = ("control", "upload")


def client_credit(role: str, limits: Limits) -> int:
    """Return the cost, in bytes, that may be under way in a role of all sessions of a client together."""
    return int(limits.blobs_per_client_mb * 1e6 if role == "control" else limits.window_per_client_kb * 1e3)


def bounds(role: str, limits: Limits) -> Bounds:
    """Return the bounds of a message of a session's connection. What is under way in a session's role, over all its
    connections, may cost as much as the largest message."""
    payload_bytes = limits.blob_mb * 1e6 if role == "control" else limits.window_kb * 1e3
    header_bytes = int(limits.header_kb * 1e3)
    return Bounds(int(limits.frames), header_bytes, int(payload_bytes) + header_bytes)


class Taken(NamedTuple):
    """A message that the front has taken: by which connection, what it costs, when (`at`), and its frames, which are
    kept until it is answered. A `light` message computes nothing. A trial is the front's own message, and has no
    connection and no frames."""

    connection: Connection | None
    role: str
    cost: int
    light: bool
    at: float
    frames: Sequence[Any] = ()


@dataclass(eq=False)
class Client:
    """A client: its name (its public key or, without keys, its address), its sessions, the oldest first, and its share
    of the processors."""

    name: bytes | str
    share: Share[Session]
    sessions: dict[Session, None] = field(default_factory=dict)
    short: dict[Session, None] = field(default_factory=dict)  # sessions that may be waiting for the client's credit

    def room(self, session: Session, role: str, own: int, most: int) -> int:
        """Return the cost, in bytes, that may be taken from a session: at most `own`, which is left of its own credit,
        and what is left of its client's credit, `most`.

        The client's credit does not bind the oldest session that has something under way or arriving: if two sessions
        have begun messages and there is room for neither, one of them continues. So no more is ever under way than the
        client's credit and one session's.
        """
        older = others = 0
        for each in self.sessions:
            if each is session:
                older = others
            else:
                others += each.occupies(role)
        if not others or (not older and session.occupies(role)):
            return own
        left = most - others - session.under_way[role]
        if left < own:
            self.short[session] = None
        return min(own, left)


@dataclass(eq=False)
class Session:
    """A session. `client` began it, and `key` is that client's public key, empty without keys. `pid` is None until its
    process runs.

    `waiting` has, by role, the messages that its process has not been given yet. `sent` has those that the process was
    given and has not answered, in order. `under_way` is what both cost, by role. `moved` is when the process last did
    something, or had nothing to do, and `heard` when the client last sent a message.
    """

    token: str
    client: Client
    key: bytes
    pipe: FrontPipe
    note: Note
    heard: float
    moved: float
    pid: int | None = None
    waiting: dict[str, deque[Taken]] = field(default_factory=lambda: {role: deque() for role in ROLES})
    sent: deque[Taken] = field(default_factory=deque)
    computing: int = 0  # how many messages in `sent` may compute
    untried: bool = False  # there may be stages that have not run yet
    under_way: dict[str, int] = field(default_factory=lambda: dict.fromkeys(ROLES, 0))
    connections: dict[str, Connection] = field(default_factory=dict)  # by role
    held: dict[str, tuple[list[Any], int]] = field(default_factory=dict)  # by role: a Hello without room, and its cost
    finished_at: float | None = None  # when its process closed its pipe
    used_s: float = 0.0  # the processor time of its process for which its client was charged
    charged_at: float = 0.0
    turn_at: float | None = None  # when its turn, or the message that computes in it, began; None without a turn

    @property
    def reader(self) -> Connection | None:
        """The connection to which the next answer goes; None if that is no longer the session's."""
        if not self.sent:
            return None
        first = self.sent[0]
        return first.connection if self.connections.get(first.role) is first.connection else None

    @property
    def idle(self) -> bool:
        """Tell whether no message of its client waits for an answer; a stage may be tried."""
        return not any(self.waiting.values()) and all(taken.connection is None for taken in self.sent)

    @property
    def wants_trial(self) -> bool:
        """Tell whether a stage that has not run yet may be tried now."""
        return self.untried and self.idle and not self.sent and self.able

    @property
    def able(self) -> bool:
        """Tell whether its process can compute now: it runs, and its answers are read."""
        return self.pid is not None and not any(connection.full for connection in self.connections.values())

    @property
    def longest_waiting(self) -> str:
        """Return the role whose first message has waited longest. Some message must be waiting."""
        return min((role for role in ROLES if self.waiting[role]), key=lambda role: self.waiting[role][0].at)

    def occupies(self, role: str) -> int:
        """Return the cost, in bytes, of what is under way in a role and of what is arriving."""
        connection = self.connections.get(role)
        return self.under_way[role] + (connection.zmtp.arriving_cost if connection is not None else 0)

    @property
    def last_heard(self) -> float:
        """Return when its client last sent anything, even a part of a message."""
        return max(self.heard, *(connection.heard for connection in self.connections.values()), 0.0)

    def doing(self) -> str:
        """Return what the session's process was doing when it ended, as the end of a sentence."""
        doing = self.note.read()
        return f" while {doing}" if doing else ""
