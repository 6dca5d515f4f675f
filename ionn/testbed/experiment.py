"""The experiment of the paper's section 4.1, written once for both testbeds."""

from __future__ import annotations

from typing import Protocol

from ionn.records import PartitionRecord, QueryRecord
from ionn.testbed.trace import RunInfo, Trace

QUERIES_AFTER_UPLOAD = 5


class Session(Protocol):
    """A client connected to a server that has none of its layers yet, on some testbed's clock.

    The clock starts at 0 with `start_upload`.
    """

    def now_s(self) -> float:
        """The time on that clock."""

    def start_upload(self) -> None:
        """Begin to upload the plan's partitions, in order, in the background."""

    def wait_for_first_partition(self) -> None:
        """Return when the first partition is usable (at once for an empty plan)."""

    def uploaded(self) -> bool:
        """Tell whether every partition of the plan is usable."""

    def query(self, raised_s: float | None = None) -> QueryRecord:
        """Raise a query and wait for its end; `raised_s` if it was raised earlier than now."""

    def finish(self) -> list[PartitionRecord]:
        """End the session; what was uploaded, in plan order."""


def run_experiment(session: Session, info: RunInfo) -> Trace:
    """Upload the plan and raise one query after another: the first waits for the first partition, and five more
    follow when the whole plan is uploaded (paper, section 4.1). In a run with a window, more follow until it ends."""
    session.start_upload()
    session.wait_for_first_partition()
    queries: list[QueryRecord] = []

    def query() -> None:
        # The first one was raised with the upload, whenever it could start.
        queries.append(session.query(raised_s=None if queries else 0.0))

    while not session.uploaded():
        query()
    for _ in range(QUERIES_AFTER_UPLOAD):
        query()
    window_s = (info.settings.window_s or 0.0) * info.settings.dilation
    while session.now_s() < window_s:
        query()
    return Trace(info, tuple(session.finish()), tuple(queries))
