"""Walks: what their files may hold, stores of bounded size, and a client that goes from server to server."""

from __future__ import annotations

import dataclasses
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from ionn.costs.loading import load_costs
from ionn.errors import InputError
from ionn.model.network import Network
from ionn.testbed import walking
from ionn.testbed.bandwidth import Bandwidth
from ionn.testbed.walking import AHEAD, EVERYWHERE, NO_STORE, STORE, VARIANTS, Store, Walked, gains, run_walk
from ionn.testbed.walks import Server, Stretch, Visit, Walk

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "walk.toml"
ALEXNET = Network.load("alexnet")
MOBILENET = Network.load("mobilenet")
PHONE, GPU = load_costs("odroid-xu4"), load_costs("gtx1080ti")
LOCAL_MS = float(PHONE.layer_ms(ALEXNET).sum())
ALEXNET_BYTES = sum(stage.weight_bytes for stage in ALEXNET.stages)


def server(
    name: str = "one", mbps: float = 80.0, delay_ms: float = 0.0, store_gb: float | None = 1.0, has_model: bool = False
) -> Server:
    store_bytes = None if store_gb is None else store_gb * 1e9
    return Server(name, GPU, Bandwidth.constant(mbps), delay_ms, store_bytes, 0.5, has_model)


def walk(seconds: float, servers: list[Server], visits: list[Visit], every_s: float = 0.25, ahead: float = 1.0) -> Walk:
    algorithm = "recursive-efficiency"
    return Walk(ALEXNET, PHONE, algorithm, seconds, every_s, ahead, tuple(servers), tuple(visits))


# --- Its file ---------------------------------------------------------------------------------------------------------

GOOD = """
model = "alexnet"
seconds = 60
[[servers]]
name = "one"
mbps = 80
store_gb = 1
[[visits]]
server = "one"
from_s = 10
until_s = 50
"""


def test_the_example_is_a_walk() -> None:
    read = Walk.load(EXAMPLE)
    assert [each.name for each in read.servers] == ["home", "cafe", "library"]
    assert [each.has_model for each in read.servers] == [True, False, False]
    assert read.visits[1] == Visit(1, 35, 75, 5)
    assert (read.seconds, read.every_s, read.ahead) == (160, 0.5, 0.5)


def test_what_is_left_out_is_the_papers(tmp_path: Path) -> None:
    (tmp_path / "walk.toml").write_text(GOOD)
    read = Walk.load(tmp_path / "walk.toml")
    assert (read.algorithm, read.every_s, read.ahead) == ("recursive-efficiency", 0, 1)
    assert read.client == PHONE
    assert read.servers == (Server("one", GPU, Bandwidth.constant(80), 0, 1e9, 0.5, False),)
    assert read.visits == (Visit(0, 10, 50, None),)


