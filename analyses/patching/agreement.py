"""How well an approximation agrees with what was really run."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from analyses.patching import statistics


@dataclass(frozen=True)
class Agreement:
    """How well an approximation agrees with patches that were really made."""

    spearman: float
    """Rank correlation of the changes of the metric, cell by cell; NaN if either is constant."""
    largest: float
    """Largest difference between the two, in units of clean minus corrupted; NaN if that is 0."""
    n: int
    """Cells compared."""

    @classmethod
    def of(
        cls, exact: Float[Tensor, "*cell"], approximate: Float[Tensor, "*cell"], gap: float
    ) -> "Agreement":
        """Of the cells that are finite in both.

        Args:
            exact: changes of the metric, by runs.
            approximate: likewise, by estimate.
            gap: the metric of the clean runs minus that of the corrupted ones.
        """
        both = exact.isfinite() & approximate.isfinite()
        ours, theirs = exact[both].double(), approximate[both].double()
        largest = float((ours - theirs).abs().max()) / abs(gap) if len(ours) and gap else math.nan
        return cls(statistics.spearman(ours, theirs), largest, len(ours))

    def __str__(self) -> str:
        """For captions."""
        return (
            f"Spearman {self.spearman:.2f} with {self.n} real patches "
            f"(off by at most {self.largest:.2g})"
        )

    def plain(self) -> dict[str, Any]:
        """For files, which hold no NaN outside tensors."""
        found = asdict(self)
        return {name: None if value != value else value for name, value in found.items()}

    @classmethod
    def read(cls, found: Mapping[str, Any]) -> "Agreement":
        """What `plain` gave."""
        spearman, largest = (
            math.nan if found[name] is None else float(found[name])
            for name in ("spearman", "largest")
        )
        return cls(spearman, largest, int(found["n"]))
