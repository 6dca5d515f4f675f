"""The report's page in a real browser: Debian's Chromium, without a network.

It draws, its choosers, its slider and its buttons work by mouse and by keyboard, it fetches nothing and complains of
nothing, and it fits a screen and a phone. Without Chromium these tests are skipped, unless IONN_CHROMIUM=required.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import Select, WebDriverWait

from ionn.evaluation.figures import fig5
from ionn.evaluation.page import html_page
from ionn.evaluation.report import make_report, write_report
from ionn.evaluation.summary import load_results, summary
from ionn.paper import ORIGINAL, SHOWN, SLICED
from ionn.testbed import runner
from ionn.testbed.trace import Trace, trace_path
from tests.support.runs import make_trace

WIDTHS = {"screen": 1280, "phone": 360}
HOSTILE = "<img src=x onerror=document.hacked=1>"
OPTIONS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
WAIT_S = 60


class Browser:
    """A page in Chromium."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    def open(self, page: Path, width: int = WIDTHS["screen"], reduced_motion: bool = False) -> None:
        """Open a page anew, and wait until all is drawn."""
        screen = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
        motion = {"name": "prefers-reduced-motion", "value": "reduce" if reduced_motion else ""}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": [motion]})
        self.driver.get(page.as_uri())
        self.wait(lambda: self.run("return document.documentElement.dataset.ready"))
        # What is scrolled to is there at once.
        self.run("document.documentElement.style.scrollBehavior = 'auto'")

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def wait(self, condition: Callable[[], Any]) -> None:
        WebDriverWait(self.driver, WAIT_S, poll_frequency=0.05).until(lambda _: condition())

    def all(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def one(self, selector: str) -> WebElement:
        (found,) = self.all(selector)
        return found

    def choose(self, section: str, name: str, value: str) -> None:
        """Choose in the select of that label."""
        (label,) = [each for each in self.all(f"#{section} label") if each.text.split("\n")[0] == name]
        Select(label.find_element(By.TAG_NAME, "select")).select_by_visible_text(value)

    @property
    def status(self) -> str:
        return self.one("#replay-status").text

    @property
    def time_s(self) -> float:
        return float(self.run("return document.getElementById('replay-time').value"))


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program, driver_program = shutil.which("chromium"), shutil.which("chromedriver")
    if not (program and driver_program):
        missing = "Debian's chromium and chromium-driver are not installed"
        if os.environ.get("IONN_CHROMIUM") == "required":
            pytest.fail(missing)
        pytest.skip(missing)
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for option in (*OPTIONS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(driver_program))
    try:
        yield Browser(driver)
    finally:
        driver.quit()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of results of two models, of one live run, and of a run whose names are a stranger's."""
    results = tmp_path_factory.mktemp("results")
    for model in ("alexnet", "mobilenet"):
        runner.run_virtual_all(model, SHOWN, results=results)
    for trace in (
        make_trace(testbed="live", bit_equal=True),
        make_trace(HOSTILE, model=HOSTILE, environment={"what": HOSTILE}),
    ):
        info = trace.info
        trace.save(trace_path(results, info.settings, info.model, info.algorithm, 1))
    figures = fig5(summary(load_results(results)), results / "figures")
    return write_report(results, figures).with_suffix(".html")


@pytest.fixture
def page(chromium: Browser, report: Path) -> Browser:
    chromium.open(report)
    return chromium


@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
def test_all_is_drawn_and_fits_without_a_network(chromium: Browser, report: Path, width: int) -> None:
    for log in ("browser", "performance"):
        chromium.driver.get_log(log)  # type: ignore[no-untyped-call]  # forget what was before
    chromium.open(report, width)
    charts = chromium.all("[data-finding]")
    assert len(charts) >= 5
    for chart in [*charts, chromium.one("#latency-chart")]:
        assert chromium.run("return arguments[0].querySelectorAll('.trace path').length", chart) > 0
    assert len(chromium.all("#replay-drawing rect")) > 30
    # Whatever is unfolded, the page is no wider than the screen; wide tables scroll by themselves.
    chromium.run("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    page_width, room = chromium.run(
        "return [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    )
    assert page_width == room <= width
    for chart in charts:
        sides = chromium.run("const box = arguments[0].getBoundingClientRect(); return [box.left, box.right]", chart)
        assert 0 <= sides[0] < sides[1] <= width
    assert not chromium.driver.get_log("browser")  # type: ignore[no-untyped-call]
    events = [
        json.loads(entry["message"])["message"]
        for entry in chromium.driver.get_log("performance")  # type: ignore[no-untyped-call]
    ]
    sent = [each["params"]["request"]["url"] for each in events if each["method"] == "Network.requestWillBeSent"]
    assert report.as_uri() in sent
    assert {url.partition(":")[0] for url in sent} <= {"file", "data"}
    assert {url for url in sent if url.startswith("file:")} == {report.as_uri()}


def test_text_of_strangers_does_nothing(page: Browser) -> None:
    page.choose("latencies", "model", HOSTILE)
    page.choose("replay", "model", HOSTILE)
    assert page.run("return document.hacked") is None
    assert HOSTILE in page.one("#latency-algorithms").text
    assert HOSTILE in page.run("return document.getElementById('tables').textContent")
    assert not page.all("[src=x]")


def test_latencies_by_model_and_algorithm(page: Browser) -> None:
    def lines() -> list[str]:
        chart = page.one("#latency-chart")
        return list(page.run("return [...new Set(arguments[0].data.map((line) => line.name))]", chart))

    assert lines() == list(SHOWN)
    assert "AlexNet, virtual testbed" in str(page.one("#latency-chart").get_attribute("aria-label"))
    page.choose("latencies", "model", "MobileNet")
    assert "MobileNet, virtual testbed" in str(page.one("#latency-chart").get_attribute("aria-label"))
    assert lines() == list(SHOWN)
    first, *_ = page.all("#latency-algorithms input")
    first.send_keys(Keys.SPACE)
    assert lines() == list(SHOWN[1:])
    # What is hidden stays so for the next model, and can be had back.
    page.choose("latencies", "model", "AlexNet")
    assert lines() == list(SHOWN[1:])
    page.all("#latency-algorithms input")[0].click()
    assert lines() == list(SHOWN)


def test_a_chooser_keeps_to_what_there_is(page: Browser) -> None:
    """There is a live run of AlexNet only, and with original only."""
    page.choose("replay", "model", "MobileNet")
    page.choose("replay", "algorithm", "sliced-efficiency")
    page.choose("replay", "testbed", "live testbed, 80 Mbps")
    chosen = page.run(
        "return [...document.querySelectorAll('#replay-choosers [data-key]')]"
        ".map((each) => each.selectedOptions[0].textContent)"
    )
    assert chosen == ["live testbed, 80 Mbps", "AlexNet", "original"]
    assert "of 9" in page.status


@pytest.mark.parametrize(
    "names",
    [("my  net", "my net"), (" lead", "lead "), ("toString", "constructor"), ("__proto__", "valueOf")],
    ids=["blanks", "outer blanks", "properties", "prototypes"],
)
def test_models_have_any_names(chromium: Browser, tmp_path: Path, names: tuple[str, str]) -> None:
    latencies_ms = {"mine": 1_000.0, names[0]: 400.0, names[1]: 200.0}
    traces = [make_trace(model=name, latencies_ms=[ms] * 30) for name, ms in latencies_ms.items()]
    path = tmp_path / "report.html"
    path.write_text(html_page(make_report(traces)), encoding="utf-8")
    chromium.driver.get_log("browser")  # type: ignore[no-untyped-call]
    chromium.open(path)
    bars = chromium.run(
        "return [...document.querySelectorAll('[data-finding=\"0\"] .bars .point path')]"
        ".map((each) => each.getBoundingClientRect().height)"
    )
    assert len(bars) == 3
    assert min(bars) > 1
    (label,) = [each for each in chromium.all("#replay label") if each.text.split("\n")[0] == "model"]
    select = Select(label.find_element(By.TAG_NAME, "select"))
    for name, ms in latencies_ms.items():
        number = chromium.run("return DATA.choices.model.indexOf(arguments[0])", name)
        select.select_by_value(str(number))
        assert f"{ms:.0f} ms" in chromium.status
    assert not chromium.driver.get_log("browser")  # type: ignore[no-untyped-call]


def test_a_run_of_no_time_is_drawn(chromium: Browser, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text(html_page(make_report([make_trace(latencies_ms=[0.0], ends_s=(0.0, 0.0))])), encoding="utf-8")
    chromium.driver.get_log("browser")  # type: ignore[no-untyped-call]
    chromium.open(path)
    assert "NaN" not in str(chromium.one("#replay-drawing").get_attribute("innerHTML"))
    assert not chromium.driver.get_log("browser")  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
def test_long_names_do_not_make_the_page_wider(chromium: Browser, tmp_path: Path, width: int) -> None:
    path = tmp_path / "report.html"
    traces = [
        make_trace(name, model=model)
        for name in ("original", "a" * 200)
        for model in ("b" * 199 + "c", "b" * 199 + "d")
    ]
    path.write_text(html_page(make_report(traces)), encoding="utf-8")
    chromium.open(path, width)
    chromium.run("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    assert chromium.run("return document.documentElement.scrollWidth") <= width
    wider = chromium.run(
        "return [...document.querySelectorAll('body *')].filter((each) => !each.closest('svg, nav, .scroll')"
        " && each.getBoundingClientRect().right > innerWidth + 1).map((each) => each.outerHTML.slice(0, 80))"
    )
    assert wider == []


def test_charts_answer_to_the_mouse(page: Browser) -> None:
    chart = page.one("#latency-chart")
    page.run("arguments[0].scrollIntoView({block: 'center'})", chart)
    ActionChains(page.driver).move_to_element_with_offset(chart, -200, 0).perform()
    page.wait(lambda: page.all("#latency-chart .hoverlayer .hovertext"))
    assert "ms" in page.one("#latency-chart .hoverlayer .hovertext").text

    finding = page.all("[data-finding]")[0]
    page.run("arguments[0].scrollIntoView({block: 'center'})", finding)
    toggle = finding.find_elements(By.CSS_SELECTOR, ".legendtoggle")[0]
    ActionChains(page.driver).move_to_element(toggle).click().perform()
    page.wait(lambda: page.run("return arguments[0].data[0].visible", finding) == "legendonly")


def test_the_slider_goes_through_the_run_by_keyboard(page: Browser) -> None:
    page.choose("replay", "algorithm", "sliced-efficiency")
    slider = page.one("#replay-time")
    slider.send_keys(Keys.HOME)
    assert page.status.startswith("At 0.00 s\nNo query has started yet.\nUsable at the server: 0 of ")
    heights = "return [...document.querySelectorAll('#replay-drawing .part')].map((each) => each.height.baseVal.value)"
    assert set(page.run(heights)) == {0}
    slider.send_keys(Keys.ARROW_RIGHT)
    assert 0 < page.time_s < 1
    slider.send_keys(Keys.END)
    assert "is answered" in page.status or "is under way" in page.status
    parts = page.run(heights)
    assert len(set(parts)) == 1
    assert parts[0] > 30
    assert str(slider.get_attribute("aria-valuetext")).endswith(" seconds")
    # fc6 is there in many slices: the parts that are in one stage are narrower than it.
    drawn = page.run(
        "return [...document.querySelectorAll('#replay-drawing rect')]"
        ".filter((each) => each.textContent.startsWith('fc6'))"
        ".map((each) => [each.getAttribute('class'), each.width.baseVal.value])"
    )
    whole = max(width for kind, width in drawn if kind is None)
    slices = [width for kind, width in drawn if kind == "part"]
    assert len(slices) > 10
    assert sum(slices) == pytest.approx(whole, rel=0.1)


def test_queries_step_by_step(page: Browser) -> None:
    page.one("#replay-time").send_keys(Keys.HOME)
    page.one("#replay-next").send_keys(Keys.ENTER)
    assert "Query 1 of " in page.status
    page.one("#replay-next").click()
    assert "Query 2 of " in page.status
    assert "at the client" in page.status
    paths = page.run(
        "return [...document.querySelectorAll('#replay-drawing path')].filter((each) => each.getAttribute('d'))"
    )
    assert len(paths) > 3
    page.one("#replay-previous").click()
    assert "Query 1 of " in page.status


def test_it_plays_and_pauses(page: Browser) -> None:
    button, before_s = page.one("#replay-play"), page.time_s
    page.choose("replay", "speed", "2 x")
    button.send_keys(Keys.SPACE)
    assert button.text == "Pause"
    assert page.one("#replay-status").get_attribute("aria-live") == "off"
    page.wait(lambda: page.time_s > before_s + 0.1)
    button.send_keys(Keys.SPACE)
    assert button.text == "Play"
    stopped_s = page.time_s
    page.run("return new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    assert page.time_s == stopped_s


def test_it_plays_to_the_end_and_from_the_beginning(page: Browser) -> None:
    page.choose("replay", "speed", "50 x")
    page.one("#replay-play").click()
    page.wait(lambda: page.one("#replay-play").text == "Play")
    end_s = page.time_s
    assert end_s == page.run("return Number(document.getElementById('replay-time').max)")
    page.choose("replay", "speed", "0.1 x")
    page.one("#replay-play").click()
    page.wait(lambda: 0 < page.time_s < end_s)
    page.one("#replay-play").click()


def test_without_motion_it_goes_from_query_to_query(chromium: Browser, report: Path) -> None:
    chromium.open(report, reduced_motion=True)

    def query() -> int:
        return int(chromium.status.split("Query ")[1].split()[0])

    before = query()
    chromium.one("#replay-play").click()
    chromium.wait(lambda: query() > before)
    starts = chromium.run("return DATA.replays[0].run.queries.map((query) => query[0])")
    assert chromium.time_s in starts
    chromium.one("#replay-play").click()
    assert chromium.one("#replay-play").text == "Play"


def test_stages_are_as_wide_as_chosen(page: Browser) -> None:
    def widths() -> list[float]:
        blocks = "#replay-drawing rect:not([class])"
        script = f"return [...document.querySelectorAll('{blocks}')].map((each) => each.width.baseVal.value)"
        return list(page.run(script))[:30:2]

    uploads = widths()
    page.choose("replay", "width of a stage", "equal")
    equal = widths()
    assert max(equal) - min(equal) < 0.1
    assert max(uploads) > 3 * max(equal)


# --- What a replay draws, against the trace that it is of -----------------------------------------------------------

REPLAYED = (ORIGINAL, SLICED, "preinstalled")
USABLE = {"#0b5a8f", "#2878ad"}
DRAWN = """
const all = (selector) => [...document.querySelectorAll('#replay-drawing ' + selector)];
const boxes = (rects) => rects.map((each) => ({
    x: Number(each.getAttribute('x')), y: Number(each.getAttribute('y')), width: Number(each.getAttribute('width')),
    height: Number(each.getAttribute('height')), fill: each.getAttribute('fill'), of: each.textContent}));
const blocks = boxes(all('rect:not([class])'));
const points = (path) => path.getAttribute('d').split(/[ML]/).slice(1).map((each) => each.split(' ').map(Number));
return {
    client: blocks.filter((_, at) => at % 2 === 0), server: blocks.filter((_, at) => at % 2),
    parts: boxes(all('.part')),
    ahead: points(all('.ahead')[0]), done: points(all('.done')[0]),
    dots: all('circle').filter((each) => each.style.display !== 'none').map(
        (each) => [Number(each.getAttribute('cx')), Number(each.getAttribute('cy'))])};
"""


@pytest.fixture(scope="module")
def replayed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Trace]]:
    """A page of AlexNet's virtual runs, and these."""
    traces = runner.run_virtual_all("alexnet", REPLAYED)
    path = tmp_path_factory.mktemp("replayed") / "report.html"
    path.write_text(html_page(make_report(traces)), encoding="utf-8")
    return path, {trace.info.algorithm: trace for trace in traces}


def go(page: Browser, seconds: float) -> dict[str, Any]:
    """Move the slider there; what is drawn then."""
    slide = "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input'))"
    page.run(slide, page.one("#replay-time"), seconds)
    return dict(page.run(DRAWN))


def told_of(trace: Trace, seconds: float) -> list[str]:
    """What the replay should say at that time."""
    names, held = trace.info.graph.stages, trace.info.plan.held
    before = [query for query in trace.queries if query.start_s <= seconds]
    if before:
        query = before[-1]
        is_over = f"is {'answered; it took' if seconds > query.end_s else 'under way, and takes'}"
        legs = [
            (names[each.first] if each.first == each.last else f"{names[each.first]} to {names[each.last]}")
            + {"client": " at the client", "server": " at the server", "both": " at both"}[each.where]
            for each in query.segments
        ]
        number = f"Query {len(before)} of {len(trace.queries)}"
        what = f"{number} {is_over} {query.latency_ms:.0f} ms: {', '.join(legs)}."
    else:
        what = "No query has started yet."
    usable = [part.bytes for part in trace.partitions if part.ready_s <= seconds]
    weights = (
        f"Usable at the server: {len(usable)} of {len(trace.partitions)} partitions, {sum(usable) / 1e6:.1f} of "
        f"{sum(part.bytes for part in trace.partitions) / 1e6:.1f} MB."
        if trace.partitions
        else f"Nothing is uploaded in this run. The server had {len(held)} of {len(names)} stages before."
    )
    return [f"At {seconds:.2f} s", what, weights]


@pytest.mark.parametrize("algorithm", REPLAYED)
def test_a_replay_says_what_its_trace_says(
    chromium: Browser, replayed: tuple[Path, dict[str, Trace]], algorithm: str
) -> None:
    path, traces = replayed
    trace = traces[algorithm]
    chromium.open(path)
    chromium.choose("replay", "algorithm", algorithm)
    times_s = {0.0, *((query.start_s + query.end_s) / 2 for query in trace.queries[::9])}
    for part in trace.partitions[:20]:
        times_s |= {part.start_s + 0.3 * (part.end_s - part.start_s), (part.end_s + part.ready_s) / 2}
    for seconds in sorted(times_s):
        drawn = go(chromium, seconds)
        assert chromium.status.split("\n") == told_of(trace, seconds)
        full = max(each["height"] for each in drawn["server"]) - 1.5
        for each in drawn["parts"]:
            part = trace.partitions[int(each["of"].rsplit(" ", 1)[1].rstrip(")")) - 1]
            arrived = min(max((seconds - part.start_s) / (part.end_s - part.start_s), 0.0), 1.0)
            assert each["height"] == pytest.approx(full * arrived, abs=0.1 if arrived < 1 else 1e-6)
            # It fills from below.
            assert each["y"] + each["height"] == pytest.approx(drawn["server"][0]["y"] + 0.75 + full)
            assert (each["fill"] in USABLE) == (part.ready_s <= seconds)
    held = {number for number, each in enumerate(drawn["server"]) if each["fill"] in USABLE}
    assert held == set(trace.info.plan.held)


@pytest.mark.parametrize(("share", "percent"), [(0.305, 30), (0.995, 99)])
def test_a_partition_that_arrives_is_told(
    chromium: Browser, replayed: tuple[Path, dict[str, Trace]], share: float, percent: int
) -> None:
    path, traces = replayed
    chromium.open(path)
    part = traces[ORIGINAL].partitions[2]
    go(chromium, part.start_s + share * (part.end_s - part.start_s))
    arriving = "return [...document.querySelectorAll('#replay-drawing text')].map((each) => each.textContent)"
    assert f"partition 3: {percent} % arrived" in chromium.run(arriving)
    go(chromium, (part.end_s + part.ready_s) / 2)
    assert "partition 3: being loaded" in chromium.run(arriving)


def test_the_path_is_where_the_query_is(chromium: Browser, replayed: tuple[Path, dict[str, Trace]]) -> None:
    """A query of three segments: client, server, client; up to the server and down from it, as the costs divide it."""
    path, traces = replayed
    chromium.open(path)
    query, graph = traces[ORIGINAL].queries[9], traces[ORIGINAL].info.graph
    before, there, after = query.segments
    assert [each.where for each in query.segments] == ["client", "server", "client"]
    up, down = graph.up_ms[there.first], graph.down_ms[there.last + 1]
    up_ms = (there.total_ms - there.compute_ms) * up / (up + down)
    down_ms = there.total_ms - there.compute_ms - up_ms
    assert abs(up_ms - down_ms) > 1
    drawn = go(chromium, query.start_s)
    client_y, server_y = min(y for _, y in drawn["ahead"]), max(y for _, y in drawn["ahead"])

    def left(stage: int) -> float:
        return float(drawn["client"][stage]["x"])

    def right(stage: int) -> float:
        return float(drawn["client"][stage]["x"] + drawn["client"][stage]["width"])

    def inside(y: float, row: str) -> bool:
        return bool(drawn[row][0]["y"] < y < drawn[row][0]["y"] + drawn[row][0]["height"])

    assert inside(client_y, "client")
    assert inside(server_y, "server")
    route = [
        [left(before.first), client_y], [right(before.last), client_y],
        [left(there.first), client_y], [left(there.first), server_y],
        [left(there.first), server_y], [right(there.last), server_y],
        [right(there.last), server_y], [right(there.last), client_y],
        [left(after.first), client_y], [right(after.last), client_y],
    ]  # fmt: skip
    moves_ms = [before.total_ms, up_ms, there.compute_ms, down_ms, after.total_ms]
    for number, ms in enumerate(moves_ms):
        if ms < 0.1:  # shorter than a replay's times are exact
            continue
        for share in (0.25, 0.5):
            drawn = go(chromium, query.start_s + (sum(moves_ms[:number]) + share * ms) / 1e3)
            (x0, y0), (x1, y1) = route[2 * number], route[2 * number + 1]
            place = [x0 + share * (x1 - x0), y0 + share * (y1 - y0)]
            tolerance = max(abs(x1 - x0), abs(y1 - y0)) * 0.2 / ms + 0.1
            (dot,) = drawn["dots"]
            assert dot == pytest.approx(place, abs=tolerance)
            assert drawn["done"][-1] == pytest.approx(dot, abs=0.1)
            assert [pytest.approx(each, abs=0.1) for each in route] == drawn["ahead"]
            assert drawn["done"][:-1] == drawn["ahead"][: 2 * number + 1]


def test_both_sides_compute_a_stage(chromium: Browser, replayed: tuple[Path, dict[str, Trace]]) -> None:
    path, traces = replayed
    chromium.open(path)
    chromium.choose("replay", "algorithm", SLICED)
    query = max(
        traces[SLICED].queries,
        key=lambda query: max((each.total_ms for each in query.segments if each.where == "both"), default=0.0),
    )
    at = [each.where for each in query.segments].index("both")
    before_ms = sum(each.total_ms for each in query.segments[:at])
    drawn = go(chromium, query.start_s + (before_ms + query.segments[at].total_ms / 2) / 1e3)
    block = drawn["client"][query.segments[at].first]
    assert len(drawn["dots"]) == 2
    for x, _ in drawn["dots"]:
        assert block["x"] <= x <= block["x"] + block["width"]
    rows = [drawn["client"][0]["y"], drawn["server"][0]["y"]]
    assert all(row < y < row + block["height"] for row, (_, y) in zip(rows, drawn["dots"], strict=True))


def test_the_strip_shows_latencies_and_leads_there(chromium: Browser, replayed: tuple[Path, dict[str, Trace]]) -> None:
    path, traces = replayed
    chromium.open(path)
    trace = traces[ORIGINAL]
    line = chromium.run("return document.querySelector('#replay-drawing .latency').getAttribute('d')")
    steps = [
        (*map(float, each.split("H")[0].split()), float(each.split("H")[1])) for each in re.split("[ML]", line)[1:]
    ]
    strip = chromium.one("#replay-drawing .strip")
    bottom, height, width = chromium.run(
        "const it = arguments[0]; const [y, height] = ['y', 'height'].map((name) => Number(it.getAttribute(name)));"
        "return [y + height, height, Number(it.getAttribute('width'))]",
        strip,
    )
    end_s, most_ms = trace.queries[-1].end_s, max(query.latency_ms for query in trace.queries)
    tall = bottom - min(y for _, y, _ in steps)
    assert 0.5 * height < tall <= height
    for query, (begin, y, end) in zip(trace.queries, steps, strict=True):
        assert begin == pytest.approx(query.start_s / end_s * width, abs=1)
        assert end == pytest.approx(query.end_s / end_s * width, abs=1)
        assert bottom - y == pytest.approx(query.latency_ms / most_ms * (tall - 4) + 4, abs=0.1)  # 0 ms is at 4 pixels
    chromium.run("arguments[0].scrollIntoView({block: 'center'})", strip)
    ActionChains(chromium.driver).move_to_element_with_offset(strip, round(width / 4), 0).click().perform()
    assert chromium.time_s == pytest.approx(0.75 * end_s, abs=2 * end_s / width)


def test_time_goes_as_fast_as_chosen(chromium: Browser, replayed: tuple[Path, dict[str, Trace]]) -> None:
    """With a clock and frames of the test."""
    path, _ = replayed
    chromium.open(path)
    chromium.run(
        "window.clock = 1000; performance.now = () => window.clock;"
        "window.requestAnimationFrame = (next) => { window.next = next; return 1; }"
    )
    for text, speed in (("0.1 x", 0.1), ("as it was", 1), ("5 x", 5)):
        chromium.choose("replay", "speed", text)
        go(chromium, 1.0)
        chromium.one("#replay-play").click()
        chromium.run("window.clock += 200; window.next(window.clock)")
        chromium.run("window.clock += 300; window.next(window.clock)")
        assert chromium.time_s == pytest.approx(1 + 0.5 * speed)
        chromium.one("#replay-play").click()


def test_paper_shows_all_and_no_choosers(page: Browser) -> None:
    page.run("dispatchEvent(new Event('beforeprint'))")
    assert page.run("return document.querySelectorAll('details:not([open])').length") == 0
    view_box = "return document.querySelector('#replay-drawing svg').getAttribute('viewBox')"
    assert page.run(view_box).split()[2] == "640"
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    for selector in ("nav", "#latency-choosers", "#replay-choosers", "#replay-time", ".controls"):
        assert not page.one(selector).is_displayed(), selector
    for subject in ("#latency-subject", "#replay-subject"):
        assert "AlexNet" in page.one(subject).text
    assert page.one("#latency-algorithms").is_displayed()
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    page.run("dispatchEvent(new Event('afterprint'))")
    assert page.run("return document.querySelectorAll('details[open]').length") == 0
    assert int(page.run(view_box).split()[2]) > 640
    sizes = "const it = document.getElementById('latency-chart'); return [it.clientWidth, it._fullLayout.width]"
    page.wait(lambda: len(set(page.run(sizes))) == 1)
    assert page.driver.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})["data"].startswith("JVBERi")


def test_everything_has_a_name_and_a_place(page: Browser) -> None:
    """What those need who hear the page, or go through it by keys."""
    for landmark in ("header", "nav", "main", "footer", "h1"):
        assert len(page.all(landmark)) == 1, landmark
    assert page.run("return document.documentElement.lang") == "en"
    unnamed = page.run(
        "return [...document.querySelectorAll('select, input, button')]"
        ".filter((each) => !(each.labels && each.labels.length) && !each.ariaLabel && !each.textContent.trim())"
        ".map((each) => each.outerHTML)"
    )
    assert unnamed == []
    assert page.run("return [...document.images].every((each) => each.alt)")
    assert page.run("return [...document.querySelectorAll('[role=img]')].every((each) => each.ariaLabel)")
    headings = page.run("return [...document.querySelectorAll('h1, h2, h3')].map((each) => Number(each.tagName[1]))")
    assert all(after <= before + 1 for before, after in itertools.pairwise(headings))
    page.run("document.body.focus()")
    ActionChains(page.driver).send_keys(Keys.TAB).perform()
    assert page.run("return document.activeElement.textContent") == "Skip to the content"


def test_a_link_leads_to_each_part(page: Browser) -> None:
    links = page.all("nav a")
    assert [link.text for link in links] == [
        "What was found", "Claims and verdicts", "Latency over time", "A run, replayed", "All tables",
        "Figures for papers",
    ]  # fmt: skip
    for link in links:
        target = str(link.get_attribute("href")).partition("#")[2]
        assert page.one(f"#{target} h2").text == link.text
    links[3].click()
    page.wait(lambda: 0 <= page.run("return document.getElementById('replay').getBoundingClientRect().top") < 200)


def test_trouble_is_told(chromium: Browser, report: Path, tmp_path: Path) -> None:
    """A browser that cannot read what the page has says so; the tables are there."""
    broken = tmp_path / "report.html"
    text = report.read_text(encoding="utf-8")
    broken.write_text(text.replace('id="plotly">H4sI', 'id="plotly">AAAA'), encoding="utf-8")
    chromium.driver.get(broken.as_uri())
    chromium.wait(lambda: chromium.one("#trouble").is_displayed())
    assert "Not all of this page could be drawn" in chromium.one("#trouble").text
    assert len(chromium.all("#tables table")) > 5
    # It is printed in full, too.
    chromium.run("dispatchEvent(new Event('beforeprint'))")
    assert not chromium.all("details:not([open])")
    chromium.driver.get_log("browser")  # type: ignore[no-untyped-call]
