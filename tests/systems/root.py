"""A Debian of its own in a folder, and commands that run in it.

debootstrap makes the smallest Debian of a release and an architecture once per user, and each root is a copy of that.
Where the architecture is another machine's, its programs run in qemu's user mode (the package qemu-user-static), which
the kernel starts by binfmt_misc.

A command runs in a chroot with namespaces of its own for mounts and process ids, so that whatever it mounted or started
ends with it, and it ends with this process. The network is this machine's.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from ionn.files import locked
from tests.systems.script import WITH_THIS_PROCESS, SetupError, StepError, scratch_folder

# What says how packages are fetched here, which holds in the root too.
_NETWORK_VARIABLES = ("PIP_CERT", "PIP_INDEX_URL", "SSL_CERT_FILE", "http_proxy", "https_proxy", "no_proxy")
# Those that name this machine's certificates. They are no file of the root's: Debian's ca-certificates could not
# replace one that is mounted where it has its own.
_CERTIFICATE_VARIABLES = ("PIP_CERT", "SSL_CERT_FILE")
_CERTIFICATES = "/run/this-machine"

_UNSHARE = ("unshare", "--mount", "--pid", "--fork", "--kill-child")
# $1 is the root, then pairs of a source and a target up to `--`, then the command. /proc is mounted before.
_ENTER = """
root=$1; shift
mount --rbind /dev "$root/dev"
while [ "$1" != -- ]; do
  if [ -d "$1" ]; then mkdir -p "$root$2"; else mkdir -p "$(dirname "$root$2")"; touch "$root$2"; fi
  mount --bind "$1" "$root$2"
  shift 2
done
shift
"""
# Process 1 of a namespace gets no signal that it does not handle, not even from itself: a program that qemu ends by
# such a signal would hang. And it has to wait for orphans, which a shell does, and make does not.
_AS_CHILD, _AS_FIRST = '"$@" || exit $?', 'exec "$@"'


# Debian's name of an architecture, and the one that Linux, compilers and qemu have for it.
MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}
_BINFMT = Path("/proc/sys/fs/binfmt_misc")


class Root:
    """The Debian in `folder`. `binds` are files and folders of this machine, and where they are in there. `output` is
    where the output of its commands goes, by default where this program's goes."""

    def __init__(self, folder: Path, binds: Sequence[tuple[Path, str]] = (), output: TextIO | None = None) -> None:
        self.folder = folder
        self.output = output
        self._binds = list(binds)
        self._network = {name: os.environ[name] for name in _NETWORK_VARIABLES if name in os.environ}
        files = {"/etc/resolv.conf": "/etc/resolv.conf"}
        for name in _CERTIFICATE_VARIABLES:
            if name in self._network:
                files[self._network[name]] = self._network[name] = f"{_CERTIFICATES}{self._network[name]}"
        self._binds += [(Path(file), target) for file, target in files.items() if Path(file).exists()]

    def argv(
        self,
        *command: str | Path,
        user: str = "root",
        cwd: str = "/",
        env: Mapping[str, str] | None = None,
        is_first: bool = False,
    ) -> list[str]:
        """What to run on this machine for a command to run in the root, as a user that the root has. `is_first`: it is
        process 1 there, as a container's command is."""
        home = "/root" if user == "root" else f"/home/{user}"
        variables = {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": home,
            "LANG": "C.UTF-8",
            "DEBIAN_FRONTEND": "noninteractive",
            **self._network,
            **(env or {}),
        }
        return [
            *(*WITH_THIS_PROCESS, *_UNSHARE, f"--mount-proc={self.folder / 'proc'}"),
            *("sh", "-euc", _ENTER + (_AS_FIRST if is_first else _AS_CHILD), "enter", str(self.folder)),
            *(str(each) for bind in self._binds for each in bind),
            *("--", "chroot", f"--userspec={user}", str(self.folder), "env", "-i"),
            *(f"{name}={value}" for name, value in variables.items()),
            # A process that becomes another user's is no longer killed with its parent.
            *(WITH_THIS_PROCESS if is_first else ()),
            *("sh", "-c", f'cd {shlex.quote(cwd)} && exec "$@"', "sh", *map(str, command)),
        ]

    def run(
        self,
        *command: str | Path,
        user: str = "root",
        cwd: str = "/",
        env: Mapping[str, str] | None = None,
    ) -> None:
        """Run a command in there, its output where that of the root's commands goes. Raises StepError if it fails."""
        argv = self.argv(*command, user=user, cwd=cwd, env=env)
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=self.output, stderr=self.output, check=False)
        if done.returncode:
            raise StepError(f"'{' '.join(map(str, command))}' failed with exit code {done.returncode}")

    def install(self, *packages: str) -> None:
        """Install packages of Debian. What is not yet on the disk when the power fails is no loss here."""
        self.run("apt-get", "update", "-qq")
        quick = "--option=Dpkg::Options::=--force-unsafe-io"
        self.run("apt-get", "install", "-qq", "--yes", "--no-install-recommends", quick, *packages)


