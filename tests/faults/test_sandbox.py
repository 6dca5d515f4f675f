"""What a net can do that has got hold of its session's process: nothing, in a sandbox. Without one, most of it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import re
import signal
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from ionn.client.connection import ping
from ionn.protocol import messages
from ionn.server import sandbox
from ionn.server.store import SHARED, Store, StoreSettings, owner_of
from tests.strangers.peers import HELLO, Stranger, ask, begin_session, message, welcome
from tests.support.command import ionn as command
from tests.support.hostile_sessions.sitecustomize import HIJACK
from tests.support.world import WAIT_S, Server, World, wait_for

HOOK = Path(__file__).resolve().parents[1] / "support" / "hostile_sessions"

DENIED = {"EACCES", "EPERM"}
KILLED = {"SIGSYS"}

# What each does, as the body of a function; and how it must end. `front`, `forks` and `sibling` are the numbers of the
# server's other processes, `secret` is a file that this user may read.
ATTEMPTS: dict[str, tuple[str, set[str]]] = {
    # Files.
    "read /etc/passwd": ("return open('/etc/passwd').read()", DENIED),
    "read a file of the user's": ("return open(secret).read()", DENIED),
    "read a file by os.open": ("return os.read(os.open(secret, os.O_RDONLY), 9)", DENIED),
    "get hold of a path": ("return os.open('/', os.O_PATH)", DENIED),
    "list a folder": ("return os.listdir('/')", DENIED),
    "write a file": ("return os.open(secret, os.O_WRONLY)", DENIED),
    "make a file": ("return os.open(secret + '.new', os.O_WRONLY | os.O_CREAT)", DENIED),
    "make an unnamed file": ("return os.open('/tmp', os.O_TMPFILE | os.O_RDWR)", DENIED),
    "open a file by openat2": (
        "return call(437, -100, secret.encode(), (ctypes.c_uint64 * 3)(), 24)",
        DENIED,
    ),
    "open a device": ("return os.open('/dev/null', os.O_RDONLY)", DENIED),
    "its own memory as a file": ("return os.open('/proc/self/mem', os.O_RDONLY)", DENIED),
    "its own program": ("return os.open('/proc/self/exe', os.O_RDONLY)", DENIED),
    "ask for a file's status": ("return os.stat(secret)", DENIED),
    "ask whether a file is there": ("return call_name('faccessat', -100, secret.encode(), 0)", DENIED),
    "read a link": ("return os.readlink('/proc/self/exe')", DENIED),
    "change the folder": ("return os.chdir('/')", DENIED),
    "make a folder": ("return os.mkdir(secret + '.d')", DENIED),
    "remove a file": ("return os.unlink(secret)", DENIED),
    "rename a file": ("return os.rename(secret, secret + '.x')", DENIED),
    "link a file": ("return os.link(secret, secret + '.x')", DENIED),
    "change a file's mode": ("return os.chmod(secret, 0o777)", DENIED),
    "change a file's owner": ("return os.chown(secret, 1, 1)", DENIED),
    "cut a file off": ("return os.truncate(secret, 0)", DENIED),
    "set a file's times": ("return os.utime(secret)", DENIED),
    "load a library": ("return ctypes.CDLL('libanl.so.1')", {"OSError"}),
    "import a module": ("import wave; return wave", {"ModuleNotFoundError", "EACCES", "EPERM"}),
    # Sockets.
    "a TCP socket": ("return socket.socket()", DENIED),
    "a UNIX socket": ("return socket.socket(socket.AF_UNIX)", DENIED),
    "a netlink socket": ("return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)", DENIED),
    "a pair of sockets": ("return socket.socketpair()", DENIED),
    "resolve a name": ("return socket.getaddrinfo(b'localhost', 80)", {"gaierror"}),
    "send a descriptor": ("return socket.send_fds(pipe, [b'x'], [0])", DENIED),
    "take a descriptor": ("return socket.recv_fds(pipe, 1, 1)", DENIED),
    "connect with its pipe": ("return pipe.connect('\\0ionn')", KILLED),
    "listen with its pipe": ("return pipe.listen()", KILLED),
    "be told a peer's connection": ("return pipe.accept()", KILLED),
    # Processes.
    "fork": ("return os.fork()", DENIED),
    "fork by the call of old": ("return call_name('fork')", KILLED),
    "clone": ("return call_name('clone', signal.SIGCHLD, 0, 0, 0, 0)", DENIED),
    "clone3": ("return call_name('clone3', (ctypes.c_uint64 * 8)(0, 0, 0, 0, signal.SIGCHLD), 64)", DENIED),
    "start a thread": ("threading.Thread(target=print).start()", {"RuntimeError"}),
    "spawn": ("return os.posix_spawn('/bin/true', ['true'], {})", DENIED),
    "exec": ("return os.execv('/bin/true', ['true'])", KILLED),
    "exec a file in memory": (
        "file = os.memfd_create('x'); os.write(file, b'#!/bin/true\\n'); return os.execve(file, ['x'], {})",
        KILLED,
    ),
    "trace a sibling": ("return call_name('ptrace', 16, sibling, 0, 0)", KILLED),
    "trace itself": ("return call_name('ptrace', 0, 0, 0, 0)", KILLED),
    "read a sibling's memory": ("return read_memory(sibling)", KILLED),
    "read the front's memory": ("return read_memory(front)", KILLED),
    "a sibling's memory as a file": ("return os.open(f'/proc/{sibling}/mem', os.O_RDONLY)", DENIED),
    "what the front was started with": ("return open(f'/proc/{front}/environ').read()", DENIED),
    "what others say on standard error": ("return os.open('/proc/self/fd/2', os.O_RDONLY)", {"ENXIO"}),
    "what the server was started with": ("return os.environ.get('SECRET')", {"None"}),
    "where a sibling's memory is": ("return open(f'/proc/{sibling}/maps').read()", DENIED),
    "a descriptor of the fork server's": ("return os.open(f'/proc/{forks}/fd/0', os.O_RDONLY)", DENIED),
    "a handle of the fork server": ("return os.pidfd_open(forks)", KILLED),
    "let itself be traced": ("return prctl(0x59616D61, -1)", DENIED),
    # Signals.
    "signal the front": ("return os.kill(front, signal.SIGTERM)", DENIED),
    "ask whether the front lives": ("return os.kill(front, 0)", DENIED),
    "signal everybody": ("return os.kill(-1, signal.SIGTERM)", DENIED),
    "signal a thread of the front": ("return call_name('tgkill', front, front, signal.SIGTERM)", DENIED),
    "signal a sibling by the call of old": ("return call_name('tkill', sibling, signal.SIGTERM)", DENIED),
    "queue a signal": ("return call_name('rt_sigqueueinfo', front, signal.SIGTERM, (ctypes.c_int * 32)())", DENIED),
    "have nobody wait for standard error": ("return fcntl.fcntl(2, fcntl.F_SETFL, os.O_NONBLOCK)", DENIED),
    "have its pipe signal the front": ("return fcntl.fcntl(pipe, fcntl.F_SETOWN, front)", DENIED),
    # Memory.
    "map memory to execute": ("return mmap.mmap(-1, 4096, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_EXEC)", DENIED),
    "make memory executable": ("return protect(7)", DENIED),
    "make memory executable with a key": ("return call_name('pkey_mprotect', page(), 4096, 7, -1)", DENIED),
    "map a file in memory to execute": (
        "return mmap.mmap(os.memfd_create('x'), 4096, mmap.MAP_PRIVATE, mmap.PROT_EXEC)",
        DENIED,
    ),
    "memory that is not counted": ("return mmap.mmap(-1, 4096)", DENIED),
    "a file in memory without a descriptor": (
        "file = os.memfd_create('x'); return mmap.mmap(file, 4096, mmap.MAP_PRIVATE, mmap.PROT_READ)",
        DENIED,
    ),
    "memory that was written to and is read-only": ("return protect(mmap.PROT_READ)", DENIED),
    "memory that grows like a stack": ("return mmap.mmap(-1, 4096, 0x122)", DENIED),
    "addresses without end": ("return mmap.mmap(-1, 2**40, mmap.MAP_PRIVATE | 0x20, mmap.PROT_READ)", {"ENOMEM"}),
    "memory of the system's": ("return call_name('shmget', 0, 4096, 0o1600)", DENIED),
    "memory without a limit": ("return call_name('prlimit64', 0, 2, (ctypes.c_uint64 * 2)(-1, -1), 0)", DENIED),
    "files in memory without end": ("return [os.memfd_create('x') for _ in range(1000)]", {"EMFILE"}),
    "a file in memory without end": (
        "file = os.memfd_create('x'); return [os.write(file, bytes(10**6)) for _ in range(10**4)]",
        {"EFBIG"},
    ),
    "cut off what it shares with the front": ("return os.ftruncate(status, 0)", DENIED),
    "abort": ("return os.abort()", {"SIGABRT"}),  # as Caffe does, which shall be told
    "enlarge what it shares with the front": ("return os.pwrite(status, bytes(10**6), 0)", DENIED),
    "add to what it shares with the front": ("return os.write(status, bytes(4096))", DENIED),
    "write to its inbox": ("return os.write(inbox, b'x')", {"EBADF"}),
    "open its inbox to write": ("return os.open(f'/proc/self/fd/{inbox}', os.O_RDWR)", DENIED),
    "map its inbox to write": ("return mmap.mmap(inbox, 4096)", DENIED),
    "make its inbox writable": ("return protect(mmap.PROT_READ | mmap.PROT_WRITE, inbox_page())", {"EACCES"}),
    "cut off its inbox": ("return os.ftruncate(inbox, 0)", DENIED),
    # The system.
    "open a door again": ("return prctl(22, 0)", DENIED),  # PR_SET_SECCOMP
    "new rights by a namespace": ("return call_name('unshare', 0x10000000)", KILLED),
    "mount": ("return call_name('mount', b'none', b'/mnt', b'tmpfs', 0, 0)", KILLED),
    "load code into the kernel": ("return call_name('bpf', 0, 0, 0)", KILLED),
    "a ring of calls": ("return call_name('io_uring_setup', 1, (ctypes.c_char * 120)())", KILLED),
    "faults of memory": ("return call_name('userfaultfd', 0)", KILLED),
    "more of the processor": ("return os.setpriority(os.PRIO_PROCESS, 0, -5)", DENIED),
    "less for the front": ("return os.setpriority(os.PRIO_PROCESS, front, 19)", DENIED),
    "the system's clock": ("return call_name('settimeofday', 0, 0)", DENIED),
    "the host's name": ("return os.uname()", DENIED),
    "a terminal's input": ("return fcntl.ioctl(2, 0x5412, b'x')", DENIED),
}
# The same of a session with a store. `known` and `others` are digests, of a piece of its owner's and one of another's.
ASK_FOR_A_FILE = "file = ask_store(b'o' + known)[1][0]; "
STORE_ATTEMPTS: dict[str, tuple[str, set[str]]] = {
    "ask for what is its owner's": (
        "return ask_store(b'h' + known + others)[0]",
        {r"b'\x01\x00'"},
    ),
    "read what is its owner's": (ASK_FOR_A_FILE + "return os.read(file, 8) == content", {"True"}),
    "read what is another owner's": (
        "answer, files, _, _ = ask_store(b'o' + others); return [answer, *files]",
        {r"[b'\x00\x00\x00\x00']"},
    ),
    "take a descriptor by the pipe to the front": ("return socket.recv_fds(pipe, 1, 1)", DENIED),
    "take a descriptor by the other end to the store": ("return socket.recv_fds(keep, 1, 1)", DENIED),
    "take a descriptor by another number for ask": (
        "return call_name('recvmsg', ask_descriptor + 2**32, (ctypes.c_char * 56)(), 0)",
        DENIED,
    ),
    "send the store a descriptor": ("return socket.send_fds(ask, [b'h' + known], [0])", DENIED),
    "give the store a descriptor": ("return socket.send_fds(keep, [b'x'], [0])", DENIED),
    "take several messages": ("return call_name('recvmmsg', ask_descriptor, 0, 0, 0, 0)", DENIED),
    "send several messages": ("return call_name('sendmmsg', ask_descriptor, 0, 0, 0)", DENIED),
    "have the pipe under ask's number": ("return os.dup2(pipe_descriptor, ask_descriptor)", DENIED),
    "have the pipe under ask's number by dup": ("os.close(ask_descriptor); return os.dup(pipe_descriptor)", DENIED),
    "have the pipe under ask's number by fcntl": (
        "os.close(ask_descriptor); return fcntl.fcntl(pipe_descriptor, fcntl.F_DUPFD, ask_descriptor)",
        DENIED,
    ),
    "have a file under ask's number": (
        "os.close(ask_descriptor); kept.extend(os.memfd_create('x') for _ in range(9)); return ask.recvmsg(1, 100)",
        {"ENOTSOCK"},
    ),
    "connect with ask": ("return ask.connect('\\0ionn')", KILLED),
    "listen with keep": ("return keep.listen()", KILLED),
    "write to a file of the store": (ASK_FOR_A_FILE + "return os.write(file, b'x')", {"EBADF"}),
    "open a file of the store to write": (
        ASK_FOR_A_FILE + "return os.open(f'/proc/self/fd/{file}', os.O_RDWR)",
        DENIED,
    ),
    "open a file of the store again": (ASK_FOR_A_FILE + "return os.open(f'/proc/self/fd/{file}', os.O_RDONLY)", DENIED),
    "find out where a file of the store is": (ASK_FOR_A_FILE + "return os.readlink(f'/proc/self/fd/{file}')", DENIED),
    "cut off a file of the store": (ASK_FOR_A_FILE + "return os.ftruncate(file, 0)", DENIED),
    "change a file of the store": (ASK_FOR_A_FILE + "return os.fchmod(file, 0o777)", DENIED),
    "date a file of the store": (ASK_FOR_A_FILE + "return os.utime(file)", DENIED),
    "lock a file of the store": (ASK_FOR_A_FILE + "return fcntl.flock(file, fcntl.LOCK_EX)", DENIED),
    "link a file of the store": (ASK_FOR_A_FILE + "return os.link(f'/proc/self/fd/{file}', secret + '.x')", DENIED),
    "map a file of the store to execute": (
        ASK_FOR_A_FILE + "return mmap.mmap(file, 8, mmap.MAP_PRIVATE, mmap.PROT_EXEC)",
        DENIED,
    ),
    "map a file of the store": (ASK_FOR_A_FILE + "return mmap.mmap(file, 8, mmap.MAP_SHARED, mmap.PROT_READ)", DENIED),
    "files of the store without end": (
        "return [ask_store(b'o' + known)[1][0] for _ in range(99)]",
        {"IndexError"},  # the system gives it no more of them
    ),
    "leave the folder": (
        "return ask_store(b'h' + b'../../secret'.ljust(32))[0]",
        {r"b'\x00'"},
    ),
}
ARM = platform.machine() == "aarch64"
if not ARM:
    # The numbers of x86's third calling convention (x32), which filters for the other two miss.
    ATTEMPTS["exec by another convention's number"] = ("return call(0x40000000 + 520, 0, 0, 0)", KILLED)
    ATTEMPTS["read a file by another convention's number"] = ("return call(0x40000000 + 2, secret.encode(), 0)", KILLED)

PRELUDE = """
def call(number, *arguments):
    result = libc.syscall(*[ctypes.c_long(each) if isinstance(each, int) else each for each in (number, *arguments)])
    if result < 0:
        raise OSError(ctypes.get_errno(), "")
    return result