def test_files_that_it_names_are_beside_it(tmp_path: Path) -> None:
    (tmp_path / "street.csv").write_text("0,80\n5,8\n")
    (tmp_path / "mine.prototxt").write_text((EXAMPLE.parents[1] / "prototxt" / "alexnet.prototxt").read_text())
    text = GOOD.replace("mbps = 80", 'bandwidth = "street.csv"').replace('"alexnet"', '"mine.prototxt"')
    (tmp_path / "walk.toml").write_text(text)
    read = Walk.load(tmp_path / "walk.toml")
    assert read.servers[0].bandwidth == Bandwidth((0, 5), (80, 8))
    assert read.network.name == "mine"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("seconds = 60", "", "Object missing required field `seconds`"),
        ("seconds = 60", "seconds = 0", "seconds: Expected `float` > 0.0"),
        ("seconds = 60", "seconds = nan", "seconds: Expected `float` > 0.0"),
        ("seconds = 60", "seconds = 1e9", "seconds: Expected `float` <= 3600.0"),
        ("seconds = 60", "seconds = 60\nspeed = 1", "unknown field `speed`"),
        ("seconds = 60", "seconds = 60\nahead = 2", "ahead: Expected `float` <= 1.0"),
        ("seconds = 60", 'seconds = 60\nclient = "phone"', "client: "),
        ("seconds = 60", 'seconds = 60\nalgorithm = "best"', "algorithm: unknown algorithm 'best'"),
        ('"alexnet"', '"lenet"', "model: "),
        ('"alexnet"', '"lenet.prototxt"', "model: "),
        ("mbps = 80", "mbps = -1", "servers[0].mbps: Expected `float` >= 0.001"),
        ("mbps = 80", "", "servers[0]: give either mbps or the file of a bandwidth"),
        ("mbps = 80", 'mbps = 80\nbandwidth = "x.csv"', "servers[0]: give either mbps or the file of a bandwidth"),
        ("mbps = 80", 'bandwidth = "nowhere.csv"', "servers[0].bandwidth: "),
        ("mbps = 80", 'mbps = 80\ncosts = "cray"', "servers[0].costs: "),
        ("store_gb = 1", "store_gb = 0", "servers[0].store_gb: Expected `float` > 0.0"),
        ("store_gb = 1", 'has = "model"', "servers[0].has: without store_gb"),
        ("store_gb = 1", 'store_gb = 1\nhas = "all"', "servers[0].has: Invalid enum value 'all'"),
        ('name = "one"', 'name = "o\\u0007ne"', "servers[0].name: "),
        ('server = "one"', 'server = "ome"', "visits[0].server: there is no server 'ome'; did you mean one?"),
        ("until_s = 50", "until_s = 10", "visits[0].until_s: give a time after from_s"),
        ("until_s = 50", "until_s = 61", "visits[0].until_s: give a time after from_s, and at most the walk's 60"),
        ("until_s = 50", "until_s = 50\ntold_s = 20", "visits[0].told_s: "),
        ("[[visits]]", '[[servers]]\nname = "one"\nmbps = 1\n[[visits]]', "servers: two of them have the same name"),
        ("[[visits]]", "[visits]", "visits: Expected `array`"),
        ('"alexnet"', '"mobilenet"\nalgorithm = "optimal"', "algorithm: optimal: "),
        ('"alexnet"', '"a\\u0000b.prototxt"', "model: "),
        ("seconds = 60", 'seconds = 60\nclient = "a\\u0000b"', "client: "),
        ("mbps = 80", 'bandwidth = "a\\u0000b"', "servers[0].bandwidth: "),
        ("mbps = 80", 'mbps = 80\ncosts = "a\\u0000b.csv:ms"', "servers[0].costs: "),
        ("seconds = 60", "seconds =", "not TOML: "),
        ("seconds = 60", "seconds = 1" + 5000 * "0", "not TOML: "),
        ("seconds = 60", "seconds = " + 5000 * "[", "not TOML: "),
    ],
)
def test_a_bad_file_is_said_in_a_line_that_names_file_and_key(tmp_path: Path, old: str, new: str, said: str) -> None:
    path = tmp_path / "walk.toml"
    path.write_text(GOOD.replace(old, new, 1))
    with pytest.raises(InputError) as refused:
        Walk.load(path)
    assert str(refused.value).startswith(f"{path}: ")
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_costs_of_another_network_are_refused_by_their_key(tmp_path: Path) -> None:
    (tmp_path / "few.txt").write_text("0 data 0\n1 conv1 5\n")
    (tmp_path / "walk.toml").write_text(GOOD.replace("mbps = 80", 'mbps = 80\ncosts = "few.txt"'))
    with pytest.raises(InputError, match=r"walk\.toml: servers\[0\]\.costs: .*few"):
        Walk.load(tmp_path / "walk.toml")


def test_of_those_in_reach_the_client_is_at_the_one_that_came_last() -> None:
    servers = [server("a"), server("b"), server("c")]
    visits = [Visit(0, 10, 50, None), Visit(1, 20, 30, None), Visit(2, 20, 25, None), Visit(0, 50, 60, None)]
    assert list(walk(70, servers, visits).stretches()) == [
        Stretch(None, 0, 10),
        Stretch(0, 10, 20),
        Stretch(2, 20, 25),
        Stretch(1, 25, 30),
        Stretch(0, 30, 50),
        Stretch(0, 50, 60),
        Stretch(None, 60, 70),
    ]
    assert list(walk(70, [], []).stretches()) == [Stretch(None, 0, 70)]
    assert list(walk(70, servers, [Visit(0, 0, 70, None)]).stretches()) == [Stretch(0, 0, 70)]


