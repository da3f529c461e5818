"""Lines, points and maps of results, by matplotlib, which is imported when something is drawn."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from analyses.geometry.estimate import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from analyses.geometry.result import Result

HARMFUL, BENIGN = "#d55e00", "#0072b2"
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
_MARKERS = "os^Dv<>"
_DASHES = ("-", "--", "-.", ":")


def axes(ax: "Axes | None") -> "Axes":
    """The axes given, or those of a new figure.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "plots need matplotlib, which is not installed: pip install 'regap-interp[views]'"
        ) from error
    return Figure(figsize=(7, 4.2), layout="constrained").subplots() if ax is None else ax


def line(
    ax: "Axes",
    x: Sequence[float],
    band: Estimate,
    label: str,
    index: int,
    *,
    colour: str | None = None,
) -> None:
    """One line with its interval; colour, dash and marker tell lines apart."""
    shade = colour or _COLOURS[index % len(_COLOURS)]
    ax.fill_between(x, band.low.tolist(), band.high.tolist(), color=shade, alpha=0.15, linewidth=0)
    ax.plot(
        x,
        band.value.tolist(),
        color=shade,
        linestyle=_DASHES[index % len(_DASHES)],
        marker=_MARKERS[index % len(_MARKERS)],
        markersize=3.5,
        linewidth=1.4,
        label=label,
    )


def points(ax: "Axes", x: Tensor, y: Tensor, label: str, *, harmful: bool, filled: bool) -> None:
    """Items, told apart by colour and shape."""
    colour = HARMFUL if harmful else BENIGN
    ax.scatter(
        x.tolist(),
        y.tolist(),
        s=14,
        marker="^" if harmful else "o",
        facecolors=colour if filled else "none",
        edgecolors=colour,
        linewidths=0.7,
        alpha=0.7,
        label=label,
    )


def heat(
    ax: "Axes", values: Tensor, rows: Sequence[object], columns: Sequence[object], label: str
) -> None:
    """A map centred at 0; what could not be measured is grey."""
    finite = values[values.isfinite()]
    most = max(float(finite.abs().max()) if finite.numel() else 0.0, 1e-12)
    ax.set_facecolor("#d0d0d0")
    image = ax.imshow(
        torch.as_tensor(values).numpy(), cmap="RdBu_r", vmin=-most, vmax=most, aspect="auto"
    )
    ax.set_yticks(range(len(rows)), [str(one) for one in rows])
    ax.set_xticks(range(len(columns)), [str(one) for one in columns])
    ax.figure.colorbar(image, ax=ax, label=label)


def finish(
    ax: "Axes", result: "Result", x: str, y: str, *, zero: bool = False, legend: bool = True
) -> "Axes":
    """Labels, and where the numbers come from."""
    if zero:
        ax.axhline(0, color="#98a2b3", linewidth=0.6)
    ax.set_xlabel(x)
    ax.set_ylabel(y)
    n: Any = getattr(result, "n", None)
    ax.set_title(f"n {n}, {result.caption()}", fontsize="small", parse_math=False)
    if legend:
        for text in ax.legend(loc="best", fontsize="small", frameon=False).get_texts():
            text.set_parse_math(False)
    return ax
