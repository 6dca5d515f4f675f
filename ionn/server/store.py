"""A server's store: a folder of weight pieces, which outlives sessions and servers. No sockets here.

    DIR/lock                               a number, raised before every change; locked by who changes something
    DIR/unfinished/...                     pieces that are being written, each locked by its writer
    DIR/OWNER/FIRST 2 HEX DIGITS/SHA-256   a piece: its raw bytes, and the checksum of its digest and these

A piece appears under its name when it is whole, and its name and content never change; so what is read or looked for
needs no lock, and who is killed at any instant leaves each piece whole, or not there. Several processes may use one
folder. Who changes something has `lock` locked meanwhile, and raises its number first; a process whose list of the
pieces was made at that number need not list the folder again.

A piece is stored if its bytes have the SHA-256 that is its name, and are finite floats. Who reads it compares a fast
checksum: that notices what a disk does to files, and not what somebody does on purpose who may write to the folder.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import heapq
import os
import re
import secrets
import stat
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash

from ionn.errors import InputError
from ionn.protocol.messages import PIECE_BYTES_MAX

SHARED = "shared"

# The checksum, XXH3 of 128 bits, behind a piece's bytes.
_CHECKSUM_BYTES = 16
# What is read and then summed up while it is in the processor's cache.
_BLOCK_BYTES = 256 * 1024
# What a piece counts at least. A small one costs a file, and memory of each process that knows of it.
_COST_BYTES_MIN = 64 * 1024
_LOCK, _UNFINISHED = "lock", "unfinished"
_OWNER = re.compile(f"[0-9a-f]{{64}}|{SHARED}")
_PREFIX, _NAME = re.compile("[0-9a-f]{2}"), re.compile("[0-9a-f]{64}")
_UNFINISHED_NAME = re.compile("[0-9a-f]{32}")
_NUMBER = struct.Struct("<Q")
# Somebody who replaces the lock again and again is not waited for.
_LOCK_TRIES = 10
# The disk takes no more, or cannot be relied on.
_OFF = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO}


@dataclass(frozen=True)
class StoreSettings:
    """A store's folder, and how much it may have, in all and of each owner. If `shared`, all clients are one owner."""

    folder: Path
    total_bytes: int
    owner_bytes: int
    shared: bool = False


@dataclass
class StoreCounts:
    """What a process knows of its store: what is in it, and what was done since it started."""

    pieces: int = 0
    bytes: int = 0
    stored: int = 0
    opened: int = 0
    evicted: int = 0
    damaged: int = 0


def owner_of(key: bytes) -> str:
    """The name of the owner with this public key."""
    return hashlib.sha256(key).hexdigest()


def is_piece(digest: bytes, data: memoryview) -> bool:
    """Tell whether bytes are a weight piece with this SHA-256."""
    return (
        0 < len(data) <= PIECE_BYTES_MAX
        and len(data) % 4 == 0
        and hashlib.sha256(data).digest() == digest
        and bool(np.isfinite(np.frombuffer(data, "<f4")).all())
    )


def read_piece(descriptor: int, digest: bytes, views: Iterable[memoryview]) -> bool:
    """Fill `views` with the bytes of a piece, an open file at its beginning; whether these are right, and all."""
    checksum = xxhash.xxh3_128(digest)
    try:
        for view in views:
            left = view
            while left:
                count = os.readv(descriptor, [left[:_BLOCK_BYTES]])
                if not count:
                    return False
                checksum.update(left[:count])
                left = left[count:]
        return os.read(descriptor, _CHECKSUM_BYTES + 1) == checksum.digest()
    except OSError:  # the disk fails
        return False


def _is_private(status: os.stat_result) -> bool:
    """Tell whether nobody but this process's user may write to a file or folder of this status."""
    return status.st_uid == os.geteuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _raw_bytes(status: os.stat_result) -> int:
    """The bytes of the piece in a file of this status; 0 where it cannot be one, or others may have changed it."""
    size = status.st_size - _CHECKSUM_BYTES
    right = 0 < size <= PIECE_BYTES_MAX and size % 4 == 0
    return size if right and stat.S_ISREG(status.st_mode) and _is_private(status) else 0


