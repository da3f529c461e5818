"""The report: self-contained, without scripts, its figures those of the views."""

import re
import xml.etree.ElementTree as ET
from functools import cache

import pytest

from analyses.html import Picture, Section, Table, report_html
from tests.views.samples import Page, by_layer, plane, roc, windows

EVIL = "<script>alert(1)</script></svg></title>\"'&\x00\x1b\u202e\ud800 $x^2$ 驅"
FIGURES = {"plane": plane, "windows": windows, "layers": by_layer, "roc": roc}


@cache
def figure(name: str, text: str) -> str:
    """A figure, drawn once for all tests."""
    return FIGURES[name](text).svg(alt=text)


@cache
def page(text: str) -> str:
    """A report that says `text` wherever something can be said."""
    table = Table((text, "b"), ((text, text), ("row", "1")), caption=text)
    pictures = tuple(Picture(figure(name, text), text) for name in FIGURES)
    return report_html(text, [Section(text, (text, "more"), (table,), pictures), Section("next")])


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
