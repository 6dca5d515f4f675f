"""What a server counts, and its metrics for Prometheus. These need the extra: pip install 'ionn[metrics]'."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ionn.address import Address, format_address
from ionn.errors import InputError
from ionn.server.store import StoreCounts


@dataclass
class Counts:
    """What a server counts. `sessions` and `connections` are those now; all others are counted from its start.

    `ended` counts sessions by the code of their end, and `refused` messages and clients by the code of the error.
    `evicted` are connections without a session that were closed to make room, `unforeseen` failures of handlers, each
    of which cost a peer its connection. `store` is what the store process counts.
    """

    sessions: int = 0
    connections: int = 0
    evicted: int = 0
    unforeseen: int = 0
    started: int = 0
    messages: int = 0
    message_bytes: int = 0
    ended: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    store: StoreCounts = field(default_factory=StoreCounts)


class _Collector:
    """Reads the counts when Prometheus asks, so that counting costs no more than an addition."""

    def __init__(self, counts: Counts) -> None:
        self._counts = counts

    def collect(self) -> Iterator[Any]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        counts = self._counts
        yield GaugeMetricFamily("ionn_sessions", "Sessions now", value=counts.sessions)
        yield GaugeMetricFamily("ionn_connections", "Connections now", value=counts.connections)
        yield CounterMetricFamily("ionn_evicted", "Connections closed to make room", value=counts.evicted)
        yield CounterMetricFamily("ionn_unforeseen", "Handlers that failed", value=counts.unforeseen)
        yield CounterMetricFamily("ionn_sessions_started", "Sessions started", value=counts.started)
        yield CounterMetricFamily("ionn_messages", "Messages of clients", value=counts.messages)
        yield CounterMetricFamily("ionn_message_bytes", "Bytes of these messages", value=counts.message_bytes)
        store = counts.store
        yield GaugeMetricFamily("ionn_store_pieces", "Pieces of weights in the store", value=store.pieces)
        yield GaugeMetricFamily("ionn_store_bytes", "Bytes that count in the store", value=store.bytes)
        yield CounterMetricFamily("ionn_store_stored", "Pieces stored", value=store.stored)
        yield CounterMetricFamily("ionn_store_opened", "Pieces opened for sessions", value=store.opened)
        yield CounterMetricFamily("ionn_store_evicted", "Pieces removed to make room", value=store.evicted)
        yield CounterMetricFamily("ionn_store_damaged", "Damaged pieces removed", value=store.damaged)
        for name, text, label, values in (
            ("ionn_sessions_ended", "Sessions ended", "reason", counts.ended),
            ("ionn_refused", "Messages and clients refused", "code", counts.refused),
        ):
            family = CounterMetricFamily(name, text, labels=[label])
            for value, count in values.copy().items():
                family.add_metric([value], count)
            yield family


def serve_metrics(address: Address, counts: Counts) -> Address:
    """Serve metrics to Prometheus at an address, in a thread, for as long as the process lives. Returns the address in
    use. Raises InputError if prometheus-client is not installed or the address cannot be bound."""
    try:
        from prometheus_client import CollectorRegistry, start_http_server
    except ImportError:
        raise InputError("metrics need prometheus-client; pip install 'ionn[metrics]'") from None
    registry = CollectorRegistry()
    registry.register(_Collector(counts))
    try:
        server, _ = start_http_server(address[1], address[0], registry)
    except UnicodeError as error:
        raise InputError(f"{format_address(address)}: unknown host; check its name") from error
    except OSError as error:
        raise InputError(f"{format_address(address)}: cannot serve metrics there ({error.strerror})") from error
    return address[0], server.server_port