def _used_ns(status: os.stat_result) -> int:
    """When a file was last used, in ns since 1970. A date to come, of a clock that was wrong, counts as long ago: else
    whatever has one would stay, and what is stored now would go first."""
    return status.st_mtime_ns if status.st_mtime_ns <= time.time_ns() else 0


class _Owned:
    """The pieces of an owner, by name: what each counts, and when it was last used, in ns since 1970."""

    def __init__(self) -> None:
        self.pieces: dict[str, tuple[int, int]] = {}
        self.cost = 0
        self.newest_ns = 0
        self._order: list[tuple[int, str]] = []

    def put(self, name: str, size: int, used_ns: int) -> None:
        self.remove(name)
        cost = max(size, _COST_BYTES_MIN)
        self.pieces[name] = cost, used_ns
        self.cost += cost
        self.newest_ns = max(self.newest_ns, used_ns)
        heapq.heappush(self._order, (used_ns, name))

    def remove(self, name: str) -> None:
        cost, _ = self.pieces.pop(name, (0, 0))
        self.cost -= cost

    def oldest(self) -> tuple[int, str] | None:
        """When the least recently used one was used, and its name."""
        while self._order:
            used_ns, name = self._order[0]
            if name in self.pieces and self.pieces[name][1] == used_ns:
                return used_ns, name
            heapq.heappop(self._order)
        return None