def cache_folder() -> Path:
    """Where ionn's files are that can be made again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "ionn")


def _base(release: str, architecture: str) -> Path:
    """The folder that roots are copies of: debootstrap's, made once."""
    base = cache_folder() / "roots" / f"{release}-{architecture}"
    if not base.exists():
        with locked(base.parent):
            if not base.exists():  # else another process has made it meanwhile
                _make_base(base, release, architecture)
    if not (base / "usr/bin/apt-get").exists():
        raise SetupError(f"{base} is damaged: remove that folder, and it is made again")
    return base


def _make_base(base: Path, release: str, architecture: str) -> None:
    with scratch_folder("root-", base.parent) as scratch:
        made = scratch / "root"
        command = ["debootstrap", "--variant=minbase", f"--arch={architecture}", release, str(made)]
        with open(base.parent / f"{base.name}.log", "w") as log:
            # It mounts /proc in there. That must end with it, however it ends: the folder is removed then.
            apart = [*WITH_THIS_PROCESS, *_UNSHARE, *command]
            if subprocess.run(apart, stdin=subprocess.DEVNULL, stdout=log, stderr=log).returncode:
                raise StepError(f"'{' '.join(command[:-1])}' failed; its output is in {log.name}")
        made.rename(base)


def own_architecture() -> str:
    """What Debian calls this machine's architecture. Raises SetupError for one that no root is made on."""
    for architecture, machine in MACHINES.items():
        if machine == platform.machine():
            return architecture
    raise SetupError(f"no roots are made on {platform.machine()}, only on {' and '.join(MACHINES.values())}")


def check_programs_run(architecture: str, binfmt: Path = _BINFMT) -> None:
    """Raise SetupError if this machine cannot run the programs of a Debian architecture.

    Those of another machine take an entry of binfmt_misc (mounted at `binfmt`) that names qemu's interpreter, with the
    flag F: the kernel has then opened the interpreter already, so that it is found in a root that lacks it.
    """
    machine = MACHINES[architecture]
    if machine == platform.machine():
        return
    name = f"qemu-{machine}"
    try:
        entry = (binfmt / name).read_text().splitlines()
    except OSError:
        entry = []
    if "enabled" in entry and any(line.startswith("flags:") and "F" in line for line in entry):
        return
    raise SetupError(
        f"programs for {architecture} cannot run here: as root 'apt-get install qemu-user-static binfmt-support', then "
        f"'mount -t binfmt_misc binfmt_misc {_BINFMT}' unless it is mounted, and 'update-binfmts --enable {name}'"
    )


def check_machine(architecture: str) -> None:
    """Raise SetupError where this process cannot make a Debian of an architecture."""
    if os.geteuid() != 0:
        raise SetupError("making another Debian takes root's rights: run this as root")
    if shutil.which("debootstrap") is None:
        raise SetupError("debootstrap is missing: install the packages debootstrap and qemu-user-static")
    check_programs_run(architecture)


@contextmanager
def debian(
    release: str, architecture: str, binds: Sequence[tuple[Path, str]] = (), output: TextIO | None = None
) -> Iterator[Root]:
    """A new root, which is removed in the end, with all processes that this one has started. Raises SetupError where
    this machine makes none."""
    check_machine(architecture)
    base = _base(release, architecture)
    with scratch_folder("ionn-root-") as scratch:
        copy = ["cp", "--archive", "--reflink=auto", str(base), str(scratch / "root")]
        copied = subprocess.run(copy, stderr=subprocess.PIPE, text=True, check=False)
        if copied.returncode:  # where the disk is full, it says so of each file
            raise StepError(f"{base} could not be copied: {copied.stderr.partition(chr(10))[0]}")
        yield Root(scratch / "root", binds, output)
