"""The report's figures as SVG, from the tables of numbers in `analyses.figures`.

Colours are told apart by colour-blind readers, and every colour comes with a shape or a dash of its
own. The same numbers give the same bytes. Matplotlib is imported when the first figure is drawn.
"""

import hashlib
import io
import re
import warnings
from collections.abc import Callable, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import torch

from analyses.figures import Band, LayerTrace, PlanePoints, RocCurves, WindowCurve
from regap_interp.graph.words import printable, shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_HARMFUL, _BENIGN, _INK = "#d55e00", "#0072b2", "#1f2430"
_LINES = (
    ("#0072b2", "-", "o"),
    ("#d55e00", "--", "s"),
    ("#009e73", "-.", "^"),
    ("#cc79a7", ":", "D"),
    ("#56b4e9", (0, (5, 1, 1, 1, 1, 1)), "v"),
)
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "regap",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#667085",
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
}


def refusal_drift_plane(panels: Sequence[PlanePoints], *, alt: str) -> str:
    """Items in the plane of drift (across) and refusal (up), one panel for each arm.

    Args:
        panels: Such as undefended and ReGap, in order; they share their axes.
        alt: What the figure shows, for readers who do not see it.
    """
    _need_some("panels", panels)
    return _svg("plane", alt, len(panels), 1, lambda axes: _plane(axes[0], panels), size=(4.0, 3.6))


def window_curves(curves: Sequence[WindowCurve], *, alt: str) -> str:
    """CRS and below it ASR over windows of the drift coordinate, a column for each modality.

    Args:
        curves: Those of one modality are drawn together, one line for each arm.
        alt: What the figure shows, for readers who do not see it.
    """
    _need_some("curves", curves)
    modalities = list(dict.fromkeys(curve.modality for curve in curves))

    def draw(axes: "Sequence[Sequence[Axes]]") -> None:
        for column, modality in enumerate(modalities):
            _windows([row[column] for row in axes], [c for c in curves if c.modality == modality])
        axes[0][0].set_ylabel("CRS (Cohen's d)")
        axes[1][0].set_ylabel("ASR, harmful answered")

    return _svg("windows", alt, len(modalities), 2, draw, size=(3.0, 2.4))


def self_rectification(
    traces: Sequence[LayerTrace], *, steered: int, diagnostic: int, quantity: str, alt: str
) -> str:
    """Mean refusal coordinate, or its gain, after every layer.

    Args:
        traces: One line each.
        steered: The corrected layer.
        diagnostic: The layer where the signal is read.
        quantity: What is on the upright axis.
        alt: What the figure shows, for readers who do not see it.
    """
    _need_some("traces", traces)

    def draw(axes: "Sequence[Sequence[Axes]]") -> None:
        ax = axes[0][0]
        for trace in traces:
            colour, marker = (_HARMFUL, "^") if trace.harmful else (_BENIGN, "o")
            dash = "-" if trace.corrected else "--"
            label = f"{_label(trace.label, 60)} (n {trace.n})"
            _line(ax, trace.layers, trace.refusal, label, (colour, dash, marker))
        for layer, what in ((steered, "corrected"), (diagnostic, "signal read")):
            ax.axvline(layer, color="#667085", linewidth=0.8, linestyle=":")
            ax.annotate(f" {what}", (layer, 1), xycoords=("data", "axes fraction"), va="bottom")
        ax.axhline(0, color="#667085", linewidth=0.6)
        ax.set_xlabel("layer")
        ax.set_ylabel(printable(quantity))
        ax.locator_params(axis="x", integer=True)
        ax.legend(loc="best").set_in_layout(False)

    return _svg("layers", alt, 1, 1, draw, size=(7.0, 3.6))


def roc_curves(panels: Sequence[RocCurves], *, alt: str) -> str:
    """ROC of the signals, a panel for each modality, the chosen threshold marked by a star.

    Args:
        panels: One for each modality.
        alt: What the figure shows, for readers who do not see it.
    """
    _need_some("panels", panels)

    def draw(axes: "Sequence[Sequence[Axes]]") -> None:
        for ax, panel in zip(axes[0], panels, strict=True):
            _roc(ax, panel)
        axes[0][0].set_ylabel("harmful at or above threshold")

    return _svg("roc", alt, len(panels), 1, draw, size=(3.4, 4.2))


