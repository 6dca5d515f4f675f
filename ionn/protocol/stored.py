"""Which of a client's weight pieces a server's store has, as the server says: when to ask, and what the answers mean.
No sockets here."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

from ionn.errors import ProtocolError
from ionn.protocol.messages import DIGEST_BYTES, DIGESTS_MAX, Have, Holds, Welcome

# During the upload, the client asks again when it has sent so many bytes of weights for each byte of the question, so
# that questions cost 0.5 % of the link, and not before so much time has passed.
_BYTES_PER_BYTE = 200
_AGAIN_S = 1.0
# After the upload, the longest time between two questions; the time grows while nothing more is stored.
_AGAIN_MAX_S = 2.0
# After the upload, the client stops asking when nothing more has been stored for so long.
_QUIET_S = 10.0


class Stored:
    """Which of the weight pieces with these digests (SHA-256, hexadecimal) the server's store has.

    `pieces` are the digests of those that the server said it has, without those that it then missed. A piece that it
    has missed once is not to be taken from its store again in this session (`may_be_taken`): it could claim to have the
    piece, and miss it, for ever.
    """

    def __init__(self, digests: Iterable[str] = ()) -> None:
        self._digests = tuple(dict.fromkeys(digests))[:DIGESTS_MAX]
        self.pieces: frozenset[str] = frozenset()
        self._session = ""  # the session in which the server was asked for all pieces, and has answered
        self._beginning = ""  # the session in which it was asked last
        self._missed: set[str] = set()
        self._asked: deque[Sequence[str]] = deque()  # the digests in each question without an answer
        self._asked_s = self._news_s = 0.0
        self._asked_bytes = 0
        self._wait_s = _AGAIN_S
        self._has_ended = self._is_quiet = False
        self._at_once = 0  # the most digests in a question

    def begin(self, welcome: Welcome) -> Have | None:
        """Note a new connection; the question to ask first, if there is one: once in a session, if it has a store."""
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
        """A question about these digests, or as many of them as the server takes at once."""
        digests = digests[: self._at_once]
        self._asked.append(digests)
        return Have((bytes.fromhex("".join(digests)),))

    @property
    def is_asking(self) -> bool:
        """Tell whether the server has not answered a question yet."""
        return bool(self._asked)

    @property
    def is_quiet(self) -> bool:
        """Tell whether the client asks no more: there is no store, all is stored, or nothing more was stored for long
        after the upload."""
        return not self._session or len(self.pieces) == len(self._digests) or self._is_quiet

    def ask_again(self, now_s: float, sent_bytes: int, ended: bool) -> Have | None:
        """The question to ask now, when `sent_bytes` of weights have been sent in all, or the upload has `ended`; None
        while it is too early, and when the client asks no more."""
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
        """Take the answer to the earliest question without one. Raises ProtocolError if it does not answer that."""
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
        """Tell whether the server shall take a piece from its store instead of being sent it."""
        return digest in self.pieces and digest not in self._missed

    def miss(self, digests: Iterable[str]) -> None:
        """Note that the server does not have these pieces after all."""
        self._missed.update(digests)
        self.pieces -= self._missed
