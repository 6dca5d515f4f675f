"""Whatever bytes come to the port: the server closes the connection or answers, and nobody else notices."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
import zmq

from ionn.protocol import messages
from ionn.protocol.curve import ClientKeys, make_keys, read_key, server_keys
from ionn.protocol.messages import PROTOCOL
from tests.strangers.honest import Honest, Watched, random_bytes
from tests.strangers.peers import (
    COMMAND,
    DEALER,
    HELLO,
    LONG,
    MORE,
    SIGNATURE,
    CurveClient,
    Stranger,
    ask,
    frame,
    greeting,
    message,
    prop,
    ready,
)
from tests.support.world import WAIT_S, Server, World, wait_for

PING = message(messages.Ping())


def test_random_bytes(watched: Watched) -> None:
    """On the landed state the sixth of these connections was the server's end."""
    with watched.honest.all_the_while():
        for seed in range(40):
            with Stranger(watched.address, 2 + seed % 3) as peer:
                peer.send(random_bytes(seed, 1 + seed * 128))
                if seed % 2:
                    peer.reset()
    watched.end()


@pytest.mark.parametrize("change", [0x01, 0x80])
def test_a_greeting_with_any_byte_changed(watched: Watched, change: int) -> None:
    for at in range(64):
        changed = bytearray(greeting())
        changed[at] ^= change
        ignored = at in range(1, 9) or at == 11 or at > 32 or (at == 10 and changed[10] >= 3)
        with Stranger(watched.address) as peer:
            peer.send(bytes(changed) + ready() + PING)
            assert isinstance(peer.answer(), messages.Pong if ignored else type(None)), at
    watched.end()


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: edge\r\n\r\n", b"\x16\x03\x01\x00\xc8\x01\x00\x00\xc4\x03\x03" + bytes(190),
        b"SSH-2.0-OpenSSH_9.2p1\r\n", b"\x01\0" + b"\x05\0ping", SIGNATURE + b"\x01\x05\0\0" + b"\0\x04ping",
        greeting(b"CURVE"), greeting(b"PLAIN"),
    ],
    ids=["HTTP", "TLS", "SSH", "ZMTP 1.0", "ZMTP 2.0", "CURVE", "PLAIN"],
)  # fmt: skip
def test_another_protocol(watched: Watched, data: bytes) -> None:
    """Its peer need not wait until its time is up."""
    with Stranger(watched.address) as peer:
        peer.send(data)
        assert peer.closed()
    watched.end()


ROUTING_ID = b"\0\x6b\x8b\x45"


@pytest.mark.parametrize(
    "metadata",
    [
        b"", DEALER[:-3], prop(b"Socket-Type", b"ROUTER"), prop(b"Socket-Type", b"PUB"), DEALER + b"\xff\xff",
        DEALER + prop(b"Identity", b"x" * 2000), prop(b"Socket-Type", b"DEALER" * 100),
    ],
    ids=["none", "cut short", "ROUTER", "PUB", "trailing bytes", "huge", "long type"],
)  # fmt: skip
def test_an_odd_ready(watched: Watched, metadata: bytes) -> None:
    with Stranger(watched.address) as peer:
        peer.send(greeting() + ready(metadata) + PING)
        assert peer.closed()
    watched.end()


def test_chosen_identities(watched: Watched) -> None:
    """Those that libzmq would give to the next clients, and that of somebody else: on the landed state they ended the
    server or took the other's session."""
    identities = [ROUTING_ID + bytes([last]) for last in range(0x60, 0x80)] + [b"\0", b"\0" * 255, b"x" * 255, b""]
    peers = []
    try:
        for number, identity in enumerate(identities):
            peer = Stranger(watched.address, 2 + number % 5).__enter__()
            peers.append(peer)
            peer.shake_hands(DEALER + prop(b"Identity", identity))
            assert isinstance(ask(peer, messages.Ping()), messages.Pong)
            # No session, whoever's identity it is.
            refused = ask(peer, messages.Query(1, 1, 1, (b"",)))
            assert isinstance(refused, messages.Error)
            assert refused.code == messages.ERROR_SESSION
        watched.honest.check()
        Honest(watched.address, watched.world).close()
    finally:
        for peer in peers:
            peer.socket.close()
    watched.end()


