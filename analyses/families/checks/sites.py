"""Reads, writes and the logit lens, against plain hooks."""

import torch
from torch import Tensor

import regap_interp as ri
from analyses.families.checks.measure import CheckError, difference
from analyses.families.checks.plain import (
    SITES,
    direction,
    has,
    hooked,
    kinds_of_layers,
    logits,
    place,
    watched,
)
from analyses.families.prompts import Prompts
from model_adapters import Adapter, Batch

_EFFECT = 1e-3
"""What a write has to change for an equal result to tell anything."""


def sites_equal_hooks(adapter: Adapter, prompts: Prompts) -> float:
    """Every site of every layer, read in a trace, is what a plain hook sees there."""
    wanted = [(s, i) for i in range(adapter.n_layers) for s in SITES if has(adapter, s, i)]
    worst = 0.0
    for batch in prompts.each():
        norms: list[Tensor] = []
        norm = adapter.module.get_submodule(adapter.layout.norm)
        handle = norm.register_forward_hook(lambda _, args, out, kept=norms: kept.append(out))
        try:
            with watched(adapter, wanted) as seen:
                seen["logits"] = logits(adapter, batch)
        finally:
            handle.remove()
        seen["final_norm"] = norms[-1]
        read: dict[object, Tensor] = {}
        with adapter.trace(batch):
            for site, layer in wanted:
                read[site, layer] = getattr(adapter, site)[layer].clone()
            read["final_norm"] = adapter.final_norm.clone()
            read["logits"] = adapter.logits.clone()
        for key, value in read.items():
            worst = max(worst, difference(value.flatten(), seen[key].flatten()))
    return worst


def writes_equal_hooks(adapter: Adapter, prompts: Prompts) -> float:
    """A change of any site in a trace does what a plain hook's change does."""
    worst = 0.0
    for batch in prompts.each():
        bare, middle = logits(adapter, batch), adapter.n_layers // 2
        worst = max(worst, _write(adapter, batch, bare, "resid_post", middle))
    for layer in kinds_of_layers(adapter):
        for site in SITES:
            if has(adapter, site, layer):
                worst = max(worst, _write(adapter, batch, bare, site, layer))
    return worst


def _write(adapter: Adapter, batch: Batch, bare: Tensor, site: str, layer: int) -> float:
    vector = direction(adapter)
    where = place(adapter, site, layer)
    if site == "z":
        n_heads, d_head = adapter.heads(layer)
        of_head = torch.zeros(n_heads, d_head)
        of_head[-1] = 2 * torch.randn(d_head, generator=torch.Generator().manual_seed(1))
        vector = of_head
    halves = 1.0
    if site == "resid_mid":
        # The norm is one of the two readers of this tensor; the block before it reaches both.
        where = place(adapter, "attn_out", layer)
        # With AltUp, what attention makes is averaged with a side path.
        halves = 2**0.5 if adapter.family.altup else 1.0
    written: list[Tensor] = []
    with adapter.trace(batch) as tracer:
        values = getattr(adapter, site)
        values[layer] = values[layer] + vector
        written.append(tracer.result.logits)
    change = halves * vector.flatten() / where.factor
    with hooked(adapter.module, where, lambda value: value + change.to(value.dtype)):
        expected = logits(adapter, batch)
    effect = difference(bare, expected)
    if not effect > _EFFECT:
        raise CheckError(
            f"{site} of layer {layer}: writing it by hand changes the logits by {effect:.1e} of "
            "the largest, so equal results tell nothing"
        )
    return difference(written[0], expected)


def patching_equals_hooks(adapter: Adapter, prompts: Prompts) -> float:
    """States of another request, put in at the last position, do what a plain hook's do."""
    layer = adapter.n_layers // 2
    source = ri.Graph(outputs={"state": ri.read("resid_post", layer)})
    state = source.run(adapter, prompts.text())["state"][0]
    where = place(adapter, "resid_post", layer)
    worst = 0.0
    for batch in prompts.each():
        rows, last = torch.arange(len(batch)), batch.last.cpu()
        edit = ri.replace("resid_post", layer, state, at="last")
        patched = ri.Graph(edit).run(adapter, batch, logits=True).logits
        if patched is None:
            raise CheckError("a run with logits=True brought none")

        def put(states: Tensor, rows: Tensor = rows, last: Tensor = last) -> Tensor:
            new = states.clone()
            new[rows, last] = state.to(states.dtype)
            return new

        with hooked(adapter.module, where, put):
            expected = logits(adapter, batch)
        worst = max(worst, difference(patched, expected[rows, last]))
    return worst


def lens_equals_logits(adapter: Adapter, prompts: Prompts) -> float:
    """The logit lens at the last layer gives the model's logits, all of them and some of them."""
    worst = 0.0
    for batch in prompts.each():
        graph = ri.Graph(outputs={"last": ri.read("resid_post", adapter.n_layers - 1)})
        state = graph.run(adapter, batch)["last"]
        expected = logits(adapter, batch)[torch.arange(len(batch)), batch.last.cpu()]
        chosen = [3, 5]
        worst = max(
            worst,
            difference(adapter.unembed(state), expected),
            difference(adapter.unembed(state, chosen), expected[:, chosen]),
        )
    return worst
