"""Pictures as pixels: of one size, of several, of any."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from model_adapters.errors import InputError
from model_adapters.families.medium import Config, Inputs, Item, Join, Medium, rectangles
from model_adapters.families.refusals import require_counts


@dataclass(frozen=True, kw_only=True)
class Pictures(Medium):
    """Images (or tiles of images) of one size: `values` is `[items, 3, height, width]`."""

    side: Callable[[Config], int]
    """Pixels on a side."""
    positions: Callable[[Config], int]
    """Prompt positions of one item; a square number of them is a grid in row-major order."""

    def joins(self) -> dict[str, Join]:
        """Items one after another."""
        return {self.values: Join()}

    def check(self, inputs: Inputs, config: Config) -> None:
        """All of the one size that the encoder takes."""
        values, side = inputs[self.values], self.side(config)
        if values.ndim != 4 or tuple(values.shape[1:]) != (3, side, side):
            raise InputError(
                f"{self.values} has shape {tuple(values.shape)}; this model takes [items, 3, "
                f"{side}, {side}]"
            )

    def items(self, inputs: Inputs, config: Config) -> list[Item]:
        """One for each picture or tile."""
        count = self.positions(config)
        edge = round(count**0.5)
        grid = (1, edge, edge) if edge * edge == count else None
        return [Item(count, grid=grid)] * len(inputs[self.values])

    def example(self, config: Config, generator: torch.Generator, size: int) -> dict[str, Tensor]:
        """One picture, or two tiles."""
        side = self.side(config)
        return {self.values: torch.randn(1 + size, 3, side, side, generator=generator)}


@dataclass(frozen=True, kw_only=True)
class Twofold(Pictures):
    """Pictures given to a second encoder as well, `[items, 3, height, width]` of another size."""

    second: str
    """Input name of the pictures for the second encoder."""
    second_side: Callable[[Config], int]
    """Their pixels on a side."""

    def joins(self) -> dict[str, Join]:
        """Items one after another."""
        return {**super().joins(), self.second: Join()}

    def check(self, inputs: Inputs, config: Config) -> None:
        """The same pictures for both."""
        super().check(inputs, config)
        side = self.second_side(config)
        expected = (len(inputs[self.values]), 3, side, side)
        if tuple(inputs[self.second].shape) != expected:
            raise InputError(
                f"{self.second} has shape {tuple(inputs[self.second].shape)}; beside this "
                f"{self.values}, the model takes {expected}"
            )

    def example(self, config: Config, generator: torch.Generator, size: int) -> dict[str, Tensor]:
        """One picture, or two."""
        first = super().example(config, generator, size)
        side = self.second_side(config)
        return {**first, self.second: torch.randn(1 + size, 3, side, side, generator=generator)}


@dataclass(frozen=True, kw_only=True)
class Mapped(Medium):
    """Pictures for a convolutional encoder: `values` is `[items, 3, height, width]`, of any size.

    All pictures of a batch are of one size.
    """

    stride: int
    """Pixels on a side of what one prompt position stands for."""

    def joins(self) -> dict[str, Join]:
        """Items one after another."""
        return {self.values: Join(fill=None)}

    def check(self, inputs: Inputs, config: Config) -> None:
        """Sides that the encoder's map divides evenly."""
        values = inputs[self.values]
        if values.ndim != 4 or any(length % self.stride for length in values.shape[2:]):
            raise InputError(
                f"{self.values} has shape {tuple(values.shape)}; this model takes [items, 3, "
                f"height, width], both multiples of {self.stride}"
            )

    def items(self, inputs: Inputs, config: Config) -> list[Item]:
        """One for each picture."""
        values = inputs[self.values]
        return rectangles([values.shape[2:]] * len(values), self.stride)

    def example(self, config: Config, generator: torch.Generator, size: int) -> dict[str, Tensor]:
        """One picture of one by two positions, or two."""
        shape = (1 + size, 3, self.stride, 2 * self.stride)
        return {self.values: torch.randn(shape, generator=generator)}


