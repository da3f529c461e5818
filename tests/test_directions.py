"""Directions: what they are, where their coordinates are zero, and what they refuse."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from regap_interp import (
    Direction,
    cosine,
    drift_direction,
    orthogonalise,
    random_orthogonal,
    refusal_direction,
)
from regap_interp.directions import Origin

HARMFUL = torch.tensor([[4.0, 1.0, 0.0], [6.0, 3.0, 0.0]])  # mean (5, 2, 0)
HARMLESS = torch.tensor([[1.0, 2.0, 1.0], [3.0, 0.0, 1.0], [2.0, 1.0, 1.0]])  # mean (2, 1, 1)


def along(*numbers: float) -> Direction:
    vector = torch.tensor(numbers, dtype=torch.float64)
    return Direction(vector, torch.zeros_like(vector), 2, 2)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_refusal_direction_is_the_difference_of_means_in_float64() -> None:
    found = refusal_direction(HARMFUL, HARMLESS)
    assert found.vector.tolist() == [3.0, 1.0, -1.0]
    assert found.vector.dtype == torch.float64
    assert found.norm == pytest.approx(11**0.5)
    assert (found.n_towards, found.n_from) == (2, 3)


def test_refusal_coordinate_is_zero_at_harmless_text_and_the_norm_at_harmful_text() -> None:
    found = refusal_direction(HARMFUL, HARMLESS)
    assert found.coordinate(HARMLESS).mean().item() == pytest.approx(0, abs=1e-12)
    assert found.coordinate(HARMFUL).mean().item() == pytest.approx(found.norm)
    assert found.fraction(HARMFUL).mean().item() == pytest.approx(1)
    # By hand: (0, 2, 1) is (-2, 1, 0) off the centre; its product with (3, 1, -1) is -5.
    assert found.coordinate(torch.tensor([0.0, 2.0, 1.0])).item() == pytest.approx(-5 / 11**0.5)


def test_coordinates_keep_the_leading_axes() -> None:
    assert refusal_direction(HARMFUL, HARMLESS).coordinate(noise(5, 4, 3)).shape == (5, 4)


def test_drift_direction_does_not_depend_on_the_order_of_the_twins() -> None:
    text, shift = noise(4, 3), noise(4, 3, seed=1)
    ids = ["a", "b", "c", "d"]
    order = [2, 0, 3, 1]
    found = drift_direction(
        text + shift, text[order], media_ids=ids, text_ids=[ids[i] for i in order]
    )
    torch.testing.assert_close(found.vector, shift.mean(dim=0))
    assert found.coordinate(text).mean().item() == pytest.approx(0, abs=1e-12)


def test_orthogonal_drift_keeps_the_raw_length_of_what_is_left() -> None:
    left = orthogonalise(along(3.0, 4.0, 12.0), along(2.0, 0.0, 0.0))
    assert left.vector.tolist() == pytest.approx([0.0, 4.0, 12.0])


def test_orthogonal_means_orthogonal_to_rounding_error_in_wide_streams() -> None:
    refusal, drift = along(*noise(3584).tolist()), along(*(1e3 * noise(3584, seed=1)).tolist())
    left = orthogonalise(drift, refusal)
    assert abs(left.unit @ refusal.unit).item() < 1e-15


def test_orthogonal_to_several_directions_even_if_these_depend_on_each_other() -> None:
    others = [along(*noise(8, seed=seed).tolist()) for seed in (1, 2)]
    third = Direction(others[0].vector - 2 * others[1].vector, torch.zeros(8).double(), 2, 2)
    left = orthogonalise(along(*noise(8).tolist()), [*others, third])
    assert all(abs(cosine(left, other)) < 1e-14 for other in [*others, third])
    assert left.norm > 0.1


def test_steering_along_orthogonal_drift_leaves_the_refusal_coordinate() -> None:
    refusal = refusal_direction(noise(6, 16), noise(6, 16, seed=1))
    drift = orthogonalise(along(*noise(16, seed=2).tolist()), refusal)
    states = noise(10, 16, seed=3)
    for strength in (0.5, 1.0, 40.0):
        torch.testing.assert_close(
            refusal.coordinate(states - strength * drift.vector),
            refusal.coordinate(states),
            rtol=0,
            atol=1e-12,
        )


def test_full_correction_leaves_the_pairs_only_the_drift_along_refusal() -> None:
    text, media = noise(20, 16), noise(20, 16, seed=1) + 1
    refusal = refusal_direction(noise(6, 16, seed=2), noise(6, 16, seed=3))
    drift = drift_direction(media, text, media_ids=range(20), text_ids=range(20))
    corrected = media - 1.0 * orthogonalise(drift, refusal).vector
    torch.testing.assert_close(
        (corrected - text).mean(dim=0), (drift.vector @ refusal.unit) * refusal.unit
    )


@pytest.mark.parametrize("width", [64, 256])
def test_planted_directions_are_found_in_noise(width: int) -> None:
    r, d = torch.eye(width, dtype=torch.float64)[:2]
    text = 0.3 * noise(512, width)
    harmful = torch.arange(512) < 256
    text[harmful] += 1.5 * r
    media = text + d + 0.3 * noise(512, width, seed=1)

    refusal = refusal_direction(text[harmful], text[~harmful])
    drift = drift_direction(media, text, media_ids=range(512), text_ids=range(512))
    assert refusal.unit @ r > 0.95
    assert orthogonalise(drift, refusal).unit @ d > 0.95


def test_orthogonal_to_a_subspace_given_as_rows_vectors_or_directions() -> None:
    basis, drift = noise(3, 8, seed=1), along(*noise(8).tolist())
    rows = [along(*row.tolist()) for row in basis]
    expected = orthogonalise(drift, rows)
    assert abs(expected.vector @ basis.T).max() < 1e-14
    for against in (basis, list(basis), [rows[0], *basis[1:]], iter(rows)):
        torch.testing.assert_close(orthogonalise(drift, against).vector, expected.vector)
    one = orthogonalise(drift, basis[0])
    assert torch.equal(one.vector, orthogonalise(drift, rows[0]).vector)


def test_a_direction_is_float64_and_apart_from_any_graph_of_gradients() -> None:
    vector = torch.nn.Parameter(torch.ones(3))
    found = Direction(vector, torch.zeros(3), 2, 2)
    assert found.vector.dtype == found.centre.dtype == torch.float64
    assert not found.vector.requires_grad
    assert found.coordinate(torch.ones(2, 3)).tolist() == pytest.approx([3**0.5] * 2)


def placed(*place: Any) -> Direction:
    return dataclasses.replace(along(1.0, 2.0, len(str(place))), origin=Origin(*place))


HERE = placed("model", "resid_post", 3)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (("other", "resid_post", 3), "different models"),
        (("model", "resid_pre", 3), "different sites"),
        (("model", "resid_post", 33), "different layers"),
    ],
)
def test_directions_of_other_places_do_not_mix(place: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        orthogonalise(HERE, placed(*place))
    if place[0] == "other":
        with pytest.raises(ValueError, match=message):
            cosine(HERE, placed(*place))
    else:
        cosine(HERE, placed(*place))
    orthogonalise(HERE, along(1.0, 0.0, 0.0))  # of no known place


@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Direction(noise(2, 2), noise(2, 2), 1, 1), "one vector .d_model."),
        (lambda: Direction(noise(2), noise(2), -1, 1), "n_towards is -1"),
        (lambda: orthogonalise(HERE, [3.0]), "against holds a float"),
        (lambda: refusal_direction(HARMFUL[:1], HARMLESS), "harmful holds 1 item"),
        (lambda: refusal_direction(HARMFUL, HARMLESS[:0]), "harmless holds 0 item"),
        (lambda: refusal_direction(HARMFUL, HARMLESS[:, :2]), "harmless has width 2"),
        (lambda: refusal_direction(HARMFUL, HARMFUL.clone()), "direction is zero"),
        (lambda: refusal_direction(HARMFUL / 0, HARMLESS), "not finite in rows 0, 1"),
        (lambda: orthogonalise(along(1.0, 2.0), along(-2.0, -4.0)), "nothing is left"),
        (lambda: orthogonalise(along(1.0, 2.0), along(1.0, 0.0, 0.0)), "width 3"),
        (lambda: cosine(along(1.0, 2.0), along(1.0, 0.0, 0.0)), "same model"),
        (lambda: along(1.0, 2.0).coordinate(noise(4, 3)), "width 3"),
    ],
)
def test_refusals_say_what_was_given(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("media_ids", "text_ids", "message"),
    [
        (["a", "b"], ["a", "c"], "2 id.s. have no partner: 'b', 'c'"),
        (["a", "a"], ["a", "b"], "'a' more than once"),
        (["a"], ["a", "b"], "1 ids for 2 rows of media"),
    ],
)
def test_pairs_must_match(media_ids: list[str], text_ids: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        drift_direction(HARMFUL, HARMFUL + 1, media_ids=media_ids, text_ids=text_ids)


def test_controls_are_orthogonal_equally_long_and_reproducible() -> None:
    generator = torch.Generator().manual_seed(0)
    refusal, other, drift = torch.randn(3, 128, generator=generator, dtype=torch.float64)
    drawn = random_orthogonal(10, like=drift, against=[refusal, other], seed=4)
    assert drawn.shape == (10, 128)
    torch.testing.assert_close(drawn.norm(dim=1), drift.norm().expand(10))
    assert (drawn @ torch.stack([refusal, other]).T).abs().max() < 1e-11
    assert torch.equal(drawn, random_orthogonal(10, like=drift, against=[refusal, other], seed=4))
    assert not torch.equal(drawn, random_orthogonal(10, like=drift, against=[refusal], seed=5))


def test_controls_are_refused_when_no_dimension_is_left() -> None:
    with pytest.raises(ValueError, match="spans all 2 dimensions"):
        random_orthogonal(1, like=torch.ones(2), against=[torch.ones(2), torch.tensor([1.0, 0])])
