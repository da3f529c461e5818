"""One diverging colour map, centred at 0: blue below, orange above, told apart by all readers."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from regap_interp.views.markup import FAINT, INK, PAPER, RULE, Markup, element
from regap_interp.views.text import number

if TYPE_CHECKING:
    from matplotlib.colors import Colormap

_STOPS = (
    (-1.0, (0, 74, 124)),
    (-0.5, (86, 160, 211)),
    (0.0, (247, 247, 245)),
    (0.5, (242, 157, 98)),
    (1.0, (165, 62, 0)),
)
VEIL = 0.72
"""How much of what lies below the strongest colour hides."""
MISSING = "#e4e7ec"
"""Fill of what could not be measured, always with a hatch or a dashed frame."""


@dataclass(frozen=True)
class Scale:
    """Colours for values from `-limit` to `limit`; larger ones take the last colour.

    >>> import torch
    >>> from regap_interp.views import Scale
    >>> scale = Scale.of(torch.tensor([-1.0, 2.0, float("nan")]))
    >>> scale.limit, scale.share(-1.0), scale.fill(0.0), scale.fill(float("nan"))
    (2.0, -0.5, '#f7f7f5', '#e4e7ec')
    """

    limit: float
    """Value of the strongest colour; positive and finite."""
    signed: bool = False
    """Whether legends show its lower half even where nothing that is drawn lies below 0."""

    def __post_init__(self) -> None:
        """Refuse a scale without an extent."""
        if not (math.isfinite(self.limit) and self.limit > 0):
            raise ValueError(f"limit is {self.limit}; give a positive number")

    @classmethod
    def of(cls, *values: Tensor) -> "Scale":
        """The scale that just holds all finite values, shared by whatever is drawn with it."""
        finite = [one[one.isfinite()].abs() for one in values]
        limit = max((float(one.max()) for one in finite if one.numel()), default=0.0)
        return cls(limit or 1.0, signed=any(bool((one < 0).any()) for one in values))

    def share(self, value: float) -> float:
        """The value over the limit, within -1 and 1."""
        return min(max(value / self.limit, -1.0), 1.0)

    def fill(self, value: float) -> str:
        """The colour of a value, as `#rrggbb`."""
        return _hex(_mixed(self.share(value))) if math.isfinite(value) else MISSING

    def ink(self, value: float) -> str:
        """The colour of text on `fill`."""
        if not math.isfinite(value):
            return INK
        return PAPER if _luminance(_mixed(self.share(value))) < 0.18 else "#000000"

    def veil(self, value: float) -> str:
        """The colour of a value laid over a picture, as `#rrggbbaa`; clear at 0."""
        if not math.isfinite(value):
            return f"{MISSING}80"
        share = self.share(value)
        end = _STOPS[-1 if share > 0 else 0][1]
        return f"{_hex(end)}{round(255 * VEIL * abs(share)):02x}"

    def legend(self, *, negative: bool, missing: bool) -> Markup:
        """A bar of the colours with its ends.

        Args:
            negative: Whether any value is; the lower half is left away otherwise.
            missing: Whether any value is not finite; the sign for that is added then.
        """
        steps = [self.limit * i / 5 for i in range(-5 if negative else 0, 6)]
        cells = [
            element(
                "span",
                style=f"display:inline-block;width:14px;height:10px;background:{self.fill(step)}",
            )
            for step in steps
        ]
        parts = [
            number(steps[0]) if negative else "0",
            "\u2002",
            *cells,
            "\u2002",
            number(self.limit),
        ]
        if missing:
            box = f"display:inline-block;width:12px;height:8px;background:{MISSING};{DASHED}"
            parts += ["\u2003", element("span", style=box), "\u2002not finite"]
        style = f"font-size:11px;color:{FAINT};margin:4px 0 0 0"
        return element("div", *parts, style=style)


DASHED = f"border:1px dashed {INK}"
"""Frame of what could not be measured. Some notebooks strip hatches from styles, not frames."""
PLAIN = f"border:1px solid {RULE}"


def colormap() -> "Colormap":
    """The map for matplotlib, over values that are shares of a limit."""
    from matplotlib.colors import LinearSegmentedColormap

    stops = [((at + 1) / 2, _hex(colour)) for at, colour in _STOPS]
    return LinearSegmentedColormap.from_list("drift", stops).with_extremes(bad=MISSING)


def _mixed(share: float) -> tuple[int, int, int]:
    at = next(i for i, (place, _) in enumerate(_STOPS) if share <= place)
    (low, first), (high, second) = _STOPS[max(at - 1, 0)], _STOPS[max(at, 1)]
    part = (share - low) / (high - low)
    red, green, blue = (round(a + part * (b - a)) for a, b in zip(first, second, strict=True))
    return red, green, blue


def _hex(colour: tuple[int, int, int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)


def _luminance(colour: tuple[int, int, int]) -> float:
    """Relative luminance, as contrast is defined by it."""
    linear = [
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
        for c in (one / 255 for one in colour)
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
