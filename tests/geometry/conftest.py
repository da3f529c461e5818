"""A model of each kind: the random organism with words, three families with ready encodings."""

import pytest

from model_adapters import Adapter
from tests.geometry.worlds import FAMILIES, Measured, measured_on


@pytest.fixture(params=["organism", *FAMILIES])
def measured(request: pytest.FixtureRequest, random_organism: Adapter) -> Measured:
    """A model, its requests, and their states at every layer."""
    name = request.param
    kind = "image" if name == "organism" else FAMILIES[name]
    return measured_on(name, kind, random_organism)
