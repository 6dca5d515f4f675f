"""Lets a test do anything in the process of a session, as a net could that has got hold of it.

Python imports this at its start where this folder is on PYTHONPATH, as it is for servers of tests/faults/test_sandbox
only. There a query of stage `HIJACK` carries Python code, which runs where the query would; what its function `attempt`
returns, or how it failed, is the answer.
"""

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import resource
import signal
import socket
import sys
import threading
from typing import Any

from ionn.protocol.messages import Error, Message, Query
from ionn.server import sandbox
from ionn.server.worker import SessionState

HIJACK = 10**6
# What an attempt uses: it can load nothing.
TOOLS = {
    "contextlib": contextlib, "ctypes": ctypes, "errno": errno, "fcntl": fcntl, "mmap": mmap, "os": os,
    "resource": resource, "signal": signal, "socket": socket, "sys": sys, "threading": threading,
    "libc": ctypes.CDLL(None, use_errno=True), "kept": [],
}  # fmt: skip

_handle = SessionState.handle


def handle(self: SessionState, message: Message) -> Message:
    if not (isinstance(message, Query) and message.first == HIJACK):
        return _handle(self, message)
    names: dict[str, Any] = dict(TOOLS)
    try:
        exec(bytes(message.payload[0]), names)
        result = names["attempt"]()
    except OSError as error:
        result = errno.errorcode.get(error.errno or 0, repr(error))
    except BaseException as error:
        result = repr(error)
    return Error("hijacked", str(result), query=message.query)


_deny_files = sandbox.deny_files


def deny_files() -> None:
    TOOLS["threads_then"] = len(os.listdir("/proc/self/task"))
    _deny_files()


if __name__ == "sitecustomize":  # and not imported by a test
    SessionState.handle = handle  # type: ignore[method-assign]
    sandbox.deny_files = deny_files
