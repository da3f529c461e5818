"""Tiny models that take pictures of any size or shape."""

from typing import Any

from model_adapters.tiny.build import (
    GRANITE,
    IMAGE,
    SPREAD,
    VIDEO,
    VISION_IDS,
    Builder,
    model,
    sliding,
    text,
    vision,
)

PIXTRAL_IMAGE = 10
"""The id in Mistral's own vocabularies, where 12 ends a row and 13 a picture."""

_PIXTRAL = vision("pixtral", image_size=64, head_dim=8)
_CLIP = vision("clip_vision_model")


def _tilings(edge: int) -> list[list[int]]:
    """Sizes that pictures are fitted to, for tiles of `edge` pixels."""
    shapes = ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))
    return [[rows * edge, columns * edge] for rows, columns in shapes]


def _convolved(model_type: str, *kinds: str, **changes: Any) -> dict[str, Any]:
    """A decoder with convolutions in place of some attention blocks."""
    return text(model_type, **{**changes, "layer_types": list(kinds)})


TINY: dict[str, Builder] = {
    # One position a patch.
    "llava with Pixtral": model(
        "Llava",
        text("mistral"),
        _PIXTRAL,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        image_token_index=PIXTRAL_IMAGE,
    ),
    # Patches merged two by two.
    "mistral3": model(
        "Mistral3", text("mistral"), _PIXTRAL, image_token_index=PIXTRAL_IMAGE, tied=True
    ),
    # The same without row breaks.
    "lighton_ocr": model("LightOnOcr", text("qwen3"), _PIXTRAL, image_token_id=IMAGE, tied=True),
    # An overview, then tiles with the padding cut away and a learned vector after each row.
    "llava_next": model(
        "LlavaNext",
        text("llama"),
        {**_CLIP, "image_size": 12},
        image_grid_pinpoints=_tilings(12),
        image_token_index=IMAGE,
    ),
    # The same, and videos whose frames are pooled before the projector.
    "llava_next_video": model(
        "LlavaNextVideo",
        text("llama"),
        _CLIP,
        image_grid_pinpoints=_tilings(16),
        image_token_index=IMAGE,
        video_token_index=VIDEO,
    ),
    # As LLaVA-NeXT, with a limit on the size, and videos pooled behind the projector.
    "llava_onevision": model(
        "LlavaOnevision",
        text("qwen2"),
        vision("siglip_vision_model", image_size=12, vision_use_head=False),
        image_grid_pinpoints=[[r, c] for r in (12, 24, 36) for c in (12, 24, 36)],
        vision_aspect_ratio="anyres_max_3",
        image_token_index=IMAGE,
        video_token_index=VIDEO,
    ),
    # As LLaVA-NeXT, with features of several encoder layers added at several decoder layers.
    "granite4_vision": model(
        "Granite4Vision",
        text("granite4_vision_text", **GRANITE),
        {**_CLIP, "hidden_size": 64},
        qformer_config={
            "model_type": "blip_2_qformer",
            "num_hidden_layers": 1,
            "intermediate_size": 24,
            "cross_attention_frequency": 1,
            "use_qformer_text_input": False,
            "initializer_range": SPREAD,
        },
        image_grid_pinpoints=_tilings(16),
        downsample_rate="1/2",
        deepstack_layer_map=[[-1, 0], [-2, 1]],
        spatial_target_layers=[2],
        image_token_index=IMAGE,
    ),
    # Pictures padded to one size, with a mask; five latents each.
    "idefics2": model(
        "Idefics2",
        text("mistral"),
        vision("idefics2_vision", image_size=24),
        perceiver_config={
            "model_type": "idefics2_perceiver",
            "hidden_size": 32,
            "resampler_n_latents": 5,
            "resampler_depth": 2,
            "resampler_n_heads": 4,
            "resampler_head_dim": 8,
            "num_key_value_heads": 2,
            "initializer_range": SPREAD,
        },
        image_token_id=IMAGE,
    ),
    # Square tiles, 4 positions each; a request's pictures are padded to the longest list.
    "idefics3": model("Idefics3", text("llama"), vision("idefics3_vision"), image_token_id=IMAGE),
    "smolvlm": model(
        "SmolVLM", text("llama"), vision("smolvlm_vision"), image_token_id=IMAGE, tied=True
    ),
    # Pictures of any shape as padded patches.
    "lfm2_vl": model(
        "Lfm2Vl",
        _convolved("lfm2", "conv", "full_attention", "conv", block_auto_adjust_ff_dim=False),
        vision("siglip2_vision_model", num_patches=16, vision_use_head=False),
        projector_hidden_size=24,
        image_token_id=IMAGE,
        tied=True,
    ),
    # Patches packed over the batch; sandwich norms.
    "lfm3_vl": model(
        "Lfm3Vl",
        _convolved("lfm3", "conv", "sliding_attention", "full_attention", **sliding()),
        vision("lfm3_vl_vision", num_key_value_heads=1),
        projector_hidden_size=24,
        **VISION_IDS,
        tied=True,
    ),
    # Experts in every layer; a picture's size says how many queries read it.
    "aria": model(
        "Aria",
        text("aria_text", moe_num_experts=4, moe_topk=2, moe_num_shared_experts=1),
        vision("idefics3_vision", image_size=24),
        projector_patch_to_query_dict={9: 3, 36: 7},
        initializer_range=SPREAD,
        image_token_index=IMAGE,
    ),
}
