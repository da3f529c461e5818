"""What holds for every view: safe in a page, silent, complete, the same every time."""

import io
import re
import sys
import xml.etree.ElementTree as ET
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from regap_interp.views import Shown, View
from regap_interp.views import view as module
from tests.views.samples import EVIL, GOLDEN, GOLDEN_VIEWS, VIEWS, Page, heat, without_pictures

HOSTILE = " ".join(EVIL[:6]) + EVIL[7] + EVIL[8]
TAGS = {"bdi", "br", "div", "figcaption", "figure", "i", "img", "span", "table", "td", "th", "tr"}
# What JupyterLab leaves in the outputs of a notebook that is not trusted, and the writing mode,
# which it drops, as it does templates of grids and gradients that repeat.
STYLES = {
    *("background", "border", "border-collapse", "border-radius", "box-sizing", "color", "display"),
    *(
        "float",
        "font-family",
        "font-size",
        "font-weight",
        "height",
        "left",
        "line-height",
        "margin",
    ),
    *("max-width", "min-width", "overflow-x", "padding", "position", "table-layout", "text-align"),
    *("top", "vertical-align", "white-space", "width", "word-break", "writing-mode"),
}
HIDDEN = re.compile("[\x00-\x09\x0b-\x1f\u202e\u2066\ud800]")


@cache
def made(name: str, text: str) -> View:
    """A view, made once for all tests."""
    return VIEWS[name](text)


@cache
def bundle(name: str, text: str) -> dict[str, Any]:
    """Everything that it gives to a notebook."""
    return made(name, text)._repr_mimebundle_()


@cache
def drawing(name: str, text: str) -> str:
    """Its drawing."""
    return made(name, text).svg(alt=text)


@pytest.mark.parametrize("name", VIEWS)
@pytest.mark.parametrize("text", ["image", HOSTILE])
def test_a_page_gets_nothing_that_runs_or_loads(name: str, text: str) -> None:
    html = bundle(name, text)["text/html"]

    page = Page(html)
    assert page.open == []
    assert not HIDDEN.search(html)
    for tag, attributes in page.elements:
        assert tag in TAGS
        assert set(attributes) <= {"alt", "class", "scope", "src", "style", "title", "width"}
        assert "url(" not in (attributes.get("style") or "")
        for declaration in filter(None, (attributes.get("style") or "").split(";")):
            assert declaration.partition(":")[0] in STYLES
        assert tag != "img" or (attributes["src"] or "").startswith("data:image/")
    html.encode()


@pytest.mark.parametrize("name", VIEWS)
def test_it_brings_its_own_paper_and_ink(name: str) -> None:
    (tag, attributes), *_ = Page(bundle(name, "image")["text/html"]).elements

    assert tag == "figure"
    assert "background:#ffffff;color:#1f2430" in (attributes["style"] or "")


@pytest.mark.parametrize("name", VIEWS)
def test_notebooks_read_no_formulas_in_it(name: str) -> None:
    # Both classes: what MathJax 2 (exported notebooks) and 3 (JupyterLab) leave alone by default.
    (_, attributes), *others = Page(bundle(name, HOSTILE)["text/html"]).elements

    assert attributes["class"] == "tex2jax_ignore mathjax_ignore"
    inner = [a for tag, a in others if tag != "figure"]
    assert not any("class" in a for a in inner)


@pytest.mark.parametrize("name", VIEWS)
def test_all_that_it_gives_to_a_notebook_is_small(name: str) -> None:
    found = bundle(name, HOSTILE)

    assert sum(len(part) for part in found.values()) < 300_000


@pytest.mark.parametrize("name", VIEWS)
@pytest.mark.parametrize("text", ["image", HOSTILE])
def test_the_words_and_the_figure_are_there(name: str, text: str) -> None:
    found = bundle(name, text)

    assert set(found) == {"text/plain", "text/html", "image/png"}
    assert not HIDDEN.search(found["text/plain"])
    assert Image.open(io.BytesIO(found["image/png"])).width > 100


