"""The exceptions of ionn, by whose fault it was. Each message is one line that names the culprit and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class IonnError(Exception):
    """Base of all errors that ionn raises on purpose. What cannot be printed in its one line shows as "?"."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


class InputError(IonnError):
    """What the user gave (a file, a name, a number) cannot be used. The command line ends with exit code 2."""


class MissingLibraryError(IonnError):
    """A library that only some of ionn needs is not installed, or cannot be loaded. Exit code 2."""


class PartitionError(IonnError):
    """A server cannot take a client's partition: its nets or weights are wrong, or need more than is left."""


class ServerError(IonnError):
    """The server refused or failed a request; `code` is the short machine-readable reason of the wire protocol, and
    `query` the number of the query that failed, -1 where it was none."""

    def __init__(self, code: str, message: str, query: int = -1) -> None:
        super().__init__(message)
        self.code = code
        self.query = query


class ServerUnreachableError(IonnError):
    """No server answered at the address, or it stopped answering."""


class NotAcceptedError(ServerUnreachableError):
    """A server is there, and the two cannot work together: one has a wrong key, speaks another version, or computes
    with other last bits where none may differ."""


class VersionError(NotAcceptedError):
    """It speaks another version of the protocol."""


class OtherNumericsError(NotAcceptedError):
    """Its results have other last bits than this machine's, by what it says of itself, where none may differ."""


class WrongResultError(IonnError):
    """A server's result is not what its stages make of what they were sent: it was computed here, too."""


class LateError(IonnError):
    """The server has not answered a query in time, or still works on one that it was late with. It is not lost by
    that."""


class ProtocolError(IonnError):
    """The peer sent bytes that the protocol does not allow."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: "; did you mean X?" if there is a similar one, else nothing."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""


def printable(text: str) -> str:
    """A stranger's words, fit for a message: one line that does nothing to the terminal it is shown on."""
    return "".join(character if character.isprintable() else "?" for character in text)
