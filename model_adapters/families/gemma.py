"""Gemma 3n and Gemma 4."""

from dataclasses import replace

import torch

from model_adapters.families.audio import SOUND
from model_adapters.families.family import Family, TokenTypes
from model_adapters.families.forms_audio import Fixed
from model_adapters.families.forms_patches import Placed
from model_adapters.families.gemma3n_tower import without_missing_tower
from model_adapters.families.measures import Counts, each_frame, halved, patch_values
from model_adapters.families.medium import Config, Medium, like
from model_adapters.families.text import GEMMA


def _quartered(config: Config, frames: Counts) -> Counts:
    return halved(halved(frames))


_PICTURE = Placed(
    kind="image",
    tower="model.vision_tower",
    features="model.embed_vision",
    token="image_token_id",
    values="pixel_values",
    places="image_position_ids",
    merge=lambda config: int(config.vision_config.pooling_kernel_size),
    width=patch_values,
    opens="boi_token_id",
    closes="eoi_token_id",
)
_SOUND = replace(
    SOUND,
    features="model.embed_audio",
    boolean=True,
    frames_first=True,
    positions=_quartered,
    # The encoder's two convolutions are fixed; a frame has as many values as fill its projection.
    width=lambda config: int(config.audio_config.subsampling_conv_channels[0]),
    lengths=(16, 27),
    opens="boa_token_id",
    closes="eoa_token_index",
)


def _and_video(picture: Placed) -> tuple[Medium, Medium]:
    """Pictures, and videos made of such pictures."""
    video = replace(
        picture,
        kind="video",
        token="video_token_id",
        values="pixel_values_videos",
        places="video_position_ids",
        counts="num_frames_per_video",
    )
    return picture, video


_CONTROL = ("boi_token_id", "eoi_token_id", "boa_token_id")

GEMMA4 = replace(
    GEMMA,
    name="Gemma 4",
    model_types=("gemma4",),
    where={"text_config.enable_moe_block": False},
    media=(*_and_video(_PICTURE), _SOUND),
    token_types=TokenTypes("mm_token_type_ids", {"image": 1, "video": 2, "audio": 3}),
    then_adds=("post_per_layer_input_norm",),
    layer_scalar="layer_scalar",
    short_prefill=True,
    control_tokens=(*_CONTROL, "eoa_token_index"),
    quirks=(
        "sandwich norms",
        "per-layer inputs",
        "layer scalar",
        "shared keys and values",
        "soft-capped logits",
        "tied head",
    ),
)
GEMMA4_MOE = replace(
    GEMMA4,
    name="Gemma 4 with experts",
    where={"text_config.enable_moe_block": True},
    media=_and_video(_PICTURE),
    quirks=(
        "sandwich norms",
        "mixture of experts",
        "layer scalar",
        "bidirectional attention in images",
        "soft-capped logits",
        "tied head",
    ),
)


def _merged_patch(config: Config) -> int:
    return 3 * int(config.vision_config.model_patch_size) ** 2


_UNIFIED_PICTURE = replace(
    _PICTURE,
    tower="model.embed_vision",
    features="model.embed_vision.multimodal_embedder",
    merge=lambda config: 1,
    width=_merged_patch,
)
GEMMA4_UNIFIED = replace(
    GEMMA4,
    name="Gemma 4 without towers",
    model_types=("gemma4_unified",),
    where={},
    media=(
        *_and_video(_UNIFIED_PICTURE),
        replace(
            _SOUND,
            tower="model.embed_audio",
            positions=each_frame,
            width=lambda config: int(config.audio_config.audio_embed_dim),
            lengths=(3, 5),
        ),
    ),
    quirks=(
        "sandwich norms",
        "layer scalar",
        "bidirectional attention in images",
        "soft-capped logits",
        "tied head",
    ),
)


def _time_stride(config: Config) -> int:
    audio = config.audio_config
    (first, _), (second, _) = audio.sscp_conv_stride_size
    return int(first * second * audio.conf_reduction_factor)


GEMMA3N = replace(
    GEMMA,
    name="Gemma 3n",
    model_types=("gemma3n",),
    media=(
        like(
            Fixed,
            _SOUND,
            positions=lambda config, frames: torch.full_like(
                frames, config.audio_soft_tokens_per_image
            ),
            width=lambda config: int(config.audio_config.input_feat_size),
            # Norms over time see what was filled up.
            pads=False,
            lengths=(29, 18),
            subsampling=_time_stride,
            closes="eoa_token_id",
        ),
    ),
    altup=True,
    building=without_missing_tower,
    control_tokens=(*_CONTROL, "eoa_token_id"),
    quirks=(
        "AltUp",
        "sandwich norms",
        "per-layer inputs",
        "shared keys and values",
        "soft-capped logits",
        "encoder hears padding",
        "tied head",
    ),
    unverified={
        "image": "its vision tower comes from timm: left out where timm is not installed, loaded "
        "but not checked where it is"
    },
)

GEMMA4_TEXT = replace(
    GEMMA4,
    name="Gemma 4, text",
    model_types=("gemma4_text", "gemma4_unified_text"),
    where={},
    media=(),
    token_types=None,
    control_tokens=(),
)
GEMMA3N_TEXT = replace(
    GEMMA3N,
    name="Gemma 3n, text",
    model_types=("gemma3n_text",),
    media=(),
    control_tokens=(),
    quirks=tuple(quirk for quirk in GEMMA3N.quirks if quirk != "encoder hears padding"),
    unverified={},
)

FAMILIES: tuple[Family, ...] = (
    GEMMA3N,
    GEMMA4,
    GEMMA4_MOE,
    GEMMA4_UNIFIED,
    GEMMA4_TEXT,
    GEMMA3N_TEXT,
)
