"""Keys: they decide who may connect to a server, and encrypt and authenticate connections (CurveZMQ).

A key is 40 characters (Z85). `ionn keygen NAME` writes NAME.secret, which stays where it is, and NAME.public. A server
has its own secret key and the public keys of the clients that it allows; a client has its own secret key and the
server's public key.
"""

from __future__ import annotations

import contextlib
import os
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import zmq
from nacl.bindings import crypto_scalarmult_base
from zmq.utils import z85

from ionn.errors import InputError
from ionn.files import read_text
from ionn.protocol import zmtp


@dataclass(frozen=True)
class ClientKeys:
    """A client's own secret key and the public key of the server that it trusts, in Z85. Raises InputError for other
    text."""

    secret: str = field(repr=False)
    server_public: str

    def __post_init__(self) -> None:
        if not all(map(_is_key, (self.secret, self.server_public))):
            raise InputError("keys of a client: not two keys; 'ionn keygen NAME' makes keys")

    def apply(self, socket: zmq.Socket[Any]) -> None:
        """Encrypt a socket's connections. To be called before it connects."""
        socket.curve_secretkey = self.secret.encode()
        socket.curve_publickey = zmq.curve_public(self.secret.encode())
        socket.curve_serverkey = self.server_public.encode()


@dataclass(frozen=True)
class ServerKeys:
    """A server's own secret key and the public keys of the clients that it allows, in Z85."""

    secret: str = field(repr=False)
    allowed: frozenset[str]

    def curve(self) -> zmtp.Keys:
        """The same keys as bytes, for a server's connections."""
        secret = z85.decode(self.secret.encode())
        allowed = frozenset(z85.decode(key.encode()) for key in self.allowed)
        return zmtp.Keys(secret, crypto_scalarmult_base(secret), allowed)


def _is_key(key: object) -> bool:
    try:
        return isinstance(key, str) and len(key) == 40 and len(z85.decode(key.encode())) == 32
    except (ValueError, KeyError, struct.error):  # the last for five characters that stand for more than 32 bits
        return False


def printed(key: bytes) -> str:
    """A key of 32 bytes in Z85, as files have it."""
    return z85.encode(key).decode()


def make_keys(name: Path) -> tuple[Path, Path]:
    """Write a new pair of keys: NAME.secret, which only its owner may read, and NAME.public. Returns the two paths.
    Raises InputError if one of them exists or cannot be written; then neither is written."""
    if name.name in ("", ".."):
        raise InputError(f"{str(name)!r}: cannot name a pair of keys; give the beginning of a file's name")
    public, secret = (key.decode() for key in zmq.curve_keypair())
    paths = name.with_name(f"{name.name}.secret"), name.with_name(f"{name.name}.public")
    with contextlib.ExitStack() as undo:
        for path, key, mode in ((paths[0], secret, 0o600), (paths[1], public, 0o644)):
            try:
                descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
                undo.callback(path.unlink)
                with os.fdopen(descriptor, "w") as file:
                    file.write(f"{key}\n")
                    file.flush()
                    os.fsync(descriptor)
            except FileExistsError:
                raise InputError(f"{path}: exists already, and is not overwritten; choose another name") from None
            except OSError as error:
                raise InputError(f"{path}: cannot write the key: {error.strerror}") from error
        undo.pop_all()
    return paths


def read_key(path: Path) -> str:
    """The key in a file that `make_keys` wrote. Raises InputError for any other file."""
    keys = list(read_keys(path))
    if len(keys) != 1:
        raise InputError(f"{path}: {len(keys)} keys where one is wanted; give a file of 'ionn keygen'")
    return keys[0]


def read_keys(path: Path) -> frozenset[str]:
    """The keys in a file: one at the beginning of each line. What follows it, and lines that begin with '# ', are
    comments. Raises InputError for any other file."""
    keys = set()
    for number, line in enumerate(read_text(path, "keys, which 'ionn keygen NAME' makes").splitlines(), 1):
        if not line.strip() or line.startswith("# "):
            continue
        key = line.split()[0]
        if not _is_key(key):
            raise InputError(f"{path}:{number}: not a key; 'ionn keygen NAME' makes keys")
        keys.add(key)
    return frozenset(keys)


def client_keys(key: Path | None, server_key: Path | None) -> ClientKeys | None:
    """A client's keys from its two files; None if neither is given. Raises InputError for one file, and for files
    without keys."""
    if key is None and server_key is None:
        return None
    if key is None or server_key is None:
        raise InputError("give both --key, the client's secret key, and --server-key, the server's public key")
    return ClientKeys(read_key(key), read_key(server_key))


def server_keys(key: Path | None, allow: Path | None) -> ServerKeys | None:
    """A server's keys from its two files; None if neither is given. Raises InputError for one file, and for files
    without keys."""
    if key is None and allow is None:
        return None
    if key is None or allow is None:
        raise InputError("give both --key, the server's secret key, and --allow, the public keys of its clients")
    return ServerKeys(read_key(key), read_keys(allow))
