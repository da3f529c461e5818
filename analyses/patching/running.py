"""Running the cells of a sweep: which together, from where, and what is kept of them."""

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor
from tqdm import tqdm

from analyses.patching.budget import Budget
from analyses.patching.cells import Cell
from analyses.patching.measured import Method
from analyses.patching.result import PatchResult
from analyses.patching.resumed import Resumed
from analyses.patching.setup import Setup
from analyses.patching.whole import Whole
from regap_interp._interrupt import whole as uninterrupted

Progress = Callable[[int, int], None]
"""Called with (cells of items done, in all) after every batch of them."""

_SPARE = 128
"""Positions that may be computed for nothing to have one batch in place of two."""
_AT_ONCE = 512
"""Positions in one batch: more of them outgrow the caches of a processor."""
_SAVE_EVERY = 5.0
"""Seconds between two writes of a checkpoint."""


class SweepInterrupted(KeyboardInterrupt):
    """A sweep was interrupted; `partial` holds what was finished, for `resume`."""

    def __init__(self, partial: PatchResult) -> None:
        done = int((~partial.raw.isnan()).sum())
        super().__init__(
            f"interrupted after {done} of {partial.raw.numel()} cells; they are kept: give "
            "resume=error.partial (in a notebook sys.last_value.partial) to the same call"
        )
        self.partial = partial


def run_cells(
    setup: Setup,
    memory: int,
    done: PatchResult,
    *,
    progress: Progress | bool = False,
    checkpoint: str | Path | None = None,
) -> PatchResult:
    """Run the cells that are NaN in `done`; see `patch_sweep`."""
    return _Run(setup, memory, done, progress, checkpoint).finish()


def empty_result(setup: Setup, method: Method, seed: int) -> PatchResult:
    """A result whose cells have not been run."""
    grid = setup.grid
    return PatchResult(
        raw=torch.full(
            (setup.items, *(len(axis.labels) for axis in setup.axes)),
            torch.nan,
            dtype=torch.float64,
        ),
        axes=setup.axes,
        corrupted=setup.corrupted,
        clean=setup.clean,
        site=grid.site,
        metric=setup.reader.name,
        mode=setup.mode,
        method=method,
        model=setup.adapter.model_id,
        recipe=setup.recipe,
        seed=seed,
    )


