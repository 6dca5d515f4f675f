"""Reading JSON from outside, checked against declared types.

The messages of peers, files of costs and traces are JSON objects. A class declares each of them: its annotations say
what every field may hold, and msgspec checks that. So what is read is strictly JSON in UTF-8, without NaN and
infinities, and within the declared ranges. Fields that the class does not have are ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec

# Integers fit into 64 bits with a sign, like those of numpy and of C libraries.
NATURAL_MAX = 2**63 - 1
# The largest time in ms, eleven days, and the largest time per unit of work. Their sums and products stay finite.
TIME_MAX_MS = 1e9

Natural = Annotated[int, msgspec.Meta(ge=0, le=NATURAL_MAX)]
TimeMs = Annotated[float, msgspec.Meta(ge=0, le=TIME_MAX_MS)]
# The largest time that a cost model may predict for a stage: TIME_MAX_MS per unit of work, times the units.
STAGE_MAX_MS = 1e24
# A number that is not negative: the time of a stage, a sum of such times, or seconds. Squares of it stay finite.
Real = Annotated[float, msgspec.Meta(ge=0, le=1e40)]
# A token, a digest, the name of a role or of an error.
Word = Annotated[str, msgspec.Meta(max_length=100, pattern=r"^[ -~]*\Z")]


def read_json(text: bytes | str, declared: Any = Any) -> Any:
    """Read a JSON text as a value of the type `declared`. Raises ValueError for anything else."""
    try:
        return msgspec.json.decode(text, type=declared)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


class Tagged:
    """JSON objects of several classes, which the text in the field `tag` tells apart."""

    def __init__(self, tag: str, classes: Mapping[str, type]) -> None:
        self._tag = tag
        head: Any = msgspec.defstruct("Head", [("tag", str, msgspec.field(name=tag))])
        self._head = msgspec.json.Decoder(head)
        self._decoders: dict[str, msgspec.json.Decoder[Any]] = {
            name: msgspec.json.Decoder(declared) for name, declared in classes.items()
        }

    def read(self, text: bytes | memoryview | str) -> Any:
        """Read a JSON text as an object of the class that its tag names. Raises ValueError for anything else."""
        try:
            name = self._head.decode(text).tag
            if name not in self._decoders:
                raise ValueError(f"unknown {self._tag} {name!r:.40}")
            return self._decoders[name].decode(text)
        except RecursionError:
            raise ValueError("it is nested too deeply") from None