def _plane(axes: "Sequence[Axes]", panels: Sequence[PlanePoints]) -> None:
    for ax, panel in zip(axes, panels, strict=True):
        for harmful, media in ((False, False), (False, True), (True, False), (True, True)):
            chosen = (panel.harmful == harmful) & (panel.media == media)
            if not chosen.any():
                continue
            colour, marker = (_HARMFUL, "^") if harmful else (_BENIGN, "o")
            name = f"{'harmful' if harmful else 'benign'} {'media' if media else 'text'}"
            x, y = panel.drift[chosen], panel.refusal[chosen]
            ax.scatter(
                x.tolist(),
                y.tolist(),
                s=14,
                marker=marker,
                facecolors=colour if media else "none",
                edgecolors=colour,
                linewidths=0.7,
                alpha=0.7,
                label=f"{name} (n {_count(x + y)})",
            )
        for line in (ax.axvline, ax.axhline):
            line(0, color="#98a2b3", linewidth=0.6)
            line(1, color="#98a2b3", linewidth=0.6, linestyle=":")
        ax.set_title(_label(panel.title))
        ax.set_xlabel("drift (0 text, 1 mean of media)")
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=2, handletextpad=0.2)
        ax.sharex(axes[0]) if ax is not axes[0] else None
        ax.sharey(axes[0]) if ax is not axes[0] else None
    axes[0].set_ylabel("refusal (0 harmless, 1 harmful text)")


def _windows(axes: "Sequence[Axes]", curves: Sequence[WindowCurve]) -> None:
    top, below = axes
    for curve, style in zip(curves, _cycled(len(curves)), strict=True):
        label = f"{_label(curve.arm)} (n {curve.n})"
        _line(top, curve.drift.tolist(), curve.crs, label, style)
        _line(below, curve.drift.tolist(), curve.asr, label, style)
    top.set_title(_label(curves[0].modality))
    top.axhline(0, color="#98a2b3", linewidth=0.6)
    top.legend(loc="best").set_in_layout(False)
    below.set_ylim(-0.03, 1.03)
    below.set_xlabel("median drift of the window")


def _roc(ax: "Axes", panel: RocCurves) -> None:
    ax.plot([0, 1], [0, 1], color="#98a2b3", linewidth=0.6)
    for curve, (colour, dash, _) in zip(panel.curves, _cycled(len(panel.curves)), strict=True):
        interval = "" if curve.low != curve.low else f" [{curve.low:.3f}, {curve.high:.3f}]"
        ax.plot(
            curve.false_positive.tolist(),
            curve.true_positive.tolist(),
            color=colour,
            linestyle=dash,
            linewidth=1.5,
            label=f"{_label(curve.label)}: AUROC {curve.auroc:.3f}{interval}",
        )
        if curve.at is not None:
            mark = (
                "chosen" if curve.threshold is None else f"chosen, threshold {curve.threshold:.3g}"
            )
            ax.plot(*curve.at, "*", color=colour, markersize=12, label=mark)
    ax.set_title(f"{_label(panel.title)} (n {panel.n})")
    ax.set_xlabel("benign at or above threshold")
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), fontsize=8)


def _line(ax: "Axes", x: Sequence[float], band: Band, label: str, style: Any) -> None:
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


def _label(text: str, longest: int = 24) -> str:
    return shortened(printable(text), longest)


def _cycled(count: int) -> list[Any]:
    return [_LINES[index % len(_LINES)] for index in range(count)]


def _count(values: torch.Tensor) -> str:
    """How many there are, and how many of them could not be measured."""
    missing = int((~values.isfinite()).sum())
    return f"{len(values)}, {missing} not measured" if missing else str(len(values))


def _need_some(name: str, given: Sequence[object]) -> None:
    if not given:
        raise ValueError(f"{name} is empty; there is nothing to draw")


def _svg(
    name: str,
    alt: str,
    columns: int,
    rows: int,
    draw: "Callable[[Sequence[Sequence[Axes]]], None]",
    *,
    size: tuple[float, float],
) -> str:
    try:
        import matplotlib
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "figures need matplotlib, which is not installed: pip install 'regap-interp[views]'"
        ) from error
    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        # A name in a script that the font lacks is measured wrongly, and drawn by the browser.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure = Figure(figsize=(size[0] * columns, size[1] * rows))
        FigureCanvasSVG(figure)
        draw(figure.subplots(rows, columns, squeeze=False).tolist())
        return _inline(figure, name, alt)


def _inline(figure: "Figure", name: str, alt: str) -> str:
    """The figure as an element of a page: no prologue, no metadata, ids of its own."""
    file = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(file, format="svg", metadata=nothing)
    text = file.getvalue()
    text = text[text.index("<svg") :]
    # Several figures share a page: ids that are theirs alone, and the same in every run.
    own = f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    text = re.sub(r'(\bid="|\burl\(#|href="#)', rf"\g<1>{own}-", text)
    title = escape(printable(alt))
    return text.replace(">", f' role="img" aria-label="{title}"><title>{title}</title>', 1)
