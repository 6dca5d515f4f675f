"""What a server's store has of a client's weight pieces, as far as the server says: when to ask, and what the answers
mean. No sockets here."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

from ionn.errors import ProtocolError
from ionn.protocol.messages import DIGEST_BYTES, DIGESTS_MAX, Have, Holds, Welcome

# While weights are under way, a question is asked again after so many of their bytes for each byte of the question, so
# that it costs 0.5 % of the link, and so much time at least.
_BYTES_PER_BYTE = 200
_AGAIN_S = 1.0
# And so much at most when nothing comes from it.
_AGAIN_MAX_S = 2.0
# When all is uploaded: nobody asks any more when nothing more has been stored for so long.
_QUIET_S = 10.0


class Stored:
    """Which of the weight pieces with these digests (SHA-256, hexadecimal) the server's store has.

    `pieces` are those that the server said to have last, of which it has missed none since. What it has once missed is
    not to be taken from its store any more in this session (`may_be_taken`), since it might say so for ever.
    """

    def __init__(self, digests: Iterable[str] = ()) -> None:
        self._digests = tuple(dict.fromkeys(digests))[:DIGESTS_MAX]
        self.pieces: frozenset[str] = frozenset()
        self._session = ""  # whose server was asked for all pieces, and has answered
        self._beginning = ""  # the one that it was asked in
        self._missed: set[str] = set()
        self._asked: deque[Sequence[str]] = deque()  # what the answers that are due are about
        self._asked_s = self._news_s = 0.0
        self._asked_bytes = 0
        self._wait_s = _AGAIN_S
        self._has_ended = self._is_quiet = False
        self._at_once = 0  # so many digests may be in a question

    def begin(self, welcome: Welcome) -> Have | None:
        """A connection was made; what is to be asked first, if anything: once in a session, where there is a store."""
        self._asked.clear()
        if welcome.session == self._session and welcome.stores:
            return None
        self._session, self._beginning = "", welcome.session
        self.pieces = frozenset()
        self._missed.clear()
        self._has_ended = self._is_quiet = False
        self._at_once = welcome.window_bytes // DIGEST_BYTES
        return self._question(self._digests) if welcome.stores and self._digests else None

    def _question(self, digests: Sequence[str]) -> Have:
        """A question after these, or as many of them as the server takes at once."""
        digests = digests[: self._at_once]
        self._asked.append(digests)
        return Have((bytes.fromhex("".join(digests)),))

    @property
    def is_quiet(self) -> bool:
        """Tell whether there is nothing more to be known: no store, all is stored, or nothing more was when the upload
        had ended."""
        return not self._session or len(self.pieces) == len(self._digests) or self._is_quiet

    def ask_again(self, now_s: float, sent_bytes: int, ended: bool) -> Have | None:
        """What is to be asked now that so many bytes have been sent in all, or the upload has `ended`; None while it is
        too early, and when there is no more to be known."""
        if not self._session or self._asked or len(self.pieces) == len(self._digests):
            return None
        if not ended:
            self._has_ended = self._is_quiet = False
            size = DIGEST_BYTES * (len(self._digests) - len(self.pieces))
            if now_s - self._asked_s < _AGAIN_S or sent_bytes - self._asked_bytes < _BYTES_PER_BYTE * size:
                return None
        else:
            if not self._has_ended:
                self._has_ended, self._news_s, self._wait_s = True, now_s, 0.0
            elif now_s - self._news_s > _QUIET_S:
                self._is_quiet = True
            if self._is_quiet or now_s - self._asked_s < self._wait_s:
                return None
        self._asked_s, self._asked_bytes = now_s, sent_bytes
        return self._question([digest for digest in self._digests if digest not in self.pieces])

    def take(self, holds: Holds, now_s: float) -> None:
        """The answer to the first question that is not answered yet. Raises ProtocolError if it is none."""
        digests = self._asked.popleft() if self._asked else ()
        content = b"".join(map(bytes, holds.payload))
        if len(content) != len(digests) or not set(content) <= {0, 1}:
            raise ProtocolError(
                f"the server was asked for {len(digests)} pieces of weights, and does not say of each whether it has it"
            )
        self._session = self._beginning
        found = {digest for digest, there in zip(digests, content, strict=True) if there}
        if found:
            self.pieces |= found
            self._news_s, self._wait_s = now_s, _AGAIN_S
        else:
            self._wait_s = min(self._wait_s + _AGAIN_S, _AGAIN_MAX_S)

    def may_be_taken(self, digest: str) -> bool:
        """Tell whether the server shall take a piece from its store, in place of being sent it."""
        return digest in self.pieces and digest not in self._missed

    def miss(self, digests: Iterable[str]) -> None:
        """The server does not have these after all."""
        self._missed.update(digests)
        self.pieces -= self._missed
