"""A model of each kind: the random organism with words, three families with ready encodings."""

import pytest

import model_adapters
from analyses.geometry import Requests, States, measure_states
from model_adapters import Adapter
from model_adapters.tiny import builders
from tests.geometry.worlds import encoded, worded

MODELS = {"organism": "image", "qwen3_vl": "image", "llava": "image", "qwen2_audio": "audio"}
_MADE: dict[str, tuple[Adapter, Requests, States]] = {}


@pytest.fixture(params=MODELS)
def measured(
    request: pytest.FixtureRequest, random_organism: Adapter
) -> tuple[Adapter, Requests, States]:
    """A model, its requests, and their states at every layer."""
    name = request.param
    if name not in _MADE:
        if name == "organism":
            adapter, requests = random_organism, worded(random_organism)
        else:
            adapter = model_adapters.load(builders()[name]())
            requests = encoded(adapter, MODELS[name])
        _MADE[name] = adapter, requests, measure_states(adapter, requests)
    return _MADE[name]
