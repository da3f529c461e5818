"""What is drawn are the numbers of the results."""

import dataclasses
import math
from typing import Any

import pytest
import torch

from analyses.geometry import (
    Cell,
    Line,
    LinePanel,
    LinesView,
    Sweep,
    control_arms,
    decompose,
    drift_arm,
    measure_states,
    plane,
    rectify,
    reverse_test,
    sweep,
)
from analyses.geometry.lens import RefusalTokens
from model_adapters import Adapter
from regap_interp.intervals import Rate
from regap_interp.separability import auroc
from regap_interp.views import Band
from regap_interp.windows import QuantileBins
from tests.geometry.worlds import SOURCE, plant, worded

pytest.importorskip("matplotlib")
KINDS = ("image", "audio")


def lines(view: LinesView) -> dict[tuple[str, str], list[tuple[float, float, float, float]]]:
    """By quantity and label, all places with value and interval."""
    found: dict[tuple[str, str], list[tuple[float, float, float, float]]] = {}
    table = view._columns()
    for quantity, line, *numbers in zip(
        *(table[name] for name in ("quantity", "line", "x", "value", "low", "high")), strict=True
    ):
        found.setdefault((quantity, line), []).append(tuple(numbers))
    return found


def test_a_decomposition() -> None:
    found = decompose(
        plant(20, media=KINDS, layers=2), pairs="all", resamples=9, permutations=5, splits=5
    )
    seen = lines(found.view())
    for column, kind in enumerate(KINDS):
        for layer, (x, value, low, high) in enumerate(seen["cosine of drift and refusal", kind]):
            assert x == found.layers[layer]
            assert value == found.cosine.value[layer, column]
            assert (low, high) == (
                found.cosine.low[layer, column],
                found.cosine.high[layer, column],
            )
    both = seen["cosine of two modalities' drifts", "image and audio"]
    assert [one[1] for one in both] == found.between.value[:, 0, 1].tolist()
    assert torch.equal(found.heat("norm").values, found.norm.value)
    with pytest.raises(ValueError, match="no number 'size'; there are cosine, norm"):
        found.heat("size")


def test_a_plane_has_a_panel_for_each_kind_of_media() -> None:
    states = plant(20, media=KINDS)
    found = plane(states, states.refusal(0), states.correction("image", 0))
    assert [panel.title for panel in found.view().panels] == list(KINDS)
    panel = found.view().panels[1]
    rows = [*range(20), *range(40, 60)]
    assert torch.equal(panel.drift, found.drift[rows])
    assert torch.equal(panel.refusal, found.refusal[rows])
    assert panel.media.tolist() == [False] * 20 + [True] * 20


def test_windows() -> None:
    states = plant(120)
    seen = plane(states, states.refusal(0), states.correction("image", 0))
    options: dict[str, Any] = {"windows": QuantileBins(3), "resamples": 9, "min_per_class": 5}
    found = seen.windows("image", answered=seen.drift > 1, statistic="auroc", **options)
    table, drawn = found.columns(), lines(found.view())
    medians = table["median"]
    assert found.asr is not None
    for quantity, band in (("CRS (AUROC)", "crs"), ("ASR, harmful answered", "asr")):
        here = drawn[quantity, "image"]
        assert [one[0] for one in here] == medians
        for place, part in enumerate(("", "_low", "_high"), start=1):
            assert [one[place] for one in here] == pytest.approx(
                table[f"{band}{part}"], nan_ok=True
            )
    counts = {name: line for (_, name), line in drawn.items() if "in the window" in name}
    assert [one[1] for one in counts["harmful in the window"]] == table["n_harmful"]
    assert [one[1] for one in counts["benign in the window"]] == table["n_benign"]
    assert f"{found.trend.spearman:.2f}" in found.view().caption
    assert len(seen.windows("image", **options).view().panels) == 2


@pytest.fixture(scope="module")
def swept(random_organism: Adapter) -> Sweep:
    requests = worded(random_organism)
    states = measure_states(random_organism, requests)
    arms = {
        "drift": drift_arm(states, "image", [1, 2], pairs="all"),
        **control_arms(states, "image", [1], random=2, placebo=1, pairs="all"),
    }
    return sweep(
        random_organism,
        requests,
        arms=arms,
        refusal={layer: states.refusal(layer) for layer in (1, 2, 3)},
        strengths=(2.0, 1.0),
        tokens=RefusalTokens((5,), (7,)),
        resamples=20,
    )


def test_a_sweep(swept: Sweep) -> None:
    drawn = lines(swept.view(1))
    here = drawn["mean Cohen's d behind layer 1", "drift"]
    assert [one[0] for one in here] == [0.0, 1.0, 2.0]
    for strength, value, low, high in here:
        cell = swept.cell("drift", 1, strength) if strength else swept.bare
        assert value == pytest.approx(cell.downstream([2, 3]))
        assert low <= high
    kl = drawn["next-token KL from the bare model, benign (nats)", "random 1"]
    assert kl[0][1:] == (0.0, 0.0, 0.0)
    assert kl[2][1] == swept.cell("random 1", 1, 2.0).outcomes["kl.benign"].value
    assert {name for _, name in drawn} == {"drift", "random 0", "random 1", "placebo 0"}
    assert swept.view().title.endswith("(2 layers were steered)")
    with pytest.raises(ValueError, match=r"layer is 7; steered were \[1, 2\]"):
        swept.view(7)
    figure = swept.view(1).plot()
    legends = [one for ax in figure.axes if (one := ax.get_legend()) is not None]
    assert [text.get_text() for text in legends[0].get_texts()] == ["drift", "random", "placebo"]


