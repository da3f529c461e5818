"""Family entries that do not fit: refused at load, with the field or the identity that is wrong."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import nn

import model_adapters
from model_adapters import LoadError, SelfCheckError
from model_adapters.families import Family, family_of
from model_adapters.tiny import builders


def refusal(name: str, error: type[Exception], **changes: Any) -> str:
    """What `load` says to the tiny model of that name with a changed entry."""
    module = builders()[name]()
    family = dataclasses.replace(family_of(module.config), **changes)
    with pytest.raises(error) as raised:
        model_adapters.load(module, family=family)
    return str(raised.value)


def with_image(name: str, **changes: Any) -> dict[str, Any]:
    family: Family = family_of(builders()[name]().config)
    return {"media": (dataclasses.replace(family.media[0], **changes),)}


@pytest.mark.parametrize("field", ["tower", "features"])
def test_a_path_that_does_not_exist(field: str) -> None:
    said = refusal("llava", LoadError, **with_image("llava", **{field: "model.nothing"}))
    assert f"has no 'model.nothing', which the family entry (LLaVA) gives as {field}" in said


def test_a_tower_with_the_decoder_in_it() -> None:
    said = refusal("llava", LoadError, **with_image("llava", tower="model"))
    assert "holds the decoder layers" in said


def test_a_part_that_is_no_linear_map() -> None:
    said = refusal("llama", LoadError, out_proj=("input_layernorm",))
    assert "`input_layernorm` in layer 0 of LlamaForCausalLM is no linear map" in said


@pytest.mark.parametrize("positions", [1, 99])
def test_another_number_of_positions(positions: int) -> None:
    changes = with_image("llava", positions=lambda config: positions)
    said = refusal("llava", SelfCheckError, **changes)
    assert f"is 1 image(s) that fill {positions} positions (token 100)" in said
    assert "The cause: ValueError" in said


def test_features_of_another_module() -> None:
    changes = with_image("llava", features="model.vision_tower")
    said = refusal("llava", SelfCheckError, **changes)
    assert "features of the image, 'model.vision_tower'" in said


def test_features_whose_vectors_stand_elsewhere() -> None:
    module = builders()["llava"]()
    core: Any = module.model
    core.other = nn.Identity()
    made = core.multi_modal_projector.forward
    core.multi_modal_projector.forward = lambda value: core.other(made(value).flip(1)).flip(1)
    family = dataclasses.replace(
        family_of(module.config), **with_image("llava", features="model.other")
    )
    with pytest.raises(SelfCheckError, match="positions of the image hold what `features` made"):
        model_adapters.load(module, family=family)


def test_a_tower_that_does_not_run() -> None:
    changes = with_image("llava", values="pixels")
    said = refusal("llava", SelfCheckError, **changes)
    assert "tower of the image, 'model.vision_tower', did not run" in said


@pytest.mark.parametrize("name", ["llama", "gemma2", "llava"])
def test_blocks_that_are_not_side_by_side(name: str) -> None:
    said = refusal(name, SelfCheckError, mid_norm=())
    assert "mlp_out is the same without resid_mid, whatever attn_out is does not hold" in said


def test_nothing_is_added_between_layers() -> None:
    said = refusal("llava", SelfCheckError, adds_between_layers=True)
    assert "with image in the prompt none were" in said


@pytest.mark.parametrize(
    ("changes", "identity"),
    [
        ({"post_attn": ()}, "(predicted stream + attn_out + laurel) / sqrt 2 == resid_mid"),
        ({"post_mlp": ()}, "streams corrected by resid_mid + mlp_out == resid_post"),
        ({"mlp": ("laurel",)}, "mlp_out == what the norms and the MLP make of resid_mid"),
        ({"mid_norm": ()}, "no mid_norm"),
    ],
)
def test_parts_of_layers_with_several_streams(changes: dict[str, Any], identity: str) -> None:
    assert identity in refusal("gemma3n_text", SelfCheckError, **changes)


def test_no_hook_stays_on_a_model_however_often_it_is_loaded() -> None:
    module = builders()["llama4"]()
    for _ in range(2):
        adapter = model_adapters.load(module)
    ids = torch.tensor([[5, 6, 7]])
    with adapter.trace(input_ids=ids):
        flat = adapter.mlp_out[0].save()
    assert flat.shape == (1, 3, adapter.d_model)
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())
