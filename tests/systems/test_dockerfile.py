"""What is read of a Dockerfile and a .dockerignore; ours, and what they must agree with."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ionn.libraries import CAFFE_PACKAGES
from tests.systems.dockerfile import DockerfileError, command, context, expanded, options, parse

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = ROOT / "deploy" / "Dockerfile"


def test_instructions() -> None:
    text = '# a comment\nFROM debian:12-slim AS build\n\nRUN one \\\n    # of two\n    && two\nCMD ["three"]\n'
    assert [(each.line, each.keyword, each.rest) for each in parse(text)] == [
        (2, "FROM", "debian:12-slim AS build"),
        (4, "RUN", "one && two"),
        (7, "CMD", '["three"]'),
    ]
    with pytest.raises(DockerfileError, match="line 2: ONBUILD: this instruction is not known here"):
        parse("FROM scratch\nONBUILD RUN true\n")
    with pytest.raises(DockerfileError, match="line 1: the last line is continued"):
        parse("RUN true \\\n")


def test_words() -> None:
    assert command('["ionn", "ping"]') == ["ionn", "ping"]
    assert command("ionn ping | cat") == ["/bin/sh", "-c", "ionn ping | cat"]
    with pytest.raises(DockerfileError, match="not a list of words"):
        command("[1]")
    assert expanded("$A:${B}$C", {"A": "1", "B": "2"}) == "1:2"
    assert options("--from=build --chmod=755 /a /b") == ({"from": "build", "chmod": "755"}, "/a /b")
    assert options("--interval=30s CMD true") == ({"interval": "30s"}, "CMD true")


def test_of_the_patterns_that_match_the_last_decides(tmp_path: Path) -> None:
    for name in ("a.py", "b.txt", "sub/a.py", "sub/deep/c.pyc", "sub/deep/d", "other/a.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()

    def kept(*patterns: str) -> set[str]:
        return {str(path) for path in context(tmp_path, "\n".join(patterns))}

    assert kept("# nothing") == {"a.py", "b.txt", "sub/a.py", "sub/deep/c.pyc", "sub/deep/d", "other/a.py"}
    assert kept("*", "!sub", "**/*.pyc") == {"sub/a.py", "sub/deep/d"}
    assert kept("*.py") == {"b.txt", "sub/a.py", "sub/deep/c.pyc", "sub/deep/d", "other/a.py"}
    assert kept("**/a.py", "!other/a.py") == {"b.txt", "sub/deep/c.pyc", "sub/deep/d", "other/a.py"}
    assert kept("*", "!sub/deep/d") == {"sub/deep/d"}


def test_the_image_has_the_libraries_that_caffe_is_linked_to() -> None:
    last_stage = DOCKERFILE.read_text().rpartition("\nFROM ")[2]
    assert set(re.findall(r"\blib[\w.-]+", last_stage.partition("&& rm")[0])) == {*CAFFE_PACKAGES["12"], "libseccomp2"}


def test_what_is_copied_is_in_the_context() -> None:
    files = {str(path) for path in context(ROOT, (DOCKERFILE.parent / "Dockerfile.dockerignore").read_text())}
    assert not any("__pycache__" in name for name in files)
    for instruction in parse(DOCKERFILE.read_text()):
        if instruction.keyword == "COPY":
            chosen, rest = options(instruction.rest)
            for name in rest.split()[:-1]:
                if "from" not in chosen:
                    assert any(f"{each}/".startswith(f"{name}/") for each in files), name
