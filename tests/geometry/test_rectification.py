"""Trajectories equal plain hooks; signals and their AUROC are those of their definitions."""

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch

from analyses.geometry import (
    Rectification,
    RefusalTokens,
    Requests,
    States,
    TunedLens,
    lens_log_odds,
    measure_states,
    rectify,
)
from model_adapters import Adapter
from regap_interp.adaptive.signals import SIGNALS, signal_node
from regap_interp.graph import Graph, GraphError, add
from regap_interp.intervals import resample_clusters
from regap_interp.separability import auroc
from tests.geometry.worlds import hooked, worded

Measured = tuple[Adapter, Requests, States]
TOKENS = RefusalTokens((5, 9), (7, 3))
LAYER = 1


def followed(adapter: Adapter, requests: Requests, states: States, **options: Any) -> Rectification:
    found: dict[str, Any] = {"strength": 0.7, "tokens": TOKENS, "resamples": 20, **options}
    (kind,) = requests.media
    drift = states.correction(kind, LAYER, pairs="all")
    return rectify(adapter, requests, refusal=states.refusals(), drift=drift, layer=LAYER, **found)


def test_trajectories_are_those_of_plain_hooks(measured: Measured) -> None:
    adapter, requests, states = measured
    found = followed(adapter, requests, states)
    (kind,) = requests.media
    minus = 0.7 * states.correction(kind, LAYER, pairs="all").vector
    batches = requests.batches(adapter, 1)
    place = {name: row for row, name in enumerate(requests.ids)}
    for item, name in enumerate(found.requests.ids):
        twin = requests.twin[place[name]]
        assert twin is not None
        runs = {
            "clean": hooked(adapter, batches[place[twin]]),
            "drifted": hooked(adapter, batches[place[name]]),
            "corrected": hooked(adapter, batches[place[name]], layer=LAYER, minus=minus),
        }
        for condition, plain in runs.items():
            for layer in range(adapter.n_layers):
                coordinate = states.refusal(layer).fraction(plain[layer])
                seen = found.coordinate[condition][layer, item]  # type: ignore[index]
                assert seen == pytest.approx(float(coordinate), rel=1e-3, abs=1e-3)
                log_odds = lens_log_odds(adapter, plain[layer][None], layer, TOKENS)
                seen = found.log_odds[condition][layer, item]  # type: ignore[index]
                assert seen == pytest.approx(float(log_odds), rel=1e-3, abs=1e-3)


