"""Models that take pictures, or tiles of pictures, of one size."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn

from model_adapters.families.family import Family, TokenTypes
from model_adapters.families.forms_clips import Clips, Tiles
from model_adapters.families.forms_pictures import Mapped, Pictures, Twofold
from model_adapters.families.measures import cells, patches, shrunk, side, squared
from model_adapters.families.medium import Config, Inputs, like
from model_adapters.families.text import COHERE, GEMMA


def llava_positions(config: Config) -> int:
    """Every patch, and CLIP's class token unless it is dropped."""
    class_token = config.vision_config.model_type == "clip_vision_model"
    dropped = config.vision_feature_select_strategy == "default"
    return patches(config) ** 2 + class_token - dropped


def _strided(config: Config) -> int:
    """Patches side by side, the last ones filled up."""
    stride = int(config.vision_config.hidden_stride)
    return (patches(config) + stride - 1) // stride


@dataclass(frozen=True, kw_only=True)
class Words(Pictures):
    """Pictures as mixtures of a visual vocabulary, whose table makes indicator tokens too."""

    def vectors(self, outputs: Sequence[Tensor], module: nn.Module, inputs: Inputs) -> Tensor:
        """Of the table's first call; the second one is for the indicators."""
        return super().vectors(outputs[:1], module, inputs)


IMAGE = Pictures(
    kind="image",
    tower="model.vision_tower",
    features="model.multi_modal_projector",
    token="image_token_id",
    values="pixel_values",
    side=side,
    positions=squared(patches),
)
VIDEO = Clips(
    kind="video",
    tower=IMAGE.tower,
    features=IMAGE.features,
    token="video_token_id",
    values="pixel_values_videos",
    side=side,
    cells=cells(patches),
)

LLAVA = Family(
    name="LLaVA",
    model_types=("llava",),
    media=(replace(IMAGE, positions=llava_positions),),
)

VIP_LLAVA = Family(name="ViP-LLaVA", model_types=("vipllava",), media=(IMAGE,))

VIDEO_LLAVA = Family(
    name="Video-LLaVA",
    model_types=("video_llava",),
    media=(
        replace(IMAGE, tower="model.image_tower", positions=llava_positions),
        replace(VIDEO, tower="model.video_tower", class_token=True),
    ),
)

INTERN_VL = Family(
    name="InternVL",
    model_types=("internvl",),
    media=(replace(IMAGE, positions=squared(lambda c: patches(c) * c.downsample_ratio)),),
)

GEMMA3 = replace(
    GEMMA,
    name="Gemma 3",
    model_types=("gemma3",),
    media=(
        replace(
            IMAGE,
            positions=lambda config: int(config.mm_tokens_per_image),
            opens="boi_token_id",
            closes="eoi_token_id",
        ),
    ),
    token_types=TokenTypes("token_type_ids", {"image": 1}),
    quirks=(*GEMMA.quirks, "bidirectional attention in images", "tied head"),
)

PALIGEMMA = Family(
    name="PaliGemma",
    model_types=("paligemma",),
    media=(IMAGE,),
    # Whatever stands in the prefix, words too, attends in both directions: type 0. Without types,
    # transformers does so too where nothing is padded, and looks back only where something is.
    token_types=TokenTypes("token_type_ids", {"image": 0}, always=True),
    quirks=("bidirectional attention in prefixes", "tied head"),
)

PALIGEMMA2 = replace(
    GEMMA,
    name="PaliGemma 2",
    model_types=PALIGEMMA.model_types,
    where={"text_config.model_type": "gemma2"},
    media=PALIGEMMA.media,
    token_types=PALIGEMMA.token_types,
    quirks=(*GEMMA.quirks, *PALIGEMMA.quirks, "soft-capped logits"),
)

LLAMA4 = Family(
    name="Llama 4",
    model_types=("llama4",),
    media=(
        replace(
            IMAGE,
            tower="vision_model",
            features="multi_modal_projector",
            positions=squared(lambda c: patches(c) * c.vision_config.pixel_shuffle_ratio),
            opens="boi_token_id",
            closes="eoi_token_id",
        ),
    ),
    mlp=("feed_forward",),
    flat_mlp=True,
    quirks=("mixture of experts", "chunked attention"),
)

AYA_VISION = replace(
    COHERE,
    name="Aya Vision",
    model_types=("aya_vision",),
    media=(replace(IMAGE, positions=squared(shrunk("downsample_factor"))),),
    quirks=("parallel blocks", "tied head"),
)

COHERE2_VISION = replace(AYA_VISION, name="Command A Vision", model_types=("cohere2_vision",))

JANUS = Family(
    name="Janus",
    model_types=("janus",),
    media=(replace(IMAGE, tower="model.vision_model", features="model.aligner"),),
    quirks=("tied head",),
)

DEEPSEEK_VL = replace(JANUS, name="DeepSeek-VL", model_types=("deepseek_vl",))

DEEPSEEK_VL_HYBRID = replace(
    DEEPSEEK_VL,
    name="DeepSeek-VL hybrid",
    model_types=("deepseek_vl_hybrid",),
    media=(
        like(
            Twofold,
            DEEPSEEK_VL.media[0],
            second="high_res_pixel_values",
            second_side=lambda config: int(config.high_res_vision_config.image_size),
        ),
    ),
    quirks=("two encoders", *DEEPSEEK_VL.quirks),
)

GOT_OCR2 = Family(
    name="GOT-OCR 2",
    model_types=("got_ocr2",),
    # Two convolutions of stride two behind the encoder.
    media=(replace(IMAGE, positions=squared(lambda config: (patches(config) + 3) // 4)),),
    quirks=("tied head",),
)

OVIS2 = Family(
    name="Ovis 2",
    model_types=("ovis2",),
    media=(
        like(Words, IMAGE, features="model.visual_embeddings_table", positions=squared(_strided)),
    ),
    quirks=("visual vocabulary", "tied head"),
)

FAST_VLM = Family(
    name="FastVLM",
    model_types=("fast_vlm",),
    media=(like(Mapped, IMAGE, stride=64),),
    unverified={"image": "its encoder comes from timm; checked with a ResNet in its place"},
)


def _tile(config: Config) -> int:
    return int(config.vision_config.model_args["img_size"][0])


def _pooled(config: Config) -> tuple[int, int]:
    rows, cols = config.vision_config.model_args["ref_feat_shape"]
    return rows // config.projector_pooling_ratio, cols // config.projector_pooling_ratio


PERCEPTION_LM = Family(
    name="Perception LM",
    model_types=("perception_lm",),
    media=(
        like(Tiles, IMAGE, side=_tile, cells=_pooled),
        replace(VIDEO, side=_tile, cells=_pooled),
    ),
    unverified={
        kind: "its encoder comes from timm; checked with a ViT in its place"
        for kind in ("image", "video")
    },
)

FAMILIES: tuple[Family, ...] = (
    LLAVA,
    VIP_LLAVA,
    VIDEO_LLAVA,
    INTERN_VL,
    GEMMA3,
    PALIGEMMA2,
    PALIGEMMA,
    LLAMA4,
    AYA_VISION,
    COHERE2_VISION,
    JANUS,
    DEEPSEEK_VL,
    DEEPSEEK_VL_HYBRID,
    GOT_OCR2,
    OVIS2,
    FAST_VLM,
    PERCEPTION_LM,
)
