"""Models that take pictures of any size or shape, and LLaVA's for videos."""

from dataclasses import replace
from typing import Any

from torch import Tensor

from model_adapters.families.family import Family
from model_adapters.families.forms_anyres import AnyRes, Layered
from model_adapters.families.forms_clips import Padded, PooledClips
from model_adapters.families.forms_patches import Shaped
from model_adapters.families.forms_pictures import Queried, Sized
from model_adapters.families.measures import cells, patch, patch_values, patches, shrunk
from model_adapters.families.medium import like
from model_adapters.families.pictures import IMAGE, VIDEO
from model_adapters.families.qwen import CONTROL, IMAGES, VIDEOS_IN_RUNS
from model_adapters.families.text import GRANITE

_ROW_BREAK, _END = 12, 13
"""In all of Mistral's vocabularies that know pictures."""

_SIZED = like(
    Sized,
    IMAGE,
    sizes="image_sizes",
    cell=lambda config: patch(config) * int(getattr(config, "spatial_merge_size", 1)),
)

PIXTRAL = Family(
    name="Pixtral",
    model_types=("llava",),
    where={"vision_config.model_type": "pixtral"},
    media=(replace(_SIZED, row_break=_ROW_BREAK, closes=_END),),
    quirks=("row breaks",),
)

MISTRAL3 = replace(PIXTRAL, name="Mistral 3", model_types=("mistral3",), where={})

LIGHT_ON_OCR = Family(
    name="LightOnOCR",
    model_types=("lighton_ocr",),
    media=(replace(_SIZED, tower="model.vision_encoder", features="model.vision_projection"),),
    quirks=("tied head",),
)

_TILED = like(AnyRes, IMAGE, sizes="image_sizes")

LLAVA_NEXT = Family(
    name="LLaVA-NeXT",
    model_types=("llava_next",),
    media=(_TILED,),
    quirks=("learned newlines",),
)

LLAVA_NEXT_VIDEO = replace(
    LLAVA_NEXT,
    name="LLaVA-NeXT-Video",
    model_types=("llava_next_video",),
    media=(_TILED, replace(VIDEO, cells=cells(shrunk("spatial_pool_stride")))),
)


def _apply_pooling(core: Any, frames: Tensor) -> Tensor:
    pooled: Tensor = core.apply_pooling(frames)
    return pooled


LLAVA_ONEVISION = replace(
    LLAVA_NEXT,
    name="LLaVA-OneVision",
    model_types=("llava_onevision",),
    media=(
        replace(_TILED, counts="batch_num_images"),
        like(
            PooledClips,
            VIDEO,
            cells=cells(lambda config: (patches(config) + 1) // 2),
            pooled=_apply_pooling,
        ),
    ),
)

GRANITE4_VISION = replace(
    GRANITE,
    name="Granite 4 Vision",
    model_types=("granite4_vision",),
    media=(like(Layered, _TILED, features="model.vision_tower"),),
    adds_between_layers=True,
    quirks=("DeepStack", *LLAVA_NEXT.quirks, *GRANITE.quirks),
)

_PADDED = like(
    Padded,
    IMAGE,
    tower="model.vision_model",
    features="model.connector",
    mask="pixel_attention_mask",
)

IDEFICS3 = Family(
    name="Idefics 3",
    model_types=("idefics3",),
    media=(replace(_PADDED, cells=cells(shrunk("scale_factor"))),),
)

SMOL_VLM = replace(IDEFICS3, name="SmolVLM", model_types=("smolvlm",))

IDEFICS2 = Family(
    name="Idefics 2",
    model_types=("idefics2",),
    media=(
        replace(_PADDED, positions=lambda config: int(config.perceiver_config.resampler_n_latents)),
    ),
    quirks=("latents read by a resampler",),
)

LFM2_VL = Family(
    name="LFM2-VL",
    model_types=("lfm2_vl",),
    media=(
        like(
            Shaped,
            IMAGE,
            shapes="spatial_shapes",
            mask="pixel_attention_mask",
            merge=lambda config: int(config.downsample_factor),
            width=patch_values,
        ),
    ),
    attn=("self_attn", "conv"),
    out_proj=("self_attn.out_proj", "conv.out_proj"),
    mlp=("feed_forward",),
    mid_norm=("ffn_norm",),
    quirks=("convolutions in place of attention", "tied head"),
)

LFM3_VL = replace(
    LFM2_VL,
    name="LFM3-VL",
    model_types=("lfm3_vl",),
    media=tuple(
        replace(medium, tower=IMAGE.tower, features=IMAGE.features)
        for medium in (IMAGES, VIDEOS_IN_RUNS)
    ),
    out_proj=("self_attn.o_proj", "conv.out_proj"),
    post_attn=("post_operator_norm",),
    post_mlp=("post_ffn_norm",),
    control_tokens=CONTROL,
    quirks=("sandwich norms", *LFM2_VL.quirks),
)

ARIA = Family(
    name="Aria",
    model_types=("aria",),
    media=(
        like(
            Queried,
            IMAGE,
            mask="pixel_mask",
            patch=patch,
            queries=lambda config: dict(config.projector_patch_to_query_dict),
        ),
    ),
    quirks=("mixture of experts", "latents read by a resampler"),
)

FAMILIES: tuple[Family, ...] = (
    PIXTRAL,
    MISTRAL3,
    LIGHT_ON_OCR,
    LLAVA_NEXT,
    LLAVA_NEXT_VIDEO,
    LLAVA_ONEVISION,
    GRANITE4_VISION,
    IDEFICS3,
    SMOL_VLM,
    IDEFICS2,
    LFM2_VL,
    LFM3_VL,
    ARIA,
)
