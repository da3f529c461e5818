"""Self-rectification: runs that show what refusal does after a partial drift correction."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from analyses.geometry import estimate
from analyses.geometry.lens import Lens, LogitLens, RefusalTokens, lens_log_odds
from analyses.geometry.requests import Requests
from analyses.geometry.states import States, measure_states
from analyses.geometry.trajectories import Condition, Rectification
from model_adapters import Adapter
from regap_interp.capture import Progress
from regap_interp.directions import Direction
from regap_interp.graph import Graph, add


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
        progress: True draws a bar on standard error.

    Raises:
        ValueError: Media of several modalities or of none, layers without refusal direction, a
            layer that is the last one, or a drift that is not orthogonal to refusal there.
        GraphError: A direction of another model, site or layer.
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
    estimate.check_draws(resamples, confidence)
    if tokens is not None:
        tokens.check(adapter)
    graph = Graph(add("resid_post", layer, drift, strength=-strength))
    graph.check(adapter)
    media = requests.rows(modality=requests.media[0])
    bare = requests.only(media)
    runs: dict[Condition, tuple[Requests, Graph | None]] = {
        "drifted": (bare, None),
        "corrected": (bare, graph),
    }
    place = {name: row for row, name in enumerate(requests.ids)}
    twins = [place[str(requests.twin[row])] for row in media if requests.twin[row] is not None]
    twinned = len(twins) == len(media)
    if twinned:
        runs = {"clean": (requests.only(twins), None), **runs}
    read: dict[Condition, States] = {}
    coordinate: dict[Condition, Tensor] = {}
    log_odds: dict[Condition, Tensor] = {}
    for condition, (some, edits) in runs.items():
        read[condition] = measure_states(
            adapter, some, graph=edits, batch_size=batch_size, progress=progress
        )
        values = read[condition].values
        if condition == "clean":
            row = {name: index for index, name in enumerate(some.ids)}
            values = values[:, [row[requests.ids[one]] for one in twins]]
        coordinate[condition] = torch.stack([refusal[one].fraction(values[one]) for one in layers])
        if tokens is not None:
            log_odds[condition] = torch.stack(
                [lens_log_odds(adapter, values[one], one, tokens, lens) for one in layers]
            )
    return Rectification(
        source=read["drifted"].source,
        seed=seed,
        modality=requests.media[0],
        layer=layer,
        strength=strength,
        layers=layers,
        requests=bare,
        coordinate=coordinate,
        log_odds=log_odds,
        tokens=tokens,
        lens=(lens or LogitLens()).name,
        confidence=confidence,
        resamples=resamples,
    )
