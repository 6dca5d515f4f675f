"""`make docs`: the reference of the library, from its docstrings."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ionn import api
from ionn.costs.models import Costs

TOP = Path(__file__).resolve().parents[2]


def modules() -> list[str]:
    makefile = (TOP / "Makefile").read_text().replace("\\\n", "")
    (line,) = (line for line in makefile.splitlines() if line.startswith("REFERENCE := "))
    return line.removeprefix("REFERENCE := ").split()


def test_all_that_the_library_offers_is_in_the_reference(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pdoc", "--no-show-source", "--output-directory", str(tmp_path), *modules()]
    done = subprocess.run(command, capture_output=True, text=True, cwd=TOP)
    assert (done.returncode, done.stderr) == (0, "")
    for name in modules():
        assert (tmp_path / f"{name.replace('.', '/')}.html").is_file(), name
    page = (tmp_path / "ionn" / "api.html").read_text()
    assert [name for name in api.__all__ if f'id="{name}"' not in page] == []


def public(name: str) -> Iterator[tuple[str, object]]:
    """The classes, their methods and properties, and the functions of a module, by their names."""
    for thing in vars(importlib.import_module(name)).values():
        if not (inspect.isclass(thing) or inspect.isfunction(thing)):
            continue
        if thing.__module__ != name or thing.__name__.startswith("_"):
            continue
        yield thing.__name__, thing
        for member, value in vars(thing).items() if inspect.isclass(thing) else ():
            function = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
            # What a protocol's methods do is said there, once.
            if inspect.isfunction(function) and not member.startswith("_") and member not in vars(Costs):
                yield f"{thing.__name__}.{member}", function


@pytest.mark.parametrize("name", modules())
def test_what_is_public_has_a_docstring(name: str) -> None:
    things = list(public(name))
    assert things
    assert [path for path, thing in things if not thing.__doc__] == []
