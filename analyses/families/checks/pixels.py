"""Where each pixel or patch of an encoding lies in its item, read off the inputs of each form.

This is said a second time here, without `Medium.items`, to be compared with it.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from model_adapters.families.forms_anyres import AnyRes
from model_adapters.families.forms_clips import Clips, Padded, PooledClips, Tiles
from model_adapters.families.forms_grid import Grid, OwnMerge
from model_adapters.families.forms_patches import Placed, Shaped, Strip
from model_adapters.families.forms_pictures import Mapped, Pictures, Sized
from model_adapters.families.medium import Config, Inputs, Medium

Where = Float[Tensor, "unit 4"]
"""Of each pixel or patch: number of its item (-1 for none), then time, row and column from 0 to
1."""


@dataclass(frozen=True)
class Units:
    """The pixels or patches of an input."""

    where: Where
    fold: Callable[[Tensor], Tensor]
    """From something about every value of the input to one number a pixel or patch."""


@functools.singledispatch
def units(medium: Medium, inputs: Inputs, config: Config) -> Units | None:
    """The pixels or patches of a form; None for forms of which nothing is said here."""
    return None


def _raster(item: int, time: float, rows: int, columns: int) -> Where:
    """A picture, row after row."""
    down = (torch.arange(rows) + 0.5) / rows
    across = (torch.arange(columns) + 0.5) / columns
    places = torch.cartesian_prod(down, across)
    before = torch.tensor([float(item), time]).expand(len(places), 2)
    return torch.cat([before, places], dim=1)


def _blocks(item: int, times: int, rows: int, columns: int, side: int) -> Where:
    """Frames in squares of `side` by `side` patches, one square after another."""
    frames = []
    for time in range(times):
        frame = _raster(item, (time + 0.5) / times, rows, columns)
        frame = frame.reshape(rows // side, side, columns // side, side, 4)
        frames.append(frame.transpose(1, 2).reshape(-1, 4))
    return torch.cat(frames)


def _of_pixels(where: list[Where]) -> Units:
    """Pictures with their channels before rows and columns."""
    return Units(torch.cat(where), lambda value: value.sum(dim=-3).flatten())


@units.register(Pictures)
@units.register(Mapped)
def _pictures(medium: Any, inputs: Inputs, config: Config) -> Units:
    values = inputs[medium.values]
    return _of_pixels([_raster(n, 0.5, *values.shape[2:]) for n in range(len(values))])


@units.register
def _sized(medium: Sized, inputs: Inputs, config: Config) -> Units:
    values = inputs[medium.values]
    where = []
    for item, size in enumerate(inputs[medium.sizes]):
        whole = _raster(item, 0.5, *values.shape[2:])
        whole[:, 2:] *= torch.tensor(values.shape[2:]) / size
        where.append(_none_beyond(whole))
    return _of_pixels(where)


def _none_beyond(where: Where) -> Where:
    """Pixels that lie outside of their item are none of it."""
    outside = ((where[:, 2:] < 0) | (where[:, 2:] >= 1)).any(dim=1)
    where[outside, 0] = -1
    return where


@units.register
def _padded(medium: Padded, inputs: Inputs, config: Config) -> Units:
    where, item = [], 0
    for picture in inputs[medium.values].flatten(0, 1):
        true = bool((picture != 0).any())
        where.append(_raster(item if true else -1, 0.5, *picture.shape[1:]))
        item += true
    return _of_pixels(where)


@units.register
def _clips(medium: Clips, inputs: Inputs, config: Config) -> Units:
    clips, frames, _, height, width = inputs[medium.values].shape
    # With a pooled clip comes a second item, its newline.
    step = 2 if isinstance(medium, PooledClips) else 1
    times = [(step * n, (f + 0.5) / frames) for n in range(clips) for f in range(frames)]
    return _of_pixels([_raster(item, time, height, width) for item, time in times])


@units.register
def _tiles(medium: Tiles, inputs: Inputs, config: Config) -> Units:
    pictures, tiles, _, height, width = inputs[medium.values].shape
    return _of_pixels([_raster(n, 0.5, height, width) for n in range(pictures * tiles)])


@units.register
def _anyres(medium: AnyRes, inputs: Inputs, config: Config) -> Units:
    from transformers.image_processing_utils import select_best_resolution

    values = inputs[medium.values]
    count, side = values.shape[1], values.shape[-1]
    where = []
    for number, size in enumerate(inputs[medium.sizes].tolist()):
        fit = torch.tensor(select_best_resolution(size, config.image_grid_pinpoints))
        true = torch.tensor(size)
        # The picture fills the tiles along one side and lies in their middle along the other.
        true = true * (fit / true).min()
        edge = (fit - true) / 2
        where.append(_raster(2 * number, 0.5, side, side))
        columns = int(fit[1]) // side
        for tile in range(count - 1):
            corner = torch.tensor([tile // columns, tile % columns]) * side
            inside = _raster(2 * number + 1, 0.5, side, side)
            inside[:, 2:] = (inside[:, 2:] * side + corner - edge) / true
            where.append(_none_beyond(inside))
    return _of_pixels(where)


@units.register
def _grid(medium: Grid, inputs: Inputs, config: Config) -> Units:
    """Patches that keep their shape come row after row, flattened ones in merged squares."""
    where = []
    for item, (times, rows, columns) in enumerate(inputs[medium.grid].tolist()):
        side = medium.merge(config) if medium.channels is None else 1
        if isinstance(medium, OwnMerge):
            side = int(inputs[medium.sizes][item])
        where.append(_blocks(item, times, rows, columns, side))
    return Units(torch.cat(where), lambda value: value.flatten(1).sum(dim=1))


@units.register
def _shaped(medium: Shaped, inputs: Inputs, config: Config) -> Units:
    where = []
    for item, (rows, columns) in enumerate(inputs[medium.shapes].tolist()):
        padded = torch.full((inputs[medium.values].shape[1], 4), -1.0)
        padded[: rows * columns] = _raster(item, 0.5, rows, columns)
        where.append(padded)
    return Units(torch.cat(where), lambda value: value.sum(dim=-1).flatten())


@units.register
def _placed(medium: Placed, inputs: Inputs, config: Config) -> Units:
    places = inputs[medium.places]
    counts = [1] * len(places) if medium.counts is None else inputs[medium.counts].tolist()
    frames = [(n, (f + 0.5) / count) for n, count in enumerate(counts) for f in range(count)]
    where = []
    for (item, time), of_frame in zip(frames, places, strict=True):
        column, row = ((axis + 0.5) / (axis.max() + 1) for axis in of_frame.unbind(dim=-1))
        number = torch.where(of_frame[:, 0] < 0, -1.0, float(item))
        where.append(torch.stack([number, torch.full_like(row, time), row, column], dim=1))
    return Units(torch.cat(where), lambda value: value.sum(dim=-1).flatten())


@units.register
def _strip(medium: Strip, inputs: Inputs, config: Config) -> Units:
    side = medium.patch(config)
    crops = enumerate(inputs[medium.sizes].tolist())
    where = [_raster(item, 0.5, rows, columns) for item, (rows, columns) in crops]
    return Units(
        torch.cat(where),
        lambda value: value.flatten(0, -2).sum(dim=0).unflatten(0, (-1, side)).sum(dim=1),
    )
