"""What a client may have the server do: every limit, its default and the reason for it.

Each is an option of `ionn serve`, which shows the reasons and ranges. MB and kB are 10^6 and 10^3 bytes. A server works
with every limit at either end of its range; with the least it runs a net of one small layer.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, fields
from typing import Any

from ionn.errors import InputError


def _limit(default: Any, least: Any, most: Any, reason: str) -> Any:
    return field(default=default, metadata={"least": least, "most": most, "reason": reason})


@dataclass(frozen=True)
class Limits:
    """Raises InputError for a limit out of its range."""

    sessions: int = _limit(16, 1, 10_000, "Clients at once: each has a process, and memory of its own.")
    sessions_per_client: int = _limit(
        8, 1, 10_000, "The same of one client (a key, without keys an address): others find places too."
    )
    computing: int = _limit(
        len(os.sched_getaffinity(0)), 1, 10_000, "Sessions that compute at once, clients in turn: one for each core."
    )
    turn_s: float = _limit(
        1.0, 0.1, 1e6, "A session that computes longer on one message goes on beside the next one, at a lower priority."
    )
    idle_s: float = _limit(
        60.0, 0.1, 1e6, "A client that is silent this long is gone; until then it may come back and go on."
    )
    stall_s: float = _limit(
        30.0, 0.1, 1e6, "A session that works on one message this long is ended: queries take milliseconds."
    )
    stop_s: float = _limit(5.0, 0.1, 1e6, "What runs when the server is told to stop gets this long to finish.")
    layers: int = _limit(
        2000, 2, 100_000, "Layers of a session's nets, four times ResNet-152's: each costs time to check and build."
    )
    blob_mb: float = _limit(
        32.0, 0.001, 1000.0, "One blob, thus one input or output: five times the largest of the paper's models."
    )
    weights_mb: float = _limit(1000.0, 0.001, 1e6, "Weights of a session: VGG-19 has 575 MB.")
    memory_mb: float = _limit(2000.0, 1.0, 1e6, "All that a session allocates; its process cannot have more.")
    chunk_kb: float = _limit(1000.0, 1.0, 1e6, "One chunk of weights: a query waits behind it.")
    window_kb: float = _limit(4000.0, 10.0, 1e6, "Weights under way to a session: half a second of an 80 Mbps link.")
    window_per_client_kb: float = _limit(
        16_000.0, 10.0, 1e6, "The same of all sessions of a client; what does not fit waits in the client."
    )
    blobs_per_client_mb: float = _limit(
        128.0, 0.001, 1e6, "Queries under way to all sessions of a client: four of the largest."
    )
    header_kb: float = _limit(
        1000.0, 1.0, 1e5, "The description of a partition: the prototxt of a thousand layers is 300 kB."
    )
    frames: int = _limit(2000, 2, 100_000, "Frames of a message: a chunk of small blobs is many pieces.")
    pending: int = _limit(
        512, 1, 100_000, "Connections without a session, beyond the two of each session: each may hold 30 kB."
    )
    pending_per_address: int = _limit(
        128, 1, 100_000, "The same from one address: a site of many clients may be one address."
    )
    hello_s: float = _limit(
        10.0, 0.1, 1e6, "A connection without a session is closed after this long: a hello comes at once."
    )
    unread_s: float = _limit(
        30.0, 0.1, 1e6, "A client that reads none of its answers this long is gone: it may come back."
    )

    def __post_init__(self) -> None:
        for limit in fields(self):
            value, least, most = getattr(self, limit.name), limit.metadata["least"], limit.metadata["most"]
            if not least <= value <= most:
                raise InputError(f"{option(limit.name)} {value:g}: give a number from {least:g} to {most:g}")


def option(name: str) -> str:
    """The option of `ionn serve` that sets a limit."""
    return "--" + name.replace("_", "-")
