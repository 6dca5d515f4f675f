"""ionn in a Debian of its own: `python -m tests.systems debian RELEASE` (bookworm, trixie), as root.

A fresh root gets git and make, a clone of this checkout's last commit, and the packages that `make system-packages`
installs. Everything else is an ordinary user's: the set-up, lint, and the tests, or the targets of make that are named
instead. Prints what each step took; exits 1 at the first that fails.
"""

from __future__ import annotations

import argparse
import subprocess
import time
from pathlib import Path

from tests.systems.root import Root, check_machine, debian

ROOT = Path(__file__).resolve().parents[2]
USER = "tester"
HOME = f"/home/{USER}"
# Chromium is not among them: the tests of the report's page skip themselves where there is none.
PACKAGES = ("ca-certificates", "git", "make", "procps")
TARGETS = ("setup", "lint", "test", "wheels")


def clone(root: Root, target: str, user: str) -> None:
    """Put a clone of this checkout's last commit into the root, for a user who is made there."""
    root.run("useradd", "--create-home", user)
    subprocess.run(["git", "clone", "--quiet", "--no-hardlinks", ROOT, root.folder / target.lstrip("/")], check=True)
    root.run("chown", "--recursive", f"{user}:", target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("release", metavar="RELEASE", choices=("bookworm", "trixie"), help="bookworm or trixie")
    parser.add_argument("targets", metavar="TARGET", nargs="*", default=TARGETS, help=f"of make: {' '.join(TARGETS)}")
    arguments = parser.parse_args()
    check_machine("amd64")
    checkout = f"{HOME}/ionn"
    took: list[tuple[str, float]] = []

    def timed(what: str, root: Root, *command: str, user: str = "root") -> None:
        print(f"--- {what}", flush=True)
        started = time.monotonic()
        root.run(*command, user=user, cwd=checkout)
        took.append((what, time.monotonic() - started))

    try:
        with debian(arguments.release, "amd64") as root:
            root.install(*PACKAGES)
            clone(root, checkout, USER)
            timed("make system-packages", root, "make", "system-packages")
            for target in arguments.targets:
                timed(f"make {target}", root, "make", target, user=USER)
    finally:
        for what, seconds in took:
            print(f"{seconds:7.0f} s  {what}", flush=True)
