"""Tiny Gemma 3n and Gemma 4: four decoder layers."""

from typing import Any

from torch import nn

from model_adapters.families.gemma3n_tower import without_tower
from model_adapters.tiny.build import (
    AUDIO,
    AUDIO_CLOSES,
    AUDIO_OPENS,
    CLOSES,
    IMAGE,
    OPENS,
    SPREAD,
    VIDEO,
    Builder,
    Options,
    made,
    model,
    sliding,
    text,
    vision,
)

_IDS: Options = {
    "image_token_id": IMAGE,
    "video_token_id": VIDEO,
    "audio_token_id": AUDIO,
    "boi_token_id": OPENS,
    "eoi_token_id": CLOSES,
    "boa_token_id": AUDIO_OPENS,
    "eoa_token_index": AUDIO_CLOSES,
    "initializer_range": SPREAD,
}


def _text(**changes: Any) -> Options:
    sizes = {
        "num_hidden_layers": 4,
        **sliding(1, 3, of=4),
        "num_kv_shared_layers": 2,
        "final_logit_softcapping": 3.0,
        "tie_word_embeddings": True,
    }
    return text(**{**sizes, **changes})


_PER_LAYER: Options = {"vocab_size_per_layer_input": 120, "hidden_size_per_layer_input": 4}
"""Inputs of their own for every layer."""

_DENSE = _text(**_PER_LAYER, global_head_dim=16, use_double_wide_mlp=True)

_VISION = vision(
    num_key_value_heads=2,
    head_dim=8,
    patch_size=2,
    pooling_kernel_size=2,
    position_embedding_size=16,
)


_ALTUP = _text(
    **{**_PER_LAYER, "vocab_size_per_layer_input": 104},
    laurel_rank=8,
    activation_sparsity_pattern=[0.5, 0.0, 0.0, 0.0],
)
"""Four streams."""

_GEMMA3N = model(
    "Gemma3n",
    _ALTUP,
    {"hidden_size": 16, "vocab_size": 8, "vocab_offset": 104},
    {
        "vocab_size": 8,
        "vocab_offset": 112,
        "input_feat_size": 8,
        "hidden_size": 16,
        "conf_attention_chunk_size": 4,
        "conf_attention_context_left": 5,
        "conf_num_attention_heads": 2,
        "conf_num_hidden_layers": 2,
        "conf_conv_kernel_size": 3,
        "conf_reduction_factor": 2,
        "sscp_conv_channel_size": [4, 4],
        "initializer_range": SPREAD,
    },
    audio_soft_tokens_per_image=5,
    vision_soft_tokens_per_image=4,
    boi_token_id=100,
    eoi_token_id=104,
    image_token_id=105,
    boa_token_id=101,
    eoa_token_id=112,
    audio_token_id=113,
    initializer_range=SPREAD,
)


def gemma3n() -> nn.Module:
    """Without its vision tower."""
    with without_tower():
        return _GEMMA3N()


TINY: dict[str, Builder] = {
    "gemma3n": gemma3n,
    "gemma3n_text": made("Gemma3nText", "Gemma3nForCausalLM", **_ALTUP),
    # Pictures, videos and sounds; keys and values shared between layers.
    "gemma4": model(
        "Gemma4",
        _DENSE,
        {**_VISION, "standardize": True},
        {
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "subsampling_conv_channels": [8, 4],
            "attention_chunk_size": 4,
            "attention_context_left": 3,
            "output_proj_dims": 12,
            "initializer_range": SPREAD,
        },
        **_IDS,
    ),
    # Pictures and videos, which see all of themselves in layers with a window; experts.
    "gemma4_moe": model(
        "Gemma4",
        _text(
            global_head_dim=16,
            num_global_key_value_heads=1,
            attention_k_eq_v=True,
            num_kv_shared_layers=0,
            **{**_PER_LAYER, "hidden_size_per_layer_input": 0},
            use_bidirectional_attention="vision",
            enable_moe_block=True,
            num_experts=4,
            top_k_experts=2,
            moe_intermediate_size=16,
        ),
        _VISION,
        **_IDS,
    ),
    # Pictures, videos and sounds without towers.
    "gemma4_unified": model(
        "Gemma4Unified",
        _text(global_head_dim=16, num_kv_shared_layers=0, use_bidirectional_attention="vision"),
        {
            "patch_size": 2,
            "pooling_kernel_size": 2,
            "mm_embed_dim": 16,
            "mm_posemb_size": 16,
            "output_proj_dims": 16,
            "initializer_range": SPREAD,
        },
        {"audio_samples_per_token": 8, "audio_embed_dim": 8, "output_proj_dims": 8},
        **_IDS,
    ),
    "gemma4_text": made("Gemma4Text", "Gemma4ForCausalLM", **_DENSE),
}
