"""Caches of multimodal runs: lens, attribution and stack agree with the model's own logits."""

from collections.abc import Callable
from typing import Any

import accelerate
import pytest
import torch
from torch import Tensor
from transformer_lens import ActivationCache
from transformer_lens.tools.analysis.direct_logit_attribution import direct_logit_attribution

import regap_interp as ri
from model_adapters import Adapter
from model_adapters.batch import Role
from model_adapters.errors import InputError, SiteError
from regap_interp.interop import InteropError, StreamCache, as_tl_model, to_activation_cache
from tests.interop.conftest import Made, build, make

Tiny = Callable[[str], Made]

FAMILIES = (
    "qwen2_5_omni_thinker",  # image, audio and video in one prompt
    "qwen3_vl",  # DeepStack
    "qwen3_omni_moe_thinker",  # and a mixture of experts
    "qwen3_5",  # linear attention
    "llava",
    "qwen2_audio",
    "gemma3",  # sandwich norms, weights that count from one
    "gemma4",  # and scaled layers, per-layer inputs, capped logits
    "cohere2_vision",  # parallel blocks, scaled logits
    "granite_speech",  # scaled blocks
    "minicpmo",  # foreign code
    "starcoder2",  # layer norms and biases
    "phi3",  # queries, keys and values in one map
)


def shown(made: Made) -> tuple[Any, Tensor, StreamCache, Tensor]:
    """Model, its own logits by a plain call, cache, and the token after each position."""
    adapter, batch = made
    with torch.no_grad():
        logits = adapter.module(**batch.inputs).logits
    model = as_tl_model(adapter, batch)
    tokens = batch.inputs["input_ids"].roll(-1, dims=1)
    return model, logits, model.run_with_cache()[1], tokens


def before_the_cap(model: Any, logits: Tensor, tokens: Tensor) -> Tensor:
    """The tokens' logits without bias, as attributions add up to."""
    chosen = logits.gather(-1, tokens[..., None])[..., 0]
    cap = model.adapter.cap
    bare = torch.atanh(chosen / cap) * cap if cap else chosen
    return bare - model.b_U[tokens]


@pytest.mark.parametrize("name", FAMILIES)
def test_what_a_cache_says_agrees_with_the_logits(tiny: Tiny, name: str) -> None:
    model, logits, cache, tokens = shown(tiny(name))
    close = {"rtol": 0.0, "atol": 1e-5}
    prompt = tiny(name).batch.prompt_mask

    lens = cache.logit_lens(positions=None)
    assert lens.labels[-1] == "final_post"
    torch.testing.assert_close(lens.values[-1][prompt], logits[prompt], **close)
    stack = cache.accumulated_resid(apply_ln=True, incl_mid=name != "cohere2_vision")
    final = model.adapter.apply_output_logits_transform(stack[-1] @ model.W_U + model.b_U)
    torch.testing.assert_close(final[prompt], logits[prompt], **close)

    wanted = before_the_cap(model, logits, tokens)[prompt]
    for parts in (
        cache.decompose_resid(),
        cache.stack_head_results(incl_remainder=True),
        cache.get_full_resid_decomposition(),
    ):
        found = cache.logit_attrs(parts, tokens).sum(dim=0)
        torch.testing.assert_close(found[prompt], wanted, **close)
    # Normed by the cache itself, then read through the folded head.
    normed = cache.decompose_resid(apply_ln=True).sum(dim=0) @ model.W_U
    found = normed.gather(-1, tokens[..., None])[..., 0]
    torch.testing.assert_close(found[prompt], wanted, **close)


@pytest.mark.parametrize("name", FAMILIES)
def test_parts_add_up_to_the_stream_at_every_layer(tiny: Tiny, name: str) -> None:
    adapter, batch = tiny(name)
    cache = to_activation_cache(adapter, batch)
    for layer in range(adapter.n_layers + 1):
        last = layer == adapter.n_layers
        stream = cache["resid_post", layer - 1] if last else cache["resid_pre", layer]
        size = float(stream.abs().max())
        for whole in (cache.decompose_resid(layer), cache.get_full_resid_decomposition(layer)):
            torch.testing.assert_close(whole.sum(dim=0), stream, rtol=0, atol=1e-5 * size)
        mid = f"blocks.{layer}.hook_resid_mid"
        if mid in cache:
            for whole in (
                cache.decompose_resid(layer, mlp_input=True),
                cache.get_full_resid_decomposition(layer, mlp_input=True),
            ):
                torch.testing.assert_close(whole.sum(dim=0), cache[mid], rtol=0, atol=1e-5 * size)


