"""Turns without a server: clients compute on paper, and what each has used is compared to an equal part."""

from __future__ import annotations

import heapq
import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence

from hypothesis import given
from hypothesis import strategies as st

from ionn.protocol.messages import Join, Part, Ping, Query, decode
from ionn.server.front import _LIGHT_BYTES
from ionn.server.shares import _GONE_MAX, Share, Shares

Item = tuple[str, int]
SAVED_S = 2.0


class Machine:
    """Processors that run what gets a turn to its end: `used_s` is what each client has had of them, and `turns` are
    the items in the order in which they began."""

    def __init__(self, places: int, cost_s: Callable[[str], float]) -> None:
        self.shares: Shares[Item] = Shares(places, SAVED_S)
        self.members: dict[str, Share[Item]] = {}
        self.used_s: dict[str, float] = defaultdict(float)
        self.turns: list[Item] = []
        self._cost_s = cost_s
        self._now_s = 0.0
        self._running: list[tuple[float, int, Item, float]] = []
        self._number = itertools.count()

    def join(self, client: str, sessions: int) -> None:
        for index in range(sessions):
            self.members[client] = self.shares.join(client)
            self.wait((client, index))

    def wait(self, item: Item) -> None:
        self.shares.wait(self.members[item[0]], item)
        self.start()

    def start(self) -> None:
        while (item := self.shares.next()) is not None:
            self.turns.append(item)
            cost_s = self._cost_s(item[0])
            heapq.heappush(self._running, (self._now_s + cost_s, next(self._number), item, cost_s))

    def finish(self) -> Item:
        """The next item that has computed."""
        self._now_s, _, item, cost_s = heapq.heappop(self._running)
        share = self.members[item[0]]
        self.shares.charge(share, cost_s)
        self.used_s[item[0]] += cost_s
        self.shares.done(share, item)
        return item

    def run(self, turns: int) -> None:
        """So many turns, while every item waits again at once."""
        for _ in range(turns):
            self.wait(self.finish())


def costs(each: Sequence[Sequence[float]]) -> Callable[[str], float]:
    """Every client's messages, over and over."""
    cycles = {str(client): itertools.cycle(its) for client, its in enumerate(each)}
    return lambda client: next(cycles[client])


COST_S = st.floats(0.001, 1.0)


@given(
    places=st.integers(1, 4),
    clients=st.lists(st.tuples(st.integers(1, 5), st.lists(COST_S, min_size=1, max_size=4)), min_size=4, max_size=6),
)
def test_clients_that_never_pause_use_the_same(places: int, clients: list[tuple[int, list[float]]]) -> None:
    """Whatever their sessions, whatever these cost: they are apart by no more than what runs."""
    machine = Machine(places, costs([its for _, its in clients]))
    for client, (sessions, _) in enumerate(clients):
        machine.join(str(client), sessions)
    machine.run(300)
    used_s = [machine.used_s[str(client)] for client in range(len(clients))]
    most_s = max(cost_s for _, its in clients for cost_s in its)
    assert max(used_s) - min(used_s) <= 2 * places * most_s + 1e-9


@given(st.integers(1, 4), st.integers(1, 200), st.integers(1, 5))
def test_who_comes_later_has_an_equal_part_from_then_on(places: int, turns: int, sessions: int) -> None:
    """It is not served for the time before it came."""
    machine = Machine(places, lambda client: 0.1)
    for client in "abcd":
        machine.join(client, 1)
    machine.run(turns)
    machine.join("late", sessions)
    before = machine.used_s.copy()
    machine.run(200)
    got_s = {client: machine.used_s[client] - before[client] for client in machine.used_s}
    assert max(got_s.values()) - min(got_s.values()) <= 2 * places * 0.1 + 1e-9


@given(st.integers(1, 200))
def test_who_pauses_saves_little(turns: int) -> None:
    machine = Machine(1, lambda client: 0.1)
    for client in "abc":
        machine.join(client, 1)
    while (item := machine.finish())[0] != "c":
        machine.wait(item)
    machine.start()
    machine.run(turns)
    before = machine.used_s.copy()
    machine.wait(item)
    machine.run(150)
    got_s = {client: machine.used_s[client] - before[client] for client in "abc"}
    assert got_s["c"] - got_s["a"] <= SAVED_S + 0.4
    assert abs(got_s["a"] - got_s["b"]) <= 0.3


def test_ending_a_session_and_beginning_another_is_of_no_use() -> None:
    """One client has a new session for every message, the other one always the same."""
    machine = Machine(1, lambda client: 1.0 if client == "again" else 0.1)
    machine.join("again", 1)
    machine.join("steady", 1)
    for number in range(300):
        item = machine.finish()
        if item[0] == "again":
            machine.shares.leave(machine.members["again"], item)
            machine.members["again"] = machine.shares.join("again")
            machine.wait(("again", number))
        else:
            machine.wait(item)
    assert abs(machine.used_s["again"] - machine.used_s["steady"]) <= 2.0


