"""Sweeps of one strength for all: algebra, plain hooks, controls, the reverse test."""

import math
from typing import Any

import pytest
import torch

from analyses.geometry import (
    RefusalTokens,
    Requests,
    States,
    Sweep,
    control_arms,
    drift_arm,
    measure_states,
    reverse_test,
    sweep,
)
from analyses.geometry.cells import Cells
from analyses.geometry.moments import separations
from model_adapters import Adapter
from regap_interp.adaptive.outcomes import Phrases
from regap_interp.adaptive.search import degenerate
from regap_interp.graph import Graph, add
from regap_interp.intervals import resample_clusters
from regap_interp.separability import separation
from tests.geometry.worlds import hooked, named, plant, worded

Measured = tuple[Adapter, Requests, States]
TOKENS = RefusalTokens((5, 9), (7, 3))
LAYER = 1
SURE = Phrases("sure", "1", ("sorry",))


_SWEPT: dict[str, Sweep] = {}


@pytest.fixture
def found(measured: Measured) -> Sweep:
    """A sweep of each model, run once."""
    name = measured[0].fingerprint
    if name not in _SWEPT:
        _SWEPT[name] = swept(*measured)
    return _SWEPT[name]


def swept(adapter: Adapter, requests: Requests, states: States, **options: Any) -> Sweep:
    (kind,) = requests.media
    found: dict[str, Any] = {
        "arms": {"drift": drift_arm(states, kind, [LAYER], pairs="all")},
        "refusal": states.refusals(),
        "strengths": (2.0,),
        "tokens": TOKENS,
        "resamples": 10,
        **options,
    }
    return sweep(adapter, requests, **found)


def test_a_constant_leaves_its_own_layer_and_moves_later_ones(
    measured: Measured, found: Sweep
) -> None:
    adapter, requests, _ = measured
    for cell in found.cells[1:]:
        for layer in range(LAYER + 1):
            bare, here = found.bare.separations[layer], cell.separations[layer]
            assert here.cohens_d == pytest.approx(bare.cohens_d, rel=1e-3, abs=1e-3)
            assert here.gap == pytest.approx(bare.gap, rel=1e-3, abs=1e-3)
        assert cell.downstream() != pytest.approx(found.bare.downstream([LAYER + 1]), abs=1e-4)
    assert found.n_harmful == found.n_benign == len(requests) // 2
    assert found.arms == ("drift",)
    assert found.read_at == tuple(range(adapter.n_layers))


def test_numbers_are_those_of_plain_hooks(measured: Measured, found: Sweep) -> None:
    adapter, requests, states = measured
    cell = found.cell("drift", LAYER, 2.0)
    (kind,) = requests.media
    minus = 2.0 * states.correction(kind, LAYER, pairs="all").vector
    last = adapter.n_layers - 1
    values: dict[str, list[float]] = {"coordinate": [], "log_odds": [], "opens": [], "kl": []}
    for batch in requests.batches(adapter, 1):
        steered, bare = (
            hooked(adapter, batch, layer=LAYER, minus=one)[last] for one in (minus, None)
        )
        # Exact at the last layer, as the test of lenses shows.
        logits, plain = (adapter.unembed(one[None]).detach().double() for one in (steered, bare))
        values["coordinate"].append(float(states.refusal(last).fraction(steered)))
        values["log_odds"].append(float(TOKENS.log_odds(logits[:, list(TOKENS.rows or ())])))
        values["opens"].append(float(int(logits.argmax()) in TOKENS.refusing))
        p, q = plain.log_softmax(dim=1), logits.log_softmax(dim=1)
        values["kl"].append(float((p.exp() * (p - q)).sum()))
    harmful = requests.harmful
    for name in ("log_odds", "opens"):
        for label, rows in (("harmful", harmful), ("benign", ~harmful)):
            mean = torch.tensor(values[name])[rows].mean()
            rate = cell.outcomes[f"{name}.{label}"]
            assert rate.value == pytest.approx(float(mean), rel=1e-2, abs=1e-3)
            assert rate.n == int(rows.sum())
    kl = torch.tensor(values["kl"])[~harmful].mean()
    assert cell.outcomes["kl.benign"].value == pytest.approx(float(kl), rel=1e-2, abs=1e-5)
    coordinate = torch.tensor(values["coordinate"])
    gap = coordinate[harmful].mean() - coordinate[~harmful].mean()
    assert cell.separations[last].gap == pytest.approx(float(gap), rel=1e-2, abs=1e-3)


