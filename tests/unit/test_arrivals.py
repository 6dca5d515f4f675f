"""When queries arrive, and what becomes of them, against a queue that is simulated by other means."""

from __future__ import annotations

import itertools
import math
import statistics
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ionn.errors import InputError
from ionn.records import QueryRecord
from ionn.testbed import arrivals as module
from ionn.testbed.arrivals import ARRIVALS_MAX, CLOSED_LOOP, Arrivals
from ionn.testbed.experiment import QUERIES_AFTER_UPLOAD, run_experiment
from ionn.testbed.responses import SPANS_MAX, percentile, responses_of, spans
from ionn.testbed.settings import Settings
from ionn.testbed.trace import RunInfo, Trace
from ionn.testbed.virtual import run_virtual
from tests.support.chains import chain
from tests.support.runs import make_trace, plan_of

RATES = st.sampled_from([0.001, 0.5, 1 / 3, 7.5, 30.0, 1000.0])


def first(arrivals: Arrivals, count: int, seed: int = 0, run: int = 1) -> list[float]:
    return list(itertools.islice(arrivals.times(seed, run), count))


# --- When they arrive -----------------------------------------------------------------------------------------------


def test_a_camera_never_drifts() -> None:
    assert first(Arrivals("fps:4"), 5) == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert first(Arrivals("fps:30"), 3001)[-1] == 100.0


def test_bursts_come_at_once_and_again() -> None:
    assert first(Arrivals("burst:3,2.5"), 8) == [0, 0, 0, 2.5, 2.5, 2.5, 5, 5]


@given(RATES, st.integers(0, 2**63 - 1), st.integers(1, 100))
def test_poisson_arrivals_have_their_rate_and_are_independent(rate: float, seed: int, run: int) -> None:
    times_s = first(Arrivals.parse(f"poisson:{rate}"), 4000, seed, run)
    gaps = [rate * gap_s for gap_s in map(float.__sub__, times_s, [0.0, *times_s])]
    assert min(gaps) >= 0
    # Exponential: mean and standard deviation 1, and 1 - 1/e of them below the mean. Each within 6 standard errors.
    assert statistics.mean(gaps) == pytest.approx(1, abs=6 / math.sqrt(4000))
    assert statistics.stdev(gaps) == pytest.approx(1, abs=6 * math.sqrt(2 / 4000))
    assert sum(gap < 1 for gap in gaps) / 4000 == pytest.approx(1 - 1 / math.e, abs=6 * 0.5 / math.sqrt(4000))
    assert statistics.correlation(gaps[1:], gaps[:-1]) == pytest.approx(0, abs=6 / math.sqrt(4000))


@given(st.sampled_from(["fps:3", "poisson:3", "burst:4,0.5"]), st.integers(0, 9), st.integers(1, 9))
def test_arrivals_ascend_and_follow_from_seed_and_run(name: str, seed: int, run: int) -> None:
    times_s = first(Arrivals(name), 200, seed, run)
    assert times_s == sorted(times_s) == first(Arrivals(name), 200, seed, run)
    other = [first(Arrivals(name), 200, seed + 1, run), first(Arrivals(name), 200, seed, run + 1)]
    assert all((times_s == each) == (not name.startswith("poisson")) for each in other)


@pytest.mark.parametrize(
    ("text", "name", "per_second"),
    [
        ("closed", "closed", 0), ("fps:007.50", "fps:7.5", 7.5), ("poisson:1e1", "poisson:10", 10),
        ("burst:5, 2.50", "burst:5,2.5", 2), ("fps:1000", "fps:1000", 1000), ("poisson:0.001", "poisson:0.001", 0.001),
        ("burst:1000,86400", "burst:1000,86400", 1000 / 86400), ("burst:1,0.001", "burst:1,0.001", 1000),
    ],
)  # fmt: skip
def test_numbers_have_one_name(text: str, name: str, per_second: float) -> None:
    parsed = Arrivals.parse(text)
    assert (parsed.name, parsed.per_second, parsed.times_s) == (name, per_second, None)
    assert parsed.closed == (parsed == CLOSED_LOOP) == (text == "closed")


