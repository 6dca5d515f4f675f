"""What a server's front knows of its clients' sessions."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ionn.protocol.zmtp import Bounds
from ionn.server.door import Connection
from ionn.server.ipc import FrontPipe
from ionn.server.limits import Limits
from ionn.server.shares import Share
from ionn.server.status import Note

ROLES = ("control", "upload")


def client_credit(role: str, limits: Limits) -> int:
    """Return what may be under way in a role of all sessions of a client, in bytes of cost."""
    return int(limits.blobs_per_client_mb * 1e6 if role == "control" else limits.window_per_client_kb * 1e3)


def bounds(role: str, limits: Limits) -> Bounds:
    """Return what a message of a session's connection may have. What is under way in this role, all its connections'
    together, may cost as much as the largest message."""
    payload_bytes = limits.blob_mb * 1e6 if role == "control" else limits.window_kb * 1e3
    header_bytes = int(limits.header_kb * 1e3)
    return Bounds(int(limits.frames), header_bytes, int(payload_bytes) + header_bytes)


class Taken(NamedTuple):
    """A message that the front has taken: whose it is, what it costs, and when. `light` is one that computes nothing.
    A trial is the front's own, and of no connection."""

    connection: Connection | None
    role: str
    cost: int
    light: bool
    at: float


@dataclass(eq=False)
class Client:
    """A client: its name (its public key, without keys its address), its sessions, the oldest first, and its share of
    the processors."""

    name: bytes | str
    share: Share[Session]
    sessions: dict[Session, None] = field(default_factory=dict)
    short: dict[Session, None] = field(default_factory=dict)  # those that may be waiting for the client's credit

    def room(self, session: Session, role: str, own: int, most: int) -> int:
        """Return what may be taken of a session: what is left of its `own` credit, and of its client's, `most`.

        The oldest of those that have something under way, or arriving, needs none of its client's: where two have begun
        messages and there is room for neither, one goes on. So no more is ever under way than the client's credit and
        one session's.
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
    """`client` is whoever began it, and `key` the public key of that, empty without keys. `pid` is None until its
    process runs.

    `waiting` are the messages, with their frames, that its process has not been given yet, and `sent` those that it
    has not answered, in order; `under_way` is what both cost by role. `moved` is when the process last did something,
    or had nothing to do, and `heard` when its client last sent something.
    """

    token: str
    client: Client
    key: bytes
    pipe: FrontPipe
    note: Note
    heard: float
    moved: float
    pid: int | None = None
    waiting: dict[str, deque[tuple[Taken, list[Any]]]] = field(
        default_factory=lambda: {role: deque() for role in ROLES}
    )
    sent: deque[Taken] = field(default_factory=deque)
    computing: int = 0  # how many of these may compute
    untried: bool = False  # there may be stages that have not run yet
    under_way: dict[str, int] = field(default_factory=lambda: dict.fromkeys(ROLES, 0))
    connections: dict[str, Connection] = field(default_factory=dict)  # by role
    held: dict[str, tuple[list[Any], int]] = field(default_factory=dict)  # by role: a hello without room, and its cost
    finished_at: float | None = None  # when its pipe was closed at the other end
    used_s: float = 0.0  # the processor time of its process that its client was charged with
    charged_at: float = 0.0
    turn_at: float | None = None  # since when it computes in its turn

    @property
    def reader(self) -> Connection | None:
        """Whose answer is next; None if nobody is there for it."""
        if not self.sent:
            return None
        first = self.sent[0]
        return first.connection if self.connections.get(first.role) is first.connection else None

    @property
    def idle(self) -> bool:
        """Tell whether its client waits for nothing."""
        return not self.sent and not any(self.waiting.values())

    @property
    def wants_trial(self) -> bool:
        """Tell whether a stage may be tried now."""
        return self.untried and self.idle and self.able

    @property
    def able(self) -> bool:
        """Tell whether its process could compute now: it runs, and its answers are read."""
        return self.pid is not None and not any(connection.full for connection in self.connections.values())

    @property
    def longest_waiting(self) -> str:
        """Return the role whose first message waits longest, if any does."""
        return min((role for role in ROLES if self.waiting[role]), key=lambda role: self.waiting[role][0][0].at)

    def occupies(self, role: str) -> int:
        """Return what is under way in a role and what is arriving, in bytes of cost."""
        connection = self.connections.get(role)
        return self.under_way[role] + (connection.zmtp.arriving_cost if connection is not None else 0)

    @property
    def last_heard(self) -> float:
        """Return when its client last sent anything, be it part of a message."""
        return max(self.heard, *(connection.heard for connection in self.connections.values()), 0.0)

    def doing(self) -> str:
        """Return what the session's process was doing when it ended, as the end of a sentence."""
        doing = self.note.read()
        return f" while {doing}" if doing else ""
