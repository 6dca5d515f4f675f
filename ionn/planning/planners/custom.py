"""Planners of a user's own: functions, perhaps in a file, taken into the registry for as long as the process runs.

What it returns is checked, because it goes on to testbeds and servers as if it were one of ours.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import operator
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from pathlib import Path
from types import CodeType
from typing import Any

from ionn.errors import InputError, IonnError
from ionn.files import read_bytes
from ionn.model.slices import TILE, Piece, Slice, stage_of
from ionn.planning.graph import ExecutionGraph


def load_function(spec: str) -> tuple[str, Callable[[ExecutionGraph], Any], bytes]:
    """The function FILE.py:FUNCTION or MODULE:FUNCTION: its name, itself, and what its file has, nothing where it has
    none. Modules are looked for in this folder too; what a file imports, beside it too.

    Raises InputError, in one line, where there is no such function or its file cannot be imported.
    """
    source, _, name = spec.rpartition(":")
    if not source or not name.isidentifier():
        raise InputError(f"{spec}: not a planner; give FILE.py:FUNCTION or MODULE:FUNCTION")
    path = Path(source)
    content = read_bytes(path, "the planner") if path.suffix == ".py" else b""
    folder = str(path.parent.resolve()) if path.suffix == ".py" else str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        module = _import_file(path) if path.suffix == ".py" else importlib.import_module(source)
    except (Exception, SystemExit) as error:
        raise InputError(f"{spec}: cannot import it: {_place(error)}") from error
    finally:
        if folder in sys.path:  # unless the file itself took it away
            sys.path.remove(folder)
    function = getattr(module, name, None)
    if not callable(function):
        raise InputError(f"{spec}: {source} has no function {name}")
    if path.suffix != ".py" and os.path.isfile(file := getattr(module, "__file__", None) or ""):
        content = read_bytes(Path(file), "the planner")
    return name, function, content


class _FreshLoader(importlib.machinery.SourceFileLoader):
    """Compiles a file whenever it is imported. Python keeps what it compiled, and would take that for the file's own
    when the file was changed within the second to another text of the same length."""

    def get_code(self, fullname: str) -> CodeType:
        code: CodeType = self.source_to_code(self.get_data(self.path), self.path)
        return code


def _import_file(path: Path) -> Any:
    loader = _FreshLoader(path.stem, str(path))
    spec = importlib.util.spec_from_file_location(path.stem, path, loader=loader)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _place(error: BaseException) -> str:
    """What went wrong and where, in one line."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    reason = " ".join(str(error).split())
    return f"{type(error).__name__}: {reason} ({Path(last.filename).name}:{last.lineno})"


def checked(name: str, function: Callable[[ExecutionGraph], Any]) -> Callable[[ExecutionGraph], list[list[Piece]]]:
    """The function as a planner that raises InputError where it fails or does not return a plan of its graph.

    Slices of a stage that are in the same partition become one.
    """

    def planner(graph: ExecutionGraph) -> list[list[Piece]]:
        try:
            made = function(graph)
        except IonnError:
            raise
        except (Exception, SystemExit) as error:
            raise InputError(f"planner {name}: {_place(error)}") from error
        try:
            plan = [sorted(map(_piece, pieces), key=stage_of) for pieces in made]
        except TypeError:
            raise InputError(
                f"planner {name}: returned {made!r:.60}; return a list of lists of stage numbers"
            ) from None
        except Exception as error:  # of a generator
            raise InputError(f"planner {name}: {_place(error)}") from error
        try:
            _check(graph, plan)
        except ValueError as error:
            raise InputError(f"planner {name}: not a plan: {error}") from None
        return [_joined(graph, pieces) for pieces in plan]

    return planner


def _piece(piece: Any) -> Piece:
    return Slice(*map(operator.index, piece)) if isinstance(piece, Iterable) else operator.index(piece)


def _joined(graph: ExecutionGraph, pieces: Sequence[Piece]) -> list[Piece]:
    """The pieces of a partition, sorted, with the slices of a stage as one; as the stage if those are all of them.

    That is what is sent: a server takes one net of a stage, and no slice that has all channels.
    """
    channels = {cut.stage: cut.channels for cut in graph.cuts}
    joined: list[Piece] = []
    for stage, parts in groupby(pieces, key=stage_of):
        slices = [piece for piece in parts if isinstance(piece, Slice)]
        if not slices or (slices[0].begin, slices[-1].end) == (0, channels[stage]):
            joined.append(stage)
        else:
            joined.append(Slice(stage, slices[0].begin, slices[-1].end))
    return joined


def _check(graph: ExecutionGraph, plan: Sequence[Sequence[Piece]]) -> None:
    """Raise ValueError unless each piece can be uploaded, once, and what is left of a stage could be a slice."""
    cuts = {cut.stage: cut for cut in graph.cuts}
    ends: dict[int, int] = {}  # of the slices so far
    whole: set[int] = set()
    for number, pieces in enumerate(plan, start=1):
        if not pieces:
            raise ValueError(f"partition {number} is empty")
        for piece in pieces:
            stage = stage_of(piece)
            if not 0 <= stage < len(graph.stages):
                raise ValueError(f"there is no stage {stage}; they are 0 to {len(graph.stages) - 1}")
            label = f"stage {stage} ({graph.stages[stage]})"
            if not graph.offloadable[stage]:
                raise ValueError(f"{label} stays at the client")
            if stage in whole or (stage in ends and not isinstance(piece, Slice)):
                raise ValueError(f"{label} is uploaded twice")
            if not isinstance(piece, Slice):
                whole.add(stage)
            elif stage not in cuts:
                raise ValueError(f"{label} cannot be cut in slices")
            else:
                cut, begin = cuts[stage], ends.get(stage, 0)
                aligned = piece.end == cut.channels or piece.end % TILE == 0
                if piece.begin != begin or not begin + cut.least <= piece.end <= cut.channels or not aligned:
                    raise ValueError(
                        f"{label}: the next slice begins at {begin}, has at least {cut.least} of the {cut.channels} "
                        f"channels and ends at a multiple of {TILE}"
                    )
                ends[stage] = piece.end
    for stage, end in ends.items():
        left, least = cuts[stage].channels - end, cuts[stage].least
        if 0 < left < least:
            raise ValueError(
                f"stage {stage} ({graph.stages[stage]}): what is left of it has {left} channels; upload them too, or "
                f"leave at least {least}"
            )
