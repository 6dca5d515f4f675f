"""How what comes from outside is read: JSON, by the types that declare it.

Peers' messages, cost files and traces are JSON objects. A class declares each, and its annotations say what every field
may hold; msgspec checks them. What is read is therefore strictly JSON in UTF-8, without NaN and infinities, and within
the declared ranges. Fields that the class does not have are ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec

# Integers fit 64 bits, signed, as numpy's and the C libraries' do.
NATURAL_MAX = 2**63 - 1
# A time in ms, and a time per unit of work: eleven days. Sums and products of these stay finite.
TIME_MAX_MS = 1e9

Natural = Annotated[int, msgspec.Meta(ge=0, le=NATURAL_MAX)]
TimeMs = Annotated[float, msgspec.Meta(ge=0, le=TIME_MAX_MS)]
# What a cost model may predict of a stage: so many ms per unit of work, and so many units.
STAGE_MAX_MS = 1e24
# What is not negative: a time of a stage, a sum of such times, or a number of seconds. Squares of it stay finite.
Real = Annotated[float, msgspec.Meta(ge=0, le=1e40)]
# A token, a digest, the name of a role or of an error.
Word = Annotated[str, msgspec.Meta(max_length=100, pattern=r"^[ -~]*\Z")]


def read_json(text: bytes | str, declared: Any = Any) -> Any:
    """The value of a JSON text, of the type `declared`. Raises ValueError for anything else."""
    try:
        return msgspec.json.decode(text, type=declared)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


class Tagged:
    """JSON objects of several classes, which are told apart by the text of their field `tag`."""

    def __init__(self, tag: str, classes: Mapping[str, type]) -> None:
        self._tag = tag
        head: Any = msgspec.defstruct("Head", [("tag", str, msgspec.field(name=tag))])
        self._head = msgspec.json.Decoder(head)
        self._decoders: dict[str, msgspec.json.Decoder[Any]] = {
            name: msgspec.json.Decoder(declared) for name, declared in classes.items()
        }

    def read(self, text: bytes | memoryview | str) -> Any:
        """The object of a JSON text, of the class that its tag names. Raises ValueError for anything else."""
        try:
            name = self._head.decode(text).tag
            if name not in self._decoders:
                raise ValueError(f"unknown {self._tag} {name!r:.40}")
            return self._decoders[name].decode(text)
        except RecursionError:
            raise ValueError("it is nested too deeply") from None
