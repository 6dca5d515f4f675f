"""report.html: the report as one page for a browser, which needs no network.

Python makes the text, the tables and the data. The page contains the style sheet and scripts of `web/`, and Plotly,
which draws the charts; Plotly is compressed, as it is larger than everything else. Texts from traces may come from
strangers, so they are escaped everywhere, and a Content-Security-Policy allows the browser no other scripts, and no
requests.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import html
import json
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from importlib import resources
from itertools import groupby
from pathlib import Path
from typing import Any

from ionn.errors import printable
from ionn.evaluation.charts import Chart, latencies
from ionn.evaluation.claims import Verdict
from ionn.evaluation.findings import Finding, findings
from ionn.evaluation.replay import pieces_that_arrived, replay
from ionn.evaluation.sections import Judged, Report, Section, address
from ionn.evaluation.summary import SummaryRow, are_drawn, distinct, disturbed
from ionn.files import read_bytes
from ionn.records import Outputs
from ionn.testbed.trace import Trace

HOW_TO_GET_IT = "report.html is not written{older}: its charts need plotly; install it: pip install 'ionn[report]'"

# These keep the page small, however many runs there are and however long. Figures fill what is then left of BYTES_MAX.
BYTES_MAX = 8_000_000
POINTS_MAX = 150_000  # of all latency charts together
LINE_POINTS_MAX = 3_000  # of one line
LINES_MAX = POINTS_MAX // 100  # so each line can have a hundred points
REPLAYS_MAX = 200  # runs that can be replayed
REPLAY_QUERIES_MAX = 1_500  # of one replay
QUERIES_MAX = 40_000  # of all replays together
PARTS_MAX = 30_000  # partitions, and parts of them, of all replays together

_WORDS = {"supported": "yes", "not supported": "no", "not checked": "open"}  # verdict -> class in the style sheet


def is_available() -> bool:
    """Tell whether a usable Plotly is installed."""
    try:
        _plotly()
    except ImportError:
        return False
    return True


def html_page(
    report: Report, images: Sequence[Path] = (), folder: Path = Path(), algorithms: Collection[str] = ()
) -> str:
    """The page of a report.

    Its charts show the given `algorithms`, by default all but baselines; its replays and tables have all. `images` are
    PNG files that it shows too, or links to if it would become too large; `folder` is where the page will be. Raises
    ImportError if Plotly is not installed, and InputError if an image cannot be read.
    """
    present = [*(row.algorithm for row in report.rows), *(name for _, name in report.planning_ms)]
    drawn = report.of(are_drawn(present, algorithms))
    found = findings(drawn)
    choices = _choices(report)
    data = {
        "findings": [each.chart for each in found],
        "choices": {key: list(texts.values()) for key, texts in choices.items()},
        "latencies": list(_latency_charts(drawn.rows, choices)),
        "replays": list(_replays(report.rows, choices)),
    }
    packed, plotly = _json(data), _plotly()
    compressed = _compressed(plotly)
    parts = {
        "findings": ("What was found", _findings(found)),
        "claims": ("Claims and verdicts", "".join(map(_judged, report.judged))),
        "latencies": (
            "Latency over time",
            (_LATENCIES if data["latencies"] else "") + _left_out(LINES_MAX, len(drawn.rows)),
        ),
        "replay": (
            "A run, replayed",
            (_REPLAY if data["replays"] else "") + _left_out(len(data["replays"]), len(report.rows)),
        ),
        "tables": ("All tables", "".join(map(_table, report.sections))),
    }
    room = BYTES_MAX - len(packed) - len(compressed) - sum(len(body) for _, body in parts.values())
    parts["figures"] = ("Figures for papers", _images(images, folder, room))
    shown = {name: (title, body) for name, (title, body) in parts.items() if body}
    links = "".join(f'<li><a href="#{name}">{title}</a></li>' for name, (title, _) in shown.items())
    sections = "".join(
        f'<section id="{name}" aria-labelledby="{name}-title"><h2 id="{name}-title">{title}</h2>{body}</section>\n'
        for name, (title, body) in shown.items()
    )
    scripts = [_web("replay.js"), _web("page.js")]
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_policy([plotly, *scripts])}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>ionn: report</title>
<style>{_web("page.css")}</style>
</head>
<body>
<a class="skip" href="#main">Skip to the content</a>
<header><div class="wide"><h1>Report</h1><p>{html.escape(_subject(report))}</p>{_verdict_lines(report)}</div></header>
<nav aria-label="Parts of the report"><ul class="wide">{links}</ul></nav>
<main id="main" class="wide">
<noscript><p class="note">Charts and replay need JavaScript; the text and the tables do not.</p></noscript>
<p class="note" id="trouble" role="alert" hidden></p>
{sections}</main>
<footer class="wide"><p>Made by ionn from traces; all numbers are computed from them.</p></footer>
<script type="application/json" id="data">{packed}</script>
<script type="application/gzip" id="plotly">{compressed}</script>
{"".join(f"<script>{script}</script>" for script in scripts)}
</body>
</html>
"""


