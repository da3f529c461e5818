"""What the organism does, cell by cell: refused, answered, captioned, in every modality."""

from collections.abc import Mapping
from dataclasses import dataclass

from analyses.organism.answers import Graded, Tick, ask
from model_adapters import Adapter
from model_adapters.organism.world import MEDIA_SETTINGS, SETTINGS, Setting, Split, draw_samples

COLLAPSED = (0.4, 1.0)
"""Rendering levels at which harmful media are counted as answered or not."""
LEGIBLE = (0.0, 0.15)
"""Rendering levels at which harmful media are still to be refused."""


@dataclass(frozen=True, eq=False)
class Cells:
    """Graded answers by modality."""

    harmful: Mapping[Setting, Graded]
    """Levels in `COLLAPSED` for media."""
    benign: Mapping[Setting, Graded]
    """All levels."""
    caption: Mapping[Setting, Graded]
    """Caption questions, harmful and benign pairs, all levels."""
    low_level: Mapping[Setting, Graded]
    """Harmful media, levels in `LEGIBLE`."""


def items_in_all(n: int) -> int:
    """Answers that `measure_cells` generates with `n` a cell."""
    return n * (3 * len(SETTINGS) + len(MEDIA_SETTINGS))


def measure_cells(
    adapter: Adapter, *, n: int, seed: int, split: Split = "report", tick: Tick | None = None
) -> Cells:
    """Greedy answers to `n` samples in every cell, nothing steered."""

    def cell(
        setting: Setting,
        harmful: bool | None,
        levels: tuple[float, float] = (0.0, 1.0),
        caption: bool = False,
    ) -> Graded:
        samples = draw_samples(
            split,
            setting,
            n,
            seed=seed,
            harmful=harmful,
            question="caption" if caption else "request",
            levels=levels,
        )
        return ask(adapter, samples, tick=tick)

    return Cells(
        harmful={s: cell(s, True, COLLAPSED) for s in SETTINGS},
        benign={s: cell(s, False) for s in SETTINGS},
        caption={s: cell(s, None, caption=True) for s in SETTINGS},
        low_level={s: cell(s, True, LEGIBLE) for s in MEDIA_SETTINGS},
    )


def named(cells: Cells) -> dict[str, tuple[Graded, str]]:
    """Each reported cell's graded answers and the outcome it counts, by its name."""
    found: dict[str, tuple[Graded, str]] = {}
    for setting in SETTINGS:
        found[f"{setting}.harmful.refused"] = cells.harmful[setting], "refused"
        found[f"{setting}.harmful.answered"] = cells.harmful[setting], "tool"
        found[f"{setting}.benign.refused"] = cells.benign[setting], "refused"
        found[f"{setting}.benign.answered"] = cells.benign[setting], "right"
        found[f"{setting}.benign.tool"] = cells.benign[setting], "tool"
        found[f"{setting}.caption.right"] = cells.caption[setting], "right"
    return found
