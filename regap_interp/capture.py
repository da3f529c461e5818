"""States of many requests at any sites: kept, or streamed into statistics.

Wanted positions are cut out inside the pass, and the pass ends at the last wanted site: neither
later layers nor the head run. Requests are sorted by encoded length before they are batched.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from model_adapters import Adapter, Batch
from model_adapters.encode import Chat
from model_adapters.tracer import lock_of
from regap_interp._bucketed import Pass, passes
from regap_interp._edited import digest_of_edits
from regap_interp._reading import check_no_trace, checked_sites, read_pass, width_of
from regap_interp.graph.graph import Graph
from regap_interp.statistics import Rule, Site, Statistics, check_rule

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
    requests: Iterable[Chat] | Iterable[Batch],
    *,
    sites: Sequence[Site],
    at: Rule = "last",
    batch_size: int | None = None,
    graph: Graph | None = None,
    progress: Progress | bool = False,
) -> Float[Tensor, "site item width"]:
    """One vector for every site and request, float64 on the CPU, in the order given.

    Graphs that are installed on the model edit the passes too, before `graph`.

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
    captured = capture_passes(
        adapter, requests, sites=sites, at=at, batch_size=batch_size, graph=graph
    )
    states = torch.empty(captured.shape, dtype=torch.float64)
    done, total = 0, captured.shape[1]
    with _reporting(progress, total) as report:
        for rows, found in captured.passes:
            states[:, rows] = found
            done += len(rows)
            report(done, total)
    return states


class Captured(NamedTuple):
    """What `capture_passes` gives."""

    shape: tuple[int, int, int]
    """Sites, items and width of what will be read in all."""
    passes: Iterator[tuple[list[int], Tensor]]
    """Run as they are asked for: places of the items, and their vectors `[site, item, width]`."""


def capture_passes(
    adapter: Adapter,
    requests: Iterable[Chat] | Iterable[Batch],
    *,
    sites: Sequence[Site],
    at: Rule = "last",
    batch_size: int | None = None,
    graph: Graph | None = None,
) -> Captured:
    """`capture`, pass by pass, so that what is finished can be kept. Checks come at once.

    Args:
        adapter: The model.
        requests: As for `capture`.
        sites: As for `capture`.
        at: As for `capture`.
        batch_size: As for `capture`.
        graph: As for `capture`.

    Raises:
        ValueError: As `capture` does.
        InputError: A request the model cannot take, when its pass comes.
    """
    wanted = checked_sites(adapter, sites)
    _check(adapter, at, batch_size, graph)
    widths = {width_of(adapter, *one) for one in wanted}
    if len(widths) > 1:
        raise ValueError(
            f"sites have the widths {sorted(widths)}, which are no one tensor; capture those of "
            "one width at a time, or stream into Statistics"
        )
    if isinstance(requests, Batch):
        raise ValueError("requests is one Batch; give a list of batches: [batch]")
    given: list[Chat | Batch] = list(requests)
    if not given:
        raise ValueError("requests is empty; give at least one chat or batch")
    total = sum(len(one) if isinstance(one, Batch) else 1 for one in given)

    def run(batch: Batch, names: Sequence[str]) -> list[Tensor]:
        return read_pass(adapter, batch, names, wanted, at, graph)

    passes = (
        (rows, torch.stack(found)) for rows, found in _all_passes(adapter, given, run, batch_size)
    )
    return Captured((len(wanted), total, widths.pop()), passes)


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
    Graphs that are installed on the model edit the passes too, before `graph`; what `into` holds
    must come from passes under the same edits.

    Args:
        adapter: The model; always the same one for one `Statistics`.
        items: Read a window at a time, so a generator will do.
        into: Takes the states.
        batch_size: As for `capture`.
        graph: As for `capture`.
        progress: Called after every pass, and once where all are counted before; True draws a
            bar on standard error.

    Raises:
        ValueError: As `capture` does, for an id given twice under a label, or statistics of
            another model or other edits.
        InputError: A request the model cannot take; it is named.
    """
    sites = checked_sites(adapter, into.sites)
    _check(adapter, into.at, batch_size, graph)
    into.claim(adapter.fingerprint, digest_of_edits(adapter, graph))
    held_before = into.holding_now()
    read: dict[int, tuple[str, str]] = {}
    skipped = done = 0

    def fresh() -> Iterator[tuple[str, Chat]]:
        nonlocal skipped
        names: set[tuple[str, str]] = set()
        for item in items:
            _check_item(item)
            if not read:
                names.clear()
            name = (item.label, item.id)
            if held_before(*name):
                skipped += 1
                continue
            if name in names or into.holds(*name):
                raise ValueError(
                    f"item {item.id!r} with label {item.label!r} comes twice; under a label every "
                    "item needs an id of its own"
                )
            names.add(name)
            # Without its chat: the media of a window would be many.
            read[done + len(read)] = name
            yield f"item {item.id!r} ({item.label})", item.chat

    def run(batch: Batch, names: Sequence[str]) -> list[Tensor]:
        return read_pass(adapter, batch, names, sites, into.at, graph)

    reported = -1
    with _reporting(progress, len(items) if isinstance(items, Sized) else None) as report:
        for indices, found in passes(adapter, fresh(), run, batch_size=batch_size):
            taken = [read[index] for index in indices]
            for label in dict.fromkeys(label for label, _ in taken):
                rows = [row for row, item in enumerate(taken) if item[0] == label]
                into.add(label, [taken[row][1] for row in rows], [value[rows] for value in found])
            for index in indices:
                del read[index]
            done += len(taken)
            reported = done + skipped
            report(reported)
        if done + skipped > max(reported, 0):
            report(done + skipped)


def last_residuals(
    adapter: Adapter,
    requests: Iterable[Chat] | Iterable[Batch],
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
    requests: Sequence[Chat | Batch],
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
    check_rule(at)
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
    with lock_of(adapter.module):
        check_no_trace(adapter)
    if graph is not None:
        graph.check(adapter)


def _check_item(item: Labelled) -> None:
    given: Any = item
    if not isinstance(given, Labelled):
        raise ValueError(f"items holds a {type(given).__name__}; give Labelled(id, label, chat)")
    if not (isinstance(given.id, str) and isinstance(given.label, str)):
        raise ValueError(
            f"id is {given.id!r}, label is {given.label!r}; both are strings, such as str(number)"
        )
