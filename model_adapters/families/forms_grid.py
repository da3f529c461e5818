"""Patches of images and videos of any size, packed over the batch, with a table of grids."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from model_adapters.errors import InputError
from model_adapters.families.medium import (
    Config,
    Inputs,
    Item,
    Join,
    Medium,
    example_shape,
    token_id,
)
from model_adapters.families.refusals import require_counts


@dataclass(frozen=True, kw_only=True)
class Grid(Medium):
    """Images or videos given as flattened patches, packed over the batch on their first axis.

    `values` is `[patches, values of one]`.
    """

    grid: str
    """Input name of the grids, `[items, 3]`: time, rows, columns in patches."""
    merge: Callable[[Config], int]
    """How many patches on a side one prompt position stands for."""
    width: Callable[[Config], int]
    """Values of one patch."""
    extras: tuple[str, ...] = ()
    """Further inputs with one entry an item."""
    needs_extras: bool = False
    """Whether they may not be left out."""
    channels: int | None = None
    """Where patches keep their shape: `values` is `[patches, channels, side, side]`."""
    apart: bool = False
    """Whether the frames of a video stand apart in the prompt, each behind its time."""
    paired: bool = False
    """Whether every two frames share their positions; there is an even number of them."""
    borders: tuple[str, str] | None = None
    """Config attributes of the tokens that begin and end a video, where images and videos have the
    same placeholder."""

    def joins(self) -> dict[str, Join]:
        """Patches, grids and extras one after another."""
        return {name: Join() for name in (self.values, self.grid, *self.extras)}

    def required(self) -> tuple[str, ...]:
        """The grids, and what the model cannot do without."""
        return (self.grid, *(self.extras if self.needs_extras else ()))

    def check(self, inputs: Inputs, config: Config) -> None:
        """As many patches as the grids describe, merged evenly; no frame without a partner."""
        require_counts(inputs, self.grid, 3)
        self._check_patches(inputs[self.values], config)
        sides = self._sides(inputs, config)
        if bool((inputs[self.grid][:, 1:] % sides[:, None]).any()):
            raise InputError(
                f"{self.grid} is {inputs[self.grid].tolist()} (time, rows, columns in patches); "
                f"rows and columns must be multiples of {sorted(set(sides.tolist()))}, the patches "
                "that are merged on a side"
            )
        if self.kind == "image" and bool((inputs[self.grid][:, 0] != 1).any()):
            raise InputError(
                f"{self.grid} is {inputs[self.grid].tolist()}; the time of an image is 1"
            )
        for name in self.extras:
            if inputs.get(name) is not None and inputs[name].shape != (len(inputs[self.grid]),):
                raise InputError(
                    f"{name} has shape {tuple(inputs[name].shape)}; it must have one number for "
                    f"each of the {len(inputs[self.grid])} items of {self.grid}"
                )
        patches, rows = int(inputs[self.grid].prod(dim=1).sum()), len(inputs[self.values])
        if patches != rows:
            raise InputError(f"{self.grid} describes {patches} patches, {self.values} holds {rows}")
        frames = inputs[self.grid][:, 0]
        if self.paired and bool((frames % 2).any()):
            raise InputError(f"{self.grid} must have even numbers of frames, got {frames.tolist()}")

    def _check_patches(self, values: Tensor, config: Config) -> None:
        width = self.width(config)
        if self.channels is None:
            expected: tuple[int, ...] = (width,)
        else:
            side = round((width / self.channels) ** 0.5)
            expected = (self.channels, side, side)
        if tuple(values.shape[1:]) != expected:
            raise InputError(
                f"{self.values} has shape {tuple(values.shape)}; this model takes [patches, "
                f"{', '.join(map(str, expected))}]"
            )

    def _sides(self, inputs: Inputs, config: Config) -> Tensor:
        """Patches on a side of one position, for every item."""
        return torch.full_like(inputs[self.grid][:, 0], self.merge(config))

    def items(self, inputs: Inputs, config: Config) -> list[Item]:
        """One for each grid, in merged patches."""
        side, pair = self.merge(config), 2 if self.paired else 1
        found = []
        for frames, height, width in inputs[self.grid].tolist():
            time, rows, columns = frames // pair, height // side, width // side
            runs = (rows * columns,) * time if self.apart else ()
            found.append(Item(time * rows * columns, grid=(time, rows, columns), runs=runs))
        return found

    def placeholders(self, inputs: Inputs, config: Config) -> Bool[Tensor, "batch position"]:
        """Where items of this medium stand; with `borders`, between those tokens or outside."""
        found = super().placeholders(inputs, config)
        if self.borders is None:
            return found
        ids: Tensor = inputs["input_ids"]
        starts, ends = (token_id(config, border) for border in self.borders)
        inside = torch.zeros_like(found)
        if starts is not None and ends is not None:
            inside = ids.eq(starts).cumsum(dim=1) > ids.eq(ends).cumsum(dim=1)
        return found & (inside if self.kind == "video" else ~inside)

    def example(self, config: Config, generator: torch.Generator, size: int) -> dict[str, Tensor]:
        """One by two merged patches, or two by three; videos as many frames as rows, or twice."""
        time = (2 if self.paired else 1) * (1 + (size if self.kind == "video" else 0))
        grid = torch.tensor([[time, *example_shape(size, self.merge(config))]])
        values = torch.randn(int(grid.prod()), self.width(config), generator=generator)
        if self.channels is not None:
            side = round((self.width(config) / self.channels) ** 0.5)
            values = values.reshape(-1, self.channels, side, side)
        extras = {name: torch.ones(1) for name in self.extras}
        return {self.values: values, self.grid: grid, **extras}


@dataclass(frozen=True, kw_only=True)
class OwnMerge(Grid):
    """Patches merged by a factor that every item brings along."""

    sizes: str
    """Input name of the factors, `[items]`."""
    kept: str | None = None
    """Input name of a mask over the merged patches, `[merged patches]`: which take a position."""

    def joins(self) -> dict[str, Join]:
        """Grids, factors and masks one after another, like the patches."""
        return super().joins() | {n: Join() for n in (self.sizes, self.kept) if n is not None}

    def required(self) -> tuple[str, ...]:
        """The grids and the factors."""
        return (self.grid, self.sizes)

    def check(self, inputs: Inputs, config: Config) -> None:
        """One factor for each grid, and a mask over all merged patches."""
        require_counts(inputs, self.sizes)
        if len(inputs[self.sizes]) != len(inputs[self.grid]):
            raise InputError(
                f"{self.sizes} has {len(inputs[self.sizes])} items, {self.grid} "
                f"{len(inputs[self.grid])}"
            )
        super().check(inputs, config)
        merged, kept = sum(self._merged(inputs)), self._kept(inputs)
        if kept is None:
            return
        if kept.ndim != 1 or kept.dtype != torch.bool:
            raise InputError(
                f"{self.kept} is {kept.dtype} of shape {tuple(kept.shape)}; it must be torch.bool "
                "of shape [merged patches]"
            )
        if len(kept) != merged:
            raise InputError(f"{self.kept} covers {len(kept)} merged patches of {merged}")

    def items(self, inputs: Inputs, config: Config) -> list[Item]:
        """One for each grid; those of which a part is left out have none."""
        kept, merged = self._kept(inputs), self._merged(inputs)
        if kept is None:
            kept = torch.ones(sum(merged), dtype=torch.bool)
        found = []
        grids, sides = inputs[self.grid].tolist(), inputs[self.sizes].tolist()
        pieces = kept.bool().split(merged)
        for (time, rows, columns), side, piece in zip(grids, sides, pieces, strict=True):
            grid = (time, rows // side, columns // side)
            runs = tuple(n for n in piece.reshape(time, -1).sum(dim=1).tolist() if n)
            found.append(Item(sum(runs), grid=grid if bool(piece.all()) else None, runs=runs))
        return found

    def vectors(self, outputs: Sequence[Tensor], module: nn.Module, inputs: Inputs) -> Tensor:
        """Those of the merged patches that are kept."""
        vectors, kept = super().vectors(outputs, module, inputs), self._kept(inputs)
        return vectors if kept is None else vectors[kept.bool()]

    def laid_out(self, item: Item, config: Config) -> list[int]:
        """Runs with any word in between."""
        token = self.placeholder(config)
        word = next(i for i in range(3) if i != token)
        ids = super().laid_out(replace(item, positions=item.runs[0], runs=()), config)
        return [i for run in item.runs for i in (*ids[:1] * run, word)][:-1]

    def example(self, config: Config, generator: torch.Generator, size: int) -> dict[str, Tensor]:
        """One by two merged patches, or two by three; of videos the last is left out."""
        inputs = super().example(config, generator, size)
        inputs[self.sizes] = torch.tensor([self.merge(config)])
        if self.kept is not None:
            inputs[self.kept] = torch.arange(sum(self._merged(inputs))) > 0
        return inputs

    def _sides(self, inputs: Inputs, config: Config) -> Tensor:
        sides: Tensor = inputs[self.sizes]
        return sides

    def _merged(self, inputs: Inputs) -> list[int]:
        counts: Tensor = inputs[self.grid].prod(dim=1) // inputs[self.sizes] ** 2
        return counts.tolist()

    def _kept(self, inputs: Inputs) -> Tensor | None:
        kept: Tensor | None = None if self.kept is None else inputs.get(self.kept)
        return kept
