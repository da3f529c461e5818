"""Values of a run that nnsight edits, under TransformerLens's names."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import Tensor

from model_adapters.hooks import find_site
from model_adapters.parts import first
from regap_interp.graph.engine import is_steered
from regap_interp.interop._norms import measure
from regap_interp.interop._points import LAYER_SITES
from regap_interp.interop.errors import InteropError

if TYPE_CHECKING:
    from model_adapters import Adapter, Batch

Edit = Callable[["Adapter"], object]
"""Reads and writes sites, as the block of a trace does."""


def traced(adapter: "Adapter", batch: "Batch", edit: Edit) -> dict[str, Tensor]:
    """Sites of a traced run as they are after `edit`, and what follows from them.

    Args:
        adapter: the model.
        batch: requests with their media.
        edit: called inside the trace.

    Raises:
        InteropError: where a graph is installed on the model too.
    """
    if is_steered(adapter):
        raise InteropError(
            "a graph is installed on this model, and its hooks would act behind what a trace "
            "reads; call graph.bind in `edit`, or leave `edit` out"
        )
    seen: dict[str, Tensor] = {}
    with adapter.trace() as tracer:
        with tracer.invoke(batch):
            edit(adapter)
        # A second look at the same run: at every site after the first one's edits.
        with tracer.invoke():
            _read(adapter, seen)
    return seen | _derived(adapter, seen)


def _read(adapter: "Adapter", seen: dict[str, Tensor]) -> None:
    seen["hook_embed"] = adapter.embed
    for layer, inside in enumerate(adapter.layout.inside):
        block, envoy = f"blocks.{layer}", _envoy(adapter, layer)
        for name, site in LAYER_SITES:
            found = find_site(adapter, site, layer)
            if found.obstacle or site == "result":
                continue
            if site == "attn_out" and inside.attn_out != inside.attn:
                seen[f"{block}.raw"] = first(envoy.get(inside.attn).output)
            if site == "resid_post" and inside.then_adds is not None:
                seen[f"{block}.hook_per_layer"] = first(envoy.get(inside.then_adds).output)
            seen[f"{block}.{name}"] = found.read()
    seen["ln_final.hook_out"] = adapter.final_norm


def _derived(adapter: "Adapter", seen: dict[str, Tensor]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    if adapter.family.altup:
        return found
    for layer, inside in enumerate(adapter.layout.inside):
        block, path = f"blocks.{layer}", f"{adapter.layout.layers}.{layer}"
        if f"{block}.raw" in seen:
            norm = measure(adapter, f"{path}.{inside.attn_out}")
            found[f"{block}.ln1_post.hook_scale"] = norm.scale(seen.pop(f"{block}.raw"))
        if adapter.family.adds_between_layers and layer + 1 < adapter.n_layers:
            after = seen[f"blocks.{layer + 1}.hook_resid_pre"]
            found[f"{block}.hook_deepstack"] = after - seen[f"{block}.hook_resid_post"]
    norm = measure(adapter, adapter.layout.norm)
    last = seen[f"blocks.{adapter.n_layers - 1}.hook_resid_post"]
    found["ln_final.hook_scale"] = norm.scale(last)
    found["ln_final.hook_normalized"] = norm.normalised(last)
    return found


def _envoy(adapter: "Adapter", layer: int) -> Any:
    return adapter.get(f"{adapter.layout.layers}.{layer}")
