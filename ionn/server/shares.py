"""Who computes next: clients share the processors equally, however many sessions each has. No clock, no I/O.

This is start-time fair queueing. What a client computes is added to its `used_s`, in processor time, and whoever has
used least goes next. A client that comes begins where the others are. One that comes back has saved little of what it
left unused, no more than it takes to make good the pauses between its messages; what it has used beyond its part is
remembered, even when its sessions have ended.

An item is a session. It waits for a turn (`wait`), has one (`next`) and thereby one of the places, until it has
computed (`done`). One that computes for too long gives its place to another and goes on without (`pass_on`).
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Item = TypeVar("Item", bound=Hashable)

# Clients that are gone and have used more than their part, beyond which the ones that have used least are forgotten.
_GONE_MAX = 1000


@dataclass(eq=False)
class Share(Generic[Item]):
    """What a client has used, the items of it that wait, the longest waiting first, and those that compute."""

    used_s: float = 0.0
    members: int = 0
    waiting: dict[Item, None] = field(default_factory=dict)
    computing: set[Item] = field(default_factory=set)

    @property
    def active(self) -> bool:
        return bool(self.waiting or self.computing)


class Shares(Generic[Item]):
    """`places` items compute at once, and as many of one client, those that gave their place to another included. A
    client saves `saved_s` at most."""

    def __init__(self, places: int, saved_s: float) -> None:
        self._places = places
        self._saved_s = saved_s
        self._shares: dict[Hashable, Share[Item]] = {}
        self._active: dict[Share[Item], None] = {}
        self._holding: set[Item] = set()
        self._now_s = 0.0  # what those have used who are served now

    def join(self, client: Hashable) -> Share[Item]:
        """One more member of a client, which has items from now on."""
        share = self._shares.setdefault(client, Share(self._now_s))
        share.members += 1
        return share

    def leave(self, share: Share[Item], item: Item) -> None:
        """A member is gone, and the item with it."""
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
        """An item waits for a turn; once is enough."""
        self._catch_up(share)
        share.waiting[item] = None
        self._active[share] = None

    def _catch_up(self, share: Share[Item]) -> None:
        if not share.active:
            share.used_s = max(share.used_s, self._now_s - self._saved_s)

    def next(self) -> Item | None:
        """Give the next item its turn; None if none waits, or none may compute now."""
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
        """Tell whether an item that computes may go on with another message: if nobody waits for its place."""
        if any(each.waiting for each in self._active):
            return False
        self._serve(share)
        return True

    def _serve(self, share: Share[Item]) -> None:
        self._now_s = max(self._now_s, share.used_s)

    def pass_on(self, item: Item) -> None:
        """An item goes on without a place."""
        self._holding.discard(item)

    def done(self, share: Share[Item], item: Item) -> None:
        """An item has computed, if it did."""
        self._holding.discard(item)
        share.computing.discard(item)
        if not share.active:
            self._active.pop(share, None)

    def charge(self, share: Share[Item], seconds: float) -> None:
        """A client has used so much of a processor, in its turn or not."""
        self._catch_up(share)
        share.used_s += seconds

    def ahead_s(self, share: Share[Item]) -> float:
        """How much more a client has used than those who are served now."""
        return max(share.used_s - self._now_s, 0.0)
