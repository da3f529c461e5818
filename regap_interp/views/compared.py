"""Views side by side, on one scale."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from regap_interp.views.about import label
from regap_interp.views.colour import Scale
from regap_interp.views.coloured import Coloured
from regap_interp.views.markup import Markup, element
from regap_interp.views.view import View


@dataclass(frozen=True, eq=False, repr=False)
class Compared(View):
    """Made by `compared`."""

    views: Sequence[Coloured]
    """With a common scale."""

    def _summary(self) -> str:
        return "; ".join(f"{view.title}: {view._summary()}" for view in self.views)

    def _columns(self) -> dict[str, Sequence[Any]]:
        parts = [view._columns() for view in self.views]
        names = list(dict.fromkeys(name for part in parts for name in part))
        lengths = [len(part["value"]) for part in parts]
        titles = [v.title for v, n in zip(self.views, lengths, strict=True) for _ in range(n)]
        return {"view": titles} | {
            name: [
                value
                for part, length in zip(parts, lengths, strict=True)
                for value in part.get(name, [None] * length)
            ]
            for name in names
        }

    def _body(self) -> Markup:
        style = "display:inline-block;vertical-align:top;margin:0 12px 0 0"
        return element("div", *(element("div", one.html(), style=style) for one in self.views))

    def _shape(self) -> tuple[int, int, tuple[float, float]]:
        sizes = [view._shape()[2] for view in self.views]
        return 1, len(sizes), (max(wide for wide, _ in sizes), max(high for _, high in sizes))

    def _draw(self, axes: list[list[Any]]) -> None:
        for ax, view in zip(axes[0], self.views, strict=True):
            view._draw([[ax]])
            ax.set_title(label(view.title, 48), fontsize=9)


def compared(*views: Coloured, title: str = "") -> Compared:
    """Views side by side with the same colours for the same values.

    Args:
        views: Of one panel each, measured in the same unit.
        title: Above them.

    Raises:
        ValueError: Nothing to compare, another quantity, or a view of several panels.
    """
    quantities = {view.quantity for view in views}
    if len(quantities) != 1 or any(view._shape()[:2] != (1, 1) for view in views):
        raise ValueError(
            f"views of {sorted(quantities)} cannot share a scale; give one-panel views of one "
            "quantity"
        )
    scale = Scale.of(*(view._numbers() for view in views))
    return Compared([dataclasses.replace(view, scale=scale) for view in views], title=title)
