"""The front's event loop: it waits for descriptors to become readable or writable, and calls their handlers.

There are two circles. The inner one has what sessions use. The outer one has strangers (connections without a session);
it gets three milliseconds of each turn, however many they are, and continues in the next turn where it was. A handler
does a bounded piece of work, and asks with `later` to be called again if there is more. Handlers are isolated: if one
fails, its source's `failed` is called, and the failure is counted and logged.
"""

from __future__ import annotations

import contextlib
import logging
import select
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass

from ionn.server.metrics import Counts

log = logging.getLogger(__name__)

IN, OUT = select.EPOLLIN, select.EPOLLOUT
# The other end has closed. GONE is reported unasked; GOES only if it is watched for, even if something is unread.
GONE, GOES = select.EPOLLHUP | select.EPOLLERR, select.EPOLLRDHUP

# The strangers' part of a turn. A turn of sessions alone takes about as long.
_OUTER_S = 0.003
_OUTER_EVENTS = 16

Handler = Callable[[int], None]


@dataclass
class _Source:
    handler: Handler
    failed: Callable[[], None]
    outer: bool
    mask: int


class Loop:
    """The event loop. Sources are file descriptors. A handler is called with what its descriptor is ready for, which
    may be nothing."""

    def __init__(self, counts: Counts) -> None:
        self._counts = counts
        self._inner = select.epoll()
        self._outer = select.epoll()
        self._inner.register(self._outer, IN)
        self._sources: dict[int, _Source] = {}
        # The descriptors in each circle that have more to do, in order.
        self._later: dict[bool, dict[int, None]] = {False: {}, True: {}}
        self._seen: set[object] = set()

    def watch(self, descriptor: int, mask: int, handler: Handler, failed: Callable[[], None], outer: bool) -> None:
        """Watch a descriptor, in the outer circle or the inner one."""
        self._circle(outer).register(descriptor, mask)
        self._sources[descriptor] = _Source(handler, failed, outer, mask)

    def change(self, descriptor: int, mask: int) -> None:
        """Change what a descriptor is watched for from now on."""
        source = self._sources.get(descriptor)
        if source is not None and source.mask != mask:
            source.mask = mask
            self._circle(source.outer).modify(descriptor, mask)

    def move(self, descriptor: int, outer: bool) -> None:
        """Move a descriptor to the outer or the inner circle."""
        source = self._sources[descriptor]
        if source.outer != outer:
            self._circle(source.outer).unregister(descriptor)
            source.outer = outer
            self._circle(outer).register(descriptor, source.mask)

    def unwatch(self, descriptor: int) -> None:
        """Stop watching a descriptor. To be called before it is closed."""
        source = self._sources.pop(descriptor, None)
        if source is not None:
            self._circle(source.outer).unregister(descriptor)
            for waiting in self._later.values():
                waiting.pop(descriptor, None)

    def later(self, descriptor: int) -> None:
        """Call the handler of a descriptor again in this turn or the next one, even if it is ready for nothing."""
        source = self._sources.get(descriptor)
        if source is not None:
            self._later[source.outer][descriptor] = None

    def turn(self, timeout_s: float) -> None:
        """Wait until there is something to do, and do some of it."""
        busy = any(self._later.values())
        strangers = bool(self._later[True])
        for descriptor, mask in self._inner.poll(0 if busy else timeout_s):
            if descriptor == self._outer.fileno():
                strangers = True
            else:
                self._call(descriptor, mask)
        waiting, self._later[False] = self._later[False], {}
        for descriptor in waiting:
            self._call(descriptor, 0)
        if strangers:
            self._turn_to_strangers()

    def _turn_to_strangers(self) -> None:
        ends = time.monotonic() + _OUTER_S
        while True:
            waiting = list(self._later[True])[:_OUTER_EVENTS]
            for descriptor in waiting:
                self._later[True].pop(descriptor, None)
                self._call(descriptor, 0)
            # The system reports them in turn.
            ready = self._outer.poll(0, _OUTER_EVENTS)
            for descriptor, mask in ready:
                self._call(descriptor, mask)
            if not (waiting or ready) or time.monotonic() > ends:
                return

    def _call(self, descriptor: int, mask: int) -> None:
        source = self._sources.get(descriptor)
        if source is None:  # gone meanwhile
            return
        try:
            source.handler(mask)
        except Exception as error:
            self._report(error)
            self.guard(source.failed)

    def guard(self, function: Callable[[], None]) -> None:
        """Call a function, isolated as a handler is."""
        try:
            function()
        except Exception as error:
            self._report(error)

    def _report(self, error: Exception) -> None:
        """Count an unforeseen error, and log each kind of it once."""
        self._counts.unforeseen += 1
        where = traceback.extract_tb(error.__traceback__)[-1]
        kind = type(error), where.filename, where.lineno
        if kind not in self._seen:
            self._seen.add(kind)
            if isinstance(error, MemoryError):
                log.warning("no memory; it costs a peer its connection")
            else:
                log.error("not foreseen; it costs a peer its connection", exc_info=error)

    def _circle(self, outer: bool) -> select.epoll:
        return self._outer if outer else self._inner

    def close(self) -> None:
        for circle in (self._inner, self._outer):
            with contextlib.suppress(OSError):
                circle.close()
