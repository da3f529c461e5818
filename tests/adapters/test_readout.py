"""The logit lens out of turn, against the model's own logits."""

from typing import Any

import nnsight
import pytest
import torch
from torch import Tensor

import model_adapters
from model_adapters import Adapter, InputError, SiteError
from model_adapters.tiny import builders
from tests.adapters.conftest import build_text_model

TOKENS = [7, 3, 99]


def test_the_last_states_give_the_models_logits(
    adapter: Adapter, requests_of_every_kind: Any
) -> None:
    batch = adapter.encode(requests_of_every_kind)
    with adapter.trace(batch):
        last = adapter.resid_post[-1].save()
        inside = adapter.unembed(last).save()
        some = adapter.unembed(last[:, -1], TOKENS).save()
        norm = adapter.final_norm.save()
        logits = adapter.logits.save()
    assert torch.equal(inside, logits)
    assert torch.equal(adapter.unembed(last), logits)
    torch.testing.assert_close(some, logits[:, -1, TOKENS], atol=1e-5, rtol=1e-5)
    one = adapter.unembed(last[0, -1], torch.tensor(TOKENS))
    torch.testing.assert_close(one, logits[0, -1, TOKENS], atol=1e-5, rtol=1e-5)
    assert torch.equal(norm, adapter.model.language_model.norm(last))


def test_traces_and_hooks_do_not_notice(adapter: Adapter, parts: Any) -> None:
    batch = adapter.encode([parts.user("w5 w6 w7")])
    passes: list[str] = []
    lens: list[Tensor] = []
    handles = [
        adapter.hook("final_norm", None, lambda value: passes.append("norm")),
        adapter.hook("logits", None, lambda value: passes.append("head")),
        adapter.hook("resid_post", 1, lambda value: lens.append(adapter.unembed(value, TOKENS))),
    ]
    try:
        with adapter.trace(batch):
            early = adapter.unembed(adapter.resid_post[1], TOKENS).save()
            late = adapter.unembed(adapter.resid_post[2]).save()
            logits = adapter.logits.save()
    finally:
        for handle in handles:
            handle.remove()
    assert passes == ["norm", "head"]
    assert torch.equal(lens[0], early)
    assert late.shape == logits.shape


def test_a_head_with_bias() -> None:
    model = build_text_model()
    head = torch.nn.Linear(32, 120)
    with torch.no_grad():
        head.weight.copy_(model.lm_head.weight)
    model.lm_head = head
    adapter = model_adapters.load(model)
    with adapter.trace(input_ids=torch.tensor([[5, 6, 7]])):
        last = adapter.resid_post[-1].save()
        logits = adapter.logits.save()
    assert torch.equal(adapter.unembed(last), logits)
    torch.testing.assert_close(adapter.unembed(last, TOKENS), logits[..., TOKENS])


def test_a_head_of_another_kind_is_computed_whole() -> None:
    class Doubled(torch.nn.Linear):
        def forward(self, states: Tensor) -> Tensor:
            return 2 * super().forward(states)

    model = build_text_model()
    model.lm_head.__class__ = Doubled
    adapter = model_adapters.load(model)
    with adapter.trace(input_ids=torch.tensor([[5, 6, 7]])):
        last = adapter.resid_post[-1].save()
        logits = adapter.logits.save()
    assert torch.equal(adapter.unembed(last, TOKENS), logits[..., TOKENS])


def test_states_are_cast_to_the_models_type(adapter: Adapter, parts: Any) -> None:
    batch = adapter.encode([parts.user("w5 w6 w7")])
    with adapter.trace(batch):
        last = adapter.resid_post[-1].save()
        logits = nnsight.save(adapter.logits)
    assert torch.equal(adapter.unembed(last.double()), logits)


@pytest.mark.parametrize("tokens", [[], [[3]], [1.5], [True]])
def test_tokens_that_are_no_ids(adapter: Adapter, tokens: Any, as_users_run_it: None) -> None:
    with pytest.raises(InputError, match="tokens must be a list of token ids"):
        adapter.unembed(torch.zeros(32), tokens)


@pytest.mark.parametrize("token", [-1, 120])
def test_tokens_that_the_model_has_not(adapter: Adapter, token: int) -> None:
    with pytest.raises(InputError, match=rf"tokens has {token}; the model knows 0 to 119"):
        adapter.unembed(torch.zeros(32), [3, token])


def test_states_of_another_width(adapter: Adapter) -> None:
    with pytest.raises(SiteError, match=r"unembed takes states of width 32, got \(2, 31\)"):
        adapter.unembed(torch.zeros(2, 31))


def test_squashed_logits_come_out_squashed() -> None:
    adapter = model_adapters.load(builders()["gemma2"]())
    inputs = {"input_ids": torch.tensor([[5, 6, 7]])}
    with adapter.trace(**inputs) as tracer:
        last = adapter.resid_post[-1].save()
        logits = nnsight.save(adapter.logits)
        returned = nnsight.save(tracer.result.logits)
    assert torch.equal(logits, returned)
    assert torch.allclose(adapter.unembed(last), returned, atol=1e-6)
    assert torch.allclose(adapter.unembed(last, [3, 5]), returned[..., [3, 5]], atol=1e-6)


def test_squashed_logits_can_be_replaced_within_the_cap() -> None:
    adapter = model_adapters.load(builders()["gemma2"]())
    cap = adapter.module.config.final_logit_softcapping
    inputs = {"input_ids": torch.tensor([[5, 6, 7]])}
    with adapter.trace(**inputs) as tracer:
        wanted = nnsight.save(adapter.logits / 2)
        adapter.logits = wanted
        returned = nnsight.save(tracer.result.logits)
    assert torch.allclose(returned, wanted, atol=1e-6)
    with (
        pytest.raises(SiteError, match=r"squashes its logits into \(-3.0, 3.0\)"),
        adapter.trace(**inputs),
    ):
        adapter.logits = adapter.logits + 2 * cap
