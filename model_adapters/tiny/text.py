"""Text-only decoders."""

from typing import Any

from model_adapters.tiny.build import Builder, made, rope, text


def _decoder(name: str, *, of: str = "", tied: bool = False, **changes: Any) -> Builder:
    """Of the class `name`; its config's name where that is another."""
    sizes = text(intermediate_size=64, tie_word_embeddings=tied, **changes)
    return made(of or name, f"{name}ForCausalLM", **sizes)


TINY: dict[str, Builder] = {
    "qwen2": _decoder("Qwen2"),
    "llama": _decoder("Llama", tied=True),
    "gemma2": _decoder("Gemma2", tied=True, query_pre_attn_scalar=8, final_logit_softcapping=3.0),
    "gemma3_text": _decoder("Gemma3", of="Gemma3Text", tied=True, query_pre_attn_scalar=8),
    "glm4": _decoder("Glm4"),
    "olmo2": _decoder("Olmo2"),
    "cohere2": _decoder("Cohere2", tied=True, logit_scale=0.25),
    "granite": _decoder("Granite", residual_multiplier=0.5, logits_scaling=4.0),
    "qwen3_5_text": _decoder(
        "Qwen3_5",
        of="Qwen3_5Text",
        num_hidden_layers=4,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
    ),
    "mixtral": _decoder("Mixtral", num_local_experts=4),
    "phi3": _decoder("Phi3", rope_parameters=rope()),
}
