"""Which session computes next: clients share the processors equally, however many sessions each has. No clock, no I/O.

This is start-time fair queueing (Goyal, Vin, Cheng, SIGCOMM 1996). The processor time that a client uses is added to
its `used_s`, and the waiting client that has used least goes next. A new client begins where the others are. A client
that was idle has saved `saved_s` at most of the time that it left unused: enough to make up for the pauses between its
messages. What a client has used beyond its part is remembered, even when its sessions have ended.

An item is a session. It waits for a turn (`wait`), and has a turn and thereby a place (`next`) until it has computed
(`done`). An item that computes for too long gives up its place and continues without one (`pass_on`).
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Item = TypeVar("Item", bound=Hashable)

# How many clients without sessions that have used more than their part are remembered. Beyond that, those that have
# used least are forgotten.
_GONE_MAX = 1000


@dataclass(eq=False)
class Share(Generic[Item]):
    """What a client has used, how many sessions it has (`members`), and its items that wait, the longest waiting first,
    and that compute."""

    used_s: float = 0.0
    members: int = 0
    waiting: dict[Item, None] = field(default_factory=dict)
    computing: set[Item] = field(default_factory=set)

    @property
    def active(self) -> bool:
        return bool(self.waiting or self.computing)


class Shares(Generic[Item]):
    """At most `places` items have a place. At most as many items of one client compute, those without a place included.
    A client saves `saved_s` at most."""

    def __init__(self, places: int, saved_s: float) -> None:
        self._places = places
        self._saved_s = saved_s
        self._shares: dict[Hashable, Share[Item]] = {}
        self._active: dict[Share[Item], None] = {}
        self._holding: set[Item] = set()
        self._now_s = 0.0  # the largest `used_s` of the clients served so far: the virtual time

    def join(self, client: Hashable) -> Share[Item]:
        """Add a session to a client."""
        share = self._shares.setdefault(client, Share(self._now_s))
        share.members += 1
        return share

    def leave(self, share: Share[Item], item: Item) -> None:
        """Remove a session, `item`, from its client."""
        share.waiting.pop(item, None)
        self.done(share, item)
        share.members -= 1
        if not share.members:
            self._forget()

    def _forget(self) -> None:
        gone = {client: share.used_s for client, share in self._shares.items() if not share.members}
        least = sorted(gone, key=gone.__getitem__)
        beyond = len(gone) - _GONE_MAX
        for number, client in enumerate(least):
            if number < beyond or gone[client] <= self._now_s:
                del self._shares[client]

    def wait(self, share: Share[Item], item: Item) -> None:
        """Have an item wait for a turn. Calling this again changes nothing."""
        self._catch_up(share)
        share.waiting[item] = None
        self._active[share] = None

    def _catch_up(self, share: Share[Item]) -> None:
        if not share.active:
            share.used_s = max(share.used_s, self._now_s - self._saved_s)

    def next(self) -> Item | None:
        """Give the next item its turn, and return it; None if no item waits, or none may compute now."""
        if len(self._holding) >= self._places:
            return None
        ready = [share for share in self._active if share.waiting and len(share.computing) < self._places]
        if not ready:
            return None
        share = min(ready, key=lambda share: (share.used_s, len(share.computing)))
        item = next(iter(share.waiting))
        del share.waiting[item]
        share.computing.add(item)
        self._holding.add(item)
        self._serve(share)
        return item

    def again(self, share: Share[Item]) -> bool:
        """Tell whether an item that computes may continue with another message: only if no item waits."""
        if any(each.waiting for each in self._active):
            return False
        self._serve(share)
        return True

    def _serve(self, share: Share[Item]) -> None:
        self._now_s = max(self._now_s, share.used_s)

    def pass_on(self, item: Item) -> None:
        """Free the place of an item that goes on computing."""
        self._holding.discard(item)

    def done(self, share: Share[Item], item: Item) -> None:
        """End the turn of an item, if it has one."""
        self._holding.discard(item)
        share.computing.discard(item)
        if not share.active:
            self._active.pop(share, None)

    def charge(self, share: Share[Item], seconds: float) -> None:
        """Add processor time that a client has used, in its turns or not."""
        self._catch_up(share)
        share.used_s += seconds

    def ahead_s(self, share: Share[Item]) -> float:
        """How much more a client has used than those that are served now."""
        return max(share.used_s - self._now_s, 0.0)
