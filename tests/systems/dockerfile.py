"""What a Dockerfile and a .dockerignore say, as far as ours use them: no engine is needed to read them.

Each form that is read here is read as Docker reads it. DockerfileError refuses every other one, with its line.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.systems.script import StepError

KEYWORDS = frozenset(
    ("CMD", "COPY", "ENV", "EXPOSE", "FROM", "HEALTHCHECK", "RUN", "STOPSIGNAL", "USER", "VOLUME", "WORKDIR")
)
_DIRECTIVE = re.compile(r"#\s*(check|escape|syntax)\s*=", re.IGNORECASE)
_VARIABLE = re.compile(r"\$(?:\{([A-Za-z_]\w*)\}|([A-Za-z_]\w*))")
_OPTION = re.compile(r"--([a-z-]+)=([\w.-]+)\s+")
_PAIR = re.compile(r'[A-Za-z_]\w*=(?:[^\s"]|"[^"]*")*')
# In words: quotes and escapes, a list in JSON, what is a pattern for COPY, a file in the Dockerfile itself, a way up.
_NOT_PLAIN = re.compile(r"[\\'\"\[*?]|<<|\.\.")


class DockerfileError(StepError):
    """Why a Dockerfile cannot be executed, in one line."""


@dataclass(frozen=True)
class Instruction:
    """One instruction, from the line of that number on: its keyword, and the rest with continued lines joined."""

    line: int
    keyword: str
    rest: str

    def __str__(self) -> str:
        return f"{self.line}: {self.keyword} {' '.join(self.rest.split())}"

    def refusal(self, why: str) -> DockerfileError:
        return DockerfileError(f"line {self.line}: {self.keyword}: {why}")


def parse(text: str) -> list[Instruction]:
    """The instructions of a Dockerfile."""
    found: list[Instruction] = []
    begun = ""
    first = 0
    for number, line in enumerate(text.split("\n"), 1):
        if _DIRECTIVE.match(line.lstrip()) and not found and not begun:
            raise DockerfileError(f"line {number}: directives are not read here")
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        if not begun:
            first = number
        if line.rstrip().endswith("\\\\"):
            raise DockerfileError(f"line {number}: two backslashes at its end are not read here")
        begun += line.rstrip().removesuffix("\\") if line.rstrip().endswith("\\") else line
        if line.rstrip().endswith("\\"):
            continue
        keyword, *rest = begun.split(None, 1)
        if keyword not in KEYWORDS or not rest:
            raise DockerfileError(f"line {first}: {keyword}: this instruction is not known here")
        found.append(Instruction(first, keyword, rest[0].strip()))
        begun = ""
    if begun:
        raise DockerfileError(f"line {first}: the last line is continued")
    return found


def words(instruction: Instruction, variables: Mapping[str, str]) -> list[str]:
    """The words of an instruction's rest, with their variables replaced."""
    if _NOT_PLAIN.search(instruction.rest):
        raise instruction.refusal("quotes, escapes, lists, patterns, << and .. are not read here")
    return [_expanded(instruction, word, variables) for word in instruction.rest.split()]


def word(instruction: Instruction, variables: Mapping[str, str]) -> str:
    """The one word that an instruction has."""
    found = words(instruction, variables)
    if len(found) != 1:
        raise instruction.refusal("it takes one word")
    return found[0]


def pairs(instruction: Instruction, variables: Mapping[str, str]) -> dict[str, str]:
    """The NAME=VALUE of an ENV, where a part of a value may be in double quotes."""
    if re.search(r"[\\']", instruction.rest):
        raise instruction.refusal("escapes and single quotes are not read here")
    found = {}
    for pair in re.findall(r'(?:[^\s"]|"[^"]*"?)+', instruction.rest):
        if not _PAIR.fullmatch(pair):
            raise instruction.refusal(f"'{pair}' is no NAME=VALUE")
        name, _, value = pair.partition("=")
        found[name] = _expanded(instruction, value.replace('"', ""), variables)
    return found


def _expanded(instruction: Instruction, text: str, variables: Mapping[str, str]) -> str:
    """`text` with its $NAME and ${NAME} replaced; empty where there is no such variable."""
    if "$" in _VARIABLE.sub("", text):
        raise instruction.refusal(f"of variables, $NAME and ${{NAME}} are read here, not '{text}'")
    return _VARIABLE.sub(lambda match: variables.get(match[1] or match[2], ""), text)


def command(instruction: Instruction) -> list[str]:
    """What RUN and CMD say to execute: a list in JSON as it is, anything else in a shell."""
    text = instruction.rest
    if text.startswith("--") or "<<" in text:
        raise instruction.refusal("options and files in the Dockerfile are not read here")
    if not text.startswith("["):
        return ["/bin/sh", "-c", text]
    try:
        listed = json.loads(text)
    except ValueError:
        listed = None
    if isinstance(listed, list) and listed and all(isinstance(each, str) for each in listed):
        return listed
    raise instruction.refusal("not a list of words")


def options(instruction: Instruction) -> tuple[dict[str, str], Instruction]:
    """The --NAME=VALUE at the beginning of an instruction's rest, and the instruction without them."""
    found: dict[str, str] = {}
    rest = instruction.rest
    while match := _OPTION.match(rest):
        if match[1] in found:
            raise instruction.refusal(f"--{match[1]} is given twice")
        found[match[1]] = match[2]
        rest = rest[match.end() :]
    if rest.startswith("--"):
        raise instruction.refusal(f"{rest.split()[0]}: only --NAME=VALUE is read here")
    return found, dataclasses.replace(instruction, rest=rest)


def _pattern(pattern: str) -> re.Pattern[str]:
    """A pattern of a .dockerignore as a regular expression for the path that it names, or one below."""
    parts = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    escaped = "".join(parts.get(each) or re.escape(each) for each in re.split(r"(\*\*/|\*\*|\*|\?)", pattern))
    return re.compile(f"{escaped}(?:/.*)?")


def context(folder: Path, ignore: str) -> Iterator[Path]:
    """The files below `folder`, as paths in it, that a .dockerignore of the text `ignore` leaves: of the patterns that
    match a file, the last one decides."""
    patterns = []
    for number, line in enumerate(ignore.split("\n"), 1):
        if line.strip() and not line.startswith("#"):
            name = line.strip().removeprefix("!").strip("/")
            if re.search(r"[\\\[]|^\s|(^|/)\.{0,2}(/|$)", name):
                raise DockerfileError(f".dockerignore, line {number}: '{name}' is not read here")
            patterns.append((_pattern(name), line.strip().startswith("!")))
    for path in sorted(folder.rglob("*")):
        if path.is_dir() and not path.is_symlink():
            continue
        name = path.relative_to(folder).as_posix()
        verdicts = [kept for pattern, kept in patterns if pattern.fullmatch(name)]
        if not verdicts or verdicts[-1]:
            yield path.relative_to(folder)
