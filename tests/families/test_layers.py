"""Parts of decoder layers that picture models put in another way."""

import pytest
import torch
from torch import Tensor

import regap_interp as ri
from model_adapters import Adapter, Batch, InputError, SiteError, load
from model_adapters.probe import example
from model_adapters.tiny import builders


def tiny(name: str) -> Adapter:
    return load(builders()[name]())


def with_picture(adapter: Adapter) -> Batch:
    return adapter.describe(**example(adapter.module, adapter.family, ("image",)))


@pytest.fixture(scope="module")
def parallel() -> Adapter:
    return tiny("aya_vision")


def test_parallel_blocks_have_no_middle_of_the_stream(parallel: Adapter) -> None:
    batch = with_picture(parallel)
    with pytest.raises(SiteError, match=r"resid_mid\[1\] does not exist"), parallel.trace(batch):
        parallel.resid_mid[1]
    with pytest.raises(SiteError, match=r"resid_mid\[1\] does not exist"):
        parallel.hook("resid_mid", 1, lambda value: value)
    with pytest.raises(ri.GraphError, match=r"resid_mid\[1\] does not exist"):
        ri.Graph(ri.add("resid_mid", 1, torch.ones(32))).run(parallel, batch)
    with pytest.raises(ValueError, match=r"resid_mid\[1\] does not exist"):
        ri.capture(parallel, [batch], sites=[("resid_mid", 1)])


def test_parallel_blocks_add_to_one_stream(parallel: Adapter) -> None:
    read: dict[str, Tensor] = {}
    with parallel.trace(with_picture(parallel)):
        read["before"] = parallel.resid_pre[1].clone()
        read["attention"] = parallel.attn_out[1].clone()
        read["mlp"] = parallel.mlp_out[1].clone()
        read["after"] = parallel.resid_post[1].clone()
    assert torch.equal(read["before"] + read["attention"] + read["mlp"], read["after"])


@pytest.mark.parametrize("name", ["aya_vision", "cohere2_vision"])
def test_a_scale_in_the_text_config_is_not_believed(name: str) -> None:
    adapter = tiny(name)
    assert adapter.module.config.text_config.logit_scale == 0.25
    batch = with_picture(adapter)
    seen: list[Tensor] = []
    head = adapter.module.lm_head.register_forward_hook(lambda _, args, out: seen.append(out))
    with torch.no_grad():
        logits = adapter.module(**batch.inputs).logits
    head.remove()
    read: list[Tensor] = []
    with adapter.trace(batch):
        read.append(adapter.logits.clone())
    assert torch.equal(seen[0], logits)
    assert torch.equal(read[0], logits)


def test_soft_caps_are_part_of_the_logits() -> None:
    adapter = tiny("paligemma with Gemma 2")
    batch = with_picture(adapter)
    with torch.no_grad():
        logits = adapter.module(**batch.inputs).logits
    read: list[Tensor] = []
    with adapter.trace(batch):
        read.append(adapter.logits.clone())
    assert torch.equal(read[0], logits)
    assert logits.abs().max() < 2.0


@pytest.fixture(scope="module")
def flat() -> Adapter:
    return tiny("llama4")


@pytest.mark.parametrize("layer", [0, 1, 2, 3])
def test_what_experts_return_flat_has_rows_and_positions(flat: Adapter, layer: int) -> None:
    one = example(flat.module, flat.family, ("image",))
    batch = flat.join([one, example(flat.module, flat.family, (), size=1)])
    change = torch.zeros(len(batch), batch.roles.shape[1], flat.d_model)
    change[1, -1] = torch.arange(32.0)
    block = flat.module.get_submodule(f"{flat.layout.layers}.{layer}.feed_forward")

    def by_hand(module: object, args: object, output: object) -> object:
        if isinstance(output, tuple):
            return (output[0] + change.flatten(0, 1), *output[1:])
        assert isinstance(output, Tensor)
        return output + change

    handle = block.register_forward_hook(by_hand)
    with torch.no_grad():
        expected = flat.module(**batch.inputs).logits
    handle.remove()
    written: list[Tensor] = []
    with flat.trace(batch) as tracer:
        flat.mlp_out[layer] = flat.mlp_out[layer] + change
        written.append(tracer.result.logits)
    assert torch.equal(written[0], expected)
    handle = flat.hook("mlp_out", layer, lambda value: value + change)
    with torch.no_grad():
        hooked = flat.module(**batch.inputs).logits
    handle.remove()
    assert torch.equal(hooked, expected)


def test_several_invokes_of_flat_experts_are_refused(flat: Adapter) -> None:
    batch = with_picture(flat)
    with pytest.raises(InputError, match="several `invoke`s"), flat.trace() as tracer:
        with tracer.invoke(batch):
            flat.resid_post[0].clone()
        with tracer.invoke(batch):
            flat.resid_post[0].clone()


def test_convolutions_stand_where_attention_does() -> None:
    adapter = tiny("lfm2_vl")
    assert [layer.attn for layer in adapter.layout.inside] == ["conv", "self_attn", "conv"]
    batch = with_picture(adapter)
    vector = torch.linspace(-1, 1, adapter.d_model)
    block = adapter.module.get_submodule(f"{adapter.layout.layers}.0.conv")
    handle = block.register_forward_hook(lambda _, args, output: output + vector)
    with torch.no_grad():
        expected = adapter.module(**batch.inputs).logits
    handle.remove()
    written: list[Tensor] = []
    with adapter.trace(batch) as tracer:
        adapter.attn_out[0] = adapter.attn_out[0] + vector
        written.append(tracer.result.logits)
    assert torch.equal(written[0], expected)
