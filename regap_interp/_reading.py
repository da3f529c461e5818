"""One pass that reads some sites at some positions and ends at the last of them."""

import contextlib
import functools
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from model_adapters import Adapter, Batch
from model_adapters.tracer import lock_of
from regap_interp.graph.engine import is_steered
from regap_interp.graph.graph import Graph, run_once
from regap_interp.graph.nodes import HEAD_SITES, LAYER_SITES, MODEL_SITES, Node, read
from regap_interp.graph.places import span_mask
from regap_interp.graph.values import exact
from regap_interp.statistics import Rule, Site


class _Enough(Exception):
    """Ends a pass at the last wanted site."""


def read_pass(
    adapter: Adapter,
    batch: Batch,
    names: Sequence[str],
    sites: Sequence[Site],
    at: Rule,
    graph: Graph | None,
) -> list[Float[Tensor, "item _"]]:
    """One vector for each row at every site, float64 on the CPU, in one pass that ends early.

    Args:
        adapter: The model.
        batch: Requests.
        names: What errors call its rows.
        sites: Checked sites, different from each other.
        at: Positions; the mean is taken over several.
        graph: Edits the pass.

    Raises:
        ValueError: A row without the positions wanted.
    """
    rows, places = _chosen(batch, names, at)
    if graph is not None or is_steered(adapter):
        return _read_under(adapter, batch, sites, at, graph or Graph())
    per_row = rows.bincount(minlength=len(batch)).tolist()
    taken: dict[int, Tensor] = {}

    def take(index: int, value: Tensor) -> None:
        chosen = value[rows.to(value.device), places.to(value.device)].flatten(1)
        if max(per_row) > 1:
            chosen = torch.stack([exact(part).mean(dim=0) for part in chosen.split(per_row)])
        taken[index] = chosen
        if len(taken) == len(sites):
            raise _Enough

    with contextlib.ExitStack() as hooks:
        for index, (site, layer) in enumerate(sites):
            handle = adapter.hook(site, layer, functools.partial(take, index))
            hooks.callback(handle.remove)
        hooks.enter_context(lock_of(adapter.module))
        with torch.no_grad(), contextlib.suppress(_Enough):
            adapter.module(**batch.to(adapter.device).inputs, use_cache=False)
    return [taken[index].cpu().double() for index in range(len(sites))]


def _read_under(
    adapter: Adapter, batch: Batch, sites: Sequence[Site], at: Rule, graph: Graph
) -> list[Float[Tensor, "item _"]]:
    """The same under a graph, whose gates may be decided only after a site was passed."""

    def value(site: Site) -> Node:
        found = read(site[0], site[1], at=at)
        one = at == "last" or (isinstance(at, tuple) and len(at) == 1)
        return found if one else found.mean()

    outputs = {str(number): value(site) for number, site in enumerate(sites)}
    run, _ = run_once(adapter, batch.to(adapter.device), graph.edits, outputs)
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
    known = (*LAYER_SITES, *MODEL_SITES)
    for name, layer in sites:
        if name not in known:
            raise ValueError(f"no site {name!r}; the sites are {', '.join(known)}")
        if (layer is None) != (name in MODEL_SITES):
            raise ValueError(f"{(name, layer)}: {', '.join(MODEL_SITES)} have no layer, others do")
        if layer is not None and not 0 <= layer < adapter.n_layers:
            raise ValueError(
                f"{(name, layer)}: {adapter.model_id} has the layers 0 to {adapter.n_layers - 1}"
            )
    if not sites or len(set(sites)) != len(sites):
        raise ValueError(f"sites is {list(sites)}; give different (site, layer) pairs")
    return tuple(sites)


def width_of(adapter: Adapter, site: str) -> int:
    """Length of the vector a position has at a site, heads side by side."""
    if site == "logits":
        return adapter.d_vocab
    if site in HEAD_SITES:
        return adapter.n_heads * (adapter.d_head if site == "z" else adapter.d_model)
    return adapter.d_model
