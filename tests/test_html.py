"""The report and its figures: self-contained, without scripts, the same bytes every time."""

import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from functools import cache
from html.parser import HTMLParser

import pytest
import torch

from analyses.figures import Band, LayerTrace, PlanePoints, RocCurve, RocCurves, WindowCurve
from analyses.html import Picture, Section, Table, report_html
from analyses.plots import refusal_drift_plane, roc_curves, self_rectification, window_curves

EVIL = "<script>alert(1)</script></svg></title>\"'&\x00\x1b\u202e\ud800 $x^2$ 驅"
NAN = float("nan")


def column(*values: float) -> torch.Tensor:
    """Numbers in float64."""
    return torch.tensor(values, dtype=torch.float64)


def band(*values: float) -> Band:
    """A line with an interval of half a unit to each side."""
    middle = column(*values)
    return Band(middle, middle - 0.5, middle + 0.5)


def plane(title: str) -> str:
    """Two panels of four items, one of them not measured."""
    labels = torch.tensor([True, False, True, False])
    media = torch.tensor([True, True, False, False])
    points = PlanePoints(title, column(1, 0, 0.5, NAN), column(0, 1, 0.5, 0.2), labels, media)
    return refusal_drift_plane([points, points], alt=title)


def windows(title: str) -> str:
    """Two arms of one modality; a window without a measurement."""
    curves = [
        WindowCurve(title, arm, column(0, 1, 2), band(2, NAN, 1), band(0, 0.5, 1), 40)
        for arm in ("undefended", title)
    ]
    return window_curves(curves, alt=title)


def by_layer(title: str) -> str:
    """Harmful and benign over three layers."""
    traces = [
        LayerTrace(title, True, True, (4, 5, 6), band(0, 1, 2), 20),
        LayerTrace("benign", False, False, (4, 5, 6), band(0, 0.1, 0.1), 20),
    ]
    return self_rectification(traces, steered=4, diagnostic=6, quantity=title, alt=title)


def roc(title: str) -> str:
    """One chosen signal, and one without an interval."""
    curves = (
        RocCurve(title, column(0, 0.1, 1), column(0, 0.9, 1), 0.9, 0.85, 0.95, 0.3, (0.1, 0.9)),
        RocCurve("absolute", column(0, 1), column(0, 1), 0.5, NAN, NAN),
    )
    return roc_curves([RocCurves(title, curves, 60)], alt=title)


FIGURES = {"plane": plane, "windows": windows, "layers": by_layer, "roc": roc}


@cache
def figure(name: str, text: str) -> str:
    """A figure, drawn once for all tests."""
    return FIGURES[name](text)


@cache
def page(text: str) -> str:
    """A report that says `text` wherever something can be said."""
    table = Table((text, "b"), ((text, text), ("row", "1")), caption=text)
    pictures = tuple(Picture(figure(name, text), text) for name in FIGURES)
    return report_html(text, [Section(text, (text, "more"), (table,), pictures), Section("next")])


class Page(HTMLParser):
    """What a browser would take from a page: elements with attributes, and visible text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize("name", FIGURES)
@pytest.mark.parametrize("text", ["image", EVIL])
def test_a_figure_is_one_harmless_element(name: str, text: str) -> None:
    svg = figure(name, text)

    root = ET.fromstring(svg)
    assert root.tag.endswith("svg")
    assert root.get("role") == "img"
    assert root.get("aria-label") == (root.findtext("{*}title") or "")
    assert "<script" not in svg
    assert not re.search(r"[\x00-\x09\x0b-\x1f\u202e\ud800]", svg)
    for element in root.iter():
        for key, value in element.attrib.items():
            assert not key.startswith("on")
            assert not value.startswith("http")
            if key.endswith("href"):
                assert value.startswith("#")
    assert all(ref.startswith(f"{name}-") for ref in re.findall(r"url\(#([^)]*)\)", svg))


@pytest.mark.parametrize("name", FIGURES)
def test_the_same_numbers_give_the_same_bytes(name: str) -> None:
    first, second = figure(name, "image"), FIGURES[name]("image")

    assert first == second
    assert not re.search(r"\b20\d\d-\d\d", first)  # no date


def test_figures_leave_the_user_s_settings_alone() -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    roc("image")

    assert dict(matplotlib.rcParams) == before


def test_figures_say_what_they_show() -> None:
    said = {
        name: " ".join(ET.fromstring(draw("image")).itertext()) for name, draw in FIGURES.items()
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


@pytest.mark.parametrize(
    "draw",
    [
        lambda: refusal_drift_plane([], alt=""),
        lambda: window_curves([], alt=""),
        lambda: self_rectification([], steered=0, diagnostic=1, quantity="", alt=""),
        lambda: roc_curves([], alt=""),
    ],
)
def test_nothing_to_draw_is_an_error(draw: Callable[[], str]) -> None:
    with pytest.raises(ValueError, match="nothing to draw"):
        draw()


@pytest.mark.parametrize("text", ["Report", EVIL])
def test_a_page_runs_and_loads_nothing(text: str) -> None:
    html = page(text)

    ET.fromstring(html.partition("\n")[2])
    found = Page(html)
    tags = [tag for tag, _ in found.elements]
    assert not {"script", "link", "iframe", "object", "embed", "img", "base"} & set(tags)
    assert tags.count("svg") == len(FIGURES)
    policy = dict(found.elements)["meta"], [a for t, a in found.elements if t == "meta"][1]
    assert "default-src 'none'" in (policy[1]["content"] or "")
    for _, attributes in found.elements:
        for key, value in attributes.items():
            assert not key.startswith("on")
            assert key.startswith("xmlns") or "http" not in (value or "") or key == "http-equiv"
            if key in ("href", "src", "xlink:href"):
                assert (value or "").startswith("#")
    html.encode()


def test_ids_are_unique_in_a_page() -> None:
    pictures = tuple(Picture(figure("plane", title), "") for title in ("image", "Report"))
    html = report_html("Report", [Section("one", pictures=pictures), Section("two")])

    ids = re.findall(r'\bid="([^"]*)"', html)
    assert len(ids) == len(set(ids))


def test_hostile_text_is_read_as_text() -> None:
    found = Page(page(EVIL))

    assert found.text.count("<script>alert(1)</script>") > 10
    assert "\x00" not in found.text


def test_a_table_says_when_a_row_does_not_fit() -> None:
    with pytest.raises(ValueError, match="1 cells under 2 headings"):
        Table(("a", "b"), (("only",),))


@pytest.mark.parametrize(
    "svg", ["<div></div>", "<svg><script>x</script></svg>", "", "<svg><SCRIPT/>"]
)
def test_only_drawings_become_figures(svg: str) -> None:
    with pytest.raises(ValueError, match="a figure begins with"):
        report_html("Report", [Section("one", pictures=(Picture(svg, ""),))])
