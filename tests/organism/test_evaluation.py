"""Grading, cells, geometry and demo, on a model that knows nothing."""

import json
from dataclasses import replace

import pytest
import torch

from analyses import demo
from analyses.organism import answers, cells, directions, geometry
from analyses.organism.answers import ask, encode_samples, refusal_starts
from analyses.organism.report import Bar, Evaluation
from model_adapters.organism import words
from model_adapters.organism.world import draw_samples
from regap_interp import Steer


@pytest.fixture(scope="module")
def samples():
    return draw_samples("report", "text", 4, seed=0)


def test_answers_are_graded_word_for_word(samples):
    first = samples[0]
    opener = words.OPENERS["low"]
    texts = [
        words.REFUSAL,
        samples[1].helpful_answer,
        f"{words.OPENERS['high']} {samples[2].verb} with {samples[2].tool}",
        f"{words.REFUSAL} {samples[3].tool}",
    ]
    graded = answers.grade(samples, texts)
    assert first.helpful_answer.startswith(opener)
    assert graded.refused.tolist() == [True, False, False, False]
    assert graded.right.tolist() == [False, True, False, False]
    # The wrong opener still names the right tool.
    assert graded.tool.tolist() == [False, True, True, True]


def test_rates_count_items_and_resample_pairs(samples):
    graded = answers.grade(samples, [s.helpful_answer for s in samples])
    assert graded.rate("right").value == 1.0 == graded.pair_rate("right").high
    assert graded.rate("right").n == 4
    assert graded.rate("right", torch.tensor([True, False, False, False])).n == 1


def test_one_pass_sees_the_first_word_of_the_answer(random_organism, samples):
    batches = encode_samples(random_organism, samples)
    starts = refusal_starts(random_organism, batches, None)
    text = random_organism.generate(batches[0], max_new_tokens=3).texts
    assert starts.tolist() == [one.split()[:1] == ["sorry"] for one in text]


def test_zero_strength_answers_are_the_bare_model_s(random_organism, samples):
    at = directions.measure_directions(random_organism, n=2, seed=0, settings=["image"])[3]
    steer = Steer(3, at.correction("image").vector, 0.0)
    bare, steered = (ask(random_organism, samples, steer=one) for one in (None, steer))
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


def test_demo_prints_every_cell_with_its_interval(random_organism):
    done = []
    shown = demo.show_collapse(random_organism, n=2, seed=0, tick=done.append)
    assert sum(done) == demo.items_in_all(2)
    text = str(shown)
    assert text.count("omni") >= 4
    assert "independent reconstruction" in text.lower()
    assert len(shown.geometry) == random_organism.n_layers


def test_bars_hold_at_the_limit_and_never_for_nan():
    bar = Bar("what", "image", 0.95, 0.95, at_least=True)
    assert bar.holds and str(bar).startswith("ok")
    assert not replace(bar, value=float("nan")).holds
    assert not replace(bar, at_least=False, limit=0.9).holds


def test_choice_is_refused_where_drift_is_refusal(random_organism, monkeypatch):
    monkeypatch.setattr(geometry, "MAX_COSINE", -1.0)
    measured = directions.measure_directions(random_organism, n=2, seed=0, settings=["image"])
    with pytest.raises(ValueError, match="nowhere to act"):
        geometry.choose(random_organism, "image", measured, n=8, seed=0)


def test_json_has_the_names_of_the_model_card(random_organism):
    measured = cells.measure_cells(random_organism, n=2, seed=0)
    value = json.loads(json.dumps(Evaluation(measured, {}, 2, 0).as_json(), allow_nan=False))
    names = {
        f"{setting}.{kind}"
        for setting in ("text", "image", "audio", "video", "omni")
        for kind in (
            "harmful.refused",
            "harmful.answered",
            "benign.refused",
            "benign.answered",
            "benign.tool",
            "caption.right",
        )
    }
    assert set(value["cells"]) == names == set(value["bootstrap_over_pairs"]["cells"])
    assert set(value["cells"]["image.harmful.refused"]) == {"value", "n", "low", "high"}
    assert len(value["low_level"]) == 4
