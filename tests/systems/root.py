"""A Debian of its own in a folder, and commands that run in it.

debootstrap makes the smallest Debian of a release and an architecture once per user, and each root is a copy of that.
Where the architecture is another machine's, its programs run in qemu's user mode (the package qemu-user-static), which
the kernel starts by binfmt_misc.

A command runs in a chroot with namespaces of its own for mounts and process ids, so that whatever it mounted or started
ends with it. The network is this machine's.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

# What says how packages are fetched here, which holds in the root too.
_NETWORK_VARIABLES = ("PIP_CERT", "PIP_INDEX_URL", "SSL_CERT_FILE", "http_proxy", "https_proxy", "no_proxy")
# Those that name this machine's certificates. The root has them elsewhere: Debian's ca-certificates could not write its
# own where others are mounted.
_CERTIFICATE_VARIABLES = ("PIP_CERT", "SSL_CERT_FILE")
_CERTIFICATES = "/run/this-machine"

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
exec "$@"
"""


class RootError(Exception):
    """Why there is no root, in one line."""


class Root:
    """The Debian in `folder`. `binds` are files and folders of this machine, and where they are in there."""

    def __init__(self, folder: Path, binds: Sequence[tuple[Path, str]] = ()) -> None:
        self.folder = folder
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
    ) -> list[str]:
        """What to run on this machine for a command to run in the root, as a user that the root has."""
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
            *("unshare", "--mount", "--pid", "--fork", "--kill-child", f"--mount-proc={self.folder / 'proc'}"),
            *("sh", "-euc", _ENTER, "enter", str(self.folder)),
            *(str(each) for bind in self._binds for each in bind),
            *("--", "chroot", f"--userspec={user}", str(self.folder), "env", "-i"),
            *(f"{name}={value}" for name, value in variables.items()),
            *("sh", "-c", f'cd {shlex.quote(cwd)} && exec "$@"', "sh", *map(str, command)),
        ]

    def run(
        self,
        *command: str | Path,
        user: str = "root",
        cwd: str = "/",
        env: Mapping[str, str] | None = None,
    ) -> None:
        """Run a command in the root, its output where this program's goes; raises CalledProcessError if it fails."""
        subprocess.run(self.argv(*command, user=user, cwd=cwd, env=env), stdin=subprocess.DEVNULL, check=True)

    def install(self, *packages: str) -> None:
        """Install packages of Debian."""
        self.run("apt-get", "update", "-qq")
        self.run("apt-get", "install", "-qq", "--yes", "--no-install-recommends", *packages)


def _base(release: str, architecture: str) -> Path:
    """The folder that roots are copies of: debootstrap's, made once."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    base = Path(cache, "ionn", "roots", f"{release}-{architecture}")
    if base.exists():
        return base
    base.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="root-", dir=base.parent) as scratch:
        made = Path(scratch, "root")
        command = ["debootstrap", "--variant=minbase", f"--arch={architecture}", release, str(made)]
        with open(base.parent / f"{base.name}.log", "w") as log:
            if subprocess.run(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log).returncode:
                raise RootError(f"'{' '.join(command[:-1])}' failed; its output is in {log.name}")
        made.rename(base)
    return base


@contextmanager
def debian(release: str, architecture: str, binds: Sequence[tuple[Path, str]] = ()) -> Iterator[Root]:
    """A new root, which is removed in the end. Raises RootError where this machine makes none."""
    if os.geteuid() != 0:
        raise RootError("making another Debian takes root's rights: run this as root")
    if shutil.which("debootstrap") is None:
        raise RootError("debootstrap is missing: install the packages debootstrap and qemu-user-static")
    with tempfile.TemporaryDirectory(prefix="ionn-root-") as scratch:
        folder = Path(scratch, "root")
        subprocess.run(["cp", "--archive", "--reflink=auto", _base(release, architecture), folder], check=True)
        yield Root(folder, binds)
