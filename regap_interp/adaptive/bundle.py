"""What calibration decided for one modality, with the evidence for each choice."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from regap_interp.adaptive.roc import Roc
from regap_interp.adaptive.signals import SIGNALS, Signal
from regap_interp.artefact.manifest import Manifest
from regap_interp.directions import Direction

Fallback = Literal["weak", "none"]
MEDIA = ("image", "audio", "video", "omni")


@dataclass(frozen=True)
class Sweep:
    """A table of a search: one row for each value that was tried."""

    columns: tuple[str, ...]
    rows: tuple[tuple[float, ...], ...]

    def __str__(self) -> str:
        """The table, columns aligned."""
        width = max(9, *map(len, self.columns))
        lines = ["  ".join(f"{name:>{width}}" for name in self.columns)]
        lines += ["  ".join(f"{value:>{width}.4g}" for value in row) for row in self.rows]
        return "\n".join(lines)


@dataclass(frozen=True, eq=False)
class Calibration:
    """How a bundle was made."""

    reasons: Mapping[str, str]
    """Choice -> why, in words."""
    roc: Mapping[Signal, Roc]
    """All three signals at the chosen layers and weak strength: harmful items that the bare model
    answers against benign items."""
    sweeps: Mapping[str, Sweep]
    """The searches; those that were not needed are not there."""
    n: Mapping[str, int]
    """Items of each kind."""
    refused: str
    """Name of the function that told refusals."""
    seed: int
    """Of the draws of the search."""
    data: str
    """Fingerprint of the items."""


@dataclass(frozen=True, eq=False)
class Bundle:
    """ReGap for one modality of one model: frozen, nothing is adapted after calibration.

    The correction subtracts `strength * drift.vector` from `resid_post[layer]` at every prompt
    position in the prefill.
    """

    modality: str
    layer: int
    """Decoder layer that is corrected, from 0."""
    diagnostic: int
    """Later layer where the signal is read."""
    weak: float
    """Strength of the probe's correction."""
    strong: float
    """Strength for triggered rows."""
    threshold: float
    """Rows whose signal is at least this are triggered; in units of the refusal norm."""
    signal: Signal
    fallback: Fallback
    """What untriggered rows get: the weak correction, or "none"."""
    drift: Direction
    """At `layer`, orthogonal to `refusal`, raw length."""
    refusal: Direction
    """At `layer`."""
    diagnostic_refusal: Direction
    """At `diagnostic`."""
    manifest: Manifest
    """Model, chat template and data it was made with; `manifest.check(adapter)` refuses others."""
    calibration: Calibration

    def __post_init__(self) -> None:
        """Refuse choices that no calibration makes."""
        if self.modality not in MEDIA:
            raise ValueError(f"modality is {self.modality!r}; expected one of {', '.join(MEDIA)}")
        if not 0 <= self.layer < self.diagnostic:
            raise ValueError(
                f"the signal is read at layer {self.diagnostic}, the correction acts at layer "
                f"{self.layer}; it can only be seen at a later layer"
            )
        if not 0 < self.weak <= self.strong:
            raise ValueError(
                f"weak is {self.weak}, strong is {self.strong}; expected 0 < weak <= strong"
            )
        if self.signal not in SIGNALS or self.fallback not in ("weak", "none"):
            raise ValueError(
                f"signal is {self.signal!r}, fallback is {self.fallback!r}; expected one of "
                f"{', '.join(SIGNALS)}, and 'weak' or 'none'"
            )

    @property
    def untriggered(self) -> float:
        """Strength for rows that are not triggered."""
        return self.weak if self.fallback == "weak" else 0.0

    def __str__(self) -> str:
        """The choices with their reasons."""
        lines = [
            f"{self.modality}: layer {self.layer}, diagnostic layer {self.diagnostic}, weak "
            f"{self.weak:g}, strong {self.strong:g}, {self.signal} >= {self.threshold:.4g}, "
            f"fallback {self.fallback} ({self.manifest.model_id})"
        ]
        lines += [f"  {choice}: {why}" for choice, why in self.calibration.reasons.items()]
        return "\n".join(lines)