# --- Stores -----------------------------------------------------------------------------------------------------------


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=8), st.integers(0, 30), st.lists(st.integers(0, 7), max_size=30)
)
def test_a_store_is_bounded_and_drops_what_was_used_longest_ago(sizes: list[int], most: int, uses: list[int]) -> None:
    store, last_use = Store(most, sizes), dict[int, int]()
    for at, number in enumerate(each for each in uses if each < len(sizes)):
        store.use(number)
        last_use[number] = at
        assert store.size_bytes <= most
        kept = sorted(store.numbers, key=last_use.__getitem__)
        # Those that were used last, as many as fit: of all that had been there before.
        assert kept == sorted(last_use, key=last_use.__getitem__)[len(last_use) - len(kept) :]
        last_use = {each: last_use[each] for each in kept}


# --- A client that goes -----------------------------------------------------------------------------------------------


def test_a_second_visit_of_alexnet_sends_nothing() -> None:
    visits = [Visit(0, 0, 40, None), Visit(0, 45, 60, None)]
    first, second = run_walk(walk(60, [server()], visits), STORE).stays
    assert (first.sent_bytes, first.held_bytes) == (ALEXNET_BYTES, 0)
    assert first.uploaded_s is not None
    assert first.uploaded_s > 24
    assert (second.sent_bytes, second.held_bytes) == (0, ALEXNET_BYTES)
    # To connect, to read 244 MB, and to load.
    assert second.uploaded_s is not None
    assert second.uploaded_s < 0.3
    no_store = run_walk(walk(60, [server()], visits), NO_STORE).stays
    assert no_store[1].sent_bytes > 100e6
    assert no_store[1].held_bytes == 0


def test_a_store_that_is_too_small_keeps_what_came_last() -> None:
    visits = [Visit(0, 0, 40, None), Visit(0, 45, 90, None)]
    _, second = run_walk(walk(90, [server(store_gb=0.1)], visits), STORE).stays
    assert 0.9e8 < second.held_bytes <= 1e8
    assert second.sent_bytes + second.held_bytes == ALEXNET_BYTES


@pytest.mark.parametrize("algorithm", ["recursive-efficiency", "sliced-efficiency"])
def test_an_upload_that_was_broken_off_goes_on_where_it_was(algorithm: str) -> None:
    visits = [Visit(0, 0, 10, None), Visit(0, 12, 22, None), Visit(0, 24, 50, None)]
    stays = run_walk(dataclasses.replace(walk(50, [server()], visits), algorithm=algorithm), STORE).stays
    for before, after in pairwise(stays):
        there = before.sent_bytes + before.held_bytes
        assert there - 4e6 < after.held_bytes <= there  # but for the piece that was under way
    assert stays[-1].sent_bytes + stays[-1].held_bytes == ALEXNET_BYTES


def test_what_is_sent_ahead_need_not_be_sent_again_and_is_of_most_use_first() -> None:
    servers = [server("here", has_model=True), server("next")]
    visits = [Visit(0, 0, 45, None), Visit(1, 45, 75, 1)]
    for share in (0.0, 0.02, 0.25, 1.0):
        here, there = run_walk(walk(75, servers, visits), AHEAD, share).stays
        assert share * ALEXNET_BYTES - 4e6 < here.ahead_bytes <= share * ALEXNET_BYTES
        assert (here.sent_bytes, here.held_bytes) == (0, ALEXNET_BYTES)
        assert there.held_bytes == here.ahead_bytes
        assert there.sent_bytes == ALEXNET_BYTES - here.ahead_bytes
    found = gains(walk(75, servers, visits))
    assert [each.share for each in found] == list(walking.SHARES)
    assert found[0].gain == 0
    by_share = {each.share: each.gain for each in found}
    assert by_share[0.02] > 0.03
    assert by_share[1.0] > 0.5


def test_nothing_is_sent_ahead_twice_to_one_server() -> None:
    """The client is told of the second visit while it sends ahead for the first."""
    servers = [server("here", has_model=True), server("next")]
    for told_s in (1.0, 2.0, 15.0):
        visits = [Visit(0, 0, 100, None), Visit(1, 100, 120, 1), Visit(1, 150, 160, told_s)]
        here, there, _ = run_walk(walk(160, servers, visits), AHEAD).stays
        assert here.ahead_bytes == ALEXNET_BYTES
        assert (there.sent_bytes, there.held_bytes) == (0, ALEXNET_BYTES)


