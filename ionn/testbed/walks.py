"""Files of walks: the servers, and when the client is in reach of each (docs/walks.md).

The client uses one server at a time: of those in reach, the one that came in reach last.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, TypeVar

import msgspec

from ionn.costs.loading import load_costs
from ionn.costs.models import Costs
from ionn.errors import InputError, did_you_mean, printable
from ionn.files import read_text
from ionn.model import zoo
from ionn.model.network import Network
from ionn.paper import CLIENT, MBPS, RECURSIVE, SERVER
from ionn.planning.graph import ExecutionGraph
from ionn.planning.plan import make_plan
from ionn.planning.planners import get_planner
from ionn.testbed.bandwidth import MBPS_MAX, MBPS_MIN, Bandwidth
from ionn.testbed.delay import DELAY_MAX_MS

# An hour, as a walk raises queries all the time.
WALK_MAX_S = 3600.0
# The most servers, and the most visits.
SERVERS_MAX, VISITS_MAX = 100, 1000

T = TypeVar("T")

_Seconds = Annotated[float, msgspec.Meta(ge=0, le=WALK_MAX_S)]
_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=40)]
_Text = Annotated[str, msgspec.Meta(min_length=1, max_length=1000)]


class _Server(msgspec.Struct, forbid_unknown_fields=True):
    name: _Name
    costs: _Text = SERVER
    mbps: Annotated[float, msgspec.Meta(ge=MBPS_MIN, le=MBPS_MAX)] | None = None
    bandwidth: _Text | None = None
    delay_ms: Annotated[float, msgspec.Meta(ge=0, le=DELAY_MAX_MS)] = 0.0
    store_gb: Annotated[float, msgspec.Meta(gt=0, le=1e6)] | None = None
    store_ms_per_mb: Annotated[float, msgspec.Meta(ge=0, le=1e6)] = 0.5
    has: Literal["nothing", "model"] = "nothing"


class _Visit(msgspec.Struct, forbid_unknown_fields=True):
    server: _Name
    from_s: _Seconds
    until_s: _Seconds
    told_s: _Seconds | None = None


class _Document(msgspec.Struct, forbid_unknown_fields=True):
    model: _Text
    seconds: Annotated[float, msgspec.Meta(gt=0, le=WALK_MAX_S)]
    servers: Annotated[list[_Server], msgspec.Meta(max_length=SERVERS_MAX)]
    visits: Annotated[list[_Visit], msgspec.Meta(max_length=VISITS_MAX)]
    client: _Text = CLIENT
    algorithm: _Text = RECURSIVE
    every_s: _Seconds = 0.0
    ahead: Annotated[float, msgspec.Meta(ge=0, le=1)] = 1.0


@dataclass(frozen=True)
class Server:
    """A server and the link to it, whose bandwidth begins anew at each visit. Its store has room for `store_bytes`
    (None: it has no store), and reads 10^6 bytes in `store_ms_per_mb`; when the walk begins, it has the whole model or
    nothing."""

    name: str
    costs: Costs
    bandwidth: Bandwidth
    delay_ms: float
    store_bytes: float | None
    store_ms_per_mb: float
    has_model: bool


class Visit(NamedTuple):
    """A time in which the client is in reach of a server, given by its number. The client is told of it at `told_s`;
    None if it is not told before."""

    server: int
    from_s: float
    until_s: float
    told_s: float | None


class Stretch(NamedTuple):
    """A part of a walk that the client spends at one server, given by its number, or at none."""

    server: int | None
    begin_s: float
    end_s: float


@dataclass(frozen=True)
class Walk:
    """A walk of `seconds`, with a client that has the costs `client`, runs `network` and plans by `algorithm`. It
    begins a query every `every_s`, or as soon as the one before has ended if that is later. It sends at most the share
    `ahead` of the model's weights ahead, each time that it is told of a server."""

    network: Network
    client: Costs
    algorithm: str
    seconds: float
    every_s: float
    ahead: float
    servers: tuple[Server, ...]
    visits: tuple[Visit, ...]

    @classmethod
    def load(cls, path: Path) -> Walk:
        """Read a walk. Raises InputError, one line that names the file and the key, if the file does not describe
        one."""
        text = read_text(path, "the walk")
        try:
            document = msgspec.convert(tomllib.loads(text), _Document)
        except msgspec.ValidationError as error:
            raise InputError(f"{path}: {_reason(str(error))}") from None
        except (ValueError, RecursionError) as error:  # an integer of too many digits is no TOMLDecodeError
            raise InputError(f"{path}: not TOML: {printable(str(error))}") from None
        try:
            return cls._from(document, path.parent)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error

    @classmethod
    def _from(cls, document: _Document, folder: Path) -> Walk:
        model = document.model
        network = _keyed("model", lambda: Network.load(model if model in zoo.definitions() else str(folder / model)))
        client = _keyed("client", lambda: _costs(document.client, folder, network))
        _keyed("algorithm", lambda: get_planner(document.algorithm))
        servers = tuple(
            _server(server, f"servers[{number}]", folder, network) for number, server in enumerate(document.servers)
        )
        if servers:  # a planner that refuses the network does so for every one
            graph = ExecutionGraph.from_network(network, client, servers[0].costs, MBPS)
            _keyed("algorithm", lambda: make_plan(network, graph, document.algorithm, MBPS))
        numbers = {server.name: number for number, server in enumerate(servers)}
        if len(numbers) < len(servers):
            raise InputError("servers: two of them have the same name")
        return cls(
            network,
            client,
            document.algorithm,
            document.seconds,
            document.every_s,
            document.ahead,
            servers,
            tuple(
                _visit(visit, f"visits[{number}]", numbers, document.seconds)
                for number, visit in enumerate(document.visits)
            ),
        )

    def stretches(self) -> Iterator[Stretch]:
        """The stretches of the whole walk, in order. A visit that another one interrupts becomes two of them."""
        times = sorted({0.0, self.seconds, *(at for visit in self.visits for at in (visit.from_s, visit.until_s))})
        visit: Visit | None = None
        begin_s = 0.0
        for at_s in times:
            there = max(
                (each for each in self.visits if each.from_s <= at_s < each.until_s),
                key=lambda each: (each.from_s, self.visits.index(each)),
                default=None,
            )
            if there is not visit or at_s == self.seconds:
                if at_s > begin_s:
                    yield Stretch(None if visit is None else visit.server, begin_s, at_s)
                visit, begin_s = there, at_s


