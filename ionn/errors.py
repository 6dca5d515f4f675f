"""The exceptions of ionn, by whose fault it was. Each message is one line: what is wrong with what, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class IonnError(Exception):
    """Base class of all errors that ionn raises on purpose. Characters of a message that cannot be printed become
    "?"."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


class InputError(IonnError):
    """Something that the user gave (a file, a name, a number) cannot be used. The command line exits with code 2."""


class MissingLibraryError(IonnError):
    """A library that only parts of ionn need is not installed, or cannot be loaded. The command line exits with
    code 2."""


class PartitionError(IonnError):
    """A server cannot take a client's partition: its nets or weights are wrong, or exceed the memory or the limits that
    are left."""


class ServerError(IonnError):
    """The server refused a request or failed at it. `code` is the reason, a word of the protocol (docs/protocol.md);
    `query` is the number of the query that failed, or -1 if it was no query."""

    def __init__(self, code: str, message: str, query: int = -1) -> None:
        super().__init__(message)
        self.code = code
        self.query = query


class ServerUnreachableError(IonnError):
    """No server answered at the address, or it stopped answering."""


class NotAcceptedError(ServerUnreachableError):
    """A server answered, but client and server cannot work together: one has a wrong key, speaks another version of the
    protocol, or rounds differently where no bit may differ."""


class VersionError(NotAcceptedError):
    """The server speaks another version of the protocol."""


class OtherNumericsError(NotAcceptedError):
    """By its own account, the server's results differ in their last bits from this machine's, and no bit may differ."""


class WrongResultError(IonnError):
    """A server's result differs from that of the same stages computed here on the same input."""


class LateError(IonnError):
    """The server has not answered a query in time, or is still working on an earlier one. The connection stays."""


class ProtocolError(IonnError):
    """The peer sent bytes that the protocol does not allow."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: "; did you mean X?" if a known name is similar, else ""."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""


def printable(text: str) -> str:
    """A stranger's text, made safe for a message: line ends and control characters become "?"."""
    return "".join(character if character.isprintable() else "?" for character in text)
