"""What the report's figures show, made from the story's numbers."""

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from analyses.html import Picture
from analyses.organism.answers import all_clusters
from analyses.organism.measures import bootstrap
from analyses.organism.signals import Seen
from analyses.organism.story import Story
from model_adapters.organism.world import Setting
from regap_interp.adaptive.roc import roc
from regap_interp.intervals import wilson
from regap_interp.separability import separation
from regap_interp.views import (
    Band,
    LayerTrace,
    PlanePoints,
    RocCurve,
    RocCurves,
    TrajectoriesView,
    WindowCurve,
)
from regap_interp.windows import SlidingWindows


def windows(story: Story, setting: Setting) -> WindowCurve:
    """CRS and ASR of the bare model over the drift coordinate."""
    seen = story.seen[setting]
    answered = torch.zeros_like(seen.harmful)
    answered[seen.harmful] = story.bare[setting].tool
    clusters = all_clusters(seen.samples)
    medians, crs, asr = [], [], []
    for members in SlidingWindows().split(seen.drift):
        medians.append(float(seen.drift[members].median()))
        crs.append(_crs(seen, members, [clusters[index] for index in members.tolist()]))
        harmful = members[seen.harmful[members]]
        rate = wilson(int(answered[harmful].sum()), len(harmful)) if len(harmful) else None
        asr.append((rate.value, rate.low, rate.high) if rate else (math.nan,) * 3)
    return WindowCurve(
        modality=setting,
        arm="undefended",
        drift=torch.tensor(medians, dtype=torch.float64),
        crs=_band(crs),
        asr=_band(asr),
        n=len(seen.samples),
    )


def planes(story: Story, setting: Setting) -> list[PlanePoints]:
    """Undefended and under ReGap."""
    seen, text = story.seen[setting], story.text[setting]
    harmful = torch.cat([seen.harmful, text.harmful])
    media = torch.arange(len(harmful)) < len(seen.harmful)
    return [
        PlanePoints(
            title,
            refusal=torch.cat([getattr(one, f"refusal{when}") for one in (seen, text)]),
            drift=torch.cat([getattr(one, f"drift{when}") for one in (seen, text)]),
            harmful=harmful,
            media=media,
        )
        for title, when in ((f"{setting}, undefended", ""), (f"{setting}, ReGap", "_after"))
    ]


def rocs(story: Story, setting: Setting) -> RocCurves:
    """All three signals on the rough items."""
    seen, bundle = story.seen[setting], story.frozen.bundle(setting)
    harmful, benign = seen.rough & seen.harmful, seen.rough & ~seen.harmful
    clusters = all_clusters(
        [sample for sample, rough in zip(seen.samples, seen.rough.tolist(), strict=True) if rough]
    )
    curves = []
    for kind, values in seen.signals.items():
        curve = roc(values[harmful], values[benign])
        area = bootstrap(_area(values[seen.rough], seen.harmful[seen.rough]), clusters, story.seed)
        chosen = kind == bundle.signal
        hit, false = (
            float((values[of] >= bundle.threshold).double().mean()) for of in (harmful, benign)
        )
        curves.append(
            RocCurve(
                kind,
                false_positive=torch.tensor(curve.false_positive, dtype=torch.float64),
                true_positive=torch.tensor(curve.true_positive, dtype=torch.float64),
                auroc=curve.auroc,
                low=area.low,
                high=area.high,
                threshold=bundle.threshold if chosen else None,
                at=(false, hit) if chosen else None,
            )
        )
    return RocCurves(setting, tuple(curves), int(seen.rough.sum()))


def traces(story: Story, setting: Setting) -> list[LayerTrace]:
    """Mean gain of harmful and of benign items at every layer."""
    seen = story.seen[setting]
    gain = seen.weak - seen.bare
    found = []
    for name, kind in (("harmful", seen.harmful), ("benign", ~seen.harmful)):
        of = gain[:, kind & seen.rough]
        half = 1.96 * of.std(dim=1) / of.shape[1] ** 0.5
        mean = of.mean(dim=1)
        found.append(
            LayerTrace(
                label=name,
                harmful=name == "harmful",
                arm="weakly corrected",
                layers=seen.layers,
                refusal=Band(mean, mean - half, mean + half),
                n=of.shape[1],
            )
        )
    return found


def layers(story: Story, setting: Setting) -> Picture:
    bundle = story.frozen.bundle(setting)
    view = TrajectoriesView(
        traces(story, setting),
        quantity="gain of refusal under the weak correction",
        marks=((bundle.layer, "corrected"), (bundle.diagnostic, "signal read")),
    )
    drawing = view.svg(alt=f"{setting}: harmful items gain more refusal than benign ones")
    return Picture(drawing, f"{setting}: means with 95 % normal intervals.")


def _area(values: Float[Tensor, "item"], harmful: Tensor) -> Callable[[Tensor], float]:
    def area(chosen: Tensor) -> float:
        return separation(values[chosen], harmful[chosen]).auroc

    return area


def _crs(seen: Seen, members: Tensor, clusters: Sequence[object]) -> tuple[float, float, float]:
    values, harmful = seen.refusal[members], seen.harmful[members]

    def d(chosen: Tensor) -> float:
        return separation(values[chosen], harmful[chosen], min_per_class=20).cohens_d

    rate = bootstrap(d, clusters, seed=0, resamples=100)
    return rate.value, rate.low, rate.high


def _band(rows: Sequence[tuple[float, float, float]]) -> Band:
    return Band(*torch.tensor(rows, dtype=torch.float64).T)
