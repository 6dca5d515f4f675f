"""Many clients at one server for a long time, while processes are killed and frozen at random. Ten minutes.

Each client has a link of its own to the server. It begins a session, uploads a model in the order of its plan, raises
queries meanwhile, ends the session, and begins another. Every two seconds on average, a session's process, a link, a
client or the server is killed or frozen. The server itself is killed within the first quarter only, as leaks show only
in a process that lives on. Two clients are frozen but never killed, for the same reason. Strangers
(bench/strangers.py) come to the port all the time, with one attack after another.

The table says whether every query was answered with the bits of a local forward pass, whether memory grew between the
second quarter and the last, and what was left over. It is written to results/soak/, with the raw numbers.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import itertools
import json
import os
import random
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import strangers
import support

from ionn.client.connection import ping
from ionn.client.offloading import Offloading
from ionn.client.session import FAULTS, Client, Timeouts
from ionn.errors import IonnError
from ionn.model import inputs
from ionn.model.partial_net import extract
from ionn.testbed import runner
from ionn.testbed.live_session import LiveSession

RESULTS = Path(__file__).resolve().parent.parent / "results" / "soak"
# The two smallest of the paper's models, for clients in turn: eight clients share two cores with their server.
MODELS = ("mobilenet", "googlenet")
MBPS = 80.0
INPUTS = 2
# A client between two queries, and what one session of it lasts.
PAUSE_S = 0.5
SESSION_S = (15.0, 40.0)
# Faults are noticed, and sessions of clients that are gone are ended, while the next fault is being rolled.
PATIENCE = Timeouts(query_s=2.0, heartbeat_s=0.5, silence_s=3.0, connect_s=5.0)
LIMITS = ("--sessions", "40", "--sessions-per-client", "40", "--idle-s", "10", "--stall-s", "5")
SERVER = ("serve", "--bind", "tcp://127.0.0.1:0", *LIMITS)
UNKILLED = 2
FAULT_EVERY_S = 2.0
FROZEN_S = (0.5, 8.0)
AWAY_S = (0.2, 3.0)
SAMPLE_EVERY_S = 2.0
# When the server is struck, as shares of the time: killed twice, and once told to stop. A server removes what a killed
# one left behind, if that is older than ten seconds: with shorter turns, in runs of less than two minutes, it stays.
RESTARTS = ((0.02, "kill"), (0.12, "kill"), (0.23, "terminate"))
SETTLE_S = 60.0
FLAT = 0.05
# A session's process that has part of a model. Strangers' have less.
WITH_MODEL_MB = 30.0
# When the faults have ended: how long a session pings the server, without strangers and beside them.
PINGS_S = 10.0
# Every process that a run starts, directly or not, has this variable.
MARK = "IONN_SOAK"


# --- A client ---------------------------------------------------------------------------------------------------------


def be_client(address: str, model: str, path: str) -> None:
    """Hold sessions one after another, until SIGTERM, or until the process that started this one has ended. Writes a
    line to the file before each query, and one after it."""
    stopped = False
    parent = os.getppid()

    def stop(*_: object) -> None:
        nonlocal stopped
        stopped = True

    signal.signal(signal.SIGTERM, stop)
    subject = runner.prepare_live(model)
    network, graph, plan = support.paper_plan(model)
    stages = [partition.stages for partition in plan.partitions]
    partitions = [extract(network, part, subject.weights) for part in stages]
    photographs = inputs.query_inputs(network, seed=0)[:INPUTS]
    with open(path, "w", buffering=1, encoding="utf-8") as log:
        while not stopped:
            client = None
            with contextlib.suppress(*FAULTS):
                client = Client(address, timeouts=PATIENCE)
            offloading = Offloading(network, subject.net, graph, client, partitions, stages)
            session = LiveSession(offloading, subject.net, photographs)
            session.start_upload()
            # Without a server it tries again soon.
            ends = time.monotonic() + (0.0 if client is None else random.uniform(*SESSION_S))
            while True:
                log.write("raised\n")
                record = session.query()
                there = any(segment.where == "server" for segment in record.segments)
                log.write(json.dumps([record.bit_equal, there, bool(record.fallback)]) + "\n")
                stopped |= os.getppid() != parent
                if stopped or time.monotonic() > ends:
                    break
                time.sleep(PAUSE_S)
            if client is not None:
                client.close()


# --- The processes ----------------------------------------------------------------------------------------------------


class Process:
    """A process that can be killed and frozen. If it `announces`, its first line is its address."""

    def __init__(self, command: list[str], environment: dict[str, str], errors: Path, announces: bool = True) -> None:
        self.command = command
        self._environment = environment
        self._errors = errors
        self._announces = announces
        self.address = ""
        self.struck = False
        self.start()

    def start(self) -> None:
        with self._errors.open("a") as errors:
            self._child = subprocess.Popen(
                self.command, env=self._environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
                text=True,
            )  # fmt: skip
        self.process = psutil.Process(self._child.pid)
        self.struck = False
        if self._announces:
            assert self._child.stdout is not None
            readable, _, _ = select.select([self._child.stdout], [], [], SETTLE_S)
            self.address = self._child.stdout.readline().strip() if readable else ""
            if not self.address:
                raise IonnError(f"'{' '.join(self.command)}' did not start; see {self._errors}")

    def kill(self) -> None:
        self._child.kill()
        self._child.wait()

    def alive(self) -> bool:
        return self._child.poll() is None

    def stop(self) -> int:
        """End the process by SIGTERM, and return its exit code."""
        with contextlib.suppress(psutil.NoSuchProcess):
            self.process.resume()
        self._child.terminate()
        try:
            return self._child.wait(SETTLE_S)
        except subprocess.TimeoutExpired:
            self.kill()
            return -signal.SIGKILL


class ClientProcess(Process):
    """A client, whose processes write a file each. `killed` are the files of those that were killed."""

    def __init__(self, number: int, link: str, environment: dict[str, str], folder: Path) -> None:
        self._log = folder / f"client-{number}"
        self._turns = itertools.count()
        self._link = link
        self._model = MODELS[number % len(MODELS)]
        self.logs: list[Path] = []
        self.killed: set[Path] = set()
        super().__init__([], environment, folder / "clients.err", announces=False)

    def start(self) -> None:
        self.logs.append(self._log.with_suffix(f".{next(self._turns)}"))
        self.command = [sys.executable, __file__, "--client", self._link, self._model, str(self.logs[-1])]
        super().start()

    def kill(self) -> None:
        self.killed.add(self.logs[-1])
        super().kill()

    def at_server(self) -> bool:
        """Tell whether its latest answer came from the server."""
        answers = [line for line in _lines(self.logs[-1]) if line != "raised"]
        return bool(answers) and json.loads(answers[-1])[1:] == [True, False]


def _lines(path: Path) -> list[str]:
    """The whole lines of a file that may still be written."""
    return path.read_text().split("\n")[:-1] if path.exists() else []


@dataclasses.dataclass
class Queries:
    """The queries of a run, counted. `killed` are those that were under way when their client was killed."""

    raised: int = 0
    answered: int = 0
    at_server: int = 0
    fallback: int = 0
    unequal: int = 0
    killed: int = 0

    def add(self, log: Path, killed: bool) -> None:
        lines = _lines(log)
        answers = [json.loads(line) for line in lines if line != "raised"]
        self.raised += lines.count("raised")
        self.answered += len(answers)
        self.unequal += sum(equal is not True for equal, _, _ in answers)
        self.at_server += sum(there for _, there, _ in answers)
        self.fallback += sum(fallback for _, _, fallback in answers)
        self.killed += killed and lines[-1:] == ["raised"]

    @property
    def lost(self) -> int:
        return self.raised - self.answered - self.killed


# --- The run ----------------------------------------------------------------------------------------------------------


class Soak:
    """`folder` is where all processes have their temporary files; `logs` is for those of this script."""

    def __init__(self, clients: int, folder: Path, logs: Path, seed: int) -> None:
        self._random = random.Random(seed)
        self.mark = f"{os.getpid()}-{time.time():.0f}"
        self._environment = {**os.environ, MARK: self.mark, "TMPDIR": str(folder)}
        self._folder = folder
        self._logs = logs
        self._due: list[tuple[float, Callable[[], object]]] = []
        self.faults: Counter[str] = Counter()
        self.samples: list[dict[str, Any]] = []
        self.server = self._ionn(*SERVER)
        # Where it is when it starts again.
        self.server.command[self.server.command.index("tcp://127.0.0.1:0")] = self.server.address
        self.files_at_first = self._files_without_clients()
        self.links = [
            self._ionn("link", "--listen", "tcp://127.0.0.1:0", "--to", self.server.address, "--mbps", str(MBPS))
            for _ in range(clients)
        ]
        for link in self.links:
            link.command[link.command.index("tcp://127.0.0.1:0")] = link.address
        attack = [sys.executable, strangers.__file__, "--attack", strangers.WEATHER, self.server.address, "1e9"]
        self.strangers = Process(attack, self._environment, logs / "strangers.err", announces=False)
        self.clients = [
            ClientProcess(number, link.address, self._environment, logs) for number, link in enumerate(self.links)
        ]

    def _ionn(self, *arguments: str) -> Process:
        command = [sys.executable, "-m", "ionn", *arguments, "--stop-at-eof"]
        return Process(command, self._environment, self._logs / f"{arguments[0]}.err")

    def _files_without_clients(self) -> Counter[str]:
        """The files that the server's front process has open when its first client has come and gone."""
        Client(self.server.address, timeouts=Timeouts(connect_s=SETTLE_S)).close()
        self.wait(lambda: ping(self.server.address, timeout_s=SETTLE_S).sessions == 0, SETTLE_S)
        time.sleep(1.0)
        return self.open_files()

    def open_files(self) -> Counter[str]:
        """The number of files that the server's front process has open, by kind."""
        found: Counter[str] = Counter()
        for descriptor in Path(f"/proc/{self.server.process.pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                found[re.split("[:0-9-]", os.readlink(descriptor))[0]] += 1
        return found

    def sessions(self) -> list[psutil.Process]:
        """The sessions' processes, which are the children of the server's fork server."""
        found = []
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in self.server.process.children():
                found += [each for each in child.children() if each.status() != psutil.STATUS_ZOMBIE]
        return found

    def wait(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.1)
        return True

    def run(self, duration_s: float, progress: Callable[[int], object]) -> None:
        began = time.monotonic()
        for share, how in RESTARTS:
            self._due.append((began + share * duration_s, partial(self._restart_server, how)))
        fault_at = sample_at = began + FAULT_EVERY_S
        seconds = 0
        while (now := time.monotonic()) < began + duration_s:
            due = [action for at, action in self._due if at <= now]
            self._due = [(at, action) for at, action in self._due if at > now]
            for action in due:
                action()
            if now >= fault_at:
                self._strike()
                fault_at = now + self._random.expovariate(1 / FAULT_EVERY_S)
            if now >= sample_at:
                self._sample((now - began) / duration_s)
                sample_at = now + SAMPLE_EVERY_S
            progress(int(now - began) - seconds)
            seconds = int(now - began)
            time.sleep(0.05)
        for _, action in self._due:
            action()

    def _later(self, seconds: tuple[float, float], action: Callable[[], object]) -> None:
        self._due.append((time.monotonic() + self._random.uniform(*seconds), action))

    def _restart_server(self, how: str) -> None:
        self.faults[f"server: {how}"] += 1
        if self.server.struck:
            self.server.process.resume()
        if how == "kill":
            self.server.kill()
        else:
            self.server.stop()
        self.server.start()

    def _strike(self) -> None:
        what, how = self._random.choice(
            [("session", "kill"), ("session", "freeze"), ("link", "kill"), ("link", "freeze"), ("client", "freeze")] * 4
            + [("client", "kill")] * 2
            + [("server", "freeze")]
        )
        if what == "session":
            self._strike_session(how)
            return
        spared = UNKILLED if (what, how) == ("client", "kill") else 0
        pools: dict[str, Sequence[Process]] = {
            "link": self.links, "client": self.clients[spared:], "server": [self.server]
        }  # fmt: skip
        victims = [process for process in pools[what] if not process.struck and process.alive()]
        if not victims:
            return
        victim = self._random.choice(victims)
        self.faults[f"{what}: {how}"] += 1
        victim.struck = True
        if how == "kill":
            victim.kill()
            self._later(AWAY_S, victim.start)
        else:
            victim.process.suspend()
            self._later(FROZEN_S, lambda: self._thaw(victim))

    def _thaw(self, victim: Process) -> None:
        if victim.struck:
            victim.process.resume()
            victim.struck = False

    def _strike_session(self, how: str) -> None:
        sessions = self.sessions()
        if not sessions:
            return
        victim = self._random.choice(sessions)
        with contextlib.suppress(psutil.NoSuchProcess):
            if how == "kill":
                victim.kill()
            else:
                victim.suspend()
                self._later(FROZEN_S, lambda: _resume(victim))
            self.faults[f"session: {how}"] += 1

    def _sample(self, share: float) -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            found = [each.memory_full_info().uss / 1e6 for each in self.sessions()]
            sessions = [mb for mb in found if mb >= WITH_MODEL_MB]
            self.samples.append(
                {
                    "quarter": 1 + int(4 * share),
                    "front_mb": self.server.process.memory_full_info().uss / 1e6,
                    "sessions": len(sessions),
                    "session_mb": max(sessions, default=0.0),
                    "server_mb": sum(each.memory_full_info().pss for each in self._tree()) / 1e6,
                    "client_mb": [each.process.memory_full_info().uss / 1e6 for each in self.clients[:UNKILLED]],
                    "client_files": [each.process.num_fds() for each in self.clients[:UNKILLED]],
                    "front_files": self.server.process.num_fds(),
                }
            )

    def _tree(self) -> list[psutil.Process]:
        return [self.server.process, *self.server.process.children(recursive=True)]

    def left_processes(self) -> list[psutil.Process]:
        """All processes that this run has started and that are still there, by their environment."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get(MARK) == self.mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def connections(self) -> int:
        """The number of connections of the server and the links."""
        processes = [self.server.process, *(link.process for link in self.links)]
        return sum(
            connection.status != psutil.CONN_LISTEN
            for process in processes
            for connection in process.net_connections("tcp")
        )

    def left_files(self) -> list[Path]:
        return list(self._folder.rglob("*"))


def _resume(process: psutil.Process) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.resume()


# --- The table --------------------------------------------------------------------------------------------------------

Line = tuple[str, str, str, bool]  # what, wanted, found, met


def none_of(what: str, found: int) -> Line:
    return what, "0", str(found), found == 0


def flat(what: str, samples: list[dict[str, Any]], value: Callable[[dict[str, Any]], Any], share: float = 0.5) -> Line:
    """Whether the median of the last quarter (or the quantile `share`) is at most FLAT above that of the second. It is
    not the mean, as what a session holds depends on how much of its upload has arrived, and so on the faults."""

    def typical(quarter: int) -> float:
        return float(np.quantile([value(sample) for sample in samples if sample["quarter"] == quarter], share))

    second, last = typical(2), typical(4)
    change = last / second - 1
    found = f"{second:.1f} -> {last:.1f} MB ({change:+.1%})"
    return f"{what}, last quarter against the second", f"at most {FLAT:.0%} more", found, change <= FLAT


def per_session(sample: dict[str, Any]) -> float:
    return float(sample["server_mb"] / max(sample["sessions"], 1))


def _files(more: Counter[str]) -> Line:
    found = ", ".join(f"{count} {kind}" for kind, count in more.items()) or "0"
    return "open files of the server's front process, more than at first", "0", found, not more


def pings(run: Soak) -> tuple[float, float]:
    """The worst ping of a session in ms, when the faults have ended: without strangers and beside them."""
    pinger = strangers.Pinger(run.server.address)
    run.strangers.kill()
    quiet_ms, _ = pinger.pings_ms(PINGS_S)
    run.strangers.start()
    beside_ms, _ = pinger.pings_ms(PINGS_S)
    run.strangers.kill()
    pinger.close()
    return max(quiet_ms), max(beside_ms)


def soak(clients: int, duration_s: float, seed: int, logs: Path, progress: Callable[[int], object]) -> list[Line]:
    shared = set(os.listdir("/dev/shm"))
    with tempfile.TemporaryDirectory(prefix="ionn-soak-") as name:
        run = Soak(clients, Path(name), logs, seed)
        try:
            run.run(duration_s, progress)
            back = run.wait(lambda: all(client.at_server() for client in run.clients), SETTLE_S)
            quiet_ms, beside_ms = pings(run)
            ended = [client.stop() for client in run.clients]
            run.wait(lambda: ping(run.server.address, timeout_s=SETTLE_S).sessions == 0, SETTLE_S)
            run.wait(lambda: run.connections() == 0, SETTLE_S)
            sessions, connections = len(run.sessions()), run.connections()
            files = run.open_files() - run.files_at_first
            ended += [process.stop() for process in (*run.links, run.server)]
            run.wait(lambda: not run.left_processes(), SETTLE_S)
            left, left_files = run.left_processes(), run.left_files()
        finally:
            for process in run.left_processes():
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
        queries = Queries()
        for client in run.clients:
            for log in client.logs:
                queries.add(log, log in client.killed)
    said = sum(path.read_text().count("Traceback") for path in logs.glob("*.err"))
    samples = run.samples
    lines = [
        ("clients at the server again when the faults ended", "all", "all" if back else "not all", back),
        none_of("queries lost", queries.lost),
        none_of("outputs that differ from the local forward", queries.unequal),
        # What it holds of strangers' messages for a moment is not what it keeps.
        flat("memory of the server's front process, its lowest tenth", samples, lambda sample: sample["front_mb"], 0.1),
        flat("memory of the largest session's process", samples, lambda sample: sample["session_mb"]),
        flat("memory of all processes of the server, per session", samples, per_session),
        flat("memory of clients that live on", samples, lambda sample: np.mean(sample["client_mb"])),
        (
            "worst ping of a session beside strangers, less the worst one without",
            f"<= {strangers.LIMIT_MS:g} ms",
            f"{beside_ms:.0f} - {quiet_ms:.0f} ms",
            beside_ms - quiet_ms <= strangers.LIMIT_MS,
        ),
        none_of("sessions left when the clients have gone", sessions),
        none_of("connections left at server and links", connections),
        _files(files),
        none_of("processes left", len(left)),
        none_of("temporary files left", len(left_files)),
        none_of("shared memory left", len(set(os.listdir("/dev/shm")) - shared)),
        none_of("processes that ended with another code than 0 when told to stop", sum(code != 0 for code in ended)),
        none_of("tracebacks in the processes' messages", said),
    ]
    with (logs / "raw.jsonl").open("w", encoding="utf-8") as out:
        told = {"clients": clients, "seconds": duration_s, "seed": seed, "models": MODELS}
        for record in (told, dict(run.faults), dataclasses.asdict(queries), dict(files), *samples):
            out.write(json.dumps(record) + "\n")
    faults = ", ".join(f"{what} {count}" for what, count in sorted(run.faults.items()))
    (logs / "table.md").write_text("\n".join(_table(clients, duration_s, faults, queries, lines)) + "\n")
    return lines


def _table(clients: int, duration_s: float, faults: str, queries: Queries, lines: list[Line]) -> Iterator[str]:
    yield f"{clients} clients ({', '.join(MODELS)} in turn) for {duration_s / 60:g} minutes at one server."
    yield ""
    yield f"Faults: {faults}."
    yield ""
    yield (
        f"Queries: {queries.raised} raised, {queries.at_server} answered with the server's help, "
        f"{queries.fallback} while it was lost or failed them; {queries.killed} under way when their client was killed."
    )
    yield ""
    yield "| measure | wanted | found | |"
    yield "|---|---|---|---|"
    for what, wanted, found, met in lines:
        yield f"| {what} | {wanted} | {found} | {'' if met else 'missed'} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--client", nargs=3, metavar=("LINK", "MODEL", "LOG"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.client:
        be_client(*arguments.client)
        return 0
    duration_s = arguments.minutes * 60
    logs = RESULTS / f"{datetime.datetime.now():%Y%m%d-%H%M%S}"
    logs.mkdir(parents=True)
    with runner.bar(int(duration_s), "s", "soak") as progress:
        lines = soak(arguments.clients, duration_s, arguments.seed, logs, progress.update)
    print((logs / "table.md").read_text())
    print(f"written to {logs}")
    return 0 if all(met for *_, met in lines) else 1


if __name__ == "__main__":
    sys.exit(main())
