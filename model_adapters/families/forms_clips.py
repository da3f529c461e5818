"""Lists of pictures: the frames of videos, tiles, the pictures of a request."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from model_adapters.errors import InputError
from model_adapters.families.forms_anyres import NEWLINE
from model_adapters.families.medium import Config, Inputs, Item, Join, Medium

Cells = Callable[[Config], tuple[int, int]]
"""Rows and columns of the positions of one picture, tile or frame."""


@dataclass(frozen=True, kw_only=True)
class Padded(Medium):
    """Pictures or tiles listed by request: `values` is `[rows, items, 3, height, width]`.

    Lists are filled up with items of zeros, which the model takes out again wherever they stand.
    """

    mask: str
    """Input name of the mask of true pixels, `[rows, items, height, width]`."""
    side: Callable[[Config], int]
    """Pixels on a side."""
    cells: Cells | None = None
    """None where positions are latents that stand for no place."""
    positions: Callable[[Config], int] = lambda config: 0
    """Where `cells` is None."""

    def joins(self) -> dict[str, Join]:
        """Rows one after another, lists filled up to the longest."""
        return {self.values: Join(), self.mask: Join()}

    def check(self, inputs: Inputs, config: Config) -> None:
        """A mask of the same pictures, each with something in it, as large as they have to be."""
        values, mask, side = inputs[self.values], inputs[self.mask], self.side(config)
        if values.ndim != 5 or mask.shape != (*values.shape[:2], *values.shape[3:]):
            raise InputError(
                f"{self.values} has shape {tuple(values.shape)} [rows, items, 3, height, width], "
                f"{self.mask} {tuple(mask.shape)} [rows, items, height, width]"
            )
        blank = (values.flatten(2) != 0).any(dim=2) & ~mask.bool().flatten(2).any(dim=2)
        if bool(blank.any()):
            raise InputError(f"{self.mask} hides whole pictures of {self.values}; leave them out")
        if self.cells is not None and tuple(values.shape[3:]) != (side, side):
            raise InputError(
                f"{self.values} has pictures of {tuple(values.shape[3:])} pixels; this model "
                f"takes {side} by {side}"
            )

    def items(self, inputs: Inputs, config: Config) -> list[Item]:
        """One for each picture that is not all zero."""
        count = int((inputs[self.values].flatten(0, 1).flatten(1) != 0).any(dim=1).sum())
        if self.cells is None:
            return [Item(self.positions(config))] * count
        rows, cols = self.cells(config)
        return [Item(rows * cols, grid=(1, rows, cols))] * count

    def example(self, config: Config, generator: torch.Generator, size: int) -> dict[str, Tensor]:
        """One picture, a low one if it may be, or two."""
        width = self.side(config)
        height = width if size or self.cells is not None else width // 2
        values = torch.randn(1, 1 + size, 3, height, width, generator=generator)
        mask = torch.ones(1, 1 + size, height, width, dtype=torch.long)
        return {self.values: values, self.mask: mask}


@dataclass(frozen=True, kw_only=True)
class Clips(Medium):
    """Videos of equally many frames: `values` is `[items, frames, 3, side, side]`."""

    side: Callable[[Config], int]
    """Pixels on a side."""
    cells: Cells
    """Of one frame."""
    class_token: bool = False
    """Whether the encoder's class token stands before the cells of each frame."""

    def joins(self) -> dict[str, Join]:
        """Items one after another."""
        return {self.values: Join(fill=None)}

    def check(self, inputs: Inputs, config: Config) -> None:
        """Frames of the size that the encoder takes."""
        values, side = inputs[self.values], self.side(config)
        if values.ndim != 5 or tuple(values.shape[3:]) != (side, side):
            raise InputError(
                f"{self.values} has shape {tuple(values.shape)}; this model takes [items, frames, "
                f"3, {side}, {side}]"
            )

    def items(self, inputs: Inputs, config: Config) -> list[Item]:
        """One for each video."""
        (count, frames), (rows, cols) = inputs[self.values].shape[:2], self.cells(config)
        if self.class_token:
            return [Item(frames * (1 + rows * cols))] * count
        return [Item(frames * rows * cols, grid=(frames, rows, cols))] * count

    def example(self, config: Config, generator: torch.Generator, size: int) -> dict[str, Tensor]:
        """One video of two frames, or two of them."""
        side = self.side(config)
        return {self.values: torch.randn(1 + size, 2, 3, side, side, generator=generator)}


@dataclass(frozen=True, kw_only=True)
class Tiles(Clips):
    """Pictures as lists of tiles: `values` is `[items, tiles, 3, side, side]`.

    The model forgets which tile is whose, so requests with other numbers of tiles can be joined.
    """

    def joined(self, name: str, encodings: Sequence[Inputs], starts: Sequence[int]) -> Any:
        """All tiles one after another, as those of one picture."""
        given = [torch.as_tensor(e[name]) for e in encodings if e.get(name) is not None]
        return torch.cat([tiles.flatten(0, 1) for tiles in given])[None] if given else None

    def items(self, inputs: Inputs, config: Config) -> list[Item]:
        """One for each tile."""
        (count, tiles), (rows, cols) = inputs[self.values].shape[:2], self.cells(config)
        return [Item(rows * cols, grid=(1, rows, cols))] * (count * tiles)

    def example(self, config: Config, generator: torch.Generator, size: int) -> dict[str, Tensor]:
        """One tile, or two."""
        side = self.side(config)
        return {self.values: torch.randn(1, 1 + size, 3, side, side, generator=generator)}


@dataclass(frozen=True, kw_only=True)
class PooledClips(Clips):
    """Videos pooled behind the projector, with one newline vector at the end of each."""

    pooled: Callable[[Any, Tensor], Tensor]
    """What the model makes of the projected frames, given its `model` and them."""

    def items(self, inputs: Inputs, config: Config) -> list[Item]:
        """Two for each video: its frames, and the newline."""
        return [item for clip in super().items(inputs, config) for item in (clip, NEWLINE)]

    def vectors(self, outputs: Sequence[Tensor], module: nn.Module, inputs: Inputs) -> Tensor:
        """The projected frames pooled, video after video."""
        core: Any = module.get_submodule("model")
        clips = self.pooled(core, torch.cat(list(outputs)))
        clips = clips.reshape(len(inputs[self.values]), -1, clips.shape[-1])
        end = core.image_newline.expand(len(clips), 1, -1)
        return torch.cat((clips, end), dim=1).flatten(0, 1)
