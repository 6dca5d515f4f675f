"""Sessions without sockets, in a process of their own: a net that Caffe aborts on ends that, not the tests."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Mapping, Sequence
from typing import IO, NamedTuple

from tests.support.remote import Remote, serve

# Far more than any net of a test takes: the process ends where one computes without an end.
LIMIT_S = 120


class Step(NamedTuple):
    """What session number `session` is given: the frames of a message, or None for an idle moment."""

    session: int
    frames: Sequence[bytes] | None


class Sessions(Remote):
    def __init__(self, environment: Mapping[str, str] | None = None, log: IO[bytes] | int = subprocess.DEVNULL) -> None:
        super().__init__("session_process", environment, log)

    def answers(self, steps: Sequence[Step]) -> list[list[bytes]]:
        """The frames of the answer to each message; to an idle moment none. Every session is a new one."""
        return self.ask(list(steps))  # type: ignore[no-any-return]


def _answer(steps: Sequence[Step]) -> list[list[bytes]]:
    from ionn.protocol.messages import decode
    from ionn.server.limits import Limits
    from ionn.server.worker import SessionState

    signal.alarm(LIMIT_S)
    sessions: dict[int, SessionState] = {}
    answers: list[list[bytes]] = []
    for number, frames in steps:
        if number not in sessions:
            sessions[number] = SessionState(f"session {number}", {}, Limits(), lambda status: None)
        if frames is None:
            sessions[number].warm_up()
            answers.append([])
        else:
            answers.append([bytes(frame) for frame in sessions[number].handle(decode(frames)).frames()])
    return answers


if __name__ == "__main__":
    from tests.support import session_process

    serve(session_process._answer)