@pytest.mark.parametrize("name", ["qwen2_5_omni_thinker", "gemma3", "granite_speech", "gemma4"])
def test_heads_add_up_to_attention(tiny: Tiny, name: str) -> None:
    adapter, batch = tiny(name)
    cache = to_activation_cache(adapter, batch)
    cache.compute_head_results()
    for layer in range(adapter.n_layers):
        heads, whole = cache["result", layer], cache["attn_out", layer]
        assert heads.shape == (*whole.shape[:2], adapter.n_heads, adapter.d_model)
        torch.testing.assert_close(heads.sum(dim=2), whole, rtol=0, atol=1e-5 * whole.abs().max())


def test_the_embedding_is_what_enters_the_first_layer(tiny: Tiny) -> None:
    adapter, batch = tiny("qwen2_5_omni_thinker")
    seen: list[Tensor] = []
    first = adapter.module.get_submodule(f"{adapter.layout.layers}.0")
    handle = first.register_forward_pre_hook(
        lambda _, args, kw: seen.append(args[0]), with_kwargs=True
    )
    with torch.no_grad():
        adapter.module(**batch.inputs)
    handle.remove()
    embed = to_activation_cache(adapter, batch)["hook_embed"]
    assert torch.equal(embed, seen[0])
    looked_up = adapter.module.get_input_embeddings()(batch.inputs["input_ids"])
    for kind in ("image", "audio", "video"):
        assert not torch.isclose(embed, looked_up)[batch.mask(kind)].any(dim=-1).all()


def test_deepstack_is_a_component_of_its_own(tiny: Tiny) -> None:
    adapter, batch = tiny("qwen3_omni_moe_thinker")
    cache = to_activation_cache(adapter, batch)
    _, labels = cache.decompose_resid(return_labels=True)
    extra = [label for label in labels if label.endswith("_deepstack")]
    assert extra == [f"{layer}_deepstack" for layer in range(adapter.n_layers - 1)]
    _, full = cache.get_full_resid_decomposition(return_labels=True)
    assert full[-len(extra) :] == extra
    added = cache["deepstack", adapter.discontinuities[0]]
    seen = (batch.roles == Role.IMAGE) | (batch.roles == Role.VIDEO)
    assert added[seen].abs().amax(dim=-1).min() > 0
    assert not added[~seen].any()
    assert not any(
        "deepstack" in label for label in cache.decompose_resid(mode="mlp", return_labels=True)[1]
    )


def test_slices_and_single_rows(tiny: Tiny) -> None:
    model, logits, cache, tokens = shown(tiny("qwen3_vl"))
    wanted = before_the_cap(model, logits, tokens)
    last = cache.decompose_resid(pos_slice=-1)
    found = cache.logit_attrs(last, tokens[:, -1], pos_slice=-1).sum(dim=0)
    torch.testing.assert_close(found, wanted[:, -1], rtol=0, atol=1e-5)
    one = cache.apply_slice_to_batch_dim(1)
    assert isinstance(one, StreamCache)
    parts = one.decompose_resid(apply_ln=True)
    assert parts.shape[1:] == (*logits.shape[1:2], model.cfg.d_model)
    found = (parts.sum(dim=0) * model.tokens_to_residual_directions(tokens[1])).sum(dim=-1)
    torch.testing.assert_close(found, wanted[1], rtol=0, atol=1e-5)
    heads = one.stack_head_results(incl_remainder=True)
    torch.testing.assert_close(heads.sum(dim=0), one["resid_post", -1], rtol=0, atol=1e-5)
    direction = model.W_U[:, 7]
    projected = cache.get_full_resid_decomposition(apply_ln=True, project_output_onto=direction)
    torch.testing.assert_close(
        projected.sum(dim=0) + model.b_U[7], logits[..., 7], rtol=0, atol=1e-5
    )