@dataclass(frozen=True, kw_only=True)
class Sized(Medium):
    """Pictures of any size, filled up to one: `values` is `[items, 3, height, width]` (Pixtral)."""

    sizes: str
    """Input name of the true sizes, `[items, 2]`: height and width in pixels."""
    cell: Callable[[Config], int]
    """Pixels on a side of what one prompt position stands for."""
    row_break: int | None = None
    """Token between two rows, an ordinary one to the model; None where there is none."""

    def joins(self) -> dict[str, Join]:
        """Items one after another, filled up to the largest."""
        return {self.values: Join(), self.sizes: Join()}

    def check(self, inputs: Inputs, config: Config) -> None:
        """A size for each picture, none beyond what `values` holds."""
        require_counts(inputs, self.sizes, 2)
        values, sizes = inputs[self.values], inputs[self.sizes]
        fit = values.ndim == 4 and sizes.shape == (len(values), 2)
        if not fit or (sizes.amax(dim=0).cpu() > torch.tensor(values.shape[2:])).any():
            raise InputError(
                f"{self.values} has shape {tuple(values.shape)} [items, 3, height, width], which "
                f"does not hold pictures of the {self.sizes} {sizes.tolist()} (height, width)"
            )

    def items(self, inputs: Inputs, config: Config) -> list[Item]:
        """One for each size."""
        found = rectangles(inputs[self.sizes].tolist(), self.cell(config))
        if self.row_break is None:
            return found
        shapes = [item.grid or (1, 0, 0) for item in found]
        return [
            replace(item, runs=(columns,) * rows)
            for item, (_, rows, columns) in zip(found, shapes, strict=True)
        ]

    def laid_out(self, item: Item, config: Config) -> list[int]:
        """Rows of placeholders, with a break between them where there is one."""
        if self.row_break is None:
            return super().laid_out(item, config)
        row = super().laid_out(Item(item.runs[0]), config)
        return [*row, *[self.row_break, *row] * (len(item.runs) - 1)]

    def example(self, config: Config, generator: torch.Generator, size: int) -> dict[str, Tensor]:
        """Two by one cells, or two by three."""
        height, width = (n * self.cell(config) for n in (2, 1 + 2 * size))
        values = torch.randn(1, 3, height, width, generator=generator)
        return {self.values: values, self.sizes: torch.tensor([[height, width]])}


@dataclass(frozen=True, kw_only=True)
class Queried(Medium):
    """Pictures or tiles of one of several sizes, read by a number of queries that goes with it.

    `values` is `[items, 3, side, side]`; pictures of different sizes do not go into one batch.
    """

    mask: str
    """Input name of the mask of true pixels, `[items, height, width]`."""
    patch: Callable[[Config], int]
    """Pixels on a side of a patch."""
    queries: Callable[[Config], dict[int, int]]
    """Positions of a picture by its number of patches."""

    def joins(self) -> dict[str, Join]:
        """Items one after another."""
        return {self.values: Join(fill=None), self.mask: Join(fill=None)}

    def check(self, inputs: Inputs, config: Config) -> None:
        """A mask of the same pictures, and a size that the model has queries for."""
        values, mask = inputs[self.values], inputs[self.mask]
        if values.ndim != 4 or mask.shape != (len(values), *values.shape[2:]):
            raise InputError(
                f"{self.values} has shape {tuple(values.shape)} [items, 3, height, width], "
                f"{self.mask} {tuple(mask.shape)} [items, height, width]"
            )
        if self._patches(values, config) not in self.queries(config):
            raise InputError(
                f"{self.values} has {self._patches(values, config)} patches a picture; this model "
                f"takes {' or '.join(map(str, self.queries(config)))}"
            )

    def items(self, inputs: Inputs, config: Config) -> list[Item]:
        """One for each picture."""
        values = inputs[self.values]
        return [Item(self.queries(config)[self._patches(values, config)])] * len(values)

    def example(self, config: Config, generator: torch.Generator, size: int) -> dict[str, Tensor]:
        """One picture of the smallest size, or two."""
        side = round(min(self.queries(config)) ** 0.5) * self.patch(config)
        values = torch.randn(1 + size, 3, side, side, generator=generator)
        return {self.values: values, self.mask: torch.ones(1 + size, side, side, dtype=torch.bool)}

    def _patches(self, values: Tensor, config: Config) -> int:
        patch = self.patch(config)
        return (values.shape[2] // patch) * (values.shape[3] // patch)