@pytest.mark.parametrize("name", VIEWS)
@pytest.mark.parametrize("text", ["image", HOSTILE])
def test_the_drawing_is_one_harmless_element(name: str, text: str) -> None:
    svg = drawing(name, text)

    root = ET.fromstring(svg)
    assert root.get("role") == "img"
    assert root.get("aria-label") == root.findtext("{*}title")
    assert "<script" not in svg
    assert not HIDDEN.search(svg)
    for element in root.iter():
        for key, value in element.attrib.items():
            assert not key.startswith("on")
            if key.endswith("href"):
                assert value.startswith(("#", "data:image/png"))
    own = f"{type(made(name, text)).__name__.lower()}-"
    assert all(ref.startswith(own) for ref in re.findall(r"url\(#([^)]*)\)", svg))


@pytest.mark.parametrize("name", VIEWS)
def test_the_same_numbers_give_the_same_bytes(name: str) -> None:
    again = VIEWS[name]("image")

    assert again.html() == bundle(name, "image")["text/html"]
    assert again.svg(alt="image") == drawing(name, "image")
    assert not re.search(r"\b20\d\d-\d\d", drawing(name, "image"))


@pytest.mark.parametrize("name", VIEWS)
def test_its_line_is_short_and_its_table_tidy(name: str) -> None:
    view = made(name, HOSTILE)

    assert "\n" not in repr(view)
    assert len(repr(view)) < 300
    table = view.to_frame()
    assert len(table) > 0
    assert table.columns.is_unique


@pytest.mark.parametrize("name", VIEWS)
def test_it_draws_into_given_axes(name: str) -> None:
    from matplotlib.figure import Figure

    view = made(name, "image")
    rows, columns, _ = view._shape()
    figure = Figure()
    axes = figure.subplots(rows, columns)

    assert view.plot(axes) is figure
    with pytest.raises(ValueError, match=rf"axes for {rows * columns} panels"):
        view.plot([figure.add_axes((0, 0, 1, 1))] * 99)


@pytest.mark.parametrize("suffix", [".html", ".png", ".svg", ".pdf", ".csv"])
def test_it_is_saved(suffix: str, tmp_path: Path) -> None:
    path = heat(HOSTILE).save(tmp_path / f"view{suffix}")

    assert path.stat().st_size > 100
    if suffix == ".html":
        page = path.read_text(encoding="utf-8")
        assert "default-src 'none'" in page
        assert "<script" not in page


def test_another_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no view becomes a '\.gif' file; use one of"):
        heat("image").save(tmp_path / "view.gif")


@pytest.mark.parametrize("name", GOLDEN_VIEWS)
def test_golden(name: str) -> None:
    golden = (GOLDEN / f"{name}.html").read_text(encoding="utf-8")

    assert without_pictures(VIEWS[name]("the").html()) == golden, (
        "if it was meant to change: python -m tests.views.samples, and look at the difference"
    )
    assert len(golden) < 40_000


def test_only_what_is_asked_for_is_made() -> None:
    asked = heat("image")

    assert set(asked._repr_mimebundle_(include=["text/plain"])) == {"text/plain"}
    assert "image/png" not in asked._repr_mimebundle_(exclude=["image/png"])


def test_a_view_too_large_for_a_page_is_a_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LARGEST_HTML", 2_000)

    tags = [tag for tag, _ in Page(heat("image").html()).elements]
    assert tags == ["figure", "img"]


def test_a_picture_too_large_is_made_coarser(monkeypatch: pytest.MonkeyPatch) -> None:
    fine = bundle("heat", "image")["image/png"]
    monkeypatch.setattr(module, "LARGEST_PNG", len(fine) - 1)

    assert len(heat("image")._png) < len(fine)


def test_a_result_shows_its_view(tmp_path: Path) -> None:
    class Result(Shown):
        def view(self) -> View:
            return heat("image")

    result = Result()
    assert result._repr_mimebundle_() == bundle("heat", "image")
    assert result.to_frame().equals(heat("image").to_frame())
    assert result.save(tmp_path / "view.csv").exists()
    assert result.plot().axes


def test_the_users_settings_are_left_alone_and_nothing_is_shown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # which shows figures by itself
    figure = heat(HOSTILE).plot()

    assert figure.axes
    assert dict(matplotlib.rcParams) == before


def test_without_matplotlib_a_view_has_its_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)

    assert set(heat("image")._repr_mimebundle_()) == {"text/plain", "text/html"}
    assert set(VIEWS["roc"]("image")._repr_mimebundle_()) == {"text/plain"}
    with pytest.raises(ImportError, match=r"pip install 'regap-interp\[views\]'"):
        heat("image").plot()
