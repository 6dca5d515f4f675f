"""Files of users: read only where that has an end, and written so that they appear under their names only when they are
complete; and folders that one process writes to at a time."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from ionn.arguments import path_of
from ionn.errors import InputError

# More than any file has that people write, and little enough to be read at once.
FILE_BYTES_MAX = 10_000_000

# A name of a file has 255 bytes; while it is written, ".part" is at its end.
_NAME_BYTES_MAX = 240


def file_name(name: str, suffix: str) -> str:
    """The name of a file that ends in a suffix; a name that is too long for one is cut, and has a digest."""
    most_bytes = _NAME_BYTES_MAX - len(suffix.encode())
    return (name if len(name.encode()) <= most_bytes else with_digest(name, most_bytes, name)) + suffix


def with_digest(name: str, most_bytes: int, of: str) -> str:
    """A name, cut to at most so many bytes with the digest of a text at its end."""
    end = "-" + hashlib.sha256(of.encode()).hexdigest()[:8]
    return name.encode()[: most_bytes - len(end)].decode(errors="ignore") + end


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading. Raises OSError for anything else: devices and pipes may have no end, or keep
    their reader waiting."""
    if "\0" in str(path):
        raise OSError(None, "no file's name has a null byte")
    # Opening a pipe waits for its writer, unless told not to.
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))  # noqa: SIM115
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(None, "it is not a regular file")
    return file


def read_bytes(path: Path, what: str, most: int = FILE_BYTES_MAX) -> bytes:
    """All of a regular file of at most `most` bytes. Raises InputError, which says `what` was to be read, for any
    other."""
    try:
        with open_regular(path) as file:
            content = file.read(most + 1)
    except OSError as error:
        raise InputError(f"{path}: cannot read {what}: {error.strerror}") from error
    if len(content) > most:
        raise InputError(f"{path}: cannot read {what}: the file has more than {most / 1e6:g} MB")
    return content


def read_text(path: Path, what: str) -> str:
    """The text of a regular file of at most FILE_BYTES_MAX, with the line ends of Unix. Raises InputError, which says
    `what` was to be read, for any other."""
    content = read_bytes(path, what)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        byte = f"the byte 0x{content[error.start]:02x}"
        raise InputError(f"{path}:{line}: cannot read {what}: {byte} is not UTF-8; save the file as UTF-8") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _may_be_file(path: Path) -> bool:
    """Tell whether a path has a name, and nothing but a file has it. Raises InputError for one that is too long."""
    try:
        return bool(path.name) and (path.is_file() or not path.exists())
    except OSError as error:
        raise InputError(f"{path}: cannot write there: {error.strerror}; choose another name") from error


def check_writable(path: Path) -> None:
    """Raise InputError if `write_file` could not write there: better before the work than after it."""
    writable = _may_be_file(path)
    folder = path.parent
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not writable or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise InputError(f"{path}: cannot write there; choose another file")


def write_file(path: Path, content: bytes | Iterable[bytes], private: bool = False) -> None:
    """Write a file, all at once or as its parts come, and its folder where there is none; if `private`, only the user
    may look into it. Raises InputError where that is not possible; nothing half-written stays behind."""
    path = path_of(path, "file")
    if not _may_be_file(path):
        raise InputError(f"{path}: cannot write there: it is no file; choose another name")
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "wb", opener=lambda name, flags: os.open(name, flags, 0o600 if private else 0o666)) as out:
            out.writelines((content,) if isinstance(content, bytes) else content)
            out.flush()
            os.fsync(out.fileno())
        part.replace(path)
    except OSError as error:
        raise InputError(f"{path}: cannot write: {error.strerror}; free space or choose another folder") from error
    finally:
        with contextlib.suppress(OSError):  # the first error is the one to report
            part.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(folder: Path, private: bool = False) -> Iterator[None]:
    """A folder, made where there is none, that no other process has in this way meanwhile; if `private`, only the user
    may look into it from now on.

    Raises InputError where it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        if private:
            os.fchmod(descriptor, 0o700)
    except OSError as error:
        raise InputError(f"{folder}: cannot make this folder: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
