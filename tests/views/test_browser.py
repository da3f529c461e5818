"""Hostile text in a real browser, offline: shown as text, never run."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from analyses.html import Section, report_html
from analyses.organism import page as story_page
from regap_interp.views.markup import joined
from tests.test_html import page as report
from tests.views.browser import needs_browser, rendered, seen
from tests.views.samples import EVIL, RAN, VIEWS, Page, hostile_tokens
from tests.views.test_interactive import heads

HOSTILE = " ".join(EVIL[:6])


def ran(dom: str) -> bool:
    """Whether any hostile text ran."""
    return "data-ran" in dict(Page(dom).elements)["html"]


@needs_browser
def test_hostile_text_would_be_seen_to_run(tmp_path: Path) -> None:
    for number, token in enumerate(EVIL[1:4]):
        folder = tmp_path / str(number)
        folder.mkdir()
        assert ran(rendered(f"<title>raw</title><p>{token}", folder))


@needs_browser
def test_no_view_runs_anything(tmp_path: Path) -> None:
    # Without the policy of `page`: the elements themselves are safe.
    body = joined(*(make(HOSTILE).html() for make in VIEWS.values()))

    dom = rendered(f"<!DOCTYPE html><title>views</title>{body}", tmp_path)

    assert not ran(dom)
    found = Page(dom)
    assert not {"script", "svg", "iframe"} & {tag for tag, _ in found.elements}
    assert [tag for tag, _ in found.elements].count("figure") == len(VIEWS) + 2
    assert EVIL[2][:12] in found.text
    assert "\u27e8U+202E\u27e9" in found.text


@needs_browser
def test_the_interactive_page_draws_and_runs_no_token(tmp_path: Path) -> None:
    dom = rendered((heads() + hostile_tokens("the").interactive()).page(), tmp_path)

    assert not ran(dom)
    found = Page(dom)
    tags = [tag for tag, _ in found.elements]
    assert "canvas" in tags
    assert not {"img", "svg"} & set(tags)
    for token in ("<s>", "&lt;b&gt;", "\u27e8U+202E\u27e9", "L0H1</script>"):
        assert token in found.text


@needs_browser
def test_the_report_runs_nothing(tmp_path: Path) -> None:
    policy = "http-equiv"
    dom = rendered(report(HOSTILE).replace(policy, "name"), tmp_path)

    assert not ran(dom)
    assert RAN in Page(dom).text


@needs_browser
def test_the_demo_s_report_runs_nothing(tmp_path: Path, as_users_run_it: None) -> None:
    # What it takes from bundles, which are files that others may have made.
    evil: Any = " ".join(EVIL[1:6])
    bundle = SimpleNamespace(
        modality=evil, signal=evil, calibration=SimpleNamespace(reasons={"layer": evil}), layer=evil
    )
    tuned = {evil: SimpleNamespace(refused=0.5, n=8, target=0.5, reached=False, strength=evil)}
    areas = dict.fromkeys(("uncorrected", *story_page.SIGNALS), 0.5)
    told: Any = SimpleNamespace(
        media=(evil,),
        areas=lambda setting: areas,
        frozen=SimpleNamespace(
            bundles=(bundle,), strong=tuned, addition=tuned, bundle=lambda setting: bundle
        ),
        predictions=(
            SimpleNamespace(
                prediction="a",
                setting=evil,
                what=evil,
                rate=SimpleNamespace(value=0.0, low=0.0, high=0.0, n=1),
                side=evil,
                limit=0.0,
                verdict=evil,
            ),
        ),
    )
    tables = [
        make(told) for make in (story_page.signals, story_page.predictions, story_page.choices)
    ]
    html = report_html(evil, [Section(evil, tables=tuple(tables))])

    found = seen(html, tmp_path)

    assert not found.ran
    assert found.requests == []
    assert Page(found.dom, strict=False).text.count(RAN) > 20
