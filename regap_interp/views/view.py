"""What every picture of a result can do. Nothing shows itself, and nothing runs in a page."""

import textwrap
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regap_interp.views import figure, markup
from regap_interp.views.about import About, words
from regap_interp.views.markup import FAINT, INK, MONO, PAPER, Markup, element

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

LARGEST_HTML = 1_000_000
"""Bytes; larger pages become a picture."""
LARGEST_PNG = 600_000
"""Bytes; larger pictures are made coarser."""
_CARD = {
    "class": markup.LITERAL,
    "style": f"margin:0;padding:8px;overflow-x:auto;background:{PAPER};color:{INK};"
    f"font-size:13px;line-height:1.5;font-family:{MONO};text-align:left",
}
_SUFFIXES = (".html", ".png", ".svg", ".pdf", ".csv")


class Shown(ABC):
    """A result with a picture: whatever a notebook or a script asks of it goes to its view."""

    @abstractmethod
    def view(self) -> "View":
        """The picture."""

    def _repr_mimebundle_(
        self, include: Collection[str] | None = None, exclude: Collection[str] | None = None
    ) -> dict[str, Any]:
        return self.view()._repr_mimebundle_(include, exclude)

    def plot(self, ax: Any = None) -> "Figure":
        """See `View.plot`."""
        return self.view().plot(ax)

    def to_frame(self) -> "DataFrame":
        """See `View.to_frame`."""
        return self.view().to_frame()

    def save(self, path: str | Path) -> Path:
        """See `View.save`."""
        return self.view().save(path)


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class View(ABC):
    """A static picture: text, HTML without scripts, and a figure of the same numbers."""

    title: str = ""
    """Above the picture."""
    about: About = field(default_factory=About)
    """Below it."""

    @abstractmethod
    def _summary(self) -> str:
        """What is seen, in a line of words."""

    @abstractmethod
    def _columns(self) -> dict[str, Sequence[Any]]:
        """Columns of the tidy table."""

    @abstractmethod
    def _shape(self) -> tuple[int, int, tuple[float, float]]:
        """Rows and columns of panels, and the width and height of each in inches."""

    @abstractmethod
    def _draw(self, axes: list[list[Any]]) -> None:
        """Draw into the panels' axes."""

    def _body(self) -> Markup | None:
        """The picture as HTML; None for the figure."""
        return None

    def _notes(self) -> str:
        """What a reader must know besides `about`, such as what is not drawn."""
        return ""

    @property
    def caption(self) -> str:
        """Where the numbers come from, and what is not drawn."""
        return " \u00b7 ".join(part for part in (str(self.about), self._notes()) if part)

    def __repr__(self) -> str:
        """What is seen, on one line."""
        return f"{type(self).__name__}({words(self._summary(), 200)})"

    def _repr_mimebundle_(
        self, include: Collection[str] | None = None, exclude: Collection[str] | None = None
    ) -> dict[str, Any]:
        makers: dict[str, Callable[[], Any]] = {
            "text/plain": self._text,
            "text/html": self.html,
            "image/png": lambda: self._png,
        }
        found: dict[str, Any] = {}
        for kind, make in makers.items():
            if (include is None or kind in include) and kind not in (exclude or ()):
                try:
                    found[kind] = make()
                except ImportError:  # without matplotlib a view still has its words
                    continue
        return found

    def html(self) -> Markup:
        """The view as an element of a page: inline styles, no scripts, nothing loaded."""
        body = self._body()
        if body is None or len(body) > LARGEST_HTML:
            return element("figure", picture(self._png, self._text()), **_CARD)
        below = f"font-size:11px;color:{FAINT};margin:6px 0 0 0"
        return element(
            "figure",
            element("div", words(self.title), style="font-weight:bold;margin:0 0 6px 0")
            if self.title
            else "",
            body,
            element("figcaption", self.caption, style=below) if self.caption else "",
            **_CARD,
        )

    def svg(self, *, alt: str = "") -> str:
        """The figure as an `svg` element to be put into a page, the same bytes every time.

        Args:
            alt: What it shows, for readers who do not see it; by default its summary.
        """
        with figure.styled():
            name = type(self).__name__.lower()
            return figure.inline_svg(self._figure(), name, alt or self._summary())

    def plot(self, ax: Any = None) -> "Figure":
        """The picture as a matplotlib figure, which is returned and not shown.

        Args:
            ax: Axes to draw into, as many as the view has panels, row by row; None makes a figure.

        Raises:
            ValueError: `ax` holds another number of axes.
        """
        with figure.styled():
            if ax is None:
                return self._figure()
            rows, columns, _ = self._shape()
            axes = figure.panels(ax, rows, columns)
            self._draw(axes)
            for one in (one for row in axes for one in row):
                figure.without_formulas(one)
            owner: Any = axes[0][0].get_figure(root=True)
            return owner

    def to_frame(self) -> "DataFrame":
        """The numbers as a tidy table, one value a row; NaN where nothing could be measured."""
        try:
            import pandas
        except ImportError as error:
            raise ImportError(
                "tables need pandas, which is not installed: pip install 'regap-interp[views]'"
            ) from error
        table: DataFrame = pandas.DataFrame(
            {
                writable(name): [writable(one) for one in column]
                for name, column in self._columns().items()
            }
        )
        return table

    def save(self, path: str | Path) -> Path:
        """Write the view to a file: `.html` (a page), `.png`, `.svg`, `.pdf` or `.csv`.

        Raises:
            ValueError: The file has another suffix.
        """
        path = Path(path)
        match path.suffix.lower():
            case ".html":
                title = self.title or type(self).__name__
                path.write_text(markup.page(words(title), self.html()), encoding="utf-8")
            case ".png":
                path.write_bytes(self._png)
            case ".csv":
                self.to_frame().to_csv(path, index=False)
            case ".svg" | ".pdf" as suffix:
                with figure.styled():
                    self._figure().savefig(path, format=suffix[1:], metadata=_undated(suffix))
            case suffix:
                raise ValueError(f"no view becomes a {suffix!r} file; use one of {_SUFFIXES}")
        return path

    def _text(self) -> str:
        parts = (words(self.title), words(self._summary(), 1000), self.caption)
        return "\n".join(part for part in parts if part)

    @cached_property
    def _png(self) -> bytes:
        with figure.styled():
            return figure.png(self._figure(), LARGEST_PNG)

    def _figure(self) -> "Figure":
        rows, columns, (wide, high) = self._shape()
        above = textwrap.wrap(words(self.title), int(10 * wide * columns))
        below = textwrap.wrap(self.caption, int(15 * wide * columns))
        size = (wide, high + (0.18 * len(above) + 0.14 * len(below)) / rows)
        made, axes = figure.empty(rows, columns, size)
        self._draw(axes)
        if above:
            made.suptitle("\n".join(above), fontsize=10, fontweight="bold")
        if below:
            made.supxlabel("\n".join(below), fontsize=7.5, color=FAINT)
        figure.without_formulas(made)
        return made


def picture(png: bytes, alt: str) -> Markup:
    """A PNG file of `figure.DOTS` as an element, at its size on paper."""
    wide = int.from_bytes(png[16:20], "big")
    return element(
        "img",
        src=markup.image_source(png, "png"),
        alt=alt,
        width=str(wide * 96 // figure.DOTS),
        style="max-width:100%;height:auto",
    )


def writable(value: Any) -> Any:
    """A cell of a table: lone surrogates, which no file can hold, become question marks."""
    return value.encode(errors="replace").decode() if isinstance(value, str) else value


def _undated(suffix: str) -> dict[str, None]:
    return {"Date": None} if suffix == ".svg" else {"CreationDate": None}
