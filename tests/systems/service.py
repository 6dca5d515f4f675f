"""deploy/ionn.service under systemd itself: `python -m tests.systems service`, as root, after `make wheels`.

A Debian of this machine's release gets the wheels in dist/ as docs/deploying.md says, and systemd is started in it as
process 1: in namespaces of its own for mounts, processes, cgroups and the network, which only has a loopback. The unit
is looked at by systemd-analyze and started. A phone outside asks the server and classifies by it; the service's status
tells what holds for its processes; a killed server is started again; it is stopped.

What this kernel or machine does not enforce is printed as `not enforced here`. Exits 1 where something fails.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ionn.libraries import caffe_packages
from ionn.testbed.processes import uninterrupted
from tests.systems.root import Root, check_machine, debian
from tests.systems.script import WITH_THIS_PROCESS, SetupError, StepError, scratch_folder

ROOT = Path(__file__).resolve().parents[2]
UNIT = ROOT / "deploy" / "ionn.service"
ADDRESS = "tcp://127.0.0.1:7675"
EXPOSURE_MAX = 1.5
BOOT_S = 120.0
START_S = 60.0

# $1 is the root. systemd wants it to be a mount, with devices, and cgroups of its own.
_BOOT = """
root=$1
ip link set lo up
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
mount -t sysfs -o ro sysfs "$root/sys"
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
mount -t tmpfs -o mode=755 tmpfs "$root/dev"
for device in null zero full random urandom tty; do
  touch "$root/dev/$device"
  mount --bind "/dev/$device" "$root/dev/$device"
done
mkdir "$root/dev/pts" "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
mount -t tmpfs -o mode=755 tmpfs "$root/run"
cd "$root"
mkdir -p mnt/before
pivot_root . mnt/before
umount --lazy /mnt/before
mount --make-rshared /
exec env -i container=ionn PATH=/usr/sbin:/usr/bin:/sbin:/bin \
  /lib/systemd/systemd --log-target=journal --show-status=no --unit=multi-user.target
"""


# What whoever takes over the server would try, as the service's user with what holds for the service: a name, and a
# statement that raises OSError where it is refused.
_PROBES = {
    "to write below /etc": "open('/etc/probe', 'w')",
    "to write into the program": "open('/opt/ionn/probe', 'w')",
    "to read the key's file": "open('/etc/ionn/server.secret')",
    "to list a home": "os.listdir('/root')",
    "to see other users' processes": "os.listdir('/proc/1')",
    "to open the kernel's log": "open('/dev/kmsg')",
    "to set the host's name": "socket.sethostname('probe')",
    "to write to /proc/sys": "open('/proc/sys/kernel/core_pattern', 'w')",
    "a cgroup of its own": "os.mkdir('/sys/fs/cgroup/probe')",
    "to listen at another port": "socket.create_server(('127.0.0.1', 7676))",
    "a netlink socket": "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)",
    "a packet socket": "socket.socket(socket.AF_PACKET, socket.SOCK_RAW)",
    "memory to write and execute": "mmap.mmap(-1, 4096, prot=mmap.PROT_WRITE | mmap.PROT_EXEC)",
    "to make memory executable": "call(libc.mprotect, address(), 4096, mmap.PROT_READ | mmap.PROT_EXEC)",
    "a namespace": "call(libc.unshare, 0x10000000)",
    "to mount": "call(libc.mount, b'probe', b'/tmp', b'tmpfs', 0, None)",
    "another personality": "call(libc.personality, 0x40000)",
    "a real-time priority": "os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))",
    "a higher priority": "os.setpriority(os.PRIO_PROCESS, 0, -5)",
    "a setuid program": "os.chmod(made('probe'), 0o4755)",
    "to execute what it wrote": "subprocess.run([made('probe')])",
    "to execute it in /tmp": "subprocess.run([shutil.copy(made('probe'), '/tmp')])",
    "to trace a process": "call(libc.ptrace, 16, os.getppid(), 0, 0)",
    "to become root": "os.setuid(0)",
}
# Of these, what takes a systemd that is built with its BPF framework, as Debian 12's is not.
_BPF_PROBES = ("to listen at another port",)
# Without which the server would not do.
_NEEDS = {
    "to write to its own folder": "open(made('kept'), 'w')",
    "to listen at its port": "socket.create_server(('127.0.0.1', 7675))",
    "a lower priority": "os.setpriority(os.PRIO_PROCESS, 0, min(19, os.getpriority(os.PRIO_PROCESS, 0) + 5))",
}
_PROBE = """
import ctypes, json, mmap, os, shutil, socket, subprocess, sys
libc = ctypes.CDLL(None, use_errno=True)
def call(function, *arguments):
    if function(*arguments) == -1:
        raise OSError(ctypes.get_errno(), "refused")