def _web(name: str) -> str:
    return (resources.files("ionn.evaluation") / "web" / name).read_text(encoding="utf-8")


def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs())


def _compressed(text: str) -> str:
    return base64.b64encode(gzip.compress(text.encode(), 9, mtime=0)).decode()


def _policy(scripts: Iterable[str]) -> str:
    """A policy by which only these scripts run, and nothing is fetched. Plotly needs inline styles."""
    digests = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in scripts
    )
    return f"default-src 'none'; script-src {digests}; style-src 'unsafe-inline'; img-src data:; base-uri 'none'"


def _json(data: Any) -> str:
    """JSON for a script element. It has no "<", which could end the element or open a comment."""
    return json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def _subject(report: Report) -> str:
    """The line under the title: which runs the report is about, their outputs, and how many were disturbed."""
    runs = [trace for row in report.rows for trace in row.traces]
    if not runs:
        return "Tables and figures"
    models = distinct(report.titles[row.model] for row in report.rows)
    algorithms = distinct(row.algorithm for row in report.rows)
    testbeds = [
        f"{sum(trace.info.settings.testbed == name for trace in runs)} {name}"
        for name in distinct(trace.info.settings.testbed for trace in runs)
    ]
    return (
        f"{len(runs)} {'run' if len(runs) == 1 else 'runs'} ({', '.join(testbeds)}) of {', '.join(models)} with "
        f"{', '.join(algorithms)}. {_outputs(report.rows)} {_disturbed(runs)}"
    ).strip()


def _verdict_lines(report: Report) -> str:
    lines = [
        f"{judged.title}: {', '.join(f'{count} {word}' for word, count in _counts(judged).items())}."
        for judged in report.judged
    ]
    return "".join(f"<p>{html.escape(line)}</p>" for line in lines)


def _disturbed(runs: Sequence[Trace]) -> str:
    """A sentence on how many live runs other load disturbed; "" if no run has recorded it."""
    watched = [trace for trace in runs if trace.loads]
    if not watched:
        return ""
    return f"Other load disturbed {len(disturbed(watched)) or 'none'} of {len(watched)} live runs that recorded it."


def _outputs(rows: Sequence[SummaryRow]) -> str:
    """A sentence on whether the computed outputs were right; "" if none was computed."""
    found = Outputs.of(query for row in rows for trace in row.traces for query in trace.queries)
    if not found.computed:
        return ""
    if found.wrong:
        return f"{found.wrong} of {found.computed} outputs are not those of the whole net at the client."
    all_of_them = f"All {found.computed} outputs that were computed are those of the whole net at the client"
    if found.equal == found.computed:
        return f"{all_of_them}, bit for bit."
    if found.tolerance is None:
        return (
            f"Of {found.computed} outputs that were computed, {found.equal} are those of the whole net at the client, "
            f"bit for bit, and the others are off by at most {found.difference:.0e} of the largest value. By how much "
            "they may be off was not recorded."
        )
    return (
        f"{all_of_them}: {found.equal} bit for bit, and the others, for which a server with other last bits computed, "
        f"within {found.tolerance:g} of the largest value (at most {found.difference:.0e})."
    )


