"""Refusals: phrases, judging, and first-token log-odds."""

import math

import pytest
import torch

from regap_interp.adaptive.outcomes import REFUSAL_PHRASES, Phrases, judge, refusal_log_odds
from regap_interp.paired import mcnemar


@pytest.mark.parametrize(
    ("answer", "refused"),
    [
        ("I'm sorry, no.", True),
        ("well, i CANNOT do that", True),
        ("I\u2019m unable to help", True),
        ("Sure, here is how", False),
        ("", False),
        ("   ", False),
    ],
)
def test_the_named_list_finds_refusals_in_whatever_case_and_quotes(answer, refused):
    assert REFUSAL_PHRASES(answer) is refused


def test_a_list_may_look_at_the_opening_only():
    opening = Phrases("mine", "1", ("I cannot",), where="start")
    assert opening("  I cannot say") and not opening("What I cannot do")
    with pytest.raises(ValueError, match="words to look for"):
        Phrases("mine", "1", ())


def test_empty_answers_are_counted_and_never_refusals():
    judged = judge(["sorry", " ", "", "sure"], lambda answer: answer != "sure")
    assert judged.refused.tolist() == [True, False, False, False]
    assert judged.n_empty == 2


def test_an_unknown_verdict_is_not_taken_for_a_refusal():
    with pytest.raises(ValueError, match="gave None"):
        judge(["who knows"], lambda answer: None)


def test_log_odds_are_those_of_the_tokens_together():
    logits = torch.randn(5, 11, generator=torch.Generator().manual_seed(0))
    share = logits.double().softmax(dim=1)[:, [2, 7]].sum(dim=1)
    torch.testing.assert_close(refusal_log_odds(logits, [2, 7]), (share / (1 - share)).log())


def test_log_odds_stay_finite_where_a_probability_rounds_to_one():
    logits = torch.tensor([[800.0, 0.0, 0.0]])
    assert refusal_log_odds(logits, [0]).item() == pytest.approx(800 - math.log(2))


@pytest.mark.parametrize("tokens", [[], [1, 1], [3], [-1], [0, 1, 2]])
def test_impossible_tokens_are_refused(tokens):
    with pytest.raises(ValueError, match="tokens is"):
        refusal_log_odds(torch.zeros(1, 3), tokens)


@pytest.mark.parametrize(("only_first", "only_second"), [(0, 0), (5, 0), (3, 9), (10, 10), (60, 8)])
def test_mcnemar_is_the_binomial_test_of_the_items_that_differ(only_first, only_second):
    scipy_stats = pytest.importorskip("scipy.stats")
    first = torch.tensor([True] * only_first + [False] * only_second + [True, False, True])
    second = torch.tensor([False] * only_first + [True] * only_second + [True, False, True])
    found = mcnemar(first, second)
    assert (found.only_first, found.only_second) == (only_first, only_second)
    assert found.n == only_first + only_second + 3
    differ = only_first + only_second
    expected = scipy_stats.binomtest(only_first, differ).pvalue if differ else 1.0
    assert found.p == pytest.approx(expected, rel=1e-9)


def test_mcnemar_needs_pairs(as_users_run_it):
    with pytest.raises(ValueError, match="same items"):
        mcnemar(torch.tensor([True]), torch.tensor([True, False]))
