"""CRS and its parts against scipy, hand-computed cases and the planted world."""

import math

import pytest
import torch
from scipy import stats

from regap_interp import (
    FixedBins,
    QuantileBins,
    SlidingWindows,
    auroc,
    crs_curve,
    crs_trend,
    separation,
    spearman,
)
from tests.planted import plant


def test_separation_by_hand() -> None:
    # Harmful 4, 6 (mean 5, variance 2), benign 1, 2, 3 (mean 2, variance 1):
    # pooled variance (1*2 + 2*1) / 3 = 4/3.
    found = separation(
        torch.tensor([4.0, 6.0, 1.0, 2.0, 3.0]), torch.tensor([True, True, False, False, False])
    )
    assert found.cohens_d == pytest.approx(3 / (4 / 3) ** 0.5)
    assert found.fisher == pytest.approx(9 / (2 + 1))
    assert (found.auroc, found.ks, found.gap) == (1.0, 1.0, 3.0)
    assert (found.n_harmful, found.n_benign) == (2, 3)


def test_auroc_agrees_with_mann_whitney_ties_included() -> None:
    generator = torch.Generator().manual_seed(0)
    harmful = torch.randint(0, 12, (60,), generator=generator).double() + 2
    benign = torch.randint(0, 12, (45,), generator=generator).double()
    u = stats.mannwhitneyu(harmful.numpy(), benign.numpy()).statistic
    assert auroc(harmful, benign) == pytest.approx(u / (60 * 45), abs=1e-12)


def test_ks_and_fisher_agree_with_scipy_ties_included() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(0, 12, (105,), generator=generator).double()
    harmful = torch.arange(105) < 60
    values[harmful] += 2
    found = separation(values, harmful)
    mine, theirs = values[harmful].numpy(), values[~harmful].numpy()
    assert found.ks == pytest.approx(stats.ks_2samp(mine, theirs).statistic, abs=1e-12)
    # Welch's t with equal weights of the variances, which equal sizes give.
    size = 45
    t = stats.ttest_ind(mine[:size], theirs, equal_var=False).statistic
    even = separation(torch.cat([values[:size], values[60:]]), torch.arange(2 * size) < size)
    assert even.fisher == pytest.approx(t**2 / size)
    alone = separation(values[59:], harmful[59:])
    assert math.isnan(alone.ks) and math.isnan(alone.fisher)


def test_auroc_follows_from_d_under_equal_normals() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(20000, generator=generator, dtype=torch.float64)
    harmful = torch.arange(20000) % 2 == 0
    values[harmful] += 1.3
    found = separation(values, harmful)
    assert found.cohens_d == pytest.approx(1.3, abs=0.05)
    assert found.auroc == pytest.approx(stats.norm.cdf(found.cohens_d / 2**0.5), abs=0.01)


def test_spearman_agrees_with_scipy_ties_included() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 9, (80,), generator=generator).double()
    y = x + torch.randint(0, 9, (80,), generator=generator)
    assert spearman(x, y) == pytest.approx(stats.spearmanr(x.numpy(), y.numpy()).statistic)
    assert math.isnan(spearman(x, torch.ones(80)))


def test_one_vector_added_to_every_item_changes_nothing() -> None:
    world = plant(n=2000)
    before = crs_curve(world.refusal, world.harmful, world.drift)
    after = crs_curve(world.refusal - 7.0, world.harmful, world.drift)
    torch.testing.assert_close(before.crs, after.crs)


def test_collapse_is_seen_downstream_and_not_at_the_steered_layer() -> None:
    world = plant()
    here = crs_curve(world.refusal, world.harmful, world.drift)
    later = crs_curve(world.downstream(), world.harmful, world.drift)
    assert here.crs.min() > 2
    assert later.spearman < -0.95
    assert later.ends_ratio() < 0.2
    assert later.windows[0].separation.auroc > 0.8
    assert later.windows[-1].separation.auroc < 0.6


def test_fixed_correction_restores_separation_more_the_stronger_it_is() -> None:
    world = plant()
    d = [
        separation(world.downstream(strength), world.harmful).cohens_d
        for strength in (0, 0.25, 0.5, 1, 1.5)
    ]
    assert d == sorted(d)
    assert d[-1] > 2 * d[0]


def test_paired_gain_tells_harmful_better_than_any_single_reading() -> None:
    world = plant()
    plain, weak = world.downstream(), world.downstream(0.5)

    def score(signal: torch.Tensor) -> float:
        return separation(signal, world.harmful).auroc

    assert score(weak - plain) > score(weak) > score(plain)


def test_windows_that_cannot_be_measured_are_counted_and_left_out() -> None:
    harmful = torch.tensor([True, False] * 50 + [True] * 50)  # no benign item in the last third
    coordinate = torch.arange(150.0) % 7 + harmful * torch.linspace(3, 1, 150)
    curve = crs_curve(
        coordinate, harmful, torch.arange(150.0), windows=QuantileBins(3), min_per_class=5
    )
    assert curve.crs.isnan().tolist() == [False, False, True]
    assert curve.n_missing == 1
    assert math.isnan(curve.windows[2].separation.auroc)
    assert curve.spearman == pytest.approx(-1)  # of the two measured windows
    assert math.isnan(curve.ends_ratio(1))


