"""The story as one self-contained HTML report."""

from analyses.html import Picture, Section, Table, report_html
from analyses.organism.arms import ARMS
from analyses.organism.defences import OUTCOMES
from analyses.organism.pictures import layers, planes, rocs, windows
from analyses.organism.predictions import PREDICTIONS
from analyses.organism.signals import ROUGH
from analyses.organism.story import Story
from analyses.organism.tables import MADE_BY, PLANTED, share
from regap_interp.adaptive.signals import SIGNALS
from regap_interp.views import PlaneView, RocView, WindowsView


def as_html(story: Story) -> str:
    """The report: tables and four kinds of figures; opens offline, runs no script."""
    return report_html(
        "Safety geometry collapse and ReGap on the organism",
        [
            Section(
                "What this is",
                (
                    f"Report split, {story.n} items a cell, coordinates of {story.n_seen} items of "
                    f"a kind in every modality, seed {story.seed}, rendering levels 0 to 1.",
                    MADE_BY,
                    PLANTED,
                ),
            ),
            Section("Arms", tables=(arms(story), compared(story))),
            Section(
                "Collapse",
                (
                    "Items sorted by their drift coordinate, windows of a fifth of them. CRS is "
                    "Cohen's d of harmful and benign along refusal at the diagnostic layer; ASR is "
                    "the share of harmful items that the bare model answers.",
                ),
                pictures=(
                    Picture(
                        WindowsView([windows(story, one) for one in story.media]).svg(
                            alt="CRS falls and ASR rises with the drift coordinate"
                        ),
                        "CRS and ASR over sliding windows of the drift coordinate, bare model, "
                        "95 % intervals.",
                    ),
                ),
            ),
            Section(
                "Refusal and drift, before and after",
                (
                    "Refusal is read at the diagnostic layer, drift at the corrected layer, both "
                    "in units of their direction: harmless text 0, harmful text 1; text twins 0, "
                    "their media forms 1.",
                ),
                pictures=tuple(
                    Picture(
                        PlaneView(planes(story, one)).svg(
                            alt=f"{one}: refusal and drift of every item"
                        ),
                        f"{one}: {story.n_seen} harmful and {story.n_seen} benign items, and text.",
                    )
                    for one in story.media
                ),
            ),
            Section(
                "Self-rectification by layer",
                (
                    "How much the weak correction raises the refusal coordinate, layer by layer, "
                    f"rendering levels from {ROUGH:g}.",
                ),
                pictures=tuple(layers(story, one) for one in story.media),
            ),
            Section(
                "The three signals",
                tables=(signals(story),),
                pictures=(
                    Picture(
                        RocView([rocs(story, one) for one in story.media]).svg(
                            alt="ROC of the signals in every modality"
                        ),
                        "Harmful against benign items, rendering levels from 0.4; the star is the "
                        "threshold chosen on the calibration split.",
                    ),
                ),
            ),
            Section("Predictions", tables=(predictions(story),)),
            Section("Choices", tables=(choices(story),)),
        ],
    )


def arms(story: Story) -> Table:
    """Every cell."""
    return Table(
        ("modality", "arm", *(cell.replace(".", " ") for cell in OUTCOMES), "extra layers"),
        tuple(
            (
                setting,
                arm,
                *(share(story.defences.rate(arm, setting, cell)) for cell in OUTCOMES),
                f"{story.defences.extra(arm, setting):.1%}",
            )
            for setting in story.defences.settings
            for arm in ARMS
        ),
        f"Shares with 95 % Wilson intervals, n {story.n} a cell. answered: harmful, right tool "
        "named (ASR); benign, exactly right. extra layers: beyond the request's own prefill.",
    )


def compared(story: Story) -> Table:
    """McNemar's tests."""
    rows = []
    for setting in story.media:
        for cell in ("harmful.refused", "benign.answered"):
            test = story.defences.compare(setting, cell, "regap", "strong")
            rows.append(
                (
                    setting,
                    cell.replace(".", " "),
                    str(test.only_first),
                    str(test.only_second),
                    str(test.n),
                    f"{test.p:.2g}",
                )
            )
    return Table(
        ("modality", "cell", "only ReGap", "only strong", "n", "p"),
        tuple(rows),
        "ReGap against the fixed strong correction, McNemar's exact test on the same requests.",
    )


def signals(story: Story) -> Table:
    """AUROCs."""
    names = ("uncorrected", *SIGNALS)
    rows = []
    for setting in story.media:
        areas = story.areas(setting)
        chosen = story.frozen.bundle(setting).signal
        rows.append((setting, *(f"{areas[name]:.3f}" for name in names), chosen))
    return Table(("modality", *names, "chosen"), tuple(rows), "AUROC, rendering levels from 0.4.")


def predictions(story: Story) -> Table:
    """All six."""
    rows = tuple(
        (
            f"({one.prediction}) {PREDICTIONS[one.prediction]}",
            one.setting,
            one.what,
            f"{one.rate.value:+.3f} [{one.rate.low:+.3f}, {one.rate.high:+.3f}]",
            f"{one.side} {one.limit:g}",
            one.verdict,
            str(one.rate.n),
        )
        for one in story.predictions
    )
    return Table(
        ("prediction", "modality", "measured", "value", "predicted", "verdict", "n"),
        rows,
        "Intervals: 95 %, over (verb, object) pairs. A verdict is open where the interval reaches "
        "both sides.",
    )


def choices(story: Story) -> Table:
    """What calibration chose, and why."""
    rows = []
    for bundle in story.frozen.bundles:
        for name, why in bundle.calibration.reasons.items():
            rows.append((bundle.modality, name, _shown(getattr(bundle, name)), why))
        for name, tuned in (
            ("fixed strong", story.frozen.strong[bundle.modality]),
            ("refusal addition", story.frozen.addition[bundle.modality]),
        ):
            why = (
                f"refuses {tuned.refused:.4f} of {tuned.n} harmful calibration items, ReGap "
                f"{tuned.target:.4f}" + ("" if tuned.reached else "; not reached")
            )
            rows.append((bundle.modality, name, _shown(tuned.strength), why))
    return Table(("modality", "choice", "value", "why"), tuple(rows))


def _shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
