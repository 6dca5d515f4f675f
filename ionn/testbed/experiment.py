"""The experiment of the paper's section 4.1, also with other arrivals: one implementation for both testbeds."""

from __future__ import annotations

import math
from typing import Protocol

from ionn.errors import InputError
from ionn.records import PartitionRecord, QueryRecord
from ionn.testbed.arrivals import ARRIVALS_MAX, DROP
from ionn.testbed.trace import RunInfo, Trace

QUERIES_AFTER_UPLOAD = 5


class Session(Protocol):
    """A client connected to a server that has none of its layers yet, on some testbed's clock.

    The clock starts at 0 with `start_upload`.
    """

    def now_s(self) -> float:
        """The time on this clock."""

    def start_upload(self) -> None:
        """Begin to upload the plan's partitions, in order, in the background."""

    def wait_for_first_partition(self) -> None:
        """Return when the first partition is usable (at once for an empty plan)."""

    def uploaded(self) -> bool:
        """Tell whether every partition of the plan is usable; more may be planned later."""

    def wait_until(self, time_s: float) -> None:
        """Return at that time on the clock; at once if it has passed."""

    def wait_for_upload(self) -> None:
        """Return when every partition is usable, or when it is unknown whether it ever will be."""

    def query(self, raised_s: float | None = None) -> QueryRecord:
        """Raise a query and wait for its end; `raised_s` if it was raised earlier than now."""

    def finish(self) -> list[PartitionRecord]:
        """End the session; what was uploaded, in plan order."""


def run_experiment(session: Session, info: RunInfo) -> Trace:
    """Upload the plan, and meanwhile raise queries as the settings' arrivals say. When the whole plan is uploaded, five
    queries follow (paper, section 4.1), and more until the run's window ends. If a client that measures plans further
    uploads meanwhile, five queries follow these.

    Raises InputError if more than ARRIVALS_MAX queries arrive in that time.
    """
    session.start_upload()
    loop = _closed_loop if info.settings.arrivals.closed else _open_loop
    queries, dropped_s = loop(session, info)
    return Trace(info, tuple(session.finish()), tuple(queries), dropped_s=tuple(dropped_s))


def _closed_loop(session: Session, info: RunInfo) -> tuple[list[QueryRecord], list[float]]:
    """Raise one query after another: the first waits for the first partition (paper, section 4.1). None is dropped."""
    session.wait_for_first_partition()
    queries: list[QueryRecord] = []
    after_upload = 0
    while after_upload < QUERIES_AFTER_UPLOAD or session.now_s() < _window_s(info):
        after_upload = after_upload + 1 if session.uploaded() else 0
        # The first query is raised when the upload begins, and starts later.
        queries.append(session.query(raised_s=None if queries else 0.0))
    return queries, []


def _open_loop(session: Session, info: RunInfo) -> tuple[list[QueryRecord], list[float]]:
    """Raise queries when they arrive, whether the client is busy or not. The client answers one at a time, in their
    order, and waits for no partition. A query that arrives while it is busy waits, or is dropped. The run ends with the
    fifth query after the upload, or with the window, whichever is later; queries that wait then are dropped.

    Returns the queries that were answered, and when the dropped ones were raised.
    """
    settings = info.settings
    queries: list[QueryRecord] = []
    dropped_s: list[float] = []
    after_upload, end_s = 0, math.inf
    free_s = 0.0  # when the client answered the last query
    for undilated_s in settings.arrivals.times(settings.seed, info.run):
        arrival_s = undilated_s * settings.dilation
        if arrival_s >= end_s:
            break
        if len(queries) + len(dropped_s) == ARRIVALS_MAX:
            raise InputError(
                f"arrivals {settings.arrivals.name}: more than {ARRIVALS_MAX} queries arrive before the upload and the "
                "window are over; give fewer a second"
            )
        if arrival_s < free_s and (settings.busy == DROP or free_s >= end_s):
            dropped_s.append(arrival_s)
            continue
        session.wait_until(arrival_s)
        if session.uploaded():
            after_upload += 1
        else:
            after_upload, end_s = 0, math.inf
        # Rounding of a clock that counts ms must not have a query start before it is raised.
        queries.append(session.query(raised_s=min(arrival_s, session.now_s())))
        free_s = queries[-1].end_s
        if after_upload == QUERIES_AFTER_UPLOAD:
            end_s = max(free_s, _window_s(info))
    session.wait_for_upload()  # a file's arrivals may end before it
    return queries, dropped_s


def _window_s(info: RunInfo) -> float:
    """The window on the session's clock."""
    return (info.settings.window_s or 0.0) * info.settings.dilation