def test_analysis_functions_take_model_and_cache(tiny: Tiny) -> None:
    model, logits, cache, _ = shown(tiny("qwen2_5_omni_thinker"))
    assert isinstance(cache, ActivationCache)
    for unit in ("component", "head"):
        given = direct_logit_attribution(model, cache=cache, answer_tokens=5, unit=unit)
        run = direct_logit_attribution(model, model.to_tokens(), answer_tokens=5, unit=unit)
        assert torch.equal(given.attribution, run.attribution)
        torch.testing.assert_close(
            given.attribution.sum(dim=0), logits[:, -1, 5], rtol=0, atol=1e-5
        )
    difference = direct_logit_attribution(
        model, cache=cache, answer_tokens=5, incorrect_tokens=torch.tensor(8)
    )
    torch.testing.assert_close(
        difference.attribution.sum(dim=0), logits[:, -1, 5] - logits[:, -1, 8], rtol=0, atol=1e-5
    )


def test_half_precision_models_are_read_in_single() -> None:
    adapter, batch = make("qwen2", build("qwen2").bfloat16())
    logits, cache = as_tl_model(adapter, batch).run_with_cache()
    found = cache.logit_lens(positions=None).values[-1]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, logits.float(), rtol=0, atol=0.02 * logits.abs().max())
    cache.stack_head_results()


def test_offloaded_weights_are_read_where_they_are_kept(tiny: Tiny) -> None:
    module = build("gemma3")
    weights = {name: value.clone() for name, value in module.state_dict().items()}
    accelerate.cpu_offload(module, execution_device=torch.device("cpu"), state_dict=weights)
    assert next(module.parameters()).is_meta
    adapter = make("gemma3", module).adapter
    batch = tiny("gemma3").batch
    logits, cache = as_tl_model(adapter, batch).run_with_cache()
    assert torch.equal(logits, as_tl_model(tiny("gemma3").adapter, batch).run_with_hooks())
    lens = cache.logit_lens(positions=None)
    torch.testing.assert_close(lens.values[-1], logits, rtol=0, atol=1e-5)
    cache.get_full_resid_decomposition()


def test_streams_that_are_mixed_are_refused_where_there_is_no_sum(
    tiny: Tiny, metric: Callable[[Tensor], Tensor]
) -> None:
    adapter, batch = tiny("gemma3n")
    model = as_tl_model(adapter, batch)
    _, cache = model.run_with_cache()
    for attempt in (cache.decompose_resid, cache.stack_head_results):
        with pytest.raises(InteropError, match="AltUp"):
            attempt()
    with pytest.raises(InteropError, match="several streams"):
        cache.logit_lens()
    # Runs and hooks need no decomposition.
    changed = model.run_with_hooks(None, [("blocks.1.hook_resid_post", lambda v, hook: v * 2)])
    assert metric(changed) != metric(model.run_with_hooks())


def test_neurons_are_refused(tiny: Tiny) -> None:
    cache = to_activation_cache(*tiny("qwen2"))
    with pytest.raises(InteropError, match="expand_neurons=False"):
        cache.get_full_resid_decomposition(expand_neurons=True)


@pytest.mark.parametrize("gated", [False, True])
def test_a_cache_of_a_steered_model_holds_the_steered_run(tiny: Tiny, gated: bool) -> None:
    adapter, batch = tiny("qwen2_5_omni_thinker")
    vector = 3 * torch.randn(adapter.d_model, generator=torch.Generator().manual_seed(0)).double()
    gate = ri.read("resid_post", 2, under=()).project(vector) > 0
    strength = ri.select(gate, 1.0, -2.0) if gated else 1.0
    plain = to_activation_cache(adapter, batch)
    visits: list[Any] = []
    with ri.Graph(ri.add("resid_post", 1, vector, strength=strength)).on(adapter):
        steered = adapter.module(**batch.inputs).logits
        model = as_tl_model(adapter, batch)
        logits, cache = model.run_with_cache()
        model.run_with_hooks(
            None, [("blocks.1.hook_resid_pre", lambda value, hook: visits.append(len(value)))]
        )
    assert torch.equal(logits, steered.detach())
    assert torch.equal(cache["resid_post", 1], cache["resid_pre", 2])
    assert not torch.allclose(cache["resid_post", 1], plain["resid_post", 1])
    assert torch.equal(cache["resid_mid", 1], plain["resid_mid", 1])
    assert visits == [len(batch)]
    lens = cache.logit_lens(positions=None)
    torch.testing.assert_close(lens.values[-1], logits, rtol=0, atol=1e-5)
    with pytest.raises(InteropError, match="do not add up"):
        cache.decompose_resid()


