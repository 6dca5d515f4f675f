"""Reading and writing the files of users.

Only regular files of limited size are read. A written file appears under its name only when it is complete. A folder
can be locked, so that one process at a time writes to it.
"""

from __future__ import annotations

import contextlib
import fcntl
import fnmatch
import hashlib
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from ionn.arguments import path_of
from ionn.errors import InputError

# Larger than any file that people write, and small enough to be read at once.
FILE_BYTES_MAX = 10_000_000

# The name of a file may have 255 bytes, and ends in ".part" while the file is written.
_NAME_BYTES_MAX = 240


def file_name(name: str, suffix: str) -> str:
    """The name of a file with a suffix. A name that is too long is cut, and a digest is added."""
    most_bytes = _NAME_BYTES_MAX - len(suffix.encode())
    return (name if len(_encoded(name)) <= most_bytes else with_digest(name, most_bytes, name)) + suffix


def with_digest(name: str, most_bytes: int, of: str) -> str:
    """A name with the digest of the text `of` at its end, cut to at most so many bytes."""
    end = "-" + hashlib.sha256(_encoded(of)).hexdigest()[:8]
    return _encoded(name)[: most_bytes - len(end)].decode(errors="ignore") + end


def _encoded(text: str) -> bytes:
    """A text with names of files, some of which may not be UTF-8. Unlike those of `os.fsencode`, these bytes are the
    same in all locales."""
    return text.encode(errors="surrogateescape")


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading. Raises OSError for anything else: devices and pipes may never end, or make the
    reader wait."""
    if "\0" in str(path):
        raise OSError(None, "no file's name has a null byte")
    # Without O_NONBLOCK, opening a pipe would wait for its writer.
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))  # noqa: SIM115
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(None, "it is not a regular file")
    return file


def read_bytes(path: Path, what: str, most: int = FILE_BYTES_MAX) -> bytes:
    """The content of a regular file of at most `most` bytes. Raises InputError, which says `what` was to be read, for
    any other file."""
    try:
        with open_regular(path) as file:
            content = file.read(most + 1)
    except OSError as error:
        raise InputError(f"{path}: cannot read {what}: {error.strerror}") from error
    if len(content) > most:
        raise InputError(f"{path}: cannot read {what}: the file has more than {most / 1e6:g} MB")
    return content


def read_text(path: Path, what: str) -> str:
    """The text of a regular file of at most FILE_BYTES_MAX bytes in UTF-8, with the line ends of Unix. Raises
    InputError, which says `what` was to be read, for any other file."""
    content = read_bytes(path, what)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        byte = f"the byte 0x{content[error.start]:02x}"
        raise InputError(f"{path}:{line}: cannot read {what}: {byte} is not UTF-8; save the file as UTF-8") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def matching(folder: Path, pattern: str) -> list[Path]:
    """The paths in a folder whose names match a pattern such as "*.csv", sorted; none if there is no such folder.
    Raises InputError if the folder cannot be read, which `Path.glob` would hide."""
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise InputError(f"{folder}: cannot read the folder: {error.strerror}") from error
    return sorted(folder / name for name in fnmatch.filter(names, pattern))


def _may_be_file(path: Path) -> bool:
    """Tell whether a path is a regular file, or does not exist yet. Raises InputError for a name that is too long."""
    try:
        return bool(path.name) and (path.is_file() or not path.exists())
    except OSError as error:
        raise InputError(f"{path}: cannot write there: {error.strerror}; choose another name") from error


def check_writable(path: Path) -> None:
    """Raise InputError if `write_file` could not write there. This is called before long work, not after it."""
    writable = _may_be_file(path)
    folder = path.parent
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not writable or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise InputError(f"{path}: cannot write there; choose another file")


def write_file(path: Path, content: bytes | Iterable[bytes], private: bool = False) -> None:
    """Write a file from its content, or from an iterable of its parts, and create its folder if there is none. Only the
    user may read a `private` file. Raises InputError if that is not possible; no half-written file is left."""
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
    """Lock a folder against other processes that lock it; create it if there is none. From now on, only the user may
    read a `private` folder.

    Raises InputError if the folder cannot be created or locked.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise InputError(f"{folder}: cannot make this folder: {error.strerror}") from error
    try:
        try:
            if private:
                os.fchmod(descriptor, 0o700)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError as error:
            raise InputError(f"{folder}: cannot lock this folder: {error.strerror}") from error
        yield
    finally:
        os.close(descriptor)
