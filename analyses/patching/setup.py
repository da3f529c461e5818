"""Both runs of a sweep, recorded and checked, before any cell is run."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from analyses.patching.align import Alignment, Policy, align
from analyses.patching.axes import Axis
from analyses.patching.cells import Grid, Heads, Layers, Material, Positions, make_grid
from analyses.patching.measured import Mode
from analyses.patching.metrics import Coordinate, Metric, as_metric
from analyses.patching.recorded import Reader, Recorded, record
from model_adapters import Adapter, Batch


@dataclass(frozen=True, eq=False)
class CleanRun:
    """A clean run kept for several sweeps of one site; made by `remember`."""

    site: str
    recorded: Recorded
    place: tuple[str, int | None]
    """Where the metric was read."""


Metrics = Metric | Callable[[Tensor], Any]
MEMORY = 2 * 2**30
"""Bytes that a sweep may use beside the model, if nothing is said."""


@torch.no_grad()
def remember(
    adapter: Adapter,
    clean: Batch,
    *,
    site: str,
    layers: Sequence[int] | None = None,
    metric: Metrics,
) -> CleanRun:
    """Run the clean batch once, for several sweeps.

    Args:
        adapter: the model.
        clean: the runs that states come from.
        site: that will be patched.
        layers: at which it will be; None for all.
        metric: any of those that read at the same place: all metrics of logits do.
    """
    grid = make_grid(adapter, clean, site=site, layers=layers, positions=["last"], heads=None)
    reader = Reader(adapter, as_metric(metric))
    return CleanRun(
        grid.hooked, record(adapter, clean, grid.hooked, grid.layers, reader), reader.place
    )


@dataclass(frozen=True, eq=False)
class Asked:
    """What exact and approximate sweeps are asked for; see `patch_sweep`."""

    site: str
    layers: Layers | None
    positions: Positions
    heads: Heads
    metric: Metrics
    mode: Mode
    policy: Policy

    def __post_init__(self) -> None:
        """Refuse a mode that there is not."""
        if self.mode not in get_args(Mode):
            raise ValueError(f'mode is {self.mode!r}; it is "denoise" or "noise"')

    def grid(self, adapter: Adapter, target: Batch) -> Grid:
        """Its cells."""
        return make_grid(
            adapter,
            target,
            site=self.site,
            layers=self.layers,
            positions=self.positions,
            heads=self.heads,
        )


@dataclass(frozen=True, eq=False)
class Setup:
    """What exact and approximate sweeps share."""

    adapter: Adapter
    grid: Grid
    reader: Reader
    base: Recorded
    source: Recorded
    material: Material
    seen_clean: Tensor
    corrupted: Float[Tensor, "item"]
    clean: Float[Tensor, "item"]
    mode: Mode
    recipe: str

    @property
    def items(self) -> int:
        """Pairs of runs."""
        return len(self.base.batch)

    @property
    def base_values(self) -> Float[Tensor, "item"]:
        """The metric of the runs that are patched, before."""
        return self.corrupted if self.mode == "denoise" else self.clean

    @property
    def axes(self) -> tuple[Axis, ...]:
        """Axes of the result, positions with their tokens."""
        tokens = self._tokens()
        return tuple(
            replace(axis, tokens=tokens) if axis.name == "position" else axis
            for axis in self.grid.axes
        )

    def _tokens(self) -> tuple[str, ...]:
        """See `Axis.tokens`."""
        tokenizer, batch = self.adapter.tokenizer, self.base.batch
        if tokenizer is None:
            return ()
        found = []
        for of_position in zip(*self.material.alignments, strict=True):
            places = [one.targets.tolist() for one in of_position]
            ids = {
                int(batch.inputs["input_ids"][row, at])
                for row, of_item in enumerate(places)
                for at in of_item
            }
            single = len(ids) == 1 and all(len(of_item) == 1 for of_item in places)
            found.append(tokenizer.decode(list(ids)) if single else "")
        return tuple(found)

    def measured(self, read: Tensor, items: Sequence[int]) -> Float[Tensor, "row"]:
        """The metric of states where it is read, on the CPU unless gradients are wanted."""
        found = self.reader.metric.of(self.reader.seen(read), items, self.seen_clean)
        return found if found.requires_grad else found.double().cpu()


def set_up(
    adapter: Adapter,
    corrupted: Batch,
    clean: Batch | CleanRun,
    asked: Asked,
    *,
    method: str,
    calls: bool,
) -> Setup:
    """Check everything, and record both runs, with the calls of layers where they are needed.

    Raises:
        ValueError: for what cannot be patched, or runs that cannot be aligned.
    """
    mode, policy = asked.mode, asked.policy
    clean_batch = clean.recorded.batch if isinstance(clean, CleanRun) else clean
    if len(corrupted) != len(clean_batch):
        raise ValueError(
            f"{len(corrupted)} corrupted runs and {len(clean_batch)} clean ones; row i of one "
            "belongs to row i of the other"
        )
    target, other = (corrupted, clean) if mode == "denoise" else (clean, corrupted)
    if isinstance(target, CleanRun):
        raise ValueError('with mode="noise" the clean run is patched: give its batch instead')
    grid, reader = asked.grid(adapter, target), Reader(adapter, as_metric(asked.metric))
    _check_place(adapter, reader)
    other_batch = other.recorded.batch if isinstance(other, CleanRun) else other
    alignments = [
        [align(target, other_batch, row, one, policy) for one in grid.positions]
        for row in range(len(target))
    ]
    if isinstance(other, CleanRun):
        source = _kept(other, grid, reader)
    else:
        source = record(adapter, other, grid.hooked, grid.layers, reader)
    base = record(adapter, target, grid.hooked, grid.layers, reader, calls=calls)
    runs = (base, source) if mode == "denoise" else (source, base)
    items = range(len(target))
    seen = [reader.seen(run.read) for run in runs]
    values = [reader.metric.of(one, items, seen[1]).double().cpu() for one in seen]
    if not all(bool(one.isfinite().all()) for one in values):
        raise ValueError(f"the metric {reader.metric.name} is not finite on the unpatched runs")
    what = [method, grid.site, grid.axes, mode, policy, reader.metric.name, adapter.fingerprint]
    return Setup(
        adapter,
        grid,
        reader,
        base,
        source,
        Material(base.site, source.site, alignments),
        seen[1],
        values[0],
        values[1],
        mode,
        _digest(what, reader.metric, alignments, target, other_batch),
    )


def _check_place(adapter: Adapter, reader: Reader) -> None:
    metric = reader.metric
    if metric.place is None:
        return
    site, layer = metric.place
    if site not in ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out"):
        raise ValueError(f"the metric reads {site}; coordinates are read in the stream")
    adapter.resid_post.number(layer)
    if isinstance(metric, Coordinate) and metric.direction.origin is not None:
        of = metric.direction.origin.model
        if of != adapter.fingerprint:
            raise ValueError(
                f"the direction was measured on another model ({of[:12]}..., this one is "
                f"{adapter.fingerprint[:12]}...)"
            )


def _kept(clean: CleanRun, grid: Grid, reader: Reader) -> Recorded:
    missing = sorted(set(grid.layers) - set(clean.recorded.site))
    if clean.site != grid.hooked or missing or clean.place != reader.place:
        raise ValueError(
            f"the clean run was remembered at {clean.site}, layers "
            f"{sorted(clean.recorded.site)}, for a metric read at {clean.place}; this sweep needs "
            f"{grid.hooked}, layers {list(grid.layers)}, read at {reader.place}"
        )
    return clean.recorded


def _digest(
    what: Sequence[object],
    metric: Metric,
    alignments: Sequence[Sequence[Alignment]],
    *batches: Batch,
) -> str:
    """sha256 over everything that the numbers depend on, as far as it has a written form."""
    found = hashlib.sha256(repr(what).encode())
    tensors: list[Tensor] = [t for batch in batches for t in _tensors(batch.inputs)]
    tensors += [t for of_item in alignments for one in of_item for t in (one.targets, one.sources)]
    if isinstance(metric, Coordinate):
        tensors += [metric.direction.vector, metric.direction.centre]
    for tensor in tensors:
        found.update(f"{tensor.dtype} {tuple(tensor.shape)};".encode())
        flat = tensor.detach().cpu().contiguous().flatten()
        found.update(flat.view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from (t for name in sorted(value) for t in _tensors(value[name]))
    elif isinstance(value, list | tuple):
        yield from (t for one in value for t in _tensors(one))
    elif value is not None:
        yield torch.frombuffer(
            bytearray(json.dumps(value, default=str).encode()), dtype=torch.uint8
        )
