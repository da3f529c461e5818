"""One calibration in progress: each step makes a choice and writes down why."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from regap_interp.adaptive.bundle import Fallback, Sweep
from regap_interp.adaptive.geometry import ModalityGeometry
from regap_interp.adaptive.outcomes import Judged, Refused, judge
from regap_interp.adaptive.roc import Budget, auroc_error, choose_threshold
from regap_interp.adaptive.search import (
    Both,
    Coordinates,
    Right,
    corrected_by,
    diagnostic_layers,
    measure_coordinates,
    sweep_costs,
    sweep_layers,
    sweep_signals,
    sweep_strong,
)
from regap_interp.adaptive.signals import SIGNALS, Signal

WEAK = tuple(round(0.05 * step, 2) for step in range(1, 21))
"""Weak strengths that are tried: 0.05 to 1, never 0."""
STRONG = (1.0, 1.25, 1.5, 1.75, 2.0, 2.25, 2.5)
LEAST = 20
"""Items of a kind in the calibration split at least."""
_FEW = 200


@dataclass(frozen=True, eq=False)
class Given:
    """Choices made beforehand; None leaves a choice to the calibration."""

    layer: int | None = None
    """Decoder layer to correct."""
    diagnostic: int | None = None
    """Later layer to read the signal at."""
    weak: float | None = None
    strong: float | None = None
    signal: Signal | None = None
    threshold: float | None = None
    fallback: Fallback | None = None
    """"none" leaves untriggered rows alone, so the weak strength is only a probe: it is chosen for
    the signal, whatever it would cost in answers."""

    def check(self, n_layers: int) -> None:
        """Refuse choices that contradict each other, before anything runs.

        Raises:
            ValueError: A layer that is not there, a diagnostic layer that is not later, strengths
                out of order, or a signal that does not exist.
        """
        for name in ("layer", "diagnostic"):
            layer = getattr(self, name)
            if layer is not None and not 0 <= layer < n_layers:
                raise ValueError(f"{name} is {layer}; the model has layers 0 to {n_layers - 1}")
        if self.diagnostic is not None and self.layer is None:
            raise ValueError("diagnostic is given without layer; give both, or none")
        if self.layer is not None and (self.diagnostic or n_layers) <= self.layer:
            raise ValueError(f"diagnostic is {self.diagnostic}; it must lie after {self.layer}")
        if self.layer == n_layers - 1:
            raise ValueError(f"layer is {self.layer}, the last; the signal is read at a later one")
        if self.weak is not None and not 0 < self.weak <= (self.strong or float("inf")):
            raise ValueError(f"weak is {self.weak}; expected a strength above 0, at most `strong`")
        if self.signal not in (None, *SIGNALS) or self.fallback not in (None, "weak", "none"):
            raise ValueError(
                f"signal is {self.signal!r}, fallback is {self.fallback!r}; expected one of "
                f"{', '.join(SIGNALS)}, and 'weak' or 'none'"
            )


@dataclass(frozen=True, eq=False)
class Probe:
    """The weak correction, where its effect is read, and what it told of the items."""

    weak: float
    diagnostic: int
    signal: Signal
    fallback: Fallback
    harmful: Coordinates
    """All harmful items."""
    answered: Coordinates
    """Those that count as positives."""
    benign: Coordinates

    def values(self, kind: Signal) -> tuple[Float[Tensor, "answered"], Float[Tensor, "benign"]]:
        """A signal of the positives and of the benign items."""
        return (
            self.answered.signal(kind, self.weak, self.diagnostic),
            self.benign.signal(kind, self.weak, self.diagnostic),
        )


@dataclass(eq=False)
class Work:
    """What the steps share. Reasons and sweeps grow as they are taken."""

    both: Both
    geometry: ModalityGeometry
    n_layers: int
    given: Given
    refused: Refused
    right: Right | None
    reasons: dict[str, str] = field(default_factory=dict)
    sweeps: dict[str, Sweep] = field(default_factory=dict)

    def choose_layer(self, batch_size: int) -> int:
        """The layer to correct."""
        if self.given.layer is not None:
            self.reasons["layer"] = "given"
            return self.given.layer
        candidates = [
            layer
            for layer in sorted(self.geometry.drift)
            if round(0.2 * self.n_layers) <= layer < int(0.8 * self.n_layers)
        ]
        if not candidates:
            raise ValueError(
                f"the geometry has drift at the layers {sorted(self.geometry.drift)}, none between "
                f"20 % and 80 % of {self.n_layers}; give the layer to correct"
            )
        batches = -(-_FEW // batch_size)
        few = Both(self.both.harmful.first(batches), self.both.benign.first(batches))
        layer, self.sweeps["layer"], self.reasons["layer"] = sweep_layers(
            few, self.geometry, candidates, self.n_layers
        )
        return layer

    def choose_probe(
        self, layer: int, answered: Bool[Tensor, "harmful"], utility_limit: float | None
    ) -> Probe:
        """Weak strength, fallback, diagnostic layer and signal."""
        strengths, fallback = self._strengths(layer, utility_limit)
        read_at = (
            list(diagnostic_layers(layer, self.n_layers))
            if self.given.diagnostic is None
            else [self.given.diagnostic]
        )
        harmful, benign = measure_coordinates(self.both, self.geometry, layer, strengths, read_at)
        positives = harmful.of(answered)
        areas, self.sweeps["signal"] = sweep_signals(positives, benign, strengths, read_at)
        kinds = SIGNALS if self.given.signal is None else (self.given.signal,)
        allowed = {key: area for key, area in areas.items() if key[2] in kinds}
        best, n = max(allowed.values()), int(answered.sum())
        error = auroc_error(best, n, len(self.both.benign))
        # Strengths whose signals cannot be told apart: the strongest probe has the most margin.
        weak = max(key[0] for key, area in allowed.items() if area >= best - error)
        weak, diagnostic, signal = max(
            (key for key in allowed if key[0] == weak), key=lambda key: allowed[key]
        )
        here = ", ".join(f"{kind} {areas[weak, diagnostic, kind]:.4f}" for kind in SIGNALS)
        counts = f"{n} harmful items against {len(self.both.benign)} benign ones"
        if len(strengths) > 1:
            self.reasons["weak"] = (
                f"strongest of those whose AUROC is within a standard error ({error:.4f}) of the "
                f"best ({best:.4f}), {counts}"
            )
        self.reasons["diagnostic"] = (
            "given" if self.given.diagnostic is not None else f"largest AUROC of layers {read_at}"
        )
        self.reasons["signal"] = (
            "given" if self.given.signal else f"largest AUROC: {here}; {counts}"
        )
        return Probe(weak, diagnostic, signal, fallback, harmful, positives, benign)

    def _strengths(
        self, layer: int, utility_limit: float | None
    ) -> tuple[Sequence[float], Fallback]:
        """Weak strengths left to choose from, and what untriggered rows get."""
        strengths = WEAK if self.given.weak is None else (self.given.weak,)
        if self.given.weak is not None:
            self.reasons["weak"] = "given"
        if self.given.fallback is not None:
            self.reasons["fallback"] = "given"
        if self.given.fallback == "none" or (self.given.fallback and self.given.weak):
            return strengths, self.given.fallback
        costs, self.sweeps["weak"], measure = sweep_costs(
            self.both.benign, self.geometry, layer, strengths, self.right
        )
        limit = utility_limit
        if limit is None:
            limit = 0.02 if self.right is None else 0.01
        within = [strength for strength, cost in costs.items() if cost <= limit]
        if within:
            strongest = max(within)
            self.reasons.setdefault("fallback", "the weak correction keeps to the utility limit")
            self.reasons.setdefault(
                "weak",
                f"largest strength within the limit of {limit:g}: {measure} "
                f"{costs[strongest]:.4f} over {len(self.both.benign)} benign items",
            )
            return (strongest,), "weak"
        self.reasons.setdefault(
            "fallback",
            f"every weak strength breaks the limit of {limit:g} ({measure} at least "
            f"{min(costs.values()):.4f}), so untriggered rows are left uncorrected",
        )
        return strengths, self.given.fallback or "none"

    def choose_threshold(self, probe: Probe, budget: Budget) -> float:
        """The value at or above which rows are corrected strongly."""
        harmful, benign = probe.values(probe.signal)
        threshold = self.given.threshold
        rule = "given"
        if threshold is None:
            threshold = choose_threshold(harmful, benign, budget)
            rule = "Youden's J" if budget == "youden" else f"budget {budget:g}"
        hit, false = (float((one >= threshold).double().mean()) for one in (harmful, benign))
        self.reasons["threshold"] = (
            f"{rule}: triggers {hit:.4f} of {len(harmful)} harmful items and {false:.4f} of "
            f"{len(benign)} benign ones"
        )
        return threshold

    def choose_strong(
        self, layer: int, probe: Probe, threshold: float, bare: Judged, target: float
    ) -> float:
        """The strength for triggered rows."""
        if self.given.strong is not None:
            self.reasons["strong"] = "given"
            return self.given.strong
        untriggered = bare
        if probe.fallback == "weak":
            weak = corrected_by(self.geometry, layer, probe.weak)
            untriggered = self.both.harmful.judged(self.refused, weak)
        strong, self.sweeps["strong"], self.reasons["strong"] = sweep_strong(
            self.both.harmful,
            self.geometry,
            layer,
            [one for one in STRONG if one >= probe.weak],
            probe.harmful.signal(probe.signal, probe.weak, probe.diagnostic) >= threshold,
            untriggered,
            lambda answers: judge(answers, self.refused),
            target,
        )
        return strong


def positives(bare: Judged) -> Bool[Tensor, "harmful"]:
    """Harmful items that the bare model does not refuse; all of them where these are too few."""
    answered = ~bare.refused
    return answered if int(answered.sum()) >= LEAST else torch.ones_like(answered)
