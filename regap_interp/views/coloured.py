"""Views whose colours stand for values."""

import dataclasses
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from regap_interp.views import markup
from regap_interp.views.about import words
from regap_interp.views.colour import Scale
from regap_interp.views.drawing import colour_bar
from regap_interp.views.markup import FAINT, Markup, element
from regap_interp.views.view import View


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Coloured(View):
    """A view whose colours stand for values."""

    quantity: str = "value"
    """What the values are, with their unit."""
    scale: Scale | None = None
    """Of the colours; by default the one that just holds the values. Give two views that are to be
    compared the same, or show them with `compared`."""

    def __post_init__(self) -> None:
        """Keep plain numbers: on the CPU, without a graph of gradients."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                object.__setattr__(self, field.name, value.detach().cpu())

    @abstractmethod
    def _numbers(self) -> Tensor:
        """All values that have a colour."""

    @property
    def colours(self) -> Scale:
        """The scale in use."""
        return self.scale or Scale.of(self._numbers())

    def _notes(self) -> str:
        missing = self._missing()
        return f"{missing} of {self._numbers().numel()} not finite" if missing else ""

    def _missing(self) -> int:
        return int((~self._numbers().isfinite()).sum())

    def _legend(self) -> Markup:
        return markup.joined(
            element("div", words(self.quantity), style=f"font-size:11px;color:{FAINT}"),
            self.colours.legend(negative=self._negative(), missing=bool(self._missing())),
        )

    def _bar(self, ax: Any) -> None:
        colour_bar(ax, self.colours, self.quantity, negative=self._negative())

    def _negative(self) -> bool:
        return self.colours.signed or bool((self._numbers() < 0).any())
