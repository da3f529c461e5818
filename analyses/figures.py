"""What the report's figures show: small tables of numbers, measured elsewhere, drawn in `plots`.

Everything is CPU tensors. What could not be measured is NaN; it is left blank and never drawn as 0.
"""

from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor


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


@dataclass(frozen=True, eq=False)
class Band:
    """A line over some axis, with an interval at every place."""

    value: Float[Tensor, "place"]
    """The estimate; NaN where it could not be measured."""
    low: Float[Tensor, "place"]
    """Lower end of the interval; NaN where there is none."""
    high: Float[Tensor, "place"]
    """Upper end of the interval."""


@dataclass(frozen=True, eq=False)
class WindowCurve:
    """CRS and ASR over sliding windows of the drift coordinate, for one modality and arm."""

    modality: str
    """The panel, such as "image"."""
    arm: str
    """The line in it, such as "undefended" or "ReGap"."""
    drift: Float[Tensor, "place"]
    """Median drift coordinate of each window, rising, in the unit of `PlanePoints.drift`."""
    crs: Band
    """Cohen's d between harmful and benign along refusal, within each window."""
    asr: Band
    """Share of the harmful items of each window that were answered, in [0, 1]."""
    n: int
    """Items, of all windows together."""


@dataclass(frozen=True, eq=False)
class LayerTrace:
    """One line of the self-rectification figure: a class of items, layer by layer."""

    label: str
    """Such as "harmful, weakly corrected"."""
    harmful: bool
    """Sets the colour."""
    corrected: bool
    """Solid if the items were partly corrected, dashed if they were left alone."""
    layers: tuple[int, ...]
    """Decoder layers, rising."""
    refusal: Band
    """Mean refusal coordinate (or its gain) at each of `layers`, with its interval."""
    n: int
    """Items."""


@dataclass(frozen=True, eq=False)
class RocCurve:
    """One signal's receiver operating characteristic: harmful items are the positives."""

    label: str
    """Name of the signal, such as "paired_gain"."""
    false_positive: Float[Tensor, "cut"]
    """Share of benign items at or above each threshold, rising from 0 to 1."""
    true_positive: Float[Tensor, "cut"]
    """Share of harmful items at or above each threshold, rising from 0 to 1."""
    auroc: float
    """Area under the curve."""
    low: float
    """Lower end of its interval; NaN if there is none."""
    high: float
    """Upper end of its interval; NaN if there is none."""
    threshold: float | None = None
    """The chosen threshold, for the chosen signal only."""
    at: tuple[float, float] | None = None
    """False and true positive rate at `threshold`."""


@dataclass(frozen=True, eq=False)
class RocCurves:
    """The signals of one modality, one panel."""

    title: str
    """Such as "image"."""
    curves: tuple[RocCurve, ...]
    """In the order of the legend."""
    n: int
    """Items, harmful and benign together."""
