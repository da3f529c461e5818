"""Every analysis in every modality of the organism, and on three other families: one table."""

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from analyses.geometry import (
    RefusalTokens,
    Result,
    TunedLens,
    control_arms,
    decompose,
    drift_arm,
    find_refusal_tokens,
    lens_log_odds,
    plane,
    rectify,
    reverse_test,
    sweep,
)
from model_adapters import Adapter
from model_adapters.organism.world import MEDIA_SETTINGS
from regap_interp.windows import FixedBins, QuantileBins, SlidingWindows
from tests.geometry.worlds import FAMILIES, Measured, measured_on

PLACES = [*(("organism", kind) for kind in MEDIA_SETTINGS), *FAMILIES.items()]
LAYER = 1
TOKENS = RefusalTokens((5,), (7,))
FEW: dict[str, Any] = {"resamples": 3, "seed": 3}
Found = tuple[Result | None, Tensor]
"""A result, and numbers of it that must be there."""


def decomposition(of: Measured, kind: str) -> Found:
    found = decompose(of[2], pairs="all", permutations=3, splits=3, **FEW)
    assert found.modalities == (kind,)
    assert found.n_pairs == (len(of[1].rows(modality=kind)),)
    parts = (found.norm, found.cosine, found.parallel, found.orthogonal, found.stability)
    torch.testing.assert_close(parts[0].value ** 2, parts[2].value ** 2 + parts[3].value ** 2)
    return found, torch.stack([one.value for one in parts])


def a_plane(of: Measured, kind: str) -> Found:
    states = of[2]
    found = plane(
        states, states.refusal(LAYER), states.correction(kind, LAYER, pairs="all"), seed=3
    )
    assert found.cosine == pytest.approx(0, abs=1e-9)
    media = found.drift[found.requests.rows(modality=kind)]
    assert media.mean() == pytest.approx(1)
    return found, torch.stack([found.refusal, found.drift])


def windows(of: Measured, kind: str) -> Found:
    found = a_plane(of, kind)[0]
    assert found is not None
    n = len(of[1].rows(modality=kind))
    answered = torch.arange(len(of[1])) % 4 < 2
    options: dict[str, Any] = {"answered": answered, "min_per_class": 2, "resamples": 3}
    for cut in (QuantileBins(2), SlidingWindows(0.5, 0.5, least=2), FixedBins((-99.0, 1.0, 99.0))):
        seen = found.windows(kind, windows=cut, **options)  # type: ignore[attr-defined]
        assert sum(seen.columns()["n_harmful"]) == n // 2
    whole = found.windows(kind, windows=FixedBins((-99.0, 98.0, 99.0)), **options)  # type: ignore[attr-defined]
    return whole, torch.stack([whole.crs.value[0], whole.asr.value[0]])


def a_sweep(of: Measured, kind: str) -> Found:
    adapter, requests, states = of
    arms = {
        "drift": drift_arm(states, kind, [LAYER], pairs="all"),
        **control_arms(states, kind, [LAYER], random=1, placebo=1, pairs="all"),
    }
    found = sweep(
        adapter,
        requests.only(requests.rows(modality=kind)),
        arms=arms,
        refusal={one: states.refusal(one) for one in (LAYER, LAYER + 1)},
        strengths=(1.0,),
        tokens=TOKENS,
        **FEW,
    )
    assert found.arms == ("drift", "random 0", "placebo 0")
    assert all(one.outcomes["kl.benign"].value > 0 for one in found.cells[1:])
    assert found.modalities == (kind,)
    return found, torch.tensor([one.downstream() for one in found.cells])


def a_reverse_test(of: Measured, kind: str) -> Found:
    adapter, requests, states = of
    refusal = {one: states.refusal(one) for one in (LAYER, LAYER + 1)}
    arm = drift_arm(states, kind, [LAYER], pairs="all")
    options: dict[str, Any] = {"refusal": refusal, "strengths": (1.0,), **FEW}
    found = reverse_test(adapter, requests, arms={"drift": arm}, **options)
    assert found.modalities == ("text",)
    assert [one.strength for one in found.cells] == [0.0, -1.0]
    # To add drift is to take its opposite away.
    text = requests.only(requests.rows(modality="text"))
    same = sweep(adapter, text, arms={"drift": {LAYER: -arm[LAYER]}}, **options)
    one, other = found.cells[1].downstream(), same.cells[1].downstream()
    assert one == pytest.approx(other, rel=1e-4)
    return found, torch.tensor([one])


