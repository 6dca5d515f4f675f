"""What a Dockerfile and a .dockerignore say, as far as ours use them: no engine is needed to read them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

KEYWORDS = frozenset(
    ("CMD", "COPY", "ENV", "EXPOSE", "FROM", "HEALTHCHECK", "RUN", "STOPSIGNAL", "USER", "VOLUME", "WORKDIR")
)
_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")


class DockerfileError(Exception):
    """Why a Dockerfile cannot be executed, in one line."""


@dataclass(frozen=True)
class Instruction:
    """One instruction, from the line of that number on: its keyword, and the rest with continued lines joined."""

    line: int
    keyword: str
    rest: str

    def __str__(self) -> str:
        return f"{self.line}: {self.keyword} {' '.join(self.rest.split())}"


def parse(text: str) -> list[Instruction]:
    """The instructions of a Dockerfile. Raises DockerfileError for one that is not in `KEYWORDS`."""
    found: list[Instruction] = []
    begun: list[str] = []
    first = 0
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        if not begun:
            first = number
        begun.append(line.rstrip().removesuffix("\\").strip())
        if line.rstrip().endswith("\\"):
            continue
        keyword, _, rest = " ".join(begun).partition(" ")
        if keyword not in KEYWORDS:
            raise DockerfileError(f"line {first}: {keyword}: this instruction is not known here")
        found.append(Instruction(first, keyword, rest.strip()))
        begun = []
    if begun:
        raise DockerfileError(f"line {first}: the last line is continued")
    return found


def expanded(text: str, variables: Mapping[str, str]) -> str:
    """`text` with its $NAME and ${NAME} replaced; empty where there is no such variable."""
    return _VARIABLE.sub(lambda match: variables.get(match[1] or match[2], ""), text)


def command(text: str) -> list[str]:
    """What RUN and CMD say to execute: a list in JSON as it is, anything else in a shell."""
    if text.startswith("["):
        words = json.loads(text)
        if isinstance(words, list) and words and all(isinstance(word, str) for word in words):
            return words
        raise DockerfileError(f"{text}: not a list of words")
    return ["/bin/sh", "-c", text]


def options(text: str) -> tuple[dict[str, str], str]:
    """The --NAME=VALUE at the beginning of an instruction's rest, and what follows them."""
    found = {}
    while match := re.match(r"--([a-z-]+)=(\S+)\s+", text):
        found[match[1]] = match[2]
        text = text[match.end() :]
    return found, text


def _pattern(pattern: str) -> re.Pattern[str]:
    """A pattern of a .dockerignore as a regular expression for the path that it names, or one below."""
    parts = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    escaped = "".join(parts.get(each) or re.escape(each) for each in re.split(r"(\*\*/|\*\*|\*|\?)", pattern))
    return re.compile(f"{escaped}(?:/.*)?")


def context(folder: Path, ignore: str) -> Iterator[Path]:
    """The files below `folder`, as paths in it, that a .dockerignore of the text `ignore` leaves: of the patterns that
    match a file, the last one decides."""
    patterns = []
    for line in ignore.splitlines():
        if line.strip() and not line.startswith("#"):
            name = line.strip().removeprefix("!").strip("/")
            patterns.append((_pattern(name), line.startswith("!")))
    for path in sorted(folder.rglob("*")):
        if path.is_dir() and not path.is_symlink():
            continue
        name = path.relative_to(folder).as_posix()
        verdicts = [kept for pattern, kept in patterns if pattern.fullmatch(name)]
        if not verdicts or verdicts[-1]:
            yield path.relative_to(folder)
