"""Calibration on a model that knows nothing: which choice is made when, and what is refused."""

import dataclasses

import pytest
import torch

import regap_interp as ri
from analyses.organism.items import calibration_items
from regap_interp.adaptive import work
from regap_interp.adaptive.calibrate import calibrate
from regap_interp.adaptive.search import degenerate, diagnostic_layers
from regap_interp.adaptive.work import Given
from regap_interp.artefact.directions import Directions
from regap_interp.artefact.manifest import TOWARDS_HARMFUL, TOWARDS_MEDIA, Manifest, Recipe
from tests.bundles import direction


@pytest.fixture(scope="module")
def items():
    return calibration_items("image", n_direction=4, n_calibration=20, seed=0)


@pytest.fixture(scope="module")
def geometry(random_organism):
    refusal = {at: direction(random_organism, at, at) for at in range(12)}
    drift = {
        at: ri.orthogonalise(direction(random_organism, at, 50 + at), refusal[at])
        for at in range(12)
    }
    return ri.ModalityGeometry(refusal, drift)


@pytest.fixture
def run(random_organism, items, geometry, monkeypatch):
    """Calibrate with few strengths to try."""
    monkeypatch.setattr(work, "WEAK", (0.5, 1.0))
    monkeypatch.setattr(work, "STRONG", (1.0, 1.5))

    def calibrated(**options):
        options = {"geometry": geometry, "given": Given(layer=6), "budget": 0.1, **options}
        return calibrate(
            random_organism,
            items,
            modality="image",
            refused=lambda answer: len(answer) % 2 == 0,
            max_new_tokens=1,
            batch_size=20,
            progress=False,
            **options,
        )

    return calibrated


def test_within_the_limit_the_largest_weak_strength_is_the_fallback(run):
    bundle = run(utility_limit=1.0)
    assert (bundle.weak, bundle.fallback, bundle.untriggered) == (1.0, "weak", 1.0)
    assert "within the limit" in bundle.calibration.reasons["weak"]
    assert [row[0] for row in bundle.calibration.sweeps["weak"].rows] == [0.5, 1.0]


def test_where_every_strength_breaks_the_limit_rows_are_left_uncorrected(run):
    bundle = run(utility_limit=-1.0, right=lambda item, answer: True)
    assert (bundle.fallback, bundle.untriggered) == ("none", 0.0)
    assert "breaks the limit" in bundle.calibration.reasons["fallback"]
    sweep = bundle.calibration.sweeps["signal"]
    assert {(row[0], row[1]) for row in sweep.rows} == {
        (s, at) for s in (0.5, 1.0) for at in (7, 8, 9)
    }
    best = max(max(row[3:]) for row in sweep.rows)
    chosen = bundle.calibration.roc[bundle.signal].auroc
    assert chosen >= best - 0.2 and chosen == max(r.auroc for r in bundle.calibration.roc.values())


def test_without_references_utility_is_the_kl_of_the_first_token(run, items, random_organism):
    nameless = [dataclasses.replace(item, reference=None) for item in items]
    items[:], kept = nameless, list(items)
    try:
        bundle = run(utility_limit=1e9)
    finally:
        items[:] = kept
    assert bundle.calibration.sweeps["weak"].columns == ("weak", "benign_kl")
    costs = [row[1] for row in bundle.calibration.sweeps["weak"].rows]
    assert 0 < costs[0] < costs[1]


def test_what_is_given_is_taken_and_nothing_is_searched(run):
    given = Given(
        layer=5,
        diagnostic=8,
        weak=0.3,
        strong=1.7,
        signal="absolute",
        threshold=0.25,
        fallback="weak",
    )
    bundle = run(given=given)
    for name, value in dataclasses.asdict(given).items():
        assert getattr(bundle, name) == value
        assert bundle.calibration.reasons[name].startswith("given")
    assert set(bundle.calibration.sweeps) == {"signal"}
    assert set(bundle.calibration.roc) == {"paired_gain", "depth_gain", "absolute"}


