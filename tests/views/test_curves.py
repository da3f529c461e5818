"""Plane, windows, trajectories and ROC: what they say, and that there is something to say."""

import xml.etree.ElementTree as ET
from collections.abc import Callable

import pytest

from regap_interp.views import (
    LayerTrace,
    PlaneView,
    RocView,
    TrajectoriesView,
    View,
    WindowsView,
)
from regap_interp.views.bands import styles
from tests.views.samples import VIEWS, band, by_layer, plane, roc, windows


def test_figures_say_what_they_show() -> None:
    said = {
        name: " ".join(ET.fromstring(VIEWS[name]("image").svg()).itertext())
        for name in ("plane", "windows", "layers", "roc")
    }

    assert "harmful media (n 1)" in said["plane"]
    assert "benign text (n 1, 1 not measured)" in said["plane"]
    assert "CRS (Cohen's d)" in said["windows"]
    assert "ASR, harmful answered" in said["windows"]
    assert "undefended (n 40)" in said["windows"]
    assert "signal read" in said["layers"]
    assert "image: AUROC 0.900 [0.850, 0.950]" in said["roc"]
    assert "chosen, threshold 0.3" in said["roc"]
    assert "absolute: AUROC 0.500" in said["roc"]
    assert "nan" not in "".join(said.values())


def test_panels_share_their_axes() -> None:
    first, second = plane("image").plot().axes

    assert first.get_xlim() == second.get_xlim()
    assert first.get_ylim() == second.get_ylim()


def test_tables_hold_every_number() -> None:
    assert plane("a").to_frame()["refusal"].isna().sum() == 2
    assert windows("a").to_frame().query("quantity == 'crs'")["value"].isna().sum() == 2
    assert by_layer("a").to_frame().query("arm == 'corrected'")["layer"].tolist() == [4, 5, 6]
    assert len(roc("a").to_frame()) == 5


@pytest.mark.parametrize(
    "draw",
    [
        lambda: PlaneView([]),
        lambda: WindowsView([]),
        lambda: TrajectoriesView([], "refusal"),
        lambda: RocView([]),
    ],
)
def test_nothing_to_draw_is_an_error(draw: Callable[[], View]) -> None:
    with pytest.raises(ValueError, match="nothing to draw"):
        draw()


def test_legends_of_long_names_stay_within_the_figure() -> None:
    traces = [
        LayerTrace(f"requests of an arm with a long name, {i}", True, "a", (0, 1), band(0, 1), 20)
        for i in range(8)
    ]
    figure = TrajectoriesView(traces, "refusal").plot()
    figure.draw_without_rendering()
    legend, (wide, high) = figure.axes[0].get_legend().get_window_extent(), figure.bbox.size
    assert legend.x0 >= 0 and legend.x1 <= wide and legend.y0 >= 0 and legend.y1 <= high
    assert figure.axes[0].get_window_extent().height > 200


def test_up_to_twenty_five_lines_differ() -> None:
    assert len({str(one) for one in styles(25)}) == 25
    assert len({colour for colour, _, _ in styles(5)}) == 5


def test_drift_is_across_and_refusal_up() -> None:
    marks = plane("a").plot().axes[0].collections
    drawn = {mark.get_label(): mark.get_offsets().tolist() for mark in marks}
    assert drawn["harmful media (n 1)"] == [[0.0, 1.0]]
    assert drawn["benign media (n 1)"] == [[1.0, 0.0]]
