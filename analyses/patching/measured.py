"""What a sweep measured: every cell of every item, with baselines and statistics on top."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from analyses.patching import statistics
from analyses.patching.agreement import Agreement
from analyses.patching.axes import Axis

Mode = Literal["denoise", "noise"]
Method = Literal["exact", "gradient", "integrated gradients"]


@dataclass(frozen=True, eq=False)
class Measured:
    """The metric of every patched run. Cells that have not been run are NaN."""

    raw: Float[Tensor, "item *cell"]
    """The metric of the patched runs, float64."""
    axes: tuple[Axis, ...]
    """Of the cells: layer (or window of layers), position and, where heads were asked for, head."""
    corrupted: Float[Tensor, "item"]
    """The metric of the corrupted runs, nothing patched."""
    clean: Float[Tensor, "item"]
    """The metric of the clean runs."""
    site: str
    metric: str
    """What it is called."""
    mode: Mode
    """"denoise": clean states into corrupted runs; "noise": the other way round."""
    method: Method
    model: str
    """A name for reports."""
    recipe: str
    """sha256 over everything that the numbers depend on."""
    seed: int = 0
    """Of all draws: resamples, permutations, samples of cells."""
    passes: Mapping[str, int] = field(default_factory=dict)
    """How many cells of items the last call had "resumed", by "whole" passes, and "unchanged": what
    the patch puts in is there already, or it comes behind the place where the metric is read."""
    notes: tuple[str, ...] = ()
    """What made the sweep slower than it can be."""
    agreement: Agreement | None = None
    """Of an approximation with real patches."""
    part: tuple[str, ...] = ()
    """What `at` chose, such as "position last"."""

    @property
    def n(self) -> int:
        """Items, that is pairs of runs."""
        return len(self.raw)

    @property
    def base(self) -> Float[Tensor, "item"]:
        """The metric of the runs that were patched, before."""
        return self.corrupted if self.mode == "denoise" else self.clean

    @property
    def complete(self) -> bool:
        """Whether every cell of every item has been run."""
        return not bool(self.raw.isnan().any())

    @property
    def change(self) -> Float[Tensor, "item *cell"]:
        """By how much each patch moves the metric."""
        return self.raw - statistics.beside(self.base, self.raw)

    @property
    def values(self) -> Float[Tensor, "*cell"]:
        """Normalised effect over all items: 0 as in the corrupted runs, 1 as in the clean ones.

        It is a ratio of means, so items that hardly differ do not blow it up; NaN where the runs
        do not differ.
        """
        return statistics.recovered(self.raw, self.corrupted, self.clean)

    def interval(
        self, *, confidence: float = 0.95, resamples: int = 1000
    ) -> tuple[Float[Tensor, "*cell"], Float[Tensor, "*cell"]]:
        """Both ends of a percentile interval of `values` that resamples items.

        NaN where the items leave open which of the two runs has more of the metric: a ratio to
        such a difference has no bounds.

        Raises:
            ValueError: for fewer than two items.
        """
        return statistics.bootstrap(
            self.raw, self.corrupted, self.clean, resamples, confidence, self.seed
        )

    def p_values(
        self, *, permutations: int = 4096, corrected: bool = False
    ) -> Float[Tensor, "*cell"]:
        """Two-sided p-values of each cell's mean change, by flipping the signs of items' changes.

        With n items none is below `2 / 2**n`.

        Args:
            permutations: draws; all of them are made if there are no more.
            corrected: for all cells together, by the largest mean of each draw.

        Raises:
            ValueError: for fewer than two items.
        """
        return statistics.sign_flips(self.change, permutations, corrected, self.seed)
