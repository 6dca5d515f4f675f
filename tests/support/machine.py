"""What there is on a machine or not: where it is not, tests are skipped that need it."""

from __future__ import annotations

import contextlib
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ionn.model.caffemodel import weights_path

# What the paper's authors published, beside this checkout.
REFERENCE = Path(__file__).resolve().parents[3] / "shared" / "reference"
PROFILES = REFERENCE / "profiles"
needs_reference = pytest.mark.skipif(not PROFILES.is_dir(), reason=f"{REFERENCE} is not here")


def weights_of(model: str) -> Path:
    """The weights of a bundled model."""
    path = weights_path(model, None)
    if not path.exists():
        pytest.skip(f"needs models/{model}.caffemodel: run 'make models'")
    return path


@contextlib.contextmanager
def vacant() -> Iterator[tuple[str, int]]:
    """An address where nobody listens, and nobody will who does not mean to."""
    with reserved() as place:
        yield place.getsockname()


def reserved() -> socket.socket:
    """A socket that has a port on loopback, and does not listen: until it is closed, who asks for any port does not get
    this one, and who asks for this one does."""
    place = socket.socket()
    place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    place.bind(("127.0.0.1", 0))
    return place


def put_ipv6_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `localhost` be ::1, then 127.0.0.1, as with the /etc/hosts that Debian's installer and Docker write."""
    look_up = socket.getaddrinfo

    def getaddrinfo(host: Any, port: Any, *arguments: Any, **options: Any) -> list[Any]:
        if host != "localhost":
            return look_up(host, port, *arguments, **options)
        return [
            (socket.AF_INET6, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", ("::1", port, 0, 0)),
            (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", ("127.0.0.1", port)),
        ]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


def has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no address ::1")


@contextlib.contextmanager
def small_disk(path: Path, size: str) -> Iterator[Path]:
    """A file system of its own, of that size, in a new folder."""
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("only root can mount a disk")
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)
