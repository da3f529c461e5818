"""What is unusual about some decoders, seen through the sites that all of them share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nnsight
import pytest
import torch

import model_adapters
import regap_interp as ri
from analyses.families.prompts import Prompts
from model_adapters import Adapter
from model_adapters.tiny import builders

Tiny = Callable[[str], Adapter]
IDS = torch.tensor([[5, 6, 7, 8, 9]])


@pytest.mark.parametrize("name", ["gemma2", "glm4", "olmo2", "gemma3", "glm4v"])
def test_sandwich_norms_what_is_added_stands_behind_the_norm(tiny: Tiny, name: str) -> None:
    adapter = tiny(name)
    assert any("norms" in quirk for quirk in adapter.family.quirks)
    inside = adapter.layout.inside[1]
    with adapter.trace(**Prompts(adapter).text().inputs):
        pre = adapter.resid_pre[1].save()
        heads = adapter.result[1].sum(dim=2).save()
        attn = adapter.attn_out[1].save()
        mid = adapter.resid_mid[1].save()
        mlp = adapter.mlp_out[1].save()
        post = adapter.resid_post[1].save()
    torch.testing.assert_close(pre + attn, mid)
    torch.testing.assert_close(mid + mlp, post)
    # Heads add up to what attention returns, which the norm then changes.
    norm = adapter.module.get_submodule(f"{adapter.layout.layers}.1.{inside.attn_out}")
    assert inside.attn_out != inside.attn
    torch.testing.assert_close(norm.forward(heads), attn)
    assert not torch.allclose(heads, attn)


@pytest.mark.parametrize("name", ["mixtral", "qwen3_vl_moe", "qwen3_omni_moe_thinker"])
def test_mixture_of_experts_mlp_out_is_what_all_experts_add(tiny: Tiny, name: str) -> None:
    adapter = tiny(name)
    layer = adapter.n_layers - 1
    with adapter.trace(**Prompts(adapter).text().inputs) as tracer:
        mid = adapter.resid_mid[layer].save()
        mlp = adapter.mlp_out[layer].save()
        adapter.mlp_out[layer] = torch.zeros_like(mlp)
        post = adapter.resid_post[layer].save()
        tracer.stop()
    assert mlp.abs().max() > 0
    torch.testing.assert_close(post, mid)


def test_linear_attention_layers_have_heads_of_their_own(tiny: Tiny) -> None:
    adapter = tiny("qwen3_5")
    kinds = [layer.attn for layer in adapter.layout.inside]
    assert set(kinds) == {"linear_attn", "self_attn"}
    text = adapter.module.config.get_text_config()
    prompt = Prompts(adapter).text().inputs
    for layer, kind in enumerate(kinds):
        linear = kind == "linear_attn"
        n_heads = text.linear_num_value_heads if linear else text.num_attention_heads
        assert adapter.heads(layer)[0] == n_heads
        with adapter.trace(**prompt):
            z = adapter.z[layer].save()
            heads = adapter.result[layer].sum(dim=2).save()
            attn = adapter.attn_out[layer].save()
        assert z.shape[2:] == adapter.heads(layer)
        torch.testing.assert_close(heads, attn)


def test_a_graph_refuses_a_head_that_a_layer_does_not_have(tiny: Tiny) -> None:
    adapter = tiny("qwen3_5")
    layer = next(i for i, one in enumerate(adapter.layout.inside) if one.attn == "self_attn")
    n_heads, width = adapter.heads(layer)
    ri.Graph(ri.remove("z", layer, torch.ones(width), head=n_heads - 1)).check(adapter)
    with pytest.raises(ValueError, match=f"there are heads 0 to {n_heads - 1}"):
        ri.Graph(ri.remove("z", layer, torch.ones(width), head=n_heads)).check(adapter)


def test_towers_whose_layers_return_tuples_are_read_and_written(tiny: Tiny) -> None:
    adapter = tiny("qwen2_5_omni_thinker")
    batch = next(batch for kind, batch in Prompts(adapter).media() if kind == "audio")
    layer = adapter.module.model.audio_tower.layers[0]

    def shift(module: Any, args: Any, output: Any) -> Any:
        assert isinstance(output, tuple)
        return (output[0] + 1, *output[1:])

    handle = layer.register_forward_hook(shift)
    with torch.no_grad():
        expected = adapter.module(**batch.inputs).logits
    handle.remove()
    envoy = adapter.model.audio_tower.layers[0]
    with adapter.trace(batch) as tracer:
        output = envoy.output
        envoy.output = (output[0] + 1, *output[1:])
        logits = nnsight.save(tracer.result.logits)
    assert torch.equal(logits, expected)


def test_a_tied_head_survives_saving_and_loading(tmp_path: Path) -> None:
    model: Any = builders()["llama"]()
    assert model.lm_head.weight is model.get_input_embeddings().weight
    before = model_adapters.load(model)
    model.save_pretrained(tmp_path)
    after = model_adapters.load(tmp_path)
    assert after.module.lm_head.weight is after.module.get_input_embeddings().weight
    assert after.fingerprint == before.fingerprint
    with torch.no_grad():
        assert torch.equal(after.module(IDS).logits, before.module(IDS).logits)


def test_a_receipt_tells_what_was_checked(tiny: Tiny, tmp_path: Path) -> None:
    receipt = tiny("gemma2").receipt()
    assert receipt.model_type == "gemma2"
    assert receipt.quirks == ("sandwich norms",)
    assert receipt.dtype == "float32"
    assert set(receipt.versions) == {"python", "torch", "transformers", "nnsight"}
    assert receipt.checks.keys() == receipt.limits.keys()
    assert all(value <= receipt.limits[name] for name, value in receipt.checks.items())
    assert max(receipt.checks.values()) > 0
    assert len(set(receipt.limits.values())) == 2  # sums are held to more
    assert "sandwich norms" in str(receipt)
    assert '"model_type": "gemma2"' in receipt.save(tmp_path / "receipt.json").read_text()
