"""One file of directions, made up, for the random organism."""

import pytest
import torch

from model_adapters import Adapter
from regap_interp import Direction
from regap_interp.artefact import (
    TOWARDS_HARMFUL,
    TOWARDS_MEDIA,
    Directions,
    Manifest,
    Recipe,
    data_fingerprint,
)


def made_up(seed: int, width: int = 128) -> Direction:
    """A direction of random numbers, every one with all its digits."""
    numbers = torch.Generator().manual_seed(seed)
    vector, centre = torch.randn(2, width, dtype=torch.float64, generator=numbers)
    return Direction(vector, centre, n_towards=8 + seed, n_from=9)


@pytest.fixture
def directions(random_organism: Adapter) -> Directions:
    """Refusal and image drift at two layers, and a set of another name."""
    data = data_fingerprint({"a": "name the kerol"})
    manifest = Manifest.of(
        random_organism,
        {
            "refusal": Recipe(sign=TOWARDS_HARMFUL, data=data, seeds=(3, 4)),
            "drift/image": Recipe(sign=TOWARDS_MEDIA, options={"pairs": "balanced", "rank": 1}),
            "tone": Recipe(sign="points from cold to warm", position="-2", estimator="LDA"),
        },
        created="long ago",
    )
    return Directions(
        manifest,
        {
            "refusal": {7: made_up(1), 3: made_up(2)},
            "drift/image": {3: made_up(3), 7: made_up(4)},
            "tone": {0: made_up(5)},
        },
    )