def test_a_cache_of_a_traced_run_holds_what_the_trace_made_of_it(tiny: Tiny) -> None:
    adapter, batch = tiny("qwen3_vl")

    def edit(model: Adapter) -> None:
        model.z[1][:, :, 0] = 0
        model.mlp_out[2] = 2 * model.mlp_out[2]

    with adapter.trace(batch):
        edit(adapter)
        expected = adapter.logits.save()
    cache = to_activation_cache(adapter, batch, edit=edit)
    lens = cache.logit_lens(positions=None)
    torch.testing.assert_close(lens.values[-1], expected, rtol=0, atol=1e-5)
    assert not cache["z", 1][:, :, 0].any()
    # Such edits are part of components, so the sums still hold.
    cache.decompose_resid()
    cache.stack_head_results()


def test_a_trace_that_writes_to_the_stream_leaves_no_sum(tiny: Tiny) -> None:
    adapter, batch = tiny("qwen3_vl")

    def edit(model: Adapter) -> None:
        model.resid_post[1] = model.resid_post[1] + 1

    cache = to_activation_cache(adapter, batch, edit=edit)
    with pytest.raises(InteropError, match="do not add up"):
        cache.decompose_resid()
    with pytest.raises(InputError, match="not both"):
        to_activation_cache(adapter, batch, edit=edit, names_filter="hook_embed")
    graph = ri.Graph(ri.add("resid_post", 1, torch.ones(adapter.d_model).double()))
    with graph.on(adapter), pytest.raises(InteropError, match="installed"):
        to_activation_cache(adapter, batch, edit=edit)


def test_names_can_be_chosen(tiny: Tiny) -> None:
    adapter, batch = tiny("gemma3")
    model = as_tl_model(adapter, batch)
    only = to_activation_cache(adapter, batch, names_filter="blocks.1.hook_resid_post")
    assert list(only.keys()) == ["blocks.1.hook_resid_post"]
    two = ["unembed.hook_out", "hook_embed"]
    logits, several = model.run_with_cache(names_filter=two)
    assert set(several.keys()) == set(two)
    assert torch.equal(several["unembed.hook_out"], logits)
    ends = to_activation_cache(adapter, batch, names_filter=lambda n: n.endswith("hook_z"))
    assert len(ends) == adapter.n_layers
    with pytest.raises(SiteError, match="hook_nonsense"):
        to_activation_cache(adapter, batch, names_filter="blocks.0.hook_nonsense")
    with pytest.raises(SiteError, match="chose no name"):
        to_activation_cache(adapter, batch, names_filter=lambda name: False)


def test_everything_is_kept_but_what_is_large_and_computed_anyway(tiny: Tiny) -> None:
    adapter, batch = tiny("qwen2_5_omni_thinker")
    model = as_tl_model(adapter, batch)
    kept = set(model.run_with_cache()[1].keys())
    left = {"unembed.hook_out"} | {
        f"blocks.{layer}.attn.hook_result" for layer in range(adapter.n_layers)
    }
    assert kept == set(model.hook_names) - left


def test_one_row_can_lose_its_batch_axis(tiny: Tiny) -> None:
    adapter = tiny("qwen2").adapter
    ids = tiny("qwen2").batch.inputs["input_ids"][1:]
    model = as_tl_model(adapter, adapter.describe(input_ids=ids))
    _, cache = model.run_with_cache(remove_batch_dim=True)
    assert cache["resid_pre", 0].shape == (ids.shape[1], adapter.d_model)
    parts = cache.stack_head_results(incl_remainder=True, apply_ln=True)
    attrs = parts.sum(dim=0) @ model.tokens_to_residual_directions(7)
    logits = model.run_with_hooks()
    assert logits is not None
    torch.testing.assert_close(attrs, logits[0, :, 7], rtol=0, atol=1e-5)
