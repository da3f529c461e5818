"""What `select_direction` finds: candidates, their scores, and the one chosen."""

import json
import math
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from model_adapters import Adapter
from regap_interp.artefact.directions import Directions
from regap_interp.artefact.files import write_atomically
from regap_interp.artefact.manifest import TOWARDS_HARMFUL, Manifest, Recipe
from regap_interp.directions import Direction, Origin


@dataclass(frozen=True)
class Candidate:
    """The direction of one position and layer, with its scores on the validation items."""

    position: int
    """Token it was read at, from the end of the prompt: -1 is the last."""
    layer: int
    """Decoder layer, from 0, whose *input* it was read at (site resid_pre)."""
    norm: float
    """Length of the difference of means."""
    bypass: float
    """Mean refusal score of harmful items with the direction removed everywhere; low is good."""
    induce: float
    """Mean refusal score of harmless items with the direction added at its layer; high is good."""
    kl: float
    """Mean KL divergence, in nats, of the next token of harmless items when it is removed."""
    discarded: tuple[str, ...]
    """Why it cannot be chosen; empty if it can."""


@dataclass(frozen=True, eq=False)
class Selection:
    """All candidates with their scores, and the one chosen."""

    candidates: tuple[Candidate, ...]
    """By position, then layer."""
    chosen: Candidate | None
    """Lowest bypass of those not discarded; of equals the first. None if all are discarded."""
    baseline_harmful: float
    """Mean refusal score of the harmful validation items, model untouched."""
    baseline_harmless: float
    """Mean refusal score of the harmless validation items, model untouched."""
    counts: dict[str, int]
    """Items used: harmful, harmless, harmful_val, harmless_val."""
    dropped: dict[str, int]
    """Items left out because the untouched model does not do with them what is expected."""
    refusal_tokens: tuple[int, ...]
    """Ids whose chance together makes the refusal score."""
    max_kl: float | None
    """Limit, or None where there was none; likewise below."""
    min_induce: float | None
    prune: float
    """Share of layers, from the last, whose candidates are discarded."""
    model: str
    """`Adapter.fingerprint`."""
    data: str
    """`data_fingerprint` of the items used for the means."""
    towards: Float[Tensor, "position layer d_model"]
    """Means of harmful items at the candidates' positions, float64."""
    origin: Float[Tensor, "position layer d_model"]
    """Means of harmless items, float64."""

    @property
    def direction(self) -> Direction:
        """The chosen direction, raw length, centred on the harmless mean, of site resid_pre.

        Raises:
            ValueError: All candidates are discarded; the message counts why.
        """
        one = self.chosen
        if one is None:
            reasons = Counter(reason for each in self.candidates for reason in each.discarded)
            listed = ", ".join(f"{reason}: {count}" for reason, count in reasons.most_common())
            raise ValueError(
                f"all {len(self.candidates)} candidates are discarded ({listed}); see table(), "
                "check the refusal tokens, or select with other limits"
            )
        positions = sorted({each.position for each in self.candidates})
        place = positions.index(one.position), one.layer
        centre = self.origin[place]
        return Direction(
            self.towards[place] - centre,
            centre,
            n_towards=self.counts["harmful"],
            n_from=self.counts["harmless"],
            origin=Origin(self.model, "resid_pre", one.layer, str(one.position)),
        )

    def directions(self, adapter: Adapter) -> Directions:
        """The chosen direction as an artefact to save, set "refusal".

        Raises:
            ValueError: All candidates are discarded, or `adapter` is another model.
        """
        found, one = self.direction, self.chosen
        assert one is not None
        scores = {name: getattr(one, name) for name in ("bypass", "induce", "kl")}
        recipe = Recipe(
            sign=TOWARDS_HARMFUL,
            options={"chosen by": "bypass, induce and KL", **self._limits(), **scores},
            position=str(one.position),
            data=self.data,
        )
        manifest = Manifest.of(adapter, {"refusal": recipe}, site="resid_pre")
        return Directions(manifest, {"refusal": {one.layer: found}})

    def table(self) -> list[dict[str, Any]]:
        """One row for each candidate, with the field "chosen"."""
        return [{**asdict(one), "chosen": one is self.chosen} for one in self.candidates]

    def save(self, path: str | Path) -> None:
        """Write scores, limits and counts as JSON; scores that are not a number become null.

        Raises:
            ValueError: There is no such folder.
        """
        rows = [{key: _or_null(value) for key, value in row.items()} for row in self.table()]
        about = {
            "model": self.model,
            "data": self.data,
            "refusal_tokens": list(self.refusal_tokens),
            **self._limits(),
            "counts": self.counts,
            "dropped": self.dropped,
            "baseline_harmful": _or_null(self.baseline_harmful),
            "baseline_harmless": _or_null(self.baseline_harmless),
            "candidates": rows,
        }
        text = json.dumps(about, indent=1, allow_nan=False)
        write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))

    def plot(self) -> Any:
        """A matplotlib figure: bypass, induce and KL by layer, one line for each position.

        Dashed: the untouched model; dotted: the limit; star: the one chosen.

        Raises:
            ImportError: matplotlib is not installed.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise ImportError("plots need matplotlib: pip install 'regap-interp[views]'") from error
        panels = (
            ("bypass", "refusal score of harmful, removed", self.baseline_harmful, None),
            ("induce", "refusal score of harmless, added", self.baseline_harmless, self.min_induce),
            ("kl", "KL of harmless, removed (nats)", 0.0, self.max_kl),
        )
        figure = Figure(figsize=(13, 4), layout="constrained")
        for axes, (name, label, baseline, limit) in zip(figure.subplots(1, 3), panels, strict=True):
            for position in sorted({one.position for one in self.candidates}):
                line = [one for one in self.candidates if one.position == position]
                axes.plot(
                    [one.layer for one in line],
                    [getattr(one, name) for one in line],
                    label=str(position),
                )
            axes.axhline(baseline, color="black", linestyle="--", linewidth=1)
            if limit is not None:
                axes.axhline(limit, color="grey", linestyle=":", linewidth=1)
            if self.chosen is not None:
                axes.plot(self.chosen.layer, getattr(self.chosen, name), "k*", markersize=12)
            axes.set_xlabel("layer whose input it is from")
            axes.set_ylabel(label)
        figure.axes[0].legend(title="position")
        return figure

    def _limits(self) -> dict[str, float | None]:
        return {"max_kl": self.max_kl, "min_induce": self.min_induce, "prune": self.prune}


def _or_null(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
