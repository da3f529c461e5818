"""Where a model keeps the parts that sites are made of, found from the model itself."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from model_adapters.errors import LoadError
from model_adapters.families import Family, Medium
from model_adapters.families.family import Alternatives


@dataclass(frozen=True)
class LayerLayout:
    """Paths inside one decoder layer, and its heads."""

    attn: str
    out_proj: str
    mlp: str
    mid_norm: str | None
    """None where attention and MLP read the same stream."""
    attn_out: str
    """The module whose output is what attention adds; the block itself without a norm behind."""
    mlp_out: str
    then_adds: str | None
    """A module whose output is added after the MLP."""
    n_heads: int
    d_head: int


@dataclass(frozen=True)
class Layout:
    """Paths (dotted, from the model's root) and sizes of a decoder."""

    layers: str
    norm: str
    head: str
    inside: tuple[LayerLayout, ...]
    """Of every layer; models with linear attention have layers of two kinds."""
    d_model: int
    n_heads: int
    """Query heads of the layers with ordinary attention."""
    d_head: int
    d_vocab: int

    @property
    def n_layers(self) -> int:
        """Number of decoder layers."""
        return len(self.inside)


def discover(module: nn.Module, family: Family) -> Layout:
    """Find the decoder of `module` and measure it.

    Raises:
        LoadError: naming the part that is not there.
    """
    model: Any = module
    names = {id(child): name for name, child in module.named_modules()}

    def path(part: Any, what: str) -> str:
        if id(part) not in names:
            raise LoadError(f"{type(module).__name__} has no {what} that sites could be put on")
        return names[id(part)]

    for medium in family.media:
        _check_places(medium, module, family)
    decoder = _decoder(model)
    layers = path(getattr(decoder, "layers", None), "list of decoder layers")
    for medium in family.media:
        if f"{layers}.".startswith(f"{medium.tower}."):
            raise LoadError(
                f"tower of the {medium.kind} in the family entry ({family.name}), "
                f"{medium.tower!r}, holds the decoder layers; it must name the encoder alone"
            )
    norms = [getattr(decoder, name, None) for name in family.norm]
    head = model.get_output_embeddings()
    text = model.config.get_text_config()
    inside = tuple(
        _layer(layer, number, module, text, family) for number, layer in enumerate(decoder.layers)
    )
    plain = [one for one in inside if one.n_heads == text.num_attention_heads]
    return Layout(
        layers=layers,
        norm=path(next((norm for norm in norms if norm is not None), None), "final norm"),
        head=path(head, "output head"),
        inside=inside,
        d_model=text.hidden_size,
        n_heads=text.num_attention_heads,
        d_head=plain[0].d_head if plain else text.hidden_size // text.num_attention_heads,
        d_vocab=head.weight.shape[0],
    )


def _check_places(medium: Medium, module: nn.Module, family: Family) -> None:
    for field, path in (("tower", medium.tower), ("features", medium.features)):
        if not _has(module, path):
            raise LoadError(
                f"{type(module).__name__} has no {path!r}, which the family entry ({family.name}) "
                f"gives as {field} of the {medium.kind}; name the module, or leave the medium out: "
                "dataclasses.replace(family, media=...)"
            )


def _decoder(model: Any) -> Any:
    """The module with the decoder layers; some models put a causal LM around it."""
    decoder = model.get_decoder()
    for _ in range(3):
        if decoder is None or hasattr(decoder, "layers"):
            return decoder
        inner = decoder.get_decoder() if hasattr(decoder, "get_decoder") else None
        decoder = getattr(decoder, "model", None) if inner is None or inner is decoder else inner
    return decoder


def _layer(layer: Any, number: int, module: nn.Module, text: Any, family: Family) -> LayerLayout:
    def maybe(alternatives: Alternatives) -> str | None:
        return next((path for path in alternatives if _has(layer, path)), None)

    def found(alternatives: Alternatives) -> str:
        path = maybe(alternatives)
        if path is None:
            names = " or ".join(f"`{name}`" for name in alternatives)
            raise LoadError(
                f"layer {number} of {type(module).__name__} has no {names}; its family entry "
                f"({family.name}) must say what the part is called"
            )
        return path

    attn, mlp, out_proj = found(family.attn), found(family.mlp), found(family.out_proj)
    width = getattr(layer.get_submodule(out_proj), "in_features", None)
    n_heads = _heads(attn, text)
    if not isinstance(width, int) or width % n_heads:
        raise LoadError(
            f"`{out_proj}` in layer {number} of {type(module).__name__} is no linear map of "
            f"{n_heads} heads side by side; out_proj of its family entry ({family.name}) must name "
            "the map that mixes what the heads return"
        )
    return LayerLayout(
        attn=attn,
        out_proj=out_proj,
        mlp=mlp,
        mid_norm=found(family.mid_norm) if family.mid_norm else None,
        attn_out=found(family.post_attn) if family.post_attn else attn,
        mlp_out=found(family.post_mlp) if family.post_mlp else mlp,
        then_adds=maybe(family.then_adds),
        n_heads=n_heads,
        d_head=width // n_heads,
    )


def _heads(attn: str, text: Any) -> int:
    """Heads of a layer's attention; linear attention has a number of its own."""
    linear = getattr(text, "linear_num_value_heads", None)
    heads = linear if "linear" in attn and linear is not None else text.num_attention_heads
    return int(heads)


def _has(layer: nn.Module, path: str) -> bool:
    try:
        return layer.get_submodule(path) is not None
    except AttributeError:
        return False