def call_name(name, *arguments):
    return call(numbers[name], *arguments)

def prctl(*arguments):
    if libc.prctl(*(*arguments, 0, 0, 0)[:5]):
        raise OSError(ctypes.get_errno(), "")

memory = ctypes.create_string_buffer(8192)

def page():
    return (ctypes.addressof(memory) + 4095) & ~4095

def protect(how, at=None):
    if libc.mprotect(ctypes.c_void_p(at or page()), 4096, how):
        raise OSError(ctypes.get_errno(), "")

def inbox_page():
    import gc, numpy
    (pipe,) = (each for each in gc.get_objects() if type(each).__name__ == "Pipe")
    return numpy.frombuffer(pipe._inbox, numpy.uint8).ctypes.data

def read_memory(pid):
    word = ctypes.create_string_buffer(8)
    here, there = (ctypes.c_void_p * 2)(ctypes.addressof(word), 8), (ctypes.c_void_p * 2)(id(None), 8)
    return call_name("process_vm_readv", pid, here, 1, there, 1, 0)

def ask_store(packet):
    os.write(ask_descriptor, packet)
    ask = kept[1]
    while True:
        with contextlib.suppress(BlockingIOError):
            return socket.recv_fds(ask, 100, 8)
        libc.poll(None, 0, 1)

