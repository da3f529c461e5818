"""Elements: a few, escaped, without anything that runs."""

import pytest

from regap_interp.views.markup import element, joined, page


def test_children_and_attributes_are_text() -> None:
    made = element("span", "<b>&", element("i", "x"), title='"><script>')

    assert made == '<span title="&quot;&gt;&lt;script&gt;">&lt;b&gt;&amp;<i>x</i></span>'
    assert joined("<", made) == f"&lt;{made}"


@pytest.mark.parametrize(
    ("tag", "attributes", "error"),
    [
        ("script", {}, "not an element of views"),
        ("iframe", {}, "not an element of views"),
        ("a", {"href": "javascript:x"}, "not an element of views"),
        ("img", {"onerror": "x"}, "not an attribute of views"),
        ("img", {"src": "http://example.org/x.png"}, "not a PNG or JPEG"),
        ("img", {"src": "data:image/svg+xml;base64,AA"}, "not a PNG or JPEG"),
        ("div", {"style": "background:url(x)"}, "more than declarations"),
        ("div", {"style": 'x"y'}, "more than declarations"),
        ("div", {"class": "jp-mod-hidden"}, "could take up a style of the page"),
    ],
)
def test_the_rest_is_refused(tag: str, attributes: dict[str, str], error: str) -> None:
    with pytest.raises(ValueError, match=error):
        element(tag, **attributes)


def test_a_page_forbids_scripts_and_loading() -> None:
    made = page("<title>", element("div", "x"))

    assert "default-src 'none'" in made
    assert "<title>&lt;title&gt;</title>" in made
