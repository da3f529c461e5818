"""Estimators of directions: planted ones are found, and each is what its formula says."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from regap_interp import Direction, refusal_direction
from regap_interp.directions import Origin
from regap_interp.estimators import (
    Pairs,
    check_disjoint,
    cumulative,
    drift_from,
    drift_of,
    incremental,
    lda_from,
    paired_drift,
    refusal_from,
    shared_direction,
)
from regap_interp.lda import lda_direction, ledoit_wolf
from regap_interp.moments import Moments
from regap_interp.statistics import Statistics

SITE: Any = ("resid_post", 3)
IDS = [f"item {i}" for i in range(40)]
HARMFUL: dict[Any, bool] = {one: i < 25 for i, one in enumerate(IDS)}


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def along(vector: Tensor, layer: int | None = None) -> Direction:
    origin = None if layer is None else Origin("model", "resid_post", layer)
    return Direction(vector, torch.zeros_like(vector), 2, 2, origin)


def cosine(first: Tensor, second: Tensor) -> float:
    return float(first @ second / (first.norm() * second.norm()))


def planted(width: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Harmful text, harmless text, their media forms, of which r and d are the first two axes."""
    text = 0.3 * noise(512, width)
    text[:256, 0] += 1.5
    media = text + 0.3 * noise(512, width, seed=1)
    media[:, 1] += 1
    return text[:256], text[256:], media[:256], media[256:]


@pytest.mark.parametrize("width", [64, 256])
def test_planted_directions_are_found_by_every_estimator(width: int) -> None:
    harmful, harmless, media, _ = planted(width)
    r, d = torch.eye(width, dtype=torch.float64)[:2]
    ids = range(256)
    assert refusal_direction(harmful, harmless).unit @ r > 0.95
    assert paired_drift(media, harmful, media_ids=ids, text_ids=ids).direction.unit @ d > 0.95
    assert lda_direction(harmful, harmless).unit @ r > 0.95
    modalities = [
        refusal_direction(harmful + 0.1 * noise(256, width, seed=s), harmless) for s in (1, 2)
    ]
    assert shared_direction(modalities).direction.unit @ r > 0.95


def test_the_spread_of_the_pairs_tells_drift_from_noise() -> None:
    text, shift = noise(40, 8), 0.5 * noise(40, 8, seed=1) + 2
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0)).tolist()
    found = paired_drift(
        (text + shift)[order], text, media_ids=[IDS[i] for i in order], text_ids=IDS
    )
    torch.testing.assert_close(found.direction.vector, shift.mean(dim=0))
    torch.testing.assert_close(found.variance, shift.var(dim=0))
    torch.testing.assert_close(found.standard_error, shift.std(dim=0) / 40**0.5)
    assert found.along == pytest.approx(float((shift @ found.direction.unit).std()))
    assert found.noise < 0.1
    chance = paired_drift(text + noise(40, 8, seed=2), text, media_ids=IDS, text_ids=IDS)
    assert chance.noise > 0.5


@pytest.mark.parametrize("pairs", ["harmful", "benign", "balanced", "unpaired", "blank"])
def test_pair_options_differ_in_the_items_they_average(pairs: Pairs) -> None:
    text, media = noise(40, 6), noise(40, 6, seed=1) + 1
    shift = media - text
    found = drift_of(
        pairs,
        media,
        text.flip(0),
        harmful=HARMFUL,
        media_ids=IDS,
        text_ids=IDS[::-1],
        origin=Origin("model", *SITE),
    )
    harmful, benign = shift[:25].mean(dim=0), shift[25:].mean(dim=0)
    expected = {"harmful": harmful, "benign": benign, "balanced": (harmful + benign) / 2}
    torch.testing.assert_close(found.vector, expected.get(pairs, shift.mean(dim=0)))
    assert found.n_from == {"harmful": 25, "benign": 15}.get(pairs, 40)
    assert found.origin == Origin("model", "resid_post", 3)


