"""Windows of drift: against numpy and scipy, NaN where too few, and the planted collapse."""

import math
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch

from analyses.geometry import Windowed, plane, separability_windows
from analyses.geometry.windowed import STATISTICS, Statistic
from regap_interp.intervals import resample_weights, wilson
from regap_interp.separability import separation
from regap_interp.windows import FixedBins, QuantileBins, SlidingWindows
from tests.geometry.worlds import SOURCE
from tests.geometry.worlds import plant as plant_states
from tests.planted import plant

WORLD = plant(600)
QUICK: dict[str, Any] = {"resamples": 60, "source": SOURCE}


def measured(**options: Any) -> Windowed:
    found: dict[str, Any] = {"windows": QuantileBins(4), **QUICK, **options}
    return separability_windows(WORLD.downstream(), WORLD.drift, WORLD.harmful, **found)


def test_every_statistic_is_that_of_scipy() -> None:
    columns = measured().columns()
    for place, rows in enumerate(QuantileBins(4).split(WORLD.drift)):
        values, harmful = WORLD.downstream()[rows].numpy(), WORLD.harmful[rows].numpy()
        up, down = values[harmful], values[~harmful]
        gap, variance = up.mean() - down.mean(), [up.var(ddof=1), down.var(ddof=1)]
        pooled = np.average(variance, weights=[len(up) - 1, len(down) - 1])
        expected = {
            "cohens_d": gap / pooled**0.5,
            "auroc": scipy.stats.mannwhitneyu(up, down).statistic / len(up) / len(down),
            "fisher": gap**2 / sum(variance),
            "gap": gap,
            "ks": scipy.stats.ks_2samp(up, down).statistic,
            "n_harmful": len(up),
            "n_benign": len(down),
            "share_harmful": len(up) / len(values),
            "low": WORLD.drift[rows].min(),
            "median": np.median(WORLD.drift[rows].numpy()),
            "high": WORLD.drift[rows].max(),
        }
        for name, value in expected.items():
            assert columns[name][place] == pytest.approx(float(value)), name


def test_the_planted_collapse_shows_and_asr_rises() -> None:
    answered = WORLD.harmful & (WORLD.drift > 1)
    found = measured(answered=answered, windows=SlidingWindows(0.25, 0.1, least=50))
    assert found.crs.value[0] > found.crs.value[-1] + 0.5
    assert found.trend.high < 0
    assert found.asr is not None
    assert found.asr_trend is not None
    assert found.asr.value[0] == 0
    assert found.asr.value[-1] == 1
    # Where all or none were answered, resamples are all alike; there may be others all the same.
    n = found.columns()["n_harmful"][0]
    assert found.asr.low[0] == 0
    assert found.asr.high[0] == pytest.approx(wilson(0, n).high)
    assert found.asr_trend.low > 0
    assert found.n_harmful == int(WORLD.harmful.sum())
    # Benign requests that are answered are not attacks.
    same = measured(answered=answered | ~WORLD.harmful, windows=SlidingWindows(0.25, 0.1, least=50))
    assert same.asr is not None
    assert torch.equal(same.asr.value, found.asr.value)


@pytest.mark.parametrize("statistic", STATISTICS)
def test_bands_are_those_of_a_loop_over_resampled_items(statistic: Statistic) -> None:
    found = measured(statistic=statistic, resamples=20, seed=4)
    rows = QuantileBins(4).split(WORLD.drift)[1]
    labels = [str(index) for index in range(600)]
    weights = resample_weights(labels, resamples=20, seed=4)[:, rows]
    draws = []
    for counts in weights:
        again = rows.repeat_interleave(counts.long())
        one = separability_windows(
            WORLD.downstream()[again],
            WORLD.drift[again],
            WORLD.harmful[again],
            windows=FixedBins((-9, 9, 10)),
            source=SOURCE,
            resamples=1,
        )
        draws.append(one.columns()[statistic][0])
    low, high = np.quantile(draws, [0.025, 0.975])
    assert found.crs.low[1] == pytest.approx(low)
    assert found.crs.high[1] == pytest.approx(high)


@pytest.mark.parametrize("statistic", ["auroc", "gap"])
def test_trends_of_other_statistics_fall_too(statistic: Statistic) -> None:
    found = measured(statistic=statistic, resamples=30)
    assert found.trend.spearman == -1
    assert found.trend.resamples == 30


def test_small_windows_are_nan_and_counted() -> None:
    edges = FixedBins((-9.0, 0.2, 1.0, 9.0))
    found = measured(windows=edges, answered=WORLD.harmful)
    columns = found.columns()
    assert 0 < columns["n_harmful"][0] < 20
    for name in (*STATISTICS, "crs", "crs_low", "crs_high", "asr", "asr_low"):
        assert math.isnan(columns[name][0]), name
        assert math.isfinite(columns[name][1]), name
    assert found.trend.n_missing == 1
    empty = measured(windows=FixedBins((-90.0, -80.0, 90.0)))
    assert math.isnan(empty.columns()["share_harmful"][0])


def test_the_same_shift_of_all_changes_nothing() -> None:
    first = measured()
    moved = separability_windows(
        WORLD.downstream() + 7, WORLD.drift, WORLD.harmful, windows=QuantileBins(4), **QUICK
    )
    torch.testing.assert_close(first.crs.value, moved.crs.value)


def test_a_plane_cuts_one_modality_and_resamples_clusters() -> None:
    states = plant_states(200, media=("image", "audio"))
    both = plane(states, states.refusal(0), states.correction("image", 0))
    found = both.windows("image", windows=QuantileBins(3), resamples=20)
    rows = states.requests.rows(modality="image")
    alone = separability_windows(
        both.refusal[rows],
        both.drift[rows],
        states.requests.harmful[rows],
        source=states.source,
        windows=QuantileBins(3),
        clusters=[states.requests.cluster[row] for row in rows],
        resamples=20,
        name="image",
    )
    assert found.columns() == alone.columns()
    assert found.n == 200
    with pytest.raises(ValueError, match="no video requests in the plane; it holds text, image"):
        both.windows("video")
    with pytest.raises(ValueError, match="answered has 3 entries for 600 requests"):
        both.windows("image", answered=torch.ones(3).bool())


def test_bad_input_is_refused(as_users_run_it: None) -> None:
    with pytest.raises(ValueError, match="min_per_class is 1"):
        measured(min_per_class=1)
    with pytest.raises(ValueError, match="answered has 3 entries"):
        measured(answered=torch.ones(3).bool())
    with pytest.raises(ValueError, match="expected one of cohens_d, auroc"):
        measured(statistic="dprime")


@pytest.mark.parametrize("statistic", ["cohens_d", "ks"])
def test_whole_clusters_are_resampled(statistic: Statistic) -> None:
    clusters = [str(row // 10) for row in range(600)]
    found = measured(statistic=statistic, clusters=clusters, resamples=20, seed=4)
    rows = QuantileBins(4).split(WORLD.drift)[1]
    values, harmful = WORLD.downstream(), WORLD.harmful
    draws = []
    for counts in resample_weights(clusters, resamples=20, seed=4)[:, rows]:
        again = rows.repeat_interleave(counts.long())
        draws.append(getattr(separation(values[again], harmful[again]), statistic))
    ends = np.quantile(draws, [0.025, 0.975])
    assert [float(found.crs.low[1]), float(found.crs.high[1])] == pytest.approx(ends.tolist())
    alone = measured(statistic=statistic, resamples=20, seed=4)
    assert (found.trend.low, found.crs.low[1]) != (alone.trend.low, alone.crs.low[1])
