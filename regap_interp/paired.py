"""Comparisons of two treatments of the same items."""

import math
from dataclasses import dataclass

from jaxtyping import Bool
from torch import Tensor


@dataclass(frozen=True)
class McNemar:
    """McNemar's exact test: do two treatments of the same items differ in how often they succeed?

    Only items with different outcomes tell. It takes the items for independent.
    """

    only_first: int
    """Items that succeed under the first treatment alone."""
    only_second: int
    """Items that succeed under the second treatment alone."""
    n: int
    """All items."""
    p: float
    """Two-sided: the chance of a split as uneven as this one if both were equally likely."""


def mcnemar(first: Bool[Tensor, "item"], second: Bool[Tensor, "item"]) -> McNemar:
    """The exact (binomial) test on paired outcomes.

    Args:
        first: Outcome of each item under the first treatment.
        second: Outcome of the same items, in the same order, under the second.

    Raises:
        ValueError: The outcomes are not paired, or there are none.

    >>> import torch
    >>> from regap_interp import mcnemar
    >>> regap = torch.tensor([True] * 6 + [False])
    >>> fixed = torch.tensor([False] * 5 + [True, True])
    >>> found = mcnemar(regap, fixed)
    >>> found.only_first, found.only_second, found.p
    (5, 1, 0.21875)
    """
    if first.shape != second.shape or not len(first):
        raise ValueError(
            f"{len(first)} outcomes against {len(second)}; give the same items, at least one"
        )
    only_first = int((first & ~second).sum())
    only_second = int((second & ~first).sum())
    split = only_first + only_second
    # Exact integers: the tail of a fair binomial, twice, at most 1.
    tail = sum(math.comb(split, k) for k in range(min(only_first, only_second) + 1))
    p = min(1.0, 2 * tail / 2**split)
    return McNemar(only_first, only_second, len(first), p)
