"""Requests in the plane of drift (across) and refusal (up)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from analyses.geometry.conditional import separability_windows
from analyses.geometry.requests import Requests
from analyses.geometry.result import Result, Source
from analyses.geometry.states import States, coordinates
from analyses.geometry.windowed import Statistic, Windowed
from regap_interp.directions import Direction
from regap_interp.views import PlanePoints, PlaneView
from regap_interp.windows import Windows


@dataclass(frozen=True, eq=False)
class Plane(Result):
    """Two coordinates of every request, in units of the directions' lengths."""

    source: Source
    seed: int
    """Nothing is drawn for the coordinates; of the windows made from them."""
    refusal: Float[Tensor, "item"]
    """0 is harmless text, 1 harmful text."""
    drift: Float[Tensor, "item"]
    """0 is the text twins, 1 their media."""
    refusal_layer: int
    drift_layer: int
    cosine: float
    """Of the two directions; 0 for a drift made orthogonal to refusal at its layer."""
    requests: Requests

    @property
    def n(self) -> int:
        """Requests."""
        return len(self.requests)

    def columns(self) -> dict[str, list[Any]]:
        """One row for each request."""
        return {
            "id": list(self.requests.ids),
            "modality": list(self.requests.modality),
            "harmful": self.requests.harmful.tolist(),
            "cluster": list(self.requests.cluster),
            "drift": self.drift.tolist(),
            "refusal": self.refusal.tolist(),
        }

    def about(self) -> dict[str, Any]:
        """See `Result`."""
        plain = ("refusal_layer", "drift_layer", "cosine", "n")
        return {**super().about(), **{name: getattr(self, name) for name in plain}}

    def windows(
        self,
        modality: str,
        *,
        answered: Bool[Tensor, "item"] | None = None,
        statistic: Statistic = "cohens_d",
        windows: Windows | None = None,
        min_per_class: int = 20,
        resamples: int = 1000,
        confidence: float = 0.95,
    ) -> Windowed:
        """CRS and ASR of one modality over windows of drift; see `separability_windows`.

        Args:
            modality: Whose requests.
            answered: Of every request of the plane; only harmful ones of `modality` are looked at.
            statistic: What CRS is.
            windows: How drift is cut.
            min_per_class: Windows with fewer requests of a class are NaN.
            resamples: Bootstrap draws over clusters.
            confidence: Of the intervals.

        Raises:
            ValueError: no requests of that modality.
        """
        rows = self.requests.rows(modality=modality)
        if not rows:
            raise ValueError(f"no {modality} requests in the plane; it holds {self._held()}")
        if answered is not None and len(answered) != self.n:
            raise ValueError(f"answered has {len(answered)} entries for {self.n} requests")
        return separability_windows(
            self.refusal[rows],
            self.drift[rows],
            self.requests.harmful[rows],
            source=self.source,
            answered=None if answered is None else answered[rows],
            statistic=statistic,
            windows=windows,
            min_per_class=min_per_class,
            clusters=[self.requests.cluster[row] for row in rows],
            resamples=resamples,
            confidence=confidence,
            seed=self.seed,
            name=modality,
        )

    def view(self) -> PlaneView:
        """Requests as points, a panel for each kind of media, next to all text."""
        return PlaneView(
            [self._panel(kind) for kind in self.requests.media] or [self._panel("text")],
            title="requests in the plane of refusal and drift",
            about=self._about(
                self.n,
                f"refusal at layer {self.refusal_layer}, drift at layer {self.drift_layer}, "
                f"cosine of the two {self.cosine:.2f}",
            ),
        )

    def _panel(self, kind: str) -> PlanePoints:
        rows = sorted({*self.requests.rows(modality="text"), *self.requests.rows(modality=kind)})
        return PlanePoints(
            kind,
            refusal=self.refusal[rows],
            drift=self.drift[rows],
            harmful=self.requests.harmful[rows],
            media=torch.tensor([self.requests.modality[row] != "text" for row in rows]),
        )

    def _held(self) -> str:
        return ", ".join(dict.fromkeys(self.requests.modality))


def plane(
    states: States,
    refusal: Direction,
    drift: Direction,
    *,
    layers: Sequence[int] | None = None,
    seed: int = 0,
) -> Plane:
    """Both coordinates of every request of `states`.

    Args:
        states: Of the requests; better not those that the directions were made of.
        refusal: Read where its origin says.
        drift: Likewise; best orthogonal to refusal (`States.correction`).
        layers: Of refusal and drift, for directions without origin.
        seed: For the windows made from the plane.

    Raises:
        ValueError: Directions of another model, site or layer.
    """
    if layers is not None and len(layers) != 2:
        raise ValueError(f"layers is {list(layers)}; give that of refusal and that of drift")
    places = [None, None] if layers is None else list(layers)
    found = [
        coordinates(states, one, layer=layer)
        for one, layer in zip((refusal, drift), places, strict=True)
    ]
    at = [
        one.origin.layer if one.origin is not None else layer
        for one, layer in zip((refusal, drift), places, strict=True)
    ]
    assert at[0] is not None and at[1] is not None  # coordinates() has asked
    return Plane(
        source=states.source,
        seed=seed,
        refusal=found[0],
        drift=found[1],
        refusal_layer=at[0],
        drift_layer=at[1],
        cosine=float(refusal.unit @ drift.unit),
        requests=states.requests,
    )
