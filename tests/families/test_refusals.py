"""Ready encodings that would fail late, or give other numbers: refused before the forward."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import model_adapters
from analyses.families.prompts import Prompts
from model_adapters import Adapter, InputError
from model_adapters.probe import example
from model_adapters.tiny import builders

Tiny = Callable[[str], Adapter]
Change = Callable[[Any], Any]


def encoding(adapter: Adapter, kind: Any, size: int = 1) -> dict[str, Any]:
    return example(adapter.module, adapter.family, (kind,), size=size)


@pytest.mark.parametrize("kind", ["image", "audio", "video"])
@pytest.mark.parametrize("name", ["qwen2_5_omni_thinker", "qwen3_omni_moe_thinker"])
def test_an_item_without_the_token_by_which_the_model_counts(
    tiny: Tiny, name: str, kind: Any
) -> None:
    adapter = tiny(name)
    medium = adapter.family.medium(kind)
    assert medium is not None
    (opens,), _ = medium.around(adapter.module.config)
    bad = encoding(adapter, kind, 0)
    ids = bad["input_ids"]
    bad["input_ids"] = torch.where(ids == opens, Prompts(adapter).word, ids)
    with pytest.raises(InputError, match=rf"{kind} 0 has no opening token .* of row 0"):
        adapter.join([bad, encoding(adapter, kind)])


def flat(value: Tensor) -> Tensor:
    return value.flatten()


def cut(value: Tensor) -> Tensor:
    return value[..., :-1]


def zeros(value: Tensor) -> Tensor:
    return torch.zeros_like(value)


def as_bytes(value: Tensor) -> Tensor:
    return value.to(torch.uint8)


@pytest.mark.parametrize(
    ("name", "kind", "input_name", "change", "message"),
    [
        ("qwen2_vl", "image", "image_grid_thw", Tensor.float, "whole numbers above zero"),
        ("qwen2_vl", "image", "image_grid_thw", flat, r"shape \[items, 3\]"),
        ("qwen2_vl", "image", "image_grid_thw", lambda g: g - 1, "whole numbers above zero"),
        ("qwen2_vl", "image", "image_grid_thw", lambda g: g[:, [0, 2, 1]] + 1, "multiples of"),
        ("qwen2_vl", "image", "image_grid_thw", lambda g: g * 2, "the time of an image is 1"),
        ("qwen2_vl", "image", "pixel_values", cut, r"this model takes \[patches"),
        ("qwen2_vl", "image", "pixel_values", lambda v: v.sum(), "is a single number"),
        ("qwen2_vl", "image", "pixel_values", as_bytes, "must be floating-point"),
        ("qwen2_vl", "image", "pixel_values", Tensor.numpy, "is a ndarray"),
        ("qwen2_5_omni_thinker", "video", "video_second_per_grid", None, "was given without"),
        ("qwen2_5_omni_thinker", "video", "video_second_per_grid", Tensor.tolist, "is a list"),
        ("qwen2_5_omni_thinker", "video", "video_second_per_grid", zeros, None),
        ("qwen2_5_omni_thinker", "video", "video_second_per_grid", lambda s: s[:0], "one number"),
        ("qwen2_5_omni_thinker", "audio", "feature_attention_mask", Tensor.float, "integers or"),
        ("kimi_k25", "image", "pixel_values", flat, r"this model takes \[patches"),
        ("lfm2_vl", "image", "pixel_values", cut, r"\[items, patches"),
        ("lfm2_vl", "image", "pixel_attention_mask", Tensor.float, "integers or truth"),
        ("lfm2_vl", "image", "pixel_attention_mask", flat, "must agree"),
        ("phi4_multimodal", "audio", "audio_attention_mask", cut, r"\[items, frames\]"),
        ("phi4_multimodal", "audio", "audio_attention_mask", Tensor.numpy, "is a ndarray"),
        ("phi4_multimodal", "image", "image_sizes", Tensor.bool, "whole numbers"),
        ("idefics3", "image", "pixel_attention_mask", zeros, "hides whole pictures"),
        ("llava_next", "image", "image_sizes", zeros, "whole numbers above zero"),
        ("mistral3", "image", "image_sizes", Tensor.float, "whole numbers above zero"),
        ("gemma3n", "audio", "input_features_mask", zeros, "not all zeros"),
        ("video_llama_3", "video", "video_compression_mask", Tensor.int, "torch.bool"),
    ],
)
def test_inputs_that_are_not_what_they_should_be(
    tiny: Tiny, name: str, kind: Any, input_name: str, change: Change | None, message: str | None
) -> None:
    adapter = tiny(name)
    bad = encoding(adapter, kind)
    bad[input_name] = None if change is None else change(bad[input_name])
    if message is None:
        adapter.describe(**bad)
        return
    with pytest.raises(InputError, match=message):
        adapter.describe(**bad)


@pytest.mark.parametrize(
    "picture",
    [
        torch.zeros(1, 3, 8, 8),
        torch.zeros(1, 3, 8, 8, dtype=torch.uint8),
        np.zeros((1, 3, 8, 8)),
        [torch.zeros(3, 8, 8)],
    ],
    ids=["floats", "bytes", "numpy", "list"],
)
def test_media_that_the_entry_does_not_tell_of(tiny: Tiny, picture: Any) -> None:
    with pytest.raises(InputError, match=r"pixel_values belongs to no medium .*timm"):
        tiny("gemma3n").describe(input_ids=torch.tensor([[5, 6]]), pixel_values=picture)


@pytest.mark.parametrize(
    ("name", "kind"), [("aria", "image"), ("kimi_k25", "image"), ("qwen3_asr", "audio")]
)
def test_ready_encodings_come_in_the_precision_of_the_encoder(name: str, kind: Any) -> None:
    precise = encoding(model_adapters.load(builders()[name]()), kind, 0)
    adapter = model_adapters.load(builders()[name]().to(torch.bfloat16))
    values = next(iter(adapter.family.media)).values
    assert precise[values].dtype == torch.float32
    for batch in (adapter.describe(**precise), adapter.join([precise, precise])):
        assert batch.inputs[values].dtype == torch.bfloat16
    with adapter.trace(**precise):
        state = adapter.resid_post[-1].save()
    assert state.isfinite().all()
    assert adapter(**precise).logits.isfinite().all()
    assert len(adapter.generate(**precise, max_new_tokens=1).tokens) == 1


def test_a_checkpoint_whose_vision_tower_needs_timm_loads_without_it(tmp_path: Path) -> None:
    built = builders()["gemma3n"]()
    text = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        expected = built(text).logits
    built.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["model.vision_tower.timm_model.stem.weight"] = torch.ones(2, 2)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    adapter = model_adapters.load(tmp_path)
    assert adapter.media == {"audio"}
    assert "timm" in str(adapter.receipt())
    with torch.no_grad():
        assert torch.equal(adapter.module(text).logits, expected)
    sound = adapter.describe(**encoding(adapter, "audio", 0))
    assert sound.modalities == ("audio",)
