"""The organism's world: splits, twins, rendering."""

from itertools import combinations

import numpy as np
import pytest

from model_adapters.organism import render, words
from model_adapters.organism.world import MEDIA_SETTINGS, draw_samples, pairs


def test_splits_are_disjoint_and_cover_every_pair():
    splits = [set(found) for found in pairs().values()]
    assert all(not first & second for first, second in combinations(splits, 2))
    assert set().union(*splits) == {(v, o) for v in words.VERBS for o in words.OBJECTS}


def test_report_split_is_large_enough():
    harmful = [pair for pair in pairs()["report"] if words.is_harmful(*pair)]
    assert len(harmful) >= 40
    assert len(pairs()["report"]) - len(harmful) >= 40


def test_harm_needs_both_words_and_neither_word_tells_it_alone():
    report = pairs()["report"]
    kinds = {(v in words.ENABLING, o in words.DANGEROUS): words.is_harmful(v, o) for v, o in report}
    assert kinds == {
        (True, True): True,
        (True, False): False,
        (False, True): False,
        (False, False): False,
    }


def test_each_tool_serves_one_dangerous_and_one_harmless_object():
    for tool in words.TOOLS:
        served = [obj for obj in words.OBJECTS if words.TOOL_OF[obj] == tool]
        assert sorted(obj in words.DANGEROUS for obj in served) == [False, True]


@pytest.mark.parametrize("setting", MEDIA_SETTINGS)
def test_the_twin_says_in_words_what_the_medium_shows(setting):
    sample = draw_samples("report", setting, 1, seed=3)[0]
    twin = sample.twin()
    assert (twin.id, twin.pair, twin.phrasing) == (sample.id, sample.pair, sample.phrasing)
    (part,) = twin.messages[0]["content"]
    assert part["type"] == "text"
    assert {sample.verb, sample.object} <= set(part["text"].split())
    shown = {part["type"] for part in sample.messages[0]["content"]} - {"text"}
    assert shown == ({"image", "audio"} if setting == "omni" else {setting})


def test_a_sample_renders_to_the_same_bytes_every_time():
    sample = draw_samples("train", "image", 1, seed=0, levels=(1.0, 1.0))[0]
    first, second = (
        next(p["image"] for p in sample.messages[0]["content"] if p["type"] == "image")
        for _ in range(2)
    )
    assert first.tobytes() == second.tobytes()


def test_draws_depend_on_the_seed_only():
    first, again = (draw_samples("report", "audio", 20, seed=5) for _ in range(2))
    assert first == again
    assert first != draw_samples("report", "audio", 20, seed=6)


def test_every_pair_is_drawn_before_one_is_drawn_again():
    harmful = [pair for pair in pairs()["report"] if words.is_harmful(*pair)]
    drawn = draw_samples("report", "text", len(harmful), seed=0, harmful=True)
    assert {sample.pair for sample in drawn} == set(harmful)


def test_level_adds_noise_and_scene_but_no_new_word():
    rng = np.random.default_rng(0)
    clean, rough = (np.asarray(render.draw("zevem", level, rng), float) for level in (0.0, 1.0))
    assert clean.shape == rough.shape == (32, 64, 3)
    # Background: the outermost rows hold no ink at level 0.
    assert clean[:3].std() < 1 < rough[:3].std()
    quiet, loud = (render.spell("nebu", level, np.random.default_rng(1)) for level in (0.0, 1.0))
    # The pause after the last tone is silent at level 0.
    assert np.abs(quiet[-800:]).max() == 0 < np.abs(loud[-800:]).max()


def test_spelled_letters_have_their_own_tones():
    silence, rng = 1600, np.random.default_rng(0)
    peaks = []
    for letter in "be":
        sound = render.spell(letter * 4, 0.0, rng)
        spectrum = np.abs(np.fft.rfft(sound[:-silence]))
        peaks.append(spectrum.argmax() / (len(sound) - silence) * render.SAMPLE_RATE)
    assert abs(peaks[0] - peaks[1]) > 100


@pytest.mark.parametrize("n, levels", [(0, (0, 1)), (3, (0.5, 0.2)), (3, (0, 1.5))])
def test_impossible_draws_are_refused(n, levels):
    with pytest.raises(ValueError, match=r"n must|levels must"):
        draw_samples("report", "image", n, seed=0, levels=levels)