def test_the_bare_model_differs_from_itself_in_nothing(found: Sweep) -> None:
    bare = found.bare
    assert (bare.arm, bare.layer, bare.strength) == ("bare", None, 0.0)
    assert bare.outcomes["kl.benign"].value == 0.0
    assert "kl.harmful" not in bare.outcomes


def test_whole_answers_are_judged_and_broken_ones_counted(random_organism: Adapter) -> None:
    requests = worded(random_organism, 2)
    states = measure_states(random_organism, requests)
    first = requests.ids[0]
    found = swept(
        random_organism,
        requests,
        states,
        strengths=(1.0,),
        refused=SURE,
        right=lambda name, answer: name == first,
        max_new_tokens=4,
        batch_size=5,
    )
    (layer,) = (cell.layer for cell in found.cells[1:])
    assert layer is not None
    vector = states.correction("image", layer, pairs="all").vector
    answers: list[str] = []
    with Graph(add("resid_post", layer, vector, strength=-1.0)).on(random_organism) as steered:
        for batch in requests.batches(random_organism, 5):
            answers += steered.generate(batch, max_new_tokens=4).texts
    outcomes = found.cells[1].outcomes
    for kind, wanted in (("harmful", True), ("benign", False)):
        said = [
            one
            for one, bad in zip(answers, requests.harmful.tolist(), strict=True)
            if bad == wanted
        ]
        assert outcomes[f"refused.{kind}"].value == pytest.approx(sum(map(SURE, said)) / len(said))
        broken = sum(map(degenerate, said)) / len(said)
        assert outcomes[f"degenerate.{kind}"].value == pytest.approx(broken)
    assert outcomes["right.benign"].value == pytest.approx(float(not requests.harmful[0]) / 4)
    assert found.judge == "sure"


def test_controls_are_as_long_as_the_drift_and_orthogonal_to_refusal() -> None:
    states = plant(40, 32, layers=2)
    drift = drift_arm(states, "image", pairs="all")
    arms = control_arms(states, "image", random=2, placebo=2, pairs="all", seed=5)
    assert list(arms) == ["random 0", "random 1", "placebo 0", "placebo 1"]
    for name, arm in arms.items():
        for layer, vector in arm.items():
            assert vector.norm() == pytest.approx(float(drift[layer].norm()))
            assert abs(float(vector @ states.refusal(layer).unit)) < 1e-9
            if name.startswith("placebo"):
                assert abs(float(vector @ drift[layer])) < 1e-9
    again = control_arms(states, "image", random=2, placebo=2, pairs="all", seed=5)
    assert all(arms[name][1].equal(again[name][1]) for name in arms)
    other = control_arms(states, "image", random=2, placebo=2, pairs="all", seed=6)
    assert not any(arms[name][1].equal(other[name][1]) for name in arms)
    assert control_arms(states, "image", random=0, placebo=0, pairs="all") == {}


def test_placebos_point_where_pairs_differ() -> None:
    # Twenty of 200 axes vary: placebos keep to them, isotropic directions do not.
    states = plant(80, 200)
    states.values[:, 80:, 20:] = states.values[:, :80, 20:]
    arms = control_arms(states, "image", random=1, placebo=1, pairs="all")
    inside = {name: float(arm[0][:20].norm() / arm[0].norm()) for name, arm in arms.items()}
    assert inside["placebo 0"] > 0.9
    assert inside["random 0"] < 0.5


def test_the_reverse_test_adds_to_text(random_organism: Adapter) -> None:
    requests = worded(random_organism)
    states = measure_states(random_organism, requests)
    options: dict[str, Any] = {
        "arms": {"drift": drift_arm(states, "image", [LAYER], pairs="all")},
        "refusal": states.refusals(),
        "resamples": 5,
    }
    found = reverse_test(random_organism, requests, strengths=(1.0,), **options)
    text = requests.only(requests.rows(modality="text"))
    same = sweep(random_organism, text, strengths=(-1.0,), **options)
    assert str(found.columns()) == str(same.columns())
    assert found.modalities == ("text",)
    assert found.cells[1].strength == -1.0
    with pytest.raises(ValueError, match="adds amounts above 0"):
        reverse_test(random_organism, requests, strengths=(-1.0,), **options)