def test_each_visit_that_the_client_is_told_of_sends_its_share_ahead() -> None:
    servers = [server("here", has_model=True), server("next")]
    visits = [Visit(0, 0, 100, None), Visit(1, 100, 120, 1), Visit(1, 150, 160, 2)]
    here, there, _ = run_walk(walk(160, servers, visits), AHEAD, 0.25).stays
    assert 0.5 * ALEXNET_BYTES - 8e6 < here.ahead_bytes <= 0.5 * ALEXNET_BYTES
    assert there.held_bytes == here.ahead_bytes


def test_nothing_is_sent_ahead_to_a_server_without_a_store_or_that_nobody_tells_of() -> None:
    for there, told_s in ((server("next", store_gb=None), 1.0), (server("next"), None)):
        tried = walk(40, [server("here"), there], [Visit(0, 0, 20, None), Visit(1, 20, 40, told_s)])
        assert run_walk(tried, AHEAD).ahead_bytes == 0
        assert gains(tried) == ()


def test_the_present_server_comes_before_the_next_one() -> None:
    tried = walk(60, [server("here"), server("next")], [Visit(0, 0, 40, None), Visit(1, 40, 60, 1)])
    here, there = run_walk(tried, AHEAD).stays
    plain, _ = run_walk(tried, STORE).stays
    assert here.uploaded_s == plain.uploaded_s
    assert 0 < here.ahead_bytes < ALEXNET_BYTES
    assert here.ahead_bytes - 4e6 < there.held_bytes <= here.ahead_bytes


def test_a_query_that_is_at_a_server_when_the_client_leaves_is_completed_at_the_client() -> None:
    """With all of the model there, a query takes 64 ms, most of them on the link."""
    tried = walk(5, [server(has_model=True)], [Visit(0, 0, 2.03, None)], every_s=0.0)
    queries = run_walk(tried, STORE).queries
    (cut,) = [query for query in queries if query.fallback]
    assert cut.start_s < 2.03 < cut.end_s
    assert cut.end_s == pytest.approx(2.03 + LOCAL_MS / 1e3, rel=1e-5)  # but for the input layer, which was first
    assert all(segment.where == "client" for query in queries[cut.index :] for segment in query.segments)


def test_a_query_that_begins_when_the_client_leaves_is_none_of_the_server() -> None:
    tried = walk(4, [server(has_model=True)], [Visit(0, 0, 2, None)], every_s=1.0)
    queries = run_walk(tried, STORE).queries
    assert [query.start_s for query in queries] == [0, 1, 2, 3]
    assert [len(query.segments) > 1 for query in queries] == [False, True, False, False]
    assert not any(query.fallback for query in queries)


def test_a_server_that_is_gone_before_the_client_has_connected() -> None:
    tried = walk(10, [server(mbps=0.01), server("far", delay_ms=500)], [Visit(0, 0, 5, None), Visit(1, 6, 8, None)])
    walked = run_walk(tried, STORE)
    assert [stay.sent_bytes for stay in walked.stays] == [0, 0]
    assert [stay.uploaded_s for stay in walked.stays] == [None, None]
    assert all(query.latency_ms == pytest.approx(LOCAL_MS) for query in walked.queries)


def test_the_same_walk_goes_the_same_way() -> None:
    read = Walk.load(EXAMPLE)
    for variant in VARIANTS:
        assert run_walk(read, variant) == run_walk(read, variant)


def test_the_mean_is_over_time_and_not_over_queries() -> None:
    everywhere = run_walk(walk(20, [server(has_model=True)], [Visit(0, 10, 20, None)], every_s=0.0), STORE)
    slow_s = sum(q.latency_ms for q in everywhere.queries if q.latency_ms > 500) / 1e3
    fast_s = sum(q.latency_ms for q in everywhere.queries if q.latency_ms < 100) / 1e3
    assert slow_s == pytest.approx(11, abs=1)  # the last one begins there, and ends at the client
    assert fast_s == pytest.approx(10, abs=1)
    assert everywhere.mean_ms == pytest.approx((slow_s * LOCAL_MS + fast_s * 64) / (slow_s + fast_s), rel=0.05)


def test_queries_that_take_no_time_are_refused() -> None:
    class Nothing:
        """Costs of a client that computes in no time."""

        name, encode_ms_per_mb, decode_ms_per_mb = "nothing", None, None

        def __getattr__(self, method: str) -> Any:
            return lambda network: 0.0 * getattr(PHONE, method)(network)

    with pytest.raises(InputError, match="so fast"):
        run_walk(dataclasses.replace(walk(5, [], []), client=Nothing(), every_s=0.0), STORE)


