"""Made-up bandwidths, against what their Markov chains have in the long run."""

from __future__ import annotations

import hashlib
import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from ionn.errors import InputError
from ionn.testbed.bandwidth import Bandwidth
from ionn.testbed.mobile_links import MOBILITIES, mobile_bandwidth


def long_run_shares(mobility: str) -> np.ndarray:
    """The share of time in each state: what the transitions of a second leave as it is."""
    mean_s = MOBILITIES[mobility].mean_s
    n = len(mean_s)
    moves = np.zeros((n, n))
    for state in range(n):
        neighbours = [other for other in range(n) if abs(other - state) == 1]
        moves[state, state] = 1 - 1 / mean_s[state]
        moves[state, neighbours] = 1 / mean_s[state] / len(neighbours)
    shares: np.ndarray = np.linalg.matrix_power(moves, 10_000)[0]
    return shares


@pytest.mark.parametrize("mobility", MOBILITIES)
def test_in_the_long_run_states_have_their_shares_and_medians(mobility: str) -> None:
    chain = MOBILITIES[mobility]
    made = mobile_bandwidth(mobility, 80_000, seed=1)
    mbps = np.array(made.mbps[:-1])
    medians = np.array(chain.median_mbps)
    shares = long_run_shares(mobility)
    # The mean of a lognormal variable around the median 1.
    mean = np.exp(chain.spread**2 / 2)
    assert mbps.mean() == pytest.approx(float(shares @ medians) * mean, rel=0.03)
    assert (mbps == 0).mean() == pytest.approx(float(shares[medians == 0].sum()), abs=0.01)
    best = mbps[mbps > np.sqrt(medians[0] * medians[1])]  # most of them are of the best state
    assert len(best) / len(mbps) == pytest.approx(float(shares[0]), abs=0.05)


def test_an_outage_lasts_as_long_as_documented() -> None:
    out = [mbps == 0 for mbps in mobile_bandwidth("driving", 80_000, seed=2).mbps]
    begins = sum(later and not earlier for earlier, later in pairwise(out))
    assert sum(out) / begins == pytest.approx(MOBILITIES["driving"].mean_s[-1], rel=0.05)


@pytest.mark.parametrize("mobility", MOBILITIES)
def test_it_begins_in_the_best_state(mobility: str) -> None:
    first = [mobile_bandwidth(mobility, 1, seed).mbps[0] for seed in range(400)]
    assert float(np.median(first)) == pytest.approx(MOBILITIES[mobility].median_mbps[0], rel=0.06)


def test_the_file_of_a_seed_stays_what_it_was() -> None:
    """Runs over it can be repeated by whoever knows the seed, with another version too."""
    assert (
        mobile_bandwidth("driving", 5, seed=1).csv()
        == "seconds,mbps\n0.0,83.74\n1.0,8.97\n2.0,10.55\n3.0,23.69\n4.0,3.37\n5.0,26.06\n"
    )
    assert hashlib.sha256(mobile_bandwidth("walking", 300, seed=0).csv().encode()).hexdigest()[:12] == "ebd0c75ea0d2"


@pytest.mark.parametrize("mobility", MOBILITIES)
def test_a_link_is_one_of_its_seed_and_goes_on_at_its_mean(mobility: str) -> None:
    made = mobile_bandwidth(mobility, 60, seed=7)
    assert made == mobile_bandwidth(mobility, 60, seed=7)
    assert made != mobile_bandwidth(mobility, 60, seed=8)
    assert made.begins_s == tuple(range(61))
    assert made.mbps[-1] == pytest.approx(sum(made.mbps[:-1]) / 60, abs=0.01)
    assert made.period_s is None
    assert mobile_bandwidth(mobility, 40, seed=7).mbps[:40] == made.mbps[:40]


def test_what_is_made_up_can_be_loaded(tmp_path: Path) -> None:
    path = tmp_path / "driving.csv"
    made = mobile_bandwidth("driving", 3000, seed=0)
    assert 0.0 in made.mbps
    path.write_text(made.csv())
    assert Bandwidth.load(path) == made


def test_the_chains_are_as_documented() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "links.md").read_text(encoding="utf-8")
    for name, chain in MOBILITIES.items():
        (states, spread) = re.findall(rf"^\| {name} \| (.*) \| (.*) \|$", page, re.MULTILINE)[0]
        written = [re.fullmatch(r"(?:(\d+) Mbps|an outage), (\d+) s", state) for state in states.split("; ")]
        assert [tuple(int(number or 0) for number in state.groups()) for state in written if state] == list(
            zip(chain.median_mbps, chain.mean_s, strict=True)
        )
        assert float(spread) == chain.spread


def test_what_cannot_be_is_refused() -> None:
    assert len(mobile_bandwidth("walking", 1, 0).mbps) == 2
    assert len(mobile_bandwidth("walking", 86_400, 0).mbps) == 86_401
    with pytest.raises(InputError, match="mobility 'flying': there are 'walking', 'driving'"):
        mobile_bandwidth("flying", 60, 0)
    for seconds in (0, 86_401):
        with pytest.raises(InputError, match=f"{seconds} seconds: give a number from 1 to 86400"):
            mobile_bandwidth("walking", seconds, 0)
