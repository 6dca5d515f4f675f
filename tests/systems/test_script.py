"""However a script ends that makes other Debians, nothing is left of it and one line says why."""

from __future__ import annotations

import importlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.command import told_while_it_imports
from tests.systems.__main__ import SCRIPTS
from tests.systems.script import SetupError

TOP = Path(__file__).resolve().parents[2]
_SCRIPT = """
import os, shutil, signal, subprocess, sys
from pathlib import Path
from ionn.errors import InputError
from tests.systems.script import *

def work():
    with scratch_folder("it-", Path(sys.argv[1])) as folder:
        {body}

run_script("it", work)
"""
# A process that is the kernel's to end, with a child that has left its session, as a daemon does.
_WAIT = """
        processes = "setsid sh -c 'echo >daemon; sleep 1000' & echo started; sleep 1000"
        subprocess.run([*WITH_THIS_PROCESS, "sh", "-c", processes], cwd=folder)
"""


def started(folder: Path, body: str) -> subprocess.Popen[str]:
    """The script with this body, whose folder is in `folder`."""
    command = [sys.executable, "-c", _SCRIPT.format(body=body.strip()), str(folder)]
    return subprocess.Popen(command, cwd=TOP, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_told_to_end_it_ends_its_processes_and_removes_its_folder(tmp_path: Path, number: signal.Signals) -> None:
    with started(tmp_path, _WAIT) as script:
        assert script.stdout is not None
        script.stdout.readline()
        script.send_signal(number)
        _, said = script.communicate()  # which waits until no process has its output any more
    assert (script.returncode, said, list(tmp_path.iterdir())) == (128 + number, "it: interrupted\n", [])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("name", SCRIPTS)
def test_told_to_end_while_it_imports(name: str, number: signal.Signals) -> None:
    for module in (f"tests.systems.{name}", "ionn.files"):
        done = told_while_it_imports(module, number, "tests.systems", name)
        assert done == (128 + number, "", f"{name}: interrupted")


@pytest.mark.parametrize(("arguments", "name"), [([], "tests.systems"), (["script"], "script"), (["--full"], "--full")])
def test_a_script_that_there_is_not(arguments: list[str], name: str) -> None:
    command = [sys.executable, "-m", "tests.systems", *arguments]
    done = subprocess.run(command, cwd=TOP, capture_output=True, text=True, check=False)
    line = f"{name}: the first argument is one of arm64, container, debian, service\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", line)


def test_killed_its_processes_end_with_it(tmp_path: Path) -> None:
    body = 'subprocess.run([*WITH_THIS_PROCESS, "sh", "-c", "echo started; exec sleep 1000"])'
    with started(tmp_path, body) as script:
        assert script.stdout is not None
        script.stdout.readline()
        script.kill()
        script.communicate()
    assert script.returncode == -signal.SIGKILL


def test_told_to_end_while_it_removes_its_folder_it_removes_all_of_it(tmp_path: Path) -> None:
    body = """
        remove = shutil.rmtree
        shutil.rmtree = lambda folder: (os.kill(os.getpid(), signal.SIGTERM), remove(folder))
        (folder / "file").touch()
    """
    with started(tmp_path, body) as script:
        _, said = script.communicate()
    assert (script.returncode, said, list(tmp_path.iterdir())) == (143, "it: interrupted\n", [])


@pytest.mark.parametrize(
    ("body", "code", "line"),
    [
        ("pass", 0, ""),
        ("raise SetupError('no rights')", 2, "it: no rights"),
        ("raise InputError('no folder')", 2, "it: no folder"),
        ("raise StepError('not started\\nits log')", 1, "its log\nit: not started"),
        ("subprocess.run(['false'], check=True)", 1, "it: Command '['false']' returned non-zero exit status 1."),
        ("subprocess.run(['no-program'])", 1, "it: [Errno 2] No such file or directory: 'no-program'"),
        ("Path('/dev/full').write_text('x')", 1, "it: [Errno 28] No space left on device"),
    ],
)
def test_what_fails_is_one_line(tmp_path: Path, body: str, code: int, line: str) -> None:
    with started(tmp_path, body) as script:
        _, said = script.communicate()
    assert (script.returncode, said.strip(), list(tmp_path.iterdir())) == (code, line, [])


@pytest.mark.parametrize("name", SCRIPTS)
def test_what_the_machine_lacks_is_said_first(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    main = importlib.import_module(f"tests.systems.{name}").main
    monkeypatch.setattr(sys, "argv", [name, *(["bookworm"] if name == "debian" else [])])
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(SetupError, match="takes root's rights"):
        main()
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(shutil, "which", lambda program: None)
    with pytest.raises(SetupError, match="debootstrap is missing"):
        main()
