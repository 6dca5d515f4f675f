"""What the documentation says: its commands run, its names exist, its links lead somewhere.

The shell blocks of README.md and docs/*.md run in a copy of this tree, line by line, each block in a folder state that
the blocks before it left. `LONG` are the lines that take too long for that: they are checked as far as they can be
without doing the work.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

import ionn.cli
from ionn.model.layers import LAYER_TYPES
from tests.support.machine import vacant

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "models" / "README.md"]

# The first words of lines that are not run, and why.
LONG = {
    "make": "sets up, tests or measures: minutes",
    "python bench/alexnet.py --dilation 8 --runs": "two hours",
    "ionn calibrate": "up to a minute; make test-long runs it",
    "ionn run googlenet --algorithm original": "a live run, 8 s; make test-long runs it",
    "ionn run alexnet --link": "three live runs, a minute and a half; make test-long runs it",
}
COMMANDS = ionn.cli.cli.commands
FILE = re.compile(r"(ionn|tests|bench|deploy|docs|examples|prototxt|plots|caffe-build|\.ci)/[\w./-]*")


def blocks(page: Path, language: str = "sh") -> list[list[str]]:
    """The fenced blocks of a page, line by line; a compound command is one line."""
    found = re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [[text] if "done" in text or language != "sh" else text.splitlines() for text in found]


def is_long(line: str) -> bool:
    return line.startswith(tuple(LONG))


def check_unrun(line: str) -> None:
    """A line that is not run: `make` knows the target, `ionn` the command and its options, a bench its options."""
    words = shlex.split(line, comments=True)
    if words[0] == "make":
        targets = [word for word in words[1:] if "=" not in word]
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        assert targets
        assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets), line
    elif words[0] == "python":
        usage = subprocess.run(
            [sys.executable, words[1], "--help"], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout
        assert all(word in usage for word in words[2:] if word.startswith("--")), line
    else:
        name, *arguments = words[1:]
        COMMANDS[name].make_context(name, arguments)  # raises a click exception for what the command does not know


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of this tree in which `ionn` and `python` are those of this process."""
    copy = tmp_path_factory.mktemp("docs") / "ionn"
    ignored = shutil.ignore_patterns(".*", "build", "results", "*.caffemodel", "__pycache__", "*.egg-info")
    shutil.copytree(ROOT, copy, ignore=ignored)
    for weights in (ROOT / "models").glob("*.caffemodel"):
        (copy / "models" / weights.name).symlink_to(weights)
    programs = copy / ".venv" / "bin"
    programs.mkdir(parents=True)
    (programs / "activate").write_text("")
    for name, arguments in {"ionn": "-m ionn", "python": ""}.items():
        (programs / name).write_text(f'#!/bin/sh\nexec {sys.executable} {arguments} "$@"\n')
        (programs / name).chmod(0o755)
    # What the long lines would leave, and what they need.
    for line in (
        "ionn profile googlenet --runs 1 --save server.json",
        "ionn bandwidth driving --seconds 120 --seed 1 --out driving.csv",
    ):
        subprocess.run(shlex.split(line), cwd=copy, env=environment(copy), check=True, capture_output=True)
    return copy


def environment(tree: Path) -> dict[str, str]:
    path = f"{tree / '.venv' / 'bin'}:{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "PYTHONPATH": str(tree), "OPENBLAS_NUM_THREADS": "1"}


@pytest.fixture
def ports() -> Iterator[dict[str, str]]:
    """Ports of a test's own, for those that the pages give to servers and links: others may be using these."""
    with vacant() as (_, one), vacant() as (_, other):
        yield {"7675": str(one), "7676": str(other)}


def at_ports(line: str, ports: dict[str, str]) -> str:
    if line.startswith("ionn serve") and "--bind" not in line:
        line = line.replace("ionn serve", "ionn serve --bind tcp://127.0.0.1:7675")
    return re.sub(r"(?<=:)767[56]\b", lambda port: ports[port[0]], line)


def shell(line: str, tree: Path, timeout_s: float = 240) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-ec", line], cwd=tree, env=environment(tree), capture_output=True, text=True, timeout=timeout_s,
        check=False,
    )  # fmt: skip


@contextlib.contextmanager
def background(line: str, tree: Path) -> Iterator[None]:
    """A server or a link, from when it is ready until the block ends."""
    with subprocess.Popen(
        ["bash", "-c", f"exec {line}"], cwd=tree, env=environment(tree), stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline().startswith("tcp://"), line
            yield
        finally:
            process.terminate()


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=lambda page: page.stem)
def test_commands_run(page: Path, tree: Path, ports: dict[str, str]) -> None:
    for block in blocks(page):
        with contextlib.ExitStack() as running:
            for written in block:
                line = at_ports(written, ports)
                if is_long(line):
                    check_unrun(line)
                elif re.match(r"ionn (serve|link) ", line):
                    running.enter_context(background(line, tree))
                else:
                    done = shell(line, tree)
                    assert done.returncode == 0, f"{line}\n{done.stderr}"


@pytest.mark.long
@pytest.mark.parametrize("start", [start for start, why in LONG.items() if "make test-long runs it" in why])
def test_long_commands_run(start: str, tree: Path) -> None:
    lines = {line for page in PAGES for block in blocks(page) for line in block if line.startswith(start)}
    assert lines
    for line in lines:
        done = shell(line, tree, timeout_s=300)
        assert done.returncode == 0, f"{line}\n{done.stderr}"


