"""At which positions heads read what they write, by kind of positions."""

import contextlib
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from analyses.circuits.nodes import SPANS
from analyses.circuits.recording import TOLERANCE, run, written_by_heads
from analyses.patching.recorded import Reader
from model_adapters import Adapter, Batch


def read_by_span(
    adapter: Adapter, batch: Batch, reader: Reader, layers: Sequence[int], depth: int
) -> dict[int, Float[Tensor, "item span head d_model"]]:
    """What each head writes at the last prompt token, by the positions whose values it took.

    The pattern of attention stays; the values of all other positions are left out. Spans are those
    of `SPANS`, in order.

    Raises:
        ValueError: a layer's values cannot be had alone, or its heads do more than mix them.
    """
    found: dict[int, Tensor] = {}
    masks = [batch.mask(span) for span in SPANS]
    rows = torch.arange(len(batch))
    with contextlib.ExitStack() as stack:
        for layer in layers:
            attention, values, out = _parts(adapter, layer)

            def split(
                module: Any,
                args: Any,
                kwargs: Any,
                output: Any,
                layer: int = layer,
                values: Any = values,
                out: Any = out,
            ) -> None:
                z = [
                    _with_values_of(module, args, kwargs, mask, values, out)[rows, batch.last]
                    for mask in masks
                ]
                found[layer] = torch.stack(z, dim=1)

            handle = attention.register_forward_hook(split, with_kwargs=True)
            stack.callback(handle.remove)
        whole: dict[int, Tensor] = {}

        def keep(value: Tensor, layer: int) -> None:
            # The first call is the model's own; those with fewer values come behind it.
            whole.setdefault(layer, value[rows, batch.last].flatten(1))

        for layer in layers:
            handle = adapter.hook("z", layer, functools.partial(keep, layer=layer))
            stack.callback(handle.remove)
        run(adapter, batch, reader, {}, depth)
    return {layer: _written(adapter, layer, found[layer], whole[layer]) for layer in layers}


def _parts(adapter: Adapter, layer: int) -> tuple[Any, Any, Any]:
    """The attention of a layer, its map to values and its map back to the stream."""
    inside = adapter.layout.inside[layer]
    whole: Any = adapter.resid_post.site(layer).envoy._module
    attention = whole.get_submodule(inside.attn)
    values = getattr(attention, "v_proj", None)
    if values is None:
        raise ValueError(
            f"attention of layer {layer} ({type(attention).__name__}) has no v_proj, so what it "
            "reads cannot be told apart by positions; ask with spans=False"
        )
    return attention, values, whole.get_submodule(inside.out_proj)


def _with_values_of(
    module: Any, args: Any, kwargs: Mapping[str, Any], mask: Tensor, values: Any, out: Any
) -> Tensor:
    """What enters the output map when only the values of some positions count."""
    seen: list[Tensor] = []

    def only(_: Any, inputs: Any, output: Tensor) -> Tensor:
        return output * mask[..., None].to(output.device)

    def look(_: Any, inputs: Any) -> None:
        seen.append(inputs[0])

    handles = [values.register_forward_hook(only), out.register_forward_pre_hook(look)]
    try:
        # `forward`, so that hooks on the block do not see this call.
        module.forward(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return seen[0]


def _written(adapter: Adapter, layer: int, parts: Tensor, whole: Tensor) -> Tensor:
    gap = (parts.sum(dim=1) - whole).abs().max()
    if gap > TOLERANCE * whole.abs().max():
        raise ValueError(
            f"heads of layer {layer} do more than mix values ({adapter.family.name}), so what they "
            "read cannot be told apart by positions; ask with spans=False"
        )
    return written_by_heads(adapter, layer, parts.unflatten(-1, (adapter.heads(layer)[0], -1)))