@pytest.mark.parametrize(
    "text",
    [
        "fps:1_0", "fps:٣",
        "fps:0", "fps:0.0009", "fps:1000.1", "fps:nan", "poisson:-1", "poisson:inf", "poisson:1e400", "fps:", "fps:1,2",
        "poisson:x", "burst:2", "burst:0,1", "burst:2.5,1", "burst:1001,1", "burst:1000000000,1", "burst:1,0",
        "burst:1,nan", "burst:nan,1", "burst:1,86401", "burst:1,2,3",
    ],
)  # fmt: skip
def test_numbers_that_cannot_be_are_refused(text: str) -> None:
    """From a user, and from a trace."""
    for make in (Arrivals.parse, Arrivals):
        with pytest.raises(InputError, match=r"arrivals .*: give .* to .*, as (fps|poisson|burst):[\d.,]+$"):
            make(text)


@pytest.mark.parametrize("text", ["", "closed:3", "poison:3", "no/such/file", "a\0b", "x" * 5000])
def test_what_is_no_file_either_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="no such file; give closed, fps:N"):
        Arrivals.parse(text)


def test_a_file_has_a_timestamp_on_each_line(tmp_path: Path) -> None:
    path, same, other = (tmp_path / name for name in ("walk.txt", "same.txt", "other.txt"))
    path.write_text("0\r\n 1.5 \n1.5\n\n86400\n")
    same.write_text("0.0\n1.5\n1.50\n86400")
    other.write_text("0\n1.5\n")
    read = Arrivals.parse(str(path))
    assert first(read, 9, seed=7) == [0, 1.5, 1.5, 86400]
    assert (read.closed, read.per_second) == (False, 0)
    assert read.name.startswith("walk.txt (")
    digests = [Arrivals.load(each).name.split("(")[1] for each in (path, same, other)]
    assert digests[0] == digests[1] != digests[2]
    # As a trace has it: equal, but without its times.
    assert Arrivals(read.name) == read
    with pytest.raises(InputError, match=r"walk\.txt .*give the file again"):
        Arrivals(read.name).times(0, 1)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("1\n0.5\n", ":2: 0.5 s comes after 1 s; sort"), ("0\n\n-0.1\n", ":3: '-0.1' is no timestamp"),
        ("nan\n", ":1: 'nan' is no timestamp"), ("1\ninf\n", ":2: 'inf' is no timestamp"), ("86400.1", "is no"),
        ("1 2\n", ":1: '1 2' is no timestamp"), ("seconds\n1\n", ":1: 'seconds' is no"), ("\n \n", "is no timestamp"),
        ("x" * 99, f"'{'x' * 40}' is no timestamp"), ("1\n2\n3\n4\n", ":4: there are more than 3 timestamps"),
    ],
)  # fmt: skip
def test_bad_files_are_one_clear_line(text: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ARRIVALS_MAX", 3)
    path = tmp_path / "times.txt"
    path.write_text(text)
    with pytest.raises(InputError) as refused:
        Arrivals.parse(str(path))
    assert str(refused.value).startswith(str(path))
    assert reason in str(refused.value)
    assert "\n" not in str(refused.value)


# --- What becomes of them -------------------------------------------------------------------------------------------


class Serving:
    """A session whose plan is uploaded at a time, and whose queries take what they are to take. A query is raised only
    when the client is free, and its clock never goes back. Between two times it uploads more."""

    def __init__(
        self, service_s: list[float], uploaded_s: float, more_s: tuple[float, float] = (math.inf, math.inf)
    ) -> None:
        self.clock_s = 0.0
        self._more_s = more_s
        self._service_s = itertools.cycle(service_s)
        self._uploaded_s = uploaded_s

    def now_s(self) -> float:
        return self.clock_s

    def start_upload(self) -> None:
        pass

    def wait_for_first_partition(self) -> None:
        raise AssertionError("only a closed loop waits for it")

    def uploaded(self) -> bool:
        begin_s, end_s = self._more_s
        return self.clock_s >= self._uploaded_s and not begin_s <= self.clock_s < end_s

    def wait_until(self, time_s: float) -> None:
        self.clock_s = max(self.clock_s, time_s)

    def wait_for_upload(self) -> None:
        self.wait_until(self._uploaded_s)

    def query(self, raised_s: float | None = None) -> QueryRecord:
        assert raised_s is not None
        assert raised_s <= self.clock_s
        start_s = self.clock_s
        self.clock_s += next(self._service_s)
        return QueryRecord(0, raised_s, start_s, self.clock_s, ())

    def finish(self) -> list[object]:
        assert self.uploaded()
        return []


def run(service_s: list[float], uploaded_s: float, times_s: list[float], busy: str, **settings: float) -> Trace:
    """The experiment with queries that arrive at these times, and then never again."""
    arrivals = Arrivals("times (00000000)", tuple(times_s))
    made = Settings("virtual" if "dilation" not in settings else "live", arrivals=arrivals, busy=busy, **settings)  # type: ignore[arg-type]
    info = make_trace().info
    return run_experiment(Serving(service_s, uploaded_s), RunInfo(made, 1, info.plan, info.graph))  # type: ignore[arg-type]


# Eighths are exact, so that the ends of queries and arrivals may meet.
EIGHTHS = st.integers(0, 40).map(lambda eighths: eighths / 8)


@given(
    st.lists(EIGHTHS, min_size=1, max_size=40).map(sorted), st.lists(EIGHTHS, min_size=1, max_size=7), EIGHTHS,
    st.sampled_from(["wait", "drop"]), st.none() | EIGHTHS.filter(bool),
)  # fmt: skip
def test_a_queue_as_it_is_simulated_by_hand(
    times_s: list[float], service_s: list[float], uploaded_s: float, busy: str, window_s: float | None
) -> None:
    """In steps of an eighth of a second: who arrives joins the queue, and whoever is free takes the next one of it."""
    answered: list[tuple[float, float, float]] = []
    dropped: list[float] = []
    queue: list[float] = []
    services, waiting = itertools.cycle(service_s), list(times_s)
    now_s = free_s = 0.0
    after: list[float] = []  # when those were answered that began after the upload

    def ended() -> bool:
        enough = len(after) >= QUERIES_AFTER_UPLOAD and now_s >= after[QUERIES_AFTER_UPLOAD - 1]
        return enough and now_s >= (window_s or 0.0)

    def serve() -> None:
        nonlocal free_s
        while queue and free_s <= now_s and not ended():
            free_s = now_s + next(services)
            after.extend([free_s] * (now_s >= uploaded_s))
            answered.append((queue.pop(0), now_s, free_s))

    while not ended() and (waiting or queue):
        serve()
        while waiting and waiting[0] == now_s and not ended():
            (dropped if busy == "drop" and now_s < free_s else queue).append(waiting.pop(0))
            serve()
        now_s += 1 / 8
    trace = run(service_s, uploaded_s, times_s, busy, **({} if window_s is None else {"window_s": window_s}))
    assert [(q.raised_s, q.start_s, q.end_s) for q in trace.queries] == answered
    assert list(trace.dropped_s) == [*dropped, *queue]


def computed(arrivals: Arrivals, busy: str = "wait", run: int = 1, seed: int = 0, **settings: float) -> Trace:
    """A run on the virtual testbed, at the client alone: a query takes 100 ms."""
    graph = chain([40, 60], [90, 90], [1, 1], [50, 50, 50])
    made = Settings("virtual", arrivals=arrivals, busy=busy, seed=seed, **settings)  # type: ignore[arg-type]
    return run_virtual(RunInfo(made, run, plan_of(graph, [], []), graph))


def test_waiting_times_are_those_of_queueing_theory() -> None:
    """M/D/1 at half load: by Pollaczek and Khinchine a query waits half of its service on average, and, as it meets an
    idle client half of the time, half of them wait not at all."""
    trace = computed(Arrivals("poisson:5"), window_s=20_000.0)
    waited_s = [query.start_s - query.raised_s for query in trace.queries]
    assert len(waited_s) == pytest.approx(100_000, rel=0.02)
    assert statistics.mean(waited_s) == pytest.approx(0.05, rel=0.05)
    assert sum(each < 1e-9 for each in waited_s) / len(waited_s) == pytest.approx(0.5, abs=0.01)
    assert all(time_s > trace.queries[-1].start_s for time_s in trace.dropped_s)  # they waited for the last one


def test_drops_are_those_of_queueing_theory() -> None:
    """By Erlang's formula one in three: load / (1 + load), at half load."""
    responses = computed(Arrivals("poisson:5"), "drop", window_s=20_000.0, deadline_ms=99.0).responses
    assert responses.raised == pytest.approx(100_000, rel=0.02)
    assert responses.dropped / responses.raised == pytest.approx(1 / 3, rel=0.02)
    assert responses.p50_ms == pytest.approx(responses.p99_ms) == pytest.approx(100)
    assert responses.within_deadline == 0


def test_a_camera_that_is_too_fast() -> None:
    """Queries take 100 ms, and one comes every 40: without a window, the run is over after five answers."""
    waiting = computed(Arrivals("fps:25"))
    assert [round(query.response_ms, 6) for query in waiting.queries] == [100, 160, 220, 280, 340]
    # The fifth is answered at 500 ms; by then 13 were raised, the first at 0.
    assert [round(time_s, 6) for time_s in waiting.dropped_s] == [0.04 * number for number in range(5, 13)]
    dropping = computed(Arrivals("fps:25"), "drop")
    assert [round(query.raised_s, 6) for query in dropping.queries] == [0, 0.12, 0.24, 0.36, 0.48]
    assert [round(query.response_ms, 6) for query in dropping.queries] == [100] * 5
    assert len(dropping.dropped_s) == 2 * 5


def test_who_waits_for_ever_lets_the_run_end() -> None:
    """Even with a thousand queries a second, of which ten are answered: its memory is that of the times."""
    trace = computed(Arrivals("poisson:1000"), window_s=60.0)
    assert len(trace.queries) == 600
    assert len(trace.dropped_s) == pytest.approx(60_000 - 600, rel=0.05)
    assert len(trace.responses_over_time) <= SPANS_MAX


def test_queries_begin_before_the_first_partition_and_use_what_has_arrived() -> None:
    graph = chain([30, 50], [1, 2], [100, 80], [4, 4, 4])
    arrivals = Arrivals("times (00000000)", (0.0, 0.12, 0.2, 0.201))
    made = Settings("virtual", arrivals=arrivals)
    trace = run_virtual(RunInfo(made, 1, plan_of(graph, [[0], [1]], [1, 1]), graph))
    # At 0: 80 ms here. At 120, beside B: A's 4 ms up take 8, 1 there, 4 down, 50 here. B is there at 184: 4 + 3 + 4.
    ends_ms = [round(query.end_s * 1e3, 6) for query in trace.queries]
    assert ends_ms == [80, 183, 211, 222]
    assert [round(query.response_ms, 6) for query in trace.queries] == [80, 63, 11, 21]
    assert [round(part.ready_s * 1e3, 6) for part in trace.partitions] == [100, 184]


def test_a_file_that_ends_first_does_not_end_the_upload() -> None:
    graph = chain([30, 50], [1, 2], [100, 80], [4, 4, 4], load=[0, 7])
    made = Settings("virtual", arrivals=Arrivals("times (00000000)", (0.0,)))
    trace = run_virtual(RunInfo(made, 1, plan_of(graph, [[0], [1]], [1, 1]), graph))
    assert len(trace.queries) == 1
    assert [round(part.ready_s * 1e3, 6) for part in trace.partitions] == [100, 180]


def test_too_many_queries_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ionn.testbed.experiment.ARRIVALS_MAX", 100)
    assert len(computed(Arrivals("fps:5"), window_s=19.9).queries) == 100
    with pytest.raises(InputError, match="fps:5: more than 100 queries arrive before the upload and the window are"):
        computed(Arrivals("fps:5"), window_s=20.1)


@pytest.mark.parametrize("window_s", [None, 8.5])
def test_queries_after_an_upload_that_resumes_are_counted_anew(window_s: float | None) -> None:
    """A query each second: the fifth after the upload would be that of 7 s, but more was uploaded from 6 s on, or in
    the window."""
    made = Settings("virtual", arrivals=Arrivals("fps:1"), window_s=window_s)
    info = RunInfo(made, 1, make_trace().info.plan, make_trace().info.graph)
    more_s = (6.0, 9.0) if window_s is None else (8.0, 9.0)
    trace = run_experiment(Serving([0.5], 3.0, more_s), info)  # type: ignore[arg-type]
    assert [query.start_s for query in trace.queries] == list(range(9 + 5))


@pytest.mark.parametrize(("busy", "last_s"), [("wait", 36.0), ("drop", 38.0)])
def test_dilation_slows_arrivals_down_too(busy: str, last_s: float) -> None:
    """A session that is four times as slow, as all is in a dilated run, sees the same run. With drops the query after
    the window is the fifth after the upload."""
    times_s = [0.0, 0.5, 0.625, 2.0, 2.0, 2.25, 3.0, 3.5, 9.0, 9.5]
    plain = run([0.5, 0.25], 1.0, times_s, busy, window_s=9.25, deadline_ms=400.0)
    slow = run([2.0, 1.0], 4.0, times_s, busy, window_s=9.25, deadline_ms=400.0, dilation=4.0)
    assert slow.queries[-1].raised_s == last_s
    assert slow.undilated().queries == plain.queries
    assert slow.undilated().dropped_s == plain.dropped_s
    assert slow.undilated().responses == plain.responses


# --- What is counted ------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 30).map(float), min_size=1, max_size=50), st.sampled_from([50, 90, 99]))
def test_a_percentile_is_the_least_that_so_many_do_not_exceed(values: list[float], percent: int) -> None:
    found = percentile(sorted(values), percent)
    enough = [value for value in values if sum(other <= value for other in values) * 100 >= percent * len(values)]
    assert found == min(enough)


@pytest.mark.parametrize("count", [1, 99, 100, 101, 1000])
def test_percentiles_of_many_queries(count: int) -> None:
    queries = [QueryRecord(0, float(raised), raised, raised + (raised + 1) / 1024, ()) for raised in range(count)]
    found = responses_of(queries, [], None, 0.0, count)
    wanted = [-(-count * percent // 100) * 1e3 / 1024 for percent in (50, 90, 99)]
    assert [found.p50_ms, found.p90_ms, found.p99_ms] == pytest.approx(wanted)


def test_nothing_has_no_percentile() -> None:
    assert math.isnan(percentile([], 50))


@given(st.floats(0, 1e9))
@example(59.0)
@example(60.0)
@example(120.0)
def test_spans_cover_a_run(end_s: float) -> None:
    found = list(spans(end_s))
    assert 1 <= len(found) <= SPANS_MAX
    assert found[0][0] == 0
    assert found[-1][0] <= end_s < found[-1][1]
    assert all(one[1] == other[0] for one, other in itertools.pairwise(found))
    assert f"{found[0][1]:e}"[0] in "125"
    assert len(found) >= SPANS_MAX / 2.5 or found[0][1] == 1
    assert len(list(spans(1e40))) <= SPANS_MAX  # the largest that a trace may have


def test_which_queries_are_within_a_deadline() -> None:
    queries = [QueryRecord(0, raised, raised + 1, raised + 1 + took, ()) for raised, took in [(0, 1), (1, 2), (2, 1)]]
    found = responses_of(queries, [0.5, 2.5], 2000.0, 0.0, 3.0)
    assert (found.raised, found.dropped, found.p50_ms, found.p90_ms, found.p99_ms) == (5, 2, 2000, 3000, 3000)
    assert found.within_deadline == 2 / 5
    part = responses_of(queries, [0.5, 2.5], 2000.0, 1.0, 2.5)
    assert (part.raised, part.dropped, part.within_deadline) == (2, 0, 1 / 2)
    assert math.isnan(responses_of(queries, [], None, 0.0, 3.0).within_deadline)
    assert math.isnan(responses_of(queries, [], 1.0, 5.0, 6.0).within_deadline)


@given(st.integers(0, 99))
def test_what_became_of_queries_over_time_adds_up(seed: int) -> None:
    trace = computed(Arrivals("poisson:12"), "drop", seed=seed, window_s=150.0, deadline_ms=100.5)
    whole, over_time = trace.responses, trace.responses_over_time
    assert (len(over_time), over_time[1].start_s) == (30, 5)
    assert sum(span.raised for span in over_time) == whole.raised == len(trace.queries) + len(trace.dropped_s)
    assert sum(span.dropped for span in over_time) == whole.dropped == len(trace.dropped_s)
    assert sum(span.within_deadline * span.raised for span in over_time) == pytest.approx(len(trace.queries))


# --- On disk --------------------------------------------------------------------------------------------------------


def test_a_run_comes_back_from_disk(tmp_path: Path) -> None:
    made = computed(Arrivals("burst:3,0.25"), "drop", deadline_ms=250.0)
    made.save(tmp_path / "run.jsonl")
    read = Trace.load(tmp_path / "run.jsonl")
    assert read == made
    assert len(read.dropped_s) == 2 * 5
    assert read.info.settings == Settings("virtual", arrivals=Arrivals("burst:3,0.25"), busy="drop", deadline_ms=250.0)


def test_the_trace_of_a_closed_loop_is_as_before(tmp_path: Path) -> None:
    make_trace().save(tmp_path / "run.jsonl")
    text = (tmp_path / "run.jsonl").read_text()
    assert not any(word in text for word in ("arrivals", "busy", "deadline", "drops"))


@pytest.mark.parametrize("value", ["null", "3", "[-1]", '["x"]', "[1e99]", "[[]]", "{}"])
def test_drops_that_cannot_be_are_refused(value: str, tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    computed(Arrivals("fps:25"), "drop").save(path)
    head, _, rest = path.read_text().partition('"drops", "raised_s": ')
    path.write_text(f'{head}"drops", "raised_s": {value}}}\n{rest.partition(chr(10))[2]}')
    with pytest.raises(InputError, match=r"run\.jsonl: not a trace of ionn"):
        Trace.load(path)


def test_names_of_settings() -> None:
    settings = Settings("virtual", arrivals=Arrivals("burst:5,2.5"), busy="drop", deadline_ms=200.0, window_s=30.0)
    assert settings.slug == "virtual-window30-s-arrivals-burst-5-2.5-busy-drop-deadline200-ms"
    assert settings.name == "virtual testbed, window 30 s, arrivals burst:5,2.5, busy drop, deadline 200 ms"
    assert not settings.are_papers


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"busy": "drop"}, "give --arrivals too"),
        ({"deadline_ms": 100.0}, "give --arrivals too"),
        ({"arrivals": Arrivals("fps:5"), "busy": "queue"}, "may 'wait', or 'drop' out"),
        ({"arrivals": Arrivals("fps:5"), "deadline_ms": 0.0}, "deadline 0 ms: give a number above 0"),
        ({"arrivals": Arrivals("fps:5"), "deadline_ms": math.nan}, "deadline nan ms"),
        ({"arrivals": Arrivals("fps:5"), "deadline_ms": 1e9}, "at most 8.64e"),
        ({"arrivals": Arrivals("fps:1000"), "window_s": 1000.1}, f"give a shorter window.*at most {ARRIVALS_MAX}"),
    ],
)
def test_settings_that_cannot_be_are_refused(given: dict[str, object], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        Settings("virtual", **given)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["fps:3", "poisson:", "burst:1,2", "closed", "a" * 200])
def test_a_file_may_have_any_name(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("0\n1\n")
    arrivals = Arrivals.parse(str(tmp_path / name))
    assert arrivals.times_s == (0.0, 1.0)
    assert not arrivals.closed
    assert len(arrivals.name) < 80
