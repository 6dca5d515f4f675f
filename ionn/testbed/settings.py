"""The settings of a run, as one value. They decide the name of its trace, and which runs it can be compared with."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from ionn.coding import NONE, check_coding
from ionn.errors import InputError, did_you_mean
from ionn.files import with_digest
from ionn.paper import CLIENT, MBPS
from ionn.planning.graph import checked_mbps
from ionn.schema import NATURAL_MAX
from ionn.testbed.arrivals import ARRIVALS_MAX, BUSY, CLOSED_LOOP, WAIT, Arrivals
from ionn.testbed.delay import check_delay

TESTBEDS = ("virtual", "live")
# Slowed down a thousand times, a run of half a minute takes eight hours.
DILATION_MAX = 1000.0
# The largest standard deviation of a latency's logarithm: with it, latencies vary by a factor of seven.
NOISE_MAX = 1.0
# A day: nobody waits longer.
WINDOW_MAX_S = 86_400.0
DEADLINE_MAX_MS = 1e3 * WINDOW_MAX_S
# Weights share the uplink with queries, or are held back while a query is at the server.
SHARE, YIELD = "share", "yield"
# A slug is part of a file's name, together with a model's name and what a figure shows.
_SLUG_BYTES_MAX = 120
# The message for options of the live testbed that were given for the virtual one.
LIVE_ONLY = "--dilation, --connect, the keys and --unpaced are for the live testbed; leave them out"
# In traces, the name of a client that is not paced ends with this.
NOT_PACED = ", not paced"


@dataclass(frozen=True)
class Settings:
    """The settings of a run. Runs of a plan can be averaged, and plans compared, only if all settings are equal. The
    defaults are the paper's (section 4.1).

    - `testbed`: "virtual" or "live".
    - `mbps`: the constant bandwidth of the link, for which plans are made; None if the client measures its link, and
      plans and routes follow what it measured.
    - `link`: the name of a bandwidth over time, which the link has in place of `mbps`; else "".
    - `delay_ms`, `jitter_ms`: the time of a byte from one end of the link to the other, and by how much it varies
      (`ionn.testbed.delay`).
    - `upload`: with "share", weights share the uplink with queries; with "yield", the client holds them back while a
      query is at the server.
    - `dilation`: the factor by which link and client of a live run are slowed down.
    - `client`: the name of the client's costs. A `paced` client is slowed down to them.
    - `server`: the name of the costs that plans are made with; "" for the testbed's own: the paper's server (virtual),
      or the costs that the server sends (live). `ionn.costs.loading.costs_label` makes these names.
    - `connect`: the address of a running server that a live run used, over whatever link; else "".
    - `seed`: the seed of everything random. `noise`: the standard deviation of the logarithm of virtual compute times.
    - `network`: the digest of a network that has the name of one of the paper's, but is another; else "".
    - `coding`: what is coded on the link (`ionn.coding`). `weight_ratio`: wire bytes per raw byte of all weights; None
      for the ratios that are known of the model.
    - `window_s`: queries are raised for at least so long, so that plans can be compared in equal time.
    - `arrivals`, `busy`: when queries are raised, and whether those that meet a busy client "wait" or are dropped
      ("drop"). `deadline_ms`: queries that are answered within this time are counted.

    Raises InputError for values out of their ranges, and for settings that the testbed does not have.
    """

    testbed: str
    mbps: float | None = MBPS
    dilation: float = 1.0
    client: str = CLIENT
    server: str = ""
    seed: int = 0
    noise: float = 0.0
    paced: bool = True
    connect: str = ""
    network: str = ""
    coding: str = NONE
    weight_ratio: float | None = None
    window_s: float | None = None
    link: str = ""
    delay_ms: float = 0.0
    jitter_ms: float = 0.0
    upload: str = SHARE
    arrivals: Arrivals = CLOSED_LOOP
    busy: str = WAIT
    deadline_ms: float | None = None

    def __post_init__(self) -> None:
        if self.testbed not in TESTBEDS:
            hint = did_you_mean(self.testbed, TESTBEDS)
            raise InputError(f"testbed {self.testbed!r:.60}: there are 'virtual' and 'live'{hint}")
        if self.mbps is not None:
            checked_mbps(self.mbps)
        if not 1 <= self.dilation <= DILATION_MAX:
            raise InputError(f"dilation {self.dilation:g}: give a number from 1 to {DILATION_MAX:g}")
        if not 0 <= self.seed <= NATURAL_MAX:
            raise InputError(f"seed {self.seed}: give a natural number")
        if not 0 <= self.noise <= NOISE_MAX:
            raise InputError(f"noise {self.noise:g}: give a number from 0 to {NOISE_MAX:g}")
        check_coding(self.coding, self.weight_ratio)
        if self.window_s is not None and not 0 < self.window_s <= WINDOW_MAX_S:
            raise InputError(f"window {self.window_s:g} s: give a number above 0, and at most {WINDOW_MAX_S:g}")
        if self.mbps is None and not (self.link or self.connect):
            raise InputError("no bandwidth: give one, or --link or --connect for a link that is measured")
        check_delay(self.delay_ms, self.jitter_ms)
        if self.upload not in (SHARE, YIELD):
            hint = did_you_mean(self.upload, (SHARE, YIELD))
            raise InputError(f"upload {self.upload!r:.60}: there are 'share' and 'yield'{hint}")
        if self.connect and (self.link or self.delay_ms):
            raise InputError(
                "--link and --delay-ms are for the link that is started here; with --connect, put an 'ionn link' in "
                "front of that server instead"
            )
        self._check_arrivals()
        if self.testbed == "live" and self.weight_ratio is not None:
            raise InputError("a weight ratio is for the virtual testbed; the live one sends what weights shrink to")
        if self.testbed == "virtual" and (self.dilation != 1 or self.connect or not self.paced):
            raise InputError(LIVE_ONLY)
        if self.testbed == "live" and self.noise:
            raise InputError("--noise is for the virtual testbed; leave it out")
        if self.dilation > 1 and not self.paced:
            raise InputError(
                "--dilation slows the pace of a client down, and this one is not paced; leave one of them out"
            )

    def _check_arrivals(self) -> None:
        if self.busy not in BUSY:
            hint = did_you_mean(self.busy, BUSY)
            raise InputError(
                f"busy {self.busy!r:.60}: a query that meets a busy client may 'wait', or 'drop' out{hint}"
            )
        if self.arrivals.closed and (self.busy != WAIT or self.deadline_ms is not None):
            raise InputError(
                "--busy and --deadline-ms are for queries that do not wait for the one before to be raised; give "
                "--arrivals too"
            )
        if self.deadline_ms is not None and not 0 < self.deadline_ms <= DEADLINE_MAX_MS:
            raise InputError(
                f"deadline {self.deadline_ms:g} ms: give a number above 0, and at most {DEADLINE_MAX_MS:g}"
            )
        if (expected := self.arrivals.per_second * (self.window_s or 0.0)) > ARRIVALS_MAX:
            raise InputError(
                f"arrivals {self.arrivals.name} in a window of {self.window_s:g} s are {expected:g} queries; give a "
                f"shorter window, or fewer queries: at most {ARRIVALS_MAX}"
            )

    @property
    def device(self) -> str:
        """The name of the client in traces."""
        return self.client if self.paced else self.client + NOT_PACED

    @property
    def are_papers(self) -> bool:
        """Whether nothing but the dilation differs from the paper's settings."""
        return replace(self, dilation=1.0) == Settings(self.testbed)

    @property
    def not_coded(self) -> Settings:
        """The same without coding."""
        return replace(self, coding=NONE, weight_ratio=None)

    @property
    def rate(self) -> str:
        """The bandwidth, as it is shown to people."""
        return "bandwidth measured" if self.mbps is None else f"{_exact(self.mbps)} Mbps"

    @property
    def name(self) -> str:
        """The settings without the bandwidth, as they are shown to people."""
        return ", ".join([f"{self.testbed} testbed", *self._differences()])

    @property
    def slug(self) -> str:
        """The settings as part of the names of files and folders, in at most 120 bytes. No two settings have the same
        slug: one that is cut, or lacks characters of a user's name, ends in a digest."""
        parts = [re.sub(r" (?=\d)", "", part) for part in self._differences()]
        if self.mbps is None:
            parts.append("measured")
        elif self.mbps != MBPS:
            parts.append(f"{_exact(self.mbps)}mbps")
        slug, all_of_it = "-".join([self.testbed, *map(_dashed, parts)]), "\n".join([self.testbed, *parts])
        tells_all = len(slug) <= _SLUG_BYTES_MAX and all(_dashed(name) == name for name in self._users_names())
        return slug if tells_all else with_digest(slug, _SLUG_BYTES_MAX, all_of_it)

    def _users_names(self) -> list[str]:
        """The names that users gave to costs, files and hosts, without the digests and ports that follow them."""
        arrivals = "" if self.arrivals.per_second else self.arrivals.name
        names = [re.sub(r" \([0-9a-f]+\)$", "", name) for name in (self.client, self.server, self.link, arrivals)]
        return [*names, self.connect.removeprefix("tcp://").rpartition(":")[0]]

    def _differences(self) -> list[str]:
        """The settings that differ from the paper's, except the bandwidth, as texts."""
        texts = {
            "dilation": f"dilation {_exact(self.dilation)}", "client": f"client {self.client}",
            "server": f"server {self.server}", "seed": f"seed {self.seed}", "noise": f"noise {_exact(self.noise)}",
            "paced": "unpaced", "connect": f"connected to {self.connect}", "network": f"network {self.network}",
            "coding": f"coding {self.coding}", "weight_ratio": f"weight ratio {_exact(self.weight_ratio or 0)}",
            "window_s": f"window {_exact(self.window_s or 0)} s", "link": f"link {self.link}",
            "delay_ms": f"delay {_exact(self.delay_ms)} ms", "jitter_ms": f"jitter {_exact(self.jitter_ms)} ms",
            "upload": "upload yields", "arrivals": f"arrivals {self.arrivals.name}", "busy": f"busy {self.busy}",
            "deadline_ms": f"deadline {_exact(self.deadline_ms or 0)} ms",
        }  # fmt: skip
        papers = Settings(self.testbed)
        return [text for name, text in texts.items() if getattr(self, name) != getattr(papers, name)]


def _dashed(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._]+", "-", text).strip("-")


def _exact(value: float) -> str:
    short = f"{value:g}"
    return short if float(short) == value else repr(value)