def address():
    libc.mmap.restype = ctypes.c_void_p
    return ctypes.c_void_p(libc.mmap(None, 4096, 3, 0x22, -1, 0))
def made(name):
    path = os.path.join(os.environ["STATE_DIRECTORY"], name)
    with open(path, "w") as file:
        file.write("#!/bin/sh\\n")
    os.chmod(path, 0o700)
    return path
refused = {}
for name, statement in json.loads(sys.argv[1]).items():
    try:
        exec(statement)
    except OSError as error:
        refused[name] = os.strerror(error.errno)
print("probed:" + json.dumps(refused))
"""


@contextlib.contextmanager
def cgroup() -> Iterator[Path]:
    """A new cgroup of version 2, which is removed in the end with those that were made in it."""
    (mounted,) = re.findall(r"^cgroup2? (\S+) cgroup2 ", Path("/proc/mounts").read_text(), re.MULTILINE)[:1] or [""]
    if not mounted:
        raise StepError("no cgroups of version 2 are mounted here")
    folder: Path | None = None
    try:
        with uninterrupted():
            folder = Path(tempfile.mkdtemp(prefix="ionn-", dir=mounted))
        yield folder
    finally:
        if folder is not None:
            remove_cgroup(folder)


def remove_cgroup(folder: Path) -> None:
    """Remove a cgroup with those that were made in it, and end what is in them."""
    (folder / "cgroup.kill").write_text("1")
    deadline = time.monotonic() + 10
    while "populated 1" in (folder / "cgroup.events").read_text() and time.monotonic() < deadline:
        time.sleep(0.05)
    for below, _, _ in os.walk(folder, topdown=False):
        os.rmdir(below)


@dataclass(frozen=True)
class Machine:
    """A root in which systemd runs, as process `pid` of this machine."""

    pid: int

    def argv(self, *command: str) -> list[str]:
        """What to run here for a command to run there."""
        return ["nsenter", f"--target={self.pid}", "--mount", "--pid", "--net", "--uts", "--ipc", "--cgroup", *command]

    def says(self, *command: str, check: bool = True) -> str:
        """What a command there prints. Raises StepError if it fails and that is `check`ed."""
        done = subprocess.run(self.argv(*command), capture_output=True, text=True, timeout=120, check=False)
        if check and done.returncode:
            raise StepError(f"{' '.join(command)}: {done.stdout}{done.stderr}")
        return (done.stdout or done.stderr).strip()

    def is_system_running(self) -> str:
        return self.says("systemctl", "is-system-running", check=False)


@contextlib.contextmanager
def booted(root: Root, log: Path) -> Iterator[Machine]:
    """systemd in a root, when it has started what it starts."""
    with cgroup() as group, log.open("w") as said:
        alone = ("unshare", "--mount", "--pid", "--cgroup", "--uts", "--ipc", "--net", "--fork", "--kill-child")
        entered = ("sh", "-euc", 'echo $$ >"$1/cgroup.procs"; shift; exec "$@"', "enter", str(group))
        process = subprocess.Popen(
            [*WITH_THIS_PROCESS, *entered, *alone, "sh", "-euc", _BOOT, "boot", str(root.folder)],
            stdin=subprocess.DEVNULL, stdout=said, stderr=said,
        )  # fmt: skip
        try:
            deadline = time.monotonic() + BOOT_S
            while time.monotonic() < deadline and process.poll() is None:
                children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
                if children and Machine(int(children[0])).is_system_running() in ("running", "degraded"):
                    yield Machine(int(children[0]))
                    return
                time.sleep(0.5)
            raise StepError(f"systemd did not start here:\n{log.read_text()}")
        finally:
            process.kill()
            process.wait()


def install(root: Root) -> None:
    """What docs/deploying.md has an administrator do, but for the keys."""
    root.install("systemd", "libseccomp2", "python3-venv", *caffe_packages())
    root.run("python3", "-m", "venv", "/opt/ionn")
    root.run("sh", "-c", "/opt/ionn/bin/pip install --quiet --disable-pip-version-check /dist/*.whl")
    (root.folder / "etc" / "systemd" / "system" / UNIT.name).write_text(UNIT.read_text())


def ionn(*arguments: str, enter: tuple[str, ...] = ()) -> str:
    """What this checkout's ionn prints. Raises StepError if it fails."""
    command = [*enter, sys.executable, "-m", "ionn", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        raise StepError(f"ionn {' '.join(arguments)}: {done.stderr}")
    return done.stdout.strip()


def analyze(machine: Machine) -> None:
    """What systemd-analyze says of the unit."""
    verified = machine.says("systemd-analyze", "verify", f"/etc/systemd/system/{UNIT.name}")
    print(f"systemd-analyze verify: {verified or 'nothing to say'}")
    security = machine.says("systemd-analyze", "security", "--no-pager", UNIT.name)
    found = re.search(r"Overall exposure level for \S+: ([\d.]+)", security)
    for line in security.splitlines():
        if line.startswith("✗"):
            print(f"  {line.rstrip()}")
    if found is None or float(found[1]) > EXPOSURE_MAX:
        raise StepError(f"systemd-analyze security: not the exposure that is wanted\n{security}")
    print(f"systemd-analyze security: exposure {found[1]}")


def wait_until_it_answers(enter: tuple[str, ...], keys: tuple[str, ...]) -> str:
    """What `ionn ping` prints, when the server answers."""
    deadline = time.monotonic() + START_S
    while True:
        try:
            return ionn("ping", ADDRESS, *keys, enter=enter)
        except StepError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


def check(machine: Machine, keys: tuple[str, ...]) -> None:
    """Start the service, use it, kill it, and stop it."""
    enter = ("nsenter", f"--net=/proc/{machine.pid}/ns/net")
    try:
        machine.says("systemctl", "start", "ionn")
        said = wait_until_it_answers(enter, keys)
    except StepError as error:
        raise StepError(f"{error}\n{machine.says('journalctl', '--no-pager', '-u', 'ionn', check=False)}") from None
    print(f"ionn ping: {said}")
    if "not sandboxed" in said:
        raise StepError("the server's own sandbox does not work within the unit's restrictions")
    classify = ("classify", "chelsea", "--model", "mobilenet", "--client", "odroid-xu4", "--mbps", "80")
    lines = ionn(*classify, "--connect", ADDRESS, "--coding", "none", *keys, enter=enter).splitlines()
    stages = [line for line in lines if line.startswith("server ")]
    (summary,) = (line for line in lines if line.startswith("mobilenet: "))
    print(f"ionn classify: {summary}; the server computed {len(stages)} stages")
    if not stages:
        raise StepError("the server computed nothing")

    properties = ("MainPID", "NRestarts", "MemoryCurrent", "TasksCurrent")
    before = machine.says("systemctl", "show", "--property", ",".join(properties), "ionn").splitlines()
    print("systemctl show:", *before)
    main = dict(line.split("=", 1) for line in before)["MainPID"]
    for line in machine.says("cat", f"/proc/{main}/status").splitlines():
        if line.startswith(("Uid", "Cap", "NoNewPrivs", "Seccomp:", "Seccomp_filters")):
            print("  ", " ".join(line.split()))
    machine.says("systemctl", "kill", "--signal=KILL", "--kill-whom=main", "ionn")
    print(f"after systemctl kill --signal=KILL: {wait_until_it_answers(enter, keys)}")
    print("systemctl show:", machine.says("systemctl", "show", "--property", "NRestarts", "ionn"))
    machine.says("systemctl", "stop", "ionn")
    for line in machine.says("systemctl", "show", "--property", "Result,ExecMainStatus,ActiveState", "ionn").split():
        print("after systemctl stop:", line)
        if line not in ("Result=success", "ExecMainStatus=0", "ActiveState=inactive"):
            raise StepError(machine.says("journalctl", "--no-pager", "-u", "ionn", check=False))


def probe(machine: Machine) -> None:
    """Run a program in place of the server, which tries what the unit has to refuse."""
    unit = Path("/etc/systemd/system") / f"{UNIT.name}.d"
    inside = Path(f"/proc/{machine.pid}/root", str(unit)[1:])
    inside.mkdir()
    (inside / "probe.py").write_text(_PROBE)
    (inside / "probe.json").write_text(json.dumps({**_PROBES, **_NEEDS}))
    program = f"/bin/sh -c 'exec /opt/ionn/bin/python {unit}/probe.py \"$$(cat {unit}/probe.json)\"'"
    (inside / "probe.conf").write_text(f"[Service]\nType=oneshot\nRestart=no\nExecStart=\nExecStart={program}\n")
    machine.says("systemctl", "daemon-reload")
    machine.says("systemctl", "start", "ionn", check=False)
    said = machine.says("journalctl", "--no-pager", "--output=cat", "-u", "ionn")
    found = re.search("^probed:(.*)$", said, re.MULTILINE)
    if found is None:
        raise StepError(f"what the service may do could not be probed:\n{said}")
    refused = json.loads(found[1])
    for name in (*_PROBES, *_NEEDS):
        print(f"  {name}: {refused.get(name, 'allowed')}")
    wanted = set(_PROBES)
    if "+BPF_FRAMEWORK" not in machine.says("systemctl", "--version"):
        wanted -= set(_BPF_PROBES)
        print(f"not enforced by this systemd, which has no BPF framework: {', '.join(_BPF_PROBES)}")
    controllers = Path(f"/proc/{machine.pid}/root/sys/fs/cgroup/cgroup.controllers").read_text().split()
    if not {"memory", "pids"} <= set(controllers):
        print("not enforced here, where cgroups of version 2 lack the controllers: MemoryMax, TasksMax")
    if wrong := (wanted - set(refused)) | (set(_NEEDS) & set(refused)):
        raise StepError(f"not as the unit has to have it: {', '.join(sorted(wrong))}")


def main() -> None:
    check_machine("amd64")
    release = platform.freedesktop_os_release()["VERSION_CODENAME"]
    dist = ROOT / "dist"
    if len(list(dist.glob("*.whl"))) != 2 or not list(dist.glob(f"caffe-*-linux_{platform.machine()}.whl")):
        raise SetupError("dist/ lacks the two wheels for this machine; 'make wheels' builds them")
    with scratch_folder("ionn-service-") as scratch, debian(release, "amd64") as root:
        install(Root(root.folder, [(dist, "/dist")]))
        folder = root.folder / "etc" / "ionn"
        folder.mkdir(mode=0o700)
        phone = scratch / "phone"
        ionn("keygen", str(folder / "server"))
        ionn("keygen", str(phone))
        (folder / "clients").write_text(phone.with_suffix(".public").read_text())
        ionn("profile", "mobilenet", "--runs", "1", "--save", str(folder / "costs.json"))
        keys = ("--key", str(phone.with_suffix(".secret")), "--server-key", str(folder / "server.public"))
        with booted(root, scratch / "log") as machine:
            print("systemd:", machine.says("systemctl", "--version").splitlines()[0], flush=True)
            analyze(machine)
            check(machine, keys)
            probe(machine)
            for line in (scratch / "log").read_text().splitlines():
                if UNIT.name in line:
                    print("systemd says:", line)
