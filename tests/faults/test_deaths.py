"""Server, session process and link are killed or frozen at every phase: no query is lost or wrong, and when what was
struck is back, so is the client."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator

import pytest

from ionn.client.session import FAULTS
from ionn.records import QueryRecord
from ionn.testbed.live_session import LiveSession
from tests.support.world import (
    PATIENT,
    PHASES,
    Link,
    Process,
    Server,
    World,
    at_server,
    begin,
    bit_equal,
    recover,
    wait_for,
)

STRIKES = {"kill -9": signal.SIGKILL, "SIGSTOP": signal.SIGSTOP}
MBPS = 16.0  # the upload takes 0.6 s, so that there is a middle to strike in

Strike = Callable[[int], None]


@pytest.fixture(scope="module")
def link(steady: Server) -> Iterator[Link]:
    link = Link(steady.address, MBPS)
    yield link
    link.stop()


def revive(struck: Process) -> None:
    if struck.alive():
        struck.strike(signal.SIGCONT)
    else:
        struck.start()


def queries_through(session: LiveSession, phase: str, strike: Strike, number: int) -> list[QueryRecord]:
    """Queries before, while and after something is struck at a phase."""
    records = begin(session, phase)
    if phase == "mid-query":
        # Whoever is frozen already cannot answer the query; killed or not, this is its middle.
        strike(signal.SIGSTOP)
        timer = threading.Timer(0.2, strike, [number])
        timer.start()
        records.append(session.query())
        timer.join()
        assert records[-1].fallback
    else:
        strike(number)
    return [*records, *(session.query() for _ in range(4))]


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("how", STRIKES)
@pytest.mark.parametrize("what", ["server", "link"])
def test_server_and_link(what: str, how: str, phase: str, steady: Server, link: Link, world: World) -> None:
    struck: Process = steady if what == "server" else link
    with world.client(link.address) as (client, session):
        records = queries_through(session, phase, struck.strike, STRIKES[how])
        revive(struck)
        records += recover(session)
        wait_for(lambda: client.fault is None, "the connection to be back")
    assert bit_equal(records)
    world.check_health(steady.address)


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("how", STRIKES)
def test_the_session_process(how: str, phase: str, steady: Server, link: Link, any_world: World) -> None:
    with any_world.client(steady.address, PATIENT) as (_, bystander):
        bystander.start_upload()
        wait_for(bystander.uploaded, "the bystander's upload")
        others = steady.session_processes()
        with any_world.client(link.address) as (_, session):
            (mine,) = steady.session_processes() - others
            records = queries_through(session, phase, lambda number: os.kill(mine, number), STRIKES[how])
            seen = bystander.query()
            records += recover(session)
        # Whatever was done to it, it is ended.
        wait_for(lambda: mine not in steady.session_processes(), "the struck process to be gone")
    assert bit_equal([*records, seen])
    assert at_server(seen)
    any_world.check_health(steady.address)


@pytest.mark.parametrize("how", STRIKES)
@pytest.mark.parametrize("what", ["server", "link"])
def test_before_the_client_connects(what: str, how: str, steady: Server, link: Link, world: World) -> None:
    struck: Process = steady if what == "server" else link
    struck.strike(STRIKES[how])
    with pytest.raises(FAULTS), world.client(link.address, first_connect_s=1.0):
        pass
    session = world.session(None)
    session.start_upload()
    assert bit_equal([session.query() for _ in range(3)])
    revive(struck)
    world.check_health(link.address)


@pytest.mark.parametrize("how", STRIKES)
def test_a_session_process_that_is_just_starting(how: str, steady: Server, world: World) -> None:
    """The client has a session or is told that there is none: either way its queries are answered."""
    others = steady.session_processes()
    struck: set[int] = set()

    def strike() -> None:
        wait_for(lambda: steady.session_processes() - others, "a session's process")
        struck.update(steady.session_processes() - others)
        for process in struck:
            os.kill(process, STRIKES[how])

    thread = threading.Thread(target=strike)
    thread.start()
    try:
        with world.client(steady.address, first_connect_s=1.0) as (_, session):
            session.start_upload()
            records = [session.query(), *recover(session)]
    except FAULTS:
        records = [world.session(None).query()]
    thread.join()
    wait_for(lambda: not struck & steady.session_processes(), "the struck process to be gone")
    assert bit_equal(records)
    world.check_health(steady.address)


def test_a_killed_session_process_is_told_at_once_and_by_name(steady: Server, world: World) -> None:
    """Not when the query's time is up, and with what it was doing."""
    others = steady.session_processes()
    with world.client(steady.address) as (client, session):
        session.start_upload()
        wait_for(session.uploaded, "the upload")
        (mine,) = steady.session_processes() - others
        os.kill(mine, signal.SIGSTOP)
        begun = client._queries

        def kill() -> None:
            wait_for(lambda: client._queries > begun, "the query")
            os.kill(mine, signal.SIGKILL)

        threading.Thread(target=kill).start()
        with pytest.raises(FAULTS, match=r"ended by signal 9 \(Killed\)"):
            client.run(4, 5, world.input_of(4), timeout_s=60)
        assert bit_equal(recover(session))
