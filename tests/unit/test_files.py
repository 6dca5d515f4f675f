"""What users name is read only if it is a regular file of a sensible size: all else has no end, or keeps us waiting."""

from __future__ import annotations

import errno
import os
import re
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ionn.costs.loading import load_costs
from ionn.errors import InputError, printable
from ionn.files import FILE_BYTES_MAX, check_writable, file_name, locked, read_text, write_file
from ionn.model.caffemodel import read_weights
from ionn.model.inputs import image_input
from ionn.model.network import Network
from ionn.planning.planners.custom import load_function
from ionn.protocol.curve import make_keys, read_key, read_keys

TINY = Network.from_text(
    'layer { name: "d" type: "Input" top: "d" input_param { shape { dim: 1 dim: 3 dim: 8 dim: 8 } } } '
    'layer { name: "f" type: "InnerProduct" bottom: "d" top: "f" inner_product_param { num_output: 2 } }',
    "tiny",
)

# What a file is called, and who reads it.
READERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "costs": ("costs.txt", load_costs),
    "a column of costs": ("costs.csv", lambda path: load_costs(f"{path}:ms")),
    "a key": ("phone.public", read_key),
    "keys": ("phones", read_keys),
    "labels": ("labels.txt", lambda path: read_text(path, "the labels")),
    "a model": ("net.prototxt", Network.load),
    "weights": ("net.caffemodel", lambda path: read_weights(path, TINY)),
    "an image": ("photograph.png", lambda path: image_input(path, (1, 3, 8, 8))),
    "a planner": ("planner.py", lambda path: load_function(f"{path}:plan")),
}


def _endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def _huge(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(3_000_000_000)


NO_FILES: dict[str, Callable[[Path], None]] = {
    "a device without end": _endless,
    "a pipe that nobody writes to": os.mkfifo,
    "a folder": Path.mkdir,
    "a file beyond any size": _huge,
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", NO_FILES)
def test_what_cannot_be_read_to_its_end_is_refused(reader: str, kind: str, tmp_path: Path) -> None:
    name, read = READERS[reader]
    path = tmp_path / name
    NO_FILES[kind](path)
    with pytest.raises(InputError, match=re.escape(str(path))) as caught:
        read(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("reader", READERS)
def test_no_file_has_a_null_byte_in_its_name(reader: str, tmp_path: Path) -> None:
    name, read = READERS[reader]
    with pytest.raises(InputError) as caught:
        read(tmp_path / f"a\0{name}")
    assert printable(str(caught.value)) == str(caught.value)


def test_a_text_is_read_as_people_write_it(tmp_path: Path) -> None:
    path = tmp_path / "labels"
    path.write_bytes("\ufeffcafé\r\ntea\rmilk\n".encode())
    assert read_text(path, "the labels") == "café\ntea\nmilk\n"
    path.write_bytes(b"a" * FILE_BYTES_MAX)
    assert len(read_text(path, "the labels")) == FILE_BYTES_MAX
    path.write_bytes(b"a" * (FILE_BYTES_MAX + 1))
    with pytest.raises(InputError, match="labels: cannot read the labels: the file has more than 10 MB"):
        read_text(path, "the labels")


def test_what_is_not_utf_8_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "net.prototxt"
    path.write_bytes('name: "a"\n# für\n'.encode("latin-1"))
    with pytest.raises(InputError, match=r"net\.prototxt:2: .* the byte 0xfc is not UTF-8; save the file as UTF-8"):
        Network.load(path)


# --- Pairs of keys --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", ".", "/", "..", "folder/.."])
def test_a_pair_of_keys_needs_a_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="cannot name a pair of keys"):
        make_keys(Path(name))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("there", ["phone.secret", "phone.public"])
@pytest.mark.parametrize("make", [Path.touch, Path.mkdir, _endless])
def test_both_keys_are_written_or_none(there: str, make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path / there)
    with pytest.raises(InputError, match=f"{there}: exists already"):
        make_keys(tmp_path / "phone")
    assert [path.name for path in tmp_path.iterdir()] == [there]


def test_keys_that_cannot_be_written_leave_nothing(tmp_path: Path) -> None:
    """A small limit on the size of files stands in for a full disk."""
    code = (
        "import resource, signal, sys; from pathlib import Path; from ionn.protocol.curve import make_keys; "
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10)); "
        "make_keys(Path(sys.argv[1]))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "phone")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert "InputError" in done.stderr
    assert "phone.secret: cannot write the key: File too large" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["", ".", "folder", "pipe", "device", "x" * 300, "x" * 300 + "/y"])
def test_what_is_no_file_is_not_replaced_by_one(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    os.mkfifo("pipe")
    Path("device").symlink_to(os.devnull)
    with pytest.raises(InputError, match="cannot write there"):
        write_file(Path(name), b"content")
    with pytest.raises(InputError, match="cannot write there"):
        check_writable(Path(name))
    assert sorted(each.name for each in tmp_path.iterdir()) == ["device", "folder", "pipe"]
    assert stat.S_ISFIFO(os.stat("pipe").st_mode)


@given(
    name=st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=300)
    | st.binary(min_size=1, max_size=300).map(lambda name: os.fsdecode(name.translate(None, b"/\0")))
)
def test_a_file_can_have_any_name_that_is_made_for_it(name: str, tmp_path: Path) -> None:
    made = file_name(name, ".png")
    write_file(tmp_path / made, b"drawn")
    assert (tmp_path / made).read_bytes() == b"drawn"
    assert made == name + ".png" or (len(os.fsencode(name)) > 236 and made != file_name(name + "a", ".png"))


def test_a_name_that_is_too_long_is_found_out_before_the_work(tmp_path: Path) -> None:
    for path in (tmp_path / ("a" * 256), tmp_path / ("a" * 256) / "b"):
        with pytest.raises(InputError, match="cannot write there: File name too long"):
            check_writable(path)


@pytest.mark.parametrize("module", ["os.fchmod", "fcntl.flock"])
def test_a_folder_that_cannot_be_locked_is_named(module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on some network file systems."""

    def fail(*arguments: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(module, fail)
    files = os.listdir("/proc/self/fd")
    with pytest.raises(InputError, match=r"cannot lock this folder: No locks available$"), locked(tmp_path, True):
        pass
    assert os.listdir("/proc/self/fd") == files
