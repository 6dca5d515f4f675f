"""Who may connect to a server, and what it tells of itself."""

from __future__ import annotations

import json
import logging
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import zmq
from click.testing import CliRunner

from ionn.address import is_loopback, is_this_machine
from ionn.cli import cli
from ionn.client.connection import Connection
from ionn.client.session import Client, Timeouts
from ionn.errors import InputError, NotAcceptedError, ServerError, ServerUnreachableError
from ionn.model.network import Network
from ionn.model.partial_net import extract
from ionn.protocol import messages
from ionn.protocol.curve import ClientKeys, client_keys, make_keys
from ionn.server.front import Server as Listener
from ionn.server.limits import Limits, option
from tests.strangers.test_slow_queries import RELU
from tests.support.machine import put_ipv6_first
from tests.support.raw import Raw
from tests.support.world import WAIT_S, Server, World, bit_equal, recover, wait_for

LONG_WAITS = Timeouts(query_s=WAIT_S, silence_s=WAIT_S, connect_s=WAIT_S)


class Untouched(Server):
    """A server that had no session yet."""

    def start(self) -> None:
        super(Server, self).start()


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the keys of a server, of a phone that it allows, and of a stranger."""
    folder = tmp_path_factory.mktemp("keys")
    for name in ("server", "phone", "stranger"):
        make_keys(folder / name)
    (folder / "allowed").write_text(f"# our phones\n{(folder / 'phone.public').read_text().strip()} the first one\n")
    return folder


def keys_of(name: str, keys: Path, server: str = "server") -> ClientKeys:
    found = client_keys(keys / f"{name}.secret", keys / f"{server}.public")
    assert found is not None
    return found


@pytest.fixture(scope="module")
def locked(keys: Path) -> Iterator[Server]:
    """A server with keys."""
    server = Untouched("--key", str(keys / "server.secret"), "--allow", str(keys / "allowed"))
    yield server
    assert server.stop()[0] == 0


def test_an_allowed_client_is_served_and_reconnects(locked: Server, keys: Path, world: World) -> None:
    client = Client(locked.address, keys_of("phone", keys), LONG_WAITS)
    try:
        session = world.session(client)
        session.start_upload()
        assert bit_equal(recover(session))
    finally:
        client.close()


def test_large_encrypted_queries_are_answered_rightly(locked: Server, keys: Path) -> None:
    """One of them is decrypted in the session's inbox."""
    network = Network.from_text(RELU, "relu")
    rng = np.random.default_rng(0)
    inputs = [rng.standard_normal(network.input_shape).astype("<f4") for _ in range(5)]
    with Raw(locked.address, keys_of("phone", keys)) as raw:
        raw.upload(extract(network, [1], {}))
        for number, data in enumerate(inputs):
            raw.control.send_multipart(messages.Query(number, 1, 1, (data,)).frames())
        for data in inputs:
            result = raw.answer(raw.control)
            assert isinstance(result, messages.Result)
            assert bytes(result.payload[0]) == np.maximum(data, 0).tobytes()
        raw.bye()


@pytest.mark.parametrize(
    ("who", "server", "reason"),
    [
        ("stranger", "server", "the server does not allow this client's key"),
        ("phone", "stranger", "the server has another key than the one given; check --server-key"),
        (None, None, "the server takes only clients with keys"),
    ],
)
def test_a_wrong_key_is_named(who: str | None, server: str, reason: str, locked: Server, keys: Path) -> None:
    """As what it is and not as a dead server: not when the time is up."""
    with pytest.raises(NotAcceptedError, match=reason):
        Client(locked.address, keys_of(who, keys, server) if who else None, LONG_WAITS)


def test_a_server_without_keys_is_named(steady: Server, keys: Path) -> None:
    with pytest.raises(NotAcceptedError, match="the server has no keys; connect without"):
        Client(steady.address, keys_of("phone", keys), LONG_WAITS)


@pytest.mark.parametrize("said", ["nothing", "a hello"])
def test_a_closed_connection_says_why(said: str, steady: Server, keys: Path) -> None:
    """Also where it was closed before anything was sent, or heard."""
    context = zmq.Context()
    connection = Connection(context, steady.address, keys_of("phone", keys))
    try:
        # What is sent until the connection is closed goes nowhere; the first thing that is sent later is told why.
        with pytest.raises(NotAcceptedError, match="the server has no keys; connect without"):  # noqa: PT012 - whichever
            if said == "a hello":
                connection.send(messages.Hello(messages.PROTOCOL, "control"))
            wait_for(lambda: connection.send(messages.Ping()), "the connection to be closed")
        with pytest.raises(NotAcceptedError, match="the server has no keys; connect without"):
            connection.receive(WAIT_S)
    finally:
        connection.close()
        context.destroy(linger=0)


