"""Every analysis runs in every modality of the organism, and on other families."""

from typing import Any

import pytest

from analyses.geometry import (
    RefusalTokens,
    Requests,
    States,
    control_arms,
    decompose,
    drift_arm,
    measure_states,
    plane,
    rectify,
    sweep,
)
from model_adapters import Adapter
from model_adapters.organism.world import MEDIA_SETTINGS
from regap_interp.windows import QuantileBins
from tests.geometry.worlds import worded

Measured = tuple[Adapter, Requests, States]
TOKENS = RefusalTokens((5,), (7,))


@pytest.mark.parametrize("kind", MEDIA_SETTINGS)
def test_in_every_modality_of_the_organism(kind: str, random_organism: Adapter) -> None:
    requests = worded(random_organism, 2, kind=kind)
    states = measure_states(random_organism, requests)
    compute(requests, states)
    options: dict[str, Any] = {"refusal": states.refusals(), "tokens": TOKENS, "resamples": 5}
    arms = {
        "drift": drift_arm(states, kind, [1], pairs="all"),
        **control_arms(states, kind, [1], random=0, placebo=1, pairs="all"),
    }
    swept = sweep(random_organism, requests, arms=arms, strengths=(1.0,), **options)
    assert swept.arms == ("drift", "placebo 0")
    for cell in swept.cells[1:]:
        assert cell.outcomes["kl.benign"].value > 0
    drift = states.correction(kind, 1, pairs="all")
    followed = rectify(random_organism, requests, drift=drift, layer=1, **options)
    assert (followed.modality, followed.n) == (kind, 4)
    assert followed.signals().areas["paired_gain"].value.isfinite().all()


def test_on_every_model(measured: Measured) -> None:
    # Sweeps and trajectories have tests of their own on all of them.
    _, requests, states = measured
    compute(requests, states)


def compute(requests: Requests, states: States) -> None:
    """What needs no model."""
    (kind,) = requests.media
    n = len(requests.rows(modality=kind))
    taken_apart = decompose(states, pairs="all", resamples=5, permutations=5, splits=5)
    assert taken_apart.n_pairs == (n,)
    for band in (taken_apart.norm, taken_apart.cosine, taken_apart.stability):
        assert band.value.isfinite().all()
    seen = plane(states, states.refusal(1), states.correction(kind, 1, pairs="all"))
    windows = seen.windows(kind, windows=QuantileBins(2), min_per_class=2, resamples=5)
    assert sum(windows.columns()["n_harmful"]) == n // 2
