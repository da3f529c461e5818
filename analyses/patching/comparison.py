"""Several results on one scale, such as pictures, sounds and clips patched from text."""

from collections.abc import Mapping, Sequence

from analyses.patching.drawing import Drawn, EffectsView, pictures
from analyses.patching.result import PatchResult
from regap_interp.views import About, Compared
from regap_interp.views.about import label


def compare(results: Mapping[str, PatchResult], *, title: str = "") -> Compared | EffectsView:
    """Results side by side: maps with the same colours for the same effects, or lines in one panel.

    Args:
        results: By name, such as "image" and "audio", over the same one or two axes.
        title: Above them.

    Raises:
        ValueError: nothing to compare; results of other modes or axes.
    """
    if not results:
        raise ValueError("results is empty; give at least one, by name")
    modes = {one.mode for one in results.values()}
    if len(modes) > 1:
        raise ValueError(
            "some results denoise and others noise: effects of the one are what is enough, of the "
            "other what is needed. Compare results of one mode"
        )
    drawn = {name: one.drawn() for name, one in results.items()}
    common = [part for part in next(iter(drawn.values())).parts if _in_all(part, drawn)]
    names = {name: label(name, 40) for name in drawn}
    ends = [f"{names[name]} {one.ends[0]:.3g} to {one.ends[1]:.3g}" for name, one in drawn.items()]
    own = [
        f"{names[name]}: {part}" for name, one in drawn.items() for part in _without(one, common)
    ]
    seeds = {one.seed for one in results.values()}
    about = About(
        model=", ".join(dict.fromkeys(one.model for one in results.values())),
        seed=seeds.pop() if len(seeds) == 1 else None,
        note=" \u00b7 ".join([*common, f"corrupted to clean: {', '.join(ends)}", *own]),
    )
    return pictures(drawn, title, about)


def _in_all(part: str, drawn: Mapping[str, Drawn]) -> bool:
    return all(part in one.parts for one in drawn.values())


def _without(one: Drawn, common: Sequence[str]) -> list[str]:
    return [part for part in one.parts if part not in common]
