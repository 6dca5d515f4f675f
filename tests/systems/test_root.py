"""What a machine is told that cannot make a Debian of another architecture."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.systems.root import MACHINES, check_programs_run, own_architecture
from tests.systems.script import SetupError

(OTHER,) = MACHINES.keys() - {own_architecture()}
ENTRY = "enabled\ninterpreter /usr/libexec/qemu-binfmt/x\nflags: {flags}\noffset 0\nmagic 7f454c46\n"


def test_programs_of_this_architecture_run(tmp_path: Path) -> None:
    check_programs_run(own_architecture(), tmp_path)


def test_programs_of_another_run_by_an_entry_that_is_enabled_and_fixed(tmp_path: Path) -> None:
    (tmp_path / f"qemu-{MACHINES[OTHER]}").write_text(ENTRY.format(flags="PF"))
    check_programs_run(OTHER, tmp_path)


@pytest.mark.parametrize("entry", [None, ENTRY.format(flags="P"), ENTRY.format(flags="PF").replace("en", "dis", 1)])
def test_without_one_it_is_said_what_to_install(tmp_path: Path, entry: str | None) -> None:
    if entry is not None:
        (tmp_path / f"qemu-{MACHINES[OTHER]}").write_text(entry)
    with pytest.raises(SetupError) as raised:
        check_programs_run(OTHER, tmp_path)
    (line,) = str(raised.value).splitlines()
    assert all(words in line for words in (OTHER, "qemu-user-static", "mount -t binfmt_misc", "update-binfmts"))
