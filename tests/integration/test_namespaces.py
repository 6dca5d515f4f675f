"""Two machines, a server on one and a client on the other: namespaces whose cable the kernel shapes."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from namespaces import BURST_BYTES, Machine, Unavailable, two_machines

from ionn.model.comparison import TOLERANCE
from ionn.model.network import Network
from ionn.protocol.curve import make_keys
from ionn.testbed import processes

DOCS = Path(__file__).resolve().parents[2] / "docs" / "two-machines.md"
MBPS = 8.0
WAIT_S = 120.0
# A port that nobody listens at, and a host that is not there.
NO_SERVER = "tcp://10.76.75.2:1"
NO_HOST = "tcp://10.76.75.9:7675"


@pytest.fixture(scope="module")
def machines() -> Iterator[tuple[Machine, Machine]]:
    """A board and a box."""
    with contextlib.ExitStack() as stack:
        try:
            pair = stack.enter_context(two_machines(MBPS))
        except Unavailable as reason:
            pytest.skip(str(reason))
        yield pair


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the keys of the board, the box and a stranger."""
    folder = tmp_path_factory.mktemp("keys")
    for name in ("board", "box", "stranger"):
        make_keys(folder / name)
    return folder


@contextlib.contextmanager
def serving(box: Machine, keys: Path, *variables: str) -> Iterator[str]:
    """A server on the box that the board may connect to; `variables` are of its environment."""
    told = ("--key", f"{keys}/box.secret", "--allow", f"{keys}/board.public", "--costs", "gtx1080ti")
    with processes.process(
        "serve", "--bind", f"tcp://{box.host}:0", *told, within=(*box.enter, "env", *variables)
    ) as address:
        yield address


@pytest.fixture(scope="module")
def server(machines: tuple[Machine, Machine], keys: Path) -> Iterator[str]:
    with serving(machines[1], keys) as address:
        yield address


