"""Further models that pack patches as Qwen does."""

from dataclasses import replace

from model_adapters.families import glm, text
from model_adapters.families.family import Family
from model_adapters.families.forms_grid import OwnMerge
from model_adapters.families.measures import patch_values
from model_adapters.families.medium import like
from model_adapters.families.qwen import CONTROL, IMAGES, TYPES, VIDEOS

KIMI_K2_5 = Family(
    name="Kimi K2.5",
    model_types=("kimi_k25",),
    media=(
        replace(
            IMAGES,
            tower="model.vision_tower",
            features="model.mm_projector",
            merge=lambda config: int(config.vision_config.merge_kernel_size[0]),
            width=patch_values,
            channels=3,
        ),
    ),
    control_tokens=CONTROL,
    quirks=("latent attention", "mixture of experts"),
    unverified={
        "video": "transformers 5.23 pools the frames of a clip, and then splits by their number"
    },
)

PADDLEOCR_VL = Family(
    name="PaddleOCR-VL",
    model_types=("paddleocr_vl",),
    media=(replace(IMAGES, features="model.projector", width=patch_values, channels=3),),
    token_types=TYPES,
    control_tokens=CONTROL,
    quirks=("tied head",),
)

_MERGED = like(
    OwnMerge,
    IMAGES,
    tower="model.vision_model",
    features="model.projector",
    merge=lambda config: 1,
    width=patch_values,
    opens=None,
    closes=None,
    sizes="image_merge_sizes",
)

VIDEO_LLAMA_3 = Family(
    name="VideoLLaMA 3",
    model_types=("video_llama_3",),
    media=(
        _MERGED,
        replace(
            _MERGED,
            kind="video",
            token=VIDEOS.token,
            values=VIDEOS.values,
            grid=VIDEOS.grid,
            merge=lambda config: 2,
            sizes="video_merge_sizes",
            kept="video_compression_mask",
        ),
    ),
)

_IMAGES, _VIDEOS = (
    replace(
        medium,
        tower="model.vision_tower",
        features="model.resampler_model",
        width=patch_values,
        borders=None,
    )
    for medium in (glm.IMAGES, glm.VIDEOS)
)

ERNIE4_5_VL = Family(
    name="ERNIE 4.5 VL",
    model_types=("ernie4_5_vl_moe",),
    media=(_IMAGES, replace(_VIDEOS, token=VIDEOS.token, apart=False, paired=True)),
    token_types=replace(TYPES, wider="moe_mm_token_type_ids"),
    control_tokens=glm.CONTROL,
    quirks=("mixture of experts", "experts of their own for media", "tied head"),
)

EXAONE4_5 = replace(
    text.OLMO2,
    name="EXAONE 4.5",
    model_types=("exaone4_5",),
    media=tuple(replace(medium, opens=None, closes=None) for medium in (IMAGES, VIDEOS)),
)

FAMILIES: tuple[Family, ...] = (KIMI_K2_5, PADDLEOCR_VL, VIDEO_LLAMA_3, ERNIE4_5_VL, EXAONE4_5)