class Store:
    """A process's end of a store. Any thread may call its methods; those that change something wait for other
    processes that do, those that do not change anything wait for nobody.

    `warn` is told what an operator should know. `off` says why nothing is stored any more, empty while it is. Raises
    InputError where the folder cannot be a store.
    """

    def __init__(self, settings: StoreSettings, warn: Callable[[str], None] = lambda text: None) -> None:
        self._settings = settings
        self._warn = warn
        try:
            self._root, self._lock = _open_store(settings.folder)
        except OSError as error:
            raise InputError(f"{settings.folder}: cannot be the store: {error.strerror}") from error
        self._mutex = threading.Lock()
        self._writing = threading.Lock()
        self._number: int | None = None  # at which the list of pieces was made
        self._owners: dict[str, _Owned] = {}
        self._warned: set[int | None] = set()
        self._counts = StoreCounts()
        self.off = ""
        if fcntl.fcntl(self._lock, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            self._failed(OSError(errno.EROFS, os.strerror(errno.EROFS)))

    def close(self) -> None:
        os.close(self._lock)
        os.close(self._root)

    def counts(self) -> StoreCounts:
        """What there is, as this process knows it, and what it has done."""
        owners = list(self._owners.values())
        counts = self._counts
        counts.pieces = sum(len(owned.pieces) for owned in owners)
        counts.bytes = sum(owned.cost for owned in owners)
        return counts

    # --- What changes nothing -----------------------------------------------------------------------------------------

    def has(self, owner: str, digests: Sequence[bytes]) -> bytes:
        """A byte for each digest: 1 if that piece of the owner is stored."""
        found = bytearray(len(digests))
        by_prefix: dict[str, list[int]] = {}
        for number, digest in enumerate(digests):
            by_prefix.setdefault(digest[:1].hex(), []).append(number)
        with contextlib.suppress(OSError), _folder(owner, self._root) as outer:
            for prefix, numbers in by_prefix.items():
                with contextlib.suppress(OSError), _folder(prefix, outer) as inner:
                    for number in numbers:
                        found[number] = bool(_raw_bytes_of(digests[number].hex(), inner))
        return bytes(found)

    def open(self, owner: str, digest: bytes) -> tuple[int, int] | None:
        """A descriptor of a piece's file, which can only be read, and the piece's bytes; None if it is not stored.
        It has been used by that."""
        with contextlib.ExitStack() as opened:
            try:
                with self._place(owner, digest) as folder:
                    descriptor = _open_file(digest.hex(), folder)
                opened.callback(os.close, descriptor)
                size = _raw_bytes(os.fstat(descriptor))
            except OSError:
                return None
            if not size:
                return None
            with contextlib.suppress(OSError):  # the disk cannot be written to
                os.utime(descriptor)
            opened.pop_all()
        self._counts.opened += 1
        return descriptor, size

    # --- What changes something ---------------------------------------------------------------------------------------

    def refresh(self) -> None:
        """List the pieces, and make room where there are more than there may be."""
        try:
            with self._locked():
                if not self.off:
                    for owner in list(self._owners):
                        self._make_room(owner, 0)
        except OSError as error:
            self._failed(error)

    def put(self, owner: str, digest: bytes, data: memoryview) -> bool:
        """Store a piece; whether it is stored now. It is not where its bytes are not those, it is larger than the store
        may be, or the disk fails."""
        cost = max(len(data) + _CHECKSUM_BYTES, _COST_BYTES_MIN)
        if self.off or cost > min(self._settings.owner_bytes, self._settings.total_bytes):
            return False
        if not is_piece(digest, data):
            return False
        try:
            with self._writing:  # one at a time: so what is unfinished is bounded, too
                if self.off:
                    return False
                if not self._is_whole(owner, digest, use=True):
                    self._write(owner, digest, data, cost)
                    self._counts.stored += 1
                return True
        except OSError as error:
            self._failed(error)
            return False

    def _write(self, owner: str, digest: bytes, data: memoryview, cost: int) -> None:
        name = digest.hex()
        unfinished = secrets.token_hex(16)
        checksum = xxhash.xxh3_128(digest)
        checksum.update(data)
        with contextlib.ExitStack() as opened:
            with self._locked():  # who removes what the dead have left does not see it before its lock
                at = opened.enter_context(_folder(_UNFINISHED, self._root, make=True))
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
                descriptor = os.open(unfinished, flags, 0o600, dir_fd=at)
                opened.callback(os.close, descriptor)
                opened.callback(_remove, unfinished, at)
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            left = [data, memoryview(checksum.digest())]
            while left:
                count = os.writev(descriptor, left)
                while left and count >= len(left[0]):
                    count -= len(left.pop(0))
                if left:
                    left[0] = left[0][count:]
            os.fdatasync(descriptor)
            used_ns = os.fstat(descriptor).st_mtime_ns
            with self._locked():
                self._make_room(owner, cost)
                with self._place(owner, digest, make=True) as folder:
                    with contextlib.suppress(OSError):  # a folder that somebody put in the way
                        os.rmdir(name, dir_fd=folder)
                    self._raise_number()
                    os.rename(unfinished, name, src_dir_fd=at, dst_dir_fd=folder)
                self._owned(owner).put(name, len(data) + _CHECKSUM_BYTES, used_ns)

    def remove_damaged(self, owner: str, digest: bytes) -> bool:
        """Look at a piece that is said to be damaged, and remove it if it is; whether it was."""
        name = digest.hex()
        try:
            with self._locked():
                if not self._is_there(owner, digest) or self._is_whole(owner, digest):
                    return False
                self._raise_number()
                with self._place(owner, digest) as folder:
                    _remove(name, folder)
                self._owned(owner).remove(name)
        except OSError as error:
            self._failed(error)
            return False
        self._counts.damaged += 1
        return True

    def _is_there(self, owner: str, digest: bytes) -> bool:
        """Tell whether anything has a piece's name."""
        with contextlib.suppress(OSError), self._place(owner, digest) as folder:
            os.stat(digest.hex(), dir_fd=folder, follow_symlinks=False)
            return True
        return False

    def _is_whole(self, owner: str, digest: bytes, use: bool = False) -> bool:
        """Tell whether a piece is there, and all its bytes are right; it has been used by that if `use`."""
        try:
            with self._place(owner, digest) as folder:
                descriptor = _open_file(digest.hex(), folder)
        except OSError:
            return False
        try:
            size = _raw_bytes(os.fstat(descriptor))
            whole = bool(size) and read_piece(descriptor, digest, [memoryview(bytearray(size))])
            if whole and use:
                os.utime(descriptor)
            return whole
        finally:
            os.close(descriptor)

    def _make_room(self, owner: str, cost: int) -> None:
        """Remove what was used least recently, of the owner and then of all, until there is room for so much more."""
        while self._owned(owner).cost + cost > self._settings.owner_bytes and self._evict([owner]):
            pass
        while self._total() + cost > self._settings.total_bytes and self._evict(self._owners):
            pass

    def _total(self) -> int:
        return sum(owned.cost for owned in self._owners.values())

    def _evict(self, owners: Iterable[str]) -> bool:
        """Remove the least recently used piece of these owners; whether there was one. The list may be of old, and the
        file says when it was used."""
        while oldest := [(*found, owner) for owner in owners if (found := self._owned(owner).oldest()) is not None]:
            used_ns, name, owner = min(oldest)
            try:
                with self._place(owner, bytes.fromhex(name)) as folder:
                    status = os.stat(name, dir_fd=folder, follow_symlinks=False)
                    if _used_ns(status) > used_ns:
                        self._owned(owner).put(name, status.st_size, _used_ns(status))
                        continue
                    self._raise_number()
                    os.unlink(name, dir_fd=folder)
            except FileNotFoundError:
                pass
            self._owned(owner).remove(name)
            self._counts.evicted += 1
            return True
        return False

    def _owned(self, owner: str) -> _Owned:
        return self._owners.setdefault(owner, _Owned())

    def _failed(self, error: OSError) -> None:
        """Something could not be stored. Where that is so for all, nothing more is; either is said once."""
        if self.off:
            return
        if error.errno in _OFF:
            self.off = error.strerror or "the disk fails"
            self._warn(f"{self._settings.folder}: nothing more is stored: {error.strerror}; what is there is used")
        elif error.errno not in self._warned:
            self._warned.add(error.errno)
            self._warn(f"{self._settings.folder}: a piece cannot be stored: {error.strerror}")

    # --- The folder ---------------------------------------------------------------------------------------------------

    def _place(self, owner: str, digest: bytes, make: bool = False) -> contextlib.AbstractContextManager[int]:
        """The folder of a piece, as a descriptor."""
        return _nested((owner, digest[:1].hex()), self._root, make)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Nobody else changes anything meanwhile, and the list of pieces is right."""
        with self._mutex:
            self._take_lock()
            try:
                (number,) = _NUMBER.unpack(os.pread(self._lock, _NUMBER.size, 0).ljust(_NUMBER.size, b"\0"))
                set_back = any(owned.newest_ns > time.time_ns() for owned in self._owners.values())
                if number != self._number or set_back:
                    self._list()
                    self._number = number
                yield
            except BaseException:
                self._number = None  # who knows what was done
                raise
            finally:
                fcntl.flock(self._lock, fcntl.LOCK_UN)

    def _take_lock(self) -> None:
        """Take the lock that is in the folder now: others take that. Where somebody has removed it, or the folder, it
        is made again."""
        for _ in range(_LOCK_TRIES):
            fcntl.flock(self._lock, fcntl.LOCK_EX)
            with contextlib.suppress(OSError):
                there = os.stat(_LOCK, dir_fd=self._root, follow_symlinks=False)
                if os.path.samestat(there, os.fstat(self._lock)):
                    return
            fcntl.flock(self._lock, fcntl.LOCK_UN)
            self._open_again()
        raise OSError(errno.EBUSY, f"'{_LOCK}' in it is replaced again and again")

    def _open_again(self) -> None:
        """Open the lock that is there now, and the folder if it was removed. The descriptors keep their numbers, as
        other threads may be using them."""
        self._number = None
        if os.fstat(self._root).st_nlink:
            lock = _open_lock(self._root)
        else:
            root, lock = _open_store(self._settings.folder)
            os.dup2(root, self._root, inheritable=False)
            os.close(root)
        os.dup2(lock, self._lock, inheritable=False)
        os.close(lock)

    def _raise_number(self) -> None:
        assert self._number is not None
        number = (self._number + 1) % 2**64
        os.pwrite(self._lock, _NUMBER.pack(number), 0)
        self._number = number

    def _list(self) -> None:
        """List the pieces, and remove what the dead have left unfinished."""
        owners: dict[str, _Owned] = {}
        for owner in _names(self._root, _OWNER):
            with contextlib.suppress(OSError), _folder(owner, self._root) as outer:
                for prefix in _names(outer, _PREFIX):
                    with contextlib.suppress(OSError), _folder(prefix, outer) as inner:
                        for name in _names(inner, _NAME):
                            with contextlib.suppress(OSError):
                                status = os.stat(name, dir_fd=inner, follow_symlinks=False)
                                if stat.S_ISREG(status.st_mode) and name.startswith(prefix):
                                    owned = owners.setdefault(owner, _Owned())
                                    owned.put(name, status.st_size, _used_ns(status))
        self._owners = owners
        with contextlib.suppress(OSError), _folder(_UNFINISHED, self._root) as folder:
            for name in _names(folder, _UNFINISHED_NAME):
                if not _is_locked(name, folder):
                    _remove(name, folder)


def _open_store(folder: Path) -> tuple[int, int]:
    """The folder of a store, made where there is none, and its lock. Raises OSError, which says what to do."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    root = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        status = os.fstat(root)
        if status.st_uid != os.geteuid():
            raise OSError(errno.EPERM, "it is another user's; choose a folder of this user's")
        if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise OSError(errno.EPERM, "others may write to it, and so change weights; chmod go-w it")
        names = os.listdir(root)
        if names and _LOCK not in names:
            reason = f"it has files, and no '{_LOCK}', so it is none yet; choose an empty folder or a new name"
            raise OSError(errno.ENOTEMPTY, reason)
        return root, _open_lock(root)
    except OSError:
        os.close(root)
        raise


def _open_lock(root: int) -> int:
    """The lock in a folder, made where there is none; open for reading only where the disk can only be read. Raises
    OSError."""
    reason = f"'{_LOCK}' in it is not a regular file; remove that, or choose another folder"
    try:
        try:
            descriptor = os.open(_LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600, dir_fd=root)
        except OSError as error:
            if error.errno != errno.EROFS or not os.listdir(root):
                raise
            descriptor = _open_file(_LOCK, root)
    except OSError as error:
        if error.errno in (errno.EISDIR, errno.ELOOP, errno.ENXIO):
            raise OSError(error.errno, reason) from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, reason)
    return descriptor


