"""Views where readers meet them, offline: exported notebooks, untrusted ones, saved pages."""

import base64
from functools import cache
from pathlib import Path
from typing import Any

import bleach
import nbformat
import pytest
from bleach.css_sanitizer import CSSSanitizer
from nbconvert import HTMLExporter

from tests.views.browser import Seen, needs_browser, rendered, seen
from tests.views.samples import EVIL, VIEWS, Page, hostile_tokens
from tests.views.test_every_view import HOSTILE, STYLES, TAGS, bundle, made

pytestmark = needs_browser
OFFLINE = {"mathjax_url": "", "require_js_url": ""}
KINDS_OF_BODY = ("strip", "heat", "roc", "tokens")
"""Media and chips, a table, a picture, hostile tokens."""


def words(html: str) -> str:
    """The text of a page without its spaces, which layout changes."""
    return "".join(Page(html, strict=False).text.split())


@cache
def outputs() -> list[dict[str, Any]]:
    """What every kind of view gives to a notebook when all that it can say is hostile."""
    return [bundle(name, HOSTILE) for name in VIEWS]


def notebook(bundles: list[dict[str, Any]]) -> Any:
    """A notebook with these outputs, as a kernel would have sent them."""
    made = nbformat.v4.new_notebook()
    for number, data in enumerate(bundles, start=1):
        sent = {
            kind: base64.b64encode(value).decode() if isinstance(value, bytes) else value
            for kind, value in data.items()
        }
        output = nbformat.v4.new_output("execute_result", data=sent, execution_count=number)
        cell = nbformat.v4.new_code_cell("view", outputs=[output], execution_count=number)
        made.cells.append(cell)
    nbformat.validate(made)
    return nbformat.from_dict(nbformat.reads(nbformat.writes(made), as_version=4))


def exported(bundles: list[dict[str, Any]], **options: Any) -> str:
    """The notebook as a page of nbconvert."""
    page: str = HTMLExporter(**options).from_notebook_node(notebook(bundles))[0]
    return page


def as_untrusted(html: str) -> str:
    """HTML as JupyterLab shows it in a notebook that is not trusted."""
    styles = CSSSanitizer(allowed_css_properties=STYLES - {"writing-mode"})
    allowed = {"*": ["alt", "class", "scope", "src", "style", "title", "width"]}
    clean: str = bleach.clean(
        html, tags=TAGS | {"tbody"}, attributes=allowed, protocols={"data"}, css_sanitizer=styles
    )
    return clean


def check(found: Seen, views: list[str], *, width: int = 200) -> None:
    """Everything is there to be seen, nothing ran, nothing was asked for."""
    assert not found.ran
    assert found.requests == []
    assert len(found.figures) == sum(view.count("<figure") for view in views)
    assert all(across >= width and down >= 30 for _, _, across, down, _ in found.figures)
    assert len(found.images) == sum(view.count("<img") for view in views)
    assert all(across and down and real for _, _, across, down, real in found.images)
    shown = ["".join(text.split()) for *_, text in found.figures]
    outer = [text for view in views if (text := words(view))]
    assert all(any(text in other for other in shown) for text in outer)


def test_what_a_page_asks_for_and_runs_would_be_seen(tmp_path: Path) -> None:
    found = seen(f'<figure>{EVIL[2]}</figure><img src="http://nowhere.invalid/x.png"/>', tmp_path)

    assert found.ran
    assert "http://nowhere.invalid/x.png" in found.requests
    assert any(not real for *_, real in found.images)


@pytest.mark.parametrize("options", [{}, {"theme": "dark"}, {"template_name": "basic"}])
def test_an_exported_notebook_shows_all_views(options: dict[str, str], tmp_path: Path) -> None:
    page = exported(outputs(), **OFFLINE, **options)

    check(seen(page, tmp_path), [one["text/html"] for one in outputs()])


def test_without_these_options_an_export_asks_the_network(tmp_path: Path) -> None:
    assert any("mathjax" in name.lower() for name in seen(exported([]), tmp_path).requests)


def test_an_exported_notebook_that_nbconvert_made_safe(tmp_path: Path) -> None:
    page = exported(outputs(), **OFFLINE, sanitize_html=True)  # styles and pictures are lost

    found = seen(page, tmp_path)
    assert not found.ran
    assert found.requests == []
    assert EVIL[2][:12] in Page(found.dom, strict=False).text


def test_an_untrusted_notebook_shows_all_views(tmp_path: Path) -> None:
    views = [one["text/html"] for one in outputs()]
    cleaned = [as_untrusted(view) for view in views]
    assert all(words(one) == words(view) for one, view in zip(cleaned, views, strict=True))
    for name in ("before", "after"):
        (tmp_path / name).mkdir()
    body = "<!DOCTYPE html><title>views</title><body>"

    before = seen(body + "".join(views), tmp_path / "before")
    after = seen(body + "".join(cleaned), tmp_path / "after")

    check(after, views)
    # Tokens and patches keep their colours, pictures their sizes.
    fills = [[cell[-1] for cell in one.cells] for one in (before, after)]
    assert fills[0] == fills[1]
    assert len(set(fills[0])) > 20
    assert [one[2:] for one in before.images] == [one[2:] for one in after.images]


@pytest.mark.parametrize("name", KINDS_OF_BODY)
def test_a_saved_page_shows_its_view(name: str, tmp_path: Path) -> None:
    view = made(name, HOSTILE)
    page = view.save(tmp_path / "x.html").read_text(encoding="utf-8")

    check(seen(page, tmp_path), [view.html()])


def test_the_policy_of_a_saved_page_stops_what_is_put_into_it(tmp_path: Path) -> None:
    page = hostile_tokens("the").save(tmp_path / "x.html").read_text(encoding="utf-8")
    added = page.replace("</body>", f"{EVIL[2]}</body>")

    assert "data-ran" in rendered(added.replace("http-equiv", "name"), tmp_path)
    assert "data-ran" not in rendered(added, tmp_path)
