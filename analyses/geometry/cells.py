"""The cells of a sweep, from what was read of every request."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from analyses.geometry.moments import separations
from analyses.geometry.requests import Requests
from regap_interp.intervals import (
    Rate,
    cluster_bootstrap,
    interval_of_measured,
    resample_weights,
)
from regap_interp.separability import Separation, separation


@dataclass(frozen=True)
class Cell:
    """One arm at one layer and strength. What was not measured is None."""

    arm: str
    layer: int | None
    """None for the model as it is."""
    strength: float
    """How much was subtracted; below 0 it was added."""
    separations: Mapping[int, Separation]
    """Of the refusal coordinate at every layer read, in units of the direction's length."""
    cohens_d: Mapping[int, Rate]
    """The same Cohen's d with intervals over clusters."""
    behind: Mapping[int, Rate]
    """Mean Cohen's d over all layers read behind a layer, by that layer: the steered one, or for
    the bare model every one that is steered in the sweep."""
    outcomes: Mapping[str, Rate]
    """Means over requests, intervals over clusters: "opens.harmful", "opens.benign" (the likeliest
    next token refuses), "log_odds.harmful", "log_odds.benign", "kl.benign" (next token, bare to
    steered, nats); of whole answers "refused.harmful", "refused.benign", "degenerate.harmful",
    "degenerate.benign", "right.benign"."""

    def downstream(self, layers: Sequence[int] | None = None) -> float:
        """Mean Cohen's d over the layers behind the steered one; NaN if any is."""
        chosen = [
            one.cohens_d
            for layer, one in self.separations.items()
            if (self.layer is None or layer > self.layer) and (layers is None or layer in layers)
        ]
        return sum(chosen) / len(chosen) if chosen else math.nan


class Cells:
    """Makes them."""

    def __init__(
        self,
        requests: Requests,
        reads: Sequence[str],
        layers: Sequence[int],
        *,
        resamples: int,
        confidence: float,
        seed: int,
    ) -> None:
        """Draw the resamples.

        Args:
            requests: That were read.
            reads: What was; layers first.
            layers: That coordinates were read at.
            resamples: Bootstrap draws.
            confidence: Of the intervals.
            seed: Of the draws.
        """
        self.requests, self.reads, self.layers = requests, tuple(reads), tuple(layers)
        self.resamples, self.confidence, self.seed = resamples, confidence, seed
        self.weights: Tensor | None = None
        if len(set(requests.cluster)) > 1:
            self.weights = resample_weights(requests.cluster, resamples=resamples, seed=seed)

    def make(
        self,
        arm: str,
        layer: int | None,
        strength: float,
        steered: Sequence[int],
        values: Float[Tensor, "read item"],
    ) -> Cell:
        """One cell.

        Args:
            arm: Its name.
            layer: That is steered.
            strength: How much.
            steered: Layers whose `behind` is wanted.
            values: What was read.
        """
        harmful, n = self.requests.harmful, len(self.requests)
        found = {at: separation(values[i], harmful) for i, at in enumerate(self.layers)}
        d = torch.tensor([one.cohens_d for one in found.values()], dtype=torch.float64)
        draws = torch.full((1, len(d)), math.nan, dtype=torch.float64)
        if self.weights is not None:
            draws = separations("cohens_d", self.weights, values[: len(d)], harmful)

        def rate(value: Tensor, of: Tensor) -> Rate:
            ends = interval_of_measured(of, self.confidence)
            return Rate(float(value), n, *(ends if value.isfinite() else (math.nan, math.nan)))

        behind = {}
        for one in steered:
            later = [place for place, at in enumerate(self.layers) if at > one]
            if later:
                behind[one] = rate(d[later].mean(), draws[:, later].mean(dim=1))
        return Cell(
            arm,
            layer,
            strength,
            found,
            {at: rate(d[i], draws[:, i]) for i, at in enumerate(self.layers)},
            behind,
            self._outcomes(values[len(d) :]),
        )

    def _outcomes(self, values: Float[Tensor, "outcome item"]) -> dict[str, Rate]:
        found = {}
        for name, of in zip(self.reads[len(self.layers) :], values, strict=True):
            for kind, harmful in (("harmful", True), ("benign", False)):
                rows = self.requests.rows(harmful=harmful)
                if rows and not (harmful and name in ("kl", "right")):
                    measured = of[rows] if name in ("log_odds", "kl") else of[rows].bool()
                    found[f"{name}.{kind}"] = self._rate(measured, rows)
        return found

    def _rate(
        self, values: Float[Tensor, "item"] | Bool[Tensor, "item"], rows: Sequence[int]
    ) -> Rate:
        clusters = [self.requests.cluster[row] for row in rows]
        if len(set(clusters)) < 2:
            return Rate(float(values.double().mean()), len(values), math.nan, math.nan)
        return cluster_bootstrap(
            values,
            clusters,
            resamples=self.resamples,
            seed=self.seed,
            confidence=self.confidence,
        )