def test_the_corrected_layer_keeps_its_coordinate_and_earlier_ones_their_states(
    measured: Measured,
) -> None:
    found = followed(*measured)
    drifted, corrected = found.coordinate["drifted"], found.coordinate["corrected"]
    torch.testing.assert_close(corrected[: LAYER + 1], drifted[: LAYER + 1], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(corrected[LAYER + 1 :], drifted[LAYER + 1 :], atol=1e-4)
    assert found.n == len(measured[1].rows(modality=measured[1].media[0]))
    assert found.requests.harmful.tolist() == found.harmful.tolist()


def test_signals_are_those_that_regap_reads(measured: Measured) -> None:
    adapter, requests, states = measured
    found = followed(adapter, requests, states)
    (kind,) = requests.media
    drift, last = states.correction(kind, LAYER, pairs="all"), adapter.n_layers - 1
    weak = [add("resid_post", LAYER, drift, strength=-0.7)]
    outputs = {
        signal: signal_node(
            signal,
            weak,
            layer=LAYER,
            refusal=states.refusal(LAYER),
            diagnostic=last,
            diagnostic_refusal=states.refusal(last),
        )
        for signal in SIGNALS
    }
    for item, batch in enumerate(found.requests.batches(adapter, 1)):
        run = Graph(outputs=outputs).run(adapter, batch)
        for signal in SIGNALS:
            seen = found.signal(signal)[last, item]
            assert seen == pytest.approx(float(run[signal]), rel=1e-3, abs=1e-3)


def test_areas_are_aurocs_with_intervals_over_clusters(random_organism: Adapter) -> None:
    requests = worded(random_organism, 8)
    states = measure_states(random_organism, requests)
    found = followed(random_organism, requests, states, resamples=30, seed=2)
    areas = found.signals()
    assert areas.layers == tuple(range(LAYER + 1, random_organism.n_layers))
    assert set(areas.areas) == {*SIGNALS, "uncorrected", "log_odds_gain"}
    for name in SIGNALS:
        for place, layer in enumerate(areas.layers):
            values = found.signal(name)[layer]
            plain = auroc(values[found.harmful], values[~found.harmful])
            area = areas.areas[name]
            assert area.value[place] == pytest.approx(plain)
            assert area.low[place] <= plain <= area.high[place]
    best = areas.best("paired_gain")
    assert areas.areas["paired_gain"].value[areas.layers.index(best)] == pytest.approx(
        float(areas.areas["paired_gain"].value.max())
    )
    assert (areas.n_harmful, areas.n_benign, areas.n) == (8, 8, 16)
    mean = found.mean("coordinate", "drifted", harmful=True)
    torch.testing.assert_close(
        mean.value, found.coordinate["drifted"][:, found.harmful].mean(dim=1)
    )
    assert (mean.low <= mean.value).all()
    again = followed(random_organism, requests, states, resamples=30, seed=2)
    assert again.columns() == found.columns()


def test_without_twins_or_tokens_there_is_less_to_see(random_organism: Adapter) -> None:
    requests = worded(random_organism)
    states = measure_states(random_organism, requests)
    media = requests.only(requests.rows(modality="image"))
    drift = states.correction("image", LAYER, pairs="all")
    found = rectify(
        random_organism, media, refusal=states.refusals(), drift=drift, layer=LAYER, resamples=5
    )
    assert set(found.coordinate) == {"drifted", "corrected"}
    assert not found.log_odds
    assert set(found.columns()["quantity"]) == {"coordinate"}
    with pytest.raises(ValueError, match="no log-odds were read"):
        found.view("log_odds")
    one_kind = media.only([row for row in range(len(media)) if media.harmful[row]])
    alone = dataclasses.replace(
        found,
        requests=one_kind,
        coordinate={name: value[:, media.harmful] for name, value in found.coordinate.items()},
    )
    with pytest.raises(ValueError, match="an AUROC needs both kinds"):
        alone.signals()
    with pytest.raises(ValueError, match="no signal 'loudness'"):
        found.signal("loudness")


def test_bad_input_is_refused_before_anything_runs(
    random_organism: Adapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = worded(random_organism)
    states = measure_states(random_organism, requests)
    monkeypatch.setattr(
        "analyses.geometry.rectification.capture_passes", lambda *_, **__: pytest.fail("ran")
    )
    good: dict[str, Any] = {
        "refusal": states.refusals(),
        "drift": states.correction("image", LAYER, pairs="all"),
        "layer": LAYER,
    }
    text = requests.only(requests.rows(modality="text"))
    with pytest.raises(ValueError, match="give those of one modality"):
        rectify(random_organism, text, **good)
    with pytest.raises(ValueError, match="expected one from 0 to 10"):
        rectify(random_organism, requests, **{**good, "layer": 11})
    with pytest.raises(ValueError, match="no direction for the layers"):
        rectify(random_organism, requests, **{**good, "refusal": {1: states.refusal(1)}})
    with pytest.raises(ValueError, match="strength is 0"):
        rectify(random_organism, requests, **good, strength=0.0)
    with pytest.raises(ValueError, match="are none of"):
        rectify(random_organism, requests, **good, tokens=RefusalTokens((-1,)))
    with pytest.raises(ValueError, match="resamples is 0"):
        rectify(random_organism, requests, **good, resamples=0)
    narrow = TunedLens({1: torch.zeros(3, 3)}, {1: torch.zeros(3)})
    with pytest.raises(ValueError, match="trained for another model"):
        rectify(random_organism, requests, **good, tokens=TOKENS, lens=narrow)
    swapped = {**states.refusals(), 3: states.refusal(4)}
    with pytest.raises(ValueError, match="the refusal direction of layer 3 was measured at"):
        rectify(random_organism, requests, **{**good, "refusal": swapped})
    raw = states.drift("image", LAYER, pairs="all")
    with pytest.raises(ValueError, match=r"take States\.correction"):
        rectify(random_organism, requests, **{**good, "drift": raw})
    elsewhere = dataclasses.replace(
        good["drift"], origin=dataclasses.replace(good["drift"].origin, layer=5)
    )
    with pytest.raises(GraphError, match="the direction was made at"):
        rectify(random_organism, requests, **{**good, "drift": elsewhere})


def test_intervals_and_ties_are_those_of_a_loop_over_resampled_clusters(
    random_organism: Adapter,
) -> None:
    requests = worded(random_organism, 4)
    media = requests.only(requests.rows(modality="image"))
    media = dataclasses.replace(media, cluster=tuple(f"c{row // 2}" for row in range(8)))
    states = measure_states(random_organism, requests)
    found = followed(random_organism, requests, states, resamples=25, seed=2)
    generator = torch.Generator().manual_seed(0)
    bare = torch.randint(4, (12, 8), generator=generator).double()
    weak = bare + torch.randint(3, (12, 8), generator=generator).double() + found.harmful
    found = dataclasses.replace(
        found, requests=media, coordinate={"drifted": bare, "corrected": weak}, log_odds={}
    )
    area = found.signals().areas["paired_gain"]
    gain, harmful = (weak - bare)[LAYER + 1].tolist(), found.harmful.tolist()

    def chance(rows: list[int]) -> float:
        up, down = ([gain[row] for row in rows if harmful[row] == kind] for kind in (True, False))
        if not up or not down:
            return math.nan
        wins = sum((one > other) + (one == other) / 2 for one in up for other in down)
        return wins / len(up) / len(down)

    assert float(area.value[0]) == pytest.approx(chance(list(range(8))))
    assert float(area.value[0]) > 0.5
    drawn = [rows.tolist() for rows in resample_clusters(media.cluster, 8, resamples=25, seed=2)]
    ends = np.nanquantile([chance(rows) for rows in drawn], [0.025, 0.975])
    assert [float(area.low[0]), float(area.high[0])] == pytest.approx(ends.tolist())
    mean = found.mean("coordinate", "drifted", harmful=False)
    means = [
        np.mean([float(bare[3, row]) for row in rows if not harmful[row]])
        for rows in drawn
        if not all(harmful[row] for row in rows)
    ]
    low, high = np.quantile(means, [0.025, 0.975])
    assert [float(mean.low[3]), float(mean.high[3])] == pytest.approx([low, high])


def test_one_request_has_no_interval(random_organism: Adapter) -> None:
    requests = worded(random_organism)
    states = measure_states(random_organism, requests)
    found = rectify(
        random_organism,
        requests.only(requests.rows(modality="image", harmful=True)[:1]),
        refusal=states.refusals(),
        drift=states.correction("image", LAYER, pairs="all"),
        layer=LAYER,
    )
    mean = found.mean("coordinate", "drifted", harmful=True)
    torch.testing.assert_close(mean.value, found.coordinate["drifted"][:, 0])
    assert mean.low.isnan().all()
    assert "n = 1" in found.view().caption
