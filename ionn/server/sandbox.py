"""The sandbox of a session's process: the rights that it gives up, in case a client's net takes control of it.

It has two halves. Landlock denies files, TCP ports and signals to other processes, for this thread and those that it
starts afterwards. So it comes first, before OpenBLAS starts threads. The filter of system calls (seccomp) holds for all
threads, also those that run already. So it comes last, when everything is open that will be needed.

libseccomp knows the numbers of the calls on every processor, and how such a filter is written. It is called by ctypes,
as is Landlock, which is three system calls. (Of the packages for Python, pyseccomp is of 2021, and landlock has only
development releases.) Linux only, on x86-64 and arm64.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from collections.abc import Iterator
from typing import NamedTuple


def lacking() -> str:
    """What this machine lacks for a complete sandbox, as part of a sentence; empty if it lacks nothing."""
    lacks = []
    if not landlock_version():
        lacks.append("the kernel has no Landlock")
    if _libseccomp is None:
        lacks.append("libseccomp.so.2 is not installed")
    elif _libseccomp.seccomp_api_get() < _API:
        lacks.append("the kernel does not filter system calls")
    return " and ".join(lacks)


# --- Landlock ---------------------------------------------------------------------------------------------------------

# The same numbers on every processor.
_CREATE_RULESET, _RESTRICT_SELF = 444, 446
_RULESET_VERSION = 1
_PR_SET_NO_NEW_PRIVS = 38

# For each version of Landlock, how many rights to files, rights to TCP ports, and scopes (abstract sockets, signals) it
# can deny; and the size of the struct that lists them.
_LANDLOCK = {
    1: (13, 0, 0, 8),
    2: (14, 0, 0, 8),
    3: (15, 0, 0, 8),
    4: (15, 2, 0, 16),
    5: (16, 2, 0, 16),
    6: (16, 2, 2, 24),
}


class _Ruleset(ctypes.Structure):
    _fields_ = (("files", ctypes.c_uint64), ("ports", ctypes.c_uint64), ("scopes", ctypes.c_uint64))


# capset's version with 64 capabilities: effective, permitted and inheritable ones, in two halves of 32 bits each.
_CAPABILITIES_3 = 0x20080522
_NoCapabilities = ctypes.c_uint32 * 6


class _CapabilityHeader(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


_libc = ctypes.CDLL(None, use_errno=True)


def _system_call(number: int, *arguments: object) -> int:
    result: int = _libc.syscall(ctypes.c_long(number), *arguments)
    return result


def landlock_version() -> int:
    """The version of the kernel's Landlock; 0 if the kernel has none, or it is disabled."""
    return max(0, _system_call(_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint(_RULESET_VERSION)))


def deny_files() -> None:
    """Deny files, and all else that this kernel's Landlock can deny, to this thread and those that it will start. Also
    give up capabilities, which a server of root has. Open files stay open. Raises OSError if the system refuses."""
    if _libc.capset(ctypes.byref(_CapabilityHeader(_CAPABILITIES_3, 0)), ctypes.byref(_NoCapabilities())):
        raise OSError(ctypes.get_errno(), "capabilities cannot be given up")
    version = landlock_version()
    if not version:
        return
    files, ports, scopes, size = _LANDLOCK[min(version, max(_LANDLOCK))]
    # A ruleset denies what it handles and no rule allows. There is no rule.
    everything = _Ruleset((1 << files) - 1, (1 << ports) - 1, (1 << scopes) - 1)
    ruleset = _system_call(_CREATE_RULESET, ctypes.byref(everything), ctypes.c_size_t(size), ctypes.c_uint(0))
    if ruleset < 0:
        raise OSError(ctypes.get_errno(), "Landlock cannot be set up")
    try:
        if _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or _system_call(_RESTRICT_SELF, ruleset, ctypes.c_uint(0)):
            raise OSError(ctypes.get_errno(), "Landlock cannot be used")
    finally:
        os.close(ruleset)


# --- System calls -----------------------------------------------------------------------------------------------------

# The calls that Python, numpy, Caffe and OpenBLAS's threads need to receive messages, build nets and compute.
ALLOWED = (
    "read", "readv", "recvfrom", "write", "writev", "close", "lseek", "memfd_create",
    "select", "pselect6", "poll", "ppoll",
    "brk", "munmap", "mremap", "madvise",
    "futex", "sched_yield", "nanosleep", "clock_nanosleep", "set_robust_list", "rseq", "membarrier",
    "clock_gettime", "clock_getres", "gettimeofday", "time", "getrandom", "getcpu", "sched_getaffinity",
    "getpid", "gettid", "rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "sigaltstack", "restart_syscall",
    "exit", "exit_group",
)  # fmt: skip

# Calls that no session's process needs, but that one under a stranger's control may try. They end the process at once,
# which its client is told.
FATAL = (
    "execve", "execveat", "fork", "vfork", "ptrace", "process_vm_readv", "process_vm_writev", "process_madvise",
    "pidfd_open", "pidfd_getfd", "pidfd_send_signal", "kcmp",
    "connect", "bind", "listen", "accept", "accept4",
    "io_uring_setup", "bpf", "userfaultfd", "perf_event_open", "keyctl", "add_key", "request_key",
    "unshare", "setns", "mount", "umount2", "pivot_root", "chroot", "open_by_handle_at", "name_to_handle_at",
    "init_module", "finit_module", "kexec_load", "kexec_file_load", "modify_ldt", "personality",
)  # fmt: skip

