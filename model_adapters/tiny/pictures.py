"""Tiny models that take pictures, or tiles of pictures, of one size."""

from model_adapters.tiny.build import (
    CLOSES,
    IMAGE,
    OPENS,
    VIDEO,
    Builder,
    Options,
    model,
    sliding,
    text,
    vision,
)

_CLIP = vision("clip_vision_model", image_size=12)
_SIGLIP = vision("siglip_vision_model", vision_use_head=False)
_SMALL_SIGLIP = {**_SIGLIP, "image_size": 12}
_SAM: Options = {
    "image_size": 32,
    "mlp_dim": 24,
    "output_channels": 8,
    "window_size": 3,
    "global_attn_indexes": [1],
}
_GEMMA: Options = {**sliding(1), "query_pre_attn_scalar": 8}
_COHERE = text("cohere2", **sliding(1), logit_scale=0.25)
_BORDERS: Options = {"boi_token_index": OPENS, "eoi_token_index": CLOSES}
_PALIGEMMA: Options = {
    "projection_dim": 32,
    "hidden_size": 32,
    "vocab_size": 120,
    "image_token_index": IMAGE,
}

TINY: dict[str, Builder] = {
    # 9 positions a picture, CLIP's class token dropped.
    "llava": model("Llava", text("llama"), _CLIP, image_token_index=IMAGE),
    # States of several CLIP layers side by side.
    "vipllava": model(
        "VipLlava",
        text("llama"),
        _CLIP,
        vision_feature_layer=[-2, -1],
        image_token_index=IMAGE,
    ),
    "internvl": model(
        "InternVL",
        text("qwen2"),
        vision("internvl_vision", image_size=[16, 16], patch_size=[4, 4]),
        image_token_id=IMAGE,
        tied=True,
    ),
    # Pictures that attend in both directions.
    "gemma3": model(
        "Gemma3",
        text("gemma3_text", **_GEMMA),
        _SIGLIP,
        mm_tokens_per_image=4,
        image_token_index=IMAGE,
        **_BORDERS,
        tied=True,
    ),
    # A prefix that attends in both directions.
    "paligemma": model("PaliGemma", text("gemma"), _SMALL_SIGLIP, **_PALIGEMMA, tied=True),
    "paligemma with Gemma 2": model(
        "PaliGemma",
        text("gemma2", **_GEMMA, final_logit_softcapping=2.0),
        _SMALL_SIGLIP,
        **_PALIGEMMA,
        tied=True,
    ),
    # Experts in every other layer, layers without rotary positions, chunked attention.
    "llama4": model(
        "Llama4",
        text(
            "llama4_text",
            num_hidden_layers=4,
            intermediate_size_mlp=48,
            num_local_experts=3,
            interleave_moe_layer_step=2,
            no_rope_layers=[1, 0, 1, 0],
            attention_chunk_size=16,
        ),
        vision(
            "llama4_vision_model",
            intermediate_size=64,
            projector_input_dim=24,
            projector_output_dim=24,
            vision_output_dim=24,
        ),
        image_token_index=IMAGE,
        **_BORDERS,
    ),
    "aya_vision": model(
        "AyaVision",
        _COHERE,
        _SIGLIP,
        alignment_intermediate_size=48,
        image_token_index=IMAGE,
        tied=True,
    ),
    "cohere2_vision": model(
        "Cohere2Vision",
        _COHERE,
        _SIGLIP,
        alignment_intermediate_size=48,
        image_token_id=IMAGE,
        tied=True,
    ),
    "janus": model(
        "Janus",
        text("llama"),
        vision("janus_vision_model", image_size=12, projection_dim=32),
        # Draws pictures, which answers do not use.
        vq_config={
            "embed_dim": 4,
            "num_embeddings": 8,
            "latent_channels": 4,
            "base_channels": 32,
            "channel_multiplier": [1],
            "num_res_blocks": 1,
            "num_patches": 4,
            "projection_dim": 32,
            "image_token_embed_dim": 32,
        },
        image_token_id=IMAGE,
        tied=True,
    ),
    "deepseek_vl": model(
        "DeepseekVL", text("llama"), _SMALL_SIGLIP, image_token_id=IMAGE, tied=True
    ),
    # A second encoder that sees the picture in a higher resolution.
    "deepseek_vl_hybrid": model(
        "DeepseekVLHybrid",
        text("llama"),
        _SMALL_SIGLIP,
        high_res_vision_config=vision("sam_vision_model", **_SAM),
        image_token_id=IMAGE,
        tied=True,
    ),
    # An encoder of windows whose map two convolutions shrink to a quarter.
    "got_ocr2": model(
        "GotOcr2",
        text("qwen2"),
        vision("got_ocr2_vision", **_SAM),
        image_token_index=IMAGE,
        tied=True,
    ),
    # Mixtures of a visual vocabulary; indicator tokens are replaced too.
    "ovis2": model(
        "Ovis2",
        text("qwen2"),
        vision("ovis2_vision", vocab_size=29, hidden_stride=2, num_visual_indicator_tokens=5),
        hidden_size=32,
        vocab_size=120,
        image_token_id=IMAGE,
        visual_indicator_token_ids=[105, 106, 107, 108, 109],
        tied=True,
    ),
    # Pictures without, videos with the class token of every frame.
    "video_llava": model(
        "VideoLlava",
        text("llama"),
        vision("clip_vision_model", image_size=8),
        image_token_index=IMAGE,
        video_token_index=VIDEO,
    ),
    # A ResNet stands in for the encoder, which only timm has; it too ends in a map.
    "fast_vlm": model(
        "FastVlm",
        text("qwen2"),
        {
            "model_type": "resnet",
            "embedding_size": 8,
            "hidden_sizes": [8, 8, 8, 8, 16],
            "depths": [1, 1, 1, 1, 1],
            "hidden_size": 16,
            "layer_type": "basic",
        },
        image_token_index=IMAGE,
    ),
    # A ViT stands in for the encoder, which only timm has; it too begins with a class token.
    "perception_lm": model(
        "PerceptionLM",
        text("llama"),
        vision(
            "vit",
            model_args={"embed_dim": 16, "img_size": [16, 16], "ref_feat_shape": [4, 4]},
        ),
        projector_pooling_ratio=2,
        image_token_id=IMAGE,
        video_token_id=VIDEO,
    ),
}
