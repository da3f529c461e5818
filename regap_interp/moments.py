"""Count, mean and spread of vectors in one pass, float64, in memory that does not grow.

Parts are combined by the update of Chan, Golub and LeVeque (1979), which keeps its accuracy far
from zero, where sums of squares lose theirs. So the order of items, the size of batches and the
split over processes change results by float64 rounding only.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from regap_interp import _checks

Covariance = Literal["full"] | int | None
"""How much of the second moments is kept: the whole matrix, a sketch of so many rows, or only the
variance of each coordinate."""


class Moments:
    """Statistics of a stream of vectors. `add` items, `merge` with another part, read.

    Always exact (to rounding): `count`, `mean`, `squares`. With `covariance="full"` so is
    `scatter`. With `covariance=r` the scatter matrix is approximated by `rows.T @ rows`, which is
    exact while the items, less their mean, span at most r dimensions; beyond that the weakest
    components are dropped whenever `2 * r` rows are reached. The true matrix less the
    approximation has no negative eigenvalue, and its trace is `discarded` of the whole.

    >>> import torch
    >>> from regap_interp import Moments
    >>> moments = Moments(2)
    >>> moments.add(torch.tensor([[1.0, 0.0], [3.0, 0.0]]))
    >>> moments.count, moments.mean.tolist(), moments.variance.tolist()
    (2, [2.0, 0.0], [2.0, 0.0])
    """

    def __init__(self, width: int, *, covariance: Covariance = None) -> None:
        """Start with no item.

        Args:
            width: Length of the vectors.
            covariance: "full" keeps `[width, width]`, a number keeps at most twice as many rows.

        Raises:
            ValueError: A width or a rank below 1.
        """
        if width < 1:
            raise ValueError(f"width is {width}; vectors have at least 1 entry")
        if not (covariance in (None, "full") or (type(covariance) is int and covariance >= 1)):
            raise ValueError(f'covariance is {covariance!r}; give None, "full" or a rank from 1')
        self.covariance = covariance
        self.count = 0
        """Items."""
        self.mean = torch.zeros(width, dtype=torch.float64)
        """Mean of the items, `[width]`."""
        self.squares = torch.zeros(width, dtype=torch.float64)
        """Sum over items of the squared distance from `mean`, in each coordinate, `[width]`."""
        self.scatter = (
            torch.zeros(width, width, dtype=torch.float64) if covariance == "full" else None
        )
        """Sum over items of the outer products of (item - mean), `[width, width]`, or None."""
        self.rows = torch.zeros(0, width, dtype=torch.float64) if self._rank else None
        """`rows.T @ rows` approximates `scatter`, `[row, width]`, or None."""

    @property
    def width(self) -> int:
        """Length of the vectors."""
        return len(self.mean)

    @property
    def variance(self) -> Float[Tensor, "width"]:
        """Unbiased variance of each coordinate; NaN below 2 items."""
        return self.squares / (self.count - 1 if self.count > 1 else float("nan"))

    @property
    def discarded(self) -> float:
        """Share of the summed variance that the sketch has lost, 0 to 1; 0 without a sketch."""
        total = float(self.squares.sum())
        if self.rows is None or total == 0:
            return 0.0
        return max(0.0, 1 - float((self.rows**2).sum()) / total)

    def add(self, states: Float[Tensor, "item width"]) -> None:
        """Take in items.

        Raises:
            ValueError: States of another width, or not finite; nothing is taken in then.
        """
        exact = _checks.states("states", states, least=1).cpu()
        if exact.shape[1] != self.width:
            raise ValueError(
                f"states have width {exact.shape[1]}, the statistics {self.width}; keep those of "
                "different sites apart"
            )
        mean = exact.mean(dim=0)
        centred = exact - mean
        part = Moments(self.width)
        part.count, part.mean, part.squares = len(exact), mean, (centred**2).sum(dim=0)
        self._take(part, centred)

    def merge(self, other: "Moments") -> "Moments":
        """The statistics of the items of both; neither is changed.

        Raises:
            ValueError: Different widths, or different kinds of covariance.
        """
        if (self.width, self.covariance) != (other.width, other.covariance):
            raise ValueError(
                f"width {self.width} with covariance {self.covariance!r} cannot be merged with "
                f"width {other.width} and {other.covariance!r}; measure both in the same way"
            )
        merged = Moments.from_tensors(self.count, self.tensors(), self.covariance)
        merged._take(other, other.rows)
        return merged

    def tensors(self) -> dict[str, Tensor]:
        """Copies of everything but `count` and `covariance`, for `from_tensors`."""
        names = ("mean", "squares", "scatter", "rows")
        return {
            name: getattr(self, name).clone() for name in names if getattr(self, name) is not None
        }

    @classmethod
    def from_tensors(
        cls, count: int, tensors: Mapping[str, Tensor], covariance: Covariance
    ) -> "Moments":
        """The statistics of `count` items that `tensors` was taken of, with their `covariance`."""
        made = cls(len(tensors["mean"]), covariance=covariance)
        made.count = count
        for name, value in tensors.items():
            setattr(made, name, value)
        return made

    @property
    def _rank(self) -> int:
        return self.covariance if isinstance(self.covariance, int) else 0

    def _take(self, part: "Moments", centred: Tensor | None) -> None:
        """Combine with a part; `centred` holds rows whose products sum to the part's scatter."""
        if part.count == 0:
            return
        total = self.count + part.count
        shift = part.mean - self.mean
        weight = self.count * part.count / total
        if self.scatter is not None:
            if part.scatter is not None:
                self.scatter += part.scatter
            elif centred is not None:
                self.scatter.addmm_(centred.T, centred)
            self.scatter.addr_(shift, shift, alpha=weight)
        if self.rows is not None and centred is not None:
            between = shift.unsqueeze(0) * weight**0.5
            self.rows = self._compressed(torch.cat([self.rows, centred, between]))
        self.squares = self.squares + part.squares + weight * shift**2
        self.mean = self.mean + shift * (part.count / total)
        self.count = total

    def _compressed(self, rows: Float[Tensor, "row width"]) -> Float[Tensor, "kept width"]:
        if len(rows) <= 2 * self._rank:
            return rows
        _, sizes, basis = torch.linalg.svd(rows, full_matrices=False)
        return sizes[: self._rank, None] * basis[: self._rank]
