"""Every site against plain hooks on an unwrapped twin of the model."""

from collections.abc import Callable
from typing import Any

import nnsight
import pytest
import torch
from torch import Tensor

from model_adapters import Adapter, LayerError, SiteError


def hooked(model: Any, inputs: dict[str, Any], hooks: dict[str, Callable[..., Any]]) -> Tensor:
    """Logits with plain forward hooks on the modules of the given names."""
    handles = [model.get_submodule(n).register_forward_hook(f) for n, f in hooks.items()]
    try:
        with torch.no_grad():
            logits: Tensor = model(**inputs).logits
            return logits
    finally:
        for handle in handles:
            handle.remove()


def recorded(model: Any, inputs: dict[str, Any], name: str) -> tuple[Tensor, Tensor]:
    """First input and output of a module in a bare forward."""
    seen: list[tuple[Tensor, Tensor]] = []

    def record(module: Any, args: Any, kwargs: Any, output: Any) -> None:
        given = args[0] if args else kwargs["hidden_states"]
        seen.append((given.clone(), (output[0] if isinstance(output, tuple) else output).clone()))

    handle = model.get_submodule(name).register_forward_hook(record, with_kwargs=True)
    with torch.no_grad():
        model(**inputs)
    handle.remove()
    return seen[0]


LAYER = "model.language_model.layers"


def test_an_untouched_trace_is_the_bare_model(
    adapter: Adapter, bare: Any, requests_of_every_kind: Any
) -> None:
    batch = adapter.encode(requests_of_every_kind)
    with adapter.trace(batch):
        logits = adapter.logits.save()
    with torch.no_grad():
        assert torch.equal(logits, bare(**batch.inputs).logits)


def test_reads_equal_plain_hooks(adapter: Adapter, bare: Any, requests_of_every_kind: Any) -> None:
    batch = adapter.encode(requests_of_every_kind)
    with adapter.trace(batch):
        embed = adapter.embed.save()
        pre = adapter.resid_pre[1].save()
        z = adapter.z[1].save()
        attn = adapter.attn_out[1].save()
        mid = adapter.resid_mid[1].save()
        mlp = adapter.mlp_out[1].save()
        post = adapter.resid_post[1].save()
        norm = adapter.final_norm.save()
    width = (*batch.roles.shape, adapter.d_model)
    assert embed.shape == pre.shape == attn.shape == mid.shape == mlp.shape == post.shape == width
    assert z.shape == (*batch.roles.shape, adapter.n_heads, adapter.d_head)
    expected_pre, expected_post = recorded(bare, batch.inputs, f"{LAYER}.1")
    assert torch.equal(pre, expected_pre)
    assert torch.equal(post, expected_post)
    assert torch.equal(embed, recorded(bare, batch.inputs, f"{LAYER}.0")[0])
    assert torch.equal(
        z.flatten(-2), recorded(bare, batch.inputs, f"{LAYER}.1.self_attn.o_proj")[0]
    )
    assert torch.equal(attn, recorded(bare, batch.inputs, f"{LAYER}.1.self_attn")[1])
    mid_name = f"{LAYER}.1.post_attention_layernorm"
    assert torch.equal(mid, recorded(bare, batch.inputs, mid_name)[0])
    assert torch.equal(mlp, recorded(bare, batch.inputs, f"{LAYER}.1.mlp")[1])
    assert torch.equal(norm, recorded(bare, batch.inputs, "model.language_model.norm")[1])


def test_embed_holds_the_media_and_not_their_placeholders(
    adapter: Adapter, bare: Any, parts: Any
) -> None:
    batch = adapter.encode([parts.user("w5", parts.picture())])
    with adapter.trace(batch):
        embed = adapter.embed.save()
    with torch.no_grad():
        features = bare.get_image_features(
            batch.inputs["pixel_values"], batch.inputs["image_grid_thw"]
        ).pooler_output
    assert torch.equal(embed[batch.mask("image")], torch.cat(list(features)))


def test_the_stream_is_the_sum_of_its_parts(adapter: Adapter, requests_of_every_kind: Any) -> None:
    batch = adapter.encode(requests_of_every_kind)
    with adapter.trace(batch):
        total = adapter.embed.clone()
        for layer in range(adapter.n_layers):
            total = total + adapter.attn_out[layer]
            total = total + adapter.mlp_out[layer]
        last = adapter.resid_post[-1].save()
        total.save()
    torch.testing.assert_close(total, last, atol=1e-5, rtol=1e-5)


def test_the_last_row_of_the_logit_lens_is_the_logits(
    adapter: Adapter, requests_of_every_kind: Any
) -> None:
    batch = adapter.encode(requests_of_every_kind)
    with adapter.trace(batch):
        last = adapter.resid_post[-1]
        lens = adapter.lm_head(adapter.model.language_model.norm(last)).save()
        logits = adapter.logits.save()
    torch.testing.assert_close(lens, logits, atol=1e-5, rtol=1e-5)