def attempt():
    pipe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, pipe_descriptor)
    kept.append(pipe)  # freed, it would be closed
    if "ask_descriptor" in globals():
        ask = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, ask_descriptor)
        keep = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, keep_descriptor)
        kept.extend((ask, keep))
"""
# What is stored for the hijacked sessions, and what is stored for somebody else.
CONTENT, OTHERS_CONTENT = (memoryview(bytes([byte]) * 400) for byte in (1, 2))
KNOWN, OTHERS = (hashlib.sha256(content).digest() for content in (CONTENT, OTHERS_CONTENT))


class Hijacked:
    """A session whose client can run Python code in its process."""

    def __init__(self, server: Server, secret: Path, peer: Stranger, sibling: int) -> None:
        _, self.process = begin_session(server, peer)
        self._peer = peer
        (forks,) = server.helpers()
        links = {int(link.name): os.readlink(link) for link in Path(f"/proc/{self.process}/fd").iterdir()}
        pipe, *store = sorted(number for number, target in links.items() if number > 2 and target.startswith("socket:"))
        status, inbox = (
            next(number for number, target in links.items() if target.startswith(f"/memfd:{name}"))
            for name in ("note", "inbox")
        )
        self._names = {
            "front": server.pid, "forks": forks, "sibling": sibling, "secret": str(secret),
            "pipe_descriptor": pipe, "status": status, "inbox": inbox, "numbers": system_calls(),
        }  # fmt: skip
        self._names.update(zip(("ask_descriptor", "keep_descriptor"), store, strict=False))
        self._names.update(known=KNOWN, others=OTHERS, content=bytes(CONTENT[:8]))

    def query(self, body: str) -> messages.Query:
        names = "".join(f"{name} = {value!r}\n" for name, value in self._names.items())
        code = names + PRELUDE + textwrap.indent(body.replace("; ", "\n"), "    ")
        return messages.Query(1, HIJACK, HIJACK, (code.encode(),))

    def run(self, body: str) -> str:
        """What a function with this body returns in the session's process, or how that failed: the name of an errno, of
        an exception, or of the signal that ended the process."""
        answer = ask(self._peer, self.query(body))
        assert isinstance(answer, messages.Error), answer
        if answer.code == messages.ERROR_CRASHED:
            ended = re.search(r"by signal (\d+)", answer.message)
            assert ended, answer
            return signal.Signals(int(ended[1])).name
        return answer.message.partition("(")[0]


def system_calls() -> dict[str, int]:
    """The numbers of this processor's system calls."""
    library = sandbox._libseccomp
    assert library is not None
    bodies = [body for body, _ in (*ATTEMPTS.values(), *STORE_ATTEMPTS.values())]
    names = {body.partition("call_name('")[2].partition("'")[0] for body in bodies} - {""}
    return {name: library.seccomp_syscall_resolve_name(name.encode()) for name in (*names, "process_vm_readv")}