def test_what_is_computed_out_of_turn_counts() -> None:
    machine = Machine(1, lambda client: 0.1)
    for client in "ab":
        machine.join(client, 1)
    machine.run(10)
    machine.shares.charge(machine.members["a"], 1.0)
    assert 0.9 <= machine.shares.ahead_s(machine.members["a"]) <= 1.2
    assert machine.shares.ahead_s(machine.members["b"]) <= 0.2
    begun = len(machine.turns)
    machine.run(9)
    assert Counter(client for client, _ in machine.turns[begun:])["b"] >= 8


def test_who_is_ahead_alone_is_so_until_its_next_turn() -> None:
    shares: Shares[str] = Shares(1, SAVED_S)
    share = shares.join("a")
    shares.charge(share, 100.0)
    assert shares.ahead_s(share) == 100.0
    shares.wait(share, "a")
    assert shares.next() == "a"
    assert shares.ahead_s(share) == 0


def test_who_was_alone_owes_nothing() -> None:
    """What it has used while nobody else wanted to compute harmed nobody."""
    machine = Machine(1, lambda client: 0.1)
    machine.join("a", 1)
    item = machine.finish()
    for _ in range(100):
        machine.wait(item)
        item = machine.finish()
    machine.join("b", 1)
    machine.wait(item)
    machine.run(20)
    assert abs(machine.used_s["b"] - 1.0) <= 0.21


def test_one_that_goes_on_owes_nothing() -> None:
    """It has never waited since: its place was its own, message after message."""
    shares: Shares[str] = Shares(1, SAVED_S)
    a, b = shares.join("a"), shares.join("b")
    shares.wait(a, "a")
    assert shares.next() == "a"
    for _ in range(100):
        shares.charge(a, 1.0)
        assert shares.again(a)
    shares.wait(b, "b")
    assert not shares.again(a)
    assert shares.ahead_s(a) == 0


@given(st.integers(1, 4), st.lists(st.integers(1, 4), min_size=2, max_size=5))
def test_nobody_starves(places: int, sessions: list[int]) -> None:
    """Between two turns of a session there are no more of another client than it has sessions, and a few."""
    machine = Machine(places, lambda client: 0.1)
    for client, count in enumerate(sessions):
        machine.join(str(client), count)
    machine.run(200)
    items = [(str(client), index) for client, count in enumerate(sessions) for index in range(count)]
    for item in items:
        at = [0, *(number for number, turn in enumerate(machine.turns) if turn == item), len(machine.turns)]
        assert max(after - before for before, after in itertools.pairwise(at)) <= 4 * len(sessions) * max(sessions)


def test_a_place_that_is_passed_on() -> None:
    """Another client gets it; of one client no more compute than there are places."""
    shares: Shares[str] = Shares(1, SAVED_S)
    a, b = shares.join("a"), shares.join("b")
    shares.join("a")
    shares.wait(a, "a1")
    assert shares.next() == "a1"
    shares.wait(a, "a2")
    assert shares.next() is None
    shares.pass_on("a1")
    assert shares.next() is None
    shares.wait(b, "b")
    assert shares.next() == "b"
    shares.done(b, "b")
    shares.done(a, "a1")
    assert shares.next() == "a2"


def test_places_are_taken_as_long_as_somebody_waits() -> None:
    shares: Shares[int] = Shares(3, SAVED_S)
    share = shares.join("a")
    for item in range(5):
        shares.wait(share, item)
    assert [shares.next() for _ in range(4)] == [0, 1, 2, None]
    shares.done(share, 1)
    assert shares.next() == 3
    shares.leave(share, 4)
    shares.done(share, 0)
    assert shares.next() is None


def test_clients_that_are_gone_are_forgotten() -> None:
    """At once if they owe nothing; those that owe most are remembered, but not all of them."""
    shares: Shares[str] = Shares(1, SAVED_S)
    shares.leave(shares.join("idle"), "item")
    assert not shares._shares
    for number in range(_GONE_MAX + 50):
        share = shares.join(number)
        shares.charge(share, 1.0 + number)
        shares.leave(share, "item")
    assert len(shares._shares) == _GONE_MAX
    assert 49 not in shares._shares
    assert shares.join(50).used_s == 51.0


def test_no_message_that_computes_is_taken_for_a_heartbeat() -> None:
    """The front, which does not read messages, goes by their size: here is the smallest text of each."""
    smallest = [
        '{"type":"query","query":1,"first":1,"last":1}',
        '{"type":"part","query":1,"stage":1,"count":1,"stay":true}',
        '{"type":"join","query":1,"stay":true}',
    ]
    for text in smallest:
        assert type(decode([text.encode()])) in (Query, Part, Join)
        assert len(text) > _LIGHT_BYTES
    (ping,) = Ping().frames()
    assert len(ping) <= _LIGHT_BYTES
