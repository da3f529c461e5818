"""Qwen's vision-language and omni models."""

from dataclasses import replace

from model_adapters.families import text
from model_adapters.families.audio import SOUND
from model_adapters.families.family import Family, Part, TokenTypes
from model_adapters.families.forms_grid import Grid
from model_adapters.families.measures import of_chunks
from model_adapters.families.medium import Config


def _patch_values(config: Config) -> int:
    """Of two frames, which an image has too."""
    vision = config.vision_config
    return int(vision.in_channels * vision.temporal_patch_size * vision.patch_size**2)


IMAGES = Grid(
    kind="image",
    tower="model.visual",
    # Not its merger: towers with windows put the merged patches into order only after it.
    features="model.visual",
    token="image_token_id",
    values="pixel_values",
    grid="image_grid_thw",
    merge=lambda config: int(config.vision_config.spatial_merge_size),
    width=_patch_values,
    opens="vision_start_token_id",
    closes="vision_end_token_id",
)

VIDEOS = replace(
    IMAGES,
    kind="video",
    token="video_token_id",
    values="pixel_values_videos",
    grid="video_grid_thw",
)

VIDEOS_IN_RUNS = replace(VIDEOS, apart=True)

TYPES = TokenTypes("mm_token_type_ids", {"image": 1, "video": 2})

CONTROL = ("vision_start_token_id", "vision_end_token_id")

_OMNI_IMAGES = replace(IMAGES, closes=None, counts_opens=True)
_OMNI_SOUNDS = replace(
    SOUND,
    features="model.audio_tower.proj",
    mask="feature_attention_mask",
    opens="audio_start_token_id",
    counts_opens=True,
    lengths=(12, 25),
)
_OMNI_VIDEOS = replace(
    VIDEOS,
    closes=None,
    counts_opens=True,
    extras=("video_second_per_grid",),
    needs_extras=True,
)


def _thinker(whole: str, prefix: str) -> tuple[tuple[str, Part], ...]:
    """The part of a checkpoint of type `whole`, whose classes in transformers begin so."""
    model = f"{prefix}ThinkerForConditionalGeneration"
    return ((whole, Part(config="thinker_config", model=model, attribute="thinker")),)


QWEN2_5_OMNI = Family(
    name="Qwen2.5-Omni",
    model_types=("qwen2_5_omni_thinker",),
    media=(_OMNI_IMAGES, _OMNI_SOUNDS, _OMNI_VIDEOS),
    control_tokens=("vision_start_token_id", "audio_start_token_id", "audio_end_token_id"),
    parts=_thinker("qwen2_5_omni", "Qwen2_5Omni"),
)

QWEN3_OMNI = replace(
    QWEN2_5_OMNI,
    name="Qwen3-Omni",
    model_types=("qwen3_omni_moe_thinker",),
    media=(
        _OMNI_IMAGES,
        replace(
            _OMNI_SOUNDS,
            features="model.audio_tower",
            positions=of_chunks,
            # In shorter ones the convolutions see how far the batch was padded.
            lengths=(104, 213),
        ),
        _OMNI_VIDEOS,
    ),
    adds_between_layers=True,
    parts=_thinker("qwen3_omni_moe", "Qwen3OmniMoe"),
    quirks=("DeepStack", "mixture of experts", "audio under a second depends on its batch"),
)

QWEN2_VL = Family(
    name="Qwen2-VL",
    model_types=("qwen2_vl",),
    media=(IMAGES, VIDEOS),
    token_types=TYPES,
    control_tokens=CONTROL,
)

QWEN2_5_VL = replace(
    QWEN2_VL,
    name="Qwen2.5-VL",
    model_types=("qwen2_5_vl",),
    media=(IMAGES, replace(VIDEOS, extras=("second_per_grid_ts",))),
)

QWEN3_VL = replace(
    QWEN2_VL,
    name="Qwen3-VL",
    model_types=("qwen3_vl",),
    media=(IMAGES, VIDEOS_IN_RUNS),
    adds_between_layers=True,
    quirks=("DeepStack",),
)

QWEN3_VL_MOE = replace(
    QWEN3_VL,
    name="Qwen3-VL-MoE",
    model_types=("qwen3_vl_moe",),
    quirks=(*QWEN3_VL.quirks, "mixture of experts"),
)

QWEN3_5 = replace(
    text.QWEN3_5,
    name="Qwen3.5",
    model_types=("qwen3_5",),
    media=(IMAGES, VIDEOS_IN_RUNS),
    token_types=TYPES,
    control_tokens=CONTROL,
)

QWEN3_5_MOE = replace(
    QWEN3_5,
    name="Qwen3.5-MoE",
    model_types=("qwen3_5_moe",),
    quirks=(*QWEN3_5.quirks, "mixture of experts"),
)

FAMILIES: tuple[Family, ...] = (
    QWEN2_5_OMNI,
    QWEN3_OMNI,
    QWEN2_VL,
    QWEN2_5_VL,
    QWEN3_VL,
    QWEN3_VL_MOE,
    QWEN3_5,
    QWEN3_5_MOE,
)
