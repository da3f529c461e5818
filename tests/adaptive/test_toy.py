"""The planted toy, embedded in a residual stream: what ReGap rests on, where the truth is known.

Signs, orderings and identities; the toy shows the mechanism and is no evidence for the paper.
"""

import pytest
import torch

import regap_interp as ri
from regap_interp.adaptive.roc import choose_threshold, roc
from tests.planted import plant

WIDTH, NOISE = 128, 0.3


class Stream:
    """`h = base + p r + s d + noise` for every item of the toy, and `h_text` with s = 0."""

    def __init__(self, n=6000, seed=1):
        self.toy = plant(n, seed)
        generator = torch.Generator().manual_seed(seed)
        basis, _ = torch.linalg.qr(torch.randn(WIDTH, 3, generator=generator, dtype=torch.float64))
        self.refusal, self.drift, side = basis.T
        # The planted drift leans towards refusal; its orthogonal part is what is to be found.
        self.lean = 0.3
        noise = NOISE * torch.randn(n, WIDTH, generator=generator, dtype=torch.float64)
        self.text = 5 * side + self.toy.refusal[:, None] * self.refusal + noise
        shift = self.drift + self.lean * self.refusal
        self.media = self.text + self.toy.drift[:, None] * shift

    def directions(self, count):
        """Refusal and orthogonalised drift from `count` items of each kind."""
        harmful, benign = (
            torch.nonzero(kind).flatten()[:count] for kind in (self.toy.harmful, ~self.toy.harmful)
        )
        both = torch.cat([harmful, benign])
        ids = both.tolist()
        refusal = ri.refusal_direction(self.text[harmful], self.text[benign])
        drift = ri.drift_direction(self.media[both], self.text[both], media_ids=ids, text_ids=ids)
        return refusal, drift


@pytest.fixture(scope="module")
def stream():
    return Stream()


@pytest.fixture(scope="module")
def toy(stream):
    return stream.toy


def apart(toy, values):
    return ri.separation(values, toy.harmful)


def area(toy, values):
    return ri.auroc(values[toy.harmful], values[~toy.harmful])


def test_directions_are_found_in_noise(stream):
    refusal, drift = stream.directions(256)
    assert float(refusal.unit @ stream.refusal) >= 0.95
    assert float(ri.orthogonalise(drift, refusal).unit @ stream.drift) >= 0.95


# --- the identities of the correction ---


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0, 2.5])
def test_refusal_at_the_corrected_layer_is_not_moved(stream, strength):
    refusal, drift = stream.directions(256)
    correction = ri.orthogonalise(drift, refusal)
    before = refusal.coordinate(stream.media)
    corrected = stream.media - strength * correction.vector
    torch.testing.assert_close(refusal.coordinate(corrected), before)
    clamped = stream.media - correction.coordinate(stream.media)[:, None] * correction.unit
    torch.testing.assert_close(refusal.coordinate(clamped), before)


def test_a_constant_vector_changes_no_separability_at_its_layer(stream, toy):
    refusal, drift = stream.directions(256)
    other = torch.randn(WIDTH, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    for direction in (refusal.unit, drift.unit, other):
        before = apart(toy, stream.media @ direction)
        after = apart(toy, (stream.media - 1.7 * other) @ direction)
        assert after.cohens_d == pytest.approx(before.cohens_d)
        assert after.auroc == pytest.approx(before.auroc)


def test_strength_one_leaves_the_refusal_part_of_the_drift(stream):
    refusal, drift = stream.directions(len(stream.toy.harmful))
    correction = ri.orthogonalise(drift, refusal)
    left = (stream.media - correction.vector - stream.text).mean(dim=0)
    torch.testing.assert_close(
        left, (drift.vector @ refusal.unit) * refusal.unit, atol=1e-9, rtol=0
    )
    assert float(left.norm()) > 0.1  # the planted lean, so the identity is not an empty one


def test_strength_zero_changes_no_bit(stream):
    _, drift = stream.directions(16)
    assert torch.equal(stream.media - 0.0 * drift.vector, stream.media)


# --- predictions ---


def test_a_drift_goes_with_less_separability_and_more_answers(toy):
    downstream = toy.downstream()
    trend = ri.crs_trend(downstream, toy.harmful, toy.drift, resamples=50)
    assert trend.high < -0.9
    curve = ri.crs_curve(downstream, toy.harmful, toy.drift)
    assert float(curve.crs[0]) > 1.2 and abs(float(curve.crs[-1])) < 0.4
    # A model that refuses above a fixed level answers more of what lies far out.
    answered = downstream < 0.75
    windows = ri.SlidingWindows().split(toy.drift)
    medians = torch.stack([toy.drift[one].median() for one in windows])
    rates = [answered[one][toy.harmful[one]].double().mean() for one in windows]
    assert ri.spearman(medians, torch.stack(rates)) > 0.9


def test_a_separability_at_the_layer_of_the_drift_itself_stays(toy):
    crs = ri.crs_curve(toy.refusal, toy.harmful, toy.drift).crs
    assert float(crs.min()) > 2.2 and float(crs.max()) < 2.9


def test_stronger_corrections_bring_more_separability_back(toy):
    d = [apart(toy, toy.downstream(one)).cohens_d for one in (0.0, 0.25, 0.5, 1.0, 1.5)]
    assert d == sorted(d) and d[-1] > 3 * d[0]


def test_c_a_random_direction_does_far_less_than_the_drift(stream, toy):
    refusal, drift = stream.directions(256)
    correction = ri.orthogonalise(drift, refusal)
    controls = ri.random_orthogonal(10, like=correction.vector, against=[refusal.vector], seed=0)

    def brought_back(vector):
        # Downstream reads the stream's drift coordinate, so an edit acts by what it takes of it.
        taken = float(vector @ stream.drift)
        return apart(toy, toy.downstream(taken)).cohens_d - apart(toy, toy.downstream()).cohens_d

    by_drift = brought_back(correction.vector)
    by_chance = max(abs(brought_back(control)) for control in controls)
    assert by_drift > 0.5 and by_chance < 0.25 * by_drift


def test_d_the_gain_tells_harm_better_than_the_uncorrected_coordinate(toy):
    weak, bare = toy.downstream(0.5), toy.downstream()
    gain = weak - bare
    assert area(toy, gain) > area(toy, weak) > area(toy, bare)
    assert area(toy, gain) > 0.85


def test_a_threshold_from_half_of_the_items_holds_for_the_other_half(toy):
    gain = toy.downstream(0.5) - toy.downstream()
    half = torch.arange(len(gain)) < len(gain) // 2
    cut = choose_threshold(gain[half & toy.harmful], gain[half & ~toy.harmful], 0.05)
    rest = gain[~half & ~toy.harmful]
    assert float((rest >= cut).double().mean()) == pytest.approx(0.05, abs=0.02)
    assert roc(gain[toy.harmful], gain[~toy.harmful]).auroc == pytest.approx(area(toy, gain))
