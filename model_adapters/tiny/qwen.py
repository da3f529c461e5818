"""Tiny Qwen models: four decoder layers."""

from typing import Any

from model_adapters.tiny.build import (
    AUDIO,
    AUDIO_CLOSES,
    AUDIO_OPENS,
    CLOSES,
    IMAGE,
    OPENS,
    SPREAD,
    VIDEO,
    VISION_IDS,
    Builder,
    Options,
    experts,
    made,
    model,
    patches,
    rope,
    sounds,
    text,
)


def _text(model_type: str | None = None, **changes: Any) -> Options:
    sizes = {"num_hidden_layers": 4, "rope_parameters": rope(mrope_section=[2, 1, 1])}
    return text(model_type, **{**sizes, **changes})


def qwen3_5_text(model_type: str | None = None, **changes: Any) -> Options:
    """Linear attention in every other layer."""
    return _text(
        model_type,
        head_dim=16,
        rope_parameters=rope(
            mrope_section=[2, 1, 1], mrope_interleaved=True, partial_rotary_factor=0.5
        ),
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        layer_types=["linear_attention", "full_attention", "linear_attention", "full_attention"],
        **changes,
    )


_WINDOWED = patches(window_size=16, fullatt_block_indexes=[1])
_PLACED = patches(num_position_embeddings=36)
_DEEPSTACK = {**_PLACED, "depth": 3, "deepstack_visual_indexes": [0, 1]}
_EXPERTS = _text(mlp_only_layers=[1], **experts())
"""But for one dense layer."""

_SOUNDS = sounds(num_mel_bins=16, max_source_positions=200)
_SOUND_IDS: Options = {"audio_start_token_id": AUDIO_OPENS, "audio_end_token_id": AUDIO_CLOSES}

_THINKER2_5: Options = {
    "text_config": _text(),
    "vision_config": _WINDOWED,
    "audio_config": _SOUNDS,
    "image_token_index": IMAGE,
    "video_token_index": VIDEO,
    "audio_token_index": AUDIO,
    "vision_start_token_id": OPENS,
    "vision_end_token_id": CLOSES,
    **_SOUND_IDS,
    "initializer_range": SPREAD,
}
_THINKER3: Options = {
    "text_config": _EXPERTS,
    "vision_config": _DEEPSTACK,
    "audio_config": {**_SOUNDS, "downsample_hidden_size": 8},
    "audio_token_id": AUDIO,
    **VISION_IDS,
    **_SOUND_IDS,
    "initializer_range": SPREAD,
}

TINY: dict[str, Builder] = {
    "qwen2_5_omni_thinker": model("Qwen2_5OmniThinker", **_THINKER2_5),
    "qwen2_vl": model("Qwen2VL", _text(), patches(embed_dim=16, hidden_size=32), **VISION_IDS),
    # Images and videos seen through windows.
    "qwen2_5_vl": model("Qwen2_5_VL", _text(), _WINDOWED, **VISION_IDS),
    # DeepStack after the first two layers.
    "qwen3_vl": model("Qwen3VL", _text(), _DEEPSTACK, **VISION_IDS),
    "qwen3_vl_moe": model("Qwen3VLMoe", _EXPERTS, _DEEPSTACK, **VISION_IDS),
    "qwen3_omni_moe_thinker": model("Qwen3OmniMoeThinker", **_THINKER3),
    "qwen3_5": model("Qwen3_5", qwen3_5_text(), _PLACED, **VISION_IDS),
    # One of the experts is shared.
    "qwen3_5_moe": model(
        "Qwen3_5Moe",
        qwen3_5_text(shared_expert_intermediate_size=16, **experts()),
        _PLACED,
        **VISION_IDS,
    ),
}

_ENDS = ("start", "end")
_TALKER_IDS: Options = dict.fromkeys(
    [f"tts_text_{end}_token_id" for end in (*_ENDS, "pad")]
    + [f"tts_codec_{end}_token_id" for end in (*_ENDS, "pad", "mask")]
    + [f"{kind}_{end}_token_id" for kind in ("vision", "audio") for end in _ENDS]
    + [f"{kind}_token_index" for kind in ("image", "video", "audio")],
    1,
)
_SPOKEN = _text(num_hidden_layers=2, rope_parameters=rope())

FULL: dict[str, Builder] = {
    "qwen2_5_omni": made(
        "Qwen2_5Omni",
        "Qwen2_5OmniForConditionalGeneration",
        thinker_config=_THINKER2_5,
        talker_config=_text(embedding_size=32, num_hidden_layers=2, **_TALKER_IDS),
        token2wav_config={
            "dit_config": {
                "hidden_size": 16,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "head_dim": 8,
                "emb_dim": 8,
                "num_embeds": 20,
                "mel_dim": 8,
                "enc_emb_dim": 8,
                "enc_dim": 8,
                "enc_channels": [8, 8, 8, 8, 24],
                "enc_attention_channels": 4,
                "enc_se_channels": 4,
                "look_ahead_layers": [0],
                "look_backward_layers": [0],
            },
            "bigvgan_config": {
                "mel_dim": 8,
                "upsample_initial_channel": 32,
                "upsample_rates": [2],
                "upsample_kernel_sizes": [4],
            },
        },
    ),
    "qwen3_omni_moe": made(
        "Qwen3OmniMoe",
        "Qwen3OmniMoeForConditionalGeneration",
        thinker_config=_THINKER3,
        talker_config={
            "text_config": {**_SPOKEN, **experts(), "shared_expert_intermediate_size": 16},
            "code_predictor_config": {
                **_SPOKEN,
                "vocab_size": 20,
                "num_hidden_layers": 1,
                "num_code_groups": 2,
            },
            "num_code_groups": 2,
            "thinker_hidden_size": 32,
            "spatial_merge_size": 2,
            **VISION_IDS,
            "audio_token_id": AUDIO,
            "audio_start_token_id": AUDIO_OPENS,
        },
        code2wav_config={
            "codebook_size": 20,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "num_hidden_layers": 1,
            "num_quantizers": 2,
            "upsample_rates": [2],
            "upsampling_ratios": [2],
            "decoder_dim": 16,
            "rope_parameters": rope(),
        },
    ),
}
"""Checkpoints with a talker and a vocoder, of which one of the models above is a part."""
