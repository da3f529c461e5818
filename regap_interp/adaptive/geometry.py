"""Refusal and drift of every layer, from items."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from model_adapters import Adapter
from regap_interp.adaptive.item import Item, pick
from regap_interp.artefact.directions import Directions
from regap_interp.capture import last_residuals
from regap_interp.directions import (
    Direction,
    Origin,
    drift_direction,
    orthogonalise,
    refusal_direction,
)

Pairs = Literal["harmful", "balanced"]
Ticked = Callable[[int], None]
"""Called with the number of requests just run."""


@dataclass(frozen=True, eq=False)
class ModalityGeometry:
    """Directions by layer, at `resid_post` of the last prompt token."""

    refusal: Mapping[int, Direction]
    """Harmful minus harmless text."""
    drift: Mapping[int, Direction]
    """Media minus text twin, without its component along refusal of the same layer."""

    def __post_init__(self) -> None:
        """Refuse drift without refusal."""
        missing = sorted(set(self.drift) - set(self.refusal))
        if missing or not self.drift:
            raise ValueError(f"no refusal direction for the layers {missing} of the drift")

    @classmethod
    def of(cls, directions: Directions, modality: str) -> "ModalityGeometry":
        """Those of a file of directions, drift without its component along refusal.

        Raises:
            ArtefactError: The file has no refusal, or no drift of that modality.
        """
        layers = directions[f"drift/{modality}"]
        return cls(
            dict(directions["refusal"]),
            {layer: directions.correction(modality, layer) for layer in layers},
        )


def measure_geometry(
    adapter: Adapter,
    items: Sequence[Item],
    modality: str,
    *,
    split: str = "direction",
    pairs: Pairs = "harmful",
    batch_size: int = 16,
    tick: Ticked | None = None,
) -> ModalityGeometry:
    """Directions at every layer, from the items of one split.

    Args:
        adapter: The model.
        items: Text items of both kinds, media items and their text twins.
        modality: Whose drift is measured.
        split: Only items of this split are used.
        pairs: "harmful" takes drift from harmful pairs only, as the paper does; "balanced" from
            as many harmless ones too.
        batch_size: Requests in one pass.
        tick: Called after every pass.

    Raises:
        ValueError: There are too few items of a kind, or media without twins.
    """
    media = pick(items, split=split, modality=modality, harmful=True)
    if pairs == "balanced":
        benign = pick(items, split=split, modality=modality, harmful=False)
        count = min(len(media), len(benign))
        media = [*media[:count], *benign[:count]]
    text = {item.id: item for item in pick(items, split=split, modality="text")}
    lonely = [item.id for item in media if item.twin_id not in text]
    if lonely:
        raise ValueError(
            f"{len(lonely)} {modality} item(s) of the split {split!r} have no text twin, such as "
            f"{lonely[0]!r}; drift is measured on pairs"
        )
    if len(media) < 2:
        raise ValueError(
            f"{len(media)} {modality} pair(s) in the split {split!r}; drift needs at least 2, and "
            "better a hundred"
        )
    layers = range(adapter.n_layers)
    finished = 0

    def advance(done: int, _: int) -> None:
        nonlocal finished
        if tick is not None:
            tick(done - finished)
        finished = done

    order = [*text.values(), *media]
    states = last_residuals(
        adapter,
        [item.messages for item in order],
        layers=layers,
        batch_size=batch_size,
        progress=advance,
    )
    row = {item.id: index for index, item in enumerate(order)}
    harmful = [row[item.id] for item in text.values() if item.harmful]
    harmless = [row[item.id] for item in text.values() if not item.harmful]
    ids = [item.id for item in media]
    twins = [row[item.twin_id] for item in media if item.twin_id is not None]
    refusal, drift = {}, {}
    for layer in layers:
        origin = Origin(adapter.fingerprint, "resid_post", layer)
        here = states[layer]
        refusal[layer] = replace(refusal_direction(here[harmful], here[harmless]), origin=origin)
        raw = drift_direction(
            here[[row[one] for one in ids]], here[twins], media_ids=ids, text_ids=ids
        )
        drift[layer] = replace(orthogonalise(raw, refusal[layer]), origin=origin)
    return ModalityGeometry(refusal, drift)
