"""Maps and lines of patching results, by matplotlib."""

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from analyses.patching.result import PatchResult

_MOST_TICKS = 24


def draw(result: "PatchResult", ax: "Axes | None") -> "Axes":
    """See `PatchResult.plot`."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install 'regap-interp[views]'") from error
    wide = [axis for axis in result.axes if len(axis.labels) > 1]
    if len(wide) > 2:
        names = ", ".join(axis.name for axis in wide)
        raise ValueError(f"a picture has two axes, not {names}; choose a part by at(...)")
    if ax is None:
        ax = Figure(figsize=(7, 4.5), layout="constrained").subplots()
    values = result.values.reshape([len(axis.labels) for axis in wide])
    if len(wide) == 2:
        _map(ax, wide, values)
    else:
        across = wide[0] if wide else result.axes[0] if result.axes else None
        ax.plot(range(values.numel()), values.flatten().tolist(), marker="o")
        ax.axhline(0, color="grey", linewidth=0.8)
        ax.axhline(1, color="grey", linewidth=0.8, linestyle=":")
        ax.set_ylabel("normalised effect")
        if across is not None:
            _ticks(ax.xaxis, across.labels)
            ax.set_xlabel(across.name)
    ax.set_title(
        f"{result.method} {result.mode} of {result.site}: {result.metric}\n"
        f"{result.model}, n={result.n}, seed {result.seed}",
        fontsize="small",
        parse_math=False,
    )
    return ax


def _map(ax: "Axes", wide: Any, values: torch.Tensor) -> None:
    """Rows are the first axis; colours are centred at 0, and what is not finite is grey."""
    finite = values[values.isfinite()]
    most = max(float(finite.abs().max()) if finite.numel() else 0.0, 1e-12)
    ax.set_facecolor("#d0d0d0")
    image = ax.imshow(
        values.numpy(), cmap="RdBu_r", vmin=-most, vmax=most, aspect="auto", origin="lower"
    )
    _ticks(ax.yaxis, wide[0].labels)
    _ticks(ax.xaxis, wide[1].labels)
    ax.set_ylabel(wide[0].name)
    ax.set_xlabel(wide[1].name)
    ax.figure.colorbar(image, ax=ax, label="normalised effect")


def _ticks(axis: Any, labels: tuple[str, ...]) -> None:
    """Labels at so many places as can be read, first and last among them."""
    step = -(-len(labels) // _MOST_TICKS)
    places = sorted({*range(0, len(labels), step), len(labels) - 1})
    axis.set_ticks(places, [labels[i] for i in places])
