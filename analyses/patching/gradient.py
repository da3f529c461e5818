"""Approximations of activation patching by gradients, in the same interface."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from analyses.patching.agreement import Agreement
from analyses.patching.align import Policy
from analyses.patching.budget import Budget
from analyses.patching.cells import Cell, Heads, Layers, Positions
from analyses.patching.measured import Method, Mode
from analyses.patching.recorded import Change
from analyses.patching.result import PatchResult
from analyses.patching.resumed import Resumed
from analyses.patching.running import Progress, empty_result, run_cells
from analyses.patching.setup import MEMORY, Asked, CleanRun, Metrics, Setup, set_up
from analyses.patching.whole import Whole
from model_adapters import Adapter, Batch
from model_adapters.tracer import lock_of


def attribution_sweep(
    adapter: Adapter,
    corrupted: Batch,
    clean: Batch | CleanRun,
    *,
    site: str,
    metric: Metrics,
    layers: Layers | None = None,
    positions: Positions = ("last",),
    heads: Heads = None,
    mode: Mode = "denoise",
    align: Policy = "same",
    steps: int = 0,
    check: int = 0,
    memory: int = MEMORY,
    seed: int = 0,
    progress: Progress | bool = False,
) -> PatchResult:
    """What patching each cell would do, to first order: gradient times difference of states.

    One pass forward and back serves all cells. With `steps`, gradients are integrated along the
    straight path from the states of the one run to those of the other (integrated gradients): so
    many passes a layer, and the cells of a layer add up to the effect of patching them together.

    Args:
        adapter: as for `patch_sweep`, like all that is not named here.
        corrupted: likewise.
        clean: likewise.
        site: likewise.
        metric: likewise; a function has to be differentiable.
        layers: likewise; windows are sums over their layers, and are refused with `steps`.
        positions: likewise; with `steps` they must not overlap.
        heads: likewise.
        mode: likewise.
        align: likewise.
        steps: points on the path; 0 takes the gradient of the base run alone.
        check: how many cells to patch really, drawn at random; the result's `agreement` says how
            well they agree.
        memory: for the patches of `check`, and for the points of a path at once.
        seed: of that draw, and of the result's resamples.
        progress: called with points of layers done and in all; then as for `patch_sweep`, with
            those cells done that are not in `check`.

    Raises:
        ValueError: as `patch_sweep`; also for overlapping positions or windows with `steps`.
    """
    for name, count in (("steps", steps), ("check", check)):
        if count < 0:
            raise ValueError(f"{name} is {count}; give 0 or more")
    method: Method = "integrated gradients" if steps else "gradient"
    asked = Asked(site, layers, positions, heads, metric, mode, align)
    with lock_of(adapter.module):
        with torch.no_grad():
            setup = set_up(
                adapter, corrupted, clean, asked, method=method, calls=bool(steps or check)
            )
        if steps:
            _check_paths(setup)
            gradients = _along_paths(setup, steps, memory, progress)
        else:
            gradients = _of_base(setup)
        result = _attributed(setup, gradients, method, seed)
        if check:
            exact = _sample(setup, check, memory, seed, progress)
            result = dataclasses.replace(result, agreement=agreement(exact, result))
    return result


def agreement(exact: PatchResult, approximate: PatchResult) -> Agreement:
    """How well approximate effects agree with exact ones, on the cells that both have.

    Raises:
        ValueError: for results over other cells or items.
    """
    if exact.axes != approximate.axes or exact.raw.shape != approximate.raw.shape:
        raise ValueError("the results are over different cells or items; there is no agreement")
    ours, theirs = (one.change.mean(dim=0) for one in (exact, approximate))
    return Agreement.of(ours, theirs, float((exact.clean - exact.corrupted).mean()))


def _attributed(
    setup: Setup, gradients: dict[int, Tensor], method: Method, seed: int
) -> PatchResult:
    result = empty_result(setup, method, seed)
    for cell in setup.grid.cells():
        for item in range(setup.items):
            moved = sum(_product(setup, gradients, item, cell, layer) for layer in cell.layers)
            result.raw[(item, *cell.index)] = setup.base_values[item] + moved
    return result


def _product(
    setup: Setup, gradients: dict[int, Tensor], item: int, cell: Cell, layer: int
) -> float:
    material = setup.material
    gradient = gradients[layer][item][material.at(item, cell)]
    if cell.head is not None:
        gradient = gradient[:, cell.head]
    before, after = material.before(item, cell, layer), material.after(item, cell, layer)
    return float((gradient.double() * (after.double() - before.double())).sum())


def _of_base(setup: Setup) -> dict[int, Tensor]:
    """Gradients of the metric at the site of every layer, `[item, position, *site]`."""
    leaves: dict[int, Tensor] = {}
    with torch.enable_grad():
        whole = Whole(setup.adapter, setup.base, setup.grid.hooked, setup.grid.layers)
        read = whole.run(1, _with_leaves(leaves), setup.reader)
        value = setup.measured(read, range(setup.items)).sum()
        # Layers behind the place where the metric is read move nothing.
        found = torch.autograd.grad(value, [*leaves.values()], materialize_grads=True)
    gradients = dict(zip(leaves, (one.detach() for one in found), strict=True))
    return {
        layer: gradients.get(layer, torch.zeros_like(setup.material.target[layer]))
        for layer in setup.grid.layers
    }


def _with_leaves(leaves: dict[int, Tensor]) -> Change:
    """Adds nothing to a site, in a way that gradients with respect to it can be had."""

    def change(layer: int, value: Tensor) -> Tensor:
        leaves[layer] = torch.zeros_like(value, requires_grad=True)
        return value + leaves[layer]

    return change


def _along_paths(
    setup: Setup, steps: int, memory: int, progress: Progress | bool
) -> dict[int, Tensor]:
    """Mean gradients on the way from the base run's states to those that are put in."""
    grid, width = setup.grid, setup.base.batch.roles.shape[1]
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    points = torch.tensor((nodes + 1) / 2), torch.tensor(weights / 2)
    budget = Budget(memory, setup.base.size + setup.source.size, setup.adapter, setup.reader)
    with torch.no_grad():
        room = budget.rows(width, width)
        resumed = Resumed(setup.adapter, setup.base, grid.hooked, grid.layers, room)
    whole = Whole(setup.adapter, setup.base, grid.hooked, grid.layers)
    # What a pass keeps for the way back is several times as much.
    at_once = max(room // (4 * setup.adapter.n_layers), 1)
    found = {one: _exact(torch.zeros_like(setup.material.target[one])) for one in grid.layers}
    reaching = [layer for layer in grid.layers if layer <= setup.reader.layer]
    done, total = 0, len(reaching) * steps
    with tqdm(total=total, unit=" points", disable=progress is not True) as bar:
        for layer in reaching:
            by_hand = resumed.obstacle is None and layer >= resumed.first
            some = at_once if by_hand else max(at_once // setup.items, 1)
            for share, weight in zip(*(p.split(some) for p in points), strict=True):
                if by_hand:
                    for item in range(setup.items):
                        path = _Path(setup, layer, [item] * len(share), share)
                        with torch.enable_grad():
                            read = resumed.run(item, [layer] * len(share), 0, path, setup.reader)
                        found[layer][item] += path.gradient(read, weight)[0]
                else:
                    items = [item for _ in share for item in range(setup.items)]
                    path = _Path(setup, layer, items, share.repeat_interleave(setup.items))
                    with torch.enable_grad():
                        read = whole.run(len(share), path, setup.reader)
                    found[layer] += path.gradient(read, weight.repeat_interleave(setup.items))
                done += len(share)
                bar.update(len(share))
                if callable(progress):
                    progress(done, total)
    return found


class _Path:
    """A `Change` that puts every row at its point of the path, at one layer."""

    def __init__(
        self, setup: Setup, layer: int, items: Sequence[int], points: Float[Tensor, "row"]
    ) -> None:
        self.setup, self.layer, self.items, self.points = setup, layer, items, points
        self.leaf: Tensor | None = None

    def __call__(self, layer: int, value: Tensor) -> Tensor | None:
        if layer != self.layer:
            return None
        new, material = value.clone(), self.setup.material
        for row, (item, point) in enumerate(zip(self.items, self.points.tolist(), strict=True)):
            for cell in _one_layer(self.setup, layer):
                before = material.before(item, cell, layer)
                moved = before + point * (material.after(item, cell, layer) - before)
                at = material.at(item, cell)
                if cell.head is None:
                    new[row, at] = moved
                else:
                    new[row, at, cell.head] = moved
        self.leaf = torch.zeros_like(value, requires_grad=True)
        return new + self.leaf

    def gradient(self, read: Tensor, weights: Float[Tensor, "row"]) -> Tensor:
        """The weighted mean for each item, `[item, position, *site]`."""
        assert self.leaf is not None
        with torch.enable_grad():
            value = self.setup.measured(read, self.items).sum()
            (of_rows,) = torch.autograd.grad(value, [self.leaf], materialize_grads=True)
        found = _exact(of_rows)
        scaled = found * weights.to(found).reshape(-1, *[1] * (found.ndim - 1))
        rows = len(set(self.items))
        return scaled.reshape(-1, rows, *found.shape[1:]).sum(dim=0)


def _exact(values: Tensor) -> Tensor:
    """In at least float32, for sums."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _one_layer(setup: Setup, layer: int) -> list[Cell]:
    return [cell for cell in setup.grid.cells() if cell.layers == (layer,)]


def _check_paths(setup: Setup) -> None:
    if any(len(window) > 1 for window in setup.grid.windows):
        raise ValueError("with steps each layer has a path of its own; give layers, not windows")
    for item, of_item in enumerate(setup.material.alignments):
        taken = torch.cat([alignment.targets for alignment in of_item])
        if len(taken.unique()) < len(taken):
            raise ValueError(
                f"item {item}: positions overlap. With steps the positions of a layer move "
                "together, so that each may move only once; sweep over one set at a time"
            )


def _sample(
    setup: Setup, check: int, memory: int, seed: int, progress: Progress | bool
) -> PatchResult:
    """Some cells patched really; the others are NaN."""
    empty = empty_result(setup, "exact", seed)
    cells = list(setup.grid.cells())
    draw = torch.Generator().manual_seed(seed)
    drawn = torch.randperm(len(cells), generator=draw)[:check].tolist()
    wanted = torch.zeros_like(empty.raw, dtype=torch.bool)
    for number in drawn:
        wanted[(slice(None), *cells[number].index)] = True
    # What is there already is not run.
    with torch.no_grad():
        start = dataclasses.replace(
            empty, raw=torch.zeros_like(empty.raw).where(~wanted, empty.raw)
        )
        found = run_cells(setup, memory, start, progress=progress)
    return dataclasses.replace(found, raw=found.raw.where(wanted, empty.raw))
