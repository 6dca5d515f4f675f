"""The sections of a report, and the report as text and as Markdown."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from urllib.parse import quote

from ionn.errors import printable
from ionn.evaluation.claims import Verdict
from ionn.evaluation.summary import SummaryRow, distinct
from ionn.evaluation.validation import Validation
from ionn.paper import model_title


@dataclass(frozen=True)
class Section:
    """A title, a text on what the table shows, and the table. A section that is a `detail` is not shown in the
    terminal."""

    title: str
    text: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    detail: bool = False


@dataclass(frozen=True)
class Judged:
    """Claims of one kind with their findings. `title` says whose claims they are, `text` which runs decide them."""

    title: str
    text: str
    verdicts: tuple[Verdict, ...]


@dataclass(frozen=True)
class Report:
    """The tables of a report (`sections`), and what its page shows beside them: the runs (`rows`), the verdicts
    (`judged`), `live` runs with their predictions, and planning times in ms by model and algorithm."""

    sections: tuple[Section, ...]
    rows: tuple[SummaryRow, ...] = ()
    judged: tuple[Judged, ...] = ()
    live: tuple[Validation, ...] = ()
    planning_ms: Mapping[tuple[str, str], float] = field(default_factory=dict)

    @cached_property
    def titles(self) -> dict[str, str]:
        """The title of each model; its name if another model has the same title."""
        models = distinct([*(row.model for row in self.rows), *(model for model, _ in self.planning_ms)])
        written = [model_title(model) for model in models]
        return {
            model: title if written.count(title) == 1 else model for model, title in zip(models, written, strict=True)
        }

    def of(self, algorithms: Collection[str]) -> Report:
        """This report, with the runs and planning times of these algorithms only; its tables stay."""
        return replace(
            self,
            rows=tuple(row for row in self.rows if row.algorithm in algorithms),
            live=tuple(each for each in self.live if each.measured.info.algorithm in algorithms),
            planning_ms={key: ms for key, ms in self.planning_ms.items() if key[1] in algorithms},
        )

    def text(self) -> str:
        """Return the report for the terminal."""
        parts = [
            f"{section.title}\n{textwrap.fill(section.text, 120)}\n\n{_text_table(section)}\n"
            for section in self.sections
            if not section.detail
        ]
        return "\n".join(parts)

    def markdown(self, figures: Sequence[Path] = (), folder: Path = Path()) -> str:
        """Return the report as Markdown, with links to the images `figures`; `folder` is where the report will be."""
        parts = ["# Report\n"]
        for section in self.sections:
            lines = [section.header, ("---",) * len(section.header), *section.rows]
            table = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
            parts.append(f"## {section.title}\n\n{section.text}\n\n{table}\n")
        links = [f"![{printable(figure.stem)}]({address(figure, folder)})\n" for figure in figures]
        parts += ["## Figures\n", *links] if links else []
        return "\n".join(parts)


def address(path: Path, folder: Path) -> str:
    """The address of a file in a report that is in this folder."""
    return quote(os.fsencode(os.path.relpath(path, folder)))


def _text_table(section: Section) -> str:
    lines = [section.header, *section.rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)
