"""What the builders of tiny models share: token ids, sizes of the parts, random weights."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Builder = Callable[[], nn.Module]
Options = dict[str, Any]
"""Of a config."""

SPREAD = 0.15
"""Standard deviation of the weights: large enough for every block to matter."""

IMAGE, VIDEO, AUDIO, OPENS, CLOSES, AUDIO_OPENS, AUDIO_CLOSES = range(100, 107)
VISION_IDS: Options = {
    "image_token_id": IMAGE,
    "video_token_id": VIDEO,
    "vision_start_token_id": OPENS,
    "vision_end_token_id": CLOSES,
}


def text(model_type: str | None = None, **changes: Any) -> Options:
    """A decoder of width 32, three layers deep; its type where the model takes several."""
    sizes = {
        "vocab_size": 120,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 512,
        "pad_token_id": 0,
        "bos_token_id": None,
        "eos_token_id": None,
        "tie_word_embeddings": False,
    }
    return _part(model_type, sizes, changes)


def vision(model_type: str | None = None, **changes: Any) -> Options:
    """An encoder of 16 by 16 pixels in patches of 4."""
    sizes = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 16,
        "patch_size": 4,
    }
    return _part(model_type, sizes, changes)


def patches(model_type: str | None = None, **changes: Any) -> Options:
    """An encoder of packed patches, as Qwen names its sizes."""
    sizes = {
        "depth": 2,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_heads": 2,
        "patch_size": 4,
        "out_hidden_size": 32,
    }
    return _part(model_type, sizes, changes)


def sounds(**changes: Any) -> Options:
    """An encoder of sounds, as Qwen names its sizes."""
    sizes = {
        "num_mel_bins": 8,
        "encoder_layers": 2,
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": 24,
        "d_model": 16,
        "n_window": 50,
        "output_dim": 32,
    }
    return _part(None, sizes, changes)


def experts(**changes: Any) -> Options:
    """Four experts in each layer, two of them for each token."""
    sizes = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    return {**sizes, **changes}


def rope(**changes: Any) -> Options:
    """Rotary positions."""
    return {"rope_type": "default", "rope_theta": 10000.0, **changes}


def sliding(*layers: int, of: int = 3) -> Options:
    """Layers with a window of six positions, all but the full ones that are named."""
    kinds = ["full_attention" if i in layers else "sliding_attention" for i in range(of)]
    return {"layer_types": kinds, "sliding_window": 6}


GRANITE: Options = {
    "embedding_multiplier": 3.0,
    "residual_multiplier": 0.5,
    "attention_multiplier": 0.3,
    "logits_scaling": 2.0,
}
"""All the factors that Granite knows."""


def model(
    name: str,
    text_config: Options,
    vision_config: Options | None = None,
    audio_config: Options | None = None,
    *,
    tied: bool = False,
    **more: Any,
) -> Builder:
    """Of the conditional-generation model `name` of transformers.

    Args:
        name: of its classes, without their endings.
        text_config: of the decoder.
        vision_config: of the encoder of pictures.
        audio_config: of the encoder of sounds.
        tied: whether the head is tied to the embedding.
        more: of the config.
    """
    if tied:
        text_config = {**text_config, "tie_word_embeddings": True}
        more = {**more, "tie_word_embeddings": True}
    towers = {"vision_config": vision_config, "audio_config": audio_config}
    given = {key: tower for key, tower in towers.items() if tower is not None}
    return made(name, f"{name}ForConditionalGeneration", text_config=text_config, **given, **more)


def made(config: str, model: str, /, **parts: Any) -> Builder:
    """Of the class `model` of transformers, with `config` (without its ending) of these parts."""

    def build() -> nn.Module:
        import transformers

        # Configs write into what they are given.
        built = getattr(transformers, f"{config}Config")(**copy.deepcopy(parts))
        return randomised(lambda: getattr(transformers, model)(built))

    return build


def randomised(make: Callable[[], Any]) -> nn.Module:
    """The model that `make` gives, in evaluation mode and float32, with nothing left at its
    neutral start: norms and biases get noise too. The same weights at every call; the random
    numbers of the caller are untouched.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model: nn.Module = make().float().eval()
        for name, parameter in model.named_parameters():
            if name.endswith("A_log"):
                # Linear attention that forgets at once has states too small to compare.
                parameter.uniform_(-2, 0)
            elif parameter.ndim < 2 or parameter.min() == parameter.max():
                _perturb(parameter)
        for name, buffer in model.named_buffers():
            if name.endswith(_TRAINED):
                _perturb(buffer)
    return model


_TRAINED = ("e_score_correction_bias", "layer_scalar", "std_bias", "std_scale")
"""Buffers that come with trained weights."""


def _perturb(value: Tensor) -> None:
    value.add_(torch.randn_like(value), alpha=0.1)


def _part(model_type: str | None, sizes: Options, changes: Options) -> Options:
    kind = {} if model_type is None else {"model_type": model_type}
    return {**kind, **sizes, "initializer_range": SPREAD, **changes}
