"""Normalised effects of patches over items, their intervals and p-values."""

import itertools

import torch
from jaxtyping import Float
from torch import Tensor

from regap_interp.intervals import percentile_interval

_ONCE = 2**24
"""Numbers held at once while resampling."""


def beside(items: Float[Tensor, "item"], cells: Float[Tensor, "item *cell"]) -> Tensor:
    """`items` in a shape that broadcasts over cells."""
    return items.reshape(-1, *[1] * (cells.ndim - 1))


def recovered(
    raw: Float[Tensor, "item *cell"],
    corrupted: Float[Tensor, "item"],
    clean: Float[Tensor, "item"],
) -> Float[Tensor, "*cell"]:
    """Mean distance from corrupted over that of the clean runs; NaN if that is 0."""
    gap = (clean - corrupted).mean()
    moved = (raw - beside(corrupted, raw)).mean(dim=0)
    return moved / gap if gap != 0 else torch.full_like(moved, torch.nan)


def bootstrap(
    raw: Float[Tensor, "item *cell"],
    corrupted: Float[Tensor, "item"],
    clean: Float[Tensor, "item"],
    resamples: int,
    confidence: float,
    seed: int,
) -> tuple[Float[Tensor, "*cell"], Float[Tensor, "*cell"]]:
    """Both ends of the percentile interval of `recovered`, items drawn with replacement.

    NaN where more resamples than lie beyond one end have a difference of the two runs of another
    sign, or of 0.
    """
    count = _several(raw, "an interval")
    draw = torch.Generator().manual_seed(seed)
    drawn = torch.randint(count, (resamples, count), generator=draw)
    # How often each item is drawn: a mean over a resample is a product with that.
    weights = torch.zeros(resamples, count, dtype=torch.float64)
    weights.scatter_add_(1, drawn, torch.ones_like(drawn, dtype=torch.float64))
    gaps = weights @ (clean - corrupted)
    other = (gaps * (clean - corrupted).mean() <= 0).double().mean()
    if float(other) > (1 - confidence) / 2:
        return torch.full_like(raw[0], torch.nan), torch.full_like(raw[0], torch.nan)
    moved = (raw - beside(corrupted, raw)).reshape(count, -1)
    ends = []
    for some in moved.split(max(_ONCE // resamples, 1), dim=1):
        ratios = (weights @ some) / gaps[:, None]
        ends.append(torch.tensor([percentile_interval(one, confidence) for one in ratios.T]))
    low, high = torch.cat(ends).double().T if ends else torch.zeros(2, 0)
    return low.reshape(raw.shape[1:]), high.reshape(raw.shape[1:])


def sign_flips(
    change: Float[Tensor, "item *cell"], permutations: int, corrected: bool, seed: int
) -> Float[Tensor, "*cell"]:
    """Share of sign flips of whole items whose mean change is at least as large as the real one."""
    count = _several(change, "a p-value")
    flat = change.reshape(count, -1)
    every = 2**count <= permutations
    if every:
        signs = torch.tensor(list(itertools.product((1.0, -1.0), repeat=count)))
    else:
        draw = torch.Generator().manual_seed(seed)
        signs = torch.randint(2, (permutations, count), generator=draw) * 2.0 - 1
    signs = signs.double()
    found = flat.mean(dim=0).abs()
    # Equal means differ by rounding.
    reached = found * (1 - 1e-9)
    largest = torch.zeros(len(signs), dtype=torch.float64)
    times = torch.zeros_like(found)
    for at in range(0, flat.shape[1], step := max(_ONCE // len(signs), 1)):
        means = (signs @ flat[:, at : at + step]).abs() / count
        largest = torch.maximum(largest, means.nan_to_num(0).amax(dim=1))
        times[at : at + step] = (means >= reached[at : at + step]).sum(dim=0)
    if corrected:
        order = largest.sort().values
        times = len(signs) - torch.searchsorted(order, reached).double()
    # The real signs are one of the flips; among drawn ones they have to be counted in.
    share = times / len(signs) if every else (times + 1) / (len(signs) + 1)
    return share.masked_fill(found.isnan(), torch.nan).reshape(change.shape[1:])


def spearman(one: Float[Tensor, "cell"], other: Float[Tensor, "cell"]) -> float:
    """Rank correlation, equal values at their mean rank; NaN if either is constant."""
    ranks = torch.stack([_ranks(one), _ranks(other)])
    if len(one) < 2 or (ranks.amax(1) == ranks.amin(1)).any():
        return float("nan")
    return float(torch.corrcoef(ranks)[0, 1])


def _ranks(values: Tensor) -> Tensor:
    _, places, counts = values.double().unique(return_inverse=True, return_counts=True)
    ends = counts.cumsum(0).double()
    return (ends - (counts - 1) / 2)[places]


def _several(cells: Tensor, what: str) -> int:
    if len(cells) < 2:
        raise ValueError(f"{what} over items needs at least two; the sweep has {len(cells)}")
    return len(cells)