@functools.cache
def rectification(of: Measured, kind: str) -> Found:
    adapter, requests, states = of
    found = rectify(
        adapter,
        requests,
        refusal=states.refusals(),
        drift=states.correction(kind, LAYER, pairs="all"),
        layer=LAYER,
        tokens=TOKENS,
        **FEW,
    )
    assert (found.modality, found.n) == (kind, len(requests.rows(modality=kind)))
    assert set(found.coordinate) == set(found.log_odds) == {"clean", "drifted", "corrected"}
    return found, torch.stack([*found.coordinate.values(), *found.log_odds.values()])


def signals(of: Measured, kind: str) -> Found:
    found = rectification(of, kind)[0].signals()  # type: ignore[union-attr]
    return found, torch.stack([one.value for one in found.areas.values()])


def a_tuned_lens(of: Measured, kind: str) -> Found:
    adapter, _, states = of
    width, generator = adapter.d_model, torch.Generator().manual_seed(0)
    weight = torch.randn(width, width, generator=generator, dtype=torch.float64) / width
    bias = torch.randn(width, generator=generator, dtype=torch.float64)
    here = states.at(LAYER)
    seen = lens_log_odds(adapter, here, LAYER, TOKENS, TunedLens({LAYER: weight}, {LAYER: bias}))
    moved = here + here @ weight.T + bias
    torch.testing.assert_close(seen, lens_log_odds(adapter, moved, LAYER, TOKENS))
    assert not torch.allclose(seen, lens_log_odds(adapter, here, LAYER, TOKENS))
    return None, seen


class Numbers:
    """A tokenizer for models that have none: words are ids."""

    pad_token_id = None

    def batch_decode(self, rows: list[list[int]], **_: object) -> list[str]:
        return [" ".join(map(str, row)) for row in rows]


def refusal_tokens(of: Measured, kind: str) -> Found:
    adapter, requests, _ = of
    tokenizer = adapter.tokenizer if adapter.tokenizer is not None else Numbers()
    with patch.object(adapter, "tokenizer", tokenizer):
        answers = [
            adapter.generate(one, max_new_tokens=2)
            for one in requests.batches(adapter, len(requests))
        ]
        first = [row[0] for one in answers for row in one.tokens.tolist()]
        texts = [text for one in answers for text in one.texts]
        said = {token: text for text, token in zip(texts, first, strict=True) if text.strip()}
        refusals = {text for text, token in zip(texts, first, strict=True) if token == first[0]}
        found = find_refusal_tokens(
            adapter, requests, refused=refusals.__contains__, max_new_tokens=2
        )
    assert found.refusing == (first[0],)
    assert set(found.answering or ()) == set(said) - {first[0]}
    return None, torch.tensor([found.n_refused, found.n_answered])


ANALYSES: dict[str, Callable[[Measured, str], Found]] = {
    "decompose": decomposition,
    "plane": a_plane,
    "windows": windows,
    "sweep": a_sweep,
    "reverse_test": a_reverse_test,
    "rectify": rectification,
    "signals": signals,
    "TunedLens": a_tuned_lens,
    "find_refusal_tokens": refusal_tokens,
}


@pytest.mark.parametrize(("name", "kind"), PLACES, ids=[f"{one}-{kind}" for one, kind in PLACES])
@pytest.mark.parametrize("analysis", ANALYSES)
def test_every_analysis_runs_everywhere(
    analysis: str, name: str, kind: str, random_organism: Adapter
) -> None:
    of = measured_on(name, kind, random_organism)
    result, numbers = ANALYSES[analysis](of, kind)
    assert numbers.isfinite().all()
    if result is None:
        return
    adapter = of[0]
    assert result.source.fingerprint == adapter.fingerprint
    caption = result.view().caption
    for said in (f"model {adapter.model_id}", f"n = {result.n}", "seed 3"):  # type: ignore[attr-defined]
        assert said in caption
    table = result.columns()
    (rows,) = {len(column) for column in table.values()}
    assert rows > 0
    every = itertools.chain.from_iterable(table.values())
    assert any(isinstance(one, float) and math.isfinite(one) for one in every)