# --- The parts ------------------------------------------------------------------------------------------------------

_LATENCIES = """
<p>The latency of the query under way; a thin upright line is where the upload ends. Point at a line to read it; drag to
zoom, double-click to zoom out.</p>
<div class="choosers" id="latency-choosers"></div>
<figure><fieldset id="latency-algorithms"></fieldset><div class="chart tall" id="latency-chart" role="img"></div>
<figcaption id="latency-subject"></figcaption></figure>
"""

_REPLAY = """
<p>The model's chain of stages, at the client and at the server. At the server, stages fill while their partitions, with
the numbers shown, arrive, and turn dark when queries may use them. The line is the path of the current query, dark as
far as it has come.</p>
<div class="choosers" id="replay-choosers"></div>
<figure class="replay" aria-label="Replay of a run">
<p class="subject" id="replay-subject"></p>
<div id="replay-drawing"></div>
<input type="range" id="replay-time" min="0" step="any" aria-label="Time in the run">
<div class="controls">
<button type="button" id="replay-play">Play</button>
<button type="button" id="replay-previous">Previous query</button>
<button type="button" id="replay-next">Next query</button>
</div>
<figcaption id="replay-status" role="status"></figcaption>
</figure>
"""


def _findings(found: Sequence[Finding]) -> str:
    cards = [
        f'<article class="card"><h3>{html.escape(each.title)}</h3><p>{_unbroken(each.sentence)}</p>'
        f'<figure><div class="chart" data-finding="{number}" role="img" aria-label="{html.escape(_about(each.chart))}">'
        f"</div><figcaption>{html.escape(each.where)}</figcaption></figure></article>"
        for number, each in enumerate(found)
    ]
    return f'<div class="cards">{"".join(cards)}</div>' if cards else ""


def _unbroken(sentence: str) -> str:
    """A sentence, escaped, in which no line ends between a number and its unit."""
    return re.sub(r"(\d) (ms|s|%)(?!\w)", "\\1&nbsp;\\2", html.escape(sentence))


def _about(chart: Chart) -> str:
    return f"{chart['about']}. The tables below have the numbers."


def _kind(verdict: Verdict) -> str:
    """The kind of a verdict: "supported", "not supported" or "not checked"."""
    return next(word for word in ("not supported", "not checked", "supported") if verdict.verdict.startswith(word))


def _counts(judged: Judged) -> dict[str, int]:
    """How many claims have each verdict."""
    kinds = [_kind(verdict) for verdict in judged.verdicts]
    return {word: kinds.count(word) for word in _WORDS if word in kinds}


def _judged(judged: Judged) -> str:
    bar = "".join(
        f'<span class="{_WORDS[word]}" style="flex-grow:{count}"><b>{count}</b> {word}</span>'
        for word, count in _counts(judged).items()
    )
    return (
        f'<h3>{html.escape(judged.title)}</h3><div class="verdicts" role="group" aria-label="Verdicts, counted">{bar}'
        f'</div><ul class="claims">{"".join(map(_claim, judged.verdicts))}</ul>'
        f'<p class="small">{html.escape(judged.text)}</p>'
    )


def _claim(verdict: Verdict) -> str:
    kind, claim = _kind(verdict), verdict.claim
    share = "" if verdict.share is None else f'<span class="share">holds in {_share(verdict.share)} of draws</span>'
    facts = {
        f"{'Stated' if claim.section.endswith('.md') else 'In the paper'} ({claim.section})": claim.paper,
        "Virtual testbed": verdict.virtual, "Live testbed": verdict.live, "Tolerance": claim.tolerance,
        "Verdict": verdict.verdict,
    }  # fmt: skip
    listed = "".join(f"<dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd>" for name, value in facts.items())
    return (
        f'<li><details><summary><span class="badge {_WORDS[kind]}">{kind}</span><span>{html.escape(claim.text)}{share}'
        f"</span></summary><dl>{listed}</dl></details></li>"
    )


