"""Network addresses as users write them: HOST:PORT."""

from __future__ import annotations

import ipaddress
import re
import socket as sockets
from typing import Any

from ionn.arguments import text_of
from ionn.errors import InputError

Address = tuple[str, int]

_ADDRESS = re.compile(r"(?:tcp://)?(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]+)):([0-9]{1,5})")


def parse_address(text: str, listen: bool = False) -> Address:
    """Parse `HOST:PORT` or `tcp://HOST:PORT`, with an IPv6 address in brackets, into (host, port).

    Port 0 means any free port, and is allowed only for an address to `listen` at. Raises InputError for any other text.
    """
    match = _ADDRESS.fullmatch(text_of(text, "address"))
    if match is None:
        raise InputError(f"{text!r}: not an address; write HOST:PORT or tcp://HOST:PORT, for example 127.0.0.1:7676")
    port = int(match[3])
    if port > 65535 or (port == 0 and not listen):
        raise InputError(f"{text}: no such port; give one from {0 if listen else 1} to 65535")
    return match[1] or match[2], port


def format_address(address: Address) -> str:
    """The inverse of `parse_address`."""
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_loopback(address: str) -> bool:
    """Tell whether only this machine can reach tcp://HOST:PORT. Raises InputError for an unknown host."""
    return all(ip.is_loopback for ip in _ips(address))


def is_this_machine(address: str) -> bool:
    """Tell whether a connection to tcp://HOST:PORT stays within this machine by its address: a loopback address, or the
    unspecified one (0.0.0.0). Raises InputError for an unknown host."""
    return all(ip.is_loopback or ip.is_unspecified for ip in _ips(address))


def resolve(address: Address) -> tuple[int, tuple[Any, ...]]:
    """The family and the socket address of an address. Of a name's addresses, the first of IPv4 is preferred, so that
    client, link and server take the same one. Raises InputError for an unknown host."""
    return min(_look_up(address), key=lambda found: found[0] != sockets.AF_INET)


def _look_up(address: Address) -> list[tuple[int, tuple[Any, ...]]]:
    try:
        found = sockets.getaddrinfo(*address, type=sockets.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise InputError(f"{format_address(address)}: unknown host; check its name") from error
    return [(family, where) for family, *_, where in found]


def _ips(address: str) -> list[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    found = _look_up(parse_address(address, listen=True))
    ips = [ipaddress.ip_address(str(where[0]).partition("%")[0]) for _, where in found]
    return [(ip.ipv4_mapped or ip) if isinstance(ip, ipaddress.IPv6Address) else ip for ip in ips]
