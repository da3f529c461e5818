"""Refusal tokens and lenses: exact at the last layer, and only the rows that are asked for."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

import model_adapters
from analyses.geometry import (
    LogitLens,
    RefusalTokens,
    Requests,
    States,
    TunedLens,
    find_refusal_tokens,
    lens_log_odds,
    measure_states,
)
from model_adapters import Adapter
from model_adapters.probe import example
from model_adapters.tiny import builders
from regap_interp.adaptive.outcomes import refusal_log_odds
from tests.geometry.worlds import worded

Measured = tuple[Adapter, Requests, States]
SOME = RefusalTokens((5, 9), (7, 3, 11))


@pytest.mark.parametrize("tokens", [SOME, RefusalTokens((5, 9))], ids=["some rows", "all rows"])
def test_the_last_layer_gives_the_log_odds_of_the_models_logits(
    measured: Measured, tokens: RefusalTokens
) -> None:
    adapter, requests, states = measured
    last = adapter.n_layers - 1
    found = lens_log_odds(adapter, states.at(last), last, tokens)
    for row, batch in enumerate(requests.batches(adapter, 1)):
        with torch.no_grad():
            logits = adapter.module(**batch.inputs).logits[:, int(batch.last[0])].double()
        if tokens.answering is None:
            plain = refusal_log_odds(logits, tokens.refusing)
        else:
            sides = tokens.refusing, tokens.answering
            refusing, answering = (logits[:, list(side)].logsumexp(dim=1) for side in sides)
            plain = refusing - answering
        assert found[row] == pytest.approx(float(plain), abs=1e-3)


def test_only_the_rows_asked_for_are_multiplied(
    random_organism: Adapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[object] = []
    whole = type(random_organism).unembed

    def watched(self: Adapter, states: Tensor, tokens: object = None) -> Tensor:
        seen.append(tokens)
        return whole(self, states, tokens)  # type: ignore[arg-type]

    monkeypatch.setattr(type(random_organism), "unembed", watched)
    states = torch.randn(3, random_organism.d_model, dtype=torch.float64)
    lens_log_odds(random_organism, states, 2, SOME)
    lens_log_odds(random_organism, states, 2, RefusalTokens((5,)))
    assert seen == [(5, 9, 7, 3, 11), None]


def test_a_tuned_lens_translates_first(random_organism: Adapter) -> None:
    width = random_organism.d_model
    states = torch.randn(3, width, dtype=torch.float64)
    nothing = TunedLens({2: torch.zeros(width, width)}, {2: torch.zeros(width)})
    plain = lens_log_odds(random_organism, states, 2, SOME)
    torch.testing.assert_close(lens_log_odds(random_organism, states, 2, SOME, nothing), plain)
    weight = torch.randn(width, width, dtype=torch.float64) / width
    bias = torch.randn(width, dtype=torch.float64)
    tuned = TunedLens({2: weight}, {2: bias})
    moved = states + states @ weight.T + bias
    expected = lens_log_odds(random_organism, moved, 2, SOME)
    torch.testing.assert_close(lens_log_odds(random_organism, states, 2, SOME, tuned), expected)
    # A layer without a translator is read as it is.
    torch.testing.assert_close(lens_log_odds(random_organism, states, 3, SOME, tuned), plain)
    assert LogitLens().name == "logit lens"
    with pytest.raises(ValueError, match="a translator needs both"):
        TunedLens({2: weight}, {})


@pytest.mark.parametrize(
    ("lens", "said"),
    [
        (lambda d: TunedLens({40: torch.zeros(d, d)}, {40: torch.zeros(d)}), r"layers \[40\]"),
        (lambda d: TunedLens({1: torch.zeros(d, 9)}, {1: torch.zeros(d)}), "128 wide"),
        (lambda d: TunedLens({1: torch.zeros(d, d)}, {1: torch.zeros(9)}), "128 wide"),
        (lambda d: TunedLens({1: torch.zeros(d, d) / 0}, {1: torch.zeros(d)}), "not finite"),
    ],
)
def test_a_lens_of_another_model_is_refused(
    lens: Callable[[int], TunedLens], said: str, random_organism: Adapter, as_users_run_it: None
) -> None:
    states = torch.zeros(3, random_organism.d_model, dtype=torch.float64)
    with pytest.raises(ValueError, match=said):
        lens_log_odds(random_organism, states, 2, SOME, lens(random_organism.d_model))


def test_tokens_are_found_in_the_models_own_answers(random_organism: Adapter) -> None:
    requests = worded(random_organism, 6)
    texts, first = [], []
    for batch in requests.batches(random_organism, 4):
        answers = random_organism.generate(batch, max_new_tokens=3)
        texts += answers.texts
        first += answers.tokens[:, 0].tolist()
    # Call refusals whatever opens with the first answer's first token.
    refusing = {text for text, token in zip(texts, first, strict=True) if token == first[0]}
    found = find_refusal_tokens(
        random_organism, requests, refused=lambda text: text in refusing, max_new_tokens=3
    )
    assert found.refusing == (first[0],)
    assert found.answering is not None
    assert set(found.answering) <= set(first) - {first[0]}
    told = sum(bool(text.strip()) for text in texts)
    assert found.n_refused + found.n_answered == told
    with pytest.raises(ValueError, match="0 of 24 answers are refusals"):
        find_refusal_tokens(random_organism, requests, refused=lambda text: False)


def test_given_tokens_are_checked(random_organism: Adapter) -> None:
    found = RefusalTokens.given(random_organism, ["sorry"], ["certainly", "gladly"])
    assert found.refusing == (random_organism.tokenizer.convert_tokens_to_ids("sorry"),)
    assert found.rows is not None
    assert len(found.rows) == 3
    with pytest.raises(ValueError, match="none on both"):
        RefusalTokens((1, 2), (2,))
    with pytest.raises(ValueError, match="a refusal token must be one"):
        RefusalTokens.given(random_organism, ["sorry sorry"])


@pytest.mark.parametrize("name", ["gemma2", "granite", "cohere2"])
def test_caps_and_scales_of_logits_are_kept(name: str) -> None:
    adapter = model_adapters.load(builders()[name]())
    given = example(adapter.module, adapter.family, (), size=0, seed=0)
    requests = Requests.encoded([adapter.describe(**given)], harmful=[True])
    last = adapter.n_layers - 1
    states = measure_states(adapter, requests, layers=[last]).at(last)
    with torch.no_grad():
        logits = adapter.module(**given).logits[0, -1].double()
    found = float(lens_log_odds(adapter, states, last, SOME))
    plain = logits[[5, 9]].logsumexp(dim=0) - logits[[7, 3, 11]].logsumexp(dim=0)
    assert found == pytest.approx(float(plain), abs=1e-5)
    config = adapter.module.config
    settings = ("final_logit_softcapping", "logits_scaling", "logit_scale")
    assert any(getattr(config, one, None) for one in settings)


def test_a_token_belongs_to_the_side_that_it_opens_more_often(
    random_organism: Adapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = worded(random_organism, 2)  # eight of them
    said = [(5, "no"), (5, "no"), (5, "no"), (7, "no"), (7, "yes"), (7, "yes"), (5, "yes"), (9, "")]
    answers = SimpleNamespace(
        tokens=torch.tensor([[token] for token, _ in said]), texts=[text for _, text in said]
    )
    monkeypatch.setattr(random_organism, "generate", lambda *_, **__: answers)
    found = find_refusal_tokens(random_organism, requests, refused=lambda text: text == "no")
    assert found == RefusalTokens((5,), (7,), n_refused=4, n_answered=3)