def _reason(message: str) -> str:
    """A message of msgspec, with the key first."""
    found = re.fullmatch(r"(.*) - at `\$\.?(.*)`", message, re.DOTALL)
    return printable(f"{found[2]}: {found[1]}" if found else message)


def _keyed(key: str, make: Callable[[], T]) -> T:
    """What `make` returns. Its InputError is raised again with the key of the file in front."""
    try:
        return make()
    except InputError as error:
        raise InputError(f"{key}: {error}") from error


def _costs(spec: str, folder: Path, network: Network) -> Costs:
    """The costs of a device or file. Paths are relative to the walk's folder. Raises InputError if they do not fit the
    network."""
    costs = load_costs(spec, folder)
    costs.layer_ms(network)
    return costs


def _server(server: _Server, key: str, folder: Path, network: Network) -> Server:
    if printable(server.name) != server.name:
        raise InputError(f"{key}.name: {printable(server.name)!r} cannot be shown; rename it")
    file, mbps = server.bandwidth, server.mbps
    if file is not None and mbps is None:
        bandwidth = _keyed(f"{key}.bandwidth", lambda: Bandwidth.load(folder / file))
    elif file is None and mbps is not None:
        bandwidth = Bandwidth.constant(mbps)
    else:
        raise InputError(f"{key}: give either mbps or the file of a bandwidth")
    if server.has == "model" and server.store_gb is None:
        raise InputError(f"{key}.has: without store_gb it has no store to have the model in")
    return Server(
        server.name,
        _keyed(f"{key}.costs", lambda: _costs(server.costs, folder, network)),
        bandwidth,
        server.delay_ms,
        None if server.store_gb is None else server.store_gb * 1e9,
        server.store_ms_per_mb,
        server.has == "model",
    )


def _visit(visit: _Visit, key: str, numbers: dict[str, int], seconds: float) -> Visit:
    if visit.server not in numbers:
        raise InputError(
            f"{key}.server: there is no server {printable(visit.server)!r}{did_you_mean(visit.server, numbers)}"
        )
    if not visit.from_s < visit.until_s <= seconds:
        raise InputError(f"{key}.until_s: give a time after from_s, and at most the walk's {seconds:g} seconds")
    if visit.told_s is not None and visit.told_s > visit.from_s:
        raise InputError(f"{key}.told_s: the client is told before it is there, at from_s")
    return Visit(numbers[visit.server], visit.from_s, visit.until_s, visit.told_s)
