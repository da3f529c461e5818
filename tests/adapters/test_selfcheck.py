"""The load-time check passes on a sound model and names what is wrong with a spoilt one."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import model_adapters
from model_adapters import Adapter, LoadError, SelfCheckError
from model_adapters.families.qwen import QWEN2_5_OMNI

LAYER = "model.language_model.layers.2"


def add_one(module: nn.Module, args: Any, output: Any) -> Any:
    return (output[0] + 1, *output[1:]) if isinstance(output, tuple) else output + 1


def test_a_sound_model_passes_and_says_what_was_checked(adapter: Adapter) -> None:
    differences = adapter.self_check.differences
    assert set(differences) >= {
        "embed + all attn_out + all mlp_out == last resid_post",
        "last row of the logit lens == logits",
        "sum of head results == output of attention",
    }
    assert max(differences.values()) < 1e-5
    assert adapter.discontinuities == ()


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (LAYER, r"resid_post\[2\] is not resid_pre\[3\].*hook"),
        (f"{LAYER}.self_attn", r"resid_pre \+ attn_out == resid_mid does not hold at layer 2"),
        (
            f"{LAYER}.self_attn.o_proj",
            "sum of head results == output of attention does not hold at layer 2",
        ),
        (f"{LAYER}.mlp", r"resid_mid \+ mlp_out == resid_post does not hold at layer 2"),
        ("model.language_model.norm", "final_norm == what the head receives does not hold"),
        ("lm_head", "logits == what the model returns does not hold"),
    ],
)
def test_a_hook_that_changes_values_behind_a_site(
    fresh_thinker: Callable[[], Any], module: str, message: str
) -> None:
    model = fresh_thinker()
    model.get_submodule(module).register_forward_hook(add_one)
    with pytest.raises(SelfCheckError, match=message):
        model_adapters.load(model)


def test_a_model_that_is_random_in_evaluation(fresh_thinker: Callable[[], Any]) -> None:
    model = fresh_thinker()
    model.model.language_model.layers[0].mlp.register_forward_hook(
        lambda m, args, output: output + torch.randn(())
    )
    with pytest.raises(SelfCheckError, match="not bit-identical to the bare model"):
        model_adapters.load(model)


def test_weights_that_are_not_finite(fresh_thinker: Callable[[], Any]) -> None:
    model = fresh_thinker()
    with torch.no_grad():
        model.lm_head.weight[3, 3] = torch.nan
    with pytest.raises(SelfCheckError, match="own logits are not finite"):
        model_adapters.load(model)


def test_a_family_entry_that_does_not_fit(fresh_thinker: Callable[[], Any]) -> None:
    wrong = dataclasses.replace(QWEN2_5_OMNI, mid_norm=("input_layernorm",))
    with pytest.raises(SelfCheckError, match="family entry"):
        Adapter(fresh_thinker(), wrong, model_id="spoilt")


def test_a_path_given_as_a_bare_string(as_users_run_it: None) -> None:
    with pytest.raises(LoadError, match=r"mid_norm is a tuple of paths.*\('input_layernorm',\)"):
        dataclasses.replace(QWEN2_5_OMNI, mid_norm="input_layernorm")  # type: ignore[arg-type]


def test_a_family_known_to_add_between_layers_is_told_apart(
    fresh_thinker: Callable[[], Any],
) -> None:
    model = fresh_thinker()
    model.get_submodule(LAYER).register_forward_hook(add_one)
    family = dataclasses.replace(QWEN2_5_OMNI, adds_between_layers=True)
    adapter = Adapter(model, family, model_id="adds between layers")
    assert adapter.discontinuities == (2,)


def test_the_check_leaves_no_trace_on_the_model_or_the_random_state(
    fresh_thinker: Callable[[], Any],
) -> None:
    model = fresh_thinker()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.random.get_rng_state()
    model_adapters.load(model)
    assert torch.equal(state, torch.random.get_rng_state())
    after = model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_precisions_pass(fresh_thinker: Callable[[], Any], dtype: torch.dtype) -> None:
    adapter = model_adapters.load(fresh_thinker().to(dtype))
    with adapter.trace(input_ids=torch.tensor([[5, 6, 7]])):
        adapter.resid_post[0] = adapter.resid_post[0].float() - 1
        residual = adapter.resid_post[1].save()
    assert residual.dtype == dtype
