"""Patching by plain PyTorch hooks, one whole pass for every cell: slow, and easy to believe."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

Edit = Callable[[Tensor], Tensor | None]

_INPUTS = {"resid_pre": "", "z": "self_attn.o_proj", "resid_mid": "post_attention_layernorm"}
_OUTPUTS = {"resid_post": "", "attn_out": "self_attn", "mlp_out": "mlp"}


def layers_of(model: Any) -> Any:
    """The decoder layers of a model."""
    decoder = model.get_decoder()
    return decoder.layers if hasattr(decoder, "layers") else decoder.get_decoder().layers


@contextlib.contextmanager
def plain_hook(model: Any, site: str, layer: int, edit: Edit) -> Iterator[None]:
    """`edit` at a site; what it returns is put in place of what was there."""
    module = layers_of(model)[layer]

    def before(_: Any, args: Any, kwargs: Any) -> Any:
        value = args[0] if args else next(iter(kwargs.values()))
        new = edit(value)
        if new is None:
            return None
        if site == "resid_mid":  # the stream itself is read again after the norm
            value.copy_(new)
            return None
        if args:
            return (new, *args[1:]), kwargs
        return args, {**kwargs, next(iter(kwargs)): new}

    def after(_: Any, args: Any, output: Any) -> Any:
        new = edit(output[0] if isinstance(output, tuple) else output)
        if new is None or not isinstance(output, tuple):
            return new
        return (new, *output[1:])

    if site in _INPUTS:
        part = module.get_submodule(_INPUTS[site])
        handle = part.register_forward_pre_hook(before, with_kwargs=True)
    else:
        part = module.get_submodule(_OUTPUTS[site])
        handle = part.register_forward_hook(after)
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def states(model: Any, inputs: dict[str, Any], site: str, layers: Sequence[int]) -> dict:
    """The site of every layer."""
    found: dict[int, Tensor] = {}
    with contextlib.ExitStack() as stack:
        for layer in layers:

            def keep(value: Tensor, layer: int = layer) -> None:
                found[layer] = value.clone()

            stack.enter_context(plain_hook(model, site, layer, keep))
        model(**inputs, use_cache=False)
    return found


@torch.no_grad()
def patched_logits(
    model: Any,
    inputs: dict[str, Any],
    source: dict[int, Tensor],
    *,
    site: str,
    layers: Sequence[int],
    row: int,
    into: Sequence[int],
    taken: Sequence[Sequence[int]],
    head: slice | None = None,
) -> Tensor:
    """Logits of one row, after the last token, with states of other positions put in."""
    with contextlib.ExitStack() as stack:
        for layer in layers:

            def edit(value: Tensor, layer: int = layer) -> Tensor:
                new = value.clone()
                for position, sources in zip(into, taken, strict=True):
                    mixed = source[layer][row, list(sources)].mean(dim=0)
                    columns = slice(None) if head is None else head
                    new[row, position, columns] = mixed[columns]
                return new

            stack.enter_context(plain_hook(model, site, layer, edit))
        logits = model(**inputs, use_cache=False).logits
    return logits[row, -1]
