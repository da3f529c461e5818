"""Bundles for models that know nothing."""

import pytest

from tests.bundles import bundle


@pytest.fixture(scope="session")
def make_bundle(random_organism):
    return lambda modality, **more: bundle(random_organism, modality, **more)
