"""What differs between model families, as data.

A family states only its difference from the defaults of `Family`; everything else about a model
(where its layers, norm and head are, how many heads) is discovered from the model itself.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Int
from torch import Tensor

from model_adapters.errors import LoadError

Kind = Literal["image", "audio", "video"]
Config = Any  # a transformers configuration; its class differs from family to family


@dataclass(frozen=True)
class Grid:
    """Images or videos given as flattened patches, packed over the batch on their first axis."""

    kind: Kind
    tower: str
    """Path of the encoder inside the model."""
    token: str
    """Attribute of the model's config with the id of this medium's placeholder token."""
    values: str
    """Input name of the patches, `[patches, values]`."""
    grid: str
    """Input name of the grids, `[items, 3]`: time, rows, columns in patches."""
    merge: Callable[[Config], int]
    """How many patches on a side one prompt position stands for."""
    width: Callable[[Config], int]
    """Values of one patch."""
    opens: str | None = None
    """Config attribute of the token that must stand before an item."""
    extras: tuple[str, ...] = ()
    """Further inputs with one entry an item."""


@dataclass(frozen=True)
class Frames:
    """Audio given as padded feature frames, one item a row."""

    kind: Kind
    tower: str
    token: str
    values: str
    """Input name of the features, `[items, features, frames]`."""
    mask: str
    """Input name of their mask, `[items, frames]`."""
    positions: Callable[[Int[Tensor, "items"]], Int[Tensor, "items"]]
    """How many prompt positions items of so many frames take."""
    width: Callable[[Config], int]
    """Values of one frame."""
    opens: str | None = None
    """Config attribute of the token that must stand before an item."""


Medium = Grid | Frames


@dataclass(frozen=True)
class Part:
    """The language part of a checkpoint that also holds other models (a talker, a vocoder)."""

    config: str
    """Attribute of the full config with the config of the part."""
    model: str
    """Class of the part in `transformers`."""
    attribute: str
    """Attribute of the full model with the part."""


@dataclass(frozen=True)
class Family:
    """Where a family keeps the parts of a decoder layer, and the media it takes."""

    name: str
    model_types: tuple[str, ...]
    """`config.model_type` of the models that this entry serves."""
    media: tuple[Medium, ...] = ()
    attn: str = "self_attn"
    """Attention block, as a path inside a decoder layer. So are the next three."""
    out_proj: str = "self_attn.o_proj"
    """The linear map whose input is the heads' outputs side by side."""
    mlp: str = "mlp"
    mid_norm: str = "post_attention_layernorm"
    """The norm whose input is the residual stream between attention and MLP."""
    adds_between_layers: bool = False
    """Whether the model itself adds features to the stream between layers (DeepStack)."""
    control_tokens: tuple[str, ...] = ()
    """Config attributes with ids of control tokens, for models loaded without a tokenizer."""
    parts: tuple[tuple[str, Part], ...] = ()
    """`model_type` of larger checkpoints whose language part this family is, and that part."""


def _qwen_merge(config: Config) -> int:
    return int(config.vision_config.spatial_merge_size)


def _qwen_patch(config: Config) -> int:
    vision = config.vision_config
    return int(vision.in_channels * vision.temporal_patch_size * vision.patch_size**2)


def _mel_bins(config: Config) -> int:
    return int(config.audio_config.num_mel_bins)


def _two_halvings(frames: Int[Tensor, "items"]) -> Int[Tensor, "items"]:
    """A convolution and a pooling, each of stride two; fewer than three frames give nothing."""
    halved = torch.div(frames - 1, 2, rounding_mode="floor") + 1
    return (torch.div(halved - 2, 2, rounding_mode="floor") + 1).clamp(min=0)


QWEN2_5_OMNI = Family(
    name="Qwen2.5-Omni Thinker",
    model_types=("qwen2_5_omni_thinker",),
    media=(
        Grid(
            kind="image",
            tower="model.visual",
            token="image_token_id",
            values="pixel_values",
            grid="image_grid_thw",
            merge=_qwen_merge,
            width=_qwen_patch,
            opens="vision_start_token_id",
        ),
        Frames(
            kind="audio",
            tower="model.audio_tower",
            token="audio_token_id",
            values="input_features",
            mask="feature_attention_mask",
            positions=_two_halvings,
            width=_mel_bins,
            opens="audio_start_token_id",
        ),
        Grid(
            kind="video",
            tower="model.visual",
            token="video_token_id",
            values="pixel_values_videos",
            grid="video_grid_thw",
            merge=_qwen_merge,
            width=_qwen_patch,
            opens="vision_start_token_id",
            extras=("video_second_per_grid",),
        ),
    ),
    control_tokens=("vision_start_token_id", "audio_start_token_id", "audio_end_token_id"),
    parts=(
        (
            "qwen2_5_omni",
            Part(
                config="thinker_config",
                model="Qwen2_5OmniThinkerForConditionalGeneration",
                attribute="thinker",
            ),
        ),
    ),
)

FAMILIES: tuple[Family, ...] = (QWEN2_5_OMNI,)

TEXT_ONLY = Family(name="text-only decoder", model_types=())
"""Tried for any model without media; the self-check decides whether its layers really fit."""


def family_of(config: Config) -> Family:
    """The family of a model by its configuration.

    Raises:
        LoadError: for a model that takes media and has no entry here.
    """
    for family in FAMILIES:
        if config.model_type in family.model_types:
            return family
    towers = [name for name in ("vision_config", "audio_config") if hasattr(config, name)]
    if towers:
        known = sorted(name for family in FAMILIES for name in family.model_types)
        raise LoadError(
            f"no family for model_type {config.model_type!r} (its config has {' and '.join(towers)}"
            f"); known here: {', '.join(known)}, and text-only decoders. "
            "Add an entry to model_adapters/family.py."
        )
    return TEXT_ONLY


def part_of(model_type: str) -> Part | None:
    """The part to load of a checkpoint that holds more than a language model, or None."""
    for family in FAMILIES:
        for whole, part in family.parts:
            if whole == model_type:
                return part
    return None
