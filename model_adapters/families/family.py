"""What differs between model families, as data.

A family states only its difference from the defaults of `Family`; everything else about a model
(where its layers, norm and head are, how many heads) is discovered from the model itself.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from model_adapters.errors import LoadError
from model_adapters.families.medium import Kind, Medium

Alternatives = tuple[str, ...]
"""Paths inside a decoder layer; the first that a layer has is meant."""

_PATHS = (
    "model_types",
    "norm",
    "attn",
    "out_proj",
    "mid_norm",
    "mlp",
    "post_attn",
    "post_mlp",
    "then_adds",
)


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
class TokenTypes:
    """An input that tells for every position what it holds; text is 0."""

    name: str
    """Of the input."""
    ids: Mapping[Kind, int]
    """What stands for each medium."""
    always: bool = False
    """Whether prompts without media need it too."""
    wider: str | None = None
    """A second such input, in which the tokens around an item count as the item (ERNIE)."""

    @property
    def names(self) -> tuple[str, ...]:
        """Of the one input, or of both."""
        return (self.name,) if self.wider is None else (self.name, self.wider)


@dataclass(frozen=True)
class Family:
    """Where a family keeps the parts of a decoder layer, and the media it takes."""

    name: str
    """As people know it; it stands in tables and errors."""
    model_types: tuple[str, ...]
    """`config.model_type` of the models that this entry serves."""
    where: Mapping[str, Any] = field(default_factory=dict)
    """Dotted config attributes and their values, where a `model_type` has several builds."""

    media: tuple[Medium, ...] = ()
    """What the model takes beside text."""
    alone: tuple[Kind, ...] = ()
    """Media that the model cannot take in one pass with others."""
    apart: bool = False
    """Whether requests with different media cannot share a batch."""
    token_types: TokenTypes | None = None
    """Needed by the model wherever there are media."""
    control_tokens: tuple[str, ...] = ()
    """Config attributes with ids of control tokens, for models loaded without a tokenizer."""

    norm: Alternatives = ("norm", "final_layernorm", "embedding_norm")
    """The last norm, as a path inside the decoder."""
    attn: Alternatives = ("self_attn",)
    """Attention block, as a path inside a decoder layer. So are the next ones."""
    out_proj: Alternatives = ("self_attn.o_proj",)
    """The linear map whose input is the heads' outputs side by side."""
    mid_norm: Alternatives = ("post_attention_layernorm",)
    """The norm whose input is the residual stream between attention and MLP; empty where both read
    the same stream, side by side."""
    mlp: Alternatives = ("mlp",)
    """The block that works on each position alone: an MLP, or experts."""
    flat_mlp: bool = False
    """Whether the MLP returns `[batch * position, d_model]`."""
    post_attn: Alternatives = ()
    """Norm behind the attention, where what it returns is added to the stream (sandwich norms)."""
    post_mlp: Alternatives = ()
    """Norm behind the MLP, likewise."""
    residual_multiplier: str | None = None
    """Attribute of the text config that multiplies what blocks return before it is added."""
    then_adds: Alternatives = ()
    """Module whose output is added to the stream after the MLP (per-layer inputs)."""
    layer_scalar: str | None = None
    """Buffer of a layer that multiplies the stream at its end."""
    adds_between_layers: bool = False
    """Whether the model itself adds features to the stream between layers (DeepStack)."""
    altup: bool = False
    """Whether layers pass on several streams, `[streams, batch, position, d_model]` (AltUp); sites
    are those of the active one, and the layers' additions are no plain sum."""
    short_prefill: bool = False
    """Whether the last layers, asked for the logits of some positions only, see no others (keys and
    values shared between layers)."""

    parts: tuple[tuple[str, Part], ...] = ()
    """`model_type` of larger checkpoints whose language part this family is, and that part."""
    entry: str = ""
    """Path of the module whose forward runs once in every pass; the model itself if empty."""
    request: Callable[[nn.Module], Mapping[str, Any] | None] | None = None
    """The inputs of the call of a model that is running, None outside of one; needed where `entry`
    is called with embeddings, which do not tell what they hold."""
    building: Callable[[], AbstractContextManager[None]] = nullcontext
    """Entered while a model of transformers is built and its weights are read."""
    importing: Callable[[], AbstractContextManager[None]] = nullcontext
    """Entered while foreign code is imported."""
    prepare_class: Callable[[type[nn.Module]], None] | None = None
    """Mends a class of foreign code before weights are loaded into it."""
    config_options: Mapping[str, Any] = field(default_factory=dict)
    """What to set in the config before foreign code builds the model."""
    prepare: Callable[[nn.Module, Any], None] | None = None
    """Brings a model made by foreign code into the shape that transformers models have; also gets
    the tokenizer, None if there is none. It may be called again."""

    quirks: tuple[str, ...] = ()
    """What is unusual, in the field's words."""
    unverified: Mapping[str, str] = field(default_factory=dict)
    """Media that the model takes and that could not be tried as they are, and why."""

    def __post_init__(self) -> None:
        """Refuse a single path where alternatives belong.

        Raises:
            LoadError: naming the field.
        """
        for name in _PATHS:
            given = getattr(self, name)
            if isinstance(given, str):
                raise LoadError(
                    f"Family {self.name!r}: {name} is a tuple of paths, of which the first that a "
                    f"layer has is meant; got a string, write ({given!r},)"
                )

    def medium(self, kind: Kind) -> Medium | None:
        """The medium of that kind, None where the family has none."""
        return next((medium for medium in self.media if medium.kind == kind), None)
