"""Text-only decoders that are not built like Llama; multimodal families inherit from them."""

from dataclasses import replace

from model_adapters.families.family import Family

TEXT_ONLY = Family(name="text-only decoder", model_types=())
"""Tried for any model without media; the self-check decides whether its layers really fit."""

GEMMA = replace(
    TEXT_ONLY,
    name="Gemma 2 and 3, text",
    model_types=("gemma2", "gemma3_text"),
    mid_norm=("pre_feedforward_layernorm",),
    post_attn=("post_attention_layernorm",),
    post_mlp=("post_feedforward_layernorm",),
    quirks=("sandwich norms",),
)

GLM4 = replace(
    TEXT_ONLY,
    name="GLM-4, text",
    model_types=("glm4",),
    post_attn=("post_self_attn_layernorm",),
    post_mlp=("post_mlp_layernorm",),
    quirks=("sandwich norms",),
)

OLMO2 = replace(
    TEXT_ONLY,
    name="OLMo 2 and 3",
    model_types=("olmo2", "olmo3"),
    # Blocks read the stream itself; the norms stand behind them.
    mid_norm=("mlp",),
    post_attn=("post_attention_layernorm",),
    post_mlp=("post_feedforward_layernorm",),
    quirks=("norms behind blocks only",),
)

COHERE = replace(
    TEXT_ONLY,
    name="Cohere, text",
    model_types=("cohere", "cohere2"),
    mid_norm=(),
    quirks=("parallel blocks", "scaled logits"),
)

GRANITE = replace(
    TEXT_ONLY,
    name="Granite, text",
    model_types=("granite",),
    residual_multiplier="residual_multiplier",
    quirks=("residual multiplier", "scaled logits"),
)

QWEN3_5 = replace(
    TEXT_ONLY,
    name="Qwen3.5 and Qwen3-Next, text",
    model_types=("qwen3_5_text", "qwen3_5_moe_text", "qwen3_next"),
    attn=("self_attn", "linear_attn"),
    out_proj=("self_attn.o_proj", "linear_attn.out_proj"),
    quirks=("linear attention",),
)

FAMILIES: tuple[Family, ...] = (GEMMA, GLM4, OLMO2, COHERE, GRANITE, QWEN3_5)
