"""Models and pairs of runs to patch."""

from collections.abc import Callable
from typing import Any

import pytest

import model_adapters
from model_adapters import Adapter, Batch
from tests.adapters.conftest import (
    SmallProcessor,
    build_thinker,
    clip_part,
    picture_part,
    sound_part,
    user,
)

Pair = tuple[Batch, Batch]

CHATS: dict[str, Callable[[int], Any]] = {
    "text": lambda seed: user(f"w{5 + seed} w7 w{8 + seed} w9 w{20 + seed} w11"),
    "image": lambda seed: user(f"w{5 + seed}", picture_part(seed=seed), "w8 w9"),
    "audio": lambda seed: user(f"w{5 + seed}", sound_part(seed=seed), "w8 w9"),
    "video": lambda seed: user("w4", clip_part(seed=seed), "w11"),
}


@pytest.fixture(scope="session")
def adapter() -> Adapter:
    """The tiny thinker with its processor. Shared: do not change its weights."""
    return model_adapters.load(build_thinker(), processor=SmallProcessor())


@pytest.fixture(scope="session")
def pair_of(adapter: Adapter) -> Callable[..., Pair]:
    """Corrupted and clean runs of one medium, of the same length."""

    def make(kind: str, rows: int = 1) -> Pair:
        chats = [[CHATS[kind](10 * row + side) for row in range(rows)] for side in (0, 1)]
        return adapter.encode(chats[0]), adapter.encode(chats[1])

    return make


@pytest.fixture(scope="session")
def mixed(adapter: Adapter) -> Pair:
    """Rows of different lengths and media, padded."""
    chats = [[make(side) for make in CHATS.values()] for side in (0, 1)]
    return adapter.encode(chats[0]), adapter.encode(chats[1])
