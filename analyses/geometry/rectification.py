"""Self-rectification: runs that show what refusal does after a partial drift correction."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from analyses.geometry import estimate
from analyses.geometry.lens import Lens, LogitLens, RefusalTokens, TunedLens, lens_log_odds
from analyses.geometry.requests import Requests
from analyses.geometry.result import Source, recipe
from analyses.geometry.trajectories import Condition, Rectification
from analyses.resuming import Partial, Progress, Work
from model_adapters import Adapter
from regap_interp.capture import capture_passes
from regap_interp.directions import Direction
from regap_interp.graph import Graph, add
from regap_interp.statistics import Site


def rectify(
    adapter: Adapter,
    requests: Requests,
    *,
    refusal: Mapping[int, Direction],
    drift: Direction,
    layer: int,
    strength: float = 0.5,
    tokens: RefusalTokens | None = None,
    lens: Lens | None = None,
    batch_size: int | None = None,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
    progress: Progress | bool = False,
    checkpoint: str | Path | None = None,
    resume: Partial | None = None,
) -> Rectification:
    """Follow refusal through the layers of media requests, and of their text twins if they are
    among the requests.

    Args:
        adapter: The model.
        requests: Media of one modality, harmful and benign; twins are "clean". Other text is left
            out. Not those that the directions were made of.
        refusal: Direction at every layer (`States.refusals()` of `resid_post`, last position).
        drift: What is subtracted, orthogonal to refusal (`States.correction`).
        layer: Where, from `resid_post`, at all prompt positions.
        strength: How much of it; "partial" is below 1.
        tokens: For the log-odds; without them only coordinates are followed.
        lens: Reads log-odds from states; the logit lens unless given.
        batch_size: Chats in a pass; None finds out what fits.
        resamples: Bootstrap draws.
        confidence: Of the intervals.
        seed: Of the draws.
        progress: Called after every pass; True draws a bar on standard error.
        checkpoint: A file that finished requests are written to as the passes go. If it is there,
            they go on from it.
        resume: `Interrupted.partial` of the same call.

    Raises:
        ValueError: Media of several modalities or of none, layers without refusal direction, a
            layer that is the last one, a drift that is not orthogonal to refusal there, a lens of
            another model, or what was finished belongs to another call.
        GraphError: A direction of another model, site or layer.
        Interrupted: On Ctrl-C; it carries what is finished.
    """
    layers = tuple(range(adapter.n_layers))
    if len(requests.media) != 1:
        raise ValueError(
            f"requests hold the media {list(requests.media)}; give those of one modality, with or "
            "without their text twins"
        )
    if not 0 <= layer < adapter.n_layers - 1:
        raise ValueError(
            f"layer is {layer}; expected one from 0 to {adapter.n_layers - 2}, so that later "
            "layers can show what the correction does"
        )
    missing = [one for one in layers if one not in refusal]
    if missing:
        raise ValueError(f"refusal has no direction for the layers {missing}")
    if not math.isfinite(strength) or strength == 0:
        raise ValueError(f"strength is {strength}; expected a number other than 0, such as 0.5")
    across = abs(float(drift.unit @ refusal[layer].unit))
    if across > 1e-6:
        raise ValueError(
            f"|cos(drift, refusal)| is {across:.3f} at layer {layer}, so the correction would move "
            "the coordinate that is measured; take States.correction, or orthogonalise it"
        )
    source = Source.of(adapter, site="resid_post")
    for one in layers:
        origin = refusal[one].origin
        here = (source.fingerprint, source.site, one)
        if origin is not None and (origin.model, origin.site, origin.layer) != here:
            raise ValueError(
                f"the refusal direction of layer {one} was measured at {origin}, the model is "
                f"{source.fingerprint[:12]}; measure it on resid_post there"
            )
    estimate.check_draws(resamples, confidence)
    if tokens is not None:
        tokens.check(adapter)
    through: Lens = lens or LogitLens()
    if isinstance(through, TunedLens):
        through.check(adapter)
    graph = Graph(add("resid_post", layer, drift, strength=-strength))
    graph.check(adapter)
    media = requests.rows(modality=requests.media[0])
    bare = requests.only(media)
    runs: dict[Condition, _Run] = {
        "drifted": _Run(bare, range(len(media)), None),
        "corrected": _Run(bare, range(len(media)), graph),
    }
    place = {name: row for row, name in enumerate(requests.ids)}
    twins = [place[str(requests.twin[row])] for row in media if requests.twin[row] is not None]
    if len(twins) == len(media):
        text = requests.only(twins)
        row = {name: index for index, name in enumerate(text.ids)}
        runs = {"clean": _Run(text, [row[requests.ids[one]] for one in twins], None), **runs}
    followed = _Followed(adapter, runs, refusal, tokens, through)
    known = recipe(
        adapter,
        source,
        requests=[
            one.fingerprint() for one in dict.fromkeys(run.requests for run in runs.values())
        ],
        refusal=[[refusal[one].vector, refusal[one].centre] for one in layers],
        drift=[drift.vector, layer, strength],
        tokens=None if tokens is None else [tokens.refusing, tokens.answering],
        lens=_written(through),
    )
    work = Work(followed.nothing(known), resume=resume, checkpoint=checkpoint, progress=progress)
    with work.running():
        followed.run(work, batch_size)
        coordinate, log_odds = followed.split(work)
    return Rectification(
        source=source,
        seed=seed,
        modality=requests.media[0],
        layer=layer,
        strength=strength,
        layers=layers,
        requests=bare,
        coordinate=coordinate,
        log_odds=log_odds,
        tokens=tokens,
        lens=through.name,
        confidence=confidence,
        resamples=resamples,
    )


class _Run(NamedTuple):
    """One condition."""

    requests: Requests
    order: Sequence[int]
    """Which of them belongs to each medium."""
    graph: Graph | None


@dataclass(frozen=True, eq=False)
class _Followed:
    """What is read in every run: coordinates, and log-odds through a lens."""

    adapter: Adapter
    runs: Mapping[Condition, _Run]
    refusal: Mapping[int, Direction]
    tokens: RefusalTokens | None
    lens: Lens

    def nothing(self, recipe: str) -> Partial:
        """Before the first pass; twins that several media share are run once."""
        most = max(len(run.requests) for run in self.runs.values())
        names = ["coordinate"] if self.tokens is None else ["coordinate", "log_odds"]
        shape = (len(self.runs), self.adapter.n_layers, most)
        done = torch.zeros(len(self.runs), most, dtype=torch.bool)
        for place, run in enumerate(self.runs.values()):
            done[place, len(run.requests) :] = True
        nan = {one: torch.full(shape, math.nan, dtype=torch.float64) for one in names}
        return Partial("rectification", recipe, nan, done)

    def run(self, work: Work, batch_size: int | None) -> None:
        """Whatever is left."""
        sites: list[Site] = [("resid_post", layer) for layer in range(self.adapter.n_layers)]
        for place, run in enumerate(self.runs.values()):
            left = torch.nonzero(~work.done[place]).flatten().tolist()
            if not left:
                continue
            entries: Any = run.requests.only(left).entries
            for rows, states in capture_passes(
                self.adapter, entries, sites=sites, batch_size=batch_size, graph=run.graph
            ).passes:
                work.keep((place, [left[row] for row in rows]), self._read(states))

    def _read(self, states: Float[Tensor, "layer item d_model"]) -> dict[str, Tensor]:
        layers = range(len(states))
        found = {
            "coordinate": torch.stack([self.refusal[one].fraction(states[one]) for one in layers])
        }
        if self.tokens is not None:
            odds = [
                lens_log_odds(self.adapter, states[one], one, self.tokens, self.lens)
                for one in layers
            ]
            found["log_odds"] = torch.stack(odds)
        return found

    def split(self, work: Work) -> tuple[dict[Condition, Tensor], dict[Condition, Tensor]]:
        """Coordinates and log-odds of every condition, media in order."""
        coordinate, log_odds = (
            {
                condition: work.tensors[name][place][:, list(run.order)]
                for place, (condition, run) in enumerate(self.runs.items())
                if name in work.tensors
            }
            for name in ("coordinate", "log_odds")
        )
        return coordinate, log_odds


def _written(lens: Lens) -> list[Any]:
    """All of a tuned lens; the name and class of any other."""
    if isinstance(lens, TunedLens):
        return [
            lens.name,
            sorted(lens.weight),
            *([lens.weight[one], lens.bias[one]] for one in sorted(lens.weight)),
        ]
    return [lens.name, type(lens).__qualname__]
