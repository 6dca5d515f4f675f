"""What a server's front knows of its clients: sessions, and the connections by which they are reached."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ionn.pipe import Pipe

# Of what a session's process says that it does.
NOTE_BYTES = 512


@dataclass
class Connection:
    """A client's connection in a session. `allowance` bytes may be under way to the session's process at once."""

    identity: bytes
    session: Session
    allowance: int
    under_way: int = 0


@dataclass
class Session:
    """`user` is its client's public key, if there are keys. `waiting` counts messages without a reply yet, `moved` is
    when the last reply came, and `heard` is when its client last sent something."""

    token: str
    user: str
    process: Any
    pipe: Pipe
    note: Any
    heard: float
    moved: float
    waiting: int = 0
    connections: dict[str, Connection] = field(default_factory=dict)  # by role

    def doing(self) -> str:
        """What the session's process was doing when it ended, as the end of a sentence."""
        doing = self.note.value.decode(errors="replace")
        return f" while {doing}" if doing else ""