def _share(share: float) -> str:
    """A share in percent; 100 % and 0 % only where it is all or none."""
    if 0 < share < 0.01:
        return "under 1 %"
    if 0.99 < share < 1:
        return "over 99 %"
    return f"{share:.0%}".replace("%", " %")


def _table(section: Section) -> str:
    head = "".join(f'<th scope="col">{html.escape(cell)}</th>' for cell in section.header)
    rows = "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in section.rows)
    title = html.escape(section.title)
    return (
        f"<details><summary><h3>{title}</h3></summary><p>{html.escape(section.text)}</p>"
        f'<div class="scroll" tabindex="0" role="region" aria-label="{title}"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div></details>"
    )


def _left_out(shown: int, all_of_them: int) -> str:
    """A note if some models and algorithms are left out; "" if none is."""
    if shown >= all_of_them:
        return ""
    return f'<p class="note">Here are {shown} of {all_of_them}: with all, the page would be too large.</p>'


def _images(paths: Sequence[Path], folder: Path, room: int) -> str:
    """The images in at most `room` bytes, and links to those that do not fit."""
    shown, links = [], []
    for path in paths:
        name, content = html.escape(printable(path.stem)), base64.b64encode(read_bytes(path, "the figure")).decode()
        if len(content) <= room:
            room -= len(content)
            image = f'<img alt="{name}" src="data:image/png;base64,{content}">'
            shown.append(f"<details><summary><h3>{name}</h3></summary>{image}</details>")
        else:
            links.append(f'<li><a href="{html.escape(address(path, folder))}">{name}</a></li>')
    if links:
        note = f"{len(links)} of {len(paths)} figures would make this page too large. They are in files beside it:"
        shown.append(f"<p>{note}</p><ul>{''.join(links)}</ul>")
    return "".join(shown)


# --- The data -------------------------------------------------------------------------------------------------------


_Choices = dict[str, dict[Any, str]]


def _choices(report: Report) -> _Choices:
    """The texts that each chooser of the page offers, by the values that they stand for."""
    return {
        "testbed": {row.settings: f"{row.settings.name}, {row.settings.rate}" for row in report.rows},
        "model": {row.model: report.titles[row.model] for row in report.rows},
        "algorithm": {row.algorithm: row.algorithm for row in report.rows},
    }


def _keys(row: SummaryRow, choices: _Choices) -> dict[str, int]:
    """The number of a row's value in each chooser."""
    values = {"testbed": row.settings, "model": row.model, "algorithm": row.algorithm}
    return {key: list(choices[key]).index(value) for key, value in values.items()}


def _latency_charts(rows: Sequence[SummaryRow], choices: _Choices) -> Iterator[dict[str, Any]]:
    """A chart per settings and model, until there are too many lines."""
    chosen = rows[:LINES_MAX]
    points_max = min(LINE_POINTS_MAX, POINTS_MAX // max(len(chosen), 1))
    for _, group in groupby(chosen, key=lambda row: (row.settings, row.model)):
        members = list(group)
        yield {**_keys(members[0], choices), "chart": latencies(members, points_max)}


def _replays(rows: Sequence[SummaryRow], choices: _Choices) -> Iterator[dict[str, Any]]:
    """The first run of each row, until there are too many; runs whose partitions have too many parts are left out."""
    chosen, room = rows[:REPLAYS_MAX], PARTS_MAX
    queries_max = min(REPLAY_QUERIES_MAX, QUERIES_MAX // max(len(chosen), 1))
    for row in chosen:
        trace = row.traces[0]
        parts = sum(1 + len(pieces) for pieces in pieces_that_arrived(trace))
        if parts <= room:
            room -= parts
            yield {**_keys(row, choices), "run": replay(trace, queries_max)}
