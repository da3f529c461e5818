"""Matplotlib, kept at arm's length: imported when something is drawn, settings given back.

Figures are made without pyplot, so that no notebook shows one by itself. Text is never read as a
formula.
"""

import hashlib
import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from html import escape
from typing import TYPE_CHECKING, Any

from regap_interp.views.markup import FAINT, INK
from regap_interp.views.text import visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DOTS = 144
"""Dots per inch of PNG files; pages show them at two thirds of their size."""
_SMALLEST = 40
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "regap",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": FAINT,
    "text.color": INK,
    "axes.labelcolor": INK,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
}


@contextmanager
def styled() -> Iterator[None]:
    """The look of all figures, for the time of drawing.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError(
            "figures need matplotlib, which is not installed: pip install 'regap-interp[views]'"
        ) from error
    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        # A sign that the font lacks is drawn as a box; browsers draw it in SVG.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def empty(rows: int, columns: int, size: tuple[float, float]) -> "tuple[Figure, list[list[Axes]]]":
    """A new figure with panels, each `size` inches wide and high; within `styled`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(size[0] * columns, size[1] * rows))
    return figure, figure.subplots(rows, columns, squeeze=False).tolist()


def without_formulas(figure: "Figure | Axes") -> None:
    """Take every text of a figure or of axes literally, whenever it is drawn."""
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        text.set_parse_math(False)


def png(figure: "Figure", largest: int) -> bytes:
    """The figure as a PNG file, coarser if it would have more than `largest` bytes."""
    dots = DOTS
    while True:
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=dots, metadata={"Software": None})
        if file.tell() <= largest or dots <= _SMALLEST:
            return file.getvalue()
        dots = max(_SMALLEST, dots * 2 // 3)


def inline_svg(figure: "Figure", name: str, alt: str) -> str:
    """The figure as an element of a page: no prologue, no metadata, ids of its own."""
    file = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(file, format="svg", metadata=nothing)
    text = file.getvalue()
    text = text[text.index("<svg") :]
    # Several figures share a page: ids that are theirs alone, and the same in every run.
    own = f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    ids = re.compile(r'(\bid="|\burl\(#|href="#)')
    # Within elements only: labels may say the same.
    text = re.sub(r"<[^>]*>", lambda found: ids.sub(rf"\g<1>{own}-", found[0]), text)
    title = escape(visible(alt, 2_000).replace("\u2423", " "))
    return text.replace(">", f' role="img" aria-label="{title}"><title>{title}</title>', 1)


def panels(given: Any, rows: int, columns: int) -> "list[list[Axes]]":
    """The axes that a caller gave, in rows.

    Raises:
        ValueError: They are not as many as the view has panels.
    """
    flat = _flat(given)
    if len(flat) != rows * columns:
        raise ValueError(
            f"{len(flat)} axes for {rows * columns} panels; give one for each, row by row "
            f"({rows} x {columns}), or none for a new figure"
        )
    return [flat[row * columns : (row + 1) * columns] for row in range(rows)]


def _flat(given: Any) -> list[Any]:
    if hasattr(given, "flat"):
        return list(given.flat)
    if isinstance(given, Sequence):
        return [one for part in given for one in _flat(part)]
    return [given]