_KILL_PROCESS, _ALLOW = 0x80000000, 0x7FFF0000
_ERRNO = 0x00050000 | errno.EPERM
_MASKED_EQUAL = 7
_OTHER_CONVENTION, _TSYNC, _OPTIMIZE = 2, 4, 8
# The level of libseccomp's API at which library and kernel can filter all threads (_TSYNC) and end a process.
_API = 3
_BINARY_TREE = 2
_MAP_TYPE, _MAP_GROWSDOWN = 0x0F, 0x100
_MAP_PRIVATE_ANONYMOUS = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS


class Condition(NamedTuple):
    """A condition on a call: its argument number `argument`, masked with `mask`, is `value`."""

    argument: int
    value: int
    mask: int = 2**64 - 1


def conditional(pid: int, receiving: int | None) -> tuple[tuple[str, tuple[Condition, ...]], ...]:
    """The calls that process `pid` may make only with arguments that meet all conditions. It may receive descriptors by
    the socket `receiving`, if there is one, which it can neither move to another number nor replace."""
    not_executable = Condition(2, 0, mmap.PROT_EXEC)
    receives = () if receiving is None else (("recvmsg", (Condition(0, receiving),)),)
    return (
        *receives,
        # To read what Landlock allows: its own files in memory, which Caffe is given by their names in /proc/self/fd.
        ("openat", (Condition(2, os.O_RDONLY, ~os.O_CLOEXEC & 0xFFFFFFFF),)),
        ("open", (Condition(1, os.O_RDONLY, ~os.O_CLOEXEC & 0xFFFFFFFF),)),
        # Only memory that RLIMIT_DATA counts: private, of no file, no stack, and (mprotect) writable.
        (
            "mmap",
            (not_executable, Condition(3, _MAP_PRIVATE_ANONYMOUS, _MAP_TYPE | mmap.MAP_ANONYMOUS | _MAP_GROWSDOWN)),
        ),
        ("mprotect", (Condition(2, mmap.PROT_WRITE, mmap.PROT_EXEC | mmap.PROT_WRITE),)),
        # To abort, as Caffe does with a net that it rejects.
        ("tgkill", (Condition(0, pid),)),
    )


class _Comparison(ctypes.Structure):
    _fields_ = (
        ("argument", ctypes.c_uint),
        ("operator", ctypes.c_int),
        ("first", ctypes.c_uint64),
        ("second", ctypes.c_uint64),
    )


def _load_libseccomp() -> ctypes.CDLL | None:
    """The library; None if it is not installed."""
    try:
        library = ctypes.CDLL("libseccomp.so.2")
    except OSError:
        return None
    library.seccomp_init.restype = ctypes.c_void_p
    library.seccomp_init.argtypes = (ctypes.c_uint32,)
    library.seccomp_release.argtypes = (ctypes.c_void_p,)
    library.seccomp_load.argtypes = (ctypes.c_void_p,)
    library.seccomp_attr_set.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_uint32)
    library.seccomp_rule_add_array.argtypes = (
        ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int, ctypes.c_uint, ctypes.POINTER(_Comparison),
    )  # fmt: skip
    return library


# Loaded at once, because it could not be when files are denied.
_libseccomp = _load_libseccomp()


def _rules(receiving: int | None) -> Iterator[tuple[int, str, tuple[Condition, ...]]]:
    for name in ALLOWED:
        yield _ALLOW, name, ()
    for name, conditions in conditional(os.getpid(), receiving):
        yield _ALLOW, name, conditions
    for name in FATAL:
        yield _KILL_PROCESS, name, ()


def filter_calls(receiving: int | None) -> None:
    """Allow all threads of this process the calls of `ALLOWED` only, and those of `conditional` on their conditions.
    Any other fails with EPERM, and one of `FATAL` ends the process by SIGSYS. Does nothing without libseccomp, or where
    the kernel has no filters. Raises OSError if the system refuses."""
    library = _libseccomp
    if library is None or library.seccomp_api_get() < _API:
        return

    def checked(code: int) -> None:
        if code:
            raise OSError(-code, f"system calls cannot be filtered: {os.strerror(-code)}")

    context = library.seccomp_init(_ERRNO)
    if not context:
        raise MemoryError("no memory for a filter of system calls")
    try:
        checked(library.seccomp_attr_set(context, _OTHER_CONVENTION, _KILL_PROCESS))
        checked(library.seccomp_attr_set(context, _TSYNC, 1))
        checked(library.seccomp_attr_set(context, _OPTIMIZE, _BINARY_TREE))
        for action, name, conditions in _rules(receiving):
            number = library.seccomp_syscall_resolve_name(name.encode())
            if number < 0:  # this processor has no such call
                continue
            comparisons = (_Comparison * len(conditions))(
                *(_Comparison(each.argument, _MASKED_EQUAL, each.mask, each.value) for each in conditions)
            )
            checked(library.seccomp_rule_add_array(context, action, number, len(conditions), comparisons))
        checked(library.seccomp_load(context))
    finally:
        library.seccomp_release(context)