def test_the_identity_of_a_client_that_just_dropped(watched: Watched) -> None:
    """It had a session; a stranger who takes its identity has none."""
    context = zmq.Context()
    victim = context.socket(zmq.DEALER)
    victim.identity = b"victim"
    victim.linger = 0
    victim.connect(watched.address)
    victim.send_multipart(HELLO.frames())
    assert victim.poll(int(WAIT_S * 1e3))
    welcome = messages.decode(victim.recv_multipart())
    assert isinstance(welcome, messages.Welcome)
    victim.close()
    with Stranger(watched.address) as peer:
        peer.shake_hands(DEALER + prop(b"Identity", b"victim"))
        refused = ask(peer, messages.Query(1, 1, 1, (b"",)))
        assert isinstance(refused, messages.Error)
        assert refused.code == messages.ERROR_SESSION
        # Its owner may come back.
        assert isinstance(ask(peer, messages.Hello(PROTOCOL, "control", welcome.session)), messages.Welcome)
        peer.send(message(messages.Bye()))
        assert isinstance(peer.answer(), messages.Error)
    context.term()
    watched.end()


def test_one_byte_a_moment_and_half_open(watched: Watched) -> None:
    """Whoever does not come to a session is closed after --hello-s, be it busy or silent."""
    sent = greeting() + ready() + message(HELLO)[:-1]
    with Stranger(watched.address) as slow, Stranger(watched.address, 3) as silent, watched.honest.all_the_while():
        slow.socket.settimeout(0.1)
        at = 0
        while slow.send(sent[at : at + 1]) and at < 10_000:
            at += 1
            try:
                if slow.socket.recv(4096) == b"":
                    break
            except TimeoutError:
                pass
            except ConnectionError:
                break
        assert 1 < at < len(sent)
        assert silent.closed()
    watched.end()


def test_resets_inside_of_everything(watched: Watched) -> None:
    sent = greeting() + ready() + message(messages.Hello(PROTOCOL, "control", "no such session")) + PING
    with watched.honest.all_the_while():
        for at in range(0, len(sent), 3):
            with Stranger(watched.address, 2 + at % 3) as peer:
                peer.send(sent[:at])
                peer.reset()
    watched.end()


def test_resets_inside_a_session(watched: Watched) -> None:
    """In each frame of a chunk, whole and in part; the session goes on where it was."""
    chunk = message(messages.make_chunk(0, 0, [memoryview(bytes(50_000))]))
    with Stranger(watched.address) as first:
        first.shake_hands()
        welcome = ask(first, HELLO)
        assert isinstance(welcome, messages.Welcome)
        for at in (1, 2, 10, 60, 80, 1000, 40_000, len(chunk) - 1):
            with Stranger(watched.address) as peer:
                peer.shake_hands()
                assert isinstance(ask(peer, messages.Hello(PROTOCOL, "control", welcome.session)), messages.Welcome)
                peer.send(chunk[:at])
                peer.reset()
            watched.honest.check()
    with Stranger(watched.address) as last:
        last.shake_hands()
        assert isinstance(ask(last, messages.Hello(PROTOCOL, "control", welcome.session)), messages.Welcome)
        assert isinstance(ask(last, messages.Ping()), messages.Pong)
        last.send(message(messages.Bye()))
        assert isinstance(last.answer(), messages.Error)
    watched.end()


def test_commands_without_end(watched: Watched) -> None:
    """Pings of ZMTP's own are answered as long as the answers are read."""
    with Stranger(watched.address) as peer, watched.honest.all_the_while():
        peer.shake_hands()
        assert isinstance(ask(peer, messages.Ping()), messages.Pong)
        pings = frame(b"\x04PING\0\0" + bytes(16), COMMAND) * 50_000
        peer.socket.settimeout(3)
        try:
            for _ in range(20):
                peer.socket.sendall(pings)
        except (TimeoutError, ConnectionError):
            pass
    watched.end()


