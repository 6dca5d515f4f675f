"""What clients may use of a server: every limit, with its default, its range and the reason for it.

Each limit is an option of `ionn serve`, whose --help shows these texts. MB and kB are 10^6 and 10^3 bytes, and `_s` are
seconds. A server works with every limit at either end of its range; with the lowest ones it runs a net of one small
layer.
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
    """The limits of a server. Raises InputError for a limit out of its range."""

    sessions: int = _limit(16, 1, 10_000, "Sessions at the same time: each has a process with memory of its own.")
    sessions_per_client: int = _limit(
        8, 1, 10_000, "Sessions of one client (a key or, without keys, an address), so that others find places too."
    )
    computing: int = _limit(
        len(os.sched_getaffinity(0)), 1, 10_000, "Sessions that compute at the same time; by default one for each core."
    )
    turn_s: float = _limit(
        1.0, 0.1, 1e6, "A session that computes longer on one message keeps nobody waiting, and gets a lower priority."
    )
    idle_s: float = _limit(
        60.0, 0.1, 1e6, "A session ends when its client is silent this long; until then the client may come back."
    )
    stall_s: float = _limit(
        30.0, 0.1, 1e6, "A session that works on one message this long is ended: queries take milliseconds."
    )
    stop_s: float = _limit(5.0, 0.1, 1e6, "When the server is told to stop, running messages have this long to finish.")
    layers: int = _limit(
        2000, 2, 100_000, "Layers of a session's nets: each takes time to check and build. ResNet-152 has a quarter."
    )
    blob_mb: float = _limit(
        32.0, 0.001, 1000.0, "One blob, and so one input or output. The largest of the paper's models has 5 MB."
    )
    weights_mb: float = _limit(1000.0, 0.001, 1e6, "Weights of a session. VGG-19 has 575 MB.")
    memory_mb: float = _limit(2000.0, 1.0, 1e6, "All memory that a session allocates: its process cannot have more.")
    chunk_kb: float = _limit(1000.0, 1.0, 1e6, "One chunk of weights: a query may have to wait for one.")
    window_kb: float = _limit(4000.0, 10.0, 1e6, "Weights under way to a session: 0.4 s of an 80 Mbps link.")
    window_per_client_kb: float = _limit(
        16_000.0, 10.0, 1e6, "Weights under way to all sessions of a client; what does not fit waits in the client."
    )
    blobs_per_client_mb: float = _limit(
        128.0, 0.001, 1e6, "Queries under way to all sessions of a client: four of the largest."
    )
    header_kb: float = _limit(  # at most HEADER_BYTES_MAX of ionn.protocol.messages: nobody decodes a larger one
        1000.0, 1.0, 4000.0, "A message's first frame. A partition of a thousand layers has a prototxt of 300 kB in it."
    )
    frames: int = _limit(2000, 2, 100_000, "Frames of a message. A client may send a chunk in many.")
    pending: int = _limit(
        512, 1, 100_000, "Connections without a session, which may hold 30 kB each; a session's two are not counted."
    )
    pending_per_address: int = _limit(
        128, 1, 100_000, "Connections without a session from one address, which a site of many clients may share."
    )
    hello_s: float = _limit(
        10.0, 0.1, 1e6, "A connection that has no session after this long is closed: a Hello comes at once."
    )
    unread_s: float = _limit(
        30.0, 0.1, 1e6, "The connection of a client that reads no answer this long is closed; its session goes on."
    )

    def __post_init__(self) -> None:
        for limit in fields(self):
            value, least, most = getattr(self, limit.name), limit.metadata["least"], limit.metadata["most"]
            if not least <= value <= most:
                raise InputError(f"{option(limit.name)} {value:g}: give a number from {least:g} to {most:g}")


def option(name: str) -> str:
    """The option of `ionn serve` that sets the limit of this name."""
    return "--" + name.replace("_", "-")
