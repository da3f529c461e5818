"""The cells of a sweep, and the values that each one puts in."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from analyses.patching.align import Alignment, Pair, Selector, every_position, label_of
from analyses.patching.axes import Axis
from analyses.patching.recorded import Change
from model_adapters import Adapter, Batch
from model_adapters.hooks import find_site

SITES = (
    "embed",
    "resid_pre",
    "resid_mid",
    "resid_post",
    "attn_out",
    "mlp_out",
    "z",
    "result",
)
Layers = Sequence[int | range | tuple[int, ...]]
Positions = Sequence[Selector | Pair] | Literal["each"]
Heads = Sequence[int] | Literal["each"] | None


@dataclass(frozen=True)
class Cell:
    """One patched run."""

    index: tuple[int, ...]
    """Its place on the axes of the result."""
    layers: tuple[int, ...]
    """Patched together."""
    position: int
    """Number of the position in the list of positions."""
    head: int | None
    """None for all."""


@dataclass(frozen=True, eq=False)
class Grid:
    """Everything that a sweep runs over."""

    site: str
    windows: tuple[tuple[int, ...], ...]
    """Layers that are patched together."""
    positions: tuple[Selector | Pair, ...]
    heads: tuple[int | None, ...]

    @property
    def layers(self) -> tuple[int, ...]:
        """All patched layers, rising."""
        return tuple(sorted({layer for window in self.windows for layer in window}))

    @property
    def hooked(self) -> str:
        """The site that is hooked: what a head adds is a linear image of what it computes."""
        return "z" if self.site == "result" else self.site

    @property
    def axes(self) -> tuple[Axis, ...]:
        """Axes of the result."""
        layers = ("embed",) if self.site == "embed" else tuple(map(_window, self.windows))
        axes = [Axis("layer", layers), Axis("position", _distinct(map(label_of, self.positions)))]
        if self.heads != (None,):
            axes.append(Axis("head", tuple(map(str, self.heads))))
        return tuple(axes)

    def cells(self) -> Iterator[Cell]:
        """All of them."""
        numbered = itertools.product(
            enumerate(self.windows), range(len(self.positions)), enumerate(self.heads)
        )
        for (row, window), position, (number, head) in numbered:
            index = (row, position) if head is None else (row, position, number)
            yield Cell(index, window, position, head)


def _distinct(labels: Iterable[str]) -> tuple[str, ...]:
    """Labels with a number behind those that stood before."""
    found: list[str] = []
    counts: dict[str, int] = {}
    for label in labels:
        counts[label] = counts.get(label, 0) + 1
        found.append(label if counts[label] == 1 else f"{label} #{counts[label]}")
    return tuple(found)


def windows(layers: Iterable[int], width: int, *, step: int = 1) -> list[tuple[int, ...]]:
    """Runs of `width` layers, each `step` behind the one before, for the `layers` of a sweep.

    Raises:
        ValueError: when no window fits.

    >>> from analyses.patching import windows
    >>> windows(range(5), 3, step=2)
    [(0, 1, 2), (2, 3, 4)]
    """
    listed = list(layers)
    found = [tuple(listed[i : i + width]) for i in range(0, len(listed) - width + 1, step)]
    if width < 1 or step < 1 or not found:
        raise ValueError(f"no window of {width} layers, step {step}, fits {len(listed)} layers")
    return found


def make_grid(
    adapter: Adapter,
    target: Batch,
    *,
    site: str,
    layers: Layers | None,
    positions: Positions,
    heads: Heads,
) -> Grid:
    """The cells asked for, checked against the model.

    Raises:
        ValueError: for what the model or the site does not have.
        LayerError: for layers that the model does not have.
    """
    if site not in SITES:
        raise ValueError(f"site is {site!r}; what can be patched is {', '.join(SITES)}")
    if site == "embed" and layers is not None:
        raise ValueError("embed belongs to no layer; leave layers out")
    chosen: Layers = [0] if site == "embed" else layers if layers is not None else _all(adapter)
    together = tuple(_numbers(adapter, one) for one in chosen)
    if not together or len(set(together)) != len(together):
        raise ValueError(f"layers is {layers!r}; give different layers or windows, at least one")
    for layer in {layer for window in together for layer in window}:
        if site != "embed":
            obstacle = find_site(adapter, site, layer).obstacle
            if obstacle is not None:
                raise ValueError(obstacle)
    listed = every_position(target) if isinstance(positions, str) else positions
    if isinstance(positions, str) and positions != "each":
        raise ValueError(f'positions is {positions!r}; give a list, such as ["last"], or "each"')
    if not listed:
        raise ValueError("positions is empty; give at least one")
    return Grid(site, together, tuple(listed), _heads(adapter, site, together, heads))


def _heads(
    adapter: Adapter, site: str, together: Sequence[tuple[int, ...]], heads: Heads
) -> tuple[int | None, ...]:
    if heads is None:
        return (None,)
    if site not in ("z", "result"):
        raise ValueError(f"{site} has no heads; patch z or result, or leave heads out")
    counts = {adapter.heads(layer)[0] for window in together for layer in window}
    fewest = min(counts)
    if isinstance(heads, str) and len(counts) > 1:
        raise ValueError(
            f'layers have {fewest} to {max(counts)} heads, so "each" would leave some out; name '
            "layers that have the same number (adapter.heads(layer)), or heads"
        )
    chosen = tuple(range(fewest)) if isinstance(heads, str) else tuple(heads)
    if not chosen or any(not 0 <= head < fewest for head in chosen):
        raise ValueError(f'heads is {heads!r}; give some of 0 to {fewest - 1}, or "each"')
    return chosen


def _all(adapter: Adapter) -> range:
    return range(adapter.n_layers)


def _numbers(adapter: Adapter, layers: int | range | tuple[int, ...]) -> tuple[int, ...]:
    listed = [layers] if isinstance(layers, int) else list(layers)
    if not listed:
        raise ValueError("layers holds an empty window")
    return tuple(sorted({adapter.resid_post.number(layer) for layer in listed}))


def _window(layers: tuple[int, ...]) -> str:
    if len(layers) == 1:
        return str(layers[0])
    if layers == tuple(range(layers[0], layers[-1] + 1)):
        return f"{layers[0]}-{layers[-1]}"
    return "+".join(map(str, layers))


@dataclass(frozen=True, eq=False)
class Material:
    """What cells are made of."""

    target: Mapping[int, Tensor]
    """By layer, the site in the run that is patched."""
    source: Mapping[int, Tensor]
    """By layer, the site in the other run."""
    alignments: Sequence[Sequence[Alignment]]
    """By item and position."""

    def at(self, item: int, cell: Cell) -> Tensor:
        """Positions that the cell patches in an item."""
        return self.alignments[item][cell.position].targets

    def before(self, item: int, cell: Cell, layer: int) -> Tensor:
        """What stands there, `[position, *site]`."""
        there = self.target[layer][item][self.at(item, cell)]
        return there if cell.head is None else there[:, cell.head]

    def after(self, item: int, cell: Cell, layer: int) -> Tensor:
        """What is put there, likewise."""
        states = self.source[layer][item][self.alignments[item][cell.position].sources]
        # The mean of one state is that state to the last bit.
        mixed = states.mean(dim=1)
        return mixed if cell.head is None else mixed[:, cell.head]

    def changes(self, item: int, cell: Cell) -> bool:
        """Whether the cell puts in anything that is not there."""
        pairs = ((self.before(item, cell, x), self.after(item, cell, x)) for x in cell.layers)
        return not all(torch.equal(before, after) for before, after in pairs)

    def patching(self, rows: Sequence[tuple[int, Cell]], start: int) -> Change:
        """Puts the cells in, one for each row.

        Args:
            rows: item and cell of each row.
            start: position of the prompt that the rows begin at.
        """
        by_layer: dict[int, list[tuple[int, int, Cell]]] = {}
        for row, (item, cell) in enumerate(rows):
            for layer in cell.layers:
                by_layer.setdefault(layer, []).append((row, item, cell))

        def change(layer: int, value: Tensor) -> Tensor | None:
            if layer not in by_layer:
                return None
            new = value.clone()
            at = [self.at(item, cell) - start for _, item, cell in by_layer[layer]]
            lengths = torch.tensor([len(one) for one in at])
            numbers = torch.tensor([row for row, _, _ in by_layer[layer]])
            place: tuple[Tensor, ...] = (numbers.repeat_interleave(lengths), torch.cat(at))
            heads = [cell.head for _, _, cell in by_layer[layer] if cell.head is not None]
            if heads:
                place = (*place, torch.tensor(heads).repeat_interleave(lengths))
            put = torch.cat([self.after(item, cell, layer) for _, item, cell in by_layer[layer]])
            new[place] = put.to(new)
            return new

        return change