@contextlib.contextmanager
def server_with_hook(*options: str, **environment: str) -> Iterator[Server]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(HOOK))
        for name, value in environment.items():
            patch.setenv(name, value)
        server = Server("--sessions", "200", *options)
    yield server
    server.end_well()


@pytest.fixture(scope="module")
def locked() -> Iterator[Server]:
    with server_with_hook(SECRET="a secret") as server:
        yield server


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_text("a secret")
    path.chmod(0o600)
    return path


@pytest.fixture
def sibling(locked: Server) -> Iterator[tuple[Stranger, int]]:
    """Another client's session, and its process."""
    with Stranger(locked.address, 3) as peer:
        _, process = begin_session(locked, peer)
        yield peer, process
        assert isinstance(ask(peer, messages.Ping()), messages.Pong)
        peer.send(message(messages.Bye()))


@pytest.mark.parametrize("name", ATTEMPTS)
def test_what_a_hostile_session_tries(name: str, locked: Server, secret: Path, sibling: tuple[Stranger, int]) -> None:
    body, expected = ATTEMPTS[name]
    with Stranger(locked.address) as peer:
        hijacked = Hijacked(locked, secret, peer, sibling[1])
        assert hijacked.run(body) in expected
        peer.send(message(messages.Bye()))
    assert locked.alive()
    assert secret.read_text() == "a secret"
    assert [path.name for path in secret.parent.iterdir()] == ["secret"]
    assert psutil.pid_exists(sibling[1])