def test_python_runs(tree: Path) -> None:
    (code,) = blocks(ROOT / "README.md", "python")
    done = subprocess.run(
        [sys.executable, "-c", *code], cwd=tree, env=environment(tree), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 2


def test_there_are_blocks_and_every_exception_is_needed() -> None:
    lines = [line for page in PAGES for block in blocks(page) for line in block]
    assert len(lines) > 30
    for start in LONG:
        assert any(line.startswith(start) for line in lines), start


# --- Names ----------------------------------------------------------------------------------------------------------


def mentions() -> list[tuple[str, str]]:
    """What the pages say in code, inline or indented: (page, text)."""
    found = []
    for page in PAGES:
        text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
        found += [(page.name, " ".join(code.split())) for code in re.findall(r"(?<!`)`([^`]+)`(?!`)", text)]
        found += [(page.name, line.strip()) for line in re.findall(r"^    (?=\S)(.*)$", text, re.MULTILINE)]
    return found


# Words that are not ours.
FOREIGN = {"iperf3", "fish_source", "no_new_privs", "zsh_source"}


def options_of(command: click.Command) -> set[str]:
    return {option for each in command.params for option in (*each.opts, *each.secondary_opts)}


OPTIONS = set().union(*map(options_of, COMMANDS.values()))


@functools.cache
def words_of_the_sources() -> set[str]:
    sources = {ROOT / "Makefile", ROOT / "setup.py", *(ROOT / "tests").rglob("*.py")} - {Path(__file__)}
    sources |= set((ROOT / "deploy").iterdir())
    sources |= {path for folder in ("ionn", "bench", "models", "examples") for path in (ROOT / folder).rglob("*.py")}
    return {word for path in sources for word in re.findall(r"\w+", path.read_text(encoding="utf-8"))}


def resolve(name: str) -> None:
    """Import as much of a dotted name as is a module, and get the rest."""
    found, *attributes = name.split(".")
    value: Any = importlib.import_module(found)
    for attribute in attributes:
        if not hasattr(value, attribute):
            importlib.import_module(f"{value.__name__}.{attribute}")
        value = getattr(value, attribute)


def check_mention(code: str) -> bool:
    """Whether there is anything to check about a mention in code; an AssertionError, or any other, if it is wrong."""
    code = re.sub(r"^\w+\$ ", "", code).removeprefix(".venv/bin/")  # a prompt
    words = code.split()
    if words[0] == "make" and len(words) > 1:
        check_unrun(code)
    elif words[0] == "ionn" and len(words) > 1 and words[1] in COMMANDS:
        known = options_of(COMMANDS[words[1]]) | {"--help"}
        assert {word for word in words if word.startswith("--")} <= known
    elif words[0] == "ionn" and len(words) > 1:
        assert words[1] in ("COMMAND", "--help")
    elif words[0] == "python":
        assert (ROOT / words[1]).is_file()
    elif words[0].startswith("--") and "=" not in code:
        assert words[0] in OPTIONS
    elif re.fullmatch(r"ionn(\.\w+)+(\(.*\))?", code):
        resolve(code.partition("(")[0])
    elif FILE.fullmatch(code) and not re.search("[A-Z]{3}", code):
        assert (ROOT / code).exists()
    elif re.fullmatch(r"\w+\.py", code):
        assert any((ROOT / folder / code).is_file() for folder in ("bench", "ionn/model/layers"))
    elif name := re.fullmatch(r"(\w+)(\(.*\))?", code):
        assert name[1] in words_of_the_sources() | FOREIGN
    else:
        return False  # a drawing, an output, a pattern
    return True


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_is_mentioned_exists(page: Path) -> None:
    wrong = []
    for name, code in sorted(set(mentions())):
        if name == page.name:
            try:
                check_mention(code)
            except (AssertionError, ImportError, AttributeError, click.ClickException) as error:
                wrong.append((code, error))
    assert not wrong


def test_most_mentions_are_checked() -> None:
    checked = sum(check_mention(code) for _, code in mentions())
    assert checked > 0.75 * len(mentions())


@pytest.mark.parametrize(
    "code",
    [
        "make tests", "ionn run --no-such", "ionn bake", "python bench/none.py", "--no-such", "ionn.nothing",
        "ionn.planning.graph.Nothing", "tests/none.py", "none.py", "NO_SUCH_WORD", "no_such_word(x)",
    ],
)  # fmt: skip
def test_a_wrong_mention_is_found(code: str) -> None:
    with pytest.raises((AssertionError, ImportError)):
        check_mention(code)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        assert (page.parent / target).exists() or target.startswith("https://"), target


def test_types_that_upstream_lacks_are_types_of_ours() -> None:
    page = (ROOT / "docs" / "caffe.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\w+) \|", page.partition("## Layer types that upstream lacks")[2], re.MULTILINE)
    assert len(rows) > 5
    assert set(rows) - {"type"} <= LAYER_TYPES.keys()


def test_commands_are_all_in_their_table() -> None:
    page = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `ionn (\w+)", page, re.MULTILINE)
    assert sorted(rows) == sorted(COMMANDS)
    context = click.Context(ionn.cli.cli)
    for name in COMMANDS:
        assert COMMANDS[name].get_help(context)


def test_one_version_everywhere() -> None:
    [version] = re.findall(r'^    version="([\d.]+)",$', (ROOT / "setup.py").read_text(encoding="utf-8"), re.MULTILINE)
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    [date] = re.findall(r"^date-released: ([\d-]+)$", citation, re.MULTILINE)
    assert re.findall(r"^version: (.*)$", citation, re.MULTILINE) == [version]
    assert re.findall(r"^## (.*)$", changes, re.MULTILINE)[0] == f"{version}, {date}"