def test_head_results_sum_to_attention_output(
    adapter: Adapter, requests_of_every_kind: Any
) -> None:
    batch = adapter.encode(requests_of_every_kind)
    with adapter.trace(batch):
        result = adapter.result[2].save()
        attn = adapter.attn_out[2].save()
    assert result.shape == (*batch.roles.shape, adapter.n_heads, adapter.d_model)
    torch.testing.assert_close(result.sum(dim=2), attn, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("site", ["resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out"])
def test_writes_equal_plain_hooks(adapter: Adapter, bare: Any, parts: Any, site: str) -> None:
    batch = adapter.encode([parts.user("w5", parts.picture()), parts.user("w6 w7")])
    vector = torch.linspace(-1, 1, adapter.d_model)
    with adapter.trace(batch):
        sites = getattr(adapter, site)
        before = sites[1].save()
        sites[1] = sites[1] + vector
        after = sites[1].save()
        logits = adapter.logits.save()

    def shift(module: Any, args: Any, output: Any) -> Any:
        return (output[0] + vector, *output[1:]) if isinstance(output, tuple) else output + vector

    # What has to be shifted in the bare model, for the stream before, between and after.
    module = {
        "resid_pre": f"{LAYER}.0",
        "resid_mid": f"{LAYER}.1.self_attn",
        "resid_post": f"{LAYER}.1",
        "attn_out": f"{LAYER}.1.self_attn",
        "mlp_out": f"{LAYER}.1.mlp",
    }[site]
    expected = hooked(bare, batch.inputs, {module: shift})
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(after, before + vector), "what was saved before stays as it was"


def test_writes_to_embed_norm_and_logits_arrive(adapter: Adapter, bare: Any, parts: Any) -> None:
    batch = adapter.encode([parts.user("w6 w7")])
    with adapter.trace(batch):
        adapter.embed = 2 * adapter.embed
        adapter.final_norm = adapter.final_norm + 1
        adapter.logits = adapter.logits - 3
        logits = adapter.logits.save()
    expected = hooked(
        bare,
        batch.inputs,
        {
            "model.language_model.embed_tokens": lambda m, a, out: 2 * out,
            "model.language_model.norm": lambda m, a, out: out + 1,
            "lm_head": lambda m, a, out: out - 3,
        },
    )
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)