def test_maps_of_a_sweep(swept: Sweep) -> None:
    gains = swept.heat()
    assert gains.rows == [1, 2]
    assert gains.columns == ["1", "2"]
    one = swept.cell("drift", 2, 1.0)
    gain = one.downstream() - swept.bare.downstream([3])
    assert float(gains.values[1, 0]) == pytest.approx(gain)
    by_layer = swept.heat("random 0", layer=1)
    assert by_layer.rows == [1, 2, 3]
    cell = swept.cell("random 0", 1, 2.0)
    gain = cell.separations[3].cohens_d - swept.bare.separations[3].cohens_d
    assert float(by_layer.values[2, 1]) == pytest.approx(gain)
    assert swept.heat("random 0").rows == [1]
    with pytest.raises(ValueError, match="no cell of arm 'random 0' at layer 2"):
        swept.heat("random 0", layer=2)


def test_a_reverse_test_says_that_drift_is_added(random_organism: Adapter) -> None:
    requests = worded(random_organism)
    states = measure_states(random_organism, requests)
    found = reverse_test(
        random_organism,
        requests,
        arms={"drift": drift_arm(states, "image", [1], pairs="all")},
        refusal=states.refusals(),
        strengths=(1.0, 0.5),
        resamples=5,
    )
    view = found.view()
    assert view.across == "strength added"
    assert [one[0] for one in next(iter(lines(view).values()))] == [0.0, 0.5, 1.0]


def test_intervals_stand_in_the_table(swept: Sweep) -> None:
    table = swept.columns()
    rows = [i for i, name in enumerate(table["measure"]) if name == "cohens_d"]
    assert all(table["low"][i] <= table["high"][i] for i in rows)
    behind = [i for i, name in enumerate(table["measure"]) if name == "cohens_d_behind"]
    bare = {table["layer"][i]: table["value"][i] for i in behind if table["arm"][i] == "bare"}
    later = {1: [2, 3], 2: [3]}
    assert bare == {one: pytest.approx(swept.bare.downstream(of)) for one, of in later.items()}


def test_a_rectification(random_organism: Adapter) -> None:
    requests = worded(random_organism)
    states = measure_states(random_organism, requests)
    found = rectify(
        random_organism,
        requests,
        refusal=states.refusals(),
        drift=states.correction("image", 1, pairs="all"),
        layer=1,
        tokens=RefusalTokens((5,), (7,)),
        resamples=9,
    )
    for quantity in ("coordinate", "log_odds"):
        traces = {one.label: one for one in found.view(quantity).traces}  # type: ignore[arg-type]
        assert len(traces) == 6
        band = found.mean(quantity, "drifted", harmful=True)  # type: ignore[arg-type]
        assert torch.equal(traces["harmful, drifted"].refusal.value, band.value)
        assert torch.equal(traces["harmful, drifted"].refusal.low, band.low)
    areas = found.signals()
    drawn = lines(areas.view())["AUROC, harmful against benign", "absolute"]
    assert [one[0] for one in drawn] == list(areas.layers)
    assert [one[1] for one in drawn] == areas.areas["absolute"].value.tolist()
    (panel,) = found.roc(3).panels
    for curve in panel.curves:
        values = found._values()[curve.label][3]
        assert curve.auroc == pytest.approx(auroc(values[found.harmful], values[~found.harmful]))
        x, y = curve.false_positive, curve.true_positive
        assert curve.auroc == pytest.approx(float(torch.trapezoid(y, x)))
    with pytest.raises(ValueError, match="layer is 1; signals are read after"):
        found.roc(1)


def test_many_lines_are_told_apart() -> None:
    nothing = torch.full((2,), math.nan, dtype=torch.float64)
    band = Band(torch.tensor([0.0, 1.0], dtype=torch.float64), nothing, nothing)
    panel = LinePanel("height", [Line(f"line {i}", (0, 1), band, 3) for i in range(10)])
    view = LinesView([panel] * 6, "layer")
    looks = view._looks()
    assert len(set(looks.values())) == 10
    figure = view.plot()
    assert sum(bool(ax.lines) for ax in figure.axes) == 6
    with pytest.raises(ValueError, match="panels is empty"):
        LinesView([], "layer")


def test_the_layer_shown_is_where_the_arm_does_most() -> None:
    nothing = Rate(math.nan, 9, math.nan, math.nan)

    def cell(arm: str, layer: int | None, strength: float, d: dict[int, float]) -> Cell:
        behind = {at: Rate(value, 9, math.nan, math.nan) for at, value in d.items()}
        return Cell(arm, layer, strength, {}, {9: nothing}, behind, {})

    for sign, best in ((1.0, 5), (-1.0, 6)):
        cells = (
            cell("bare", None, 0.0, {4: 1.0, 5: 1.0, 6: 5.0, 7: math.nan}),
            cell("drift", 7, sign, {7: math.nan}),
            cell("drift", 4, sign, {4: 1.5}),
            cell("drift", 5, sign, {5: 3.0}),
            cell("drift", 6, sign, {6: 4.5}),
            cell("random 0", 6, sign, {6: 50.0}),
        )
        found = Sweep(SOURCE, 0, cells, (9,), 5, 4, ("image",), "", 0.95, 9)
        assert f"steered at layer {best}" in found.view().title


def test_what_is_said_of_three_modalities() -> None:
    states = plant(8, media=("image", "audio", "video"))
    rows = [row for row in range(32) if row not in (30, 31)]
    states = dataclasses.replace(
        states, values=states.values[:, rows], requests=states.requests.only(rows)
    )
    found = decompose(states, pairs="all", resamples=5, permutations=3, splits=7)
    table = found.view()._columns()
    counts = dict(zip(table["line"], table["n"], strict=True))
    assert counts["image and audio"] == 16
    assert counts["audio and video"] == 14
    assert counts["video"] == 6
    assert "of halves the middle 95 % of 7 splits" in found.view().caption