@pytest.fixture(scope="module")
def storing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with a store, in which a piece is stored for its clients, and another one for somebody else."""
    folder = tmp_path_factory.mktemp("storing") / "store"
    store = Store(StoreSettings(folder, 10**9, 10**9))
    assert store.put(SHARED, KNOWN, CONTENT)
    assert store.put(owner_of(b"another"), OTHERS, OTHERS_CONTENT)
    store.close()
    with server_with_hook("--store", str(folder), "--store-gb", "1", "--store-shared") as server:
        yield server


@pytest.mark.parametrize("name", STORE_ATTEMPTS)
def test_what_a_hostile_session_tries_with_its_store(name: str, storing: Server, secret: Path) -> None:
    body, expected = STORE_ATTEMPTS[name]
    with Stranger(storing.address) as peer:
        assert Hijacked(storing, secret, peer, storing.pid).run(body) in expected
        peer.send(message(messages.Bye()))
    assert storing.alive()
    with Stranger(storing.address, 3) as peer:
        welcome(peer)
        held = ask(peer, messages.Have((KNOWN + OTHERS,)))
        assert list(held.payload) == [b"\1\0"]
        peer.send(message(messages.Bye()))


@pytest.mark.parametrize("name", ATTEMPTS)
def test_a_store_opens_nothing_else(name: str, storing: Server, secret: Path) -> None:
    body, expected = ATTEMPTS[name]
    with Stranger(storing.address) as peer:
        assert Hijacked(storing, secret, peer, storing.store_process()).run(body) in expected
        peer.send(message(messages.Bye()))
    assert storing.alive()
    assert [path.name for path in secret.parent.iterdir()] == ["secret"]


def test_it_could_without_a_sandbox(secret: Path) -> None:
    """The attempts are real ones. What a session shares with the front cannot be cut off all the same."""
    possible = {
        "read a file of the user's": "a secret",
        "ask whether the front lives": "None",
        "a TCP socket": "<socket.socket",
        "make memory executable": "None",
        "memory that is not counted": "<mmap.mmap",
        "cut off what it shares with the front": "EPERM",
        "enlarge what it shares with the front": "EPERM",
    }
    with server_with_hook("--no-sandbox") as server, Stranger(server.address) as peer:
        hijacked = Hijacked(server, secret, peer, server.pid)
        for name, expected in possible.items():
            assert hijacked.run(ATTEMPTS[name][0]).startswith(expected), name
        assert len(hijacked.run(ATTEMPTS["read the front's memory"][0])) > 0
        child = int(hijacked.run("child = os.fork(); return child or os._exit(0)"))
        assert child > 0


def threads_of(process: int) -> list[dict[str, str]]:
    """What the system says of every thread."""
    return [
        dict(line.split(":\t", 1) for line in (thread / "status").read_text().splitlines())
        for thread in Path(f"/proc/{process}/task").iterdir()
    ]


def test_threads_of_openblas_are_in_it(secret: Path, world: World) -> None:
    """They start when files are denied, which holds for threads that start afterwards, and before calls are filtered,
    which holds for all."""
    with server_with_hook(OPENBLAS_NUM_THREADS="2") as server:
        with Stranger(server.address) as peer:
            hijacked = Hijacked(server, secret, peer, server.pid)
            assert hijacked.run("return threads_then") == "1"
            threads = threads_of(hijacked.process)
            assert len(threads) == 2
            for thread in threads:
                assert (thread["Seccomp"], thread["NoNewPrivs"]) == ("2", "1")
                assert int(thread["CapEff"], 16) == int(thread["CapPrm"], 16) == 0
            # The process, not the thread alone.
            assert (
                hijacked.run("return call(221, 0, 0)" if ARM else "return call(0x40000000 + 520, 0, 0, 0)") == "SIGSYS"
            )
        world.check_health(server.address)


def test_what_a_session_says_is_quoted_and_bounded(secret: Path) -> None:
    with server_with_hook() as server:
        with Stranger(server.address) as peer:
            hijacked = Hijacked(server, secret, peer, server.pid)
            hijacked.run("os.write(2, b'\\x1b]0;you were\\x07 here' + bytes([10]))")
            hijacked.run("for _ in range(1000): os.write(2, b'x' * 4096 + bytes([10]))")
            assert isinstance(ask(peer, messages.Ping()), messages.Pong)
        code, said = server.stop()
        server.start()
    assert code == 0
    assert "a session's process says line='?]0;you were? here'" in said
    assert len(said) < 200_000  # of the four million


def test_a_log_that_nobody_reads_holds_up_nobody(world: World, secret: Path) -> None:
    """A pipe has room for 64 kB. The lines that are lost are counted."""
    with server_with_hook() as server:
        with Stranger(server.address) as peer:
            hijacked = Hijacked(server, secret, peer, server.pid)
            for _ in range(20):  # more than are logged at once, so that the log has as much as it may
                hijacked.run("for _ in range(100): os.write(2, b'x' * 600 + bytes([10]))")
        # The lines of sessions fill the rest.
        for _ in range(200):
            with Stranger(server.address) as peer:
                welcome(peer)
                peer.send(message(messages.Bye()))
        world.check_health(server.address)
        errors = server._process.stderr
        assert errors is not None
        os.read(errors.fileno(), 1 << 16)  # there is room again
        world.check_health(server.address)
        _, said = server.stop()
        assert re.search(r" lost_lines=\d+ ", said)
        server.start()


PIECE_BY_PIECE = """
head = (2000).to_bytes(4, 'little') + bytes(8) + (1).to_bytes(8, 'little') * 2000
os.write(pipe_descriptor, head)
while os.write(pipe_descriptor, b'x'): libc.poll(None, 0, 200)
"""


def test_an_answer_without_end_to_nobody_is_ended(secret: Path) -> None:
    with server_with_hook("--stall-s", "2") as server:
        with Stranger(server.address) as peer:
            hijacked = Hijacked(server, secret, peer, server.pid)
            peer.send(message(hijacked.query(PIECE_BY_PIECE.strip().replace("\n", "; "))))
        wait_for(lambda: hijacked.process not in server.session_processes(), "the end of the session")


def server_by(script: str, folder: Path) -> Server:
    """A server that this shell script starts in Python's place."""
    python = folder / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o700)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "executable", str(python))
        return Server()


