"""Tiny stand-ins for MiniCPM-o 2.6 and 4.5: width 128, four decoder layers, random weights."""

from collections.abc import Callable

from torch import nn

from model_adapters.tiny.build import randomised

SPREAD = 0.1
"""Standard deviation of the weights: large enough for every block to matter."""

PLACEHOLDER = 119


def minicpmo(
    version: str = "4.5", *, stream_input: bool = False, init_audio: bool = True
) -> nn.Module:
    """As the vendor's code makes it, nothing mended.

    Args:
        version: "2.6" or "4.5".
        stream_input: whether audio is read second by second.
        init_audio: whether there is an audio encoder.
    """
    from model_adapters.tiny.minicpmo_config import MiniCPMOConfig
    from model_adapters.tiny.minicpmo_model import MiniCPMO

    vision = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": 56,
        "patch_size": 14,
    }
    audio = {
        "d_model": 32,
        "encoder_layers": 2,
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": 128,
        "num_mel_bins": 80,
        "max_source_positions": 200,
    }
    config = MiniCPMOConfig(
        version=version,
        audio_pool_step=2 if version == "2.6" else 5,
        stream_input=stream_input,
        init_audio=init_audio,
        vision_config=vision,
        audio_config=audio,
        vocab_size=120,
        hidden_size=128,
        intermediate_size=192,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=512,
        initializer_range=SPREAD,
        # As it is written there when the tokenizer is at hand.
        regap_interp={"placeholder": PLACEHOLDER},
    )
    return randomised(lambda: MiniCPMO(config))


def minicpmo_2_6() -> nn.Module:
    """The earlier version."""
    return minicpmo("2.6")


TINY: dict[str, Callable[[], nn.Module]] = {"minicpmo": minicpmo, "minicpmo_2_6": minicpmo_2_6}
