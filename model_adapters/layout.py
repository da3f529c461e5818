"""Where a model keeps the parts that sites are made of, found from the model itself."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from model_adapters.errors import LoadError
from model_adapters.family import Family


@dataclass(frozen=True)
class Layout:
    """Paths (dotted, from the model's root) and sizes of a decoder."""

    layers: str
    norm: str
    head: str
    n_layers: int
    d_model: int
    n_heads: int
    d_head: int
    d_vocab: int


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

    decoder = model.get_decoder()
    layers = getattr(decoder, "layers", None)
    config = model.config.get_text_config()
    layout = Layout(
        layers=path(layers, "list of decoder layers"),
        norm=path(getattr(decoder, "norm", None), "final norm"),
        head=path(model.get_output_embeddings(), "output head"),
        n_layers=len(layers or ()),
        d_model=config.hidden_size,
        n_heads=config.num_attention_heads,
        d_head=getattr(config, "head_dim", None)
        or config.hidden_size // config.num_attention_heads,
        d_vocab=model.get_output_embeddings().weight.shape[0],
    )
    for index in range(layout.n_layers):
        for inner in (family.attn, family.out_proj, family.mlp, family.mid_norm):
            try:
                module.get_submodule(f"{layout.layers}.{index}.{inner}")
            except AttributeError:
                raise LoadError(
                    f"layer {index} of {type(module).__name__} has no `{inner}`; its family "
                    f"entry ({family.name}) must say what the part is called"
                ) from None
    return layout
