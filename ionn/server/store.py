"""A server's store: a folder of weight pieces, which outlives sessions and servers. No sockets here.

    DIR/lock                               a number, raised before every change; locked by who changes something
    DIR/unfinished/...                     pieces that are being written, each locked by its writer
    DIR/OWNER/FIRST 2 HEX DIGITS/SHA-256   a piece: its raw bytes, and the checksum of its digest and these

A piece gets its name when it is whole, and name and content never change. So reading and looking for pieces needs no
lock, and a process that is killed at any instant leaves each piece whole or not there. Several processes may use one
folder. A process locks `lock` while it changes something, and first raises the number in it; a process that listed the
pieces at the present number need not list the folder again.

A piece is stored only if its bytes have the SHA-256 that is its name, and are finite floats. Readers compare a fast
checksum, which reveals damage by a disk, but not what somebody does on purpose who may write to the folder.
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

# The checksum behind a piece's bytes, XXH3 of 128 bits.
_CHECKSUM_BYTES = 16
# How much is read at once, so that it is still in the processor's cache when its checksum is computed.
_BLOCK_BYTES = 256 * 1024
# What a piece counts at least. A small one costs a file, and memory in each process that lists it.
_COST_BYTES_MIN = 64 * 1024
_LOCK, _UNFINISHED = "lock", "unfinished"
_OWNER = re.compile(f"[0-9a-f]{{64}}|{SHARED}")
_PREFIX, _NAME = re.compile("[0-9a-f]{2}"), re.compile("[0-9a-f]{64}")
_UNFINISHED_NAME = re.compile("[0-9a-f]{32}")
_NUMBER = struct.Struct("<Q")
# How often the lock is tried again when somebody has replaced it.
_LOCK_TRIES = 10
# Errors of a disk that takes no more, or cannot be relied on.
_OFF = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO}


@dataclass(frozen=True)
class StoreSettings:
    """A store's folder, and how many bytes it may have, in all and of each owner. If `shared`, all clients are one
    owner."""

    folder: Path
    total_bytes: int
    owner_bytes: int
    shared: bool = False


@dataclass
class StoreCounts:
    """What a process knows about its store: the pieces in it and what they count, and what the process has done."""

    pieces: int = 0
    bytes: int = 0
    stored: int = 0
    opened: int = 0
    evicted: int = 0
    damaged: int = 0


def owner_of(key: bytes) -> str:
    """The name of the owner with this public key of 32 bytes."""
    return hashlib.sha256(key).hexdigest()


def is_piece(digest: bytes, data: memoryview) -> bool:
    """Tell whether bytes are a weight piece with this SHA-256 (32 bytes)."""
    return (
        0 < len(data) <= PIECE_BYTES_MAX
        and len(data) % 4 == 0
        and hashlib.sha256(data).digest() == digest
        and bool(np.isfinite(np.frombuffer(data, "<f4")).all())
    )


def read_piece(descriptor: int, digest: bytes, views: Iterable[memoryview]) -> bool:
    """Fill `views` with the bytes of a piece, whose file is open at its beginning; whether they are all its bytes, and
    their checksum is right."""
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
    """The size of the piece in a file of this status; 0 if it cannot be a piece, or others may have changed it."""
    size = status.st_size - _CHECKSUM_BYTES
    right = 0 < size <= PIECE_BYTES_MAX and size % 4 == 0
    return size if right and stat.S_ISREG(status.st_mode) and _is_private(status) else 0


def _used_ns(status: os.stat_result) -> int:
    """When a file was last used, in ns since 1970. A date in the future, of a clock that was wrong, counts as long ago.
    Otherwise its piece would stay, and pieces stored now would be evicted first."""
    return status.st_mtime_ns if status.st_mtime_ns <= time.time_ns() else 0


class _Owned:
    """The pieces of an owner, by name: the bytes that each counts, and when it was last used, in ns since 1970."""

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
        """When the least recently used piece was used, and its name; None if there is no piece."""
        while self._order:
            used_ns, name = self._order[0]
            if name in self.pieces and self.pieces[name][1] == used_ns:
                return used_ns, name
            heapq.heappop(self._order)
        return None


class Store:
    """A process's access to a store. Any thread may call its methods. Those that change something wait for other
    processes that do so; the others do not wait.

    `warn` is told what an operator should know. `off` says why nothing more is stored, and is empty while pieces are
    stored. Raises InputError if the folder cannot be a store.
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
        self._number: int | None = None  # the lock's number when the pieces were listed
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
        """What this process knows about the store, and what it has done."""
        owners = list(self._owners.values())
        counts = self._counts
        counts.pieces = sum(len(owned.pieces) for owned in owners)
        counts.bytes = sum(owned.cost for owned in owners)
        return counts

    # --- What changes nothing -----------------------------------------------------------------------------------------

    def has(self, owner: str, digests: Sequence[bytes]) -> bytes:
        """A byte for each digest: 1 if that piece of the owner is stored, else 0."""
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
        """A read-only descriptor of a piece's file, and how many bytes the piece has; None if it is not stored. This
        counts as a use of the piece."""
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
        """List the pieces, and make room if there are more than there may be."""
        try:
            with self._locked():
                if not self.off:
                    for owner in list(self._owners):
                        self._make_room(owner, 0)
        except OSError as error:
            self._failed(error)

    def put(self, owner: str, digest: bytes, data: memoryview) -> bool:
        """Store a piece; whether it is stored now. It is not if its bytes have another digest or are no finite floats,
        if it counts more than the store may have, or if the disk fails."""
        cost = max(len(data) + _CHECKSUM_BYTES, _COST_BYTES_MIN)
        if self.off or cost > min(self._settings.owner_bytes, self._settings.total_bytes):
            return False
        if not is_piece(digest, data):
            return False
        try:
            with self._writing:  # one piece at a time, so that what is unfinished is bounded, too
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
            with self._locked():  # so that nobody removes the file, as one of a dead process, before it is locked
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
                    with contextlib.suppress(OSError):  # only a folder that somebody put in the way can be removed
                        os.rmdir(name, dir_fd=folder)
                    self._raise_number()
                    os.rename(unfinished, name, src_dir_fd=at, dst_dir_fd=folder)
                self._owned(owner).put(name, len(data) + _CHECKSUM_BYTES, used_ns)

    def remove_damaged(self, owner: str, digest: bytes) -> bool:
        """Read a piece that is reported as damaged, and remove it if it is; whether it was."""
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
        """Tell whether anything in the folder has a piece's name."""
        with contextlib.suppress(OSError), self._place(owner, digest) as folder:
            os.stat(digest.hex(), dir_fd=folder, follow_symlinks=False)
            return True
        return False

    def _is_whole(self, owner: str, digest: bytes, use: bool = False) -> bool:
        """Tell whether a piece is there and undamaged. With `use`, this counts as a use of it."""
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
        """Evict the least recently used pieces, of the owner and then of all, until there is room for `cost` more."""
        while self._owned(owner).cost + cost > self._settings.owner_bytes and self._evict([owner]):
            pass
        while self._total() + cost > self._settings.total_bytes and self._evict(self._owners):
            pass

    def _total(self) -> int:
        return sum(owned.cost for owned in self._owners.values())

    def _evict(self, owners: Iterable[str]) -> bool:
        """Remove the least recently used piece of these owners; whether there was one. The file's date decides, as the
        list may not have the latest use."""
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
                self._counts.evicted += 1
            except FileNotFoundError:  # somebody else has removed it
                pass
            self._owned(owner).remove(name)
            return True
        return False

    def _owned(self, owner: str) -> _Owned:
        return self._owners.setdefault(owner, _Owned())

    def _failed(self, error: OSError) -> None:
        """Warn, once for each kind, of a piece that could not be stored. If no other could be either, turn storing
        off."""
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
        """A descriptor of the folder of a piece."""
        return _nested((owner, digest[:1].hex()), self._root, make)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the lock, so that nobody else changes anything, and have the right list of pieces."""
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
                self._number = None  # the list may be wrong now
                raise
            finally:
                fcntl.flock(self._lock, fcntl.LOCK_UN)

    def _take_lock(self) -> None:
        """Take the lock that is in the folder now, as others do. If somebody has removed it, or the folder, make it
        again."""
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
        """Open the lock that is there now, and the folder if it was removed. The descriptors keep their numbers,
        because other threads may be using them."""
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
        """List the pieces, and remove unfinished files of processes that have died."""
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
    """Descriptors of a store's folder, which is made if there is none, and of its lock. Raises OSError with a text that
    says what to do."""
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
    """A descriptor of the lock in a folder, which is made if there is none. On a read-only disk it is open for reading
    only. Raises OSError with a text that says what to do."""
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
    """A descriptor of a folder in folder `at`. With `make`, it is made if there is none, and a file or link in its way
    is removed. Raises OSError for no folder, a symbolic link, and a folder that others own or may write to."""
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
    """Open whatever has this name for reading, without following links or waiting."""
    return os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY, dir_fd=folder)


def _raw_bytes_of(name: str, folder: int) -> int:
    try:
        return _raw_bytes(os.stat(name, dir_fd=folder, follow_symlinks=False))
    except OSError:
        return 0


def _names(folder: int, pattern: re.Pattern[str]) -> list[str]:
    return [name for name in os.listdir(folder) if pattern.fullmatch(name)]


def _remove(name: str, folder: int) -> None:
    """Remove what has this name, if possible: a file, a link, or an empty folder."""
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
