"""Users' own planners: functions, perhaps in a file, that are loaded into this process. The plans that they return are
checked, because testbeds and servers use them like those of ionn's own planners."""

from __future__ import annotations

import importlib
import importlib.util
import io
import logging
import operator
import os
import pickle
import re
import secrets
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from importlib.abc import SourceLoader
from itertools import groupby
from pathlib import Path
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from ionn.errors import InputError, IonnError
from ionn.files import read_bytes
from ionn.model.slices import TILE, Piece, Slice, stage_of
from ionn.planning.graph import ExecutionGraph


def load_function(spec: str) -> tuple[str, Callable[[ExecutionGraph], Any], bytes]:
    """Load the function FILE.py:FUNCTION or MODULE:FUNCTION. Returns its name, the function, and the content of its
    file, which is empty if there is no file. The current folder is searched for modules too, and the folder of a file
    for what the file imports.

    Raises InputError, in one line, if there is no such function, or if its file cannot be imported.
    """
    source, _, name = spec.rpartition(":")
    if not source or not name.isidentifier():
        raise InputError(f"{spec}: not a planner; give FILE.py:FUNCTION or MODULE:FUNCTION")
    path = Path(source)
    content = read_bytes(path, "the planner") if path.suffix == ".py" else b""
    folder = str(path.parent.resolve()) if path.suffix == ".py" else str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        module = _import_file(path, content) if path.suffix == ".py" else importlib.import_module(source)
    except (Exception, SystemExit) as error:
        raise InputError(f"{spec}: cannot import it: {_place(error)}") from error
    finally:
        if folder in sys.path:  # the file itself may have removed it
            sys.path.remove(folder)
    function = getattr(module, name, None)
    if not callable(function):
        raise InputError(f"{spec}: {source} has no function {name}")
    if path.suffix != ".py" and os.path.isfile(file := getattr(module, "__file__", None) or ""):
        content = read_bytes(Path(file), "the planner")
    return name, function, content


def _import_file(path: Path, content: bytes) -> Any:
    """The module of a file with this content. Bytecode is neither kept nor used: Python would mistake that of an
    earlier content of the same size and second for this one's, and would leave a folder beside the user's file.

    While it is imported, it can be found under a name that no other module has, as dataclasses need it. Afterwards it
    cannot: what is in a module that can be found is sent to other processes by its name, and they have no such module.
    """
    spec = importlib.util.spec_from_file_location(f"{path.stem}_{secrets.token_hex(8)}", path)
    assert spec is not None
    assert isinstance(spec.loader, SourceLoader)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    try:
        exec(spec.loader.source_to_code(content, str(path)), module.__dict__)
    finally:
        sys.modules.pop(spec.name, None)
    return module


def _place(error: BaseException) -> str:
    """An error and its place, in one line."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    reason = " ".join(str(error).split())
    return f"{type(error).__name__}: {reason} ({Path(last.filename).name}:{last.lineno})"


class _Pickler(pickle.Pickler):
    """Pickles functions as what they compute, where pickle would write only their names. What it writes does not depend
    on the process, as the order of sets does."""

    def persistent_id(self, value: Any) -> Any:
        match value:
            case CodeType():
                return value.co_code, value.co_exceptiontable, value.co_consts, value.co_names
            case FunctionType():
                nonlocals = [cell.cell_contents for cell in value.__closure__ or ()]
                return value.__code__, value.__defaults__, value.__kwdefaults__, nonlocals, _global_values(value)
            case MethodType():
                return value.__func__, value.__self__
            case set() | frozenset():
                return sorted(map(_pickled, value))
            case re.Pattern():
                return value.pattern, value.flags
            case logging.Logger():
                return value.name
        return None


def _global_values(function: FunctionType) -> dict[str, Any]:
    """The values of the globals that a function uses, without modules and functions."""
    names: set[str] = set()
    codes = [function.__code__]
    for code in codes:  # among them those of the functions in it
        names.update(code.co_names)
        codes += (const for const in code.co_consts if isinstance(const, CodeType))
    found = {name: function.__globals__[name] for name in sorted(names & function.__globals__.keys())}
    return {name: value for name, value in found.items() if not (callable(value) or isinstance(value, ModuleType))}


def content_of(function: Callable[..., Any]) -> bytes:
    """What decides what a function computes, except for the functions that it calls by their names, as bytes that are
    different for another function. If that cannot be pickled, such as a lock, they are different each time."""
    try:
        if not isinstance(function, FunctionType | MethodType):
            raise TypeError(f"{function!r} has no code")
        return _pickled(function)
    except Exception:  # which error depends on the values
        return secrets.token_bytes()


def _pickled(value: Any) -> bytes:
    content = io.BytesIO()
    pickler = _Pickler(content)
    pickler.fast = True  # an object that was pickled before is pickled again, as an equal one would be
    pickler.dump(value)
    return content.getvalue()


def checked(name: str, function: Callable[[ExecutionGraph], Any]) -> Callable[[ExecutionGraph], list[list[Piece]]]:
    """Make a planner of a function. It raises InputError if the function fails, or returns no plan for its graph.

    Slices of one stage in the same partition become one slice.
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
        except Exception as error:  # raised by a generator
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
    """The sorted pieces of a partition, with the slices of each stage joined into one slice, or into the whole stage.

    A server accepts one net per stage and partition, and no slice with all channels.
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
    """Raise ValueError unless every piece can be uploaded, none comes twice, and the rest of a stage could be a
    slice."""
    cuts = {cut.stage: cut for cut in graph.cuts}
    ends: dict[int, int] = {}  # by stage, the end of its slices so far
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
