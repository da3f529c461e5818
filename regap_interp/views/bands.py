"""Lines with intervals, told apart by colour, dash and marker at once."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

HARMFUL, BENIGN = "#d55e00", "#0072b2"
"""Colours of the classes, in every figure."""
AXIS = "#98a2b3"
"""Colour of lines at 0 and 1."""
_LINES = (
    ("#0072b2", "-", "o"),
    ("#d55e00", "--", "s"),
    ("#009e73", "-.", "^"),
    ("#cc79a7", ":", "D"),
    ("#56b4e9", (0, (5, 1, 1, 1, 1, 1)), "v"),
)


@dataclass(frozen=True, eq=False)
class Band:
    """A line over some axis, with an interval at every place."""

    value: Float[Tensor, "place"]
    """The estimate; NaN where it could not be measured."""
    low: Float[Tensor, "place"]
    """Lower end of the interval; NaN where there is none."""
    high: Float[Tensor, "place"]
    """Upper end of the interval."""


def draw_band(ax: Any, x: Sequence[float], band: Band, label: str, style: Any) -> None:
    """Draw a line and its intervals; places that could not be measured are left out."""
    colour, dash, marker = style
    low, high = band.low.tolist(), band.high.tolist()
    ax.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
    ax.plot(
        x,
        band.value.tolist(),
        color=colour,
        linestyle=dash,
        marker=marker,
        markersize=3.5,
        linewidth=1.4,
        label=label,
    )


def styles(count: int) -> list[Any]:
    """Colour, dash and marker for each of `count` lines; no two are the same up to 25."""
    size = len(_LINES)
    rounds = [divmod(index, size) for index in range(count)]
    return [
        (_LINES[at][0], _LINES[(at + turn) % size][1], _LINES[(at + 2 * turn) % size][2])
        for turn, at in rounds
    ]


def counted(values: Float[Tensor, "item"]) -> str:
    """How many there are, and how many of them could not be measured."""
    missing = int((~values.isfinite()).sum())
    return f"{len(values)}, {missing} not measured" if missing else str(len(values))


def limits(values: Sequence[Tensor]) -> tuple[float, float]:
    """Ends of an axis that holds all finite values, 0 and 1, with a margin."""
    every = torch.cat([*(one.double() for one in values), torch.tensor([0.0, 1.0]).double()])
    finite = every[every.isfinite()]
    low, high = float(finite.min()), float(finite.max())
    margin = 0.05 * (high - low)
    return low - margin, high + margin


def need_some(name: str, given: Sequence[object]) -> None:
    """Refuse to draw nothing.

    Raises:
        ValueError: `given` is empty.
    """
    if not given:
        raise ValueError(f"{name} is empty; there is nothing to draw")