def ionn(machine: Machine, *arguments: object) -> subprocess.Popen[str]:
    command = [*machine.enter, sys.executable, "-m", "ionn", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run(board: Machine, server: str, keys: Path, tiny_files: Path) -> subprocess.Popen[str]:
    """A client on the board on which every layer takes 20 ms, so that offloading pays on a busy machine too."""
    slow = tiny_files.with_name("slow.txt")
    slow.write_text("".join(f"{layer.index} {layer.name} 20.0\n" for layer in Network.load(str(tiny_files)).layers))
    told = ("--key", keys / "board.secret", "--server-key", keys / "box.public")
    return ionn(board, "run", tiny_files, "--client", slow, "--mbps", MBPS, "--connect", server, *told, "--json")


def result(client: subprocess.Popen[str]) -> dict[str, Any]:
    stdout, stderr = client.communicate(timeout=WAIT_S)
    assert client.returncode == 0, stderr
    (row,) = json.loads(stdout)["runs"]
    assert row["connected"]
    assert row["partitions"] > 1
    assert row["feature_bytes"] > 0  # queries ran at the server
    return dict(row)


def sent_bytes(machine: Machine) -> int:
    (link,) = json.loads(machine.run("ip", "-json", "-statistics", "link", "show", "cable"))
    return int(link["stats64"]["tx"]["bytes"])


def test_the_commands_of_the_docs(machines: tuple[Machine, Machine], tiny_files: Path, tmp_path: Path) -> None:
    """Each in the folder of its machine, in order, on the small network and without the minute of calibration."""
    folders = {name: tmp_path / name for name in ("board", "box")}
    text = DOCS.read_text().replace("192.168.1.20", machines[1].host)
    text = text.replace(" alexnet ", f" {tiny_files} ").replace(" calibrate ", f" profile {tiny_files} ")
    text = text.replace(" ping ", " ping --timeout-s 60 ")
    for folder in folders.values():
        folder.mkdir()
    said = ""
    with contextlib.ExitStack() as running:
        for name, command in re.findall(r"^    (board|box)\$ (.+)$", text, re.MULTILINE):
            program, *arguments = shlex.split(command)
            machine = machines[list(folders).index(name)]
            within = ("env", f"--chdir={folders[name]}", *machine.enter)
            if program == "scp":
                shutil.copy(folders[name] / arguments[0], folders[arguments[1].rstrip(":")])
            elif arguments[0] == "serve":
                running.enter_context(processes.process(*arguments, within=within))
            else:
                whole = [*within, sys.executable, "-m", program, *arguments]
                done = subprocess.run(whole, capture_output=True, text=True, timeout=WAIT_S, check=False)
                assert done.returncode == 0, f"{command}: {done.stderr}"
                said += done.stdout

    assert ": ready, 0 sessions" in said
    assert ", not paced, server " in said
    assert re.search(r"  bit-equal$", said, re.MULTILINE)
    assert said.splitlines()[-1].startswith("outputs compared bit for bit: both compute with OpenBLAS ")


def test_a_session_between_two_machines(
    machines: tuple[Machine, Machine], server: str, keys: Path, tiny_files: Path
) -> None:
    board, _ = machines
    before = sent_bytes(board)
    row = result(run(board, server, keys, tiny_files))

    assert row["bit_equal"]
    # The weights went over the cable, and not faster than the kernel lets them.
    weight_bytes = tiny_files.with_suffix(".caffemodel").stat().st_size
    assert sent_bytes(board) - before > weight_bytes
    assert row["upload_s"] > (weight_bytes - BURST_BYTES) * 8 / (MBPS * 1e6)


def test_a_cable_that_is_pulled_for_a_moment(
    machines: tuple[Machine, Machine], server: str, keys: Path, tiny_files: Path
) -> None:
    board, box = machines
    begun = sent_bytes(board) + 400_000  # a third of the weights
    client = run(board, server, keys, tiny_files)
    deadline_s = time.monotonic() + WAIT_S
    while sent_bytes(board) < begun and time.monotonic() < deadline_s:
        time.sleep(0.02)
    box.run("ip", "link", "set", "cable", "down")
    time.sleep(0.5)
    box.run("ip", "link", "set", "cable", "up")

    assert result(client)["bit_equal"]


@pytest.mark.skipif(
    platform.machine() != "x86_64" or os.environ.get("OPENBLAS_CORETYPE") == "Nehalem",
    reason="Nehalem's are no other kernels here",
)
def test_machines_of_different_kinds(machines: tuple[Machine, Machine], keys: Path, tiny_files: Path) -> None:
    """Their results differ in the last bits; the run says by how much, and that it may be so."""
    board, box = machines
    with serving(box, keys, "OPENBLAS_CORETYPE=Nehalem") as server:
        row = result(run(board, server, keys, tiny_files))

    assert not row["bit_equal"]
    assert 0 < row["difference"] < 1e-5
    assert row["right"]
    assert row["output_check"]["tolerance"] == TOLERANCE
    assert [each["kernels"] for each in row["output_check"]["servers"]] == ["Nehalem"]


@pytest.mark.parametrize(
    ("address", "key", "server_key", "says"),
    [
        (None, None, None, "takes only clients with keys; give --key, --server-key"),
        (None, "stranger.secret", "box.public", "does not allow this client's key; put it on its list"),
        (None, "board.secret", "stranger.public", "the server has another key than the one given; check --server-key"),
        (NO_SERVER, "board.secret", "box.public", "no ionn server there"),
        (NO_HOST, "board.secret", "box.public", "has not answered for 2 s"),
    ],
)
def test_what_is_wrong_is_said(
    machines: tuple[Machine, Machine],
    server: str,
    keys: Path,
    address: str | None,
    key: str | None,
    server_key: str | None,
    says: str,
) -> None:
    told = [] if key is None else ["--key", keys / key, "--server-key", f"{keys}/{server_key}"]
    patience = [] if address == NO_HOST else ["--timeout-s", "60"]
    client = ionn(machines[0], "ping", address or server, *told, *patience)
    _, stderr = client.communicate(timeout=WAIT_S)

    assert client.returncode == 2
    assert stderr.count("\n") == 1
    assert says in stderr


def test_a_server_for_other_machines_needs_keys(machines: tuple[Machine, Machine]) -> None:
    client = ionn(machines[1], "serve", "--bind", "tcp://0.0.0.0:0")
    _, stderr = client.communicate(timeout=WAIT_S)

    assert client.returncode == 2
    assert "a public address needs keys" in stderr
    assert "--insecure" in stderr
