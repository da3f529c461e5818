"""Refusal after every layer, request by request: clean, drifted and partly corrected."""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from analyses.geometry import estimate
from analyses.geometry.estimate import Estimate
from analyses.geometry.lens import RefusalTokens
from analyses.geometry.requests import Requests
from analyses.geometry.result import Result, Source, intervals
from analyses.geometry.signals import SignalAreas
from regap_interp.adaptive.roc import roc
from regap_interp.adaptive.signals import SIGNALS
from regap_interp.intervals import resample_weights
from regap_interp.views import LayerTrace, RocCurve, RocCurves, RocView, TrajectoriesView

Condition = Literal["clean", "drifted", "corrected"]
Quantity = Literal["coordinate", "log_odds"]


@dataclass(frozen=True, eq=False)
class Rectification(Result):
    """Refusal after every layer, request by request, at the last prompt token."""

    source: Source
    seed: int
    modality: str
    layer: int
    """The corrected one."""
    strength: float
    """Of the correction; 1 takes the mean drift away."""
    layers: tuple[int, ...]
    requests: Requests
    """The media, and what is known of them."""
    coordinate: Mapping[Condition, Float[Tensor, "layer item"]]
    """In units of each layer's refusal direction. "clean" is the text twins, "drifted" the media as
    they are, "corrected" the media with the drift direction subtracted at `layer`."""
    log_odds: Mapping[Condition, Float[Tensor, "layer item"]]
    """Of refusing, through the lens, in nats; empty without tokens."""
    tokens: RefusalTokens | None
    lens: str
    confidence: float
    resamples: int

    @property
    def n(self) -> int:
        """Media requests."""
        return len(self.requests)

    @property
    def harmful(self) -> Bool[Tensor, "item"]:
        """Whether each request should be refused."""
        return self.requests.harmful

    def mean(self, quantity: Quantity, condition: Condition, *, harmful: bool) -> Estimate:
        """Mean of a quantity under a condition, over harmful or benign requests, after every layer;
        its interval resamples clusters."""
        values = self._of(quantity)[condition]
        rows = torch.nonzero(self.harmful == harmful).flatten()
        if not len(rows):
            nan = values.new_full((len(self.layers),), math.nan)
            return Estimate(nan, nan, nan)
        weights = self._weights()[:, rows]
        draws = weights @ values[:, rows].T / weights.sum(dim=1, keepdim=True)
        return estimate.percentile(values[:, rows].mean(dim=1), draws, self.confidence)

    def signal(self, kind: str) -> Float[Tensor, "layer item"]:
        """One of `SIGNALS` (see `regap_interp.adaptive.signals`), read after every layer.

        Raises:
            ValueError: it is none of them.
        """
        bare, weak = self.coordinate["drifted"], self.coordinate["corrected"]
        match kind:
            case "paired_gain":
                return weak - bare
            case "depth_gain":
                return weak - weak[self.layers.index(self.layer)]
            case "absolute":
                return weak
        raise ValueError(f"no signal {kind!r}; there are {', '.join(SIGNALS)}")

    def signals(self) -> SignalAreas:
        """AUROC of every signal by layer, its interval over resampled clusters.

        Raises:
            ValueError: the requests are all harmful, or all benign.
        """
        n_harmful = int(self.harmful.sum())
        if n_harmful in (0, self.n):
            raise ValueError(
                f"{n_harmful} of {self.n} requests are harmful; an AUROC needs both kinds"
            )
        later = [place for place, layer in enumerate(self.layers) if layer > self.layer]
        values = self._values()
        ones = torch.ones(1, self.n, dtype=torch.float64)
        weights = torch.cat([ones, self._weights()])
        return SignalAreas(
            source=self.source,
            seed=self.seed,
            layers=tuple(self.layers[place] for place in later),
            areas={name: self._area(found[later], weights) for name, found in values.items()},
            n_harmful=n_harmful,
            n_benign=self.n - n_harmful,
            confidence=self.confidence,
            resamples=self.resamples,
        )

    def columns(self) -> dict[str, list[Any]]:
        """One row for each quantity, condition, kind of request and layer."""
        found: dict[str, list[Any]] = {}
        quantities: tuple[Quantity, ...] = ("coordinate", "log_odds")
        for quantity in quantities:
            for condition, harmful in itertools.product(self._of(quantity), (True, False)):
                band = self.mean(quantity, condition, harmful=harmful)
                rows: dict[str, list[Any]] = {
                    "quantity": [quantity] * len(self.layers),
                    "condition": [condition] * len(self.layers),
                    "harmful": [harmful] * len(self.layers),
                    "n": [int((self.harmful == harmful).sum())] * len(self.layers),
                    "layer": list(self.layers),
                    **band.columns("mean"),
                }
                for name, values in rows.items():
                    found.setdefault(name, []).extend(values)
        return found

    def about(self) -> dict[str, Any]:
        """See `Result`."""
        plain = ("modality", "layer", "strength", "lens", "n", "confidence", "resamples")
        tokens = None if self.tokens is None else vars(self.tokens)
        return {
            **super().about(),
            **{name: getattr(self, name) for name in plain},
            "tokens": tokens,
        }

    def view(self, quantity: Quantity = "coordinate") -> TrajectoriesView:
        """Means over layers: a colour for each kind of requests, a dash for each condition.

        Args:
            quantity: "coordinate", or "log_odds" where tokens were given.

        Raises:
            ValueError: no log-odds were read.
        """
        if not self._of(quantity):
            raise ValueError("no log-odds were read; give rectify(tokens=...)")
        traces = [
            LayerTrace(
                f"{'harmful' if harmful else 'benign'}, {condition}",
                harmful,
                condition,
                self.layers,
                self.mean(quantity, condition, harmful=harmful).band,
                int((self.harmful == harmful).sum()),
            )
            for condition in self._of(quantity)
            for harmful in (True, False)
            if bool((self.harmful == harmful).any())
        ]
        what = {
            "coordinate": "refusal (0 harmless, 1 harmful text)",
            "log_odds": f"log-odds of refusing, {self.lens} (nats)",
        }
        return TrajectoriesView(
            traces,
            what[quantity],
            marks=[(self.layer, f"corrected, {self.strength:g}")],
            title=f"refusal through the layers: {self.modality}",
            about=self._about(self.n, f"means; {intervals(self.confidence, self.resamples)}"),
        )

    def roc(self, layer: int | None = None) -> RocView:
        """ROC of every signal, read after one layer; areas as in `signals`.

        Args:
            layer: Behind the corrected one; where "paired_gain" has its largest area by default,
                which flatters it: choose on other requests.

        Raises:
            ValueError: another layer, or requests of one kind only.
        """
        areas = self.signals()
        at = areas.best("paired_gain") if layer is None else layer
        if at not in areas.layers:
            raise ValueError(f"layer is {layer}; signals are read after {list(areas.layers)}")
        curves = []
        for name, found in self._values().items():
            curve = roc(found[at][self.harmful], found[at][~self.harmful])
            area = areas.areas[name][areas.layers.index(at)]
            curves.append(
                RocCurve(
                    name,
                    torch.tensor(curve.false_positive, dtype=torch.float64),
                    torch.tensor(curve.true_positive, dtype=torch.float64),
                    float(area.value),
                    float(area.low),
                    float(area.high),
                )
            )
        return RocView(
            [RocCurves(f"{self.modality}, after layer {at}", tuple(curves), self.n)],
            title="signals of self-rectification",
            about=self._about(
                self.n,
                ("" if layer is not None else "layer where paired_gain is best in these requests; ")
                + intervals(self.confidence, self.resamples),
            ),
        )

    def _of(self, quantity: Quantity) -> Mapping[Condition, Tensor]:
        return self.coordinate if quantity == "coordinate" else self.log_odds

    def _values(self) -> dict[str, Float[Tensor, "layer item"]]:
        """All that tells harmful from benign, after every layer."""
        values: dict[str, Tensor] = {kind: self.signal(kind) for kind in SIGNALS}
        values["uncorrected"] = self.coordinate["drifted"]
        if self.log_odds:
            values["log_odds_gain"] = self.log_odds["corrected"] - self.log_odds["drifted"]
        return values

    def _weights(self) -> Float[Tensor, "draw item"]:
        clusters = self.requests.cluster
        if len(set(clusters)) < 2:  # nothing to resample, so intervals are NaN
            return torch.full((1, len(clusters)), math.nan, dtype=torch.float64)
        return resample_weights(clusters, resamples=self.resamples, seed=self.seed)

    def _area(self, values: Tensor, weights: Tensor) -> Estimate:
        """AUROC by layer; resamples are weights of the same pairs of requests."""
        up, down = self.harmful, ~self.harmful
        found = []
        for one in values:
            above = (one[up, None] > one[None, down]).double()
            above += (one[up, None] == one[None, down]).double() / 2
            total = weights[:, up].sum(dim=1) * weights[:, down].sum(dim=1)
            found.append(((weights[:, up] @ above) * weights[:, down]).sum(dim=1) / total)
        areas = torch.stack(found, dim=1)
        return estimate.percentile(areas[0], areas[1:], self.confidence)
