"""What is read of a Dockerfile and a .dockerignore; ours, and what they must agree with."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

from ionn.libraries import CAFFE_PACKAGES
from tests.systems.container import Stage, Steps, execute, health_command, stop_signal
from tests.systems.dockerfile import DockerfileError, Instruction, command, context, options, pairs, parse, words
from tests.systems.root import Root

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = ROOT / "deploy" / "Dockerfile"


def test_instructions() -> None:
    text = '# a comment\nFROM debian:12-slim AS build\n\nRUN one \\\n    # of two\n    && two\nCMD ["three"]\n'
    assert [(each.line, each.keyword, each.rest) for each in parse(text)] == [
        (2, "FROM", "debian:12-slim AS build"),
        (4, "RUN", "one     && two"),
        (7, "CMD", '["three"]'),
    ]
    with pytest.raises(DockerfileError, match="line 2: ONBUILD: this instruction is not known here"):
        parse("FROM scratch\nONBUILD RUN true\n")
    with pytest.raises(DockerfileError, match="line 1: the last line is continued"):
        parse("RUN true \\\n")


def only(text: str) -> Instruction:
    """The one instruction of a text."""
    (instruction,) = parse(text)
    return instruction


def test_words() -> None:
    assert command(only('CMD ["ionn", "ping"]')) == ["ionn", "ping"]
    assert command(only("RUN ionn ping | cat")) == ["/bin/sh", "-c", "ionn ping | cat"]
    assert command(only("RUN o\\\nne $A")) == ["/bin/sh", "-c", "one $A"]
    assert words(only("COPY $A:${B}$C $D"), {"A": "1", "B": "2", "D": "3 4"}) == ["1:2", "3 4"]
    assert pairs(only('ENV A=1 B="$A 2" C='), {"A": "0"}) == {"A": "1", "B": "0 2", "C": ""}
    chosen, rest = options(only("COPY --from=build --chmod=755 /a /b"))
    assert (chosen, rest.rest) == ({"from": "build", "chmod": "755"}, "/a /b")
    assert health_command(only("HEALTHCHECK --interval=30s CMD true")) == ["/bin/sh", "-c", "true"]
    assert stop_signal(only("STOPSIGNAL SIGTERM")).name == "SIGTERM"


@pytest.mark.parametrize(
    "line",
    [
        "# escape=`", "#Syntax = docker/dockerfile:1", "ONBUILD RUN true", "run true", "RUN", "RUN true \\\\",
        "ENV A b", "ENV A=b c", "ENV A='b'", "ENV A=\\$B", "ENV A=${B:-c}", "ENV A=$", "ENV A=$1", 'ENV A="b',
        "WORKDIR ${A:-b}", "WORKDIR \\$A", 'WORKDIR "/a"', "WORKDIR a b", "USER ${A+b}", "USER 'a'",
        "COPY --link a b/", "COPY --chown=1 a b/", "COPY --chmod=u+x a b/", "COPY --chmod=755 folder b/",
        "COPY --chmod=755 --chmod=700 a b/", "COPY --from=none a b/", 'COPY ["a", "b/"]', "COPY *.py b/",
        "COPY ../a b/", "COPY <<EOF b/", "COPY a a b", "COPY a folder", "COPY a", "COPY 'a' b/",
        "RUN --mount=type=cache,target=/x true", "RUN <<EOF", "RUN [ -e x ]", "RUN [1]", "RUN []",
        "HEALTHCHECK NONE", "HEALTHCHECK --interval CMD true", "HEALTHCHECK CMD [1]", "STOPSIGNAL 15", "STOPSIGNAL $A",
        "HEALTHCHECK --interval=banana CMD true", "HEALTHCHECK --timeout=5 CMD true",
        "HEALTHCHECK --retries=3s CMD true", "HEALTHCHECK --interval=0s CMD true",
        "HEALTHCHECK --intervall=5s CMD true", "CMD [1]", "VOLUME '/a'",
        "EXPOSE banana", "EXPOSE 0", "EXPOSE 65536", "EXPOSE 7675/icmp", "EXPOSE 7675 banana", "EXPOSE 7675-7680",
    ],
)  # fmt: skip
def test_what_is_not_read_as_docker_reads_it_is_refused_with_its_line(tmp_path: Path, line: str) -> None:
    """Before it is executed: the image's root is a folder of files here."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "a").touch()
    steps = Steps(tmp_path / "log")
    stage = Stage(Root(tmp_path))

    with pytest.raises(DockerfileError, match="line 2: "):
        execute(only(f"\n{line}\n"), stage, {"build": stage}, tmp_path, steps)
    assert {path.name for path in tmp_path.iterdir()} == {"a", "folder"}


def test_what_ours_says_about_its_runs_is_read(tmp_path: Path) -> None:
    stage = Stage(Root(tmp_path))
    for instruction in parse(DOCKERFILE.read_text()):
        if instruction.keyword in ("CMD", "EXPOSE", "HEALTHCHECK", "STOPSIGNAL", "VOLUME"):
            execute(instruction, stage, {}, tmp_path, Steps(tmp_path / "log"))
    assert set(stage.settings) == {"CMD", "HEALTHCHECK", "STOPSIGNAL"}


@pytest.mark.parametrize("pattern", ["[ab]", "a\\b", "a//b", "../a", "./a", "!", "! a"])
def test_a_pattern_that_is_not_read_as_docker_reads_it_is_refused(tmp_path: Path, pattern: str) -> None:
    with pytest.raises(DockerfileError, match="line 2: "):
        list(context(tmp_path, f"*\n{pattern}\n"))


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
    recipe = set(runpy.run_path(str(ROOT / "caffe-build" / "build_wheel.py"))["RECIPE"])
    assert not any("__pycache__" in name for name in files)
    assert {Path(name).name for name in files if name.startswith("caffe-build/")} == recipe
    for instruction in parse(DOCKERFILE.read_text()):
        if instruction.keyword == "COPY":
            chosen, rest = options(instruction)
            for name in words(rest, {})[:-1]:
                if "from" not in chosen:
                    assert any(f"{each}/".startswith(f"{name}/") for each in files), name
