"""Tiny GLM vision models."""

from typing import Any

from model_adapters.tiny.build import (
    CLOSES,
    IMAGE,
    OPENS,
    VIDEO,
    Builder,
    Options,
    experts,
    model,
    patches,
    rope,
    text,
)

BORDERS: Options = {
    "image_token_id": IMAGE,
    "video_token_id": VIDEO,
    "image_start_token_id": OPENS,
    "image_end_token_id": CLOSES,
    "video_start_token_id": 107,
    "video_end_token_id": 108,
}
"""Placeholders, and the tokens around them."""


def _text(model_type: str | None = None, **changes: Any) -> Options:
    turned = rope(mrope_section=[2, 1, 1], partial_rotary_factor=0.5)
    return text(model_type, head_dim=16, rope_parameters=turned, **changes)


TINY: dict[str, Builder] = {
    "glm4v": model("Glm4v", _text(), patches(image_size=24), **BORDERS),
    # The same parts under another name.
    "glm46v": model(
        "Glm46V", _text("glm4v_text"), patches("glm4v_vision", image_size=24), **BORDERS
    ),
    # Experts in all layers but the first.
    "glm4v_moe": model(
        "Glm4vMoe",
        _text(
            **experts(),
            n_routed_experts=4,
            n_shared_experts=1,
            first_k_dense_replace=1,
        ),
        patches(image_size=24),
        **BORDERS,
    ),
    "glm_ocr": model("GlmOcr", _text(), patches(image_size=24), **BORDERS),
}
