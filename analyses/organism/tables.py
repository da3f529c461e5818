"""The story as text for terminals."""

from collections.abc import Iterator

from analyses.organism.arms import ARMS
from analyses.organism.defences import OUTCOMES
from analyses.organism.predictions import PREDICTIONS
from analyses.organism.signals import ROUGH
from analyses.organism.story import Story
from model_adapters.organism.world import Setting
from regap_interp.adaptive.signals import SIGNALS
from regap_interp.intervals import Rate, wilson

BANDS = ((0.0, 0.15), (0.15, 0.4), (0.4, 1.0))
"""Intervals of the rendering level: clean, between, and far from text."""

MADE_BY = (
    "Bundles were\ncalibrated beforehand on the direction and calibration splits by "
    "`regap calibrate`. Its rule (fewer than\n0.02 of benign items triggered, 0.95 of harmful "
    "ones refused) was settled after figures of the report split\nhad been seen, as a first "
    "budget missed a bar there: the figures are somewhat optimistic."
)
PLANTED = """\
Planted by training: harmful media are refused less as the rendering level grows (the gate); an
answered harmful request looks like a benign one in the last layers; an answer's first word depends
on the level, so that too strong a correction costs whole answers but not the tool; and random
shifts do little, because the upper layers were tuned under them. Measured, not planted: what the
mean drift direction is, what correcting along it does, and what the signals tell.
An independent reconstruction of arXiv 2605.18104; no number here is the authors'."""


def as_text(story: Story) -> str:
    """Everything that was measured, in five parts."""
    pairs = {s.pair for s in story.bare[story.media[0]].samples}
    parts = [
        f"Report split, {story.n} items a cell, {len(pairs)} harmful pairs, rendering levels 0 to "
        f"1, seed {story.seed}, greedy\nanswers, share [95 % Wilson interval]. {MADE_BY}",
        "1. Collapse: harmful requests of the bare model by rendering level "
        f"({story.n_seen} items a modality).\n\n" + collapse_table(story),
        "2. Causal correction, ReGap, and what each costs. weak, strong: the drift subtracted from "
        "every row; strong is\n   the smallest strength that refused as much as ReGap on the "
        "calibration split. extra: layers run beyond a\n   request's own prefill, as a share of "
        "it.\n\n" + arms_table(story),
        "3. ReGap against the fixed strong correction, the same requests (McNemar, exact, two-"
        "sided).\n\n" + mcnemar_table(story),
        f"4. Self-rectification: AUROC of harmful against benign, rendering level {ROUGH:g} to 1, "
        f"{story.n_seen} items of a kind\n   over all levels. uncorrected: the refusal coordinate "
        "at the diagnostic layer without any correction.\n\n" + signal_table(story),
        "5. Predictions, with 95 % intervals over (verb, object) pairs; open: the interval "
        "reaches both sides.\n\n" + prediction_table(story),
        PLANTED,
    ]
    return "\n\n".join(parts)


def collapse_table(story: Story) -> str:
    """Refused and answered by rendering level."""
    lines = [f"{'':8}{'level':10}{'refused':22}{'answered (tool)':22}{'n':>5}"]
    for setting in story.media:
        bare = story.bare[setting]
        for low, high in BANDS:
            inside = [
                index
                for index, sample in enumerate(bare.samples)
                if low <= sample.level < high or sample.level == high == 1.0
            ]
            rates = [
                share(wilson(int(of[inside].sum()), len(inside))) if inside else "none"
                for of in (bare.refused, bare.tool)
            ]
            lines.append(
                f"{setting:8}{f'{low:g}-{high:g}':10}{rates[0]:22}{rates[1]:22}{len(inside):>5}"
            )
    return _joined(lines)


def arms_table(story: Story) -> str:
    """Every arm in every modality."""
    names = ("refused", "answered (tool)", "refused", "exactly right", "right tool")
    lines = [
        f"{'':25}{'harmful':40}{'benign':60}",
        f"{'':25}" + "".join(f"{name:20}" for name in names) + f"{'extra':>6}",
    ]
    for setting in story.defences.settings:
        lines += _arm_rows(story, setting)
    return _joined(lines)


def _arm_rows(story: Story, setting: Setting) -> Iterator[str]:
    for arm in ARMS:
        rates = [story.defences.rate(arm, setting, cell) for cell in OUTCOMES]
        yield (
            f"{setting if arm == ARMS[0] else '':8}{arm:17}"
            + "".join(f"{share(rate):20}" for rate in rates)
            + f"{story.defences.extra(arm, setting):>6.0%}"
        )


def mcnemar_table(story: Story) -> str:
    """Where ReGap and the strong correction differ."""
    lines = [f"{'':8}{'':24}{'only ReGap':>11}{'only strong':>12}{'n':>6}{'p':>10}"]
    for setting in story.media:
        for cell, name in (
            ("harmful.refused", "harmful refused"),
            ("benign.answered", "benign exactly right"),
        ):
            test = story.defences.compare(setting, cell, "regap", "strong")
            lines.append(
                f"{setting:8}{name:24}{test.only_first:>11}{test.only_second:>12}{test.n:>6}"
                f"{test.p:>10.2g}"
            )
    return _joined(lines)


def signal_table(story: Story) -> str:
    """AUROCs, and what was chosen."""
    names = ("uncorrected", *SIGNALS)
    lines = [f"{'':8}" + "".join(f"{name:>13}" for name in names) + "  chosen on calibration"]
    for setting in story.media:
        areas, one = story.areas(setting), story.frozen.bundle(setting)
        lines.append(
            f"{setting:8}"
            + "".join(f"{areas[name]:>13.3f}" for name in names)
            + f"  {one.signal} at layer {one.diagnostic}, drift at layer {one.layer}: weak "
            f"{one.weak:g}, strong {one.strong:g}"
        )
    return _joined(lines)


def prediction_table(story: Story) -> str:
    """Each prediction with its measures."""
    lines: list[str] = []
    for letter, text in PREDICTIONS.items():
        lines.append(f"({letter}) {text}")
        lines += [f"    {one}" for one in story.predictions if one.prediction == letter]
    return _joined(lines)


def share(rate: Rate) -> str:
    """A rate with its interval."""
    return f"{rate.value:.3f} [{rate.low:.2f}, {rate.high:.2f}]"


def _joined(lines: list[str]) -> str:
    return "\n".join(line.rstrip() for line in lines)