def test_progress_counts_requests(random_organism: Adapter) -> None:
    requests = worded(random_organism)
    states = measure_states(random_organism, requests)
    seen: list[tuple[int, int]] = []
    swept(
        random_organism,
        requests,
        states,
        batch_size=16,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(16, 32), (32, 32)]


def test_bad_input_is_refused_before_anything_runs(random_organism: Adapter) -> None:
    requests = worded(random_organism)
    states = measure_states(random_organism, requests)
    run: list[object] = []
    handle = random_organism.module.register_forward_hook(lambda *_: run.append(1))
    for wrong, said in (
        ({"arms": {}}, "arms are"),
        ({"arms": {"bare": {1: torch.ones(128)}}}, "under names but 'bare'"),
        ({"strengths": ()}, "strengths are"),
        ({"strengths": (1.0, math.nan)}, "give finite ones"),
        ({"refusal": {}}, "no layer to read separability at"),
        ({"arms": {"x": {40: torch.ones(128)}}}, "organism has layers 0 to 11|has layers"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"resamples": 0}, "resamples is 0"),
        ({"confidence": 95.0}, "confidence 95.0"),
        ({"tokens": RefusalTokens((10**6,))}, r"tokens \[1000000\] are none of"),
    ):
        with pytest.raises(ValueError, match=said):
            swept(random_organism, requests, states, **wrong)
    handle.remove()
    assert not run
    with pytest.raises(ValueError, match="no cell"):
        swept(random_organism, requests, states, strengths=(1.0,)).cell("drift", 1, 7.0)


def test_intervals_of_separability_are_those_of_a_loop_over_resampled_clusters() -> None:
    requests = named(12)
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(3, 24, generator=generator, dtype=torch.float64)
    values[:2] += requests.harmful
    made = Cells(requests, ("4", "5", "kl"), (4, 5), resamples=30, confidence=0.9, seed=3)
    cell = made.make("drift", 3, 1.0, [3, 4, 5], values)
    draws = torch.tensor(
        [
            [separation(values[read][rows], requests.harmful[rows]).cohens_d for read in (0, 1)]
            for rows in resample_clusters(requests.cluster, 24, resamples=30, seed=3)
        ]
    )
    for rate, of in (
        (cell.cohens_d[4], draws[:, 0]),
        (cell.behind[3], draws.mean(dim=1)),
        (cell.behind[4], draws[:, 1]),
    ):
        ends = torch.quantile(of.double(), torch.tensor([0.05, 0.95], dtype=torch.float64))
        assert [rate.low, rate.high] == pytest.approx(ends.tolist(), rel=1e-4)
    assert 5 not in cell.behind
    assert cell.behind[3].value == pytest.approx(cell.downstream())


def test_a_resample_of_one_value_over_and_over_is_not_measured() -> None:
    harmful = torch.tensor([True] * 3 + [False] * 3)
    weights = torch.tensor([[3.0, 0, 0, 3, 0, 0], [1.0] * 6], dtype=torch.float64)
    for seed in range(30):
        generator = torch.Generator().manual_seed(seed)
        values = torch.randn(1, 6, generator=generator, dtype=torch.float64)
        for statistic in ("cohens_d", "fisher"):
            found = separations(statistic, weights, values, harmful)[:, 0]  # type: ignore[arg-type]
            assert found[0].isnan()
            plain = getattr(separation(values[0], harmful), statistic)
            assert float(found[1]) == pytest.approx(plain)


def test_how_requests_are_batched_changes_nothing(random_organism: Adapter) -> None:
    requests = worded(random_organism, 3)
    states = measure_states(random_organism, requests)
    refusal = {one: states.refusal(one) for one in (1, 2)}
    tables = [
        swept(random_organism, requests, states, batch_size=size, refusal=refusal).columns()
        for size in (1, 7)
    ]
    for one, other in zip(tables[0]["value"], tables[1]["value"], strict=True):
        assert one == pytest.approx(other, rel=1e-3, abs=1e-4, nan_ok=True)
