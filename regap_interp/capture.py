"""States of many requests at any sites: kept, or streamed into statistics.

Wanted positions are cut out inside the pass, and the pass ends at the last wanted site: neither
later layers nor the head run. Requests are sorted by encoded length before they are batched.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, get_args

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from model_adapters import Adapter, Batch
from model_adapters.encode import Chat
from regap_interp._bucketed import Pass, passes
from regap_interp._reading import checked_sites, read_pass, width_of
from regap_interp.graph.graph import Graph
from regap_interp.graph.nodes import Span
from regap_interp.statistics import Rule, Site, Statistics

Progress = Callable[[int, int], None]
"""Called with (items done, items in all) after every pass."""
StreamProgress = Callable[[int], None]
"""Called with the items done after every pass."""


class Labelled(NamedTuple):
    """A request for `capture_statistics`."""

    id: str
    """Names the item; twins in other modalities have the same id under other labels."""
    label: str
    """What it is counted under, such as "image/harmful"."""
    chat: Chat
    """The request."""


def capture(
    adapter: Adapter,
    requests: Sequence[Chat] | Sequence[Batch],
    *,
    sites: Sequence[Site],
    at: Rule = "last",
    batch_size: int | None = None,
    graph: Graph | None = None,
    progress: Progress | bool = False,
) -> Float[Tensor, "site item width"]:
    """One vector for every site and request, float64 on the CPU, in the order given.

    Args:
        adapter: The model.
        requests: Chats, batched here by length, or batches encoded before, run as they are.
        sites: Such as `[("resid_post", 4), ("resid_post", 5), ("final_norm", None)]`.
        at: "last" prompt token; the mean over "prompt", "text", "image", "audio", "video" or
            "special" positions; or indices counted from the first prompt token (from the last, if
            negative) and averaged too.
        batch_size: Chats in one pass; None finds out what fits. Halved when memory runs out.
        graph: Edits the passes run under; states at an edited site are read after its edits.
        progress: Called after every pass; True draws a bar on standard error.

    Returns:
        Heads of `z` and `result` lie side by side in one vector.

    Raises:
        ValueError: No requests, unknown sites or positions, sites of different widths, or a
            request without the positions wanted.
        InputError: A request the model cannot take; it is named.
    """
    wanted = checked_sites(adapter, sites)
    _check(adapter, at, batch_size, graph)
    widths = {width_of(adapter, name) for name, _ in wanted}
    if len(widths) > 1:
        raise ValueError(
            f"sites have the widths {sorted(widths)}, which are no one tensor; capture those of "
            "one width at a time, or stream into Statistics"
        )
    if isinstance(requests, Batch):
        raise ValueError("requests is one Batch; give a list of batches: [batch]")
    if not requests:
        raise ValueError("requests is empty; give at least one chat or batch")
    total = sum(len(one) if isinstance(one, Batch) else 1 for one in requests)
    states = torch.empty(len(wanted), total, widths.pop(), dtype=torch.float64)
    done = 0

    def run(batch: Batch, names: Sequence[str]) -> list[Tensor]:
        return read_pass(adapter, batch, names, wanted, at, graph)

    with _reporting(progress, total) as report:
        for rows, found in _all_passes(adapter, requests, run, batch_size):
            states[:, rows] = torch.stack(found)
            done += len(rows)
            report(done, total)
    return states


def capture_statistics(
    adapter: Adapter,
    items: Iterable[Labelled],
    *,
    into: Statistics,
    batch_size: int | None = None,
    graph: Graph | None = None,
    progress: StreamProgress | bool = False,
) -> None:
    """Count items in `into`, at its sites and positions, in memory that does not grow with them.

    What a pass has measured is counted at once. After an interrupt, `into` (or what was saved of
    it) and the same items again continue the work: items counted before are not even encoded.

    Args:
        adapter: The model; always the same one for one `Statistics`.
        items: Read a window at a time, so a generator will do.
        into: Takes the states.
        batch_size: As for `capture`.
        graph: As for `capture`.
        progress: Called after every pass; True draws a bar on standard error.

    Raises:
        ValueError: As `capture` does, for an id given twice, or statistics of another model.
        InputError: A request the model cannot take; it is named.
    """
    sites = checked_sites(adapter, into.sites)
    _check(adapter, into.at, batch_size, graph)
    if into.model not in (None, adapter.fingerprint):
        raise ValueError(
            f"the statistics are of the model with fingerprint {into.model}, {adapter.model_id} "
            f"has {adapter.fingerprint}; start new Statistics"
        )
    into.model = adapter.fingerprint
    read: dict[int, Labelled] = {}
    skipped = done = 0

    def fresh() -> Iterator[tuple[str, Chat]]:
        nonlocal skipped
        names: set[tuple[str, str]] = set()
        for item in items:
            if not read:
                names.clear()
            if (item.label, item.id) in names:
                raise ValueError(f"item {item.id!r} with label {item.label!r} comes twice")
            if into.holds(item.label, item.id):
                skipped += 1
                continue
            names.add((item.label, item.id))
            read[done + len(read)] = item
            yield f"item {item.id!r} ({item.label})", item.chat

    def run(batch: Batch, names: Sequence[str]) -> list[Tensor]:
        return read_pass(adapter, batch, names, sites, into.at, graph)

    with _reporting(progress, None) as report:
        for indices, found in passes(adapter, fresh(), run, batch_size=batch_size):
            taken = [read[index] for index in indices]
            for label in dict.fromkeys(item.label for item in taken):
                rows = [row for row, item in enumerate(taken) if item.label == label]
                into.add(label, [taken[row].id for row in rows], [value[rows] for value in found])
            for index in indices:
                del read[index]
            done += len(taken)
            report(done + skipped)


def last_residuals(
    adapter: Adapter,
    requests: Sequence[Chat] | Sequence[Batch],
    *,
    layers: Sequence[int],
    batch_size: int | None = None,
    graph: Graph | None = None,
    progress: Progress | bool = False,
) -> Float[Tensor, "layer item d_model"]:
    """`resid_post` at the last prompt token of every request, float64 on the CPU.

    Args:
        adapter: The model.
        requests: Chats, or batches encoded before; as for `capture`.
        layers: Decoder layers, from 0; the result's first axis follows their order.
        batch_size: As for `capture`.
        graph: As for `capture`.
        progress: As for `capture`.

    Raises:
        ValueError: No requests, one batch outside a list, or layers the model does not have.
    """
    sites: list[Site] = [("resid_post", layer) for layer in layers]
    if not sites or len(set(sites)) != len(sites):
        raise ValueError(
            f"layers is {list(layers)}; give different layers from 0 to {adapter.n_layers - 1}"
        )
    return capture(
        adapter, requests, sites=sites, batch_size=batch_size, graph=graph, progress=progress
    )


def _all_passes(
    adapter: Adapter,
    requests: Sequence[Chat] | Sequence[Batch],
    run: Pass[list[Tensor]],
    batch_size: int | None,
) -> Iterator[tuple[list[int], list[Tensor]]]:
    """Chats by length; batches as they are, in their places between the chats."""
    start = 0
    chats: list[Chat] = []
    places: list[int] = []
    for request in requests:
        if isinstance(request, Batch):
            rows = list(range(start, start + len(request)))
            yield rows, run(request, [f"item {row}" for row in rows])
            start += len(rows)
        else:
            chats.append(request)
            places.append(start)
            start += 1
    named = ((f"item {place}", chat) for place, chat in zip(places, chats, strict=True))
    for indices, found in passes(adapter, named, run, batch_size=batch_size):
        yield [places[index] for index in indices], found


@contextlib.contextmanager
def _reporting(progress: Any, total: int | None) -> Iterator[Callable[..., None]]:
    """What to call after a pass."""
    if not isinstance(progress, bool):
        yield progress
        return
    with tqdm(total=total, unit=" items", disable=not progress) as bar:
        yield lambda done, *_: bar.update(done - bar.n)


def _check(adapter: Adapter, at: Rule, batch_size: int | None, graph: Graph | None) -> None:
    spans = get_args(Span)
    if at not in spans and not (isinstance(at, tuple) and at and all(type(i) is int for i in at)):
        raise ValueError(f"at is {at!r}; give one of {', '.join(spans)}, or a tuple of indices")
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
    if adapter.interleaver.interleaving:
        raise ValueError("a capture runs passes of its own; call it outside of any trace")
    if graph is not None:
        graph.check(adapter)