def test_the_layer_is_searched_in_the_middle_of_the_depth(run):
    bundle = run(given=Given(weak=0.5, strong=1.5, fallback="none"))
    rows = bundle.calibration.sweeps["layer"].rows
    assert [row[0] for row in rows] == list(range(2, 9))
    within = [row for row in rows if row[2] <= 0.1] or rows
    assert bundle.layer == max(within, key=lambda row: row[1])[0]


def test_the_threshold_keeps_to_the_budget_on_the_calibration_items(run, random_organism, items):
    bundle = run(given=Given(layer=6, fallback="none", strong=1.5))
    benign = [item for item in items if item.split == "calibration" and not item.harmful]
    batch = random_organism.encode([item.messages for item in benign])
    signal = ri.ReGap([bundle]).graph.run(random_organism, batch)["signal.image"]
    assert int((signal >= bundle.threshold).sum()) <= 0.1 * len(benign)


def test_directions_come_from_the_direction_split_with_their_origin(random_organism, items):
    found = ri.measure_geometry(random_organism, items, "image", batch_size=8)
    refusal, drift = found.refusal[6], found.drift[6]
    assert abs(float(refusal.unit @ drift.unit)) < 1e-9
    assert (drift.n_towards, refusal.n_towards, refusal.n_from) == (4, 8, 4)
    assert drift.origin == ri.directions.Origin(random_organism.fingerprint, "resid_post", 6)
    media = [i for i in items if i.split == "direction" and i.modality == "image"]
    twins = [next(t for t in items if t.id == i.twin_id) for i in media]
    states = ri.last_residuals(random_organism, [i.messages for i in (*media, *twins)], layers=[6])[
        0
    ]
    shift = (states[:4] - states[4:]).mean(dim=0)
    expected = shift - (shift @ refusal.unit) * refusal.unit
    torch.testing.assert_close(drift.vector, expected, rtol=0, atol=1e-4)


def test_a_file_of_directions_may_stand_for_the_direction_split(run, random_organism, geometry):
    raw = {at: direction(random_organism, at, 50 + at) for at in range(12)}
    recipes = {"refusal": Recipe(TOWARDS_HARMFUL), "drift/image": Recipe(TOWARDS_MEDIA)}
    file = Directions(
        Manifest.of(random_organism, recipes),
        {"refusal": dict(geometry.refusal), "drift/image": raw},
    )
    given = Given(layer=6, fallback="none", strong=1.5)
    from_file, from_memory = run(geometry=file, given=given), run(given=given)
    assert torch.equal(from_file.drift.vector, from_memory.drift.vector)
    assert from_file.threshold == from_memory.threshold


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        (Given(layer=12), "layers 0 to 11"),
        (Given(layer=11), "the last"),
        (Given(diagnostic=5), "give both"),
        (Given(layer=6, diagnostic=6), "must lie after 6"),
        (Given(weak=0.0), "above 0"),
        (Given(weak=2.0, strong=1.0), "at most `strong`"),
    ],
)
def test_contradictions_are_refused_before_anything_runs(run, given, complaint):
    with pytest.raises(ValueError, match=complaint):
        run(given=given)


def test_too_few_items_and_leaking_items_are_refused(random_organism, items):
    options = {"modality": "image", "refused": bool, "progress": False}
    with pytest.raises(ValueError, match="0 harmful and 0 benign audio"):
        calibrate(random_organism, items, **{**options, "modality": "audio"})
    leaked = [*items, dataclasses.replace(items[0], id="again", split="calibration")]
    with pytest.raises(ValueError, match="cluster"):
        calibrate(random_organism, leaked, **options)


def test_the_signal_is_read_up_to_four_fifths_of_the_depth():
    assert list(diagnostic_layers(7, 12)) == [8, 9]
    assert list(diagnostic_layers(9, 12)) == [10]
    assert list(diagnostic_layers(14, 36)) == list(range(15, 29))


@pytest.mark.parametrize(
    ("answer", "broken"),
    [
        ("", True),
        ("no no no no", True),
        ("on and on and on and on and", True),
        ("a b c a b c", False),
        ("sorry i cannot", False),
    ],
)
def test_empty_and_looping_answers_are_degenerate(answer, broken):
    assert degenerate(answer) is broken
