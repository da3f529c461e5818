"""Packed patches, crops and frames: any size, prompts as real processors lay them out, quirks."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from model_adapters import Adapter, InputError, Role, load
from model_adapters.families import Medium, family_of
from model_adapters.probe import example
from model_adapters.tiny import builders
from model_adapters.tiny.qwen import FULL

Encoding = dict[str, Any]


def tiny(name: str) -> Adapter:
    return load(builders()[name]())


def encoding(adapter: Adapter, *kinds: Any, size: int = 0, seed: int = 0) -> Encoding:
    return example(adapter.module, adapter.family, kinds, size=size, seed=seed)


def medium(adapter: Adapter, kind: Any) -> Medium:
    found = adapter.family.medium(kind)
    assert found is not None
    return found


def logits(adapter: Adapter, inputs: Encoding) -> Tensor:
    with torch.no_grad():
        out: Tensor = adapter.module(**inputs).logits
    return out


def widened(inputs: Encoding, place: int, words: list[int]) -> Encoding:
    """`inputs` with words put in at a position of the only row."""
    row = {"input_ids": words, "attention_mask": [1] * len(words)}
    new = dict(inputs)
    for name in ("input_ids", "attention_mask", "mm_token_type_ids"):
        old = inputs[name]
        between = torch.tensor([row.get(name, [0] * len(words))])
        new[name] = torch.cat([old[:, :place], between, old[:, place:]], dim=1)
    return new


@pytest.mark.parametrize("name", ["qwen2_5_omni_thinker", "qwen3_omni_moe_thinker"])
def test_sounds_of_any_length_take_what_the_model_counts(name: str) -> None:
    adapter = tiny(name)
    frames = torch.arange(3, 1000)
    if name == "qwen2_5_omni_thinker":
        _, expected = adapter.module.model.audio_tower._get_feat_extract_output_lengths(frames)
    else:
        from transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe import (
            _get_feat_extract_output_lengths,
        )

        expected = _get_feat_extract_output_lengths(frames)
    audio: Any = medium(adapter, "audio")
    assert torch.equal(audio.positions(adapter.module.config, frames), expected)


@pytest.mark.parametrize("name", ["qwen3_vl", "qwen3_5", "glm4v"])
def test_frames_of_a_video_stand_apart_behind_times_of_any_length(name: str) -> None:
    adapter = tiny(name)
    inputs = encoding(adapter, "video", size=1)
    (span,) = adapter.describe(**inputs).videos[0]
    assert span.grid == (2, 2, 3)
    assert len(span) == 12 and len(span.gaps) == 2
    timed = widened(inputs, span.gaps[0], [5, 6, 7])
    batch = adapter.describe(**timed)
    (longer,) = batch.videos[0]
    assert len(longer.gaps) == 5
    assert longer.positions == (*span.positions[:6], *(i + 3 for i in span.positions[6:]))
    assert (batch.roles[0, list(longer.positions)] == Role.VIDEO).all()
    assert logits(adapter, timed).isfinite().all()
    closed = dict(inputs)
    for key in ("input_ids", "attention_mask", "mm_token_type_ids"):
        kept = [i for i in range(inputs[key].shape[1]) if i not in span.gaps]
        closed[key] = inputs[key][:, kept]
    with pytest.raises(InputError, match=r"runs of 6, 6 side by side; they stand in runs of 12"):
        adapter.describe(**closed)


def test_glm_tells_videos_from_images_and_keeps_them_apart() -> None:
    adapter = tiny("glm4v")
    image, video = (encoding(adapter, kind) for kind in ("image", "video"))
    config = adapter.module.config
    assert config.video_token_id not in video["input_ids"]
    assert adapter.describe(**image).modalities == ("image",)
    assert adapter.describe(**video).modalities == ("video",)
    with pytest.raises(InputError, match="cannot take image and video in one pass"):
        adapter.join([image, video])
    # The reason: transformers itself counts the placeholders of both for either.
    with pytest.raises((RuntimeError, ValueError), match="do not match"):
        logits(adapter, encoding(adapter, "image", "video"))


def test_ernie_sends_media_to_experts_of_their_own() -> None:
    adapter = tiny("ernie4_5_vl_moe")
    inputs = encoding(adapter, "image", size=1)
    seen: list[int] = []
    layer = adapter.module.model.language_model.layers[1]
    handle = layer.mlp.vision_moe.register_forward_pre_hook(
        lambda module, args: seen.append(args[0].numel() // adapter.d_model)
    )
    expected = logits(adapter, inputs)
    handle.remove()
    (span,) = adapter.describe(**inputs).images[0]
    assert seen == [len(span) + 2]  # with the tokens around the picture
    lost = {name: value for name, value in inputs.items() if not name.startswith("moe")}
    assert not torch.allclose(logits(adapter, lost), expected, atol=1e-3)
    with pytest.raises(InputError, match="moe_mm_token_type_ids must have the shape"):
        adapter.describe(**lost)


def test_ernie_needs_frames_in_pairs() -> None:
    adapter = tiny("ernie4_5_vl_moe")
    inputs = encoding(adapter, "video", size=1)
    odd = inputs | {"video_grid_thw": torch.tensor([[3, 4, 6]])}
    odd["pixel_values_videos"] = inputs["pixel_values_videos"][:72]
    with pytest.raises(InputError, match=r"even numbers of frames, got \[3\]"):
        adapter.describe(**odd)


def test_a_compressed_video_takes_positions_for_what_is_kept() -> None:
    adapter = tiny("video_llama_3")
    inputs = encoding(adapter, "video", size=1)
    video = medium(adapter, "video")
    kept = torch.tensor([True] * 6 + [False] * 6)
    (item,) = video.items(inputs | {"video_compression_mask": kept}, adapter.module.config)
    assert (item.positions, item.runs, item.grid) == (6, (6,), None)
    whole = inputs | {"video_compression_mask": torch.ones(12, dtype=torch.bool)}
    (item,) = video.items(whole, adapter.module.config)
    assert (item.positions, item.runs, item.grid) == (12, (6, 6), (2, 2, 3))
    with pytest.raises(InputError, match="covers 11 merged patches of 12"):
        adapter.describe(**inputs | {"video_compression_mask": kept[:11]})
    two = torch.tensor([2, 2])
    with pytest.raises(InputError, match="video_merge_sizes has 2 items, video_grid_thw 1"):
        adapter.describe(**inputs | {"video_merge_sizes": two})


def test_crops_are_checked_and_counted_in_both_modes() -> None:
    adapter = tiny("minicpmv4_6")
    inputs = encoding(adapter, "image")
    assert [span.grid for span in adapter.describe(**inputs).images[0]] == [(1, 1, 2)]
    image = medium(adapter, "image")
    finer = inputs | {"downsample_mode": "4x"}
    (item,) = image.items(finer, adapter.module.config)
    with torch.no_grad():
        out = adapter.module.get_image_features(
            inputs["pixel_values"], inputs["target_sizes"], downsample_mode="4x"
        )
    assert item.grid == (1, 2, 4)
    assert item.positions == len(out.pooler_output[0])
    with pytest.raises(InputError, match="multiples of 4"):
        adapter.describe(**inputs | {"target_sizes": torch.tensor([[2, 16]])})
    with pytest.raises(InputError, match="48 pixel columns together, pixel_values has 128"):
        adapter.describe(**inputs | {"target_sizes": torch.tensor([[2, 6]])})


def test_a_picture_with_slices_is_an_overview_and_its_slices() -> None:
    adapter = tiny("minicpmv4_7")
    config = adapter.module.config
    opens, closes = (config.image_start_id, config.image_end_id)
    image = config.image_token_id
    slices = [config.slice_start_id, image, image, config.slice_end_id] * 2
    ids = torch.tensor([[5, 6, opens, image, image, closes, *slices, 7, 8]])
    generator = torch.Generator().manual_seed(0)
    whole = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": (ids == image).long(),
        "pixel_values": torch.randn(1, 3, 4, 3 * 32 * 4, generator=generator),
        "target_sizes": torch.tensor([[4, 8]] * 3),
    }
    batch = adapter.describe(**whole)
    assert [(span.start, span.grid) for span in batch.images[0]] == [
        (3, (1, 1, 2)),
        (7, (1, 1, 2)),
        (11, (1, 1, 2)),
    ]
    other = encoding(adapter, "image", size=1, seed=1)
    joined = adapter.join([other, whole])
    alone = logits(adapter, whole)[0]
    torch.testing.assert_close(
        logits(adapter, joined.inputs)[1, -len(alone) :], alone, atol=2e-5, rtol=1e-5
    )


def test_an_optional_input_is_given_with_all_videos_or_with_none() -> None:
    adapter = tiny("qwen2_5_vl")
    with_times, without = (encoding(adapter, "video", size=1, seed=seed) for seed in (1, 2))
    assert "second_per_grid_ts" in with_times
    del without["second_per_grid_ts"]
    with pytest.raises(InputError, match="given with some of the videos of one batch only"):
        adapter.join([with_times, without])
    adapter.join([with_times, encoding(adapter, "image"), encoding(adapter)])


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen2_5_omni_thinker", "exaone4_5"])
def test_windowed_towers_order_their_vectors_only_after_the_merger(name: str) -> None:
    adapter = tiny(name)
    inputs = encoding(adapter, "image", size=1)
    merged: list[Tensor] = []
    handle = adapter.module.model.visual.merger.register_forward_hook(
        lambda module, args, output: merged.append(output.clone())
    )
    embed: list[Tensor] = []
    hook = adapter.hook("embed", None, lambda value: embed.append(value.clone()))
    logits(adapter, inputs)
    handle.remove()
    hook.remove()
    (span,) = adapter.describe(**inputs).images[0]
    placed = embed[0][0, list(span.positions)]
    assert placed.shape == merged[0].shape
    assert not torch.equal(placed, merged[0])
    assert torch.equal(placed.sort(dim=0).values, merged[0].sort(dim=0).values)


@pytest.mark.parametrize("name", ["qwen3_vl", "qwen3_vl_moe", "qwen3_omni_moe_thinker"])
def test_deepstack_adds_between_layers_at_pictures_only(name: str) -> None:
    adapter = tiny(name)
    assert adapter.discontinuities == (0, 1)
    batch = adapter.describe(**encoding(adapter, "image", size=1))
    gaps = []
    with adapter.trace(batch):
        for layer in range(3):
            after = adapter.resid_post[layer].clone()
            gaps.append(adapter.resid_pre[layer + 1] - after)
    image = batch.mask("image")
    for layer, added in enumerate(gaps):
        assert not added[~image].any()
        assert (added[image].abs().amax(dim=-1) > 0).all() == (layer < 2)


def test_linear_attention_has_heads_and_places_of_its_own() -> None:
    adapter = tiny("qwen3_5")
    paths = [inside.attn for inside in adapter.layout.inside]
    assert paths == ["linear_attn", "self_attn", "linear_attn", "self_attn"]
    assert {inside.d_head for inside in adapter.layout.inside} == {8, 16}
    batch = adapter.describe(**encoding(adapter, "image"))
    results = []
    with adapter.trace(batch):
        for layer in (0, 1):
            heads = adapter.result[layer].sum(dim=2)
            results.append((heads, adapter.attn_out[layer].clone()))
    for heads, total in results:
        torch.testing.assert_close(heads, total, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["paddleocr_vl", "ernie4_5_vl_moe", "minicpm_ocr"])
def test_a_tied_head_is_the_embedding(name: str) -> None:
    module: Any = builders()[name]()
    assert "tied head" in family_of(module.config).quirks
    assert module.get_output_embeddings().weight is module.get_input_embeddings().weight


def test_short_sounds_of_qwen3_omni_depend_on_their_batch_and_longer_ones_do_not() -> None:
    adapter = tiny("qwen3_omni_moe_thinker")
    audio = medium(adapter, "audio")

    def request(frames: int, seed: int) -> Encoding:
        inputs = encoding(adapter, "audio", size=1, seed=seed)
        inputs[audio.values] = inputs[audio.values][..., :frames]
        inputs["feature_attention_mask"] = inputs["feature_attention_mask"][:, :frames]
        places = audio.placeholders(inputs, adapter.module.config)[0].nonzero().flatten()
        (item,) = audio.items(inputs, adapter.module.config)
        kept = [i for i in range(inputs["input_ids"].shape[1]) if i not in places[item.positions :]]
        return inputs | {n: inputs[n][:, kept] for n in ("input_ids", "attention_mask")}

    def change(frames: int) -> float:
        short, long = request(frames, 1), request(213, 2)
        alone = logits(adapter, short)[0]
        beside = logits(adapter, adapter.join([short, long]).inputs)[0, -len(alone) :]
        return float((beside - alone).abs().max() / alone.abs().max())

    assert change(21) > 1e-4
    assert change(100) < 1e-5


@pytest.mark.parametrize("name", sorted(FULL))
def test_of_a_whole_omni_checkpoint_only_the_thinker_is_loaded(name: str, tmp_path: Path) -> None:
    whole: Any = FULL[name]()
    whole.save_pretrained(tmp_path)
    adapter = load(tmp_path)
    assert [child for child, _ in adapter.module.named_children()] == ["model", "lm_head"]
    inputs = encoding(adapter, "image", "audio", "video", size=1)
    expected = logits(load(whole.thinker), inputs)
    assert torch.equal(logits(adapter, inputs), expected)
