"""Tiny models of other houses that pack patches as Qwen does."""

from model_adapters.tiny.build import (
    IMAGE,
    VIDEO,
    VISION_IDS,
    Builder,
    experts,
    model,
    patches,
    rope,
    text,
    vision,
)
from model_adapters.tiny.glm import BORDERS

TINY: dict[str, Builder] = {
    # Latent attention and experts, as in DeepSeek-V3.
    "kimi_k25": model(
        "Kimi_K25",
        text(
            "deepseek_v3",
            **experts(),
            head_dim=4,
            num_key_value_heads=4,
            n_routed_experts=4,
            n_group=1,
            topk_group=1,
            first_k_dense_replace=1,
            kv_lora_rank=16,
            q_lora_rank=16,
            qk_rope_head_dim=4,
            qk_nope_head_dim=4,
            v_head_dim=8,
            rope_parameters=rope(),
        ),
        vision(pos_emb_height=6, pos_emb_width=6),
        projection_hidden_size=16,
        **VISION_IDS,
    ),
    "paddleocr_vl": model(
        "PaddleOCRVL",
        text(rope_parameters=rope(mrope_section=[2, 1, 1])),
        vision(image_size=24),
        **VISION_IDS,
    ),
    # Images and videos, each merged by a factor of its own.
    "video_llama_3": model(
        "VideoLlama3",
        text("qwen2", rope_parameters=rope()),
        vision(),
        image_token_id=IMAGE,
        video_token_id=VIDEO,
    ),
    # Experts of their own for text and for vision.
    "ernie4_5_vl_moe": model(
        "Ernie4_5_VLMoe",
        text(
            moe_intermediate_size=[16, 16],
            moe_k=2,
            moe_num_experts=4,
            moe_num_shared_experts=1,
            rope_parameters=rope(mrope_section=[1, 1, 2]),
        ),
        patches(),
        **BORDERS,
    ),
    # Seen through windows; norms only behind blocks.
    "exaone4_5": model(
        "Exaone4_5_",
        text(
            "exaone4",
            rope_parameters=rope(),
            sliding_window=16,
            layer_types=["sliding_attention", "sliding_attention", "full_attention"],
        ),
        patches(num_heads=4, num_key_value_heads=2, window_size=16, fullatt_block_indexes=[1]),
        image_token_id=IMAGE,
        video_token_id=VIDEO,
    ),
}
