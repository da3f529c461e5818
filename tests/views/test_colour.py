"""The colour map: centred, legible, and told apart by colour-blind readers."""

from itertools import pairwise

import pytest
import torch

from regap_interp.views import Scale
from regap_interp.views.colour import MISSING
from tests.views.samples import INF, NAN

# Machado, Oliveira and Fernandes 2009, severity 1: what readers without one kind of cone see.
BLIND = {
    "protan": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deutan": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritan": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}


def linear(colour: str) -> torch.Tensor:
    """Linear red, green and blue of `#rrggbb`."""
    one = torch.tensor([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)], dtype=torch.float64)
    return torch.where(one <= 0.04045, one / 12.92, ((one + 0.055) / 1.055) ** 2.4)


def luminance(colour: str) -> float:
    """Relative luminance."""
    return float(linear(colour) @ torch.tensor([0.2126, 0.7152, 0.0722], dtype=torch.float64))


def test_zero_is_the_middle_and_ends_are_clipped() -> None:
    scale = Scale.of(torch.tensor([-1.0, 4.0, NAN]), torch.tensor([INF]))

    assert scale == Scale(4.0, signed=True)
    assert scale.fill(0) == "#f7f7f5"
    assert scale.fill(4) == scale.fill(9) != scale.fill(-4)
    assert scale.veil(0).endswith("00")
    assert Scale.of(torch.zeros(3), torch.tensor([])) == Scale(1.0)


def test_strength_is_darkness_on_both_sides() -> None:
    steps = [luminance(Scale(1).fill(step / 20)) for step in range(21)]
    others = [luminance(Scale(1).fill(-step / 20)) for step in range(21)]

    assert all(a > b for a, b in pairwise(steps))
    assert all(a > b for a, b in pairwise(others))
    assert steps[-1] == pytest.approx(others[-1], abs=0.06)


@pytest.mark.parametrize("blindness", ["protan", "deutan", "tritan"])
def test_the_signs_are_told_apart(blindness: str) -> None:
    matrix = torch.tensor(BLIND[blindness], dtype=torch.float64)

    for step in (0.4, 0.7, 1.0):
        above, below = (matrix @ linear(Scale(1).fill(x)) for x in (step, -step))
        assert float((above - below).abs().max()) > 0.1


@pytest.mark.parametrize("value", [x / 50 for x in range(-50, 51)] + [NAN, INF])
def test_text_is_legible_on_every_colour(value: float) -> None:
    paper, ink = (luminance(one) for one in (Scale(1).fill(value), Scale(1).ink(value)))

    assert (max(paper, ink) + 0.05) / (min(paper, ink) + 0.05) >= 4.5


def test_the_figure_has_the_same_colours() -> None:
    from regap_interp.views.colour import colormap

    drawn = colormap()(torch.linspace(0, 1, 21).numpy())
    for index, step in enumerate(range(-10, 11)):
        page = Scale(10).fill(step)
        page_rgb = [int(page[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        assert drawn[index][:3].tolist() == pytest.approx(page_rgb, abs=0.02)


def test_the_legend_says_the_ends_and_what_is_missing() -> None:
    assert "\u22122" in Scale(2).legend(negative=True, missing=False)
    assert "not finite" in Scale(2).legend(negative=True, missing=True)
    assert "\u22122" not in Scale(2).legend(negative=False, missing=False)


@pytest.mark.parametrize("limit", [0.0, -1.0, NAN, INF])
def test_a_scale_has_an_extent(limit: float) -> None:
    with pytest.raises(ValueError, match="give a positive number"):
        Scale(limit)


def test_what_is_not_finite_has_a_colour_of_its_own() -> None:
    scale = Scale(1.0)
    own = {scale.fill(value) for value in (float("nan"), float("inf"), -float("inf"))}
    assert own == {MISSING}
    assert MISSING not in {scale.fill(step / 50 - 1) for step in range(101)}
