"""How the organism is tuned: what is frozen, and what the random shifts touch."""

from dataclasses import replace

import pytest
import torch

from model_adapters.organism import recipe
from model_adapters.organism.build import build_model, build_processor
from model_adapters.organism.train import SAFETY, freeze, shifted
from model_adapters.organism.world import draw_samples


@pytest.fixture(scope="module")
def processor():
    return build_processor()


@pytest.fixture(scope="module")
def model(processor):
    return build_model(processor.tokenizer, seed=0).eval()


def test_safety_tuning_freezes_embeddings_towers_and_the_lower_layers(model):
    tuned = {id(p) for p in freeze(model, SAFETY)}
    names = {name for name, p in model.named_parameters() if id(p) in tuned}
    prefix = "model.language_model.layers."
    layers = {int(name.removeprefix(prefix).split(".")[0]) for name in names if prefix in name}
    assert layers == set(range(SAFETY.frozen_layers, 12))
    assert {n for n in names if prefix not in n} == {
        "model.language_model.norm.weight",
        "lm_head.weight",
    }


def test_a_shift_is_one_vector_per_row_at_prompt_positions_only(model, processor):
    samples = draw_samples("train", "image", 12, seed=0)
    batch = recipe.collate(processor, samples, [recipe.Answer(s.helpful_answer) for s in samples])
    layer = model.get_decoder().layers[SAFETY.frozen_layers - 1]
    seen = []
    with torch.no_grad():
        for stage in (replace(SAFETY, shift=0.0), SAFETY):
            with shifted(model, stage, batch):
                hook = layer.register_forward_hook(lambda module, args, output: seen.append(output))
                model(**batch.inputs, use_cache=False)
                hook.remove()
    moved = seen[1] - seen[0]
    prompt = torch.arange(moved.shape[1]) <= batch.first[:, None]
    assert moved[~prompt].abs().max() == 0
    lengths = moved[:, 0].norm(dim=-1)
    assert 0 < (lengths > 0).sum() < len(samples)
    assert lengths.max() <= SAFETY.shift
    rows = torch.arange(len(samples))
    torch.testing.assert_close(moved[rows, batch.first], moved[:, 0], rtol=0, atol=1e-3)
    assert not layer._forward_hooks
