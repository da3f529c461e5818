"""Pictures and sounds as Phi-4 multimodal takes them.

Its encoders hear and see padding, each in its own way, so that a request's result would depend on
its neighbours in the batch. Such batches are refused.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from model_adapters.errors import InputError
from model_adapters.families.medium import Config, Inputs, Item, Join, Medium, token_id
from model_adapters.families.refusals import require_counts

_APART = (
    "requests with audio alone cannot be in one batch with requests with images: this model would "
    "change the audio's features. Give them apart"
)


@dataclass(frozen=True, kw_only=True)
class Crops(Medium):
    """Pictures as an overview and crops of one size: `values` is `[items, crops, 3, side, side]`.

    An item's positions are those of the crops, put together again, with a learned vector at the end
    of every row, one vector more, and those of the overview, likewise with ends of rows.
    """

    sizes: str
    """Input name of the pixels of the crops put together, `[items, 2]`: height and width."""
    mask: str
    """Input name of the mask of true patches, `[items, crops, patches, patches]`."""
    side: Callable[[Config], int]
    """Pixels on a side of a crop."""
    patches: Callable[[Config], int]
    """Patches on a side of a crop."""

    def joins(self) -> dict[str, Join]:
        """Items one after another."""
        return {self.values: Join(fill=None), self.sizes: Join(), self.mask: Join(fill=None)}

    def joined(self, name: str, encodings: Sequence[Inputs], starts: Sequence[int]) -> Any:
        """Refuses pictures with padding beside pictures without."""
        if name == self.mask:
            masks = [e[name] for e in encodings if e.get(name) is not None]
            if len({bool(mask.bool().all()) for mask in masks}) > 1:
                raise InputError(
                    f"{name} marks padding in some of the requests only; this model's encoder "
                    "treats pictures without padding in another way when some of the batch have "
                    "it. Give these requests one by one"
                )
        return super().joined(name, encodings, starts)

    def check(self, inputs: Inputs, config: Config) -> None:
        """Crops, sizes and masks of the same pictures."""
        values, sizes, mask = inputs[self.values], inputs[self.sizes], inputs[self.mask]
        require_counts(inputs, self.sizes, 2)
        side, patches = self.side(config), self.patches(config)
        if values.ndim != 5 or tuple(values.shape[2:]) != (3, side, side):
            raise InputError(
                f"{self.values} has shape {tuple(values.shape)}; it must be [items, crops, 3, "
                f"{side}, {side}]"
            )
        if mask.shape != (*values.shape[:2], patches, patches):
            raise InputError(
                f"{self.mask} has shape {tuple(mask.shape)}; for {self.values} of shape "
                f"{tuple(values.shape)} it must be {(*values.shape[:2], patches, patches)}"
            )
        areas = (sizes // side).prod(dim=-1)
        if sizes.shape != (len(values), 2) or (areas + 1 > values.shape[1]).any():
            raise InputError(
                f"{self.sizes} {sizes.tolist()} (height, width) do not fit {values.shape[1] - 1} "
                f"crops of {side} pixels for each of {len(values)} items"
            )

    def items(self, inputs: Inputs, config: Config) -> list[Item]:
        """One for each size."""
        side, cells = self.side(config), (self.patches(config) + 1) // 2
        found = []
        for (height, width), mask in zip(
            inputs[self.sizes].tolist(), inputs[self.mask], strict=True
        ):
            down, across = height // side, width // side
            # A position stands for two by two patches.
            true = mask[1 : 1 + down * across, ::2, ::2].reshape(down, across, cells, cells)
            true = true.transpose(1, 2).reshape(down * cells, across * cells)
            rows, columns = int(true[:, 0].sum()), int(true[0].sum())
            found.append(Item(rows * (columns + 1) + 1 + cells * (cells + 1)))
        return found

    def example(self, config: Config, generator: torch.Generator, size: int) -> dict[str, Tensor]:
        """Two crops side by side, or one above the other."""
        side, patches = self.side(config), self.patches(config)
        return {
            self.values: torch.randn(1, 3, 3, side, side, generator=generator),
            self.sizes: torch.tensor([[side * (1 + size), side * (2 - size)]]),
            self.mask: torch.ones(1, 3, patches, patches),
        }


@dataclass(frozen=True, kw_only=True)
class Heard(Medium):
    """Sounds with their number of positions: `values` is `[items, frames, bins]`."""

    sizes: str
    """Input name of the positions of each item, `[items]`."""
    mask: str
    """Input name of the mask of frames, `[items, frames]`; it may be left out."""
    reduction: Callable[[Config], int]
    """Frames for each position."""
    width: Callable[[Config], int]
    """Values of one frame."""
    pictures: str
    """Input name of pictures: where a batch has any, sounds take another projection."""
    picture_token: str
    """Config attribute of the pictures' placeholder."""

    def joins(self) -> dict[str, Join]:
        """Items one after another."""
        return {self.values: Join(fill=None), self.sizes: Join(), self.mask: Join(fill=None)}

    def required(self) -> tuple[str, ...]:
        """The numbers of positions."""
        return (self.sizes,)

    def joined(self, name: str, encodings: Sequence[Inputs], starts: Sequence[int]) -> Any:
        """A mask of ones for the requests that have none, as their processor gives them.

        Raises:
            InputError: for requests with sounds alone among requests with pictures.
        """
        if any(self._seen(e) for e in encodings) and any(
            self.given(e) and not self._seen(e) for e in encodings
        ):
            raise InputError(_APART)
        if name == self.mask:
            encodings = [self._masked(e) if self.given(e) else e for e in encodings]
        return super().joined(name, encodings, starts)

    def check(self, inputs: Inputs, config: Config) -> None:
        """Positions that fit the frames; no row of sounds alone beside pictures."""
        values, sizes, mask = inputs[self.values], inputs[self.sizes], inputs.get(self.mask)
        require_counts(inputs, self.sizes)
        if values.ndim != 3 or values.shape[2] != self.width(config):
            raise InputError(
                f"{self.values} has shape {tuple(values.shape)}; it must be [items, frames, "
                f"{self.width(config)}]"
            )
        if mask is not None and tuple(mask.shape) != tuple(values.shape[:2]):
            raise InputError(
                f"{self.mask} has shape {tuple(mask.shape)}; for {self.values} of shape "
                f"{tuple(values.shape)} it must be {tuple(values.shape[:2])} [items, frames]"
            )
        most = -(-values.shape[1] // self.reduction(config))
        if sizes.shape != (len(values),) or (sizes > most).any():
            raise InputError(
                f"{self.sizes} {sizes.tolist()} do not fit {self.values} of shape "
                f"{tuple(values.shape)}: {len(values)} items of at most {most} positions"
            )
        if self._seen(inputs):
            picture = token_id(config, self.picture_token)
            seeing = (inputs["input_ids"] == picture).any(dim=1)
            hearing = self.placeholders(inputs, config).any(dim=1)
            if (hearing & ~seeing).any():
                raise InputError(_APART)

    def items(self, inputs: Inputs, config: Config) -> list[Item]:
        """One for each row."""
        frames = (0, inputs[self.values].shape[1])
        return [Item(n, frames=frames) for n in inputs[self.sizes].tolist()]

    def example(self, config: Config, generator: torch.Generator, size: int) -> dict[str, Tensor]:
        """One sound, or two of the same length."""
        frames = 3 * self.reduction(config) + 1
        return {
            self.values: torch.randn(1 + size, frames, self.width(config), generator=generator),
            self.sizes: torch.full((1 + size,), 4),
            self.mask: torch.ones(1 + size, frames, dtype=torch.bool),
        }

    def _seen(self, encoding: Inputs) -> bool:
        return encoding.get(self.pictures) is not None

    def _masked(self, encoding: Inputs) -> Inputs:
        if encoding.get(self.mask) is not None:
            return encoding
        ones = torch.ones(encoding[self.values].shape[:2], dtype=torch.bool)
        return {**encoding, self.mask: ones}
