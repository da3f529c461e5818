"""ROC of a signal, and thresholds chosen from it."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from regap_interp import _checks
from regap_interp.separability import auroc

Budget = float | Literal["youden"]
"""Share of benign items that may be triggered, or "youden" for the largest TPR minus FPR."""


@dataclass(frozen=True)
class Roc:
    """A signal's ROC: rates of items at or above each threshold, thresholds falling.

    Points on a straight line between their neighbours are left out.
    """

    thresholds: tuple[float, ...]
    """The first is infinite: nothing is triggered there."""
    false_positive: tuple[float, ...]
    """Share of benign items triggered."""
    true_positive: tuple[float, ...]
    """Share of harmful items triggered."""
    auroc: float
    """Area: the chance that a harmful item lies above a benign one, ties counted half."""
    n_harmful: int
    n_benign: int


def roc(harmful: Float[Tensor, "harmful"], benign: Float[Tensor, "benign"]) -> Roc:
    """The ROC of a signal that is larger for harmful items than for benign ones.

    Raises:
        ValueError: A class is empty or a value is not finite.

    >>> import torch
    >>> from regap_interp import roc
    >>> found = roc(torch.tensor([0.2, 0.8]), torch.tensor([0.1, 0.3]))
    >>> found.auroc, found.false_positive, found.true_positive
    (0.75, (0.0, 0.0, 0.5, 0.5, 1.0), (0.0, 0.5, 0.5, 1.0, 1.0))
    """
    high, low = _checks.samples("harmful", harmful), _checks.samples("benign", benign)
    _check_both(high, low)
    thresholds = torch.cat([high, low]).unique().flip(0)
    true = _share_at_or_above(high, thresholds)
    false = _share_at_or_above(low, thresholds)
    points = [(float("inf"), 0.0, 0.0)]
    points += zip(thresholds.tolist(), false.tolist(), true.tolist(), strict=True)
    kept = [
        point
        for index, point in enumerate(points)
        if index in (0, len(points) - 1) or _is_corner(*points[index - 1 : index + 2])
    ]
    cut, x, y = (tuple(column) for column in zip(*kept, strict=True))
    return Roc(cut, x, y, auroc(high, low), len(high), len(low))


def choose_threshold(
    harmful: Float[Tensor, "harmful"], benign: Float[Tensor, "benign"], budget: Budget
) -> float:
    """The threshold of "at or above" that keeps to a budget of benign items triggered.

    It lies half way between the values it separates, so that rounding decides nothing.

    Args:
        harmful: Signal of harmful items.
        benign: Signal of benign items.
        budget: Fewer than this share of benign items are triggered (at 0 none); or "youden".

    Raises:
        ValueError: A class is empty, a value is not finite, or the budget is no share below 1.

    >>> import torch
    >>> from regap_interp import choose_threshold
    >>> harmful, benign = torch.tensor([0.5, 0.7]), torch.tensor([0.1, 0.3])
    >>> round(choose_threshold(harmful, benign, 0.05), 3)
    0.4
    """
    high, low = _checks.samples("harmful", harmful), _checks.samples("benign", benign)
    _check_both(high, low)
    values = torch.cat([high, low]).unique()
    between = (values[:-1] + values[1:]) / 2
    # Above every value too, a little: then nothing is triggered.
    margin = (values[-1] - values[0]).clamp(min=1e-6) / len(values)
    cuts = torch.cat([values[:1] - margin, between, values[-1:] + margin])
    false = _share_at_or_above(low, cuts)
    if budget == "youden":
        return float(cuts[(_share_at_or_above(high, cuts) - false).argmax()])
    if not 0 <= budget < 1:
        raise ValueError(f"budget is {budget}; expected a share such as 0.05, or 'youden'")
    return float(cuts[(false < budget) | (false == 0)][0])


def _share_at_or_above(
    values: Float[Tensor, "item"], cuts: Float[Tensor, "cut"]
) -> Float[Tensor, "cut"]:
    # One division of whole numbers, so that 3 of 300 is the number that people write as 0.01.
    above = len(values) - torch.searchsorted(values.sort().values, cuts)
    return above.to(torch.float64) / len(values)


def _check_both(harmful: Tensor, benign: Tensor) -> None:
    if not len(harmful) or not len(benign):
        raise ValueError(f"{len(harmful)} harmful and {len(benign)} benign values; both are needed")


def _is_corner(
    before: tuple[float, ...], point: tuple[float, ...], after: tuple[float, ...]
) -> bool:
    (x, y), (u, v), (s, t) = before[1:], point[1:], after[1:]
    return abs((u - x) * (t - y) - (v - y) * (s - x)) > 1e-12


def auroc_error(area: float, n_harmful: int, n_benign: int) -> float:
    """Standard error of an AUROC (Hanley and McNeil 1982), from its value and the counts."""
    both_harmful, both_benign = area / (2 - area), 2 * area**2 / (1 + area)
    variance = (
        area * (1 - area)
        + (n_harmful - 1) * (both_harmful - area**2)
        + (n_benign - 1) * (both_benign - area**2)
    ) / (n_harmful * n_benign)
    return max(variance, 0.0) ** 0.5
