"""Ways to cut items into windows of a conditioning variable, such as drift or rendering level."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor


@runtime_checkable
class Windows(Protocol):
    """Anything that cuts items into windows, in rising order of `by`."""

    def split(self, by: Float[Tensor, "item"]) -> Sequence[Int[Tensor, "member"]]:
        """Indices of the items in each window; a window may be empty, windows may overlap."""
        ...


@dataclass(frozen=True)
class QuantileBins:
    """Disjoint bins of equal size (to one item).

    >>> import torch
    >>> from regap_interp import QuantileBins
    >>> [members.tolist() for members in QuantileBins(2).split(torch.tensor([0.3, 0.1, 0.9, 0.2]))]
    [[1, 3], [0, 2]]
    """

    count: int = 10
    """Number of bins."""

    def __post_init__(self) -> None:
        """Refuse a cut that leaves nothing to compare."""
        if self.count < 2:
            raise ValueError(f"count is {self.count}; at least 2 bins are needed")

    def split(self, by: Float[Tensor, "item"]) -> Sequence[Int[Tensor, "member"]]:
        """Indices of the items in each bin. Ties may fall on both sides of an edge."""
        return by.argsort(stable=True).tensor_split(self.count)


@dataclass(frozen=True)
class FixedBins:
    """Disjoint bins between given edges; each holds its lower edge, the last both.

    >>> import torch
    >>> from regap_interp import FixedBins
    >>> bins = FixedBins.equal(0.0, 1.0, 2)
    >>> [members.tolist() for members in bins.split(torch.tensor([0.3, 0.5, 1.0, 7.0]))]
    [[0], [1, 2]]
    """

    edges: tuple[float, ...]
    """Rising edges, one more than bins. Items outside them are in no bin."""

    def __post_init__(self) -> None:
        """Refuse edges out of order."""
        rising = all(low < high for low, high in zip(self.edges, self.edges[1:], strict=False))
        if len(self.edges) < 3 or not rising:
            raise ValueError(f"edges are {self.edges}; at least 3 are needed, in rising order")

    @classmethod
    def equal(cls, low: float, high: float, count: int) -> "FixedBins":
        """`count` bins of equal width between `low` and `high`."""
        return cls(tuple(torch.linspace(low, high, count + 1, dtype=torch.float64).tolist()))

    def split(self, by: Float[Tensor, "item"]) -> Sequence[Int[Tensor, "member"]]:
        """Indices of the items in each bin."""
        last = len(self.edges) - 2
        inner = torch.tensor(self.edges[1:-1], dtype=by.dtype, device=by.device)
        bin_of = torch.bucketize(by, inner, right=True)
        inside = (by >= self.edges[0]) & (by <= self.edges[-1])
        return [torch.nonzero(inside & (bin_of == index)).flatten() for index in range(last + 1)]


@dataclass(frozen=True)
class SlidingWindows:
    """Overlapping windows over the items in order of `by`.

    >>> import torch
    >>> from regap_interp import SlidingWindows
    >>> windows = SlidingWindows(width=0.5, step=0.25, least=2)
    >>> [members.tolist() for members in windows.split(torch.tensor([3.0, 1.0, 2.0, 4.0]))]
    [[1, 2], [2, 0], [0, 3]]
    """

    width: float = 0.20
    """Items in a window, as a share of all."""
    step: float = 0.05
    """Shift from one window to the next, as a share of all; the last one may shift less."""
    least: int = 200
    """Items in a window at least, however few `width` makes."""

    def __post_init__(self) -> None:
        """Refuse shares that make no window."""
        if not (0 < self.width <= 1 and 0 < self.step <= 1 and self.least >= 1):
            raise ValueError(f"{self}: width and step are shares in (0, 1], least is 1 or more")

    def split(self, by: Float[Tensor, "item"]) -> Sequence[Int[Tensor, "member"]]:
        """Indices of the items in each window; one window if there are fewer than `least`."""
        order = by.argsort(stable=True)
        size = min(max(round(self.width * len(by)), self.least), len(by))
        stride = max(round(self.step * len(by)), 1)
        starts = [*range(0, len(by) - size + 1, stride)]
        if starts[-1] != len(by) - size:
            starts.append(len(by) - size)  # the items highest in `by` are in a window too
        return [order[start : start + size] for start in starts]