@contextlib.contextmanager
def _folder(name: str, at: int, make: bool = False) -> Iterator[int]:
    """A folder in another one, as a descriptor. Who makes it removes a file or link that is in its way. Raises OSError
    where there is none, or a symbolic link, or one that others may write to."""
    try:
        descriptor = _open_folder(name, at)
    except OSError as error:
        if not make or error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            raise
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=at)
        with contextlib.suppress(FileExistsError):  # another process has made it
            os.mkdir(name, 0o700, dir_fd=at)
        descriptor = _open_folder(name, at)
    try:
        if not _is_private(os.fstat(descriptor)):
            raise OSError(errno.EPERM, f"its folder '{name}' is another user's, or others may write to it; remove that")
        yield descriptor
    finally:
        os.close(descriptor)


def _open_folder(name: str, at: int) -> int:
    return os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=at)


@contextlib.contextmanager
def _nested(names: Sequence[str], at: int, make: bool) -> Iterator[int]:
    with contextlib.ExitStack() as opened:
        for name in names:
            at = opened.enter_context(_folder(name, at, make))
        yield at


def _open_file(name: str, folder: int) -> int:
    """Whatever it is: nothing is followed, and nobody is waited for."""
    return os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY, dir_fd=folder)


def _raw_bytes_of(name: str, folder: int) -> int:
    try:
        return _raw_bytes(os.stat(name, dir_fd=folder, follow_symlinks=False))
    except OSError:
        return 0


def _names(folder: int, pattern: re.Pattern[str]) -> list[str]:
    return [name for name in os.listdir(folder) if pattern.fullmatch(name)]


def _remove(name: str, folder: int) -> None:
    """Remove what has this name, if that is possible: a file or link, or a folder with nothing in it."""
    with contextlib.suppress(OSError):
        try:
            os.unlink(name, dir_fd=folder)
        except IsADirectoryError:
            os.rmdir(name, dir_fd=folder)


def _is_locked(name: str, folder: int) -> bool:
    try:
        descriptor = _open_file(name, folder)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
