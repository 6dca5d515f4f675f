"""What may be under way of all sessions of a client, without a server: never more, and never nothing for ever."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from ionn.server.roster import Client
from ionn.server.shares import Share

ROLE = "upload"


@dataclass(eq=False)
class Sending:
    """A session whose client sends one message after another, frame by frame."""

    arriving: int = 0
    answerable: int = 0

    @property
    def under_way(self) -> dict[str, int]:
        return {ROLE: self.answerable}

    def occupies(self, role: str) -> int:
        return self.arriving + self.answerable


class Sessions:
    """Of one client: each may have `own` under way, together `most`."""

    def __init__(self, count: int, own: int, most: int) -> None:
        self.client: Any = Client("client", Share())
        self.all: list[Any] = [Sending() for _ in range(count)]
        self.client.sessions = dict.fromkeys(self.all)
        self.own, self.most = own, most

    def room(self, session: Sending) -> int:
        """What another frame may have."""
        own = self.own - session.answerable
        return int(self.client.room(session, ROLE, own, self.most)) - session.arriving

    def total(self) -> int:
        return sum(session.occupies(ROLE) for session in self.all)


@given(st.integers(1, 5), st.integers(1, 60), st.integers(0, 200), st.data())
def test_never_more_than_the_credit_and_never_stuck(count: int, own: int, most: int, data: st.DataObject) -> None:
    sessions = Sessions(count, own, most)
    for _ in range(data.draw(st.integers(0, 60))):
        session = data.draw(st.sampled_from(sessions.all))
        step = data.draw(st.sampled_from(["frame", "frame", "frame", "end", "answer"]))
        if step == "frame":
            size = data.draw(st.integers(1, own))
            if size <= sessions.room(session):
                session.arriving += size
        elif step == "end":
            session.answerable, session.arriving = session.answerable + session.arriving, 0
        else:
            session.answerable = 0
        assert sessions.total() <= most + own
    for session in sessions.all:
        session.answerable = 0
    # Each wants to send as much as a message may have: one after another, all get through.
    waiting = set(sessions.all)
    while waiting:
        able = [
            session
            for session in sessions.all
            if session in waiting and sessions.room(session) >= own - session.arriving
        ]
        assert able
        able[0].arriving = 0
        waiting.remove(able[0])


def test_one_session_alone_has_its_own_credit() -> None:
    sessions = Sessions(1, own=100, most=10)
    (session,) = sessions.all
    assert sessions.room(session) == 100
    session.answerable = 40
    assert sessions.room(session) == 60
    assert not sessions.client.short


def test_who_may_be_waiting_for_the_client_is_remembered() -> None:
    sessions = Sessions(3, own=100, most=150)
    first, second, third = sessions.all
    first.answerable = 100
    assert sessions.room(second) == 50
    assert list(sessions.client.short) == [second]
    second.arriving = 50
    assert sessions.room(third) <= 0
    first.answerable = 0
    assert sessions.room(second) == 50
    assert sessions.room(third) == 100
