"""Two machines in one: network namespaces of this kernel, joined by a cable whose rate the kernel itself keeps.

The namespaces belong to a user namespace, so no root is needed, nothing here can touch the network of the machine
itself, and they end with the processes that hold them, however this process ends. Linux only; iproute2 and util-linux.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

FRAME_BYTES = 1514
PAYLOAD_BYTES = 1448
"""Of a full frame: 14 bytes are Ethernet's, 20 IPv4's, 20 TCP's, and 12 the timestamps that Linux adds."""

# Ten frames may leave at once; a frame that would wait for more than 50 ms is dropped.
BURST_BYTES = 16 * 1024
QUEUE_MS = 50

_TOOLS = ("ip", "nsenter", "tc", "unshare")


class Unavailable(Exception):
    """This machine does not allow these namespaces; the message says why."""


@dataclass(frozen=True)
class Machine:
    """`host` is its address on the cable; a command that begins with `enter` runs in its network."""

    host: str
    enter: tuple[str, ...]

    def run(self, *command: str) -> str:
        """Run a command there until it ends, and return its output. Raises Unavailable if it fails."""
        done = subprocess.run([*self.enter, *command], capture_output=True, text=True, timeout=10, check=False)
        if done.returncode:
            raise Unavailable(f"{' '.join(command)}: {done.stderr.strip()}")
        return done.stdout


@contextlib.contextmanager
def two_machines(frame_mbps: float, congestion: str = "") -> Iterator[tuple[Machine, Machine]]:
    """Two machines whose cable carries `frame_mbps` * 10**6 bits of Ethernet frames per second each way (tc tbf).

    `congestion` is TCP's congestion control between them, by default this machine's. Raises Unavailable.
    """
    missing = [tool for tool in _TOOLS if shutil.which(tool) is None]
    if missing:
        raise Unavailable(f"not installed: {', '.join(missing)} (Debian: iproute2, util-linux)")
    with _namespace("unshare", "--map-root-user", "--net") as board_pid:
        user = ("nsenter", f"--target={board_pid}", "--user", "--preserve-credentials")
        with _namespace(*user, "unshare", "--net") as box_pid:
            board = Machine("10.76.75.1", (*user, "--net"))
            box = Machine("10.76.75.2", (*user, f"--net=/proc/{box_pid}/ns/net"))
            board.run("ip", "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", str(box_pid))
            for machine in (board, box):
                machine.run("ip", "address", "add", f"{machine.host}/24", "dev", "cable")
                machine.run("ip", "link", "set", "lo", "up")
                machine.run("ip", "link", "set", "cable", "up")
                shape = ("rate", f"{frame_mbps * 1e6:.0f}bit", "burst", str(BURST_BYTES), "latency", f"{QUEUE_MS}ms")
                machine.run("tc", "qdisc", "add", "dev", "cable", "root", "tbf", *shape)
                if congestion:
                    machine.run("ip", "route", "change", "10.76.75.0/24", "dev", "cable", "congctl", congestion)
            yield board, box


@contextlib.contextmanager
def _namespace(*unshare: str) -> Iterator[int]:
    """Start a process in the namespaces that a command makes; it ends with this one. Yields its pid."""
    command = [*unshare, "sh", "-c", "echo; exec cat"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        assert holder.stderr is not None
        if not holder.stdout.readline():
            raise Unavailable(f"{' '.join(unshare)}: {holder.stderr.read().decode().strip()}")
        yield holder.pid
        # Popen closes its standard input, so it ends.