class _Run:
    """Runs the cells of a sweep that are not finished."""

    def __init__(
        self,
        setup: Setup,
        memory: int,
        done: PatchResult,
        progress: Progress | bool,
        checkpoint: str | Path | None,
    ) -> None:
        self.setup, self.done, self.checkpoint = setup, done, checkpoint
        self.raw = done.raw.clone()
        self.passes = {"resumed": 0, "whole": 0, "unchanged": 0}
        self.progress = progress
        grid, adapter = setup.grid, setup.adapter
        width = setup.base.batch.roles.shape[1]
        kept = setup.base.size + setup.source.size
        self.resumed: Resumed | None = None
        if bool(self.raw.isnan().any()):
            room = Budget(memory, kept, adapter, setup.reader).rows(width, width)
            self.resumed = Resumed(adapter, setup.base, grid.hooked, grid.layers, room)
            kept += self.resumed.size
        self.budget = Budget(memory, kept, adapter, setup.reader)
        self.whole = Whole(adapter, setup.base, grid.hooked, grid.layers)
        self.width, self.saved_at = width, time.monotonic()

    def finish(self) -> PatchResult:
        """Run what is left."""
        left = int(self.raw.isnan().sum())
        with tqdm(total=left, unit=" cells", disable=self.progress is not True) as bar:
            try:
                try:
                    self._go_on(bar)
                finally:
                    self._save()
            except KeyboardInterrupt:
                raise SweepInterrupted(self._result()) from None
        return self._result()

    def _go_on(self, bar: "tqdm[NoReturn]") -> None:
        for finished in self._batches():
            bar.update(finished)
            if callable(self.progress):
                missing = int(self.raw.isnan().sum())
                self.progress(self.raw.numel() - missing, self.raw.numel())
            if time.monotonic() - self.saved_at > _SAVE_EVERY:
                self._save()

    def _result(self) -> PatchResult:
        resumed = self.resumed
        notes: tuple[str, ...] = ()
        if resumed is not None and resumed.obstacle is not None:
            notes = (f"whole passes: {resumed.obstacle}",)
        elif resumed is not None and resumed.slower is not None:
            notes = (f"earlier positions were computed again: {resumed.slower}",)
        return dataclasses.replace(self.done, raw=self.raw, passes=self.passes, notes=notes)

    def _save(self) -> None:
        if self.checkpoint is not None:
            with uninterrupted():
                self._result().save(self.checkpoint)
                self.saved_at = time.monotonic()

    def _keep(self, rows: Sequence[tuple[int, Cell]], values: Tensor, how: str) -> int:
        with uninterrupted():
            finished = 0
            for (item, cell), value in zip(rows, values.tolist(), strict=True):
                # Whole passes hold items that may have been finished before.
                if self.raw[(item, *cell.index)].isnan():
                    self.raw[(item, *cell.index)] = value
                    finished += 1
            self.passes[how] += finished
        return finished

    def _batches(self) -> Iterator[int]:
        """Run batch after batch; yields how many cells of items each has finished."""
        cells = list(self.setup.grid.cells())
        whole: list[Cell] = []
        resumed = self.resumed
        for item in range(self.setup.items):
            missing = [c for c in cells if bool(self.raw[(item, *c.index)].isnan())]
            changing = [c for c in missing if self._reaches(c) and self._changes(item, c)]
            still = set(missing) - set(changing)
            if still:
                base = self.setup.base_values[item].expand(len(still))
                yield self._keep([(item, cell) for cell in still], base, "unchanged")
            if resumed is None or resumed.obstacle is not None:
                whole += changing
                continue
            whole += [cell for cell in changing if min(cell.layers) < resumed.first]
            later = [cell for cell in changing if min(cell.layers) >= resumed.first]
            for start, some in self._scheduled(item, later):
                yield self._resume(item, start, some)
        yield from self._run_whole(list(dict.fromkeys(whole)))

    def _reaches(self, cell: Cell) -> bool:
        """Whether the metric is read behind the cell."""
        return min(cell.layers) <= self.setup.reader.layer

    def _changes(self, item: int, cell: Cell) -> bool:
        return self.setup.material.changes(item, cell)

    def _scheduled(self, item: int, cells: Iterable[Cell]) -> Iterator[tuple[int, list[Cell]]]:
        """Cells that begin at the same position, or nearly, and fit into memory together."""
        assert self.resumed is not None
        groups: dict[int, list[Cell]] = {}
        for cell in cells:
            first = int(self.setup.material.at(item, cell).min())
            groups.setdefault(self.resumed.sound(item, first), []).append(cell)
        for start, group in _merged(groups, self.width).items():
            group.sort(key=lambda cell: cell.layers[0])
            room = self.budget.rows(self.width - start, self.width)
            room = min(room, max(_AT_ONCE // (self.width - start), 1))
            for at in range(0, len(group), room):
                yield start, group[at : at + room]

    def _resume(self, item: int, start: int, cells: list[Cell]) -> int:
        assert self.resumed is not None
        setup, rows = self.setup, [(item, cell) for cell in cells]
        change = setup.material.patching(rows, start)
        entries = [cell.layers[0] for cell in cells]
        read = self.resumed.run(item, entries, start, change, setup.reader)
        return self._keep(rows, setup.measured(read, [item] * len(cells)), "resumed")

    def _run_whole(self, cells: Sequence[Cell]) -> Iterator[int]:
        """All items at once, several cells in copies of the batch."""
        setup, items = self.setup, self.setup.items
        copies = max(self.budget.rows(self.width, self.width) // items, 1) if cells else 1
        for at in range(0, len(cells), copies):
            some = cells[at : at + copies]
            rows = [(item, cell) for cell in some for item in range(items)]
            change = setup.material.patching(rows, 0)
            read = self.whole.run(len(some), change, setup.reader)
            values = setup.measured(read, [item for item, _ in rows])
            yield self._keep(rows, values, "whole")


def _merged(groups: Mapping[int, list[Cell]], width: int) -> dict[int, list[Cell]]:
    """Small groups that begin a few positions apart as one, from the earlier position on.

    Args:
        groups: cells by the position that they begin at.
        width: positions of the prompt.
    """
    merged: dict[int, list[Cell]] = {}
    later: int | None = None
    spare = 0
    for start in sorted(groups, reverse=True):
        spare += 0 if later is None else (later - start) * len(merged[later])
        full = later is None or len(merged[later]) * (width - later) >= _AT_ONCE
        if later is None or full or spare > _SPARE:
            merged[start], spare = list(groups[start]), 0
        else:
            merged[start] = [*groups[start], *merged.pop(later)]
        later = start
    return merged
