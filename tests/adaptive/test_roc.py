"""ROC curves and thresholds."""

import math

import pytest
import torch

from regap_interp.adaptive.roc import auroc_error, choose_threshold, roc


@pytest.fixture
def values():
    generator = torch.Generator().manual_seed(3)
    draw = torch.randn(2, 300, generator=generator, dtype=torch.float64)
    return (draw[0] + 1.5).round(decimals=1), draw[1].round(decimals=1)  # with ties


def test_the_area_under_the_points_is_the_auroc(values):
    curve = roc(*values)
    x, y = (
        torch.tensor(of, dtype=torch.float64) for of in (curve.false_positive, curve.true_positive)
    )
    assert float(torch.trapezoid(y, x)) == pytest.approx(curve.auroc, abs=1e-12)
    assert (x.diff() >= 0).all() and (y.diff() >= 0).all()
    assert (curve.n_harmful, curve.n_benign) == (300, 300)


def test_points_are_the_rates_at_their_thresholds(values):
    curve = roc(*values)
    for cut, x, y in zip(curve.thresholds, curve.false_positive, curve.true_positive, strict=True):
        assert y == pytest.approx(float((values[0] >= cut).double().mean()))
        assert x == pytest.approx(float((values[1] >= cut).double().mean()))
    assert math.isinf(curve.thresholds[0]) and curve.true_positive[-1] == 1


def test_points_on_a_line_are_left_out():
    curve = roc(torch.arange(100, 200).double(), torch.arange(100).double())
    assert (curve.false_positive, curve.true_positive) == ((0, 0, 1), (0, 1, 1))


@pytest.mark.parametrize("budget", [0.0, 0.01, 0.05, 0.3])
def test_a_budget_is_kept_and_used_up(values, budget):
    harmful, benign = values
    cut = choose_threshold(harmful, benign, budget)
    lower = benign[benign < cut].max()
    triggered, more = ((benign >= at).double().mean() for at in (cut, lower))
    assert triggered < budget <= more or triggered == budget == 0 < more
    assert cut not in torch.cat(values)


def test_youden_finds_the_largest_difference(values):
    harmful, benign = values
    cut = choose_threshold(harmful, benign, "youden")

    def index(at):
        return (harmful >= at).double().mean() - (benign >= at).double().mean()

    assert index(cut) == max(index(at) for at in torch.cat(values))


def test_impossible_budgets_and_empty_classes_are_refused(values):
    with pytest.raises(ValueError, match="expected a share"):
        choose_threshold(*values, 1.0)
    with pytest.raises(ValueError, match="0 benign"):
        roc(values[0], values[1][:0])


def test_the_error_of_an_auroc_is_about_that_of_resampling(values):
    from regap_interp import auroc

    harmful, benign = values
    generator = torch.Generator().manual_seed(0)
    draws = torch.tensor(
        [
            auroc(*(of[torch.randint(300, (300,), generator=generator)] for of in values))
            for _ in range(200)
        ]
    )
    area = auroc(harmful, benign)
    assert auroc_error(area, 300, 300) == pytest.approx(float(draws.std()), rel=0.25)
    assert auroc_error(1.0, 300, 300) == 0
