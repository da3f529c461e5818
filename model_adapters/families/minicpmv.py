"""MiniCPM-V, as far as transformers itself has it."""

from dataclasses import replace

from model_adapters.families import text
from model_adapters.families.family import Family
from model_adapters.families.forms_patches import Strip
from model_adapters.families.measures import patch
from model_adapters.families.qwen import TYPES

_IMAGES = Strip(
    kind="image",
    tower="model.vision_tower",
    features="model.merger",
    token="image_token_id",
    values="pixel_values",
    sizes="target_sizes",
    patch=patch,
)

_VIDEOS = replace(
    _IMAGES,
    kind="video",
    token="video_token_id",
    values="pixel_values_videos",
    sizes="target_sizes_videos",
)

MINICPMV4_6 = replace(
    text.QWEN3_5,
    name="MiniCPM-V 4.6",
    model_types=("minicpmv4_6",),
    media=(_IMAGES, _VIDEOS),
)

MINICPMV4_7 = replace(
    MINICPMV4_6,
    name="MiniCPM-V 4.7",
    model_types=("minicpmv4_7",),
    media=tuple(
        replace(medium, opens="image_start_id", closes="image_end_id")
        for medium in (_IMAGES, _VIDEOS)
    ),
    token_types=TYPES,
    control_tokens=(
        "image_start_id",
        "image_end_id",
        "slice_start_id",
        "slice_end_id",
    ),
)

MINICPM_OCR = replace(
    MINICPMV4_6,
    name="MiniCPM-OCR",
    model_types=("minicpm_ocr",),
    quirks=(*MINICPMV4_6.quirks, "tied head"),
)

FAMILIES: tuple[Family, ...] = (MINICPMV4_6, MINICPMV4_7, MINICPM_OCR)