def test_silencing_a_head_by_z_and_by_result_is_the_same(
    adapter: Adapter, bare: Any, parts: Any
) -> None:
    batch = adapter.encode([parts.user("w6 w7", parts.sound())])
    with adapter.trace(batch):
        z = adapter.z[2].clone()
        z[:, :, 1] = 0
        adapter.z[2] = z
        by_z = adapter.logits.save()
    with adapter.trace(batch):
        result = adapter.result[2].clone()
        result[:, :, 1] = 0
        adapter.result[2] = result
        by_result = adapter.logits.save()
    with adapter.trace(batch):
        adapter.result[2][:, :, 1] = 0
        in_place = adapter.logits.save()

    def silence(module: Any, args: Any) -> Any:
        heads = args[0].clone()
        heads[..., adapter.d_head : 2 * adapter.d_head] = 0
        return (heads,)

    handle = bare.get_submodule(f"{LAYER}.2.self_attn.o_proj").register_forward_pre_hook(silence)
    with torch.no_grad():
        expected = bare(**batch.inputs).logits
    handle.remove()
    assert torch.equal(by_z, expected)
    torch.testing.assert_close(by_result, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(in_place, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "site", ["resid_pre", "resid_mid", "resid_post", "z", "attn_out", "mlp_out"]
)
def test_changes_in_place_arrive(adapter: Adapter, parts: Any, site: str) -> None:
    batch = adapter.encode([parts.user("w6 w7")])
    with adapter.trace(batch):
        sites = getattr(adapter, site)
        sites[1] = sites[1] * 3
        assigned = adapter.logits.save()
    with adapter.trace(batch):
        getattr(adapter, site)[1].mul_(3)
        in_place = adapter.logits.save()
    assert torch.equal(assigned, in_place)


def test_reading_every_site_changes_no_bit(
    adapter: Adapter, bare: Any, requests_of_every_kind: Any
) -> None:
    batch = adapter.encode(requests_of_every_kind)
    kinds = ("resid_pre", "z", "result", "attn_out", "resid_mid", "mlp_out", "resid_post")
    with adapter.trace(batch):
        for layer in range(adapter.n_layers):
            for kind in kinds:
                getattr(adapter, kind)[layer]
        logits = adapter.logits.save()
    with torch.no_grad():
        assert torch.equal(logits, bare(**batch.inputs).logits)


def test_a_replacement_is_cast_to_the_models_type(adapter: Adapter, parts: Any) -> None:
    batch = adapter.encode([parts.user("w6 w7")])
    with adapter.trace(batch):
        adapter.resid_post[0] = adapter.resid_post[0].double()
        dtype = nnsight.save(adapter.resid_post[0].dtype)
        logits = adapter.logits.save()
    assert dtype == torch.float32
    with adapter.trace(batch):
        plain = adapter.logits.save()
    assert torch.equal(logits, plain)


def test_gradients_flow_only_when_asked_for(adapter: Adapter, parts: Any) -> None:
    batch = adapter.encode([parts.user("w6 w7")])
    with adapter.trace(batch):
        without = adapter.resid_post[0].save()
    assert not without.requires_grad
    with adapter.trace(batch, grad=True):
        sites = [adapter.result[1], adapter.resid_mid[1], adapter.resid_post[1]]
        loss = adapter.logits[:, -1].logsumexp(-1).sum()
        grads = torch.autograd.grad(loss, sites)
        sizes = nnsight.save([float(g.abs().sum()) for g in grads])
    assert all(size > 0 for size in sizes)


def test_negative_layers_count_from_the_end(adapter: Adapter, parts: Any) -> None:
    batch = adapter.encode([parts.user("w6 w7")])
    with adapter.trace(batch):
        last = adapter.resid_post[-1].save()
        same = adapter.resid_post[adapter.n_layers - 1].save()
    assert torch.equal(last, same)


@pytest.mark.parametrize("layer", [4, -5, True, 1.5, "1", slice(0, 2)])
def test_a_layer_the_model_has_not(adapter: Adapter, parts: Any, layer: Any) -> None:
    batch = adapter.encode([parts.user("w6 w7")])
    with (
        pytest.raises(LayerError, match=r"4 layers, 0 to 3|give one layer number"),
        adapter.trace(batch),
    ):
        adapter.resid_post[layer].save()


def test_a_replacement_of_the_wrong_shape(adapter: Adapter, parts: Any) -> None:
    batch = adapter.encode([parts.user("w6 w7")])
    message = r"resid_post\[1\]: the replacement has shape \(3,\), the site has \(1, 3, 32\)"
    with pytest.raises(SiteError, match=message), adapter.trace(batch):
        adapter.resid_post[1] = torch.zeros(3)


def test_a_replacement_that_is_no_tensor(adapter: Adapter, parts: Any) -> None:
    batch = adapter.encode([parts.user("w6 w7")])
    with (
        pytest.raises(SiteError, match=r"logits: the replacement is a float"),
        adapter.trace(batch),
    ):
        adapter.logits = 0.0


def test_sites_asked_for_in_the_wrong_order(adapter: Adapter, parts: Any) -> None:
    batch = adapter.encode([parts.user("w6 w7")])
    with (
        pytest.raises(SiteError, match=r"resid_post\[1\] could not be had.* order"),
        adapter.trace(batch),
    ):
        adapter.resid_post[2].save()
        adapter.resid_post[1].save()


def test_the_result_of_heads_comes_before_attention_output(adapter: Adapter, parts: Any) -> None:
    batch = adapter.encode([parts.user("w6 w7")])
    with (
        pytest.raises(SiteError, match=r"could not be had.*result, attn_out"),
        adapter.trace(batch),
    ):
        adapter.attn_out[1].save()
        adapter.result[1].save()


def test_a_tower_that_did_not_run(adapter: Adapter, parts: Any) -> None:
    batch = adapter.encode([parts.user("w6 w7")])
    with (
        pytest.raises(SiteError, match=r"this encoder runs .* for requests with audio"),
        adapter.trace(batch),
    ):
        adapter.model.audio_tower.output.save()


def test_a_site_outside_a_trace(adapter: Adapter) -> None:
    with pytest.raises(SiteError, match=r"resid_post\[1\] has a value only inside a trace"):
        adapter.resid_post[1]


def test_a_trace_inside_a_trace(adapter: Adapter, parts: Any) -> None:
    batch = adapter.encode([parts.user("w6 w7")])
    with (
        pytest.raises(SiteError, match="a trace of this model is already running"),
        adapter.trace(batch),
    ):
        adapter.resid_post[0].save()
        with adapter.trace(batch):
            adapter.resid_post[0].save()


def test_an_error_in_the_block_stays_what_it_is(adapter: Adapter, parts: Any) -> None:
    batch = adapter.encode([parts.user("w6 w7")])
    with pytest.raises(ZeroDivisionError), adapter.trace(batch):
        adapter.resid_post[0] = adapter.resid_post[0] * (1 / len([]))


def test_after_an_error_the_model_is_as_it_was(adapter: Adapter, bare: Any, parts: Any) -> None:
    batch = adapter.encode([parts.user("w6 w7")])
    with pytest.raises(SiteError), adapter.trace(batch):
        adapter.resid_post[1] = torch.zeros(3)
    with adapter.trace(batch):
        logits = adapter.logits.save()
    with torch.no_grad():
        assert torch.equal(logits, bare(**batch.inputs).logits)
