"""Keys in files: what is written, what is read, and what is none."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

import pytest
import zmq

from ionn.errors import InputError
from ionn.protocol.curve import ClientKeys, client_keys, make_keys, printed, read_key, read_keys, server_keys


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with two pairs of keys."""
    for name in ("phone", "server"):
        make_keys(tmp_path / name)
    return tmp_path


def test_a_pair_is_two_files_of_one_line(tmp_path: Path) -> None:
    secret, public = make_keys(tmp_path / "my.phone")
    assert (secret, public) == (tmp_path / "my.phone.secret", tmp_path / "my.phone.public")
    former = os.umask(0)
    try:
        secret, public = make_keys(tmp_path / "open")
    finally:
        os.umask(former)
    assert [stat.S_IMODE(path.stat().st_mode) for path in (secret, public)] == [0o600, 0o644]
    assert all(re.fullmatch(r"\S{40}\n", path.read_text()) for path in (secret, public))
    assert zmq.curve_public(secret.read_text().strip().encode()) == public.read_text().strip().encode()


def test_nothing_is_overwritten(folder: Path) -> None:
    before = (folder / "phone.secret").read_text()
    with pytest.raises(
        InputError, match=r"phone\.secret: exists already, and is not overwritten; choose another name$"
    ):
        make_keys(folder / "phone")
    assert (folder / "phone.secret").read_text() == before


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no/phone\.secret: cannot write the key: No such file or directory$"):
        make_keys(tmp_path / "no" / "phone")


def test_a_file_of_many_keys_may_have_remarks(folder: Path) -> None:
    phone, server = (read_key(folder / f"{name}.public") for name in ("phone", "server"))
    (folder / "keys").write_text(f"# ours\n\n   \n{phone} the first one\n{server}\n{phone}\n")
    assert read_keys(folder / "keys") == {phone, server}
    with pytest.raises(InputError, match=r"keys: 2 keys where one is wanted; give a file of 'ionn keygen'$"):
        read_key(folder / "keys")
    (folder / "none").write_text("# nobody yet\n")
    assert read_keys(folder / "none") == frozenset()
    with pytest.raises(InputError, match=r"none: 0 keys where one is wanted"):
        read_key(folder / "none")


@pytest.mark.parametrize("line", ["x" * 39, "x" * 41, "x" * 39 + "é", "#" * 39 + "~", "#" * 40, " "])
def test_a_line_that_is_no_key_is_named(line: str, folder: Path) -> None:
    (folder / "keys").write_text(f"# ours\n{line}\n")
    if line.isspace():
        assert read_keys(folder / "keys") == frozenset()
        return
    with pytest.raises(InputError, match=r"keys:2: not a key; 'ionn keygen NAME' makes keys$"):
        read_keys(folder / "keys")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"lost: cannot read keys, which 'ionn keygen NAME' makes: No such file or directory"
    ):
        read_keys(tmp_path / "lost")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(
        InputError, match=r"binary:1: cannot read keys, which 'ionn keygen NAME' makes: the byte 0xff is not UTF-8"
    ):
        read_keys(tmp_path / "binary")


def test_both_files_or_none(folder: Path) -> None:
    key, other = folder / "phone.secret", folder / "server.public"
    assert client_keys(None, None) is None
    assert server_keys(None, None) is None
    assert client_keys(key, other) == ClientKeys(read_key(key), read_key(other))
    for files in ((key, None), (None, other)):
        with pytest.raises(InputError, match="give both --key, the client's secret key, and --server-key"):
            client_keys(*files)
        with pytest.raises(InputError, match="give both --key, the server's secret key, and --allow"):
            server_keys(*files)


@pytest.mark.parametrize("bad", ["", "x" * 39, "#" * 40, 7, None])
def test_a_client_has_two_keys(bad: object, folder: Path) -> None:
    key = read_key(folder / "phone.secret")
    for given in ((key, bad), (bad, key)):
        with pytest.raises(InputError, match="keys of a client: not two keys"):
            ClientKeys(*given)


def test_a_server_has_its_pair_and_those_it_allows(folder: Path) -> None:
    keys = server_keys(folder / "server.secret", folder / "phone.public")
    assert keys
    curve = keys.curve()
    assert printed(curve.public) == read_key(folder / "server.public")
    assert printed(curve.secret) == read_key(folder / "server.secret")
    assert set(map(printed, curve.allowed)) == {read_key(folder / "phone.public")}


def test_no_secret_is_shown(folder: Path) -> None:
    secrets = [read_key(folder / f"{name}.secret") for name in ("phone", "server")]
    client = client_keys(folder / "phone.secret", folder / "server.public")
    server = server_keys(folder / "server.secret", folder / "phone.public")
    assert not any(secret in repr(keys) for secret in secrets for keys in (client, server))
