"""States of requests at one site, layer by layer, and the directions that are made of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from analyses.geometry.requests import Requests
from analyses.geometry.result import Source, recipe
from analyses.resuming import Partial, Progress, Work
from model_adapters import Adapter
from regap_interp.capture import capture_passes
from regap_interp.directions import (
    Direction,
    drift_direction,
    orthogonalise,
    refusal_direction,
)
from regap_interp.graph.graph import Graph
from regap_interp.graph.nodes import LAYER_SITES
from regap_interp.statistics import Rule, Site


@dataclass(frozen=True, eq=False)
class States:
    """What `measure_states` read."""

    values: Float[Tensor, "layer item width"]
    """float64."""
    layers: tuple[int, ...]
    """Decoder layers, from 0, in the order of the first axis."""
    requests: Requests
    source: Source

    def at(self, layer: int) -> Float[Tensor, "item width"]:
        """Those of one layer.

        Raises:
            ValueError: it was not read.
        """
        if layer not in self.layers:
            raise ValueError(f"layer {layer} was not read; the layers are {list(self.layers)}")
        return self.values[self.layers.index(layer)]

    def refusal(self, layer: int) -> Direction:
        """Mean of harmful minus mean of harmless text, centred on harmless text.

        Raises:
            ValueError: fewer than 2 text requests of a kind.
        """
        text = {kind: self.requests.rows(modality="text", harmful=kind) for kind in (True, False)}
        check_text(text)
        here = self.at(layer)
        return refusal_direction(
            here[text[True]], here[text[False]], origin=self.source.origin(layer)
        )

    def refusals(self) -> dict[int, Direction]:
        """`refusal` at every layer that was read."""
        return {layer: self.refusal(layer) for layer in self.layers}

    def drift(self, modality: str, layer: int, *, pairs: str = "harmful") -> Direction:
        """Mean over pairs of medium minus text twin, centred on the twins.

        Args:
            modality: Of the media.
            layer: One that was read.
            pairs: "harmful" ones only, "benign" ones, "all", or "balanced": as many of each kind.

        Raises:
            ValueError: too few pairs.
        """
        media, twins = self.requests.pairs(modality, pairs)
        if pairs == "balanced":
            kept = _balanced([bool(self.requests.harmful[row]) for row in media])
            media, twins = [media[one] for one in kept], [twins[one] for one in kept]
        ids, here = range(len(media)), self.at(layer)
        return drift_direction(
            here[media],
            here[twins],
            media_ids=ids,
            text_ids=ids,
            origin=self.source.origin(layer),
        )

    def correction(self, modality: str, layer: int, *, pairs: str = "harmful") -> Direction:
        """`drift` of these pairs without its component along `refusal` of the same layer."""
        return orthogonalise(self.drift(modality, layer, pairs=pairs), self.refusal(layer))

    def corrections(self, modality: str, *, pairs: str = "harmful") -> dict[int, Direction]:
        """`correction` of these pairs at every layer that was read."""
        return {layer: self.correction(modality, layer, pairs=pairs) for layer in self.layers}


def measure_states(
    adapter: Adapter,
    requests: Requests,
    *,
    site: str = "resid_post",
    layers: Sequence[int] | None = None,
    at: Rule = "last",
    graph: Graph | None = None,
    batch_size: int | None = None,
    progress: Progress | bool = False,
    checkpoint: str | Path | None = None,
    resume: Partial | None = None,
) -> States:
    """Read every request once, at all wanted layers.

    Args:
        adapter: The model.
        requests: Whatever is to be compared: text of both kinds, media and their twins.
        site: A site that layers have.
        layers: All of them by default.
        at: Positions; several are averaged. See `capture`.
        graph: Edits the passes.
        batch_size: Chats in a pass; None finds out what fits.
        progress: Called after every pass; True draws a bar on standard error.
        checkpoint: A file that finished requests are written to as the passes go. If it is there,
            they go on from it.
        resume: `Interrupted.partial` of the same call.

    Raises:
        ValueError: Unknown sites, layers or positions; what was finished belongs to another call.
        InputError: A request the model cannot take.
        Interrupted: On Ctrl-C; it carries what is finished.
    """
    if site not in LAYER_SITES:
        raise ValueError(f"site is {site!r}; expected one that layers have: {LAYER_SITES}")
    chosen = tuple(range(adapter.n_layers)) if layers is None else tuple(layers)
    source = Source.of(adapter, site=site, at=at, graph=graph)
    sites: list[Site] = [(site, layer) for layer in chosen]
    options: Any = {"sites": sites, "at": at, "batch_size": batch_size, "graph": graph}
    # Looked at before anything is hashed.
    shape = capture_passes(adapter, _entries(requests), **options).shape
    fresh = Partial(
        "states",
        recipe(adapter, source, layers=chosen, requests=requests.fingerprint()),
        {"values": torch.full(shape, torch.nan, dtype=torch.float64)},
        torch.zeros(len(requests), dtype=torch.bool),
    )
    work = Work(fresh, resume=resume, checkpoint=checkpoint, progress=progress)
    left = torch.nonzero(~work.done).flatten().tolist()
    with work.running():
        if left:
            for rows, found in capture_passes(
                adapter, _entries(requests.only(left)), **options
            ).passes:
                work.keep(([left[row] for row in rows],), {"values": found}, axis=1)
    return States(work.tensors["values"], chosen, requests, source)


def _entries(requests: Requests) -> Any:
    return requests.entries  # chats and batches may be mixed


def check_text(text: Mapping[bool, Sequence[int]]) -> None:
    """Refuse to make a refusal direction of fewer than two text requests of a kind.

    Raises:
        ValueError: telling how many there are.
    """
    if min(len(rows) for rows in text.values()) < 2:
        raise ValueError(
            f"{len(text[True])} harmful and {len(text[False])} harmless text requests; the refusal "
            "direction needs at least 2 of each, and better a hundred"
        )


def _balanced(harmful: Sequence[bool]) -> list[int]:
    """Places of as many of each kind, the first ones."""
    kinds = [[i for i, one in enumerate(harmful) if one == kind] for kind in (True, False)]
    count = min(map(len, kinds))
    return sorted(index for rows in kinds for index in rows[:count])


def coordinates(
    states: States, direction: Direction, *, layer: int | None = None
) -> Float[Tensor, "item"]:
    """Coordinate of every request along a direction, in units of its length.

    Args:
        states: Of the requests.
        direction: Its origin says where it is read.
        layer: For a direction without origin.

    Raises:
        ValueError: It was measured on another model or site, or does not say where.
    """
    origin = direction.origin
    if origin is None and layer is None:
        raise ValueError("the direction does not say where it was measured; give its layer")
    if origin is not None:
        wanted, given = (origin.model, origin.site), (states.source.fingerprint, states.source.site)
        if wanted != given or layer not in (None, origin.layer):
            raise ValueError(
                f"the direction was measured at {origin}, the states are of the model "
                f"{states.source.fingerprint} at {states.source.site}[{layer}]; use one of that "
                "place, or take its origin off if you mean it"
            )
    place = layer if origin is None else origin.layer
    if place is None:
        raise ValueError(f"the direction belongs to {origin}, which is no layer")
    return direction.fraction(states.at(place)).to(torch.float64)