def test_a_coordinate_that_does_not_vary_is_not_measured() -> None:
    constant = separation(torch.ones(6), torch.tensor([True, False] * 3))
    assert math.isnan(constant.cohens_d)
    assert constant.auroc == 0.5


def test_trend_has_an_interval_around_its_estimate() -> None:
    world = plant(n=1500)
    trend = crs_trend(
        world.downstream(),
        world.harmful,
        world.drift,
        windows=QuantileBins(10),
        resamples=100,
    )
    assert trend.spearman < -0.8
    assert -1 <= trend.low <= trend.spearman <= trend.high < -0.5
    assert (trend.n, trend.n_windows, trend.n_missing) == (1500, 10, 0)
    assert (trend.resamples, trend.resamples_missing) == (100, 0)


def test_trend_without_a_measurable_window_is_missing_not_zero() -> None:
    world = plant(n=300)
    trend = crs_trend(world.refusal, world.harmful, world.drift, min_per_class=1000, resamples=5)
    assert math.isnan(trend.spearman)
    assert math.isnan(trend.low)
    assert (trend.resamples, trend.resamples_missing) == (0, 5)


def test_trend_resamples_whole_clusters() -> None:
    world = plant(n=300)
    copies = torch.arange(300).repeat(4)  # every item four times: no new information

    def width(clusters: list[int] | None) -> float:
        trend = crs_trend(
            world.downstream()[copies],
            world.harmful[copies],
            world.drift[copies],
            windows=QuantileBins(5),
            clusters=clusters,
            resamples=100,
        )
        return trend.high - trend.low

    assert width(copies.tolist()) > width(None)


def test_sliding_windows_cover_the_items_in_order() -> None:
    by = torch.arange(999.0, -1, -1)
    windows = SlidingWindows(width=0.2, step=0.05, least=100).split(by)
    assert len(windows) == 17
    assert all(len(window) == 200 for window in windows)
    assert by[windows[0]].tolist() == list(range(200))
    assert by[windows[-1]].max() == 999


def test_sliding_windows_never_shrink_below_the_least_size() -> None:
    assert [len(w) for w in SlidingWindows(least=200).split(torch.arange(230.0))] == [200] * 4
    assert [len(w) for w in SlidingWindows(least=200).split(torch.arange(50.0))] == [50]


@pytest.mark.parametrize("n", [409, 430, 1010])
def test_every_item_is_in_a_sliding_window(n: int) -> None:
    windows = SlidingWindows().split(torch.randn(n, generator=torch.Generator().manual_seed(0)))
    assert len(torch.cat(list(windows)).unique()) == n
    assert len({len(members) for members in windows}) == 1


def test_the_median_of_a_window_lies_between_its_middle_two() -> None:
    by = torch.tensor([4.0, 1.0, 2.0, 3.0])
    curve = crs_curve(
        torch.tensor([0.1, 0.3, 0.2, 0.4]),
        torch.tensor([True, False, True, False]),
        by,
        windows=SlidingWindows(width=1.0, least=4),
        min_per_class=2,
    )
    assert [window.median for window in curve.windows] == [2.5]


def test_fixed_bins_hold_their_lower_edge_and_leave_outsiders_out() -> None:
    by = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0, 1.5, -0.1])
    bins = FixedBins.equal(0, 1, 4).split(by)
    assert [members.tolist() for members in bins] == [[0], [1], [2], [3, 4]]


def test_an_empty_bin_is_a_missing_window() -> None:
    curve = crs_curve(
        torch.arange(40.0),
        torch.arange(40) % 2 == 0,
        torch.arange(40.0) / 200,
        windows=FixedBins((0.0, 0.5, 1.0)),
        min_per_class=2,
    )
    assert curve.crs.isnan().tolist() == [False, True]
    assert math.isnan(curve.windows[1].median)


@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.parametrize(
    ("coordinate", "harmful", "by", "message"),
    [
        (torch.ones(3), torch.ones(3), torch.ones(3), "expected one bool for each of the 3"),
        (torch.ones(3), torch.ones(2).bool(), torch.ones(3), "each of the 3 items"),
        (torch.ones(3), torch.ones(3).bool(), torch.ones(4), "by has 4 values for 3 items"),
        (torch.tensor([1, math.nan]), torch.ones(2).bool(), torch.ones(2), "for items 1"),
    ],
)
def test_mismatched_input_is_refused(
    coordinate: torch.Tensor, harmful: torch.Tensor, by: torch.Tensor, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        crs_curve(coordinate, harmful, by)


def test_bad_windows_are_refused_when_they_are_made() -> None:
    with pytest.raises(ValueError, match="rising order"):
        FixedBins((0.0, 0.5, 0.5))
    with pytest.raises(ValueError, match="at least 2 bins"):
        QuantileBins(1)
    with pytest.raises(ValueError, match="shares"):
        SlidingWindows(width=20)