def streamed(covariance: Any = None) -> tuple[Statistics, Tensor, Tensor]:
    text, media = noise(40, 6), noise(40, 6, seed=1) + 1
    made = Statistics([SITE], covariance=covariance)
    made.model = "model"
    for name, states in (("text", text), ("image", media)):
        made.add(f"{name}/harmful", IDS[:25], [states[:25]])
        made.add(f"{name}/benign", IDS[25:], [states[25:]])
    return made, text, media


def test_streamed_statistics_give_the_same_directions_and_their_origin() -> None:
    made, text, media = streamed()
    kept = refusal_direction(text[:25], text[25:])
    found = refusal_from(made, SITE)
    torch.testing.assert_close(found.vector, kept.vector, rtol=1e-12, atol=1e-14)
    assert (found.n_towards, found.n_from) == (25, 15)
    assert found.origin == Origin("model", "resid_post", 3, "last")

    labels = [(f"image/{kind}", f"text/{kind}") for kind in ("harmful", "benign")]
    for pairs, chosen in (("harmful", labels[:1]), ("benign", labels[1:]), ("balanced", labels)):
        drift = drift_of(pairs, media, text, harmful=HARMFUL, media_ids=IDS, text_ids=IDS)
        streamed_drift = drift_from(made, SITE, chosen)
        torch.testing.assert_close(streamed_drift.vector, drift.vector, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(streamed_drift.centre, drift.centre, rtol=1e-12, atol=1e-14)


def test_what_modalities_share_is_not_centred_away() -> None:
    common = torch.tensor([0.0, 0.0, 5.0, 0.0], dtype=torch.float64)
    vectors = [common + 0.3 * noise(4, seed=seed) for seed in range(4)]
    found = shared_direction([along(vector) for vector in vectors])
    assert cosine(found.direction.vector, common) > 0.99
    assert found.direction.norm == pytest.approx(float(torch.stack(vectors).norm(dim=1).mean()))
    assert found.share > 0.95 and min(found.cosines) > 0.95
    # It maximises the summed squared products: any other axis has less.
    stacked = torch.stack(vectors)
    best = (stacked @ found.direction.unit).square().sum()
    others = noise(50, 4, seed=9)
    others = others / others.norm(dim=1, keepdim=True)
    assert ((stacked @ others.T).square().sum(dim=0) <= best).all()


def test_the_shared_sign_is_that_of_the_mean_whatever_svd_returns() -> None:
    vectors = [torch.tensor(v, dtype=torch.float64) for v in ([2.0, 0.1], [2.0, -0.1], [-0.5, 0.0])]
    found = shared_direction([along(vector) for vector in vectors])
    assert found.direction.vector[0] > 0
    assert found.cosines[2] == pytest.approx(-1)
    flipped = shared_direction([along(-vector) for vector in vectors])
    torch.testing.assert_close(flipped.direction.vector, -found.direction.vector)


def test_increments_add_up_to_the_drift() -> None:
    drifts = [along(noise(5, seed=layer), layer) for layer in range(2, 6)]
    steps = incremental(drifts)
    torch.testing.assert_close(steps[2].vector, drifts[2].vector - drifts[1].vector)
    assert steps[2].origin == drifts[2].origin
    for before, after in zip(drifts, cumulative(steps), strict=True):
        torch.testing.assert_close(after.vector, before.vector)


def test_the_place_the_states_were_read_at_goes_along() -> None:
    rules: list[tuple[Any, str]] = [("prompt", "prompt"), ((-2,), "-2"), ((-2, -1), "-2,-1")]
    for at, position in rules:
        made = Statistics([SITE], at=at)
        made.claim("model", "digest")
        for label, seed in (("text/harmful", 0), ("text/benign", 1)):
            made.add(label, ["a", "b"], [noise(2, 3, seed=seed)])
        assert refusal_from(made, SITE).origin == Origin("model", *SITE, position, "digest")


def test_lda_of_statistics_is_lda_of_their_moments() -> None:
    made, text, _ = streamed("full")
    found = lda_from(made, SITE, shrinkage=0.2)
    kept = lda_direction(text[:25], text[25:], shrinkage=0.2)
    torch.testing.assert_close(found.vector, kept.vector, rtol=1e-9, atol=1e-12)
    assert found.origin == Origin("model", *SITE, "last")


def elsewhere(**changes: Any) -> list[Direction]:
    first = along(noise(3), 1)
    second = along(noise(3, seed=1), 2)
    assert first.origin is not None
    origin = dataclasses.replace(first.origin, **{"layer": 2, **changes})
    return [first, dataclasses.replace(second, origin=origin)]


def within(states: Tensor, harmful: int) -> Tensor:
    first, second = states[:harmful], states[harmful:]
    return torch.cat([first - first.mean(dim=0), second - second.mean(dim=0)])


@pytest.mark.parametrize("width", [6, 90])
@pytest.mark.parametrize("shrinkage", [0.1, 0.7, None])
def test_lda_is_the_inverse_of_the_shrunk_covariance_times_the_gap(
    width: int, shrinkage: float | None
) -> None:
    states = noise(40, width) @ noise(width, width, seed=1) + 3
    found = lda_direction(states[:25], states[25:], shrinkage=shrinkage)
    centred = within(states, 25)
    used = ledoit_wolf(centred) if shrinkage is None else shrinkage
    covariance = centred.T @ centred / 40
    identity = torch.eye(width, dtype=torch.float64)
    shrunk = (1 - used) * covariance + used * covariance.trace() / width * identity
    gap = states[:25].mean(dim=0) - states[25:].mean(dim=0)
    assert cosine(found.vector, torch.linalg.inv(shrunk) @ gap) == pytest.approx(1, abs=1e-9)
    assert found.fraction(states[:25]).mean().item() == pytest.approx(1)
    assert found.fraction(states[25:]).mean().item() == pytest.approx(0, abs=1e-9)


def test_lda_sees_past_a_noisy_coordinate_and_full_shrinkage_is_the_mean_difference() -> None:
    scale = torch.tensor([1.0, 30.0, 1.0, 1.0], dtype=torch.float64)
    harmful, harmless = noise(300, 4) * scale, noise(300, 4, seed=1) * scale
    harmful[:, 0] += 2
    truth = torch.tensor([1.0, 0, 0, 0], dtype=torch.float64)
    plain = refusal_direction(harmful, harmless)
    assert lda_direction(harmful, harmless, shrinkage=1e-4).unit @ truth > 0.99 > plain.unit @ truth
    torch.testing.assert_close(lda_direction(harmful, harmless, shrinkage=1.0).vector, plain.vector)


@pytest.mark.parametrize("covariance", ["full", 6])
def test_lda_of_moments_is_that_of_the_states(covariance: Any) -> None:
    made, text, _ = streamed(covariance)
    parts = [made[(*SITE, f"text/{kind}")] for kind in ("harmful", "benign")]
    found = lda_direction(parts[0], parts[1], shrinkage=0.2)
    kept = lda_direction(text[:25], text[25:], shrinkage=0.2)
    torch.testing.assert_close(found.vector, kept.vector, rtol=1e-9, atol=1e-12)


def test_ledoit_wolf_is_what_its_definition_says() -> None:
    centred = noise(30, 5) @ noise(5, 5, seed=1)
    covariance = centred.T @ centred / 30
    scale = covariance.trace() / 5
    identity = torch.eye(5, dtype=torch.float64)
    distance = (covariance - scale * identity).square().sum() / 5
    error = sum((x.outer(x) - covariance).square().sum() / 5 for x in centred) / 30**2
    assert ledoit_wolf(centred) == pytest.approx(float(min(error, distance) / distance))
    # Few items in many dimensions are shrunk more.
    assert ledoit_wolf(noise(5, 200)) > 0.5 > ledoit_wolf(noise(500, 5) @ noise(5, 5, seed=1))


def test_splits_share_no_item() -> None:
    check_disjoint({"direction": ["a", "b"], "calibration": ["c"], "report": []})
    with pytest.raises(
        ValueError, match=r"2 item.s. are in both 'direction' and 'report': 'a', 'b'"
    ):
        check_disjoint({"direction": ["a", "b"], "calibration": ["c"], "report": ["b", "a"]})


@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: drift_of("harmful", noise(2, 3), noise(2, 3)), "needs media_ids and text_ids"),
        (
            lambda: drift_of("benign", noise(2, 3), noise(2, 3), media_ids="ab", text_ids="ab"),
            "needs `harmful`",
        ),
        (
            lambda: drift_of(
                "balanced",
                noise(2, 3),
                noise(2, 3, seed=1),
                media_ids="ab",
                text_ids="ab",
                harmful={"a": True, "b": True},
            ),
            "media holds 0 item",
        ),
        (
            lambda: drift_of(
                "harmful", noise(1, 3), noise(1, 3), media_ids="a", text_ids="a", harmful={}
            ),
            "does not say it of 'a'",
        ),
        (
            lambda: drift_of(
                "harmful",
                noise(2, 3),
                noise(2, 3),
                media_ids="ab",
                text_ids="ac",
                harmful=dict.fromkeys("abc", True),
            ),
            "have no partner: 'b', 'c'",
        ),
        (
            lambda: drift_of(
                "benign",
                noise(3, 3),
                noise(3, 3, seed=1),
                media_ids="abc",
                text_ids="abc",
                harmful={"a": False, "b": True, "c": True},
            ),
            "media holds 1 item.s. that are benign",
        ),
        (lambda: drift_of("harmfull", noise(2, 3), noise(2, 3)), "pairs is 'harmfull'; give one"),
        (lambda: drift_of("unpaired", noise(1, 3), noise(3, 3)), "media holds 1 item"),
        (
            lambda: drift_from(streamed()[0], SITE, [("image/harmful", "text/harmful")] * 2),
            "every .media, text. pair once",
        ),
        (lambda: lda_from(streamed()[0], SITE), "no covariance"),
        (lambda: shared_direction(elsewhere()), "different layers"),
        (lambda: incremental(elsewhere(model="other")), "different models"),
        (lambda: incremental(elsewhere(site="resid_pre")), "different sites"),
        (lambda: check_disjoint({"a": ["x", "x"]}), "'x' is more than once in 'a'"),
        (lambda: drift_from(streamed()[0], SITE, []), "labels is empty"),
        (
            lambda: drift_from(streamed()[0], SITE, [("image/harmful", "text/benign")]),
            "have different ids",
        ),
        (lambda: refusal_from(streamed()[0], SITE, harmful="x"), "no states of .* label 'x'"),
        (lambda: refusal_direction(Moments(3), Moments(3)), "harmful holds 0 item"),
        (lambda: shared_direction([along(noise(3))]), "1 direction"),
        (lambda: shared_direction([along(noise(3)), along(-noise(3))]), "sign is open"),
        (lambda: incremental([along(noise(3), 4), along(noise(3, seed=1), 2)]), "rising order"),
        (lambda: incremental([along(noise(3), 1), along(noise(3), 2)]), "direction is zero"),
        (lambda: lda_direction(noise(4, 3), noise(4, 3), shrinkage=0.0), "shrinkage is 0.0"),
        (lambda: lda_direction(torch.ones(3, 2), torch.zeros(3, 2)), "no spread"),
        (lambda: lda_direction(noise(4, 3), Moments(3)), "start holds 0"),
        (
            lambda: lda_direction(
                *(streamed()[0][(*SITE, f"text/{k}")] for k in ("harmful", "benign"))
            ),
            "give shrinkage",
        ),
    ],
)
def test_refusals_say_what_was_given(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
