"""Prompts longer than a sliding window, and very short ones."""

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import model_adapters
from analyses.patching import LogitDifference, patch_sweep
from model_adapters.tiny import builders
from tests.patching.reference import patched_logits, states

METRIC = LogitDifference(right=3, wrong=7)


@pytest.mark.parametrize("name", ["gemma3_text", "cohere2"])
def test_long_prompts_equal_plain_hooks(name: str) -> None:
    config = builders()[name]().config
    config.sliding_window = 6
    config.layer_types = ["sliding_attention", "full_attention", "sliding_attention"]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        adapter = model_adapters.load(AutoModelForCausalLM.from_config(config).eval())
    width = 20
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(20, 60, (2, 1, width), generator=draw)
    base, source = (
        adapter.describe(input_ids=one, attention_mask=torch.ones_like(one)) for one in ids
    )
    result = patch_sweep(adapter, base, source, site="resid_pre", metric=METRIC, positions="each")
    assert result.passes["whole"] == 0 and not result.notes
    assert float(result.change.abs().max()) > 0.01
    layers = range(adapter.n_layers)
    kept = states(adapter.module, source.inputs, "resid_pre", layers)
    for layer in layers:
        for at in range(0, width, 3):
            logits = patched_logits(
                adapter.module,
                base.inputs,
                kept,
                site="resid_pre",
                layers=[layer],
                row=0,
                into=[at],
                taken=[[at]],
            )
            wanted = float(logits[3] - logits[7])
            assert float(result.raw[0, layer, at]) == pytest.approx(wanted, abs=1e-5)


def test_a_prompt_of_one_token() -> None:
    adapter = model_adapters.load(builders()["llama"]())
    base, source = (
        adapter.describe(input_ids=torch.tensor([[token]]), attention_mask=torch.ones(1, 1).long())
        for token in (20, 30)
    )
    cells: Any = dict(site="resid_pre", metric=METRIC, positions="each")
    result = patch_sweep(adapter, base, source, **cells)
    torch.testing.assert_close(
        result.raw[:, :, 0], result.clean[:, None].expand(-1, adapter.n_layers)
    )