@pytest.mark.parametrize("limit", ["fsize=10000000", "as=1500000000", "data=1500000000", "nofile=3000"])
def test_limits_of_the_servers_own(limit: str, world: World, tmp_path: Path) -> None:
    """What the system holds the server to may be less than a session would have."""
    server = server_by(f'exec prlimit --{limit} {sys.executable} "$@"', tmp_path)
    world.check_health(server.address)
    server.end_well()


@pytest.mark.parametrize("closed", ["2>&-", "2>/dev/full"])
def test_a_server_without_a_log(closed: str, world: World, tmp_path: Path) -> None:
    """Nothing else gets the number of its standard error, or what is written there."""
    server = server_by(f'exec {sys.executable} "$@" --verbose {closed}', tmp_path)
    for _ in range(3):
        with Stranger(server.address) as peer:
            welcome(peer)
            wait_for(lambda: len(server.session_processes()) == 1, "the end of the sessions before")
            (process,) = server.session_processes()
            os.kill(process, signal.SIGKILL)  # it is logged
        world.check_health(server.address)
    target = os.readlink(f"/proc/{server.pid}/fd/2")
    assert target == ("/dev/full" if "full" in closed else "/dev/null")
    server.stop()


WITHOUT_LANDLOCK = """
import ctypes, errno, sys
library = ctypes.CDLL("libseccomp.so.2")
library.seccomp_init.restype = ctypes.c_void_p
context = ctypes.c_void_p(library.seccomp_init(0x7FFF0000))
assert not library.seccomp_rule_add(context, 0x00050000 | errno.ENOSYS, 444, 0)
assert not library.seccomp_load(context)
from ionn.__main__ import main
sys.exit(main())
"""


