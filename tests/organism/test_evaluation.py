"""Grading, cells, geometry and demo, on a model that knows nothing."""

import json
from dataclasses import replace

import pytest
import torch

from analyses.organism import answers, cells, directions, geometry
from analyses.organism.answers import ask
from analyses.organism.geometry import Choice
from analyses.organism.report import Bar, Evaluation
from model_adapters.organism import words
from model_adapters.organism.world import SETTINGS, draw_samples


@pytest.fixture(scope="module")
def samples():
    return draw_samples("report", "text", 4, seed=0)


def test_a_refusal_cut_short_is_a_refusal(samples):
    assert answers.grade(samples[:1], [words.REFUSAL.split()[0]]).refused.tolist() == [True]
    assert answers.grade(samples[:1], [""]).refused.tolist() == [False]


def test_answers_are_graded_word_for_word(samples):
    first = samples[0]
    opener = words.OPENERS["low"]
    texts = [
        words.REFUSAL,
        samples[1].helpful_answer,
        f"{words.OPENERS['high']} {samples[2].verb} with {samples[2].tool}",
        f"{words.REFUSAL.split()[0]} {samples[3].tool}",
    ]
    graded = answers.grade(samples, texts)
    assert first.helpful_answer.startswith(opener)
    assert graded.refused.tolist() == [True, False, False, False]
    assert graded.right.tolist() == [False, True, False, False]
    # A wrong opener still names the right tool, and who names a tool has not refused.
    assert graded.tool.tolist() == [False, True, True, True]


def test_rates_count_items_and_resample_clusters(samples):
    graded = answers.grade(samples, [s.helpful_answer for s in samples])
    assert graded.rate("right").value == 1.0 == graded.cluster_rate("right").high
    assert graded.rate("right").n == 4
    captions = draw_samples("report", "image", 3, seed=0, question="caption")
    asked_about = answers.grade(captions, [""] * 3).clusters
    assert asked_about == [sample.object for sample in captions]


def test_text_prompts_recur_and_renderings_do_not(samples):
    twice = [*samples, *samples]
    assert answers.grade(twice, [""] * 8).n_distinct == 4
    images = draw_samples("report", "image", 40, seed=0)
    assert answers.grade(images, [""] * 40).n_distinct == 40


def test_zero_strength_answers_are_the_bare_model_s(random_organism, samples):
    at = directions.measure_directions(random_organism, n=2, seed=0, settings=["image"])[3]
    zero = geometry.subtract(3, at.correction("image").vector, 0.0)
    bare, steered = (ask(random_organism, samples, graph=one) for one in (None, zero))
    assert torch.equal(bare.tool, steered.tool)


def test_correction_is_orthogonal_to_refusal(random_organism):
    for at in directions.measure_directions(random_organism, n=3, seed=0, settings=["audio"]):
        assert abs(at.refusal.unit @ at.correction("audio").unit) < 1e-9


def test_drift_uses_each_medium_s_own_twin(random_organism):
    measured = directions.measure_directions(random_organism, n=3, seed=0, settings=["image"])
    media = draw_samples("direction", "image", 3, seed=0, harmful=True)
    states, twins = (
        directions.all_layers(random_organism, one) for one in (media, [m.twin() for m in media])
    )
    expected = (states[5] - twins[5]).mean(0)
    # Rows of another batch differ by float32 rounding.
    torch.testing.assert_close(measured[5].drift["image"].vector, expected, rtol=0, atol=1e-4)


def test_progress_counts_what_is_run(random_organism):
    done = []
    cells.measure_cells(random_organism, n=2, seed=0, tick=done.append)
    assert sum(done) == cells.items_in_all(2)
    done.clear()
    directions.measure_directions(random_organism, n=2, seed=0, tick=done.append)
    assert sum(done) == directions.items_in_all(2)


def test_bars_hold_at_the_limit_and_never_for_what_was_not_measured():
    bar = Bar("what", "image", 0.95, 0.95, at_least=True)
    assert bar.holds and str(bar).startswith("ok")
    assert not replace(bar, value=None).holds
    assert not replace(bar, at_least=False, limit=0.9).holds


def test_choice_is_refused_where_drift_is_refusal(random_organism, monkeypatch):
    monkeypatch.setattr(geometry, "MAX_COSINE", -1.0)
    measured = directions.measure_directions(random_organism, n=2, seed=0, settings=["image"])
    with pytest.raises(ValueError, match="nowhere to act"):
        geometry.choose(random_organism, "image", measured, n=8, seed=0)


def test_json_has_the_names_of_the_model_card_and_none_for_what_was_not_measured(
    random_organism, monkeypatch
):
    # So few that no bin of the rendering level can be measured.
    monkeypatch.setattr(geometry, "_crs_items", lambda n, share: 8)
    measured = directions.measure_directions(random_organism, n=2, seed=0, settings=["image"])
    done = []
    image = geometry.measure_geometry(
        random_organism, "image", measured, Choice(4, 1.0, 9), n=2, seed=0, tick=done.append
    )
    assert sum(done) == 2 * (4 + geometry.RANDOM_DIRECTIONS) + 8
    evaluation = Evaluation(
        cells.measure_cells(random_organism, n=2, seed=0), {"image": image}, n=2, seed=0
    )
    value = json.loads(json.dumps(evaluation.as_json(), allow_nan=False))
    kinds = (
        "harmful.refused harmful.answered benign.refused benign.answered benign.tool caption.right"
    )
    names = {f"{setting}.{kind}" for setting in SETTINGS for kind in kinds.split()}
    assert set(value["cells"]) == names == set(value["bootstrap"]["cells"])
    assert set(value["cells"]["image.harmful.refused"]) == {"value", "n", "low", "high"}
    assert len(value["low_level"]) == 4
    assert value["geometry"]["image"]["crs_ratio"] is None
    assert value["geometry"]["image"]["selected_on"] == "calibration"
    crs = next(bar for bar in evaluation.bars() if "CRS, roughest" in bar.what)
    assert crs.value is None and not crs.holds
    text = str(evaluation)
    assert all(name in text for name in names)
    assert "none none none" in text


def test_the_fall_is_paired_and_signed(random_organism, samples, monkeypatch):
    monkeypatch.setattr(geometry, "_crs_items", lambda n, share: 8)
    measured = directions.measure_directions(random_organism, n=2, seed=0, settings=["image"])
    found = geometry.measure_geometry(
        random_organism, "image", measured, Choice(4, 1.0, 9), n=2, seed=0
    )
    right = answers.grade(samples, [s.helpful_answer for s in samples])
    wrong = answers.grade(samples, [words.REFUSAL] * 4)
    found = replace(
        found, bare_benign=right, benign=wrong, bare_harmful=right, harmful=wrong, controls=(right,)
    )
    assert found.benign_right_fall().value == 1.0
    assert found.random_control_rise().value == 0.0
    assert replace(found, controls=(wrong, right)).random_control_rise().value == 0.5
