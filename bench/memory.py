"""What memory a client needs while it uploads AlexNet and answers queries, with each of two planners. About 45 s.

A client is a process of its own, either `ionn run` or a program with `ionn.connect`; its server is another process, and
loopback is not throttled. Its peak resident memory (VmHWM) counts. Then, if this machine allows cgroups, `ionn run` is
repeated in a cgroup with 700 MB and without swap, as a small board may have left.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import support

from ionn import paper
from ionn.model.caffemodel import weights_path
from ionn.testbed import processes

MODEL = "alexnet"
ALGORITHMS = (paper.RECURSIVE, paper.SLICED)
# A client's peak is to be at most so many times its caffemodel, and so much.
CAFFEMODELS = 1.6
BESIDE_BYTES = 150e6
CGROUP_BYTES = 700_000_000
# Of the measurements of a peak, which never falls.
_LOOK_S = 0.02

PROGRAM = """
import sys
import ionn
from ionn.model.inputs import query_inputs

model, address, algorithm, mbps = sys.argv[1:]
options = {"client": "odroid-xu4", "server": "gtx1080ti", "mbps": float(mbps), "algorithm": algorithm}
with ionn.connect(model, address, **options) as session:
    (data,) = query_inputs(session.network, seed=0, count=1)
    while not session.wait_uploaded(0):
        session.query(data)
    session.query(data)
"""


def commands(address: str, algorithm: str) -> dict[str, list[str]]:
    options = ["--algorithm", algorithm, "--mbps", str(paper.MBPS), "--server", paper.SERVER]
    return {
        "ionn run": [sys.executable, "-m", "ionn", "run", MODEL, "--connect", address, *options],
        "ionn.connect": [sys.executable, "-c", PROGRAM, MODEL, address, algorithm, str(paper.MBPS)],
    }


def peak_bytes(command: Sequence[str]) -> int:
    """The peak resident memory of a process, except for its last moments. Raises CalledProcessError if it fails."""
    peak = 0
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            status = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
            # A process that has just ended has none.
            peak = max([peak, *(1024 * int(li.split()[1]) for li in status.splitlines() if li.startswith("VmHWM:"))])
            time.sleep(_LOOK_S)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return peak


@contextlib.contextmanager
def limited(memory_bytes: int) -> Iterator[Path]:
    """A cgroup, of version 2 or 1, whose processes have so much memory together and no swap. Raises OSError if this
    machine does not allow that."""
    mounts = [line.split() for line in Path("/proc/mounts").read_text(encoding="utf-8").splitlines()]
    of_version_1 = [Path(mount[1]) for mount in mounts if mount[2] == "cgroup" and "memory" in mount[3].split(",")]
    of_version_2 = [Path(mount[1]) for mount in mounts if mount[2] == "cgroup2"]
    if of_version_1:
        parent, limits = of_version_1[0], {"memory.limit_in_bytes": memory_bytes, "memory.swappiness": 0}
    elif of_version_2:
        parent, limits = of_version_2[0], {"memory.max": memory_bytes, "memory.swap.max": 0}
        (parent / "cgroup.subtree_control").write_text("+memory")
    else:
        raise FileNotFoundError(2, "no cgroups with memory are mounted")
    folder = parent / "ionn-bench-memory"
    folder.mkdir()
    try:
        for name, value in limits.items():
            (folder / name).write_text(str(value))
        swap = folder / "memory.memsw.limit_in_bytes"  # of version 1: memory and swap together
        if swap.exists():
            swap.write_text(str(memory_bytes))
        yield folder
    finally:
        folder.rmdir()


def within(cgroup: Path, command: Sequence[str]) -> list[str]:
    return ["sh", "-c", 'echo $$ > "$0/cgroup.procs" && exec "$@"', str(cgroup), *command]


def completes(address: str, algorithm: str) -> bool:
    """Tell whether a run of the experiment ends well in the cgroup. Raises OSError as `limited` does."""
    with limited(CGROUP_BYTES) as cgroup:
        done = subprocess.run(
            within(cgroup, commands(address, algorithm)["ionn run"]), capture_output=True, text=True, check=False
        )
    print(done.stdout or done.stderr)
    return done.returncode == 0 and "bit-equal" in done.stdout


def rows() -> list[support.Row]:
    limit_bytes = CAFFEMODELS * weights_path(MODEL, None).stat().st_size + BESIDE_BYTES
    result: list[support.Row] = []
    with processes.process("serve", "--bind", "tcp://127.0.0.1:0") as address:
        for algorithm in ALGORITHMS:
            for name, command in commands(address, algorithm).items():
                peak = peak_bytes(command)
                measure = f"peak memory of a client, {name}, {MODEL}, {algorithm}"
                support.keep(measure, peak_bytes=peak, limit_bytes=limit_bytes)
                result.append((measure, limit_bytes / 1e6, peak / 1e6, "MB"))
        try:
            done = sum(completes(address, algorithm) for algorithm in ALGORITHMS)
        except OSError as error:
            print(f"not measured: {CGROUP_BYTES / 1e6:.0f} MB without swap: this machine allows no cgroup ({error})")
        else:
            measure = f"runs that complete in {CGROUP_BYTES / 1e6:.0f} MB without swap, at least"
            support.keep(measure, completed=done)
            result.append((measure, len(ALGORITHMS), done, ""))
    return result


if __name__ == "__main__":
    support.main(rows)