def test_what_a_server_said_before_it_closed_is_the_reason() -> None:
    context = zmq.Context()
    server = context.socket(zmq.ROUTER)
    connection = Connection(context, f"tcp://127.0.0.1:{server.bind_to_random_port('tcp://127.0.0.1')}")
    try:
        connection.send(messages.Ping())
        peer, *_ = server.recv_multipart()
        server.send_multipart([peer, *messages.Error(messages.ERROR_SESSION, "enough for today").frames()])
        server.close(linger=1000)
        for _ in range(2):  # and goes on to be
            with pytest.raises(ServerError, match="enough for today"):
                wait_for(lambda: connection.send(messages.Ping()), "the connection to be closed")
    finally:
        connection.close()
        context.destroy(linger=0)


def test_keygen(tmp_path: Path) -> None:
    name = str(tmp_path / "phone")
    assert CliRunner().invoke(cli, ["keygen", name]).output.split() == [f"{name}.secret", f"{name}.public"]


def test_what_only_this_machine_reaches() -> None:
    assert all(map(is_loopback, ("tcp://127.0.0.1:0", "tcp://127.9.9.9:1", "tcp://[::1]:1", "tcp://localhost:1")))
    assert is_loopback("tcp://[::ffff:127.0.0.1]:1")
    for here in ("tcp://127.0.0.1:1", "tcp://0.0.0.0:1", "tcp://[::]:1", "tcp://[::ffff:127.0.0.1]:1"):
        assert is_this_machine(here)
    assert not any(map(is_this_machine, ("tcp://192.0.2.1:1", "tcp://[::ffff:192.0.2.1]:1", "tcp://[2001:db8::1]:1")))
    assert not any(map(is_loopback, ("tcp://0.0.0.0:0", "tcp://[::]:0", "tcp://192.0.2.1:1")))


def test_localhost_is_ipv4_as_for_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    put_ipv6_first(monkeypatch)
    server = Listener("tcp://localhost:0")
    server.close()
    assert server.address.startswith("tcp://127.0.0.1:")


def test_a_public_address_without_keys_must_be_wanted(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("ionn.server.front.is_loopback", lambda address: False)
    with pytest.raises(InputError, match=r"a public address needs keys: give --key and --allow .* or --insecure"):
        Listener("tcp://127.0.0.1:0")
    with caplog.at_level(logging.WARNING):
        Listener("tcp://127.0.0.1:0", insecure=True).close()
    assert "anybody may connect" in caplog.text


def ping(address: str, *options: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "ionn", "ping", address, *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S)
    return done.returncode, done.stdout + done.stderr


def test_ping(locked: Server, keys: Path) -> None:
    """Exit code 0 for a server that lives and has room only."""
    options = "--key", str(keys / "phone.secret"), "--server-key", str(keys / "server.public")
    assert ping(locked.address, *options, "--timeout-s", "20") == (0, f"{locked.address}: ready, 0 sessions\n")
    assert "takes only clients with keys" in ping(locked.address, "--timeout-s", "20")[1]
    locked.strike(signal.SIGSTOP)
    try:
        code, said = ping(locked.address, *options, "--timeout-s", "1")
    finally:
        locked.strike(signal.SIGCONT)
    assert code == 2
    assert "has not answered for 1 s" in said
    assert ping("tcp://127.0.0.1:1")[0] == 2


def test_ping_of_a_full_server() -> None:
    full = Untouched("--sessions", "1")
    with Raw(full.address):
        code, said = ping(full.address, "--timeout-s", "20")
    assert code == 1
    assert "takes no other session of this client; it has 1" in said
    assert full.stop()[0] == 0


def test_a_lost_server_is_no_wrong_key(keys: Path) -> None:
    with pytest.raises(ServerUnreachableError):
        Client("tcp://127.0.0.1:1", keys_of("phone", keys))


def test_metrics_and_logs() -> None:
    told = Untouched("--metrics", "127.0.0.1:0", "--log-json")
    errors = told._process.stderr
    assert errors is not None
    found = re.search(r"http://\S+/metrics", errors.readline())
    assert found
    with Raw(told.address) as raw:
        assert isinstance(raw.ask(raw.connect(), messages.Query(1, 1, 1, (b"",))), messages.Error)
        with urllib.request.urlopen(found[0], timeout=WAIT_S) as answer:
            metrics = answer.read().decode()
    told.strike(signal.SIGTERM)
    events = [json.loads(line) for line in errors]
    assert told.stop()[0] == 0
    assert "\nionn_sessions 1.0\n" in metrics
    assert "\nionn_sessions_started_total 1.0\n" in metrics
    assert '\nionn_refused_total{code="session"} 1.0\n' in metrics
    assert [event["event"] for event in events] == ["ready", "session started", "session ended", "stopped"]
    assert all(event["level"] == "info" and event["time"] for event in events)
    assert events[1]["session"] == events[2]["session"]
    assert events[2]["code"] == messages.ERROR_STOPPING


def test_help_shows_every_limit() -> None:
    said = " ".join(CliRunner().invoke(cli, ["serve", "--help"], terminal_width=100).output.split())
    for limit in fields(Limits):
        assert f"{option(limit.name)} " in said
        assert f"{limit.metadata['reason']} [default: {limit.default}" in said