def test_queries_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walking, "QUERIES_MAX", 3)
    with pytest.raises(InputError, match="more than 3 queries"):
        run_walk(walk(5, [], []), STORE)


@st.composite
def walks(draw: st.DrawFn) -> Walk:
    """Walks of half a minute over servers of all kinds of links and stores, in and out of reach, told or not."""
    rates = st.sampled_from([80.0, 500.0, 20.0, 5.0, 0.3])
    servers = []
    for number in range(draw(st.sampled_from([2, 3, 1]))):
        bandwidth = draw(st.sampled_from([None, Bandwidth((0, 3, 6), (80, 0, 4))])) or Bandwidth.constant(draw(rates))
        store_bytes = draw(st.sampled_from([1e9, 5e6, None]))
        has_model = store_bytes is not None and draw(st.booleans())
        delay_ms = draw(st.sampled_from([0.0, 10.0, 300.0]))
        servers.append(Server(f"{number}", GPU, bandwidth, delay_ms, store_bytes, 0.5, has_model))
    visits = []
    from_s = draw(st.sampled_from([0.0, 0.3, 4.0]))
    for number in range(draw(st.sampled_from([3, 5, 2, 1, 0]))):
        until_s = min(from_s + draw(st.sampled_from([9.0, 14.2, 3.3, 0.4, 0.01])), 30.0)
        told_s = draw(st.sampled_from([from_s / 2, 0.0, max(from_s - 3, 0.0), from_s, None]))
        visits.append(Visit(number % len(servers), from_s, until_s, told_s))
        from_s = min(max(until_s + draw(st.sampled_from([0.0, 0.5, 4.0, -2.5])), 0.0), 29.0)
    made = walk(30.0, servers, visits, draw(st.sampled_from([0.0, 0.25, 1.0])), draw(st.sampled_from([0.2, 1.0])))
    return dataclasses.replace(made, network=MOBILENET)


@settings(max_examples=60)
@given(walks(), st.sampled_from([*VARIANTS, AHEAD]))
def test_no_query_is_lost_and_none_loses_much(tried: Walk, variant: str) -> None:
    walked = run_walk(tried, variant)
    event(f"completed at the client: {min(walked.fallbacks, 2)}")
    event(f"sent ahead: {walked.ahead_bytes > 0}")
    assert_all_answered(tried, walked)
    # What docs/walks.md promises: twice the client alone at most; and of all, one local latency for each stay, and 1/60
    # more for each query.
    local_ms = float(PHONE.layer_ms(MOBILENET).sum())
    assert walked.local_ms == local_ms
    assert walked.longest_ms <= 2 * local_ms + 1e-6
    lost_ms = math.fsum(query.latency_ms - local_ms for query in walked.queries)
    assert lost_ms <= (len(walked.stays) + len(walked.queries) / 60) * local_ms + 1e-6
    if variant == NO_STORE:
        assert walked.held_bytes == 0
    if variant == EVERYWHERE:
        assert walked.sent_bytes == walked.ahead_bytes == 0
    if variant != AHEAD:
        assert walked.ahead_bytes == 0
    told = sum(visit.told_s is not None for visit in tried.visits)
    assert walked.ahead_bytes <= told * tried.ahead * sum(stage.weight_bytes for stage in MOBILENET.stages)


def assert_all_answered(tried: Walk, walked: Walked) -> None:
    """One query after the other until the walk ends, each of all stages, at a server only while that is in reach."""
    assert [query.index for query in walked.queries] == list(range(len(walked.queries)))
    assert walked.queries[0].start_s == 0
    for query, following in pairwise(walked.queries):
        assert following.start_s == pytest.approx(max(query.end_s, query.start_s + tried.every_s), abs=1e-9)
    assert walked.queries[-1].end_s + tried.every_s >= tried.seconds - 1e-9
    for query in walked.queries:
        ends = [-1, *(segment.last for segment in query.segments)]
        assert [segment.first for segment in query.segments] == [end + 1 for end in ends[:-1]]
        assert ends[-1] == len(tried.network.stages) - 1
        offloaded = [at for at, segment in enumerate(query.segments) if segment.where != "client"]
        if offloaded:
            back_s = query.end_s - sum(segment.total_ms for segment in query.segments[offloaded[-1] + 1 :]) / 1e3
            assert any(stay.begin_s <= query.start_s + 1e-9 and back_s <= stay.end_s + 1e-9 for stay in walked.stays)
