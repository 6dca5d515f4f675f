"""The way to the server is blocked, cut or slow, at every phase."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator
from functools import partial

import pytest

from ionn.client.session import FAULTS
from ionn.protocol.messages import Welcome
from ionn.protocol.sender import Upload
from tests.support.world import (
    PATIENT,
    PHASES,
    SHORT,
    WAIT_S,
    Server,
    Wire,
    World,
    at_server,
    begin,
    bit_equal,
    recover,
    wait_for,
)


@pytest.fixture
def wire(steady: Server) -> Iterator[Wire]:
    wire = Wire(steady.address)
    yield wire
    wire.close()


def test_a_blocked_way_while_connecting(wire: Wire, any_world: World) -> None:
    wire.blocked = True
    with pytest.raises(FAULTS, match="not answered"), any_world.client(wire.address, first_connect_s=1.0):
        pass
    wire.blocked = False
    any_world.check_health(wire.address)


@pytest.mark.parametrize("fault", ["blocked", "reset"])
@pytest.mark.parametrize("phase", PHASES)
def test_a_way_that_fails(fault: str, phase: str, wire: Wire, any_world: World) -> None:
    with any_world.client(wire.address) as (client, session):
        wire.delay_s = 0.02 if "partition" in phase else 0.0
        records = begin(session, phase)
        # A client that is quicker than this test would have its server back before the queries.
        wire.blocked = fault == "blocked" or phase in ("mid-query", "between")
        if fault == "reset" and phase == "mid-query":
            threading.Timer(0.2, wire.reset).start()
        elif fault == "reset":
            wire.reset()
        records += [session.query() for _ in range(4)]
        if phase in ("mid-query", "between"):
            assert any(record.fallback for record in records)
        wire.blocked, wire.delay_s = False, 0.0
        records += recover(session)
        wait_for(lambda: client.fault is None, "the connection to be back")
    assert bit_equal(records)


def test_a_connection_that_comes_back_goes_on_with_the_same_session(
    wire: Wire, steady: Server, any_world: World
) -> None:
    """Nothing that the server has is sent again."""
    with any_world.client(wire.address, PATIENT) as (client, session):
        session.start_upload()
        wait_for(session.uploaded, "the upload")
        records = [session.query()]
        token = client._session
        (ended_s, ready_s), *_ = [(record.end_s, record.ready_s) for record in session.finish()]
        wire.lose(client)
        records += recover(session)
        assert client._session == token
        assert (session.finish()[0].end_s, session.finish()[0].ready_s) == (ended_s, ready_s)
    assert at_server(records[0])
    assert bit_equal(records)


def test_a_query_before_the_upload_goes_on_is_a_fallback(
    wire: Wire, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client is connected again by then, but no partition is ready."""
    connected, may_go_on = threading.Event(), threading.Event()
    go_on = Upload.begin

    def wait_and_go_on(upload: Upload, welcome: Welcome) -> None:
        connected.set()
        assert may_go_on.wait(WAIT_S)
        go_on(upload, welcome)

    with world.client(wire.address, PATIENT) as (client, session):
        session.start_upload()
        wait_for(session.uploaded, "the upload")
        monkeypatch.setattr(Upload, "begin", wait_and_go_on)
        wire.lose(client)
        assert connected.wait(WAIT_S)
        record = session.query()
        may_go_on.set()
        assert record.fallback
        assert bit_equal([record, *recover(session)])


def test_an_upload_goes_on_from_the_last_good_chunk(wire: Wire, any_world: World) -> None:
    """Cut again and again in the middle of a partition, an upload ends because each time it goes on."""
    wire.delay_s = 0.02
    with any_world.client(wire.address, PATIENT) as (client, session):
        session.start_upload()

        def has_uploaded(share: float) -> bool:
            return session.offloading.uploaded_bytes > session.offloading.total_bytes * share

        for share in (0.3, 0.5, 0.7):
            wait_for(partial(has_uploaded, share), f"{share} of the upload")
            wire.lose(client)
            wait_for(lambda: client.fault is None, "the connection to be back")
            assert has_uploaded(share)
        assert bit_equal(recover(session))
        assert [record.bytes for record in session.finish()] == [p.weight_bytes for p in any_world.partitions]


def test_a_slow_way_is_not_a_fault(wire: Wire, any_world: World) -> None:
    wire.delay_s = 0.05
    timeouts = dataclasses.replace(SHORT, query_s=5.0, silence_s=5.0, connect_s=WAIT_S)
    with any_world.client(wire.address, timeouts) as (client, session):
        session.start_upload()
        wait_for(session.uploaded, "the upload")
        assert bit_equal(recover(session))
        assert client.fault is None
        (second,) = (record for record in session.finish() if record.index == 1)
        assert second.wire_bytes is not None
        assert (second.wire_bytes < second.bytes) == bool(any_world.partitions[1].caffemodel.coded)
