"""Drift taken apart: against numpy, planted directions, and nulls that hold their level."""

import numpy as np
import pytest

from analyses.geometry import decompose
from regap_interp.intervals import resample_clusters
from tests.geometry.worlds import plant

QUICK = {"resamples": 50, "permutations": 20, "splits": 10}


def test_the_numbers_are_those_of_the_directions() -> None:
    states = plant(media=("image", "audio"), layers=2, cosine=0.4)
    found = decompose(states, pairs="harmful", **QUICK)
    for place, layer in enumerate(states.layers):
        refusal = states.refusal(layer)
        drifts = [states.drift(kind, layer) for kind in ("image", "audio")]
        for column, drift in enumerate(drifts):
            along = float(drift.vector @ refusal.unit)
            assert found.norm.value[place, column] == pytest.approx(drift.norm)
            assert found.parallel.value[place, column] == pytest.approx(along)
            assert found.cosine.value[place, column] == pytest.approx(along / drift.norm)
            rest = states.correction(("image", "audio")[column], layer).norm
            assert found.orthogonal.value[place, column] == pytest.approx(rest)
        between = float(drifts[0].unit @ drifts[1].unit)
        assert found.between.value[place, 0, 1] == pytest.approx(between)
        assert found.between.value[place, 1, 1] == 1
        assert found.refusal_norm.value[place] == pytest.approx(refusal.norm)
    assert found.n_pairs == (30, 30)
    assert found.n == 60


def test_intervals_are_those_of_a_loop_over_resampled_items() -> None:
    states = plant(20)
    found = decompose(states, pairs="all", resamples=40, permutations=1, splits=1, seed=3)
    values, harmful = states.values[0].numpy(), states.requests.harmful.numpy()
    draws = []
    for rows in resample_clusters(states.requests.cluster, 40, resamples=40, seed=3):
        taken = rows.numpy()
        text, media = taken[taken < 20], taken[taken >= 20]
        refusal = values[text][harmful[text]].mean(0) - values[text][~harmful[text]].mean(0)
        drift = (values[media] - values[media - 20]).mean(0)
        draws.append(drift @ refusal / np.linalg.norm(drift) / np.linalg.norm(refusal))
    low, high = np.quantile(draws, [0.025, 0.975])
    value = float(found.cosine.value[0, 0])
    assert found.cosine.low[0, 0] == pytest.approx(2 * value - high)
    assert found.cosine.high[0, 0] == pytest.approx(2 * value - low)


def test_planted_directions_lie_in_their_intervals() -> None:
    covered = {"norm": 0, "cosine": 0, "orthogonal": 0}
    truth = {"norm": 3.0, "cosine": 0.3, "orthogonal": 3 * (1 - 0.09) ** 0.5}
    for seed in range(40):
        states = plant(seed=seed, cosine=0.3)
        found = decompose(states, pairs="all", resamples=200, permutations=1, splits=1)
        for name in covered:
            band = getattr(found, name)
            covered[name] += bool(band.low <= truth[name] <= band.high)
    assert min(covered.values()) >= 33, covered


def test_nulls_hold_their_level_where_there_is_nothing() -> None:
    drift, labels, between = [], [], []
    for seed in range(100):
        states = plant(16, 8, seed=seed, refusal=0, drift=0, media=("image", "audio"))
        found = decompose(states, pairs="all", resamples=1, permutations=39, splits=1)
        drift.append(float(found.norm_p[0, 0]))
        labels.append(float(found.cosine_p[0, 0]))
        between.append(float(found.between_p[0, 0, 1]))
    for name, values in (("drift", drift), ("labels", labels), ("between", between)):
        share = np.mean(np.array(values) <= 0.1)
        # 10 expected of 100; four standard errors either way.
        assert abs(share - 0.1) < 0.12, (name, share)


def test_strong_cosines_are_found_whatever_the_noise() -> None:
    # Dealing labels of the raw states would find the direction itself again, forwards or backwards.
    states = plant(refusal=30.0, drift=30.0, cosine=0.8, media=("image", "audio"))
    found = decompose(states, pairs="all", **QUICK)
    assert found.cosine_p.max() <= 0.05
    assert found.between_p[0, 0, 1] <= 0.05


def test_planted_drift_is_found() -> None:
    found = decompose(plant(media=("image", "audio")), pairs="all", **QUICK)
    assert found.norm_p.max() <= 0.05
    assert found.between_p[0, 0, 1] <= 0.05
    assert found.between_p[0].diagonal().isnan().all()
    assert found.stability.value.min() > 0.9
    assert found.refusal_stability.value.min() > 0.8


def test_halves_of_nothing_are_not_alike() -> None:
    found = decompose(plant(drift=0.0), pairs="all", resamples=1, permutations=1, splits=200)
    assert abs(float(found.stability.value[0, 0])) < 0.4
    few = decompose(plant(6), pairs="harmful", resamples=1, permutations=1, splits=5)
    assert few.stability.value.isnan().all()
    assert few.stability.low.isnan().all()


def test_balanced_pairs_weigh_both_kinds_alike() -> None:
    states = plant(20)
    kept = [row for row in range(40) if row not in (21, 23, 25)]
    states = type(states)(states.values[:, kept], (0,), states.requests.only(kept), states.source)
    found = decompose(states, pairs="balanced", **QUICK)
    means = [states.drift("image", 0, pairs=kind).vector for kind in ("harmful", "benign")]
    assert found.norm.value[0, 0] == pytest.approx(float((sum(means) / 2).norm()))  # type: ignore[union-attr]


def test_the_seed_decides_everything() -> None:
    states = plant(20)
    first, again, other = (decompose(states, seed=seed, **QUICK) for seed in (1, 1, 2))
    assert first.columns() == again.columns()
    assert first.columns() != other.columns()


def test_bad_input_is_refused_before_anything_is_drawn() -> None:
    states = plant(20)
    with pytest.raises(ValueError, match="resamples is 0"):
        decompose(states, resamples=0)
    with pytest.raises(ValueError, match="audio pair"):
        decompose(states, modalities=["audio"])
    text = states.requests.only(states.requests.rows(modality="text"))
    with pytest.raises(ValueError, match="all requests are text"):
        decompose(type(states)(states.values[:, :20], (0,), text, states.source))