# --- With keys --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def locked(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Honest, bytes, bytes]]:
    """A server with keys, an honest session, the secret of an allowed client and the server's public key."""
    folder = tmp_path_factory.mktemp("keys")
    make_keys(folder / "server")
    make_keys(folder / "phone")
    secret, public = read_key(folder / "phone.secret"), read_key(folder / "server.public")
    server = Locked("--key", str(folder / "server.secret"), "--allow", str(folder / "phone.public"), "--hello-s", "2")
    honest = Honest(server.address, world, ClientKeys(secret, public))
    found = server_keys(folder / "server.secret", folder / "phone.public")
    assert found is not None
    curve = found.curve()
    from zmq.utils import z85

    yield server, honest, z85.decode(secret.encode()), curve.public
    honest.check()
    honest.close()
    server.end_well()


class Locked(Server):
    def start(self) -> None:
        super(Server, self).start()


def curve_steps(peer: Stranger, client: CurveClient) -> Iterator[bytes]:
    """What a client sends, step by step, each when the server has answered the one before."""
    yield greeting(b"CURVE")
    peer.receive(64)
    yield client.hello()
    _, welcome = peer.frame()
    yield client.initiate(welcome)
    peer.frame()
    ping = messages.Ping().frames()
    yield client.seal(ping[0])


@pytest.mark.parametrize("step", range(4))
def test_a_curve_handshake_cut_and_corrupted(locked: tuple[Server, Honest, bytes, bytes], step: int) -> None:
    """At every step; a client that makes no mistake is answered."""
    server, honest, secret, public = locked

    def reach(peer: Stranger) -> bytes:
        steps = curve_steps(peer, CurveClient(secret, public))
        for _ in range(step):
            peer.send(next(steps))
        return next(steps)

    with honest.all_the_while():
        for share in (0.0, 0.03, 0.2, 0.6, 0.99):
            with Stranger(server.address) as peer:
                data = reach(peer)
                at = int(share * len(data))
                peer.send(data[:at])
                peer.reset()
            with Stranger(server.address, 3) as peer:
                data = reach(peer)
                at = int(share * len(data))
                if (step == 0 and share == 0.6) or (step == 1 and share == 0.2):  # filler and padding
                    continue
                peer.send(data[:at] + bytes([data[at] ^ 0x08]) + data[at + 1 :] + bytes(2000))
                assert peer.closed()
    with Stranger(server.address, 4) as peer:
        client = CurveClient(secret, public)
        for data in curve_steps(peer, client):
            peer.send(data)
        _, sealed = peer.frame()
        assert isinstance(messages.decode([client.open(sealed)[1]]), messages.Pong)


def test_unsealed_frames_after_the_handshake(locked: tuple[Server, Honest, bytes, bytes]) -> None:
    server, honest, secret, public = locked
    for data in (PING, frame(b"\x04PING\0\0", COMMAND), bytes([MORE | LONG]) + b"\xff" * 8):
        with Stranger(server.address) as peer:
            steps = curve_steps(peer, CurveClient(secret, public))
            for _ in range(3):
                peer.send(next(steps))
            peer.frame()
            peer.send(data)
            assert peer.closed()
    honest.check()


def test_many_handshakes_at_once(locked: tuple[Server, Honest, bytes, bytes]) -> None:
    """Each costs the server some arithmetic before it knows the key."""
    server, honest, _, public = locked
    with honest.all_the_while():
        peers = [Stranger(server.address, 2 + number % 4).__enter__() for number in range(200)]
        for peer in peers:
            peer.send(greeting(b"CURVE") + CurveClient(bytes(range(32)), public).hello())
        for peer in peers:
            peer.socket.close()


def test_nobody_has_the_port_for_himself(watched: Watched) -> None:
    """A socket that is accepted and says nothing takes no turn of others."""
    idle = [socket.create_connection(peer_address(watched), WAIT_S) for _ in range(100)]
    watched.honest.check()
    for each in idle:
        each.close()
    wait_for(lambda: watched.descriptors() == watched._descriptors, "the descriptors")
    watched.end()


def peer_address(watched: Watched) -> tuple[str, int]:
    host, port = watched.address.removeprefix("tcp://").rsplit(":", 1)
    return host, int(port)
