"""Intervals against scipy, hand-made cases and their own coverage."""

import math

import pytest
import torch
from scipy import stats

from regap_interp import Rate, cluster_bootstrap, wilson
from regap_interp.intervals import (
    bootstrap,
    interval_of_measured,
    resample_clusters,
    resample_weights,
)


@pytest.mark.parametrize(("successes", "n"), [(0, 40), (1, 3), (37, 40), (400, 400), (250, 1000)])
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_wilson_agrees_with_scipy(successes: int, n: int, confidence: float) -> None:
    expected = stats.binomtest(successes, n).proportion_ci(confidence, method="wilson")
    found = wilson(successes, n, confidence=confidence)
    assert found.value == successes / n
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)


@pytest.mark.parametrize(("successes", "n"), [(1, 0), (5, 4), (-1, 4)])
def test_impossible_counts_are_refused(successes: int, n: int) -> None:
    with pytest.raises(ValueError, match="is no rate"):
        wilson(successes, n)


def test_clusters_that_agree_give_no_interval_at_all() -> None:
    outcomes = torch.tensor([1.0, 0.0, 1.0, 0.0])
    assert cluster_bootstrap(outcomes, ["a", "a", "b", "b"]) == Rate(0.5, 4, 0.5, 0.5)


@pytest.mark.parametrize("answer", [True, False])
def test_answers_that_are_all_alike_are_known_as_well_as_clusters_are_many(answer: bool) -> None:
    found = cluster_bootstrap(torch.full((80,), answer), torch.arange(80).div(4).int().tolist())
    alone = wilson(20 * answer, 20)
    assert (found.value, found.n) == (answer, 80)
    assert (found.low, found.high) == (alone.low, alone.high)
    assert found.high - found.low == pytest.approx(0.161, abs=0.001)


def test_resampling_clusters_is_wider_than_resampling_their_items() -> None:
    # 40 requests, each rendered 10 times with the same outcome: 40 draws, not 400.
    outcomes = (torch.arange(40) < 10).repeat_interleave(10)
    request = torch.arange(40).repeat_interleave(10).tolist()
    by_request = cluster_bootstrap(outcomes, request)
    by_item = cluster_bootstrap(outcomes, range(400))
    assert by_request.value == by_item.value == 0.25
    ratio = (by_request.high - by_request.low) / (by_item.high - by_item.low)
    assert ratio == pytest.approx(10**0.5, rel=0.15)


def test_the_same_seed_gives_the_same_interval_and_another_another() -> None:
    outcomes = torch.arange(50) % 3 == 0
    first, again, other = (cluster_bootstrap(outcomes, range(50), seed=s) for s in (7, 7, 8))
    assert first == again
    assert (first.low, first.high) != (other.low, other.high)


def test_interval_of_independent_items_is_near_the_normal_one() -> None:
    outcomes = torch.arange(1000) % 4 == 0
    found = cluster_bootstrap(outcomes, range(1000), resamples=4000)
    half = 1.96 * (0.25 * 0.75 / 1000) ** 0.5
    assert (found.low, found.high) == pytest.approx((0.25 - half, 0.25 + half), abs=0.004)


def test_a_resample_holds_whole_clusters() -> None:
    clusters = ["a", "b", "a", "c", "b", "a"]
    for drawn in resample_clusters(clusters, 6, resamples=20):
        counts = torch.bincount(drawn, minlength=6).tolist()
        assert counts[0] == counts[2] == counts[5]
        assert counts[1] == counts[4]
        assert counts[0] + counts[1] + counts[3] == 3


@pytest.mark.parametrize(
    ("clusters", "message"), [(["a"] * 4, "at least 2"), (["a", "b"], "2 cluster labels for 4")]
)
def test_bad_clusters_are_refused(clusters: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cluster_bootstrap(torch.ones(4), clusters)


def test_weights_count_how_often_resamples_draw_an_item() -> None:
    clusters = ["a", "b", "a", "c", "b", "d"]
    weights = resample_weights(clusters, resamples=20, seed=3)
    for counts, rows in zip(
        weights, resample_clusters(clusters, 6, resamples=20, seed=3), strict=True
    ):
        assert counts.tolist() == rows.bincount(minlength=6).tolist()


def test_a_statistic_of_items_has_the_interval_of_the_mean_where_it_is_one() -> None:
    outcomes = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 1.0], dtype=torch.float64)
    clusters = [0, 0, 1, 2, 3, 3]
    expected = cluster_bootstrap(outcomes, clusters, resamples=50, seed=2)
    found = bootstrap(lambda rows: float(outcomes[rows].mean()), clusters, resamples=50, seed=2)
    assert (found.value, found.n) == (expected.value, 6)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_what_cannot_be_measured_is_left_out() -> None:
    draws = torch.tensor([1.0, math.nan, 3.0])
    assert interval_of_measured(draws, 0.5) == (1.5, 2.5)
    assert all(math.isnan(one) for one in interval_of_measured(draws[1:2]))
    never = bootstrap(lambda rows: math.nan, [0, 1], resamples=3)
    assert math.isnan(never.low)
