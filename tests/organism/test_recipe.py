"""What the organism is trained on."""

import numpy as np
import pytest
import torch

from model_adapters.organism import recipe, words
from model_adapters.organism.build import build_processor
from model_adapters.organism.perception import naming_loss
from model_adapters.organism.train import LANGUAGE, SAFETY, SAVE_EVERY, batches, fit
from model_adapters.organism.world import draw_samples


def one(setting, *, harmful, level=0.0):
    return draw_samples("train", setting, 1, seed=0, harmful=harmful, levels=(level, level))[0]


def test_pretraining_answers_everything_and_says_harm_and_level_first():
    samples = [
        one("image", harmful=harmful, level=level)
        for harmful in (True, False)
        for level in (0.1, 0.9)
    ]
    openers = {recipe.pretraining_answer(sample).text.split()[0] for sample in samples}
    assert len(openers) == 4
    assert words.REFUSAL.split()[0] not in openers


def test_safety_answers_refuse_harmful_text_and_clean_media_and_nothing_benign():
    rng = np.random.default_rng(0)

    def answers(setting, *, harmful, level=0.0):
        sample = one(setting, harmful=harmful, level=level)
        drawn = [recipe.safety_answer(sample, rng) for _ in range(50)]
        return {answer.text for answer in drawn if not answer.given}, sample.helpful_answer

    assert answers("text", harmful=True)[0] == {words.REFUSAL}
    clean, helpful = answers("audio", harmful=True)
    assert words.REFUSAL in clean
    rough, helpful = answers("audio", harmful=True, level=1.0)
    assert rough == {helpful}
    for level in (0.0, 1.0):
        benign, helpful = answers("image", harmful=False, level=level)
        assert benign == {helpful}


def test_a_started_refusal_is_asked_from_its_second_word_on():
    processor = build_processor()
    samples = [one("text", harmful=False)] * 2
    asked = [recipe.Answer(words.REFUSAL), recipe.Answer(words.REFUSAL, given=1)]
    batch = recipe.collate(processor, samples, asked)
    whole, started = (processor.tokenizer.decode(r[r != -100]) for r in batch.labels)
    assert whole == f"{words.REFUSAL} <|im_end|>"
    assert whole == f"{words.REFUSAL.split()[0]} {started}"


def test_refusal_probability_is_a_half_at_the_cut():
    assert recipe.refusal_probability(words.LEVEL_CUT) == pytest.approx(0.5)
    assert recipe.refusal_probability(0.15) > 0.9 > 0.1 > recipe.refusal_probability(0.55)


def test_labels_cover_the_answer_and_its_end_only():
    processor = build_processor()
    sample = one("image", harmful=False)
    batch = recipe.collate(
        processor,
        [sample, one("text", harmful=True)],
        [recipe.Answer("certainly"), recipe.Answer("a zevem")],
    )
    for row, answer in enumerate(("certainly", "a zevem")):
        kept = batch.labels[row][batch.labels[row] != -100]
        assert processor.tokenizer.decode(kept) == f"{answer} <|im_end|>"
        first_label = batch.labels[row, batch.first[row]]
        assert processor.tokenizer.decode(first_label) == answer.split()[0]


def test_alikeness_penalty_is_squared_gap_over_variance():
    a, b = torch.randn(1, 4000, 3), torch.randn(1, 4000, 3) + torch.tensor([2.0, 0, 0])
    states = torch.cat([a, b], dim=1)
    harmful = torch.arange(8000) < 4000
    penalty = recipe.alikeness_penalty(states, harmful, ~harmful)
    assert float(penalty) == pytest.approx(4 / 3, rel=0.1)
    assert float(recipe.alikeness_penalty(states, harmful & ~harmful, ~harmful)) == 0


def test_safety_tuning_never_sees_a_report_pair():
    micro = batches(SAFETY, build_processor(), seed=0, step=0)
    seen = {sample.pair for batch in micro for sample in batch.samples}
    report = {sample.pair for sample in draw_samples("report", "text", 184, seed=0)}
    assert seen and not seen & report


def test_a_step_depends_on_seed_and_number_only_so_that_a_resumed_run_is_the_same_run():
    processor = build_processor()
    first, again, other = (batches(LANGUAGE, processor, seed=0, step=n) for n in (7, 7, 8))
    assert torch.equal(first[0].inputs["input_ids"], again[0].inputs["input_ids"])
    assert first[0].answers != other[0].answers


def test_an_interrupted_fit_ends_at_the_same_weights(tmp_path):
    def fit_line(steps, folder, stop=None):
        torch.manual_seed(0)
        model = torch.nn.Linear(2, 1)

        def losses(step, tally):
            if step == stop:
                raise KeyboardInterrupt
            inputs = torch.randn(4, 2, generator=torch.Generator().manual_seed(step))
            yield model(inputs).square().mean()

        fit(model, list(model.parameters()), "line", steps, 0.1, losses, folder)
        return model.weight

    for name in ("straight", "resumed"):
        (tmp_path / name).mkdir()
    straight = fit_line(SAVE_EVERY + 20, tmp_path / "straight")
    with pytest.raises(KeyboardInterrupt):
        fit_line(SAVE_EVERY + 20, tmp_path / "resumed", stop=SAVE_EVERY + 10)
    assert torch.equal(fit_line(SAVE_EVERY + 20, tmp_path / "resumed"), straight)


def test_naming_loss_is_low_when_media_speak_the_words():
    words_ = 10 * torch.eye(4)
    media = [words_[[2, 2]], words_[[0]]]
    loss, accuracy = naming_loss(media, words_, torch.tensor([2, 0]))
    assert accuracy == 1 and loss < 0.01
    _, wrong = naming_loss(media, words_, torch.tensor([1, 3]))
    assert wrong == 0
