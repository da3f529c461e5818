"""The plane of refusal and drift: items as points, by class."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Bool, Float
from torch import Tensor

from regap_interp.views.about import label
from regap_interp.views.bands import AXIS, BENIGN, HARMFUL, counted, limits, need_some
from regap_interp.views.view import View


@dataclass(frozen=True, eq=False)
class PlanePoints:
    """One panel of the refusal x drift plane: items at one layer, under one arm."""

    title: str
    """Such as "undefended" or "ReGap"."""
    refusal: Float[Tensor, "item"]
    """Refusal coordinate over the direction's length: 0 harmless text, 1 harmful text."""
    drift: Float[Tensor, "item"]
    """Drift coordinate over the direction's length: 0 the text twins, 1 their media forms."""
    harmful: Bool[Tensor, "item"]
    """True for harmful items."""
    media: Bool[Tensor, "item"]
    """True for items with media, False for text."""


@dataclass(frozen=True, eq=False, repr=False)
class PlaneView(View):
    """Drift across, refusal up; a panel for each arm, on the same axes."""

    panels: Sequence[PlanePoints]
    """Such as undefended and ReGap."""

    def __post_init__(self) -> None:
        """Refuse to draw nothing."""
        need_some("panels", self.panels)

    def _summary(self) -> str:
        return "refusal x drift plane: " + ", ".join(
            f"{panel.title} (n {counted(panel.refusal + panel.drift)})" for panel in self.panels
        )

    def _columns(self) -> dict[str, Sequence[Any]]:
        found: dict[str, list[Any]] = {"panel": [], "item": []}
        for panel in self.panels:
            found["panel"] += [panel.title] * len(panel.drift)
            found["item"] += range(len(panel.drift))
            for name in ("refusal", "drift", "harmful", "media"):
                found.setdefault(name, []).extend(getattr(panel, name).tolist())
        return {**found}

    def _shape(self) -> tuple[int, int, tuple[float, float]]:
        return 1, len(self.panels), (4.0, 4.2)

    def _draw(self, axes: list[list[Any]]) -> None:
        across = limits([panel.drift for panel in self.panels])
        up = limits([panel.refusal for panel in self.panels])
        for ax, panel in zip(axes[0], self.panels, strict=True):
            _points(ax, panel)
            for line in (ax.axvline, ax.axhline):
                line(0, color=AXIS, linewidth=0.6)
                line(1, color=AXIS, linewidth=0.6, linestyle=":")
            ax.set_xlim(across)
            ax.set_ylim(up)
            ax.set_title(label(panel.title))
            ax.set_xlabel("drift (0 text, 1 mean of media)")
            ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15), handletextpad=0.2)
        axes[0][0].set_ylabel("refusal (0 harmless, 1 harmful text)")


def _points(ax: Any, panel: PlanePoints) -> None:
    for harmful, media in ((False, False), (False, True), (True, False), (True, True)):
        chosen = (panel.harmful == harmful) & (panel.media == media)
        if not chosen.any():
            continue
        colour, marker = (HARMFUL, "^") if harmful else (BENIGN, "o")
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
            label=f"{name} (n {counted(x + y)})",
        )
