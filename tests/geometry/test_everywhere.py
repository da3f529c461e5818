"""Every analysis runs in every modality of the organism, and on other families."""

from typing import Any

import pytest
import torch

from analyses.geometry import (
    RefusalTokens,
    Requests,
    States,
    TunedLens,
    control_arms,
    decompose,
    drift_arm,
    find_refusal_tokens,
    lens_log_odds,
    measure_states,
    plane,
    rectify,
    reverse_test,
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
    turned = reverse_test(random_organism, requests, arms=arms, strengths=(1.0,), **options)
    assert turned.modalities == ("text",)
    assert [one.strength for one in turned.cells] == [0.0, -1.0, -1.0]
    assert all(one.outcomes["kl.benign"].value > 0 for one in turned.cells[1:])
    drift = states.correction(kind, 1, pairs="all")
    followed = rectify(random_organism, requests, drift=drift, layer=1, **options)
    assert all(values.isfinite().all() for values in followed.log_odds.values())
    assert (followed.modality, followed.n) == (kind, 4)
    assert followed.signals().areas["paired_gain"].value.isfinite().all()


class Numbers:
    """A tokenizer for models that have none: words are ids."""

    pad_token_id = None

    def batch_decode(self, rows: list[list[int]], **_: object) -> list[str]:
        return [" ".join(map(str, row)) for row in rows]


def test_on_every_model(measured: Measured) -> None:
    # Sweeps, trajectories and the logit lens have tests of their own on all of them.
    adapter, requests, states = measured
    compute(requests, states)
    (kind,) = requests.media
    arms = {"drift": drift_arm(states, kind, [1], pairs="all")}
    refusal = states.refusals()
    found = reverse_test(
        adapter, requests, arms=arms, refusal=refusal, strengths=(1.0,), resamples=5
    )
    # To add drift is to take its opposite away.
    text = requests.only(requests.rows(modality="text"))
    other = {"drift": {1: -arms["drift"][1]}}
    same = sweep(adapter, text, arms=other, refusal=refusal, strengths=(1.0,), resamples=5)
    for layer, one in found.cells[1].cohens_d.items():
        assert one.value == pytest.approx(
            same.cells[1].cohens_d[layer].value, rel=1e-4, nan_ok=True
        )


def test_a_tuned_lens_on_every_model(measured: Measured) -> None:
    adapter, _, states = measured
    width = adapter.d_model
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(width, width, generator=generator, dtype=torch.float64) / width
    bias = torch.randn(width, generator=generator, dtype=torch.float64)
    here = states.at(1)
    seen = lens_log_odds(adapter, here, 1, TOKENS, TunedLens({1: weight}, {1: bias}))
    moved = here + here @ weight.T + bias
    torch.testing.assert_close(seen, lens_log_odds(adapter, moved, 1, TOKENS))
    assert not torch.allclose(seen, lens_log_odds(adapter, here, 1, TOKENS))


def test_refusal_tokens_on_every_model(measured: Measured, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter, requests, _ = measured
    if adapter.tokenizer is None:
        monkeypatch.setattr(adapter, "tokenizer", Numbers())
    answers = [adapter.generate(one, max_new_tokens=2) for one in requests.batches(adapter, 1)]
    first = [int(one.tokens[0, 0]) for one in answers]
    opening = first[0]
    refusals = {one.texts[0] for one, token in zip(answers, first, strict=True) if token == opening}
    found = find_refusal_tokens(
        adapter, requests, refused=lambda text: text in refusals, max_new_tokens=2
    )
    assert found.refusing == (opening,)
    assert found.answering is not None
    assert set(found.answering) == set(first) - {opening}


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
    answered = torch.arange(len(requests)) % 4 < 2
    attacked = seen.windows(
        kind, windows=QuantileBins(2), min_per_class=2, resamples=5, answered=answered
    )
    assert attacked.asr is not None
    assert attacked.asr.value.shape == (2,)
    for result in (taken_apart, seen, attacked):
        assert f"model {states.source.model}" in result.view().caption
