"""Tiny models of families, loaded once."""

import functools
from collections.abc import Callable

import pytest

import model_adapters
from model_adapters import Adapter
from model_adapters.tiny import builders


@functools.cache
def _loaded(name: str) -> Adapter:
    return model_adapters.load(builders()[name]())


@pytest.fixture(scope="session")
def tiny() -> Callable[[str], Adapter]:
    """The tiny model of that name. Shared: do not change its weights."""
    return _loaded
