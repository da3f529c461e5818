"""One pass that reads some sites at some positions and ends at the last of them."""

import contextlib
import functools
import threading
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from model_adapters import Adapter, Batch
from model_adapters.hooks import find_site
from model_adapters.tracer import lock_of
from regap_interp._interrupt import whole
from regap_interp.graph.edits import Edit
from regap_interp.graph.engine import is_steered
from regap_interp.graph.graph import Graph, run_once
from regap_interp.graph.nodes import HEAD_SITES, Node, read
from regap_interp.graph.places import span_mask
from regap_interp.graph.values import exact
from regap_interp.statistics import Rule, Site, check_sites


class _Enough(Exception):
    """Ends a pass at the last wanted site. Its argument is the pass's own."""


def read_pass(
    adapter: Adapter,
    batch: Batch,
    names: Sequence[str],
    sites: Sequence[Site],
    at: Rule,
    graph: Graph | None,
) -> list[Float[Tensor, "item _"]]:
    """One vector for each row at every site, float64 on the CPU, in one pass that ends early.

    Other threads' passes of the model wait for it, and so does Ctrl-C.

    Args:
        adapter: The model.
        batch: Requests.
        names: What errors call its rows.
        sites: Checked sites, different from each other.
        at: Positions; the mean is taken over several.
        graph: Edits the pass.

    Raises:
        ValueError: A row without the positions wanted, or a trace is running.
    """
    rows, places = _chosen(batch, names, at)
    edits = prefill_edits(graph)
    with lock_of(adapter.module), whole():
        check_no_trace(adapter)
        if edits or is_steered(adapter):
            return _read_under(adapter, batch, sites, at, edits)
        return _read_bare(adapter, batch, sites, rows, places)


def prefill_edits(graph: Graph | None) -> tuple[Edit, ...]:
    """The edits of a graph that act on prompts."""
    return () if graph is None else tuple(e for e in graph.edits if e.phase != "decode")


def check_no_trace(adapter: Adapter) -> None:
    """Refuse to run a pass inside a trace. Take the model's lock first: other threads may trace.

    Raises:
        ValueError: A trace is running.
    """
    if adapter.interleaver.interleaving:
        raise ValueError("a capture runs passes of its own; call it outside of any trace")


def _read_bare(
    adapter: Adapter, batch: Batch, sites: Sequence[Site], rows: Tensor, places: Tensor
) -> list[Float[Tensor, "item _"]]:
    per_row = rows.bincount(minlength=len(batch)).tolist()
    taken: dict[int, Tensor] = {}
    own, thread = object(), threading.get_ident()

    def take(index: int, value: Tensor) -> None:
        if threading.get_ident() != thread:  # somebody calls the raw model beside us
            return
        chosen = value[rows.to(value.device), places.to(value.device)].flatten(1)
        if max(per_row) > 1:
            chosen = torch.stack([exact(part).mean(dim=0) for part in chosen.split(per_row)])
        taken[index] = chosen
        if len(taken) == len(sites):
            raise _Enough(own)

    with contextlib.ExitStack() as hooks:
        for index, (site, layer) in enumerate(sites):
            handle = adapter.hook(site, layer, functools.partial(take, index))
            hooks.callback(handle.remove)
        try:
            with torch.no_grad():
                adapter.module(**batch.to(adapter.device).inputs, use_cache=False)
        except _Enough as found:
            if found.args[0] is not own:
                raise
    return [taken[index].cpu().double() for index in range(len(sites))]


def _read_under(
    adapter: Adapter, batch: Batch, sites: Sequence[Site], at: Rule, edits: Sequence[Edit]
) -> list[Float[Tensor, "item _"]]:
    """The same under edits, whose gates may be decided only after a site was passed."""

    def value(site: Site) -> Node:
        found = read(site[0], site[1], at=at)
        one = at == "last" or (isinstance(at, tuple) and len(at) == 1)
        return found if one else found.mean()

    outputs = {str(number): value(site) for number, site in enumerate(sites)}
    run, _ = run_once(adapter, batch.to(adapter.device), edits, outputs)
    return [run[name].flatten(1).cpu().double() for name in outputs]


def _chosen(batch: Batch, names: Sequence[str], at: Rule) -> tuple[Tensor, Tensor]:
    """Rows and positions to take, row after row."""
    if isinstance(at, tuple):
        least = max(index + 1 if index >= 0 else -index for index in at)
        short = batch.prompt_mask.sum(dim=1) < least
        if short.any():
            row = int(short.nonzero()[0])
            raise ValueError(
                f"{names[row]} has {int(batch.prompt_mask[row].sum())} prompt positions; "
                f"positions {at} need {least}"
            )
    mask = span_mask(at, batch)
    empty = ~mask.any(dim=1)
    if empty.any():
        raise ValueError(
            f"{names[int(empty.nonzero()[0])]} has no {at} positions to take the mean over; leave "
            "such items out"
        )
    rows, places = mask.nonzero(as_tuple=True)
    return rows, places


def checked_sites(adapter: Adapter, sites: Sequence[Site]) -> tuple[Site, ...]:
    """`sites`, if the model has them and none is there twice.

    Raises:
        ValueError: Naming the site.
    """
    check_sites(sites)
    for name, layer in sites:
        if layer is not None and not 0 <= layer < adapter.n_layers:
            raise ValueError(
                f"{(name, layer)}: {adapter.model_id} has the layers 0 to {adapter.n_layers - 1}"
            )
        obstacle = find_site(adapter, name, layer).obstacle
        if obstacle is not None:
            raise ValueError(obstacle)
    return tuple(sites)


def width_of(adapter: Adapter, site: str, layer: int | None) -> int:
    """Length of the vector a position has at a site, heads side by side."""
    if site == "logits":
        return adapter.d_vocab
    if site in HEAD_SITES and layer is not None:
        n_heads, d_head = adapter.heads(layer)
        return n_heads * (d_head if site == "z" else adapter.d_model)
    return adapter.d_model