def test_where_the_kernel_has_no_landlock(world: World, tmp_path: Path) -> None:
    """It says so, and does what it can."""
    server = server_by(f"shift 2\nexec {sys.executable} -c '{WITHOUT_LANDLOCK}' \"$@\"", tmp_path)
    world.check_health(server.address)
    wait_for(lambda: not ping(server.address, timeout_s=WAIT_S).sessions, "the end of the session before")
    with Stranger(server.address) as peer:
        peer.shake_hands()
        pong = ask(peer, messages.Ping())
        assert (pong.room, pong.sandboxed) == (True, False)
        assert isinstance(ask(peer, HELLO), messages.Welcome)
        (process,) = server.session_processes()
        assert [thread["Seccomp"] for thread in threads_of(process)] == ["2"]
    done = command("ping", server.address)
    assert done.stdout.strip() == f"{server.address}: ready, 1 sessions, not sandboxed: its log says why"
    code, said = server.stop()
    assert code == 0
    assert "the kernel has no Landlock" in said


@pytest.mark.parametrize(
    ("landlock", "library", "expected"),
    [
        (7, True, ""),
        (0, True, "the kernel has no Landlock"),
        (1, False, "libseccomp.so.2 is not installed"),
        (0, False, "the kernel has no Landlock and libseccomp.so.2 is not installed"),
    ],
)
def test_what_is_lacking(landlock: int, library: bool, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "landlock_version", lambda: landlock)
    if not library:
        monkeypatch.setattr(sandbox, "_libseccomp", None)
    assert sandbox.lacking() == expected


ARM64 = 0xC00000B7


def test_every_call_is_one_of_both_processors() -> None:
    """One that has another name there would not be filtered as it is said."""
    library = sandbox._libseccomp
    assert library is not None
    names = (*sandbox.ALLOWED, *sandbox.FATAL, *(name for name, _ in sandbox.conditional(1, 2)))

    def missing(processor: int) -> set[str]:
        return {n for n in names if library.seccomp_syscall_resolve_name_arch(processor, n.encode()) < 0}

    assert missing(0xC000003E) == set()
    # Of old: there is another that does the same, and is named too.
    assert missing(ARM64) == {"fork", "vfork", "modify_ldt", "open", "poll", "select", "time"}
