"""Execution graphs for tests: the paper's worked example, hand-made chains, and random ones."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import strategies as st

from ionn.graph import ExecutionGraph


def chain(
    client: Sequence[float],
    server: Sequence[float],
    upload: Sequence[float],
    up: Sequence[float],
    down: Sequence[float] | None = None,
    load: Sequence[float] | None = None,
    pinned: Sequence[int] = (),
) -> ExecutionGraph:
    """Stages A, B, C ...; `upload` includes `load` (none by default); `down` is like `up` by default."""
    n = len(client)
    return ExecutionGraph.from_json(
        {
            "stages": [chr(ord("A") + i) for i in range(n)],
            "client_ms": client,
            "server_ms": server,
            "upload_ms": upload,
            "load_ms": load or [0] * n,
            "up_ms": up,
            "down_ms": up if down is None else down,
            "offloadable": [i not in pinned for i in range(n)],
        }
    )


WORKED_EXAMPLE = chain(client=[10, 19, 16, 5], server=[3, 3, 4, 3], upload=[8, 8, 16, 8], up=[4, 3, 4, 8, 2])


@st.composite
def chains(draw: st.DrawFn, most_stages: int, ms: st.SearchStrategy[float], loads: bool = False) -> ExecutionGraph:
    n = draw(st.integers(1, most_stages))

    def times(size: int) -> list[float]:
        return draw(st.lists(ms, min_size=size, max_size=size))

    load = times(n) if loads else [0] * n
    upload = [wire_ms + load_ms for wire_ms, load_ms in zip(times(n), load, strict=True)]
    pinned = [i for i in range(n) if draw(st.integers(0, 5)) == 0]
    return chain(times(n), times(n), upload, times(n + 1), times(n + 1), load, pinned)


SMALL_INTEGERS = st.integers(0, 6).map(float)  # many ties, many stages without upload overhead
DECIMALS = st.integers(0, 60).map(lambda tenths: tenths / 10)  # not exact in binary
